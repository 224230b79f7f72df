"""What an exported model says of itself: classes, pixels, preprocessing, outputs. Values for JSON, in every format."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from wideresnet.base.errors import DataError, WRNError
from wideresnet.base.version import __version__
from wideresnet.data.dataset import MAX_NAME_LENGTH, legible
from wideresnet.networks.build import MAX_COUNT
from wideresnet.spec.names import NetworkName, parse
from wideresnet.weights.hub import MAX_SIDE_PX, Weights

INPUT, LOGITS, PROBABILITIES = "images", "logits", "probabilities"

LAYOUTS = {"onnx": "NHWC", "openvino": "NHWC", "torch": "NCHW"}
"""Order of the axes of the pixels, by format: that of NumPy, Pillow and OpenCV, or that of torchvision's decoders."""

PRECISIONS = ("fp32", "int8")

COLORS = {1: "gray", 3: "RGB"}

RESIZE = "scale (bilinear, antialiased) until the image just covers height x width, crop the center"
RESIZE_TO = "scale (bilinear, antialiased) until the shorter side has {resize} px, crop height x width from the center"
"""What is left to whoever runs the model; see `fit_to_size` and `decoder.fitted`."""


def describe(weights: Weights, format: str, precision: str, dynamic: tuple[str, ...]) -> dict[str, Any]:
    """Return the metadata of an exported model.

    Args:
        weights: what is exported.
        format: "onnx", "openvino" or "torch".
        precision: one of `PRECISIONS`.
        dynamic: the axes of the input whose length is free, of "batch", "height", "width".
    """
    height, width = weights.input_size
    channels = weights.network.in_channels
    return {
        "wideresnet_version": __version__,
        "network": str(weights.network.name),
        "family": weights.network.name.family,
        "precision": precision,
        "class_names": list(weights.class_names),
        "input": {
            "name": INPUT,
            "type": "uint8",
            "range": "0..255",
            "layout": LAYOUTS[format],
            "color": COLORS.get(channels, f"{channels} channels"),
            "channels": channels,
            "height": height,
            "width": width,
            "dynamic": list(dynamic),
            **({} if weights.resize is None else {"resize": weights.resize}),
        },
        "resize_before": RESIZE if weights.resize is None else RESIZE_TO.format(resize=weights.resize),
        "preprocessing_inside": {
            "mean_std": "(x - mean) / std, per channel",
            "scale": "x / 255",
            "zca": "contrast normalization, ZCA whitening",
        }[weights.preprocessing.kind],
        "preprocessing": weights.preprocessing.to_config(),
        "outputs": {LOGITS: "before the softmax, batch x classes", PROBABILITIES: "softmax of the logits"},
    }


def to_texts(metadata: Mapping[str, Any]) -> dict[str, str]:
    """Return each value as text, as ONNX and OpenVINO store it: text as it is, all else as JSON."""
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in metadata.items()}


@dataclass(frozen=True)
class Described:
    """What metadata says, checked.

    Attributes:
        name: of the network.
        precision: one of `PRECISIONS`.
        class_names: in the order of the outputs.
        channels: of the images, 1 or more.
        input_size: (H, W), px.
        resize: as in `Weights`.
    """

    name: NetworkName
    precision: str
    class_names: tuple[str, ...]
    channels: int
    input_size: tuple[int, int]
    resize: int | None = None


def read_texts(texts: Mapping[str, str], where: str) -> Described:
    """Read what `to_texts` wrote.

    Args:
        texts: from a file of unknown origin; may hold more.
        where: the file, for the message.

    Raises:
        DataError: `wrn export` has not written this.
    """
    if "wideresnet_version" not in texts:
        raise DataError(f"{where}: holds no metadata of wrn export, so that classes and preprocessing are unknown")
    try:
        image = json.loads(texts["input"])
        names = json.loads(texts["class_names"])
        size, channels, precision = (image["height"], image["width"]), image["channels"], texts["precision"]
        if not isinstance(names, list) or not all(type(n) is str and len(n) <= MAX_NAME_LENGTH for n in names):
            raise ValueError(f"class_names must be texts of at most {MAX_NAME_LENGTH:,} characters")
        if not 1 <= len(names) <= MAX_COUNT:
            raise ValueError(f"{len(names)} class names")
        if not all(type(side) is int and 1 <= side <= MAX_SIDE_PX for side in size):
            raise ValueError(f"size {size[0]}x{size[1]}: sides must be 1 to {MAX_SIDE_PX} px")
        resize = image.get("resize")
        if resize is not None and not (type(resize) is int and max(size) <= resize <= MAX_SIDE_PX):
            raise ValueError(f"resize {resize!r}: must be a whole number from {max(size)} to {MAX_SIDE_PX}")
        if type(channels) is not int or not 1 <= channels <= MAX_COUNT:
            raise ValueError(f"channels {channels!r}: must be a whole number of at least 1")
        if (image["name"], image["type"], image["layout"]) != (INPUT, "uint8", "NHWC"):
            raise ValueError("the input must be uint8 pixels NHWC")
        if precision not in PRECISIONS:
            raise ValueError(f"precision {precision!r}: must be one of {', '.join(PRECISIONS)}")
        name = parse(texts["network"], texts["family"])
    except (ValueError, KeyError, TypeError, RecursionError, WRNError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise DataError(f"{where}: its metadata is damaged ({reason}); export it again") from None
    return Described(name, precision, tuple(map(legible, names)), channels, size, resize)
