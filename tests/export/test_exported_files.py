"""The preprocessing that is exported is the package's own, up to rounding."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_exports import make_weights, need_packages

from wideresnet.data.preprocess import Preprocessing
from wideresnet.export import export_weights, read_exported
from wideresnet.export.portable import PreprocessingModule

RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.integers(0, 256, (40, 6, 5, 3), dtype=np.uint8)
IMAGES[0] = 255  # constant: without contrast
IMAGES[1] = 255
IMAGES[1, 2, 3, 1] = 254  # the least contrast


@pytest.mark.parametrize("kind", ["mean_std", "scale", "zca"])
def test_every_kind_of_preprocessing_is_that_of_training(kind: str) -> None:
    preprocessing = Preprocessing.fit(kind, IMAGES)
    expected = preprocessing(preprocessing.resident(IMAGES))
    pixels = torch.from_numpy(IMAGES).permute(0, 3, 1, 2).float()
    torch.testing.assert_close(PreprocessingModule(preprocessing)(pixels), expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("format", ["onnx", "openvino"])
def test_whitening_is_exported_for_one_size(format: str, tmp_path) -> None:
    need_packages(format)
    weights = make_weights(size=(6, 5), preprocessing=Preprocessing.fit("zca", IMAGES))
    result = export_weights(weights, format, tmp_path)
    assert result["metadata"]["input"]["dynamic"] == ["batch"]
    model = read_exported(result["file"])
    with torch.no_grad():
        expected = weights.network(weights.preprocessing(weights.preprocessing.resident(IMAGES)))
        found = model.network(model.preprocessing(model.preprocessing.resident(IMAGES)))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
