"""Detectors on disk: `config.json` and `model.safetensors`, as classifiers have them; and weights for a backbone."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor
from torchvision.models.detection import FasterRCNN, RetinaNet

from wideresnet.base.errors import DataError, UsageError
from wideresnet.detection.model import IMAGENET_MEAN, IMAGENET_STD, body_of, build_detector
from wideresnet.networks import Network
from wideresnet.spec.detection import DetectionFolder, DetectionRecipe
from wideresnet.spec.files import digest, read_json, seal, unseal, write_atomic, write_json
from wideresnet.spec.record import CONFIG, MODEL
from wideresnet.training.initial import IN_FUNCTION
from wideresnet.weights.checkpoint import newest_checkpoint
from wideresnet.weights.foreign import is_foreign, read_foreign
from wideresnet.weights.hub import Weights, load_into, read_tensors, read_weights
from wideresnet.weights.pretrained import weights_name

MODEL_TYPE = "wideresnet-detector"

MAX_CATEGORIES = 20_000
"""Kinds of objects that a file may name: LVIS has 1,203, Open Images 600."""

FROM_RECIPE = (
    "detector", "fpn_channels", "anchor_size", "proposals", "regions", "min_size", "max_size",
)  # fmt: skip
"""Fields of a recipe that a detector is built with."""


@dataclass(frozen=True)
class Architecture:
    """What a detector is built from.

    Attributes:
        network: name of the backbone.
        norm: "frozen", "batch" or "group".
        values: the fields of `FROM_RECIPE`.
        mean, std: per channel, of pixels in 0..1.
        options: other options of the backbone.
    """

    network: str
    norm: str
    values: dict[str, Any]
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    options: dict[str, Any] = field(default_factory=dict)

    def build(self, num_classes: int) -> FasterRCNN | RetinaNet:
        """Build the detector."""
        return build_detector(
            self.network, num_classes, norm=self.norm, mean=self.mean, std=self.std, options=self.options, **self.values
        )


@dataclass(frozen=True)
class Detector:
    """A trained detector and what it needs to read images.

    Attributes:
        model: in evaluation mode.
        architecture: what it was built from.
        categories: (id, name), in the order of its labels.
        notes: what the reader of its numbers should know.
    """

    model: FasterRCNN | RetinaNet
    architecture: Architecture
    categories: tuple[tuple[int, str], ...]
    notes: tuple[str, ...] = ()

    @property
    def min_size(self) -> int:
        """Shorter side to which images are scaled, px."""
        return self.architecture.values["min_size"]

    @property
    def max_size(self) -> int:
        """Longer side that images may then have, px."""
        return self.architecture.values["max_size"]


def write_detector(folder: Path, detector: Detector, *, values: bool = True) -> dict[str, str]:
    """Write a detector into a folder, each file completely or not at all.

    Args:
        values: also `model.safetensors`, which training has yet to find.

    Returns:
        File name -> SHA-256.
    """
    from safetensors.torch import save

    digests: dict[str, str] = {}
    if values:
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in detector.model.state_dict().items()}
        content = save(tensors, {"format": "pt"})
        write_atomic(folder / MODEL, content)
        digests[MODEL] = digest(content)
    about = detector.architecture
    config = {
        "model_type": MODEL_TYPE, "network": about.network, "norm": about.norm, "options": about.options,
        "detector": about.values, "mean": list(about.mean), "std": list(about.std),
        "categories": [{"id": number, "name": name} for number, name in detector.categories],
    }  # fmt: skip
    return {**digests, CONFIG: digest(write_json(folder / CONFIG, seal(config, CONFIG, digests)))}


def read_detector(path: str | Path) -> Detector:
    """Read a detector; of an unfinished run, that of its newest checkpoint, with a note.

    Args:
        path: a run folder, a folder with `config.json` and `model.safetensors`, or that `model.safetensors`.

    Raises:
        UsageError: there are no such files, or they are of a classifier.
        DataError: the files are damaged or do not match each other.
    """
    path = Path(path)
    folder, model = (path, path / MODEL) if path.is_dir() else (path.parent, path)
    if not (folder / CONFIG).is_file():
        raise UsageError(f"{path}: no detector there; use the folder of a run of wrn detect train, or of its weights")
    config, digests = unseal(read_json(folder / CONFIG), folder / CONFIG)
    if config.get("model_type") != MODEL_TYPE:
        raise UsageError(f"{path}: is no detector but a classifier, with which only a backbone can start")
    about, categories = _architecture(config, folder / CONFIG)
    built, notes = about.build(len(categories)), list[str]()
    if model.is_file():
        tensors = read_tensors(model, digests)[0]
        if model.name not in digests.values:
            notes.append(f"{folder}: holds no SHA-256 of {model.name}, so damage to it would not be noticed")
    else:
        run = DetectionFolder(folder)
        found = newest_checkpoint(run.checkpoint, set_aside=False)[0] if run.is_run() else None
        if found is None:
            raise UsageError(f"{path}: no {MODEL} there, and no checkpoint; finish the training first")
        tensors = found.part("network")
        notes.append(f"{path}: the run has not finished; these are its weights after step {found.step:,}")
    load_into(built, tensors, model, f"{about.values['detector']} on {about.network}")
    return Detector(built.eval(), about, categories, tuple(notes))


def _architecture(config: dict[str, Any], path: Path) -> tuple[Architecture, tuple[tuple[int, str], ...]]:
    """Return what a `config.json` describes; every value within its bounds before anything is allocated."""
    try:
        values = {key: config["detector"][key] for key in FROM_RECIPE}
        DetectionRecipe(backbone=config["network"], **values)  # checks each of them
        if config["norm"] not in ("frozen", "batch", "group"):
            raise ValueError("norm must be frozen, batch or group")
        mean, std = (tuple(float(value) for value in config[key]) for key in ("mean", "std"))
        if len(mean) != 3 or len(std) != 3 or not all(value > 0 for value in std):
            raise ValueError("mean and std must be three numbers each")
        categories = tuple((int(entry["id"]), str(entry["name"])) for entry in config["categories"])
        if not 1 <= len(categories) <= MAX_CATEGORIES or not isinstance(config["options"], dict):
            raise ValueError(f"categories must be 1 to {MAX_CATEGORIES:,}")
    except (UsageError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: not the configuration of a detector ({type(error).__name__}: {error})") from None
    return Architecture(config["network"], config["norm"], values, mean, std, config["options"]), categories


@dataclass(frozen=True)
class Backbone:
    """What a run takes over from trained weights.

    Attributes:
        tensors: of the network, without its classifier.
        mean, std: of its preprocessing, of pixels in 0..1.
        norm: of the weights: "batch" or "group".
        options: other options of the network.
        sha256: of the file.
        name: of the weights, for messages.
    """

    tensors: dict[str, Tensor]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    norm: str
    options: dict[str, Any]
    sha256: str
    name: str

    def load(self, body: Network) -> None:
        """Give a backbone these values.

        Raises:
            UsageError: they are of another network.
        """
        wanted = body.state_dict()
        tensors = {key: tensor for key, tensor in self.tensors.items() if not key.endswith("num_batches_tracked")}
        for key, tensor in wanted.items():
            if key.endswith("num_batches_tracked"):
                tensors[key] = tensor
            elif key not in tensors:
                raise UsageError(f"init_from={self.name}: the weights do not fit {body.name}: they lack {key}")
            elif tensors[key].shape != tensor.shape:
                there, here = tuple(tensors[key].shape), tuple(tensor.shape)
                raise UsageError(
                    f"init_from={self.name}: the weights do not fit {body.name}: {key} is {there} there, {here} here"
                )
        if strange := sorted(tensors.keys() - wanted.keys()):
            raise UsageError(f"init_from={self.name}: the weights do not fit {body.name}: they have {strange[0]}")
        body.load_state_dict(tensors)


def read_backbone(init_from: str) -> Backbone:
    """Read weights for a backbone: of a classification run, or a state dict with the names of torchvision's networks.

    Raises:
        UsageError: there are no such weights, or they are for whitened images.
        DataError: the file is damaged, or would have to be executed to be read.
    """
    if is_foreign(init_from):
        foreign = read_foreign(path := Path(init_from))
        mean = tuple(value / 255 for value in foreign.mean) if foreign.mean else IMAGENET_MEAN
        std = tuple(value / 255 for value in foreign.std) if foreign.std else IMAGENET_STD
        return Backbone(_without_classifier(foreign.tensors), mean, std, "batch", {}, foreign.sha256, path.name)
    weights: Weights = read_weights(init_from)
    name = weights_name(init_from)
    if weights.sha256 is None:
        raise UsageError(f"init_from={name}: the run has not finished, so its weights will change; finish it first")
    kind = weights.preprocessing
    if kind.kind == "zca" or weights.network.in_channels != 3:
        raise UsageError(
            f"init_from={name}: the weights are for whitened or gray images; use weights with mean_std and RGB"
        )
    mean = tuple(value / 255 for value in kind.mean) if kind.kind == "mean_std" else (0.0,) * 3
    std = tuple(value / 255 for value in kind.std) if kind.kind == "mean_std" else (1.0,) * 3
    options = {key: weights.network.options[key] for key in IN_FUNCTION if key != "norm"}
    tensors = _without_classifier(weights.network.state_dict())
    return Backbone(tensors, mean, std, weights.network.options["norm"], options, weights.sha256, name)


def _without_classifier(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: tensor for key, tensor in tensors.items() if not key.startswith("fc.")}


def load_backbone(model: FasterRCNN | RetinaNet, backbone: Backbone) -> None:
    """Give a detector's backbone trained values."""
    backbone.load(body_of(model))
