"""Packages for other runtimes: those of the extra `export`, and engines to compare with; imported when needed."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from wideresnet.base.errors import UsageError

TELEMETRY = "openvino_telemetry"
"""OpenVINO and NNCF report what they do to their makers by this package, unless it is missing."""

REPORTING = ("openvino", "nncf")

INSTALL = {"nncf": "nncf", "MNN": "MNN", "ncnn": "ncnn", "pnnx": "pnnx", "cv2": "opencv-python-headless"}
"""Module -> what to install, for those that are not in the extra."""


def need(name: str, what: str = "") -> Any:
    """Import a module for another runtime.

    Args:
        name: the module, e.g. "onnxruntime.quantization".
        what: what needs it, the begin of the message, e.g. "format='onnx'".

    Raises:
        UsageError: it is not installed, or cannot be imported.
    """
    package = name.partition(".")[0]
    try:
        if package not in REPORTING:
            return importlib.import_module(name)
        with without_telemetry():
            return importlib.import_module(name)
    except ImportError as error:
        reason = "which is not installed" if isinstance(error, ModuleNotFoundError) else f"which fails: {error}"
        install = INSTALL.get(package, '"wideresnet[export]"')
        prefix = f"{what}: " if what else ""
        raise UsageError(f"{prefix}needs {INSTALL.get(package, package)}, {reason}; pip install {install}") from None


@contextmanager
def without_telemetry() -> Iterator[None]:
    """Hide the package that reports: OpenVINO and NNCF go on without it if it cannot be imported."""
    hides = TELEMETRY not in sys.modules
    if hides:
        sys.modules[TELEMETRY] = None  # type: ignore[assignment]  # makes its import fail
    try:
        yield
    finally:
        if hides:
            del sys.modules[TELEMETRY]
