"""Averaged weights equal the formula written out, step by step."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from wideresnet.networks import create
from wideresnet.training.averaging import average_weights


def train_a_little(network: nn.Module, step: int) -> None:
    """Move every parameter, running statistic and counter."""
    generator = torch.Generator().manual_seed(step)
    with torch.no_grad():
        for tensor in network.state_dict().values():
            if tensor.is_floating_point():
                tensor += torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
            else:
                tensor += 1


@pytest.mark.parametrize("decay", [0.001, 0.3, 0.999])
def test_averaged_weights_equal_the_formula_written_out_at_every_step(decay: float) -> None:
    torch.manual_seed(0)
    network = create("WRN-10-1", 4).double()
    averages = average_weights(network, decay)
    slow: dict[str, Tensor] = copy.deepcopy(network.state_dict())
    capped = 0
    for step in range(1, 21):
        train_a_little(network, step)
        averages.update_parameters(network)
        kept = min(decay, step / (step + 10))
        capped += kept == decay
        for name, newest in network.state_dict().items():
            is_count = not newest.is_floating_point()
            slow[name] = newest.clone() if is_count else kept * slow[name] + (1 - kept) * newest
        found = averages.module.state_dict()
        assert found.keys() == slow.keys()
        for name, expected in slow.items():
            torch.testing.assert_close(found[name], expected, rtol=1e-12, atol=1e-12, msg=name)
    assert capped == {0.001: 20, 0.3: 16, 0.999: 0}[decay]


def test_averaging_starts_from_the_initial_weights_and_leaves_the_network_alone() -> None:
    network = create("WRN-10-1", 4)
    before = copy.deepcopy(network.state_dict())
    averages = average_weights(network, 0.9)
    averages.update_parameters(network)
    for state in (averages.module.state_dict(), network.state_dict()):
        for name, tensor in before.items():
            torch.testing.assert_close(state[name], tensor, rtol=1e-6, atol=0)
    train_a_little(network, 0)
    assert not torch.equal(averages.module.state_dict()["fc.weight"], network.state_dict()["fc.weight"])


def test_integer_buffers_are_copied_and_float_buffers_averaged() -> None:
    network = nn.BatchNorm2d(2)
    averages = average_weights(network, 0.9)
    network.running_mean = torch.full((2,), 11.0)
    network.num_batches_tracked = torch.tensor(7)
    averages.update_parameters(network)
    averaged = averages.module
    assert int(averaged.num_batches_tracked) == 7  # type: ignore[arg-type]
    torch.testing.assert_close(averaged.running_mean, torch.full((2,), 10.0))  # the first step keeps 1 / 11 of 0
