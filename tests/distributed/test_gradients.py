"""The gradients, statistics and sums of a shared batch are those of one process, whichever way they are exchanged."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import torch
from processes import in_processes
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from wideresnet.data.feeds.resident import share_of
from wideresnet.distributed.gradients import (
    FlatExchange,
    GradientExchange,
    OverlappedExchange,
    make_exchange,
)
from wideresnet.distributed.sync_norm import synchronize_norms
from wideresnet.distributed.world import World, join
from wideresnet.networks import create
from wideresnet.networks.blocks import draw_depth_from
from wideresnet.spec.execution import Execution
from wideresnet.training.step import Meter, train_step


def make_network(options: dict[str, Any], device: str = "cpu") -> nn.Module:
    torch.manual_seed(0)
    network = create("WRN-10-1", 5, **options).double()
    return network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]


def make_batch(num_images: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(num_images, 3, 8, 8, generator=generator, dtype=torch.float64) + 3
    return images, torch.randint(0, 5, (num_images,), generator=generator)


class Recorder(torch.optim.SGD):
    """Keeps the gradients of a step instead of using them."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        del closure
        self.found = [parameter.grad.clone() for parameter in self.param_groups[0]["params"]]


def one_step(
    way: str, num_images: int, accumulate: int, options: dict[str, Any], world: World, device: str = "cpu"
) -> dict[str, np.ndarray]:
    """Gradients, statistics and sums after `train_step` on a batch that the processes of a world share."""
    network = make_network(options, device)
    if world.size > 1:
        draw_depth_from(network, world.depth)
        synchronize_norms(network, on_gpu=device == "cuda")
    skips_blocks = "stochastic_depth" in options
    exchange: GradientExchange | None = {
        "alone": lambda: None,
        "flat": lambda: FlatExchange(network, network),
        "overlapped": lambda: OverlappedExchange(network, skips_blocks=skips_blocks),
        "chosen": lambda: make_exchange(network, network, device=device, skips_blocks=skips_blocks),
    }[way]()
    meter, optimizer = Meter(device), Recorder(network.parameters(), lr=0.1)
    share = share_of(num_images, world.rank, world.size)
    for step in range(2):  # the second one has other blocks left out, and reuses what the first one has allocated
        torch.manual_seed(step)
        world.depth.manual_seed(step)  # as `World.seed_step` does; here as a single process draws
        images, labels = (part[share].to(device) for part in make_batch(num_images, seed=step))
        train_step(
            network if exchange is None else exchange.forward, optimizer, images, labels, meter,
            Execution(device=device), step=step, lr=0.1, accumulate=accumulate, together=exchange,
            num_images=num_images,
        )  # fmt: skip
    tensors = {f"gradient of {n}": g for (n, _), g in zip(network.named_parameters(), optimizer.found, strict=True)}
    tensors |= {f"statistics {name}": buffer for name, buffer in network.named_buffers()}
    tensors |= {"sums": meter.sums, "images": torch.tensor(meter.num_images)}
    return {name: tensor.cpu().numpy() for name, tensor in tensors.items()}


CASES: dict[str, tuple[int, int, int, dict[str, Any]]] = {  # processes, images, parts, options of the network
    "even": (2, 8, 1, {}),
    "uneven": (3, 10, 1, {}),
    "blocks left out": (3, 10, 1, {"stochastic_depth": 0.3}),
    "in parts": (2, 7, 3, {"norm": "group"}),
    "in parts, more in one process": (2, 7, 4, {"norm": "group"}),
    "in parts, other blocks in each": (3, 11, 2, {"norm": "group", "stochastic_depth": 0.3}),
}


def all_cases(num: int) -> dict[tuple[str, str], dict[str, np.ndarray]]:
    with join() as world:
        return {
            (way, name): one_step(way, num_images, accumulate, options, world)
            for name, (num_processes, num_images, accumulate, options) in CASES.items()
            for way in ("flat", "overlapped")
            if num_processes == num
        }


@functools.cache
def results(num: int) -> list[dict[tuple[str, str], dict[str, np.ndarray]]]:
    """What each of `num` processes found, which takes seconds to start."""
    return in_processes(num, all_cases, num)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("way", ["flat", "overlapped"])
def test_a_shared_batch_gives_the_gradients_and_statistics_of_one_process(way: str, name: str) -> None:
    num, num_images, accumulate, options = CASES[name]
    every = [found[way, name] for found in results(num)]
    # with stochastic depth each part draws its own blocks: a single process would have to cut its batch the same way
    is_comparable = accumulate == 1 or "stochastic_depth" not in options
    alone = one_step("alone", num_images, accumulate, options, World.single()) if is_comparable else None
    for found in every:
        for key, value in (alone or results(num)[0]["flat", name]).items():
            np.testing.assert_allclose(found[key], value, rtol=1e-6, atol=1e-9, err_msg=key)
            assert np.array_equal(found[key], every[0][key]), f"{key} differs between processes"


