"""Synchronized normalization: names and values of a plain one, statistics over the images of all processes."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from processes import in_processes
from torch import Tensor, nn

from wideresnet.distributed.sync_norm import SyncBatchNorm2d, batch_statistics, synchronize_norms
from wideresnet.distributed.world import join
from wideresnet.networks import create


def make_network() -> nn.Module:
    torch.manual_seed(0)
    return create("WRN-10-1", 5).double()


def make_batch(num_images: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(num_images, 3, 8, 8, generator=generator, dtype=torch.float64) + 3
    return images, torch.randint(0, 5, (num_images,), generator=generator)


@pytest.mark.parametrize(("on_gpu", "kind"), [(False, SyncBatchNorm2d), (True, nn.SyncBatchNorm)])
def test_synchronized_norms_keep_names_values_and_evaluation(on_gpu: bool, kind: type[nn.Module]) -> None:
    plain = make_network()
    network = copy.deepcopy(plain)
    tensors = {id(tensor) for tensor in (*network.parameters(), *network.buffers())}
    synchronize_norms(network, on_gpu=on_gpu)
    assert sum(type(module) is kind for module in network.modules()) == 7
    assert [*network.state_dict()] == [*plain.state_dict()]
    assert {id(tensor) for tensor in (*network.parameters(), *network.buffers())} == tensors
    images, _ = make_batch(4)
    assert torch.equal(network.eval()(images), plain.eval()(images))


def alone() -> list[bool]:
    with join() as world:
        images, _ = make_batch(8, seed=world.rank)
        network = make_network()
        expected = make_network()(images)
        return [torch.equal(network(images), expected), world.size == 2]


def test_without_synchronized_norms_each_process_normalizes_by_its_own_images() -> None:
    assert in_processes(2, alone) == [[True, True]] * 2


def statistics(offset: float) -> list[list[float]]:
    with join() as world:
        whole, _ = make_batch(10)
        part = (whole[:7] if world.rank == 0 else whole[7:]) + offset
        mean, var, count = batch_statistics(part.float())
        var_of_all, mean_of_all = torch.var_mean(whole + offset, dim=(0, 2, 3), unbiased=False)
        return [count.tolist(), ((mean - mean_of_all) / offset).tolist(), (var / var_of_all - 1).tolist()]


def test_statistics_over_uneven_processes_keep_their_digits_if_the_mean_is_large() -> None:
    for count, mean_error, var_error in in_processes(2, statistics, 1000.0):
        assert count == 10 * 64
        assert max(map(abs, mean_error)) < 1e-6
        assert max(map(abs, var_error)) < 1e-4  # sums of squares in float32 would be wrong by a tenth


def compiled_step() -> list[bool]:
    with join():
        network = make_network()
        synchronize_norms(network)
        images, labels = make_batch(6)
        gradients = []
        for forward in (network, torch.compile(network, backend="aot_eager", dynamic=False)):
            F.cross_entropy(forward(images), labels).backward()
            gradients.append([p.grad.clone() for p in network.parameters() if p.grad is not None])
            network.zero_grad()
        return [torch.allclose(plain, fast, rtol=1e-9) for plain, fast in zip(*gradients, strict=True)]


@pytest.mark.slow
def test_synchronized_norms_work_in_a_compiled_network() -> None:
    pytest.importorskip("torch._inductor")
    for same in in_processes(2, compiled_step):
        assert same == [True] * 25
