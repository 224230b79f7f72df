"""Speed of the streaming feed against torchvision's ImageFolder with PyTorch's DataLoader, in turns in one run.

    python tools/loader.py                      # on images that are made for it, in a temporary folder
    python tools/loader.py --data imagenet --workers 8 --batches 40

Both decode the same files, cut a random resized crop of 224, mirror, and end with a normalized float batch on the CPU;
with --jitter colors are changed, too, with --trivial one operation of TrivialAugmentWide is applied. On a machine that
others use, the rates scatter; the CPU time of an image, which is measured without workers, hardly does.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from wideresnet.data import load_dataset
from wideresnet.data.feeds.lazy import stream_of
from wideresnet.data.feeds.stream import StreamFeed
from wideresnet.data.preprocess import Preprocessing
from wideresnet.machine.cpu import usable_cpus
from wideresnet.training.choose_feed import IMAGENET_MEAN, IMAGENET_STD

SIZE = 224
LEAST_PX, MOST_PX = 300, 600  # of a side of the images that are made; ImageNet's mean is 400 x 350

CPU_BATCHES = 3


def make_images(folder: Path, num_classes: int, each: int) -> None:
    """Write JPEGs of about 70 kB, as ImageNet's are in the mean about 110 kB."""
    random = np.random.default_rng(0)
    for label, number in itertools.product(range(num_classes), range(each)):
        height, width = random.integers(LEAST_PX, MOST_PX, 2)
        small = random.integers(0, 256, (height // 12 + 1, width // 12 + 1, 3), dtype=np.uint8)
        smooth = np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)).astype(np.int16)
        noisy = smooth + random.integers(-12, 13, smooth.shape)
        file = io.BytesIO()
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
        for split in ("train", "val"):
            place = folder / split / f"class{label:02d}"
            place.mkdir(parents=True, exist_ok=True)
            if split == "train" or number == 0:
                (place / f"{number}.jpg").write_bytes(file.getvalue())


def ours(folder: Path, args: argparse.Namespace) -> Iterator[Tensor]:
    """Yield the batches of the streaming feed."""
    train = load_dataset(folder, image_size=SIZE, feed="stream").train
    feed = StreamFeed(
        stream_of(train.images), train.labels, Preprocessing("mean_std", IMAGENET_MEAN, IMAGENET_STD),
        batch_size=args.batch_size, flip=True, random_resized_crop=0.08, color_jitter=0.4 if args.jitter else 0.0,
        auto_augment="trivial" if args.trivial else "none", workers=args.workers,
    )  # fmt: skip
    with feed.running():
        for epoch in itertools.count():
            for images, _ in feed.epoch(epoch):
                yield images


def torchvisions(folder: Path, args: argparse.Namespace) -> Iterator[Tensor]:
    """Yield the batches of a loader as torchvision's reference scripts make it."""
    steps: list[Any] = [v2.RandomResizedCrop(SIZE, antialias=True)]
    steps += [v2.ColorJitter(0.4, 0.4, 0.4)] if args.jitter else []
    steps += [v2.RandomHorizontalFlip()]
    steps += [v2.TrivialAugmentWide()] if args.trivial else []
    steps += [v2.PILToTensor(), v2.ToDtype(torch.float, scale=True)]
    steps += [v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))]
    loader = DataLoader(
        ImageFolder(folder / "train", v2.Compose(steps)),
        batch_size=args.batch_size, shuffle=True, num_workers=args.workers, drop_last=True,
        persistent_workers=args.workers > 0,
    )  # fmt: skip
    for _ in itertools.count():
        for images, _ in loader:
            yield images


def rate(batches: Iterator[Tensor], num: int, clock: Callable[[], float] = time.perf_counter) -> float:
    """Return images per second of the next batches; nothing else is computed meanwhile."""
    start, images = clock(), 0
    for batch in itertools.islice(batches, num):
        images += len(batch)
    return images / (clock() - start)


def measure(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Take turns, each with workers of its own."""
    rates: dict[str, list[float]] = {"stream": [], "torchvision": []}
    cpu_ms: dict[str, list[float]] = {"stream": [], "torchvision": []}
    alone = argparse.Namespace(**{**vars(args), "workers": 0})
    for _ in range(args.rounds):
        for name, make in (("stream", ours), ("torchvision", torchvisions)):
            batches = make(folder, args)
            rate(batches, 2 + args.workers)  # starting and what is decoded ahead does not count
            rates[name].append(rate(batches, args.batches))
            batches = make(folder, alone)
            next(batches)
            cpu_ms[name].append(1000 / rate(batches, CPU_BATCHES, time.process_time))
            del batches
    medians = {name: round(statistics.median(each), 1) for name, each in rates.items()}
    ratios = [a / b for a, b in zip(rates["stream"], rates["torchvision"], strict=True)]
    return {
        "images_per_s": medians,
        "ratio": round(statistics.median(ratios), 3),
        "ratios": [round(ratio, 3) for ratio in ratios],
        "cpu_ms_per_image": {name: round(min(each), 3) for name, each in cpu_ms.items()},
        "cpu_ratio": round(min(cpu_ms["torchvision"]) / min(cpu_ms["stream"]), 3),
        "workers": args.workers,
        "batch_size": args.batch_size,
    }


def main() -> None:
    """Measure and print a JSON document."""
    parser = argparse.ArgumentParser(description="Speed of the streaming feed against torchvision's loader.")
    parser.add_argument("--data", type=Path, help="folder with train/<class>/; without it images are made")
    parser.add_argument("--workers", type=int, default=max(1, usable_cpus()))
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--batches", type=int, default=12, help="per turn")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--jitter", action="store_true")
    parser.add_argument("--trivial", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.data or Path(temporary)
        if not args.data:
            make_images(folder, 20, 20)
        print(json.dumps(measure(folder, args), indent=1))


if __name__ == "__main__":
    main()
