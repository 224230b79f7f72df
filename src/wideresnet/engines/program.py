"""A described network in evaluation mode as one program: a list of operations that a single call of the kernels runs.

A normalization before a convolution is fused into it. One after it is folded: its scale into the weights, its shift
into a bias, which is added together with the shortcut, before ReLU, while the result is written.

`lower` makes the list, in fp32 or in 8 bits. What depends on the weights alone is computed there, once; the places of
the maps in memory, which depend on the shape of the images, at the first call with that shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from wideresnet.base.arithmetic import ceil_div
from wideresnet.engines.description import Description, Ineligible, Layer
from wideresnet.kernels import ops
from wideresnet.kernels.abi import Op
from wideresnet.kernels.quantized import QuantizedConv, Quantizer
from wideresnet.kernels.threads import num_threads

STEM, POOLED_STEM, CONV, QUANTIZED, DIRECT, HEAD = range(6)  # the kinds of program.c

LINE = 64  # bytes of a cache line; maps begin at one

CACHED_BYTES = 256 << 10
"""Of the largest map of a stage, per thread: the images whose maps stay in the second-level caches."""

BLOCK, LARGE_BLOCK, LARGE_WEIGHTS = 48, 192, 24 << 20
"""Tiles per thread that an operation has at least, if there are as many: those for which the kernels read the weights
once, and those if no cache holds the weights, in bytes. As in tiles.h and winograd.c."""

KEPT_BYTES = 32 << 20  # a larger arena is allocated for each call, so that it takes no memory in between
KEPT_SHAPES = 8  # of images, whose plans are kept


@dataclass(frozen=True, eq=False)
class Step:
    """An operation before the shape of the images is known. Maps have the numbers of the description.

    Attributes:
        kind, kernel, ins, outs, stride, weight, rescale, bias, scale, shift: as in program.c.
        reads, adds, writes: numbers of maps; None for the images, for nothing added, and for the logits.
        values, bytes: how the result is stored.
        halves: whether sums have 16 bits.
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
    halves: bool = False
    rescale: Tensor | None = None
    bias: Tensor | None = None
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
    added = {*description.added, description.output}
    # In 8 bits sums that no normalization reads are stored in 16: they are few operations, and many bytes.
    halves = steps is not None and not norms
    pending: dict[int | None, Tensor] = {}  # biases of maps that are only added to others: added there

    def of_result(number: int, bias: Tensor | None) -> dict[str, Any]:
        """Return how a map is stored, and the bias that is added to it before ReLU."""
        fused: dict[str, Any] = {"writes": number} if bias is None else {"writes": number, "bias": bias.float()}
        if steps is None:
            return fused
        fused |= {"values": number in added, "halves": halves}
        step, norm = steps.get(number), norms.get(number)
        if step is None:
            return fused
        if norm is None and bias is not None and number not in added:  # of bytes alone: a part of their shift
            del fused["bias"]
            quantizer = Quantizer.active(step, bias)
        else:
            quantizer = Quantizer.active(step) if norm is None else Quantizer.after(norm, step)
        return {**fused, "bytes": True, "scale": quantizer.scale, "shift": quantizer.shift}

    def of_layer(i: int, layer: Layer) -> dict[str, Any]:
        """Return the weights of a layer and how its result is stored; in fp32 also the normalization before it."""
        weight, bias = fold(layer.conv, layer.after)
        if bias is not None and not layer.active:
            pending[layer.writes], bias = bias, None
        elif bias is not None:
            bias = bias + pending.pop(layer.adds, 0)
        result = of_result(layer.writes, bias)
        if steps is None:
            result |= {"kind": CONV, "weight": ops.transform_weight(weight, layer.conv.stride[0]).values}
            norm = norms.get(layer.reads)
            return result if norm is None else {**result, "scale": norm.scale, "shift": norm.shift}
        is_direct = direct is not None and direct[i]
        conv = QuantizedConv(layer.conv, steps[layer.reads], weight=weight, direct=is_direct)
        return {**result, "kind": DIRECT if is_direct else QUANTIZED, "weight": conv.weight, "rescale": conv.rescale}

    stem, fc, last = description.stem, description.fc, norms.get(description.output)
    weight, bias = fold(stem, description.after)
    program = [Step(
        STEM if bias is None else POOLED_STEM, stem.kernel_size[0], stem.in_channels, stem.out_channels,
        weight=weight.permute(1, 2, 3, 0).contiguous(),  # (in, kernel, kernel, out)
        stride=description.stem_stride, **of_result(0, bias),
    )]  # fmt: skip
    for i, (layer, unused) in enumerate(zip(description.layers, description.last_uses, strict=True)):
        program.append(Step(
            kernel=layer.conv.kernel_size[0], ins=layer.conv.in_channels, outs=layer.conv.out_channels,
            stride=layer.conv.stride[0], reads=layer.reads, adds=layer.adds, unused=unused, **of_layer(i, layer),
        ))  # fmt: skip
    program.append(Step(
        HEAD, 0, fc.in_features, fc.out_features, weight=fc.weight.detach().contiguous(), reads=description.output,
        halves=halves, bias=None if fc.bias is None else fc.bias.detach().contiguous(),
        scale=None if last is None else last.scale, shift=None if last is None else last.shift,
    ))  # fmt: skip
    return Program(program)


