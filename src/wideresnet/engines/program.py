"""A described network in evaluation mode as one program: a list of operations that a single call of the kernels runs.

`lower` makes the list, in fp32 or in 8 bits. What depends on the weights alone is computed there, once; the places of
the maps in memory, which depend on the shape of the images, at the first call with that shape.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from wideresnet.base.arithmetic import ceil_div
from wideresnet.engines.description import Description, Ineligible, Layer
from wideresnet.kernels import ops
from wideresnet.kernels.abi import Op
from wideresnet.kernels.library import library
from wideresnet.kernels.quantized import QuantizedConv, Quantizer
from wideresnet.kernels.threads import num_threads

STEM, CONV, QUANTIZED, DIRECT, HEAD = range(5)  # the kinds of program.c

LINE = 64  # bytes of a cache line; maps begin at one

KEPT_BYTES = 32 << 20  # a larger arena is allocated for each call, so that it takes no memory in between
KEPT_SHAPES = 8  # of images, whose plans are kept


@dataclass(frozen=True)
class Step:
    """An operation before the shape of the images is known. Maps have the numbers of the description.

    Attributes:
        kind, kernel, ins, outs, stride, weight, rescale, scale, shift: as in program.c.
        reads, adds, writes: numbers of maps; None for the images, for nothing added, and for the logits.
        values, bytes: how the result is stored.
        unused: the maps that nothing needs after this operation.
    """

    kind: int
    kernel: int
    ins: int
    outs: int
    weight: Tensor
    stride: int = 1
    reads: int | None = None
    adds: int | None = None
    writes: int | None = None
    values: bool = True
    bytes: bool = False
    rescale: Tensor | None = None
    scale: Tensor | None = None
    shift: Tensor | None = None
    unused: tuple[int, ...] = ()


def lower(
    description: Description, steps: dict[int, Tensor] | None = None, direct: Sequence[bool] | None = None
) -> Program:
    """Turn a description into a program, in fp32, or in 8 bits if steps are given.

    Args:
        description: of a network in evaluation mode.
        steps: for each map that a layer reads, float64 (C,): the value of one unit of its bytes.
        direct: for each layer in 8 bits whether it is computed by the definition, instead of by tiles.

    Raises:
        Ineligible: the kernels have no such convolution.
    """
    check_convs(description)
    norms = {number: ops.normalize_running(norm) for number, norm in description.norms.items()}
    quantizers = {number: Quantizer.after(norms[number], step) for number, step in (steps or {}).items()}
    added = {*description.added, description.output}

    def of_result(number: int) -> dict[str, Any]:
        """Return how a map is stored."""
        if steps is None:
            return {"writes": number}
        quantizer = quantizers.get(number)
        fused = {} if quantizer is None else {"scale": quantizer.scale, "shift": quantizer.shift}
        return {"writes": number, "values": number in added, "bytes": quantizer is not None, **fused}

    def of_weight(i: int, layer: Layer) -> dict[str, Any]:
        """Return the weights of a layer, and its normalization in fp32."""
        if steps is None:
            norm, weight = norms[layer.reads], ops.transform_weight(layer.conv.weight, layer.conv.stride[0]).values
            return {"kind": CONV, "weight": weight, "scale": norm.scale, "shift": norm.shift}
        conv = QuantizedConv(layer.conv, steps[layer.reads], direct=direct is not None and direct[i])
        kind = DIRECT if conv.direct else QUANTIZED
        return {"kind": kind, "weight": conv.weight, "rescale": conv.rescale}

    stem, fc, last = description.stem, description.fc, norms[description.output]
    taps = stem.weight.detach().permute(1, 2, 3, 0).contiguous()  # (in, kernel, kernel, out)
    program = [Step(STEM, stem.kernel_size[0], stem.in_channels, stem.out_channels, weight=taps, **of_result(0))]
    for i, (layer, unused) in enumerate(zip(description.layers, description.last_uses, strict=True)):
        program.append(Step(
            kernel=layer.conv.kernel_size[0], ins=layer.conv.in_channels, outs=layer.conv.out_channels,
            stride=layer.conv.stride[0], reads=layer.reads, adds=layer.adds, unused=unused, **of_weight(i, layer),
            **of_result(layer.writes),
        ))  # fmt: skip
    bias = torch.zeros(fc.out_features) if fc.bias is None else fc.bias.detach()
    program.append(Step(
        HEAD, 0, fc.in_features, fc.out_features, weight=fc.weight.detach().contiguous(), reads=description.output,
        rescale=bias.contiguous(), scale=last.scale, shift=last.shift,
    ))  # fmt: skip
    return Program(program)


def check_convs(description: Description) -> None:
    """Refuse convolutions that the kernels do not have.

    Raises:
        Ineligible: there is one.
    """
    if description.stem.stride != (1, 1) or not all(ops.fits(layer.conv) for layer in description.layers):
        raise Ineligible(f"the kernels are for 1x1 and 3x3 convolutions of multiples of {ops.LANES} channels")


class Program:
    """See `lower`.

    Attributes:
        steps: the operations. The program keeps their tensors alive, whose addresses the kernels have.
        plans: by shape of the images, at most `KEPT_SHAPES`.
    """

    def __init__(self, steps: list[Step]) -> None:
        self.steps = steps
        self.plans: dict[tuple[int, ...], Plan] = {}

    def __call__(self, x: Tensor) -> Tensor:
        """Compute logits, float32 (B, num_classes), of float32 images (B, C, H, W) in any memory format."""
        plan = self.plans.get(tuple(x.shape))
        if plan is None:
            if len(self.plans) >= KEPT_SHAPES:
                self.plans.clear()
            plan = self.plans[tuple(x.shape)] = Plan(self.steps, *x.shape)
        logits = torch.empty(len(x), self.steps[-1].outs, dtype=torch.float32, device="cpu")
        # Two threads may call at once: each takes an arena, or makes one.
        arena = plan.arenas.pop() if plan.arenas else torch.empty(plan.num_bytes, dtype=torch.uint8, device="cpu")
        strides = (ctypes.c_long * 4)(*x.stride())
        library().wrn_run(
            plan.ops, len(plan.ops), x.data_ptr(), strides, len(x), logits.data_ptr(), arena.data_ptr(), num_threads()
        )
        if plan.num_bytes <= KEPT_BYTES and not plan.arenas:
            plan.arenas.append(arena)
        return logits


class Plan:
    """The operations of a program for images of one shape, and where their maps lie in the arena.

    Attributes:
        ops: as program.c reads them.
        num_bytes: size of the arena.
        arenas: memory that is free at the moment.
    """

    def __init__(self, steps: list[Step], batch: int, channels: int, height: int, width: int) -> None:
        del channels
        self.arenas: list[Tensor] = []
        places, sizes = Places(), {0: (height, width)}
        self.ops = (Op * len(steps))()
        values: dict[int | None, int] = {}
        quantized: dict[int | None, int] = {}
        for op, step in zip(self.ops, steps, strict=True):
            height, width = sizes[step.reads or 0]
            sizes[step.writes or 0] = after = ceil_div(height, step.stride), ceil_div(width, step.stride)
            num = batch * after[0] * after[1] * step.outs
            op.kind, op.kernel, op.stride, op.H, op.W = step.kind, step.kernel, step.stride, height, width
            op.ins, op.outs = step.ins, step.outs
            op.weight, op.rescale, op.scale, op.shift = map(_at, (step.weight, step.rescale, step.scale, step.shift))
            source = values if step.kind in (CONV, HEAD) else quantized
            op.reads, op.adds = source.get(step.reads, -1), values.get(step.adds, -1)
            op.values = op.bytes = -1
            if step.writes is not None:
                is_read = source is values and step.adds == step.reads  # by other positions than its own
                if step.adds in step.unused and step.values and not is_read:  # the sum takes the place of what is added
                    op.values = values[step.writes] = values.pop(step.adds)
                elif step.values:
                    op.values = values[step.writes] = places.take(4 * num)
                if step.bytes:
                    op.bytes = quantized[step.writes] = places.take(num)
            for number in step.unused:
                for maps in (values, quantized):
                    if number in maps:
                        places.give_back(maps.pop(number))
        self.num_bytes = places.end


class Places:
    """Places in one piece of memory, each reused after it was given back.

    Attributes:
        end: bytes in use at most.
    """

    def __init__(self) -> None:
        self.end = 0
        self._sizes: dict[int, int] = {}
        self._free: list[int] = []

    def take(self, num_bytes: int) -> int:
        """Return a place: the smallest free one that is large enough, or a new one."""
        fitting = [place for place in self._free if self._sizes[place] >= num_bytes]
        if fitting:
            place = min(fitting, key=self._sizes.__getitem__)
            self._free.remove(place)
            return place
        place, size = self.end, ceil_div(num_bytes, LINE) * LINE
        self._sizes[place], self.end = size, self.end + size
        return place

    def give_back(self, place: int) -> None:
        """Free a place."""
        self._free.append(place)


def _at(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
