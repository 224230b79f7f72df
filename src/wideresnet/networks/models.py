"""The two kinds of network: a stem, groups of blocks, global average pooling and a linear classifier."""

from __future__ import annotations

from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wideresnet.base.errors import UsageError
from wideresnet.networks.blocks import PostActBlock, PreActBlock, Style
from wideresnet.spec.names import NetworkName


class Network(nn.Module):
    """A residual network in plain PyTorch: stem, groups of blocks, global average pooling, linear layer.

    Attributes:
        name: the parsed name.
        num_classes: number of outputs.
        in_channels: channels of the input images.
        options: JSON-ready; `create(str(net.name), net.num_classes, **net.options)` builds the same network.
        frozen: the stages that do not learn, see `freeze`.
    """

    maxpool: nn.Module
    fc: nn.Linear

    def __init__(self, name: NetworkName, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.name = name
        self.num_classes = num_classes
        self.in_channels = in_channels
        self.options: dict[str, Any] = {}
        self.frozen: tuple[str, ...] = ()

    def freeze(self, until: str) -> None:
        """Keep the weights of the first stages as they are, and their normalization in evaluation mode from now on.

        Args:
            until: the last stage that is frozen, such as "conv3"; "backbone" for all but the linear layer.

        Raises:
            UsageError: the network has no such stage.
        """
        stages = [name for name in self.stage_modules() if name != "fc"]
        last = "pooled" if until == "backbone" else until
        if last not in stages:
            raise UsageError(f"freeze={until!r}: {self.name} has the stages {', '.join(stages[:-1])}, and backbone")
        self.frozen = tuple(stages[: stages.index(last) + 1])
        for module in self._frozen_modules():
            module.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """Set the mode of all stages that learn; frozen ones stay in evaluation mode."""
        super().train(mode)
        for module in self._frozen_modules():
            module.eval()
        return self

    def _frozen_modules(self) -> list[nn.Module]:
        modules = self.stage_modules() if self.frozen else {}
        return [module for name in self.frozen for module in modules[name]]

    def enter(self, x: Tensor) -> Tensor:
        """Apply the stem: (B, in_channels, H, W) -> (B, stem channels, H', W')."""
        raise NotImplementedError

    def trunk(self) -> list[nn.Module]:
        """Return the groups of blocks in order."""
        raise NotImplementedError

    def finish(self, x: Tensor) -> Tensor:
        """Turn the output of the last group into the map that is pooled."""
        raise NotImplementedError

    def stage_modules(self) -> dict[str, list[nn.Module]]:
        """Return the modules with the parameters of each stage: the stages of `features`, then "fc"."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Compute class scores.

        Args:
            x: floating-point images (B, in_channels, H, W) of any size, normalized as in training.

        Returns:
            Logits (B, num_classes).

        Raises:
            UsageError: x has another type or shape.
        """
        return self.fc(_pool(self.last_map(x)))

    def last_map(self, x: Tensor) -> Tensor:
        """Compute the map that is pooled for the linear layer.

        Args:
            x: images, as for `forward`.

        Returns:
            (B, channels, h, w).

        Raises:
            UsageError: x has another type or shape.
        """
        self.check(x)
        x = self.maxpool(self.enter(x))
        for group in self.trunk():
            x = group(x)
        return self.finish(x)

    def class_maps(self, x: Tensor, labels: Tensor) -> Tensor:
        """Compute how much each place of the image speaks for a class: the class activation map.

        The linear layer sees the mean over all places, so the logit of a class is the mean of its map plus the bias,
        exactly. For such a network this is Grad-CAM, too, but for Grad-CAM's factor of 1 / (h w) and its ReLU.

        Args:
            x: images (B, in_channels, H, W), as for `forward`.
            labels: int64 (B, K), the K classes wanted of each image.

        Returns:
            (B, K, h, w), in units of the logits, at the size of the last map.

        Raises:
            UsageError: x has another type or shape.

        Source: Zhou et al. 2016, "Learning deep features for discriminative localization", Equation 2; Selvaraju et al.
        2017, "Grad-CAM", Section 3.1.
        """
        return torch.einsum("bkc,bchw->bkhw", self.fc.weight[labels], self.last_map(x))

    def features(self, x: Tensor) -> dict[str, Tensor]:
        """Compute the named stages of Table 1.

        Args:
            x: images, as for `forward`.

        Returns:
            "conv1" (the stem), "conv2" and so on (the output of each group): maps (B, channels, H, W). In
            pre-activation networks these are the residual sums before the next normalization. "pooled" is
            (B, channels), the input of the linear layer.

        Raises:
            UsageError: x has another type or shape.
        """
        self.check(x)
        stages = {"conv1": self.enter(x)}
        x = self.maxpool(stages["conv1"])
        for number, group in enumerate(self.trunk(), start=2):
            x = stages[f"conv{number}"] = group(x)
        stages["pooled"] = _pool(self.finish(x))
        return stages

    def check(self, x: Tensor) -> None:
        """Raise a UsageError if `forward` does not accept x."""
        if not isinstance(x, torch.Tensor):
            raise UsageError(f"{self.name}: the input is a {type(x).__name__}, not a tensor (B, C, H, W)")
        if x.dim() != 4 or x.shape[1] != self.in_channels:
            raise UsageError(f"{self.name}: the input has shape {tuple(x.shape)}, not (B, {self.in_channels}, H, W)")
        if not x.is_floating_point():
            raise UsageError(f"{self.name}: the input is {x.dtype}; normalize the images to a floating type first")


class PreActNet(Network):
    """Wide residual networks for 32x32 images, and pre-activation ResNets.

    The stem is a 3x3 convolution. For ImageNet it is a 7x7 convolution with stride 2, normalization, activation and
    max pooling; the first block then skips its first normalization and activation (He et al. 2016b, appendix). The
    trunk ends with a normalization and an activation.

    Source: Wide Residual Networks, Table 1; He et al. 2016b; fb.resnet.torch's preresnet for ImageNet. The
    32x32 bottlenecks have the stride at the first 1x1 (He et al.'s own code), those for ImageNet at the 3x3.
    """

    def __init__(
        self, name: NetworkName, num_classes: int, in_channels: int, style: Style, survival: list[float]
    ) -> None:
        super().__init__(name, num_classes, in_channels)
        imagenet = name.family == "imagenet"
        channels = name.stem_channels
        self.stem = _stem(in_channels, channels, imagenet)
        self.stem_norm = style.make_norm(channels) if imagenet else None
        self.maxpool = _maxpool(imagenet)
        self.groups = nn.ModuleList()
        survivals = iter(survival)
        for g, (num_blocks, widths) in enumerate(zip(name.num_blocks, name.group_widths, strict=True)):
            group = nn.Sequential()
            for b in range(num_blocks):
                block = PreActBlock(
                    channels,
                    widths,
                    name.kernels,
                    style,
                    stride=2 if g > 0 and b == 0 else 1,
                    stride_at=name.kernels.index(3) if imagenet else 0,
                    survival=next(survivals),
                    preactivated=imagenet and g == b == 0,
                )
                group.append(block)
                channels = widths[-1]
            self.groups.append(group)
        self.norm = style.make_norm(channels)
        self.activation = style.make_activation()
        self.fc = nn.Linear(channels, num_classes)

    def enter(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return x if self.stem_norm is None else self.activation(self.stem_norm(x))

    def trunk(self) -> list[nn.Module]:
        return list(self.groups)

    def finish(self, x: Tensor) -> Tensor:
        return self.activation(self.norm(x))

    def stage_modules(self) -> dict[str, list[nn.Module]]:
        stem: list[nn.Module] = [self.stem] if self.stem_norm is None else [self.stem, self.stem_norm]
        groups: dict[str, list[nn.Module]] = {f"conv{g}": [group] for g, group in enumerate(self.groups, start=2)}
        return {"conv1": stem, **groups, "pooled": [self.norm], "fc": [self.fc]}


class PostActNet(Network):
    """Original ResNets, ResNeXt and the ImageNet WRNs. torchvision's weights load unchanged.

    Source: He et al. 2016a, Table 1 and Section 4.2 (32x32: shortcuts without parameters); Wide Residual
    Networks, Section 3, Tables 7 and 8; torchvision.models.resnet.
    """

    def __init__(
        self, name: NetworkName, num_classes: int, in_channels: int, style: Style, survival: list[float]
    ) -> None:
        super().__init__(name, num_classes, in_channels)
        imagenet = name.family == "imagenet"
        channels = name.stem_channels
        self.conv1 = _stem(in_channels, channels, imagenet)
        self.bn1 = style.make_norm(channels)
        self.activation = style.make_activation()
        self.maxpool = _maxpool(imagenet)
        survivals = iter(survival)
        for g, (num_blocks, widths) in enumerate(zip(name.num_blocks, name.group_widths, strict=True)):
            group = nn.Sequential()
            for b in range(num_blocks):
                block = PostActBlock(
                    channels,
                    widths,
                    name.kernels,
                    style,
                    stride=2 if g > 0 and b == 0 else 1,
                    stride_at=name.kernels.index(3),
                    cardinality=name.cardinality,
                    projection=imagenet,
                    survival=next(survivals),
                )
                group.append(block)
                channels = widths[-1]
            self.add_module(f"layer{g + 1}", group)
        self.fc = nn.Linear(channels, num_classes)

    def enter(self, x: Tensor) -> Tensor:
        return self.activation(self.bn1(self.conv1(x)))

    def trunk(self) -> list[nn.Module]:
        return [getattr(self, f"layer{g + 1}") for g in range(len(self.name.num_blocks))]

    def finish(self, x: Tensor) -> Tensor:
        return x

    def stage_modules(self) -> dict[str, list[nn.Module]]:
        groups = {f"conv{g}": [group] for g, group in enumerate(self.trunk(), start=2)}
        return {"conv1": [self.conv1, self.bn1], **groups, "pooled": [], "fc": [self.fc]}


def _stem(in_channels: int, channels: int, imagenet: bool) -> nn.Conv2d:
    kernel, stride = (7, 2) if imagenet else (3, 1)
    return nn.Conv2d(in_channels, channels, kernel, stride, kernel // 2, bias=False)


def _maxpool(imagenet: bool) -> nn.Module:
    return nn.MaxPool2d(3, 2, 1) if imagenet else nn.Identity()


def _pool(x: Tensor) -> Tensor:
    """Average over the whole map, of any size: (B, C, H, W) -> (B, C)."""
    return F.adaptive_avg_pool2d(x, 1).flatten(1)