def test_some_steps_really_leave_blocks_out() -> None:
    found = one_step("alone", 10, 1, {"stochastic_depth": 0.3}, World.single())
    assert any(not value.any() for name, value in found.items() if "conv" in name)


SAM_RHO = 0.5


def shared_sam_step(way: str, accumulate: int) -> list[np.ndarray]:
    """The gradients that a step of SAM gives the optimizer, in a process of several."""
    with join() as world:
        network = make_network({"norm": "group"})
        exchange = FlatExchange(network, network) if way == "flat" else OverlappedExchange(network)
        optimizer, share = Recorder(network.parameters(), lr=0.1), share_of(10, world.rank, world.size)
        images, labels = (part[share] for part in make_batch(10))
        for step in range(2):  # the second one reuses what the first one has allocated
            train_step(
                exchange.forward, optimizer, images, labels, Meter("cpu"), Execution(device="cpu"), step=step, lr=0.1,
                accumulate=accumulate, sam_rho=SAM_RHO, together=exchange, num_images=10,
            )  # fmt: skip
        return [gradient.numpy() for gradient in optimizer.found]


@pytest.mark.parametrize("way", ["flat", "overlapped"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_each_process_perturbs_the_weights_by_its_own_share_and_the_second_gradients_add_up(
    way: str, accumulate: int
) -> None:
    images, labels = make_batch(10)
    expected: list[Tensor] = []
    for rank in range(3):  # Foret et al. 2021, section 4.1, written out: shares of 4, 3 and 3 images
        network, share = make_network({"norm": "group"}), share_of(10, rank, 3)
        uphill = torch.autograd.grad(cross_entropy(network(images[share]), labels[share]), [*network.parameters()])
        norm = torch.cat([gradient.flatten() for gradient in uphill]).norm()
        with torch.no_grad():
            for parameter, gradient in zip(network.parameters(), uphill, strict=True):
                parameter += SAM_RHO * gradient / norm
        loss = cross_entropy(network(images[share]), labels[share]) * (len(labels[share]) / 10)
        found = torch.autograd.grad(loss, [*network.parameters()])
        expected = [a + b for a, b in zip(expected, found, strict=True)] if expected else list(found)
    every = in_processes(3, shared_sam_step, way, accumulate)
    for found in every:
        for a, b, c in zip(found, expected, every[0], strict=True):
            np.testing.assert_allclose(a, b.numpy(), rtol=1e-5, atol=1e-8)
            assert np.array_equal(a, c)  # the same bits in all processes


def chosen() -> list[str]:
    with join():
        network = make_network({})
        ways: list[dict[str, Any]] = [
            {"device": "cpu"},
            {"device": "cpu", "skips_blocks": True},
            {"device": "cuda", "is_compiled": True},
            {"device": "cuda", "is_deterministic": True},
            {"device": "cuda"},
        ]
        return [type(make_exchange(network, network, **way)).__name__ for way in ways]


def test_gradients_overlap_with_the_backward_pass_only_on_a_gpu_and_if_the_result_is_exact() -> None:
    assert in_processes(2, chosen) == [["FlatExchange"] * 4 + ["OverlappedExchange"]] * 2


def lose_one(way: str) -> Any:
    with join() as world:
        network = make_network({})
        exchange = FlatExchange(network, network) if way == "flat" else OverlappedExchange(network)
        if world.rank == 1:
            torch.distributed.destroy_process_group()
            return "gone"
        exchange.finish(torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64))
    return None


@pytest.mark.parametrize("way", ["flat", "overlapped"])
def test_a_lost_process_is_noticed_in_the_exchange(way: str) -> None:
    ends = in_processes(2, lose_one, way)
    assert str(ends[0]).startswith("LostProcess: another process has ended or no longer answers")


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@pytest.mark.parametrize("name", [name for name, (num, *_) in CASES.items() if num == 2])
def test_on_gpus_the_gradients_are_those_of_one_process_on_the_cpu(name: str) -> None:
    _, num_images, accumulate, options = CASES[name]
    expected = one_step("alone", num_images, accumulate, options, World.single())
    for found in in_processes(2, one_step_on_gpu, num_images, accumulate, options):
        for key, value in expected.items():
            np.testing.assert_allclose(found[key], value, rtol=1e-5, atol=1e-7, err_msg=key)


def one_step_on_gpu(num_images: int, accumulate: int, options: dict[str, Any]) -> dict[str, np.ndarray]:
    with join() as world:
        world.use("cuda")
        return one_step("chosen", num_images, accumulate, options, world, "cuda")
