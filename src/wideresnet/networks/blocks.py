"""Residual blocks: one pre-activation block for every kernel list and depth factor, and one post-activation block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEAKY_SLOPE = 0.1  # as in the semi-supervised and robustness codes: FixMatch, MixMatch, Madry et al.
MAX_NORM_GROUPS = 16  # groups of the differentially private WRNs (De et al. 2022, arXiv 2204.13650)


@dataclass(frozen=True)
class Style:
    """The options shared by all blocks of a network.

    Attributes:
        activation: "relu", "leaky_relu" or "silu".
        norm: "batch", or "group" (the largest number of groups, at most 16, that divides the channels).
        bn_momentum: weight of the current batch in the running statistics (PyTorch's convention).
        bn_eps: added to the variance, also in group normalization.
        dropout: probability of dropout before each convolution of a block except the first.
    """

    activation: str = "relu"
    norm: str = "batch"
    bn_momentum: float = 0.1
    bn_eps: float = 1e-5
    dropout: float = 0.0

    def make_norm(self, channels: int) -> nn.Module:
        if self.norm == "batch":
            return nn.BatchNorm2d(channels, self.bn_eps, self.bn_momentum)
        groups = max(g for g in range(1, MAX_NORM_GROUPS + 1) if channels % g == 0)
        return nn.GroupNorm(groups, channels, self.bn_eps)

    def make_activation(self) -> nn.Module:
        """In place if the gradient needs only the result: nobody else reads the output of a normalization or a sum."""
        if self.activation == "relu":
            return nn.ReLU(inplace=True)
        if self.activation == "leaky_relu":
            return nn.LeakyReLU(LEAKY_SLOPE, inplace=True)
        return nn.SiLU()

    def make_dropout(self) -> nn.Module:
        return nn.Dropout(self.dropout) if self.dropout else nn.Identity()


class PreActBlock(nn.Module):
    """A residual block that normalizes and activates before each convolution.

    If the block changes the number of channels or the resolution, the residual branch and a 1x1 projection (without
    normalization) share the first normalization and activation. Otherwise the shortcut is the identity. Dropout
    precedes each convolution except the first.

    Args:
        in_channels: channels of the input.
        widths: output channels of each convolution.
        kernels: kernel size of each convolution, all odd.
        style: activation, normalization and dropout.
        stride: 1, or 2 to halve the resolution (rounded up).
        stride_at: index of the convolution with the stride. In the paper's blocks it is the first, even if that is 1x1.
        survival: probability that the branch is computed in training (stochastic depth).
        preactivated: the input is already normalized and activated, as after the ImageNet stem.

    Source: Wide Residual Networks, Sections 2 and 2.4, Figure 1; He et al. 2016b, Figure 1 and its appendix.
    """

    draws: torch.Generator | None = None  # for stochastic depth; None: PyTorch's global generator

    def __init__(
        self,
        in_channels: int,
        widths: Sequence[int],
        kernels: Sequence[int],
        style: Style,
        *,
        stride: int = 1,
        stride_at: int = 0,
        survival: float = 1.0,
        preactivated: bool = False,
    ) -> None:
        super().__init__()
        assert len(widths) == len(kernels) > stride_at
        self.survival = survival
        self.preactivated = preactivated
        self.norms = nn.ModuleList()
        self.convs = nn.ModuleList()
        channels = in_channels
        for i, (width, kernel) in enumerate(zip(widths, kernels, strict=True)):
            self.norms.append(nn.Identity() if preactivated and i == 0 else style.make_norm(channels))
            conv_stride = stride if i == stride_at else 1
            self.convs.append(nn.Conv2d(channels, width, kernel, conv_stride, kernel // 2, bias=False))
            channels = width
        self.activation = style.make_activation()
        self.dropout = style.make_dropout()
        projects = stride != 1 or channels != in_channels
        self.shortcut = nn.Conv2d(in_channels, channels, 1, stride, bias=False) if projects else None

    def forward(self, x: Tensor) -> Tensor:
        """Compute shortcut + branch: (B, in_channels, H, W) -> (B, widths[-1], H / stride, W / stride), rounded up."""
        dropped = is_dropped(self)
        if dropped and self.shortcut is None:
            return x
        y = x if self.preactivated else self.activation(self.norms[0](x))
        shortcut = x if self.shortcut is None else self.shortcut(y)
        if dropped:
            return shortcut
        y = self.convs[0](y)
        for i in range(1, len(self.convs)):
            y = self.convs[i](self.dropout(self.activation(self.norms[i](y))))
        return add_branch(self, y, shortcut)


class PostActBlock(nn.Module):
    """A residual block that normalizes and activates after each convolution. Parameters have torchvision's names.

    Args:
        in_channels: channels of the input.
        widths: output channels of each convolution.
        kernels: kernel size of each convolution, all odd.
        style: activation, normalization and dropout (before each convolution except the first).
        stride: 1, or 2 to halve the resolution (rounded up).
        stride_at: index of the convolution with the stride. In torchvision's bottlenecks it is the 3x3.
        cardinality: groups of the convolutions larger than 1x1.
        projection: if shapes differ, the shortcut is a normalized 1x1 convolution. If False, it is a subsampled
            input padded with zero channels, without parameters (He et al.'s option A).
        survival: probability that the branch is computed in training (stochastic depth).

    Source: He et al. 2016a, Sections 3.2, 3.3 and 4.2; torchvision.models.resnet for names and stride.
    """

    draws: torch.Generator | None = None  # for stochastic depth; None: PyTorch's global generator

    def __init__(
        self,
        in_channels: int,
        widths: Sequence[int],
        kernels: Sequence[int],
        style: Style,
        *,
        stride: int = 1,
        stride_at: int = 0,
        cardinality: int = 1,
        projection: bool = True,
        survival: float = 1.0,
    ) -> None:
        super().__init__()
        assert len(widths) == len(kernels) > stride_at
        self.survival = survival
        self.num_convs = len(kernels)
        self.stride = stride
        channels = in_channels
        for i, (width, kernel) in enumerate(zip(widths, kernels, strict=True)):
            conv_stride, groups = stride if i == stride_at else 1, cardinality if kernel > 1 else 1
            conv = nn.Conv2d(channels, width, kernel, conv_stride, kernel // 2, groups=groups, bias=False)
            self.add_module(f"conv{i + 1}", conv)
            self.add_module(f"bn{i + 1}", style.make_norm(width))
            channels = width
        self.activation = style.make_activation()
        self.dropout = style.make_dropout()
        self.new_channels = channels - in_channels
        self.downsample = None
        if projection and (stride != 1 or self.new_channels):
            conv = nn.Conv2d(in_channels, channels, 1, stride, bias=False)
            self.downsample = nn.Sequential(conv, style.make_norm(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Compute relu(shortcut + branch), or another activation; shapes as in `PreActBlock.forward`."""
        if is_dropped(self):
            # The in-place activation of an identity shortcut would overwrite the block's input: use a copy.
            shortcut = self.shortcut(x)
            return self.activation(shortcut.clone() if shortcut is x else shortcut)
        y = x
        for i in range(1, self.num_convs + 1):
            if i > 1:
                y = self.dropout(self.activation(y))
            y = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(y))
        return self.activation(add_branch(self, y, self.shortcut(x)))

    def shortcut(self, x: Tensor) -> Tensor:
        if self.downsample is not None:
            return self.downsample(x)
        if self.stride == 1 and not self.new_channels:
            return x
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.new_channels))


def is_dropped(block: PreActBlock | PostActBlock) -> bool:
    """Draw whether stochastic depth skips this block's branch: once per batch, in training only."""
    if not block.training or block.survival == 1:
        return False
    return torch.rand((), device="cpu", generator=block.draws).item() >= block.survival


def draw_depth_from(network: nn.Module, draws: torch.Generator) -> None:
    """Give stochastic depth a separate generator; by default it shares PyTorch's global one with dropout."""
    for module in network.modules():
        if isinstance(module, PreActBlock | PostActBlock):
            module.draws = draws


def add_branch(block: PreActBlock | PostActBlock, branch: Tensor, shortcut: Tensor) -> Tensor:
    """Return branch + shortcut. In evaluation the branch is scaled by its survival probability.

    Source: Huang et al. 2016, Equation 5.
    """
    if not block.training and block.survival != 1:
        branch = branch * block.survival
    branch += shortcut
    return branch
