"""Where the network looks: stored class activation maps, and their overlays on images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image
from safetensors import SafetensorError
from safetensors.numpy import load, save

from wideresnet.base.arithmetic import spread
from wideresnet.base.errors import DataError
from wideresnet.data.images import fit_to_size
from wideresnet.report import html
from wideresnet.report.runs import Predictions
from wideresnet.report.thumbnails import THUMBNAIL_PX
from wideresnet.spec.files import read_file, write_atomic
from wideresnet.spec.record import RunFolder
from wideresnet.spec.result import MAX_NUMBER

NUM_EXPLAINED = 8
"""Right and wrong images with maps, of each kind."""

OVERLAY_PX = 96
"""Shorter side of an overlay, at least: a map of 8 x 8 on an image of 32 x 32 is scaled up smoothly."""

_HOT = np.array((255, 80, 0), dtype=np.float32)  # against gray, also for those who do not see red or green


@dataclass(frozen=True)
class ActivationMaps:
    """Class activation maps of a few test images, in units of the logits.

    Attributes:
        index: int64 (K,), which test images.
        labels: int64 (K, 2), of each the predicted and the true class.
        maps: float32 (K, 2, h, w), how much each place speaks for them.
        images: uint8 (K, H, W, C), what the network saw, scaled down if it was large.
    """

    index: np.ndarray
    labels: np.ndarray
    maps: np.ndarray
    images: np.ndarray

    @classmethod
    def of(cls, index: np.ndarray, labels: np.ndarray, maps: np.ndarray, images: np.ndarray) -> ActivationMaps:
        """Scale down large images, uint8 (K, H, W, C), an array or decoded now; otherwise as the attributes."""
        shown = np.asarray(images)
        height, width, channels = shown.shape[1:]
        if (scale := THUMBNAIL_PX / max(height, width)) < 1:
            size = (max(1, round(scale * height)), max(1, round(scale * width)))
            shown = np.stack([fit_to_size(image, size) for image in shown]).reshape(-1, *size, channels)
        return cls(index, labels, maps, shown)


def choose_explained(predictions: Predictions) -> tuple[np.ndarray, np.ndarray]:
    """Choose test images: the wrong ones with the highest probability, and right ones spread evenly over the set.

    Returns:
        int64 (K,), which ones, and int64 (K, 2), of each the predicted and the true class.
    """
    wrong, right = np.flatnonzero(predictions.is_wrong), np.flatnonzero(~predictions.is_wrong)
    worst = wrong[np.argsort(-predictions.probability[wrong], kind="stable")][:NUM_EXPLAINED]
    some = right[spread(len(right), NUM_EXPLAINED)] if len(right) else right
    index = np.concatenate([worst, some])
    return index, np.stack([predictions.predicted[index], predictions.labels[index]], axis=1)


def store_maps(folder: RunFolder, maps: ActivationMaps) -> None:
    """Write the maps into a run folder."""
    write_atomic(folder.maps, save({name: np.ascontiguousarray(value) for name, value in vars(maps).items()}))


def read_maps(folder: RunFolder, predictions: Predictions) -> ActivationMaps | None:
    """Read the maps of a run; None if it has none, or those of other predictions.

    Raises:
        DataError: the file is damaged.
    """
    if not folder.maps.is_file():
        return None
    try:
        stored = load(read_file(folder.maps))
        maps = ActivationMaps(*(stored[name] for name in ("index", "labels", "maps", "images")))
    except (KeyError, ValueError, SafetensorError) as error:
        raise DataError(f"{folder.maps}: not a run's activation maps ({' '.join(str(error).split())})") from None
    num, types = len(maps.index) if maps.index.ndim else 0, (np.int64, np.int64, np.float32, np.uint8)
    if (
        [part.dtype for part in vars(maps).values()] != list(map(np.dtype, types))
        or maps.index.shape != (num,)
        or maps.labels.shape != (num, 2)
        or (maps.maps.ndim, maps.maps.shape[:2]) != (4, (num, 2))
        or (maps.images.ndim, maps.images.shape[0]) != (4, num)
        or maps.images.shape[3] not in (1, 3)
        or not (maps.maps.size and maps.images.size)
        or not (np.abs(maps.maps) < MAX_NUMBER).all()
    ):
        raise DataError(f"{folder.maps}: not a run's activation maps; remove the file")
    if not ((maps.index >= 0) & (maps.index < len(predictions.labels))).all():
        return None
    own = np.stack([predictions.predicted[maps.index], predictions.labels[maps.index]], axis=1)
    return maps if np.array_equal(own, maps.labels) else None


def overlay(image: np.ndarray, activation: np.ndarray, strongest: float) -> np.ndarray:
    """Lay a map over an image: gray where nothing speaks for the class, the hotter the more does.

    Args:
        image: uint8 (H, W, C), C is 1 or 3.
        activation: float (h, w); what is below 0 speaks against the class, and is not shown (Selvaraju et al. 2017).
        strongest: the value that is shown hottest.

    Returns:
        uint8 (H', W', 3), scaled up if the image is small.
    """
    gray = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image).convert("L")
    factor = max(1, round(OVERLAY_PX / min(gray.size)))
    gray = gray.resize((gray.width * factor, gray.height * factor), Image.Resampling.NEAREST)
    share = np.clip(activation / max(strongest, 1e-12), 0, 1).astype(np.float32)
    smooth = Image.fromarray(share).resize(gray.size, Image.Resampling.BICUBIC)
    alpha = 0.75 * np.clip(np.asarray(smooth), 0, 1)[..., None]
    mixed = alpha * _HOT + (1 - alpha) * np.asarray(gray, dtype=np.float32)[..., None]
    return mixed.round().astype(np.uint8)


def maps_section(maps: ActivationMaps, predictions: Predictions) -> list[str]:
    """Show images with their maps: the worst mistakes with those of both classes, then right ones.

    Args:
        maps: of some of the images.
        predictions: of the test set.
    """
    names = predictions.class_names
    kinds: dict[bool, list[str]] = {True: [], False: []}
    for place, image, both in zip(maps.index.tolist(), maps.images, maps.maps, strict=True):
        is_wrong = bool(predictions.is_wrong[place])
        said, label = names[predictions.predicted[place]], names[predictions.labels[place]]
        shown = both if is_wrong else both[:1]
        layers = [overlay(image, each, float(shown.max())) for each in shown]
        alts = ["the image", f"what speaks for {said}", f"what speaks for {label}"]
        line = f"{said} {100 * predictions.probability[place]:.1f} %" + (f", true: {label}" if is_wrong else "")
        kinds[is_wrong].append(html.strip(zip([image, *layers], alts, strict=False), line, is_wrong=is_wrong))
    height, width = maps.maps.shape[2:]
    about = (
        "The hotter a place, the more it speaks for the class. This is the class activation map: its mean over all "
        f"places, plus a constant, is exactly the score of the class. It has {width} x {height} places, smoothed here. "
        "Look whether the network looks at the thing itself, or at its background or a mark on the image."
    )
    body = [html.heading("Where the network looks"), html.paragraph(about, "muted")]
    if kinds[True]:
        wrong = (
            "Wrong, the most confident first: the image, what speaks for the predicted class, what for the true one."
        )
        body += [html.paragraph(wrong), html.strips(kinds[True])]
    if kinds[False]:
        body += [html.paragraph("Right, spread evenly over the test set."), html.strips(kinds[False])]
    return body