def fold(conv: nn.Conv2d, after: nn.Module | None) -> tuple[Tensor, Tensor | None]:
    """Fold the normalization after a convolution into it.

    Args:
        after: see `Layer`.

    Returns:
        Weight (out, in, kernel, kernel) in its type, and float64 bias (out,); no bias if `after` is None.
    """
    weight = conv.weight.detach()
    if after is None:
        return weight, None
    bias = weight.new_zeros(len(weight), dtype=torch.float64) if conv.bias is None else conv.bias.detach().double()
    if isinstance(after, nn.BatchNorm2d):
        scale, shift = ops.scale_and_shift(after)
        weight, bias = (weight.double() * scale[:, None, None, None]).to(weight.dtype), bias * scale + shift
    return weight, bias


def check_convs(description: Description) -> None:
    """Refuse convolutions that the kernels do not have.

    Raises:
        Ineligible: there is one.
    """
    stem = description.stem
    fits = (stem.stride == (1, 1) or description.after is not None) and stem.out_channels % ops.LANES == 0
    if not fits or not all(ops.fits(layer.conv) for layer in description.layers):
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
        threads = num_threads()
        key = (*x.shape, threads)
        plan = self.plans.get(key)
        if plan is None:
            if len(self.plans) >= KEPT_SHAPES:
                self.plans.clear()
            plan = self.plans[key] = Plan(self.steps, len(x), x.shape[2], x.shape[3], threads)
        logits = torch.empty(len(x), self.steps[-1].outs, dtype=torch.float32, device="cpu")
        try:  # two threads may call at once: one takes the arena, the other makes one
            arena = plan.arenas.pop()
        except IndexError:
            arena = torch.empty(plan.num_bytes, dtype=torch.uint8, device="cpu")
        ops.run(plan.ops, x, logits, arena, threads)
        if plan.num_bytes <= KEPT_BYTES and not plan.arenas:
            plan.arenas.append(arena)
        return logits


