"""A network made ready for inference: the fastest exact way that is known for it on this machine."""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from wideresnet.engines.winograd import layers_of, why_not_for
from wideresnet.kernels import ops
from wideresnet.networks.blocks import PostActBlock, PreActBlock
from wideresnet.networks.models import Network, PostActNet, PreActNet


class Optimized(nn.Module):
    """A snapshot of a network for inference; later changes of the network do not reach it.

    On a CPU a pre-activation network for small images runs by the Winograd kernels, its weights transformed once (four
    times their memory); other networks have their normalisations folded into the convolutions before them. Outputs are
    those of the network up to rounding.
    """

    def __init__(self, network: Network) -> None:
        super().__init__()
        frozen = copy.deepcopy(network).eval().requires_grad_(False)
        self.network = cast("Network", frozen.to(memory_format=torch.channels_last))  # type: ignore[call-overload]
        self.is_folded = isinstance(self.network, PostActNet) and _fold(self.network)
        self._transform()
        self.eval()

    @property
    def has_kernels(self) -> bool:
        """Whether images in fp32 go through the Winograd kernels; in other precisions they never do."""
        return bool(self.blocks)

    def how(self, precision: str = "fp32") -> str:
        """What was done, in words."""
        if self.has_kernels and precision == "fp32":
            return "Winograd kernels, weights transformed beforehand"
        return "normalisations folded into convolutions, " * self.is_folded + "channels last in memory"

    def _transform(self) -> None:
        """Weights in the form that the kernels take on this machine, where they can run."""
        self.blocks: list[_Block] = []
        self.last: ops.Normalised | None = None
        if _kernels_can_run(self.network):
            trunk = cast("PreActNet", self.network)
            blocks = [block for group in trunk.groups for block in cast("nn.Sequential", group)]
            self.blocks = [_Block(cast("PreActBlock", block)) for block in blocks]
            self.last = ops.normalise_running(cast("nn.BatchNorm2d", trunk.norm))

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """As of any module; what was computed beforehand is computed again."""
        result = super().load_state_dict(*args, **kwargs)
        self._transform()
        return result

    def __getstate__(self) -> dict[str, Any]:
        """Without what another machine may have in another form."""
        return {**self.__dict__, "blocks": [], "last": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._transform()

    def train(self, mode: bool = True) -> Optimized:
        """Stays in evaluation mode: there is nothing in it that learns."""
        del mode
        return super().train(False)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Class scores (B, num_classes) of images (B, C, H, W), as `Network.forward` gives them."""
        self.network.check(x)
        if not self.has_kernels or why_not_for(x) is not None:
            return self.network(x.contiguous(memory_format=torch.channels_last))
        trunk = cast("PreActNet", self.network)
        x = ops.channels_last(trunk.stem(x.contiguous(memory_format=torch.channels_last)))
        for block in self.blocks:
            x = block(x)
        assert self.last is not None
        x = ops.activate(x, self.last)
        return trunk.fc(x.mean((2, 3)))


class _Block:
    """A pre-activation block at test time, all that depends on its weights alone computed beforehand."""

    def __init__(self, block: PreActBlock) -> None:
        self.shortcut = block.shortcut
        self.layers = [
            (ops.normalise_running(norm), conv, ops.transform_weight(conv.weight) if ops.fits(conv) else None)
            for norm, conv in layers_of(block)
        ]

    def __call__(self, x: Tensor) -> Tensor:
        shortcut = x
        for i, (norm, conv, transformed) in enumerate(self.layers):
            active = None
            if i == 0 and self.shortcut is not None:
                active = ops.activate(x, norm)
                shortcut = ops.channels_last(F.conv2d(active, self.shortcut.weight, None, self.shortcut.stride))
            add = shortcut if i == len(self.layers) - 1 else None
            if transformed is not None:
                source, prologue = (x, norm) if active is None else (active, None)
                x, _ = ops.convolve(source, transformed, conv.out_channels, prologue, add)
                continue
            active = ops.activate(x, norm) if active is None else active
            x = ops.channels_last(F.conv2d(active, conv.weight, None, conv.stride, conv.padding))
            if add is not None:
                x += add
        return x


def _kernels_can_run(network: Network) -> bool:
    images = torch.zeros(1, network.in_channels, 8, 8, dtype=torch.float32, device="cpu")
    with torch.no_grad():
        return network.why_no_kernels(images) is None


def _can_fold(module: nn.Module) -> bool:
    """Whether this is a convolution or normalisation like any other, and nothing hangs on to it."""
    return type(module) in (nn.Conv2d, nn.BatchNorm2d) and not (module._forward_hooks or module._forward_pre_hooks)


def _fold(network: PostActNet) -> bool:
    """Fold each batch normalisation into the convolution before it; False where there is none."""
    pairs: list[tuple[nn.Module, str, str]] = [(network, "conv1", "bn1")]
    for block in network.modules():
        if isinstance(block, PostActBlock):
            pairs += [(block, f"conv{i}", f"bn{i}") for i in range(1, block.num_convs + 1)]
            if block.downsample is not None:
                pairs.append((block.downsample, "0", "1"))
    folded_any = False
    for parent, conv_name, norm_name in pairs:
        conv, norm = getattr(parent, conv_name), getattr(parent, norm_name)
        if _can_fold(conv) and _can_fold(norm) and norm.running_mean is not None:
            folded = fuse_conv_bn_eval(conv, norm)
            setattr(parent, conv_name, folded.to(memory_format=torch.channels_last))  # type: ignore[call-overload]
            setattr(parent, norm_name, nn.Identity())
            folded_any = True
    return folded_any
