"""Evaluation of a whole set: independent of the batches, and the same for a run and for its weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from wideresnet.data.preprocess import Preprocessing
from wideresnet.engines import optimize
from wideresnet.engines.evaluate import evaluate
from wideresnet.networks import create
from wideresnet.spec.recipe import Recipe
from wideresnet.spec.record import RunFolder
from wideresnet.training import fit
from wideresnet.weights.hub import read_weights


@pytest.mark.parametrize("batch_size", [1, 7, 100])
def test_the_size_of_the_batches_changes_no_logit(batch_size: int) -> None:
    network = create("WRN-10-1").train()
    images = np.random.default_rng(0).integers(0, 256, (100, 16, 16, 3), dtype=np.uint8)
    labels = np.arange(100) % 10
    usual = evaluate(network, images, labels, Preprocessing("scale"))
    other = evaluate(network, images, labels, Preprocessing("scale"), batch_size=batch_size)
    assert len(usual.logits) == usual.num_images == 100
    torch.testing.assert_close(other.logits, usual.logits, rtol=1e-5, atol=1e-5)
    assert network.training


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ["WRN-10-1", "ResNet-8"])
def test_a_run_stores_the_logits_of_its_optimized_weights_bit_for_bit(
    make_npz: Callable[..., Path], tmp_path: Path, name: str, precision: str
) -> None:
    data = make_npz()
    recipe = Recipe.flat(
        network=name, data=str(data), epochs=1, batch_size=16, crop_padding=1, device="cpu", precision=precision
    )
    fit(recipe, tmp_path / "run")
    weights, arrays = read_weights(tmp_path / "run"), np.load(data)
    network, labels = optimize(weights.network), arrays["y_test"]
    again = evaluate(network, arrays["x_test"], labels, weights.preprocessing, precision=precision)
    assert torch.equal(again.logits, load_file(RunFolder(tmp_path / "run").predictions)["logits"])
