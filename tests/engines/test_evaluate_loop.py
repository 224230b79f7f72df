from __future__ import annotations

import numpy as np
import pytest
import torch

from wideresnet.data.preprocess import Preprocessing
from wideresnet.engines.evaluate import evaluate
from wideresnet.networks import create


@pytest.mark.parametrize("batch_size", [1, 7, 100])
def test_the_size_of_the_batches_changes_no_logit(batch_size: int) -> None:
    torch.manual_seed(0)
    network = create("WRN-10-1").train()
    images = np.random.default_rng(0).integers(0, 256, (100, 16, 16, 3), dtype=np.uint8)
    labels = np.arange(100) % 10
    usual = evaluate(network, images, labels, Preprocessing("scale"))
    other = evaluate(network, images, labels, Preprocessing("scale"), batch_size=batch_size)
    assert len(usual.logits) == usual.num_images == 100
    torch.testing.assert_close(other.logits, usual.logits, rtol=1e-5, atol=1e-5)
    assert network.training
