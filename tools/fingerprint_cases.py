"""What `fingerprint.py` runs: command lines and networks, with everything set that a measurement would decide."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

THREADS = 2
CPU = f"--device cpu --precision fp32 --threads {THREADS}"
MACHINE = f"{CPU} --layout channels_last --no-compile --kernels winograd"
SMALL = "--batch-size 16 --epochs 3 --lr-drop-epochs 3"
OWN = f"--data own.npz {SMALL}"  # 96 images of 32x32x3
DIGITS = f"--data digits --limit 320 --no-flip {SMALL} --crop-padding 1"  # 8x8x1, from scikit-learn


def train(words: str) -> str:
    """Return the command line of a run; its own flags come last, so they win over those of the machine."""
    network, flags = words.split(maxsplit=1)
    return f"train {network} {MACHINE} {flags}"


RUNS = {
    "dropout-ema": train(f"WRN-16-2 {OWN} --dropout 0.3 --ema-decay 0.9"),
    "accumulate": train(f"'WRN-10-1-B(3,1,3)' {OWN} --accumulate 3 --batch-size 20 --no-drop-last"),
    "fast-growing-images": train("WRN-10-1 --data own.npz --recipe fast --epochs 4 --eval-every 2"),
    "contiguous-stochastic-depth": train(
        f"WRN-16-1 {OWN} --kernels pytorch --layout contiguous --stochastic-depth 0.5 --weight-decay-on weights "
        "--lr-drop-at end --no-reset-momentum-at-drops"
    ),
    "group-norm-holdout-limit": train(
        f"WRN-10-1 {OWN} --kernels pytorch --norm group --activation silu --limit 80 --holdout 16 "
        "--padding-mode zero --no-nesterov --dampening 0.1 --preprocessing scale --init fan_out"
    ),
    "bf16": train(f"WRN-10-1 {OWN} --kernels pytorch --precision bf16 --label-smoothing 0.1"),
    "two-processes": train(f"WRN-10-1 {OWN} --dropout 0.2 --processes 2 --threads 1"),
    "two-processes-sync-bn": train(
        f"WRN-10-1 {OWN} --kernels pytorch --stochastic-depth 0.7 --processes 2 --threads 1 --sync-bn "
        "--batch-rule linear --batch-size 8"
    ),
    "photos": train(f"WRN-10-1 --data photos {SMALL} --image-size 16"),
    "zca": train(f"WRN-10-1 {DIGITS} --preprocessing zca"),
    "quick": train("WRN-10-1 --data digits --recipe quick --epochs 2"),
    "preact-resnet": train(f"PreActResNet-11-bottleneck {DIGITS} --bn-scale one --bn-momentum 0.2"),
    "resnet": train(f"ResNet-20 {DIGITS} --kernels pytorch --activation leaky_relu"),
    "recipe-file": train("WRN-10-1 --recipe partial.json"),
    "imagenet": train(f"ResNet-18 --data photos {SMALL} --epochs 1 --image-size 64 --kernels pytorch"),
}
KILLED = "dropout-ema"  # this run is also killed and resumed
SEEDS = f"{train(f'WRN-10-1 {DIGITS}')} --seed 3 --seeds 2"
TRAINED = f"{train(f'WRN-10-1 {OWN}')} --out trained --json"  # the run that is evaluated, drawn, asked for predictions

NETWORKS: list[tuple[str, dict[str, Any], tuple[int, int], tuple[int, ...], bool]] = [
    # name, options, size in px, batches, whether the kernels know it
    ("WRN-16-4", {}, (32, 32), (1, 5), True),
    ("WRN-40-2-B(3,1,3)", {}, (32, 32), (1, 5), True),
    ("WRN-10-2", {"dropout": 0.3, "in_channels": 1}, (33, 31), (1, 5), True),
    ("WRN-16-2", {"stochastic_depth": 0.5, "activation": "silu"}, (32, 32), (5,), False),
    ("ResNet-20", {}, (32, 32), (1, 5), False),
    ("PreActResNet-164", {}, (32, 32), (1,), True),
    ("WRN-50-2-bottleneck", {}, (64, 64), (1, 5), False),
]

HELP = ["--help", *(f"{verb} --help" for verb in ("train", "eval", "predict", "info", "report", "cache", "bench"))]
HELP += [f"bench {job} --help" for job in ("train", "infer", "start", "figure4")]

MISTAKES = [
    "fly",
    "train WRN-16-4",
    "train WRN-29-10 --data digits",
    "train WRN-16-4 --data cifar11",
    "train WRN-16-4 --data digits --recipe papre",
    "train WRN-16-4 --data digits --epochs 0",
    "train WRN-16-4 --data digits --batch-size 5000 --device cpu",
    "train WRN-16-4 --data digits --activation gelu",
    "train --resume --out nothing",
    "eval nothing --data digits",
    "predict nothing photo.png",
    "info WRN-34-2",
    "report nothing",
]

BENCH = f"--repeats 1 --seconds 1 --batch-size 4 {CPU} --json"
DOCUMENTS = {
    "eval": "eval trained --data own.npz --device cpu --precision fp32 --json",
    "eval --int8": "eval trained --data own.npz --int8 --json",
    "predict": "predict trained photos --device cpu --json",
    "info": "info WRN-28-10 --json",
    "info of an ImageNet network": "info WRN-50-2-bottleneck --batch-size 32 --json",
    "info list": "info list --json",
    "report": "report trained --json",
}
MEASUREMENTS = {  # documents whose values differ between runs; `bench figure4` is left out, it would take minutes
    "cache": "cache --json",
    "bench train": f"bench train WRN-10-1 {BENCH} --against plain --out bench-train",
    "bench infer": f"bench infer WRN-10-1 {BENCH} --int8 --out bench-infer",
    "bench start": f"bench start WRN-10-1 {BENCH} --out bench-start",
    "train --seeds": f"{SEEDS} --epochs 1 --out two-seeds --json",
}


def write_inputs(folder: Path) -> None:
    """Write `own.npz`, uint8 images of 32x32x3 in four classes; `photos`, some of them as PNGs in class folders;
    `partial.json`, a recipe that leaves most fields to their defaults; and settings under which Matplotlib draws no
    random ids for the elements of an SVG."""
    partial = {"data": "own.npz", "epochs": 2, "batch_size": 16, "lr_drop_epochs": [2]}
    (folder / "partial.json").write_text(json.dumps(partial))
    (folder / "matplotlibrc").write_text("svg.hashsalt: fingerprint\n")
    random, arrays = np.random.default_rng(0), {}
    for split, num in (("train", 96), ("test", 40)):
        labels = np.arange(num) % 4
        noise = random.normal(90, 50, (num, 32, 32, 3))
        images = np.clip(noise + 12 * labels[:, None, None, None], 0, 255).astype(np.uint8)
        arrays |= {f"x_{split}": images, f"y_{split}": labels}
        for number, image in enumerate(images[:48]):
            place = folder / "photos" / split / ("cat", "dog")[number % 2]
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image[: 20 + number % 12]).save(place / f"{number}.png")
    np.savez(folder / "own.npz", **arrays)
