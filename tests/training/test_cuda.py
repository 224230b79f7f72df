"""On a GPU: the same numbers, the same record, resuming; skipped without one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_runs import after_steps, break_off
from torch import Tensor

from wideresnet.base.errors import UsageError
from wideresnet.data.feeds.resident import Feed
from wideresnet.data.preprocess import Preprocessing
from wideresnet.machine.memory import reset_peak_memory
from wideresnet.networks import create
from wideresnet.spec.execution import Execution
from wideresnet.spec.options import MachineOptions, OptimizerOptions
from wideresnet.spec.recipe import Recipe
from wideresnet.training import Interrupted, fit
from wideresnet.training.preflight.autotune import LONG_RUN_S, autotune
from wideresnet.training.preflight.trial import StepShape
from wideresnet.training.step import Meter, train_step
from wideresnet.weights.hub import load

DEVICE = "cuda"

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def recipe(data: Path, device: str, precision: str = "fp32") -> Recipe:
    return Recipe.flat(
        network="WRN-16-1", data=str(data), epochs=2, batch_size=16, lr=0.05, crop_padding=1,
        device=device, precision=precision,
    )  # fmt: skip


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


@pytest.mark.parametrize("deterministic", [False, True])
def test_a_run_that_is_stopped_and_resumed_ends_alike_and_in_the_same_bits_if_that_is_asked_for(
    make_npz: Callable[..., Path], tmp_path: Path, deterministic: bool
) -> None:
    run = recipe(make_npz(), DEVICE).replace(dropout=0.3, deterministic=deterministic)
    whole = fit(run, tmp_path / "whole", checkpoint_every_s=0)
    with after_steps(3, break_off), pytest.raises(Interrupted):
        fit(run, tmp_path / "cut", checkpoint_every_s=0)
    cut = fit(run, tmp_path / "cut", checkpoint_every_s=0, resume=True)
    assert cut["test_loss"] == pytest.approx(whole["test_loss"], rel=0.1)
    if deterministic:
        pairs = zip(load(tmp_path / "whole").parameters(), load(tmp_path / "cut").parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)


def test_losses_of_50_steps_are_those_of_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """In float64 all of them are; in fp32 the first ones, since later steps amplify rounding a thousandfold."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(4, (50, 32), generator=generator)
    images = torch.randn(50, 32, 3, 16, 16, generator=generator) + labels[:, :, None, None, None]

    def losses(device: str, dtype: torch.dtype) -> Tensor:
        torch.manual_seed(0)
        network = create("WRN-16-2", 4).to(device, dtype)
        optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4, nesterov=True)
        found = []
        for batch, targets in zip(images, labels, strict=True):
            loss = F.cross_entropy(network(batch.to(device, dtype)), targets.to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            found.append(loss.detach().double().cpu())
        return torch.stack(found)

    exact, gpu, single = losses("cpu", torch.float64), losses(DEVICE, torch.float64), losses(DEVICE, torch.float32)
    assert exact[-1] < 0.5 * exact[0]
    assert (gpu - exact).abs().max() < 1e-6
    assert (single - exact).abs()[:2].max() < 1e-5
    assert (single - exact).abs().mean() < 0.05 * exact.mean()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("network", ["WRN-16-4", "WRN-28-10"])
def test_predicted_memory_is_within_a_tenth(
    make_npz: Callable[..., Path], tmp_path: Path, network: str, precision: str
) -> None:
    run = recipe(make_npz(256, size=32), DEVICE, precision).replace(network=network, batch_size=128)
    reset_peak_memory(DEVICE)  # which another test of this process has left
    result = fit(run, tmp_path / "run")
    assert result["predicted_memory_mib"] == pytest.approx(result["peak_memory_mib"], rel=0.1)


@pytest.mark.filterwarnings("default")  # the compiler's own
@pytest.mark.usefixtures("autotuning")
def test_the_fastest_configuration_is_measured_and_compiled() -> None:
    shape, num_images = StepShape(16, 1, (32, 32), OptimizerOptions()), int(LONG_RUN_S * 10**6)
    execution, notes = autotune(MachineOptions(precision="fp32"), shape, create("WRN-16-1"), DEVICE, num_images)
    assert not any("not compiled:" in note for note in notes), notes
    assert "compiled" in notes[-1] or "not measured" in notes[-1], notes
    assert execution.device == DEVICE


@pytest.mark.usefixtures("autotuning")
def test_a_batch_too_large_for_the_gpu_is_refused_with_the_largest(
    make_npz: Callable[..., Path], tmp_path: Path
) -> None:
    run = recipe(make_npz(20_000, size=32), DEVICE).replace(network="WRN-28-10", batch_size=20_000)
    with pytest.raises(UsageError, match=r"^batch_size=20000: .*the largest that fits is \d+"):
        fit(run, tmp_path / "run")


def test_a_loss_that_is_not_finite_changes_no_weight_without_asking_the_host() -> None:
    network, execution = create("WRN-10-1").cuda(), Execution(device=DEVICE)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, nesterov=True, fused=True)
    meter, labels = Meter("cuda"), torch.zeros(8, dtype=torch.int64, device="cuda")
    images = torch.randn(8, 3, 32, 32, device="cuda")
    train_step(network, optimizer, images, labels, meter, execution, step=0, lr=0.1)
    before = [parameter.clone() for parameter in network.parameters()]
    train_step(network, optimizer, images * float("nan"), labels, meter, execution, step=1, lr=0.1)
    train_step(network, optimizer, images, labels, meter, execution, step=2, lr=0.1)
    assert int(meter.failed_step) == 1
    assert all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))
