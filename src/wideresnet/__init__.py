"""Wide Residual Networks (Zagoruyko & Komodakis, 2016): build, train, evaluate, and say how a copy differs."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from wideresnet.base.version import __version__ as __version__

if TYPE_CHECKING:
    from wideresnet.analysis import analyze as analyze
    from wideresnet.base.errors import DataError as DataError
    from wideresnet.base.errors import UsageError as UsageError
    from wideresnet.base.errors import WRNError as WRNError
    from wideresnet.engines import optimize as optimize
    from wideresnet.engines import quantize as quantize
    from wideresnet.experiments import fit_seeds as fit_seeds
    from wideresnet.inference.check import check_data as check_data
    from wideresnet.inference.corruptions import corruption_errors as corruption_errors
    from wideresnet.inference.predict import read_images as read_images
    from wideresnet.networks import create as create
    from wideresnet.networks.cost import cost as cost
    from wideresnet.spec.names import list_networks as list_networks
    from wideresnet.spec.names import parse as parse
    from wideresnet.spec.recipe import Recipe as Recipe
    from wideresnet.training import fit as fit
    from wideresnet.training import recipe_for as recipe_for
    from wideresnet.weights.hub import load as load
    from wideresnet.weights.hub import read_weights as read_weights

_HOMES = {
    "DataError": "base.errors",
    "Recipe": "spec.recipe",
    "UsageError": "base.errors",
    "WRNError": "base.errors",
    "analyze": "analysis",
    "check_data": "inference.check",
    "corruption_errors": "inference.corruptions",
    "cost": "networks.cost",
    "create": "networks",
    "fit": "training",
    "fit_seeds": "experiments",
    "list_networks": "spec.names",
    "load": "weights.hub",
    "optimize": "engines",
    "parse": "spec.names",
    "quantize": "engines",
    "read_images": "inference.predict",
    "read_weights": "weights.hub",
    "recipe_for": "training",
}
"""Public name -> the module that has it."""

__all__ = ["__version__", *_HOMES]  # pyright: ignore[reportUnsupportedDunderAll]  # the one list of public names


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that `import wideresnet` does not wait for PyTorch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'wideresnet' has no attribute {name!r}")
    return getattr(importlib.import_module(f"wideresnet.{_HOMES[name]}"), name)
