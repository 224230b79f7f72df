"""The packages of the extra `export`, imported when a format needs them."""

from __future__ import annotations

import importlib
import sys
from typing import Any

from wideresnet.base.errors import UsageError

TELEMETRY = "openvino_telemetry"
"""OpenVINO reports each import to its makers by this package, unless it is missing."""


def need(name: str, what: str) -> Any:
    """Import a module of the extra `export`.

    Args:
        name: the module, e.g. "onnxruntime.quantization".
        what: what needs it, the begin of the message, e.g. "format='onnx'".

    Raises:
        UsageError: it is not installed.
    """
    try:
        return _openvino() if name == "openvino" else importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        reason = "which is not installed" if isinstance(error, ModuleNotFoundError) else f"which fails: {error}"
        raise UsageError(f'{what}: needs {package}, {reason}; pip install "wideresnet[export]"') from None


def _openvino() -> Any:
    """Import OpenVINO without its telemetry: it goes on without that package if it cannot be imported."""
    hides = TELEMETRY not in sys.modules
    if hides:
        sys.modules[TELEMETRY] = None  # type: ignore[assignment]  # makes its import fail
    try:
        return importlib.import_module("openvino")
    finally:
        if hides:
            del sys.modules[TELEMETRY]
