"""A network as one list of operations: the same bits for an image in any batch, in any memory, from any thread."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from twins import a_network, off

from wideresnet.engines import optimize, quantize
from wideresnet.engines.description import Ineligible, describe
from wideresnet.engines.program import KEPT_BYTES, KEPT_SHAPES, lower
from wideresnet.networks import Network

pytestmark = pytest.mark.usefixtures("needs_kernels")

NETWORKS: list[tuple[str, dict[str, Any]]] = [
    ("WRN-10-2", {}),
    ("WRN-16-1", {"in_channels": 1}),
    ("WRN-16-1-B(1,3,1)", {}),
    ("WRN-16-1-l1", {}),
    ("PreActResNet-29-bottleneck", {}),
]


def images(*shape: int) -> Tensor:
    return torch.randn(shape)


def both(network: Network, x: Tensor, batch_size: int = 64) -> list[nn.Module]:
    """The network in fp32 and in 8 bits."""
    calm = copy.deepcopy(network).train()  # statistics as after training, so that 8 bits suffice
    with torch.no_grad():
        for _ in range(20):
            calm(torch.randn(16, *x.shape[1:]))
    return [optimize(network), quantize(calm.eval(), torch.randn(64, *x.shape[1:]), batch_size=batch_size)]


@pytest.mark.parametrize("batch_size", [1, 64])
@pytest.mark.parametrize(("name", "options"), NETWORKS, ids=lambda given: given if isinstance(given, str) else "")
def test_an_image_has_the_same_bits_alone_and_in_any_batch(name: str, options: dict[str, Any], batch_size: int) -> None:
    x = images(33, options.get("in_channels", 3), 13, 22)
    for network in both(a_network(name, **options).eval(), x, batch_size):
        together = network(x)
        assert torch.equal(torch.cat([network(image[None]) for image in x]), together)
        assert torch.equal(torch.cat([network(part) for part in x.split(7)]), together)


def test_the_number_of_threads_changes_no_bit() -> None:
    x, before = images(5, 3, 32, 32), torch.get_num_threads()
    networks = both(a_network().eval(), x)
    wanted = [network(x) for network in networks]
    try:
        for num in range(1, 6):
            torch.set_num_threads(num)
            assert all(torch.equal(network(x), logits) for network, logits in zip(networks, wanted, strict=True))
    finally:
        torch.set_num_threads(before)


def test_images_may_lie_in_memory_in_any_order() -> None:
    x = images(4, 3, 9, 14)
    views = [
        x.contiguous(memory_format=torch.channels_last),
        torch.cat([x, x], 3)[..., :14],
        x.flip(3).flip(3),
        x.transpose(2, 3).contiguous().transpose(2, 3),
        x[:1].expand(4, -1, -1, -1),
    ]
    for network in both(a_network().eval(), x):
        for view in views:
            assert torch.equal(network(view), network(view.clone(memory_format=torch.contiguous_format)))


def test_threads_of_the_program_may_call_at_once() -> None:
    given = [images(batch, 3, 16, 16) for batch in (1, 5, 1, 3, 5, 1, 2, 5)]
    for network in both(a_network().eval(), given[0]):
        wanted = [network(x) for x in given]
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(network, given * 20))
        assert all(torch.equal(logits, wanted[i % len(given)]) for i, logits in enumerate(found))


def test_many_shapes_are_computed_and_few_are_kept() -> None:
    program = lower(describe(a_network().eval()))
    for side in range(1, 3 * KEPT_SHAPES):
        x = images(2, 3, side, 2 * side)
        program(x)
        assert len(program.plans) <= KEPT_SHAPES


def test_a_large_arena_is_freed_after_the_call() -> None:
    program = lower(describe(a_network("WRN-10-4").eval()))
    for x in (images(1, 3, 32, 32), images(128, 3, 32, 32)):
        program(x)
    small, large = program.plans.values()
    assert small.num_bytes <= KEPT_BYTES < large.num_bytes
    assert len(small.arenas) == 1
    assert not large.arenas


def test_memory_is_for_the_maps_between_stages_and_for_few_images_inside() -> None:
    program, map_bytes = lower(describe(a_network("WRN-40-2").eval())), 4 * 32 * 32 * 32
    for batch, most in ((1, 4), (256, 1.75 * 256)):
        program(images(batch, 3, 32, 32))
        plan = list(program.plans.values())[-1]
        assert plan.num_bytes <= most * map_bytes


def test_logits_are_those_of_float64() -> None:
    for name, options in NETWORKS:
        network, x = a_network(name, **options).eval(), images(3, options.get("in_channels", 3), 17, 32)
        with torch.no_grad():
            wanted, plain = copy.deepcopy(network).double()(x.double()), network(x)
        assert off(optimize(network)(x), wanted) < 1e-6 + 5 * off(plain, wanted), name


def test_a_classifier_without_bias_has_none() -> None:
    network, x = a_network().eval(), images(2, 3, 8, 8)
    network.fc = nn.Linear(network.fc.in_features, 10, bias=False)  # type: ignore[assignment]
    with torch.no_grad():
        assert off(optimize(network)(x), network(x)) < 1e-5


def test_convolutions_that_the_kernels_lack_are_refused() -> None:
    for change in ("stem", "conv"):
        network = a_network().eval()
        if change == "stem":
            network.stem = nn.Conv2d(3, 16, 3, 2, 1, bias=False)  # type: ignore[assignment]
        else:
            convs = cast("nn.ModuleList", network.get_submodule("groups.0.0.convs"))
            convs[0] = nn.Conv2d(16, 16, 5, padding=2, bias=False)
        with pytest.raises(Ineligible, match="1x1 and 3x3"):
            lower(describe(network.eval()))
        with torch.no_grad():
            x = images(2, 3, 8, 8)
            assert off(optimize(network)(x), network(x)) < 1e-5
