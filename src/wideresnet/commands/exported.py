"""Weights of a command line that are an exported model."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from wideresnet.base.errors import UsageError

if TYPE_CHECKING:
    from wideresnet.weights.hub import Weights

EXPORTED = (".onnx", ".xml", ".pt2")
"""How the names of exported models end."""


def open_weights(args: argparse.Namespace) -> Path | Weights:
    """Return the weights of `wrn predict` and `wrn eval`: a path, or an exported model that has been opened.

    Raises:
        UsageError: flags ask for what an exported model cannot do, or it cannot be opened.
        DataError: as for `read_exported`.
    """
    path = args.weights
    if not isinstance(path, Path) or path.suffix.lower() not in EXPORTED or path.is_dir():
        return path
    if args.device == "cuda":
        raise UsageError(f"device='cuda': {path} runs on the CPU; leave it out")
    if args.engine:
        raise UsageError(f"engine={args.engine!r}: {path} runs by the engine that it is for; leave it out")
    if getattr(args, "int8", False):
        raise UsageError(f"int8=True: {path} computes as it was exported; make it with wrn export --int8")
    if getattr(args, "precision", "auto") != "auto":
        raise UsageError(f"precision={args.precision!r}: {path} computes as it was exported; leave it out")
    from wideresnet.export import read_exported

    args.device = "cpu"
    return read_exported(path)
