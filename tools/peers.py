"""The two much-used codes that are no packages, for `wrn bench --against tools.peers:authors tools.peers:xternalz`.

Their code is not here. Clone it, and say where it is:

    git clone https://github.com/szagoruyko/wide-residual-networks and set WRN_PEER_AUTHORS to its folder pytorch
    git clone https://github.com/xternalz/WideResNet-pytorch and set WRN_PEER_XTERNALZ to it

The authors' code also needs `pip install nested_dict`.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from wideresnet.base.errors import UsageError


def authors(depth: int, width: float, num_classes: int) -> nn.Module:
    """The network of the authors' PyTorch code, a function of images and a dictionary of tensors."""
    module = _load("WRN_PEER_AUTHORS", "resnet", beside=("utils",))
    return Functional(*module.resnet(depth, width, num_classes))


def xternalz(depth: int, width: int, num_classes: int) -> nn.Module:
    """The network of xternalz/WideResNet-pytorch."""
    return _load("WRN_PEER_XTERNALZ", "wideresnet").WideResNet(depth, num_classes, widen_factor=width, dropRate=0.0)


class Functional(nn.Module):
    """A network given as `function(images, tensors, is_training)` and its tensors by name."""

    def __init__(self, function: Callable[[Tensor, dict[str, Tensor], bool], Tensor], tensors: dict[str, Any]) -> None:
        super().__init__()
        self.function = function
        self.attributes = {name: name.replace(".", "__") for name in tensors}  # an attribute's name has no dot
        for name, tensor in tensors.items():
            if tensor.requires_grad:
                self.register_parameter(self.attributes[name], nn.Parameter(tensor.detach()))
            else:
                self.register_buffer(self.attributes[name], tensor)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, num_classes) of images (B, 3, 32, 32)."""
        tensors = {name: getattr(self, attribute) for name, attribute in self.attributes.items()}
        return self.function(images, tensors, self.training)


def _load(variable: str, name: str, beside: tuple[str, ...] = ()) -> ModuleType:
    """Import a module from the folder that an environment variable names.

    Modules of the same names, as this package itself, are put back afterwards.
    """
    folder = Path(os.environ.get(variable) or "-")
    if not (folder / f"{name}.py").is_file():
        raise UsageError(f"{variable}: set it to the folder that holds the other code's {name}.py (see tools/peers.py)")
    names = (name, *beside)
    kept = {key: module for key, module in sys.modules.items() if key.split(".")[0] in names}
    for key in kept:
        del sys.modules[key]
    sys.path.insert(0, str(folder))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(folder))
        for key in names:
            sys.modules.pop(key, None)
        sys.modules.update(kept)
