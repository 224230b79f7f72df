"""Synchronized normalization by the kernels: a batch that processes share gives the step of one process.

Its twins are the plain network with synchronized normalizations, and one process with the whole batch, in float64.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from processes import in_processes
from torch import Tensor, nn
from world_runs import MakeNpz, small

from wideresnet.data.feeds.resident import share_of
from wideresnet.distributed.gradients import FlatExchange
from wideresnet.distributed.sync_norm import synchronize_norms
from wideresnet.distributed.world import World, join
from wideresnet.engines import accelerate, optimize, why_no_kernels
from wideresnet.kernels import library
from wideresnet.networks import Network, create
from wideresnet.spec.execution import Execution
from wideresnet.spec.recipe import Recipe
from wideresnet.spec.record import RunFolder
from wideresnet.training import fit
from wideresnet.training.step import Meter, train_step

Step = dict[str, np.ndarray]


@pytest.fixture(autouse=True)
def _needs_kernels() -> None:
    if reason := library.why_unavailable():
        pytest.skip(reason)


def make_network(name: str = "WRN-10-1", dtype: torch.dtype = torch.float32) -> Network:
    torch.manual_seed(0)
    network = create(name, 5)
    for tensor in network.parameters():
        if tensor.dim() == 1:
            nn.init.uniform_(tensor, 0.5, 1.5)
    return network.to(dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]


def make_batch(num_images: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(num_images, 3, 8, 8, generator=generator) + 3
    return images.contiguous(memory_format=torch.channels_last), torch.randint(0, 5, (num_images,), generator=generator)


class Recorder(torch.optim.SGD):
    """Keeps the gradients of each step and then takes it."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, lr=0.01, momentum=0.9, fused=True)
        self.found: list[list[Tensor]] = []

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.found.append([parameter.grad.clone() for parameter in self.param_groups[0]["params"]])
        super().step(closure)


CASES: dict[str, tuple[int, int, int, str]] = {  # processes, images, parts, network
    "even": (2, 8, 1, "WRN-10-1"),
    "uneven": (3, 7, 1, "WRN-10-1"),
    "one image each": (3, 3, 1, "WRN-10-1"),
    "other kernels": (2, 5, 1, "WRN-16-1-B(3,1,3)"),
    "in parts": (2, 9, 2, "WRN-10-1"),
}


def two_steps(case: str, way: str, world: World, dtype: torch.dtype = torch.float32) -> Step:
    """Gradients, weights and statistics after two steps on batches that the processes of a world share."""
    _, num_images, accumulate, name = CASES[case]
    network = make_network(name, dtype)
    if world.size > 1:
        synchronize_norms(network)
    forward: nn.Module = network
    if way == "kernels":
        forward = accelerate(network)
        assert why_no_kernels(network, make_batch(2, 0)[0]) is None
    exchange = FlatExchange(forward, network) if world.size > 1 else None
    optimizer = Recorder(network.parameters())
    share, meter = share_of(num_images, world.rank, world.size), Meter("cpu")
    for step in range(2):
        images, labels = (part[share] for part in make_batch(num_images, seed=step))
        train_step(
            forward, optimizer, images.to(dtype), labels, meter, Execution(device="cpu"), step=step, lr=0.01,
            accumulate=accumulate, together=exchange, num_images=num_images,
        )  # fmt: skip
    found = {f"gradient {i} of step {step}": g for step, gs in enumerate(optimizer.found) for i, g in enumerate(gs)}
    found |= {f"{name} afterwards": tensor for name, tensor in network.state_dict().items()}
    found |= {"loss and errors": meter.sums}
    return {name: tensor.numpy().copy() for name, tensor in found.items()}


def all_steps(num: int) -> dict[tuple[str, str], Step]:
    with join() as world:
        found = {}
        for case, (num_processes, *_) in CASES.items():
            if num_processes == num:
                found |= {(case, way): two_steps(case, way, world) for way in ("kernels", "plain")}
                found[case, "exact"] = two_steps(case, "plain", world, torch.float64)
        return found


@functools.cache
def results(num: int) -> list[dict[tuple[str, str], Step]]:
    """What each of `num` processes found, which take a second to start."""
    return in_processes(num, all_steps, num)


