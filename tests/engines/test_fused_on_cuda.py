"""Fused inference on a GPU against its twin, the plain network and float64; skipped without one."""

from __future__ import annotations

import copy
import io
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from twins import a_network, off

from wideresnet.engines import optimize
from wideresnet.engines.optimized import Optimized
from wideresnet.engines.replay import EAGER_CALLS, MOST_IMAGES
from wideresnet.kernels.epilogue import Epilogue, finish_slowly

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

FUSED = "convolutions, and everything between two of them in one pass, channels last in memory"


def images_of(num: int, size: int = 32, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(num, 3, size, size, device="cuda", dtype=dtype).contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("channels", [1, 16, 17, 160])
def test_the_kernel_is_its_twin(dtype: torch.dtype, channels: int) -> None:
    from wideresnet.kernels.epilogue_triton import finish

    for shape in ((3, channels, 5, 7), (64, channels, 1, 1)):
        maps = [torch.randn(shape, device="cuda").to(dtype) for _ in range(2)]
        y, added = (tensor.contiguous(memory_format=torch.channels_last) for tensor in maps)
        y[0, 0] = float("nan")
        bias, scale, shift = torch.randn(3, channels, device="cuda")
        for adds, biased, scaled, keep in itertools.product((False, True), repeat=4):
            if not scaled and not keep:
                continue
            vectors = (bias if biased else None, biased, scale if scaled else None, shift if scaled else None)
            epilogue = Epilogue(*vectors, keep=keep)
            expected = finish_slowly(y, added if adds else None, epilogue)
            found = finish(y.clone(), added if adds else None, epilogue)
            for one, other in zip(found, expected, strict=True):
                if other is None:
                    assert one is None
                else:
                    torch.testing.assert_close(one, other, equal_nan=True)


def test_maps_of_many_values_are_computed_to_the_end() -> None:
    from wideresnet.kernels.epilogue_triton import finish

    y = torch.randn(301, 48, 17, 31, device="cuda").contiguous(memory_format=torch.channels_last)
    bias, scale = torch.randn(2, 48, device="cuda")
    epilogue = Epilogue(bias=bias, scale=scale, shift=bias)
    for one, other in zip(finish(y.clone(), y, epilogue), finish_slowly(y, y, epilogue), strict=True):
        assert one is not None
        assert one.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16", "weights in bf16"])
@pytest.mark.parametrize(
    ("name", "size", "batches"),
    [
        ("WRN-16-2", 32, (1, 3, 512)),
        ("WRN-10-1-B(3,1,3)", 32, (16,)),
        ("WRN-10-1.5", 19, (16,)),
        ("PreActResNet-29-bottleneck", 32, (16,)),
        ("PreActResNet-18", 64, (16,)),
        ("ResNet-18", 64, (16, 40)),
        ("ResNeXt-50-32x4d", 64, (16,)),
    ],
)
def test_it_is_as_near_to_float64_as_the_plain_network(
    name: str, size: int, batches: tuple[int, ...], precision: str
) -> None:
    network = a_network(name).eval()
    low = {"fp32": torch.float32, "fp16": torch.float16}.get(precision, torch.bfloat16)
    of_weights = torch.bfloat16 if precision == "weights in bf16" else torch.float32
    network = network.to(of_weights)
    exact = copy.deepcopy(network).double()
    plain = copy.deepcopy(network).cuda().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    fast = optimize(network.cuda())
    autocast = torch.autocast("cuda", low, enabled=precision in ("bf16", "fp16"))
    for batch in batches:
        images = images_of(batch, size, of_weights)
        with torch.inference_mode(), autocast:
            found, expected = fast(images), plain(images)
        assert found.dtype == expected.dtype == (of_weights if precision == "fp32" else low)
        wanted = exact(images[:16].cpu().double()).detach()
        errors = [off(logits[:16].cpu(), wanted) for logits in (found, expected)]
        print(f"{name} {precision} {batch}: {errors[0]:.2e}, plain {errors[1]:.2e}")
        assert errors[0] < (3 if batch > 1 else 10) * errors[1] + 1e-6  # ten logits alone vary
        assert off(found, expected) < 0.05
    assert fast._fused._walks.keys() == {low}
    assert fast.how(precision) == FUSED


def test_an_image_does_not_depend_on_its_batch_and_nan_stays_in_its_own() -> None:
    fast, images = optimize(a_network("WRN-16-1").cuda()), images_of(64)
    images[1, 2, 4, 4] = float("nan")
    logits = fast(images)
    assert logits[1].isnan().all()
    assert logits[[0, *range(2, 64)]].isfinite().all()
    assert off(fast(images[2:5]), logits[2:5]) < 1e-2


@pytest.mark.parametrize("bf16", [False, True])
def test_graphs_of_it_are_replayed(bf16: bool) -> None:
    fast = optimize(a_network("WRN-16-2").cuda())
    for size in (1, 3, MOST_IMAGES):
        for _ in range(EAGER_CALLS + 3):
            images = images_of(size)
            with torch.inference_mode(), torch.autocast("cuda", torch.bfloat16, enabled=bf16):
                found, expected = fast(images), fast._fused(images)
            torch.testing.assert_close(found, expected)
    assert len(fast._replay.graphs) == 3


def test_it_can_be_captured_by_somebody_else_before_and_after_its_preparation() -> None:
    fast, images = optimize(a_network("WRN-10-1").cuda()), images_of(3)
    with torch.no_grad():
        fast.network(images)  # cuDNN's own preparation
        for is_prepared in (False, True):
            if is_prepared:
                fast(images)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                logits = fast(images)
            graph.replay()
            assert bool(fast._fused._walks) == is_prepared
            assert off(logits, fast.network(images)) < 1e-2


def test_copies_files_other_devices_types_and_weights() -> None:
    network, other, images = a_network("WRN-10-1"), a_network("WRN-10-1"), images_of(3)
    fast, file = optimize(network.cuda()), io.BytesIO()
    expected = fast(images)
    torch.save(fast, file)
    file.seek(0)
    for again in (copy.deepcopy(fast), torch.load(file, weights_only=False), fast.cpu().cuda()):
        assert isinstance(again, Optimized)
        assert again.how() == FUSED
        torch.testing.assert_close(again(images), expected)
    fast.load_state_dict(optimize(other).state_dict())
    torch.testing.assert_close(fast(images), optimize(other.cuda())(images))
    assert off(fast(images), expected) > 0.01
    halved = fast.to(torch.bfloat16)
    assert halved(images.bfloat16()).dtype == torch.bfloat16
    with pytest.raises(RuntimeError, match="type"):
        halved(images)
    exact = optimize(copy.deepcopy(network).double())
    assert "not fused: the kernels are for fp32, bf16 and fp16" in exact.how()
    assert exact(images.double()).dtype == torch.float64


def test_inference_mode_does_not_matter() -> None:
    network, images = a_network("WRN-10-1").cuda(), images_of(40)
    with torch.inference_mode():
        inside = optimize(network)
        expected = inside(images)
    outside = optimize(network)
    for fast in (inside, outside):
        torch.testing.assert_close(fast(images), expected)
        with torch.inference_mode():
            torch.testing.assert_close(fast(images), expected)


def test_compilers_see_the_plain_network() -> None:
    fast, images = optimize(a_network("WRN-10-1").cuda()), images_of(40)
    compiled = torch.compile(fast, backend="eager")
    assert off(compiled(images), fast.network(images)) < 1e-2
    assert not fast._fused._walks


@pytest.mark.parametrize(
    ("options", "reason"),
    [({"norm": "group"}, "GroupNorm"), ({"activation": "silu"}, "ReLU"), ({"stochastic_depth": 0.5}, "blocks")],
)
def test_what_it_refuses_runs_as_it_is(options: dict[str, Any], reason: str) -> None:
    network, images = a_network("WRN-10-1", **options).eval().cuda(), images_of(40)
    fast = optimize(network)
    assert reason in fast.how()
    torch.testing.assert_close(fast(images), fast.network(images))


def test_hooks_are_called_and_kernels_that_are_not_wanted_are_never_used() -> None:
    network, images, seen = a_network("WRN-10-1").eval().cuda(), images_of(40), []
    unwanted = optimize(network, kernels=False)
    assert unwanted.how() == "channels last in memory"
    torch.testing.assert_close(unwanted(images), unwanted.network(images))
    assert not unwanted._fused._walks
    network.fc.register_forward_hook(lambda *_: seen.append(1))
    fast = optimize(network)
    assert "hooks" in fast.how()
    fast(images)
    assert seen == [1]


def test_it_is_faster_than_the_plain_network() -> None:
    fast, images = optimize(a_network("WRN-16-4").cuda()), images_of(512)
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        times = []
        for function in (fast.network, fast):
            with torch.inference_mode(), torch.autocast("cuda", torch.bfloat16):
                laps = []
                for _ in range(15):
                    events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
                    events[0].record()
                    function(images)
                    events[1].record()
                    torch.cuda.synchronize()
                    laps.append(events[0].elapsed_time(events[1]))
            times.append(sorted(laps[5:])[5])
    finally:
        torch.backends.cudnn.benchmark = before
    print(f"WRN-16-4, bf16, 512 images: plain {times[0]:.3f} ms, fused {times[1]:.3f} ms")
    assert times[1] < times[0]
