"""Inference on a GPU with everything between two convolutions in one pass over the map.

In a pre-activation block that leaves two passes: bias and activation after a convolution whose normalization is folded
into it, and at the end the sum together with what the next block reads, relu(sum * scale + shift).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wideresnet.engines.description import Description, Ineligible, describe, is_traced
from wideresnet.engines.program import fold
from wideresnet.kernels import epilogue, ops
from wideresnet.kernels.epilogue import Epilogue
from wideresnet.networks.models import Network

Finish = Callable[[Tensor, Tensor | None, Epilogue], tuple[Tensor | None, Tensor | None]]

PRECISIONS = (torch.float32, torch.bfloat16, torch.float16)


class Fused:
    """Calls a network, on a GPU fused if possible.

    Args:
        network: in evaluation mode; its weights are read at the first call in a precision.
        wanted: False to call the network as it is.
    """

    def __init__(self, network: Network, *, wanted: bool = True) -> None:
        self.network = network
        self.wanted = wanted
        self._walks: dict[torch.dtype, Walk | str] = {}

    def __call__(self, x: Tensor) -> Tensor:
        """Return the network's logits (B, num_classes) of channels-last images (B, C, H, W)."""
        if not (self.wanted and x.is_cuda) or is_traced() or type(x) is not Tensor or x.numel() == 0:
            return self.network(x)
        walk = self._walk_for(x)
        if walk is None:
            return self.network(x)
        with torch.cuda.device_of(x):
            return walk(x)

    def why_not(self, dtype: torch.dtype) -> str | None:
        """Return in one line why images are not computed fused in a precision, or None if they are."""
        walk = self._walk(dtype)
        return walk if isinstance(walk, str) else None

    def _walk_for(self, x: Tensor) -> Walk | None:
        weight = self.network.fc.weight
        if torch.is_autocast_enabled("cuda"):
            dtype, accepted = torch.get_autocast_dtype("cuda"), PRECISIONS
        else:
            dtype, accepted = weight.dtype, (weight.dtype,)
        if x.device != weight.device or x.dtype not in accepted:
            return None  # PyTorch has an error for that
        if dtype not in self._walks and torch.cuda.is_current_stream_capturing():
            return None  # a graph would record the preparation
        walk = self._walk(dtype)
        return None if isinstance(walk, str) else walk

    def _walk(self, dtype: torch.dtype) -> Walk | str:
        if dtype not in self._walks:
            try:
                self._walks[dtype] = self._prepare(dtype)
            except Ineligible as reason:
                self._walks[dtype] = str(reason)
        return self._walks[dtype]

    def _prepare(self, dtype: torch.dtype) -> Walk:
        weight, tensors = self.network.fc.weight, [*self.network.parameters(), *self.network.buffers()]
        if dtype not in PRECISIONS or any(t.is_floating_point() and t.dtype not in PRECISIONS for t in tensors):
            raise Ineligible("the kernels are for fp32, bf16 and fp16")
        if any(tensor.device != weight.device for tensor in tensors):
            raise Ineligible("the kernels are for networks on one device")
        description = describe(self.network, native=False)
        if reason := epilogue.why_unavailable(weight.device, dtype):
            raise Ineligible(reason)
        from wideresnet.kernels.epilogue_triton import finish

        return Walk(description, dtype, finish)


@dataclass(frozen=True, eq=False)
class Step:
    """A convolution and its epilogue. Maps have the numbers of the description.

    Attributes:
        weight: in the precision of the maps.
        how: stride, padding, dilation and groups.
        epilogue: None if the result is as the convolution leaves it.
        reads, adds, writes: numbers of maps; the images are None.
        unused: the maps that nothing needs afterwards.
    """

    weight: Tensor
    how: tuple[Any, ...]
    epilogue: Epilogue | None
    reads: int | None
    adds: int | None
    writes: int
    unused: tuple[int, ...] = ()


class Walk:
    """A network as a list of convolutions with epilogues, in one precision.

    Args:
        description: of a network in evaluation mode.
        dtype: of the maps.
        finish: applies an epilogue.

    Raises:
        Ineligible: a folded weight is too large for the precision.
    """

    def __init__(self, description: Description, dtype: torch.dtype, finish: Finish) -> None:
        self.dtype, self.finish = dtype, finish
        self.is_pooled = description.after is not None
        self.output = description.output
        with torch.inference_mode(False), torch.no_grad():
            self.steps = _lower(description, dtype)
            fc = description.fc
            self.fc = fc.weight.detach().to(dtype), None if fc.bias is None else fc.bias.detach().to(dtype)
        if not all(bool(step.weight.isfinite().all()) for step in self.steps):
            raise Ineligible(f"the kernels are for folded weights that are finite in {dtype}")

    def __call__(self, x: Tensor) -> Tensor:
        """Compute logits (B, num_classes), in the precision of the maps, of images (B, C, H, W) of any type."""
        inputs: dict[int | None, Tensor] = {None: x.to(self.dtype)}  # what convolutions read
        values: dict[int | None, Tensor] = {}  # what is added
        for step in self.steps:
            value, activated = self._compute(step, inputs[step.reads], values.get(step.adds))
            if step.reads is None:
                del inputs[None]
                if self.is_pooled and value is not None:
                    value = F.max_pool2d(value, 3, 2, 1)
            if value is not None:
                values[step.writes] = inputs[step.writes] = value
            if activated is not None:
                inputs[step.writes] = activated
            del value, activated
            for number in step.unused:
                inputs.pop(number, None)
                values.pop(number, None)
        return F.linear(F.adaptive_avg_pool2d(inputs[self.output], 1).flatten(1), *self.fc)

    def _compute(self, step: Step, x: Tensor, added: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        y = F.conv2d(x, step.weight, None, *step.how)
        return (y, None) if step.epilogue is None else self.finish(y, added, step.epilogue)


def _lower(description: Description, dtype: torch.dtype) -> list[Step]:
    """Return the convolutions of a network with the normalizations folded into them, and the others as epilogues."""
    exact = torch.promote_types(dtype, torch.float32)  # of the vectors
    pending: dict[int | None, Tensor] = {}  # biases of maps that are only added to others: added there

    def step(
        conv: nn.Conv2d, after: nn.Module | None, reads: int | None, adds: int | None, writes: int, active: bool,
        unused: tuple[int, ...],
    ) -> Step:  # fmt: skip
        norm, keep = description.norms.get(writes), writes in description.added
        folds = norm is not None and adds is None and not keep  # nothing else reads the result of the convolution
        weight, bias = fold(conv, norm if folds else after)
        relu = active or folds
        if bias is not None and relu:
            bias = bias + pending.pop(adds, 0)
        elif bias is not None:
            pending[writes], bias = bias, None
        bias = None if bias is None else bias.to(exact)
        scale = shift = None
        if norm is not None and not folds:
            scale, shift = (vector.to(exact) for vector in ops.scale_and_shift(norm))
        is_plain = adds is None and bias is None and not relu and scale is None
        return Step(
            weight.to(dtype).contiguous(memory_format=torch.channels_last),
            (conv.stride, conv.padding, conv.dilation, conv.groups),
            None if is_plain else Epilogue(bias, relu, scale, shift, keep or scale is None),
            reads, adds, writes, unused,
        )  # fmt: skip

    steps = [step(description.stem, description.after, None, None, 0, description.after is not None, ())]
    for layer, unused in zip(description.layers, description.last_uses, strict=True):
        steps.append(step(layer.conv, layer.after, layer.reads, layer.adds, layer.writes, layer.active, unused))
    return steps
