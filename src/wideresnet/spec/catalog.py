"""Canonical names of the networks that lists and suggestions show, by family."""

from __future__ import annotations

CATALOG = {
    "cifar": (
        # Table 2
        *("WRN-40-2-B(1,3,1)", "WRN-40-2-B(3,1)", "WRN-40-2-B(1,3)", "WRN-40-2-B(3,1,1)"),
        *("WRN-28-2", "WRN-22-2-B(3,1,3)"),
        # Table 3
        *("WRN-40-2-l1", "WRN-40-2", "WRN-40-2-l3", "WRN-40-2-l4"),
        # Tables 4, 5, 6 and 9
        *("WRN-40-1", "WRN-40-4", "WRN-40-8", "WRN-40-10", "WRN-28-10", "WRN-28-12", "WRN-22-8", "WRN-22-10"),
        *("WRN-16-4", "WRN-16-8", "WRN-16-10", "WRN-52-1"),
        # Not in the paper, much used since: small students, semi-supervised and robust training
        *("WRN-16-1", "WRN-16-2", "WRN-34-2", "WRN-34-10", "WRN-70-16"),
        # Table 5, what the paper compares with
        *("ResNet-110", "ResNet-1202", "PreActResNet-110", "PreActResNet-164", "PreActResNet-1001"),
    ),
    "imagenet": (
        # Table 7
        *("WRN-18-1", "WRN-18-1.5", "WRN-18-2", "WRN-18-3", "WRN-34-1", "WRN-34-1.5", "WRN-34-2"),
        # Table 8
        *("ResNet-50", "ResNet-101", "ResNet-152", "WRN-50-2-bottleneck", "PreActResNet-200"),
        # Not in the paper: the rest of the family, for which torchvision publishes weights
        *("ResNet-18", "ResNet-34", "WRN-101-2-bottleneck"),
        *("ResNeXt-50-32x4d", "ResNeXt-101-32x8d", "ResNeXt-101-64x4d"),
    ),
}
