"""Weights on disk in the layout of the Hugging Face hub, together with preprocessing and class names.

The files are `config.json`, `model.safetensors`, and `preprocessing.safetensors` if whitening needs matrices. Nothing
is ever unpickled.
"""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_bytes
from safetensors.torch import save as save_bytes
from torch import Tensor

from wideresnet.base.errors import DataError, UsageError
from wideresnet.data.preprocess import Preprocessing
from wideresnet.networks import Network, create
from wideresnet.spec.record import CONFIG, MATRICES, MODEL, RunFolder, write_atomic, write_json

MAX_SIDE_PX = 8000
"""Largest input size that is accepted: one such image has the largest size that may be decoded (64 megapixels)."""


@dataclass(frozen=True)
class Weights:
    """A trained network and what it needs to read images.

    Attributes:
        network: in evaluation mode.
        preprocessing: from uint8 (B, H, W, C) to what `network` takes.
        class_names: in the order of the network's outputs.
        input_size: (H, W) of the images that it was trained on, px.
    """

    network: Network
    preprocessing: Preprocessing
    class_names: tuple[str, ...]
    input_size: tuple[int, int]


def write_weights(folder: Path, weights: Weights) -> None:
    """Write `config.json` and `model.safetensors` (and ZCA's matrices) into a folder, each completely or not at all.

    Args:
        folder: an existing folder.
        weights: what to write.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.network.state_dict().items()}
    matrices = weights.preprocessing.tensors()
    if matrices:
        write_atomic(folder / MATRICES, save_bytes(matrices))
    write_atomic(folder / MODEL, save_bytes(tensors, {"format": "pt"}))
    config = {
        "model_type": "wideresnet",
        "network": str(weights.network.name),
        "num_classes": weights.network.num_classes,
        "options": weights.network.options,
        "class_names": list(weights.class_names),
        "input_size": list(weights.input_size),
        "preprocessing": weights.preprocessing.to_config(),
    }
    write_json(folder / CONFIG, config)


def read_weights(path: str | Path) -> Weights:
    """Read weights that this package wrote.

    Args:
        path: a run folder, a folder with `config.json` and `model.safetensors`, or that `model.safetensors`.

    Raises:
        UsageError: there are no such files.
        DataError: the files are damaged or do not match each other.
    """
    path = Path(path)
    folder, model = (path, path / MODEL) if path.is_dir() else (path.parent, path)
    if not model.is_file():
        started = " (an unfinished run: resume its training first)" if RunFolder(folder).is_run() else ""
        raise UsageError(f"{path}: no {MODEL} there{started}; use the folder of a finished run, or of weights")
    if not (folder / CONFIG).is_file():
        raise UsageError(f"{model}: no {CONFIG} next to it, so that network, classes and preprocessing are unknown")
    try:
        config = json.loads((folder / CONFIG).read_text())
        # shapes only: no memory is allocated before the file is known to hold such a network; warnings about options
        # without effect were shown in training
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            network = create(config["network"], config["num_classes"], **config["options"])
        names, (height, width) = tuple(map(str, config["class_names"])), map(int, config["input_size"])
        matrices = _read_tensors(folder / MATRICES) if config["preprocessing"]["kind"] == "zca" else {}
        preprocessing = Preprocessing.from_config(config["preprocessing"], matrices)
        if not 1 <= min(height, width) <= max(height, width) <= MAX_SIDE_PX:
            raise ValueError(f"input_size {height}x{width}: sides must be 1 to {MAX_SIDE_PX} px")
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, OverflowError) as error:
        raise DataError(f"{folder / CONFIG}: not the configuration of a network ({_one_line(error)})") from None
    _load_into(network, _read_tensors(model), model)
    if len(names) != network.num_classes:
        raise DataError(f"{folder / CONFIG}: {len(names)} class names for {network.num_classes} outputs")
    channels, kind = network.in_channels, preprocessing.kind
    needed = {"mean_std": channels, "zca": height * width * channels}.get(kind, 0)
    if needed != len(preprocessing.mean) + len(matrices.get("zca_mean", ())):
        raise DataError(f"{folder / CONFIG}: its {kind} is not for images of {height}x{width} with {channels} channels")
    return Weights(network.eval(), preprocessing, names, (height, width))


def load(path: str | Path) -> Network:
    """Load a trained network, ready to evaluate.

    It takes preprocessed images; `read_weights` returns the preprocessing and the class names, too.

    Args:
        path: a run folder, a folder with `config.json` and `model.safetensors`, or that `model.safetensors`.

    Raises:
        UsageError, DataError: as for `read_weights`.
    """
    return read_weights(path).network


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_bytes(path.read_bytes())
    except (OSError, SafetensorError, ValueError) as error:
        raise DataError(f"{path}: not a complete safetensors file ({_one_line(error)})") from None


def _load_into(network: Network, tensors: dict[str, Tensor], path: Path) -> None:
    wanted: dict[str, Any] = network.state_dict()
    missing, strange = sorted(wanted.keys() - tensors.keys()), sorted(tensors.keys() - wanted.keys())
    if missing or strange:
        first = f"lacks {missing[0]}" if missing else f"has {strange[0]}"
        raise DataError(
            f"{path}: not the weights of {network.name}: {first} ({len(missing)} names missing, {len(strange)} unknown)"
        )
    for name, tensor in wanted.items():
        if tensors[name].shape != tensor.shape:
            raise DataError(
                f"{path}: {name} is {tuple(tensors[name].shape)}, {network.name} needs {tuple(tensor.shape)}"
            )
    network.to_empty(device="cpu").load_state_dict(tensors)


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
