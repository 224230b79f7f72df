"""On a GPU: the same numbers, the same record, resuming; skipped where there is none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import wideresnet.training.loop as loop
from wideresnet.config import Recipe
from wideresnet.data.feed import Feed
from wideresnet.data.preprocess import Preprocessing
from wideresnet.networks import create
from wideresnet.training import Interrupted, fit
from wideresnet.training.step import Meter, train_step
from wideresnet.weights import load

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def recipe(data: Path, device: str, precision: str = "fp32") -> Recipe:
    return Recipe(
        network="WRN-16-1", data=str(data), epochs=2, batch_size=16, lr=0.05, crop_padding=1,
        device=device, precision=precision,
    )  # fmt: skip


def test_a_network_agrees_with_float64_on_the_cpu() -> None:
    torch.manual_seed(0)
    network = create("WRN-16-2").eval()
    images = torch.randn(4, 3, 32, 32)
    expected = network.double()(images.double())
    found = network.float().cuda()(images.cuda()).double().cpu()
    assert (found - expected).norm() / expected.norm() < 1e-3  # TF32 convolutions, PyTorch's default, are within it


def test_batches_are_those_of_the_cpu() -> None:
    images = np.random.default_rng(0).integers(0, 256, (64, 32, 32, 3), dtype=np.uint8)
    options = {"batch_size": 16, "padding": 4, "flip": True}
    preprocessing = Preprocessing.fit("mean_std", images)
    feeds = [Feed(images, np.arange(64), preprocessing, device=device, **options) for device in ("cpu", "cuda")]
    for (a, labels_a), (b, labels_b) in zip(feeds[0].epoch(3), feeds[1].epoch(3), strict=True):
        assert torch.equal(labels_a, labels_b.cpu())
        torch.testing.assert_close(a, b.cpu(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_finishes_with_the_whole_record(make_npz: Callable[..., Path], tmp_path: Path, precision: str) -> None:
    result = fit(recipe(make_npz(), "cuda", precision), tmp_path / "run")
    assert (result["device"], result["precision"]) == ("cuda", precision)
    assert result["peak_memory_mib"] > 0


def test_ctrl_c_and_resume_go_on_to_nearly_the_same_weights(
    make_npz: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make_npz()
    fit(recipe(data, "cuda"), tmp_path / "whole")
    steps = 0

    def step(*args: object, **kwargs: object) -> None:
        nonlocal steps
        train_step(*args, **kwargs)  # type: ignore[arg-type]
        steps += 1
        if steps == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(loop, "train_step", step)
    with pytest.raises(Interrupted):
        fit(recipe(data, "cuda"), tmp_path / "cut", checkpoint_every_s=0)
    monkeypatch.setattr(loop, "train_step", train_step)
    fit(recipe(data, "cuda"), tmp_path / "cut", resume=True)
    for a, b in zip(load(tmp_path / "whole").parameters(), load(tmp_path / "cut").parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_a_loss_that_is_not_finite_changes_no_weight_without_asking_the_host() -> None:
    network = create("WRN-10-1").cuda()
    run = Recipe(network="WRN-10-1", data="digits", precision="fp32")
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, nesterov=True, fused=True)
    meter, labels = Meter("cuda"), torch.zeros(8, dtype=torch.int64, device="cuda")
    images = torch.randn(8, 3, 32, 32, device="cuda")
    train_step(network, optimizer, images, labels, meter, run, "cuda", step=0, lr=0.1)
    before = [parameter.clone() for parameter in network.parameters()]
    train_step(network, optimizer, images * float("nan"), labels, meter, run, "cuda", step=1, lr=0.1)
    train_step(network, optimizer, images, labels, meter, run, "cuda", step=2, lr=0.1)
    assert int(meter.failed_step) == 1
    assert all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))
