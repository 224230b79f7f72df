"""Weights on disk in the layout of the Hugging Face hub, together with preprocessing and class names.

The files are `config.json`, `model.safetensors`, and `preprocessing.safetensors` if whitening needs matrices. Nothing
is ever unpickled.
"""

from __future__ import annotations

import logging
import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_bytes
from safetensors.torch import save as save_bytes
from torch import Tensor, nn

from wideresnet.base.errors import DataError, UsageError
from wideresnet.base.format import human_bytes
from wideresnet.data.preprocess import Preprocessing
from wideresnet.machine.memory import available_memory_bytes
from wideresnet.networks import Network, create
from wideresnet.spec.files import Digests, digest, read_json, seal, unseal, write_atomic, write_json
from wideresnet.spec.record import CONFIG, MATRICES, MODEL, RunFolder, SeedsFolder
from wideresnet.weights.checkpoint import newest_checkpoint
from wideresnet.weights.pretrained import find_weights, other_names, shipped_name

log = logging.getLogger(__name__)

MAX_SIDE_PX = 8000
"""Largest input size that is accepted: one such image has the largest size that may be decoded (64 megapixels)."""

LARGE_PX = 512 * 512
"""From this many pixels on, the memory that one image takes is compared with what is available."""

FLOATS = {torch.float16, torch.bfloat16, torch.float32, torch.float64}
"""The types in which a parameter may be stored."""

MAPS_AT_ONCE = 3
"""Feature maps of the largest size that a forward pass holds at a time: a block's input, output and shortcut."""


@dataclass(frozen=True)
class Weights:
    """A trained network and what it needs to read images.

    Attributes:
        network: in evaluation mode.
        preprocessing: from uint8 (B, H, W, C) to what `network` takes.
        class_names: in the order of the network's outputs.
        input_size: (H, W) of the images that it was trained on, px.
        notes: what the reader of its numbers should know, one line each.
        sha256: of the file that the network was read from; None if there is none, or only a checkpoint, which will go.
        precision: the only one that the network computes in, if it is an exported model: "fp32" or "int8".
        resize: shorter side, px, to which images are scaled before the center crop; None: until they just cover it.
    """

    network: Network
    preprocessing: Preprocessing
    class_names: tuple[str, ...]
    input_size: tuple[int, int]
    notes: tuple[str, ...] = ()
    sha256: str | None = None
    precision: str | None = None
    resize: int | None = None


