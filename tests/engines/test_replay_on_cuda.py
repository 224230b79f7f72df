"""Inference that is replayed on a GPU against the same network kernel by kernel; skipped without one."""

from __future__ import annotations

import copy

import pytest
import torch

from wideresnet import create, optimize
from wideresnet.engines.replay import EAGER_CALLS, MOST_GRAPHS, MOST_IMAGES

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("name", ["WRN-16-2", "ResNet-20"])
@pytest.mark.parametrize("bf16", [False, True])
def test_replayed_outputs_are_those_of_the_network(name: str, bf16: bool) -> None:
    torch.manual_seed(0)
    fast = optimize(create(name).cuda())
    sizes = (1, 3, MOST_IMAGES, MOST_IMAGES + 1)
    for size in sizes:
        for _ in range(EAGER_CALLS + 3):
            images = torch.randn(size, 3, 32, 32, device="cuda").contiguous(memory_format=torch.channels_last)
            with torch.inference_mode(), torch.autocast("cuda", torch.bfloat16, enabled=bf16):
                found, expected = fast(images), fast._fused(images)
            torch.testing.assert_close(found, expected, rtol=1e-2 if bf16 else 1e-4, atol=1e-2 if bf16 else 1e-4)
    assert len(fast._replay.graphs) == len(sizes) - 1  # the largest is not replayed
    images = torch.randn(2, 3, 32, 32, device="cuda")
    twin = copy.deepcopy(fast)
    assert torch.allclose(twin(images), fast(images), atol=1e-4)


def test_an_output_is_not_overwritten_by_the_next_call_and_new_weights_count() -> None:
    fast, other = optimize(create("WRN-10-1").cuda()), optimize(create("WRN-10-1").cuda())
    images = torch.randn(2, 3, 32, 32, device="cuda")
    first = [fast(images * factor) for factor in (1, 2, 3, 4, 5)]
    for factor, output in zip((1, 2, 3, 4, 5), first, strict=True):
        torch.testing.assert_close(output, fast._fused(images * factor), rtol=1e-4, atol=1e-4)
    fast.load_state_dict(other.state_dict())
    torch.testing.assert_close(fast(images), other(images), rtol=1e-4, atol=1e-4)
    moved = fast.cpu().cuda()
    torch.testing.assert_close(moved(images), other(images), rtol=1e-4, atol=1e-4)


def test_no_more_than_a_few_shapes_are_kept() -> None:
    fast = optimize(create("WRN-10-1").cuda())
    for size in range(1, MOST_GRAPHS + 4):
        for _ in range(EAGER_CALLS + 1):
            fast(torch.randn(size, 3, 32, 32, device="cuda"))
    assert len(fast._replay.graphs) == MOST_GRAPHS