def off(found: np.ndarray, exact: np.ndarray) -> float:
    return float(np.linalg.norm(found - exact) / (np.linalg.norm(exact) + 1e-12))


@pytest.mark.parametrize("case", CASES)
def test_a_batch_shared_by_processes_with_kernels_gives_the_step_of_one_process(case: str) -> None:
    num, _, accumulate, *_ = CASES[case]
    every = results(num)
    assert isinstance(every[0], dict), every
    exact = every[0][case, "exact"]
    if accumulate == 1:  # else a single process would have to cut its batch the same way
        alone = two_steps(case, "plain", World.single(), torch.float64)
        for key, value in alone.items():
            np.testing.assert_allclose(exact[key], value, rtol=1e-6, atol=1e-9, err_msg=key)
    for found in every:
        for key, value in exact.items():
            kernels, plain = found[case, "kernels"][key], found[case, "plain"][key]
            assert off(kernels, value) < 5e-5 + 10 * off(plain, value), key
            assert np.array_equal(kernels, every[0][case, "kernels"][key]), f"{key} differs between processes"


def offset_statistics() -> list[float]:
    with join() as world:
        network: Any = make_network()
        network.groups[0][0].norms[0].momentum = 1.0
        with torch.no_grad():
            network.stem.weight.zero_()
            network.stem.weight[:, 0, 1, 1] = 1.0
        synchronize_norms(network)
        images, _ = make_batch(10, seed=1)
        whole = images + 1000
        accelerate(network)(whole[:7] if world.rank == 0 else whole[7:])
        norm = network.groups[0][0].norms[0]
        var, mean = torch.var_mean(whole[:, 0].double())
        return [(norm.running_mean.double() / mean - 1).abs().max().item(),
                (norm.running_var.double() / var - 1).abs().max().item()]  # fmt: skip


def test_statistics_over_uneven_processes_keep_their_digits_if_the_mean_is_large() -> None:
    for mean_error, var_error in in_processes(2, offset_statistics):
        assert mean_error < 1e-6
        assert var_error < 1e-4


def lose_one(when: str) -> Any:
    with join() as world:
        network = make_network()
        synchronize_norms(network)
        images, _ = make_batch(4, seed=0)
        loss = accelerate(network)(images).sum() if when == "backward" else None
        if world.rank == 1:
            dist.destroy_process_group()
            return "gone"
        (accelerate(network)(images) if loss is None else loss.backward())
    return None


@pytest.mark.parametrize("when", ["forward", "backward"])
def test_a_lost_process_is_noticed_by_the_kernels(when: str) -> None:
    ends = in_processes(2, lose_one, when)
    assert str(ends[0]).startswith("LostProcess: another process has ended or no longer answers")


def fit_without_a_compiler_in_one(recipe: Recipe, out: Path) -> Any:
    if os.environ["RANK"] == "1":
        library.why_unavailable = lambda: "no C compiler here (gcc, cc or clang)"
    return fit(recipe, out)


def test_if_one_process_has_no_kernels_none_uses_them_or_the_run_is_refused(make_npz: MakeNpz, tmp_path: Path) -> None:
    recipe = small(make_npz(), sync_bn=True, epochs=1)
    ends = in_processes(2, fit_without_a_compiler_in_one, recipe, tmp_path / "run")
    assert ends[0] == ends[1]
    assert RunFolder(tmp_path / "run").read_recipe().machine.kernels == "pytorch"
    ends = in_processes(2, fit_without_a_compiler_in_one, recipe.replace(kernels="winograd"), tmp_path / "refused")
    assert str(ends[0]).startswith("UsageError: kernels='winograd': not every process can run the kernels"), ends


@pytest.mark.parametrize("name", ["WRN-10-1", "ResNet-18"])
def test_evaluation_of_synchronized_networks_is_that_of_plain_ones_and_needs_no_other_process(name: str) -> None:
    torch.manual_seed(0)
    network = create(name, 5)
    images = torch.randn(2, 3, 32, 32)
    expected = optimize(network)
    synchronize_norms(network)
    found = optimize(network)
    assert found.has_kernels
    assert torch.equal(found(images), expected(images))
