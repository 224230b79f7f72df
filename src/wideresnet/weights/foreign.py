"""State dicts that other code has written: read without running anything, unwrapped, and with what is known of them.

torchvision and timm give the tensors of ImageNet networks the names that this package uses, so that nothing is renamed.
"""

from __future__ import annotations

import io
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_bytes
from torch import Tensor

from wideresnet.base.errors import DataError, UsageError
from wideresnet.base.format import human_bytes
from wideresnet.machine.memory import available_memory_bytes
from wideresnet.spec.fields import short
from wideresnet.spec.files import digest, read_json
from wideresnet.spec.record import CONFIG
from wideresnet.weights.pretrained import shipped_name

PICKLED = (".pth", ".pt", ".bin", ".tar")
"""How the names of files end that `torch.save` has written."""

WRAPPERS = ("state_dict", "model", "model_state_dict")
"""The keys under which training scripts keep a state dict: torchvision's references have "model", timm "state_dict"."""

PREFIXES = ("module.", "_orig_mod.", "model.")
"""What DataParallel, `torch.compile` and Lightning put before each name."""

DEEPEST = 3
"""Wrappers around each other at most; a mapping may hold itself."""

COUNTER = "num_batches_tracked"
"""The end of the names of counters, which files from before 2018 lack."""

COPIES = 3
"""Times that a file is in memory at most: its bytes, its tensors, and the network."""


@dataclass(frozen=True)
class Foreign:
    """A state dict and what its source says of it.

    Attributes:
        tensors: name -> values.
        sha256: of the file, or of the tensors if they were downloaded.
        mean, std: per channel, gray levels 0..255, by which images are normalized; None if nothing says so.
        notes: what was unwrapped or assumed, one line each.
    """

    tensors: dict[str, Tensor]
    sha256: str
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    notes: tuple[str, ...] = ()


def is_foreign(weights: str | Path) -> bool:
    """Tell whether weights are a file of other code: no run, no weights folder, no shipped network."""
    path = Path(weights)
    if shipped_name(weights) is not None or path.is_dir():
        return False
    suffix = path.suffix.lower()
    return suffix in PICKLED or (suffix == ".safetensors" and path.is_file() and not _is_own(path))


def _is_own(path: Path) -> bool:
    """Tell whether a file of tensors has this package's configuration beside it, even if that is damaged."""
    config = _config_beside(path)
    return config is None or "network" in config if path.with_name(CONFIG).is_file() else False


def _config_beside(path: Path) -> dict[str, Any] | None:
    try:
        return read_json(path.with_name(CONFIG))
    except (OSError, DataError):
        return None


def read_foreign(path: Path) -> Foreign:
    """Read a state dict.

    Args:
        path: what `torch.save` wrote, of which tensors alone are taken, or a safetensors file.

    Raises:
        UsageError: there is no such file.
        DataError: it is damaged, holds more than tensors, holds no state dict, or does not fit into memory.
    """
    if not path.is_file():
        raise UsageError(f"{path}: no such file of weights")
    _check_memory(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    if path.suffix.lower() == ".safetensors":
        try:
            found: Any = load_bytes(content)
        except (SafetensorError, ValueError) as error:
            raise DataError(f"{path}: not a complete safetensors file ({_one_line(error)})") from None
    else:
        found = _unpickled(path, content)
    tensors, notes = unwrap(found, str(path))
    mean, std = _statistics(_config_beside(path) or {})
    return Foreign(tensors, digest(content), mean, std, tuple(notes))


def unwrap(found: Any, where: str) -> tuple[dict[str, Tensor], list[str]]:
    """Return the state dict that an object is or holds, and notes on what was taken off.

    Args:
        found: what a file holds.
        where: the file, for messages.

    Raises:
        DataError: there is no state dict in it.
    """
    notes: list[str] = []
    for _ in range(DEEPEST):
        if not isinstance(found, Mapping) or _is_state(found):
            break
        key = next((key for key in WRAPPERS if isinstance(found.get(key), Mapping)), None)
        if key is None:
            break
        others = ", ".join(short(other).strip("'") for other in list(found)[:5] if other != key)
        notes.append(f"{where}: the state dict is its {key!r}" + (f"; it also holds {others}" if others else ""))
        found = found[key]
    if not isinstance(found, Mapping) or not _is_state(found):
        held = f"its keys are {', '.join(map(short, list(found)[:3]))}" if isinstance(found, Mapping) else "no mapping"
        raise DataError(
            f"{where}: holds no state dict ({held}); save it with torch.save(model.state_dict(), ...), or give the "
            f"folder of a run"
        )
    tensors = {name: tensor for name, tensor in found.items() if name != "n_averaged"}  # of AveragedModel
    for prefix in PREFIXES:
        if all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
            notes.append(f"{where}: {prefix!r} was removed from the names of its tensors")
    return tensors, notes


def _is_state(found: Mapping[Any, Any]) -> bool:
    return len(found) > 0 and all(
        isinstance(name, str) and isinstance(value, Tensor) and value.layout == torch.strided and not value.is_quantized
        for name, value in found.items()
    )


def _unpickled(path: Path, content: bytes) -> Any:
    """Read what `torch.save` wrote; what is not a tensor or plain data is refused before anything of it runs."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if match := re.search(r"GLOBAL ([\w.]+)|Unsupported class ([\w.]+)", str(error)):
            raise DataError(
                f"{path}: holds more than tensors ({match[1] or match[2]}), and nothing of it was run; save the state "
                "dict alone with torch.save(model.state_dict(), ...) where you trust the file, or convert it to "
                "safetensors"
            ) from None
        raise DataError(f"{path}: not a complete file of torch.save ({_one_line(error)})") from None
    except Exception as error:  # what a damaged archive makes of PyTorch's reader has many types
        raise DataError(f"{path}: not a complete file of torch.save ({_one_line(error)})") from None


def _check_memory(path: Path) -> None:
    """Refuse a file that does not fit into memory, unpacked if it is an archive, before it is read."""
    size = path.stat().st_size
    try:
        with zipfile.ZipFile(path) as archive:
            size = max(size, sum(info.file_size for info in archive.infolist()))
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError):
        pass  # no archive: older files of torch.save, or safetensors
    available = available_memory_bytes("cpu")
    if available and COPIES * size > available:
        raise DataError(
            f"{path}: holds {human_bytes(size)}, which take {human_bytes(COPIES * size)} of memory while they are "
            f"read; {human_bytes(available)} is available"
        )


def _statistics(config: dict[str, Any]) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    """Return mean and std of timm's `config.json`, 0..255, if it is one and they can be those of pixels."""
    known = config.get("pretrained_cfg")
    values: list[Any] = [known.get(key) if isinstance(known, dict) else None for key in ("mean", "std")]
    for each in values:
        if not isinstance(each, list) or not all(isinstance(v, int | float) and 0 <= v <= 1 for v in each):
            return None, None
    mean, std = (tuple(255.0 * value for value in each) for each in values)
    return (mean, std) if len(mean) == len(std) > 0 and min(std) > 0 else (None, None)


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
