"""Small networks with weights to export, and odd photographs."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from wideresnet.data.preprocess import Preprocessing
from wideresnet.networks import create
from wideresnet.weights.hub import Weights

NAMES = ("cat", "dog")
SIZE = (16, 12)

NEEDED = {
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "openvino": ("onnx", "onnxscript", "onnxruntime", "openvino"),
    "torch": (),
}


def need_packages(format: str) -> None:
    """Skip the test if the packages of a format are not installed."""
    for package in NEEDED[format]:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed: pip install 'wideresnet[export]'")


def make_weights(
    name: str = "WRN-10-1", channels: int = 3, size: tuple[int, int] = SIZE, preprocessing: Preprocessing | None = None
) -> Weights:
    """Make weights whose answers differ between images: with running statistics, and logits of more than rounding."""
    torch.manual_seed(0)
    network = create(name, len(NAMES), in_channels=channels)
    preprocessing = preprocessing or Preprocessing("mean_std", (120.0,) * channels, (60.0,) * channels)
    with torch.no_grad():
        for _ in range(20):
            network(torch.randn(16, channels, *size))
        network.fc.bias.copy_(torch.tensor([1.0, -0.5]))
    return Weights(network.eval(), preprocessing, NAMES, size)


def make_photos(folder: Path) -> list[Path]:
    """Make 20 photographs as users have them, all of colored gradients and noise."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)

    def photo(width: int, height: int) -> Image.Image:
        small = Image.fromarray(random.integers(0, 256, (3, 3, 3), dtype=np.uint8))
        return small.resize((width, height), Image.Resampling.BICUBIC)

    def exif(orientation: int) -> Image.Exif:
        tags = Image.Exif()
        tags[0x0112] = orientation
        return tags

    base = photo(40, 30)
    transparent = base.convert("RGBA")
    transparent.putalpha(photo(40, 30).convert("L"))
    deep = Image.fromarray(np.asarray(base.convert("L")).astype(np.uint16) * 257)
    made = {
        "gray.jpg": (base.convert("L"), {}),
        "rgba.png": (transparent, {}),
        "gray-alpha.png": (transparent.convert("LA"), {}),
        "cmyk.jpg": (base.convert("CMYK"), {}),
        "ycbcr.tif": (base.convert("YCbCr"), {}),
        "palette.png": (base.convert("P"), {}),
        "palette.gif": (base.convert("P"), {"transparency": 3}),
        "frames.gif": (base, {"save_all": True, "append_images": [photo(40, 30)]}),
        "16-bit.png": (deep, {}),
        "16-bit.tif": (deep, {}),
        "one-bit.png": (base.convert("1"), {}),
        "sideways.jpg": (base, {"exif": exif(6)}),
        "mirrored.png": (base, {"exif": exif(5)}),
        "pixel.png": (photo(1, 1), {}),
        "tall.png": (photo(3, 400), {}),
        "wide.webp": (photo(400, 3), {}),
        "large.jpg": (photo(4000, 3000), {}),
        "progressive.jpg": (base, {"progressive": True}),
        "plain.bmp": (base, {}),
        "plain.ppm": (base, {}),
    }
    for name, (image, options) in made.items():
        image.save(folder / name, **options)
    return [folder / name for name in made]
