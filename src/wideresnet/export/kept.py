"""Converted networks on disk, since a conversion takes longer than classifying a few photographs."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
from collections.abc import Callable
from pathlib import Path

import torch

from wideresnet.base.errors import WRNError
from wideresnet.base.paths import is_private, model_files, models_folder, private_folder
from wideresnet.base.version import __version__
from wideresnet.export.formats import OPSET
from wideresnet.networks import Network
from wideresnet.spec.files import write_atomic

log = logging.getLogger(__name__)

MOST = 5
"""Converted networks that are kept, the newest. This package's choice: one of ImageNet's size takes 250 MiB."""


def kept_or_made(network: Network, size: tuple[int, int], make: Callable[[], bytes]) -> bytes:
    """Return the ONNX model of a network, from the disk if it has been made before.

    A file is used if only this user can have written it, and if its content is what its name says.

    Args:
        network: in evaluation mode, on the CPU.
        size: (H, W) of its images, px.
        make: converts it.
    """
    key = _key(network, size)
    for path in model_files():
        if path.name.startswith(key) and (model := _read(path)) is not None:
            return model
    model = make()
    try:
        folder = private_folder(models_folder())
        if is_private(folder):
            for old in sorted(model_files(), key=lambda path: path.stat().st_mtime)[: 1 - MOST]:
                old.unlink()
            path = folder / f"{key}-{_digest(model)}.onnx"
            write_atomic(path, model)
            path.chmod(0o600)  # whatever the umask is
    except (OSError, WRNError) as error:
        log.warning("the converted network could not be kept: %s; set WRN_DATA to another folder", error)
    return model


def _read(path: Path) -> bytes | None:
    if not (is_private(path.parent) and is_private(path)):
        return None
    with contextlib.suppress(OSError):
        model = path.read_bytes()
        if path.stem.endswith(_digest(model)):
            path.touch()  # the newest are kept
            return model
    return None


def _key(network: Network, size: tuple[int, int]) -> str:
    """Return a digest of everything that decides the content: the modules, the weights, the exporter."""
    about = [__version__, torch.__version__, OPSET, str(network.name), repr(network.options), repr(network), size]
    digest = hashlib.sha256(json.dumps(about).encode())
    for name, tensor in network.state_dict().items():
        digest.update(f"\0{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:32]


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]
