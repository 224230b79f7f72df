"""Other implementations: how to build the same network with each."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import inspect
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

from torch import nn

from wideresnet.base.errors import UsageError, WRNError
from wideresnet.base.format import nearest
from wideresnet.bench.case import Case
from wideresnet.bench.words import ENGINES
from wideresnet.weights.downloads import torchvision_name

PLAIN = "plain"
"""The name of this package's network in a plain PyTorch loop."""

CAREFUL = "+careful"
"""Suffix of a name: that implementation in channels_last, and under autocast if ours runs in bf16."""


DISTRIBUTIONS = {
    "onnxruntime-int8": "onnxruntime",
    "openvino-bf16": "openvino",
    "openvino-int8": "openvino",
    "mnn": "MNN",
    "opencv": "opencv-python-headless",
}
"""What an engine is installed as, if that is not its name."""


class PeerError(WRNError):
    """Why an implementation cannot take part, in one line."""


def check_peer(name: str) -> None:
    """Refuse a name that cannot be an implementation, before anything is measured.

    Raises:
        UsageError: the name is unknown, or its module or callable does not exist.
    """
    base = name.removesuffix(CAREFUL)
    if base in PACKAGES or name == PLAIN or name in ENGINES:
        return
    if base in ENGINES:
        raise UsageError(f"against={name}: an engine has its precision in its name; leave out {CAREFUL}")
    if ":" not in base:
        raise UsageError(f"against={name}: {nearest(base, [PLAIN, *PACKAGES, *ENGINES, 'module:callable'])}")
    try:
        _find_callable(base)
    except UsageError:
        raise
    except (Exception, SystemExit):  # what its code raises is shown in its row of the table
        return


def build_peer(name: str, case: Case) -> nn.Module:
    """Build the network with another implementation.

    Args:
        name: as in `run_bench`.
        case: has the network.

    Raises:
        PeerError: the implementation is not installed or does not have this network.
        Exception: whatever its code raises.
    """
    base = name.removesuffix(CAREFUL)
    if base not in PACKAGES:
        return _build_by_callable(base, case)
    try:
        importlib.import_module(base)
    except ModuleNotFoundError as error:
        if error.name == base:
            raise PeerError(f"not installed; pip install {base}") from None
        raise
    network = PACKAGES[base](case)
    if network is None:
        raise PeerError(f"has no {case.network}")
    return network


def peer_version(name: str) -> str | None:
    """Return the version of an installed package; None for a callable, or if it is not installed."""
    name = name.removesuffix(CAREFUL)
    try:
        return importlib.metadata.version(DISTRIBUTIONS.get(name, name))
    except (importlib.metadata.PackageNotFoundError, ValueError):
        return None


def _torchvision(case: Case) -> nn.Module | None:
    from torchvision import models

    name = torchvision_name(case.name) or "-"
    return getattr(models, name)(weights=None, num_classes=case.num_classes) if hasattr(models, name) else None


def _timm(case: Case) -> nn.Module | None:
    timm: Any = importlib.import_module("timm")
    name = torchvision_name(case.name) or "-"
    return timm.create_model(name, num_classes=case.num_classes) if timm.is_model(name) else None


def _pytorchcv(case: Case) -> nn.Module | None:
    name, options = case.name, {"num_classes": case.num_classes}
    if name.family == "imagenet":
        if name.kind == "resnet":
            return _model("resnet", "get_resnet")(blocks=name.depth, conv1_stride=False, **options)
        if name.kind == "wrn" and name.bottleneck:
            return _model("wrn", "get_wrn")(blocks=name.depth, width_factor=name.width, **options)
        return None
    options["blocks"] = name.depth
    if name.kind == "wrn" and name.kernels == (3, 3) and name.width == int(name.width):
        return _model("wrn_cifar", "get_wrn_cifar")(width_factor=int(name.width), **options)
    if name.kind in ("resnet", "preact"):
        kind = "resnet_cifar" if name.kind == "resnet" else "preresnet_cifar"
        return _model(kind, f"get_{kind}")(bottleneck=name.bottleneck, **options)
    return None


