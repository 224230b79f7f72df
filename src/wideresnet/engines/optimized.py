"""Inference in fp32: a snapshot of a network, prepared for speed, with the outputs of the network up to rounding."""

from __future__ import annotations

import contextlib
import copy
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from wideresnet.engines.checks import NORMS
from wideresnet.engines.description import Ineligible, describe, norms_to_fold, why_not_now
from wideresnet.engines.fused import Fused
from wideresnet.engines.program import Program, lower
from wideresnet.engines.replay import Replay
from wideresnet.kernels import library
from wideresnet.networks.models import Network, PostActNet


def optimize(network: Network, *, kernels: bool = True) -> Optimized:
    """Prepare a network for inference. The result is a snapshot: later changes to the network do not affect it.

    On a CPU pre-activation networks and ImageNet's run by the Winograd kernels, with weights transformed once (four
    times their memory). In other networks each batch normalization that follows a convolution is folded into it. On a
    GPU they run with everything between two convolutions in one pass, see `fused`, with weights converted to the
    precision once; small batches are replayed as CUDA graphs, see `replay`.

    Args:
        network: in any mode; not modified.
        kernels: whether the package's own kernels may be used; False means never.

    Returns:
        A module with the `forward` of the network in evaluation mode, equal up to rounding, without gradients.
    """
    return Optimized(network, kernels=kernels)


class Optimized(nn.Module):
    """See `optimize`.

    Attributes:
        network: the copy that runs if the kernels do not.
    """

    def __init__(self, network: Network, *, kernels: bool = True) -> None:
        super().__init__()
        frozen = copy.deepcopy(network).eval().requires_grad_(False)
        self.network = cast("Network", frozen.to(memory_format=torch.channels_last))  # type: ignore[call-overload]
        self.is_folded = isinstance(self.network, PostActNet) and _fold(self.network)
        self.kernels = kernels
        self._prepare()
        self.eval()

    @property
    def has_kernels(self) -> bool:
        """Whether the Winograd kernels compute images in fp32. In other precisions they never do."""
        return self._program is not None

    def how(self, precision: str = "fp32") -> str:
        """Say in words how images of a precision are computed."""
        weight = self.network.fc.weight
        if self.has_kernels and precision == "fp32" and not weight.is_cuda:
            return "Winograd kernels"
        folded = "normalizations folded into convolutions, " * self.is_folded
        if not (self.kernels and weight.is_cuda):
            return folded + "channels last in memory"
        reason = self._fused.why_not({"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, weight.dtype))
        if reason is None:
            return "convolutions, and everything between two of them in one pass, channels last in memory"
        return f"{folded}channels last in memory, not fused: {reason}"

    def _prepare(self) -> None:
        """Transform the weights for the kernels of this machine, if it has any for this network."""
        self._prepare_gpu()
        self._program: Program | None = None
        if self.kernels:
            with contextlib.suppress(Ineligible):
                description = describe(self.network)
                if library.why_unavailable() is None:
                    self._program = lower(description)

    def _prepare_gpu(self) -> None:
        """Forget what was made of the weights where they were."""
        self._fused = Fused(self.network, wanted=self.kernels)
        self._replay = Replay(self._fused)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Load weights as any module does, and prepare them again."""
        result = super().load_state_dict(*args, **kwargs)
        self._prepare()
        return result

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the transformed weights and the graphs, which depend on the machine."""
        return {**self.__dict__, "_program": None, "_replay": None, "_fused": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._prepare()

    def _apply(self, *args: Any, **kwargs: Any) -> Optimized:
        """Move or convert the weights; graphs read them where they were."""
        result = super()._apply(*args, **kwargs)
        self._prepare_gpu()
        return result

    def train(self, mode: bool = True) -> Optimized:
        """Stay in evaluation mode, whatever `mode` is: a snapshot does not train."""
        del mode
        return super().train(False)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Compute logits (B, num_classes) of images (B, C, H, W), like `Network.forward`.

        Raises:
            UsageError: x has another type or shape than the network takes.
        """
        self.network.check(x)
        if self._program is None or why_not_now(x) is not None:
            return self._replay(x.contiguous(memory_format=torch.channels_last))
        return self._program(x)


def _fold(network: PostActNet) -> bool:
    """Fold each batch normalization into the convolution before it. Return whether there was any."""
    folded_any = False
    for parent, conv_name, norm_name in norms_to_fold(network):
        conv, norm = getattr(parent, conv_name), getattr(parent, norm_name)
        if _can_fold(conv) and _can_fold(norm) and norm.running_mean is not None:
            folded = fuse_conv_bn_eval(conv, norm)
            setattr(parent, conv_name, folded.to(memory_format=torch.channels_last))  # type: ignore[call-overload]
            setattr(parent, norm_name, nn.Identity().eval())
            folded_any = True
    return folded_any


def _can_fold(module: nn.Module) -> bool:
    """Return whether this is an ordinary convolution or normalization without hooks."""
    return type(module) in (nn.Conv2d, *NORMS) and not (module._forward_hooks or module._forward_pre_hooks)