def write_weights(folder: Path, weights: Weights, *, half: bool = False) -> dict[str, str]:
    """Write `config.json` and `model.safetensors` (and ZCA's matrices) into a folder, each completely or not at all.

    Args:
        folder: an existing folder.
        weights: what to write.
        half: round the weights of convolutions and the classifier to float16. What has one number per channel stays
            in float32: it takes no space, and running variances can exceed what float16 holds.

    Returns:
        File name -> SHA-256.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.network.state_dict().items()}
    if half:
        tensors = {name: tensor.half() if tensor.ndim > 1 else tensor for name, tensor in tensors.items()}
    content = save_bytes(tensors, {"format": "pt"})
    write_atomic(folder / MODEL, content)
    return write_config(folder, weights, {MODEL: digest(content)})


def write_config(folder: Path, weights: Weights, digests: dict[str, str] | None = None) -> dict[str, str]:
    """Write what `write_weights` writes, but for the values of the network, which training has yet to find.

    Args:
        folder: an existing folder.
        weights: what to write.
        digests: of files that are there already, file name -> SHA-256.

    Returns:
        These, and the digests of the files that were written.
    """
    digests = dict(digests or {})
    if matrices := weights.preprocessing.tensors():
        content = save_bytes(matrices)
        write_atomic(folder / MATRICES, content)
        digests[MATRICES] = digest(content)
    config = {
        "model_type": "wideresnet",
        "network": str(weights.network.name),
        "num_classes": weights.network.num_classes,
        "options": weights.network.options,
        "class_names": list(weights.class_names),
        "input_size": list(weights.input_size),
        **({"resize": weights.resize} if weights.resize is not None else {}),
        "preprocessing": weights.preprocessing.to_config(),
    }
    return {**digests, CONFIG: digest(write_json(folder / CONFIG, seal(config, CONFIG, digests)))}


def read_weights(path: str | Path) -> Weights:
    """Read weights that this package wrote. Of an unfinished run they are those of its newest checkpoint, with a note.

    The network is in float32. Weights that are stored in another type are converted, with a note unless shipped so.

    Args:
        path: a run folder, a folder with `config.json` and `model.safetensors`, that `model.safetensors`, or the name
            of a shipped network.

    Raises:
        UsageError: there are no such files.
        DataError: the files are damaged or do not match each other.
    """
    is_shipped, path = shipped_name(path) is not None, find_weights(path)
    folder, model = (path, path / MODEL) if path.is_dir() else (path.parent, path)
    tensors, notes, sha256 = None, [], None
    if not model.is_file():
        tensors, model, note = _unfinished(path)
        notes.append(note)
    if not (folder / CONFIG).is_file():
        raise UsageError(f"{model}: no {CONFIG} next to it, so that network, classes and preprocessing are unknown")
    digests, network, preprocessing, names, size, resize = _read_config(folder / CONFIG)
    if tensors is None:
        if model.name not in digests.values:
            notes.append(f"{folder}: holds no SHA-256 of {model.name}, so damage to it would not be noticed")
        tensors, sha256 = read_tensors(model, digests)
    stored = load_into(network, tensors, model, str(network.name))
    if stored and not is_shipped:
        notes.append(f"{model}: stored in {stored}, computed in float32")
    return Weights(network.eval(), preprocessing, names, size, tuple(notes), sha256, resize=resize)


def read_preprocessing(folder: Path) -> Preprocessing:
    """Read the preprocessing of a run or of weights.

    Raises:
        DataError: the files are damaged.
    """
    return _read_config(folder / CONFIG)[2]


def holds_weights(path: Path) -> bool:
    """Tell whether a folder is one of weights, of a run, or of several seeds, whether or not these can be read."""
    files = RunFolder(path)
    return files.config.is_file() or files.weights.is_file() or files.is_begun() or SeedsFolder(path).is_begun()


def _unfinished(path: Path) -> tuple[dict[str, Tensor], Path, str]:
    """Return the weights of the newest checkpoint that would be the result, its folder, and a note."""
    run, seeds = RunFolder(path), SeedsFolder(path)
    if seeds.is_begun():
        first = next((run.path for run in seeds.runs()), path / "seed0")
        raise UsageError(f"{path}: holds several seeds; name the folder of one, such as {first}")
    found = newest_checkpoint(run.checkpoint, set_aside=False)[0] if run.is_run() else None
    if found is None:
        started = " (an unfinished run without a checkpoint: continue its training first)" if run.is_run() else ""
        raise UsageError(
            f"{path}: no {MODEL} there{started}; use the folder of a run, or of weights{other_names(str(path))}"
        )
    averaged = found.part("averaged")
    how = "averaged weights" if averaged else "weights"
    note = f"{path}: the run has not finished; these are its {how} after step {found.step:,}"
    return averaged or found.part("network"), run.checkpoint, note


def _read_config(
    path: Path,
) -> tuple[Digests, Network, Preprocessing, tuple[str, ...], tuple[int, int], int | None]:
    """Read `config.json`: digests of the files beside it, and a network of shapes alone with all but its values."""
    config, digests = unseal(read_json(path), path)
    try:
        names, (height, width), resize = _class_names(config), _input_size(config), _resize(config)
        # shapes only: no memory is allocated before the file is known to hold such a network; warnings about options
        # without effect were shown in training
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            network = create(config["network"], config["num_classes"], **config["options"])
        kind = config["preprocessing"]["kind"]
        matrices = read_tensors(path.with_name(MATRICES), digests)[0] if kind == "zca" else {}
        preprocessing = Preprocessing.from_config(config["preprocessing"], matrices)
    except DataError as error:
        raise error if str(error).startswith(str(path.parent)) else _refusal(path, error) from None
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, OverflowError) as error:
        raise _refusal(path, error) from None
    if len(names) != network.num_classes:
        raise DataError(f"{path}: {len(names)} class names for {network.num_classes} outputs")
    channels = network.in_channels
    needed = {"mean_std": channels, "zca": height * width * channels}.get(kind, 0)
    if needed != len(preprocessing.mean) + len(matrices.get("zca_mean", ())):
        raise DataError(f"{path}: its {kind} is not for images of {height}x{width} with {channels} channels")
    _check_memory(network, (height, width), path)
    return digests, network, preprocessing, names, (height, width), resize


def _refusal(path: Path, error: Exception) -> DataError:
    return DataError(f"{path}: not the configuration of a network ({_one_line(error)})")


def _class_names(config: dict[str, Any]) -> tuple[str, ...]:
    names = config["class_names"]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError("class_names must be a list of texts")
    return tuple(names)


def _input_size(config: dict[str, Any]) -> tuple[int, int]:
    size = config["input_size"]
    if not isinstance(size, list) or len(size) != 2 or not all(type(side) is int for side in size):
        raise ValueError("input_size must be a list of two whole numbers, height and width")
    if not 1 <= min(size) <= max(size) <= MAX_SIDE_PX:
        raise ValueError(f"input_size {size[0]}x{size[1]}: sides must be 1 to {MAX_SIDE_PX} px")
    return size[0], size[1]


def _resize(config: dict[str, Any]) -> int | None:
    resize, size = config.get("resize"), _input_size(config)
    if resize is not None and not (type(resize) is int and max(size) <= resize <= MAX_SIDE_PX):
        raise ValueError(f"resize must be a whole number from {max(size)} to {MAX_SIDE_PX} px")
    return resize


def _check_memory(network: Network, size: tuple[int, int], path: Path) -> None:
    """Refuse an input size at which not even one image fits into memory."""
    if math.prod(size) < LARGE_PX:
        return
    with torch.no_grad():
        maps = network.features(torch.empty(1, network.in_channels, *size, device="meta"))
    needed, available = MAPS_AT_ONCE * 4 * max(m.numel() for m in maps.values()), available_memory_bytes("cpu")
    if available and needed > available:
        raise DataError(
            f"{path}: input_size {size[0]}x{size[1]}: one image needs about {human_bytes(needed)} of memory in "
            f"{network.name}, {human_bytes(available)} is available; use another machine, or a smaller input_size"
        )


def load(path: str | Path) -> Network:
    """Load a trained network, ready to evaluate.

    It takes preprocessed images; `read_weights` returns the preprocessing and the class names, too.

    Args:
        path: a run folder, a folder with `config.json` and `model.safetensors`, that `model.safetensors`, or the name
            of a shipped network, such as "WRN-16-4-cifar10".

    Raises:
        UsageError, DataError: as for `read_weights`.
    """
    weights = read_weights(path)
    for note in weights.notes:
        log.warning(note)
    return weights.network


def read_tensors(path: Path, digests: Digests) -> tuple[dict[str, Tensor], str]:
    """Read the tensors and the SHA-256 of a file once: both are of the same bytes."""
    try:
        content = path.read_bytes()
        digests.check(path, content)
        return load_bytes(content), digest(content)
    except DataError:
        raise
    except (OSError, SafetensorError, ValueError) as error:
        raise DataError(f"{path}: not a complete safetensors file ({_one_line(error)})") from None


def load_into(network: nn.Module, tensors: dict[str, Tensor], path: Path, name: str) -> str:
    """Give a network of shapes alone its values; return the types in which values are stored if others are computed."""
    wanted: dict[str, Tensor] = network.state_dict()
    missing, strange = sorted(wanted.keys() - tensors.keys()), sorted(tensors.keys() - wanted.keys())
    if missing or strange:
        first = f"lacks {missing[0]}" if missing else f"has {strange[0]}"
        raise DataError(
            f"{path}: not the weights of {name}: {first} ({len(missing)} names missing, {len(strange)} unknown)"
        )
    for key, tensor in wanted.items():
        if tensors[key].shape != tensor.shape:
            raise DataError(f"{path}: {key} is {tuple(tensors[key].shape)}, {name} needs {tuple(tensor.shape)}")
        if tensors[key].dtype != tensor.dtype and not {tensors[key].dtype, tensor.dtype} <= FLOATS:
            raise DataError(f"{path}: {key} is {_type(tensors[key])}, {name} needs {_type(tensor)}")
    # `to_empty` would import parts of PyTorch's compiler
    values = {key: torch.empty(tensor.shape, dtype=tensor.dtype).copy_(tensors[key]) for key, tensor in wanted.items()}
    network.load_state_dict(values, assign=True)
    return " and ".join(sorted({_type(tensors[key]) for key in wanted if tensors[key].dtype != wanted[key].dtype}))


def _type(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