def _model(module: str, function: str) -> Callable[..., nn.Module]:
    return getattr(importlib.import_module(f"pytorchcv.models.{module}"), function)


PACKAGES: dict[str, Callable[[Case], nn.Module | None]] = {
    "torchvision": _torchvision,
    "timm": _timm,
    "pytorchcv": _pytorchcv,
}
"""Known packages, and how to build a network with each; they return None if they do not have it."""


def known_arguments(case: Case) -> dict[str, Any]:
    """List the names that parameters of a `module:callable` may have, with their values for this case."""
    name = case.name
    width = int(name.width) if name.width == int(name.width) else name.width
    return {
        **dict.fromkeys(("depth", "layers", "num_layers"), name.depth),
        **dict.fromkeys(("width", "widen_factor", "widening_factor", "width_factor", "k"), width),
        **dict.fromkeys(("num_classes", "n_classes", "classes"), case.num_classes),
        **dict.fromkeys(("dropout", "dropout_rate", "drop_rate", "dropRate", "droprate"), 0.0),
        **dict.fromkeys(("name", "network"), case.network),
        **dict.fromkeys(("image_size", "input_size"), case.size_px),
        "in_channels": 3,
    }


def _build_by_callable(name: str, case: Case) -> nn.Module:
    """Call `module:callable` with the known arguments that it takes."""
    function = _find_callable(name)
    known = known_arguments(case)
    given = {}
    for parameter in inspect.signature(function).parameters.values():
        if parameter.name in known and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            given[parameter.name] = known[parameter.name]
        elif parameter.default is parameter.empty and parameter.kind not in (
            parameter.VAR_POSITIONAL,
            parameter.VAR_KEYWORD,
        ):
            raise PeerError(
                f"it needs a parameter {parameter.name!r}, which wrn bench does not have; wrap it in a function of "
                "depth, width and num_classes"
            )
    # the networks of Table 3 have equally many parameters, so counting them would not show which one was built
    if (
        case.family == "cifar"
        and case.name.kind == "wrn"
        and case.name.kernels != (3, 3)
        and not {"name", "network"} & given.keys()
    ):
        raise PeerError(f"it does not take the name, and depth and width alone do not identify {case.network}")
    network = function(**given)
    if not isinstance(network, nn.Module):
        raise PeerError(f"it returned a {type(network).__name__}, not a torch.nn.Module; wrap it in one")
    return network


def _find_callable(name: str) -> Callable[..., Any]:
    """Find the object that `module:callable` or `file.py:callable` names. This runs the code of the module.

    Raises:
        UsageError: there is no such module, file or callable.
        Exception: whatever the module raises while it is imported.
    """
    place, _, attribute = name.rpartition(":")
    if place.endswith(".py"):
        module = _load_file(Path(place), name)
    else:
        if str(Path.cwd()) not in sys.path:  # a console script's path begins with the script's folder
            sys.path.insert(0, str(Path.cwd()))
        try:
            module = importlib.import_module(place)
        except (ModuleNotFoundError, ValueError, TypeError) as error:
            missing = getattr(error, "name", None)
            if missing and not f"{place}.".startswith(f"{missing}."):  # a module that it imports itself
                raise
            raise UsageError(
                f"against={name}: no module {place!r} in the current folder or among the installed packages"
            ) from None
    found = getattr(module, attribute, None)
    if not callable(found):
        raise UsageError(f"against={name}: {place} has no callable {attribute!r}")
    return found


def _load_file(path: Path, name: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"wrn_peer_{sha256(bytes(path.resolve())).hexdigest()[:16]}", path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise UsageError(f"against={name}: no file {path}")
    if spec.name not in sys.modules:
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        sys.modules[spec.name] = module
    return sys.modules[spec.name]