class Plan:
    """The operations of a program for images of one shape, and where their maps lie in the arena.

    Operations whose maps have one resolution are a stage. A stage runs on some images after others, so few that their
    maps stay in the caches, yet enough that reading the weights again costs little. Only maps that another stage reads
    are kept of all images.

    Args:
        steps: of the program.
        batch, height, width: of the images.
        threads: that share the work.

    Attributes:
        ops: as program.c reads them.
        num_bytes: size of the arena.
        arenas: memory that is free at the moment.
    """

    def __init__(self, steps: list[Step], batch: int, height: int, width: int, threads: int) -> None:
        self.arenas: list[Tensor] = []
        self._steps, self._places = steps, Places()
        self._values: dict[int | None, Place] = {}
        self._bytes: dict[int | None, Place] = {}
        self._sizes: dict[int | None, tuple[int, int]] = {None: (height, width)}
        for step in steps[:-1]:
            before = self._sizes[step.reads]
            self._sizes[step.writes] = ceil_div(before[0], step.stride), ceil_div(before[1], step.stride)
        found: list[Op] = []
        for _, stage in groupby(steps, lambda step: self._sizes[step.reads if step.writes is None else step.writes]):
            found += self._place([*stage], batch, threads)
        self.ops, self.num_bytes = (Op * len(found))(*found), self._places.end

    def _place(self, stage: list[Step], batch: int, threads: int) -> list[Op]:
        """Return the operations of a stage for all images, a few at a time."""
        height, width = self._sizes[stage[0].writes]
        some = min(batch, _images_at_once(stage, height * width, ceil_div(height, 4) * ceil_div(width, 4), threads))
        used = {number for step in self._steps if step not in stage for number in (step.reads, step.adds)}
        used.discard(None)
        for step in stage:  # first, so that they share no place with what is written again for each part of the images
            if step.writes in used:
                self._store(step, height * width, batch, is_kept=True)
        found: list[tuple[Step, Place | None, Place | None, Place | None, Place | None]] = []
        unused: list[Place] = []  # of all images, which a later part of them still reads
        for step in stage:
            source = self._values if step.kind in (CONV, HEAD) else self._bytes
            reads, adds = source.get(step.reads), self._values.get(step.adds)
            if step.writes is not None and step.writes not in used:
                # The sum takes the place of what is added, unless the layer also reads that: at other positions.
                if step.values and adds and step.adds in step.unused and adds != reads and not adds.is_kept:
                    self._values[step.writes] = self._values.pop(step.adds)
                self._store(step, height * width, some, is_kept=False)
            values, quantized = self._values.get(step.writes), self._bytes.get(step.writes)
            found.append((step, reads, adds, values, quantized))
            for number in step.unused:
                for place in (self._values.pop(number, None), self._bytes.pop(number, None)):
                    if place is not None and place.is_kept:
                        unused.append(place)
                    elif place is not None:
                        self._places.give_back(place.start)
        for place in unused:
            self._places.give_back(place.start)
        return [
            self._op(step, first, min(some, batch - first), *maps)
            for first in range(0, batch, some)
            for step, *maps in found
        ]

    def _store(self, step: Step, positions: int, num_images: int, *, is_kept: bool) -> None:
        """Find places for the maps that an operation writes, each for `num_images`, unless they have one."""
        for maps, wanted, size in ((self._values, step.values, 2 if step.halves else 4), (self._bytes, step.bytes, 1)):
            if wanted and step.writes not in maps:
                num_bytes = size * positions * step.outs
                maps[step.writes] = Place(self._places.take(num_bytes * num_images), num_bytes, is_kept)

    def _op(
        self, step: Step, first: int, num: int, reads: Place | None, adds: Place | None, values: Place | None,
        quantized: Place | None,
    ) -> Op:  # fmt: skip
        """Return an operation on `num` images from the given one on."""
        height, width = self._sizes[step.reads]
        maps = [-1 if place is None else place.at(first) for place in (reads, adds, values, quantized)]
        tensors = map(ops.at, (step.weight, step.rescale, step.bias, step.scale, step.shift))
        shape = step.kernel, height, width, step.ins, step.outs, step.stride
        return Op(step.kind, first, num, *shape, *maps, step.halves, *tensors)


def _images_at_once(stage: list[Step], positions: int, tiles: int, threads: int) -> int:
    """Return how many images a stage runs on at a time."""
    channels = max(step.outs for step in stage if step.writes is not None)
    is_large = max(step.weight.nbytes for step in stage) > LARGE_WEIGHTS
    for_caches = CACHED_BYTES * threads // (4 * positions * channels)
    return max(for_caches, ceil_div((LARGE_BLOCK if is_large else BLOCK) * threads, tiles))


@dataclass(frozen=True)
class Place:
    """Where a map lies.

    Attributes:
        start: in bytes, in the arena.
        size: bytes per image.
        is_kept: whether it holds all images.
    """

    start: int
    size: int
    is_kept: bool

    def at(self, image: int) -> int:
        """Return where an image's map begins."""
        return self.start + self.size * image if self.is_kept else self.start


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
