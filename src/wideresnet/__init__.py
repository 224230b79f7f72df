"""Wide Residual Networks (Zagoruyko & Komodakis, 2016): build, train, evaluate, and say how a copy differs."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wideresnet.base.errors import DataError, UsageError, WRNError
    from wideresnet.engines import optimize, quantize
    from wideresnet.experiments import fit_seeds
    from wideresnet.networks import create
    from wideresnet.networks.cost import cost
    from wideresnet.spec.names import list_networks, parse
    from wideresnet.spec.recipe import Recipe
    from wideresnet.training import fit
    from wideresnet.weights.hub import load, read_weights

__all__ = [
    "DataError",
    "Recipe",
    "UsageError",
    "WRNError",
    "cost",
    "create",
    "fit",
    "fit_seeds",
    "list_networks",
    "load",
    "optimize",
    "parse",
    "quantize",
    "read_weights",
]

_HOMES = {
    "DataError": "base.errors",
    "Recipe": "spec.recipe",
    "UsageError": "base.errors",
    "WRNError": "base.errors",
    "cost": "networks.cost",
    "create": "networks",
    "fit": "training",
    "fit_seeds": "experiments",
    "list_networks": "spec.names",
    "load": "weights.hub",
    "optimize": "engines",
    "parse": "spec.names",
    "quantize": "engines",
    "read_weights": "weights.hub",
}


def __getattr__(name: str) -> Any:
    """Public names are imported when first used, so that `import wideresnet` does not wait for PyTorch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'wideresnet' has no attribute {name!r}")
    return getattr(importlib.import_module(f"wideresnet.{_HOMES[name]}"), name)
