"""The losses of tiny runs are those in `tests/golden/curves.json`, up to rounding.

After a change that is meant to change the numbers, raise `experiments.plan.NUMERICS`, so that runs from before count no
longer in reproductions, and write the file again, once per instruction set. Other processors are imitated by limiting
PyTorch, oneDNN and the C compiler:

    python tests/training/test_golden_curves.py
    ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 CC="gcc -mno-avx512f" python tests/training/test_golden_curves.py
    ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 CC="gcc -mno-avx" python tests/training/test_golden_curves.py
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from wideresnet import Recipe, fit
from wideresnet.kernels.library import why_unavailable

GOLDEN = Path(__file__).parent.parent / "golden" / "curves.json"

# Relative. Rounding alone moved no loss by more than 1.4e-5, over five seeds, on a processor with AVX-512 under
# torch 2.14: ATEN_CPU_CAPABILITY avx2 and default, ONEDNN_MAX_CPU_ISA AVX2 and SSE41, the kernels compiled with
# -mno-avx512f and -mno-avx, alone and together, and two threads. Without a ReLU that flips it is below 1e-6. For
# comparison, in each run some loss moves by 4e-3 if lr is off by 5 %, by 8e-4 if it is off by 1 %, and by 2e-3 if
# weight decay is halved.
TOLERANCE = 1e-4

SHARED: dict[str, Any] = {
    "network": "WRN-10-1", "epochs": 3, "batch_size": 16, "lr": 0.05, "lr_drop_epochs": [3], "crop_padding": 2,
    "weight_decay": 0.01, "bn_scale": "uniform", "device": "cpu", "precision": "fp32", "threads": 1, "compile": False,
}  # fmt: skip
RUNS: dict[str, dict[str, Any]] = {
    "winograd": {"kernels": "winograd", "layout": "channels_last"},
    "pytorch": {"kernels": "pytorch", "layout": "contiguous"},
    "winograd-dropout-ema": {"kernels": "winograd", "layout": "channels_last", "dropout": 0.3, "ema_decay": 0.8},
    "pytorch-accumulate": {"kernels": "pytorch", "layout": "channels_last", "accumulate": 2, "label_smoothing": 0.1},
}

Losses = dict[str, list[float]]


def run_losses(name: str, folder: Path) -> Losses:
    """Train a run in a folder; return the loss per epoch in training and on the test set."""
    random, arrays = np.random.default_rng(0), {}
    for split, num in (("train", 64), ("test", 32)):
        labels = np.arange(num) % 4
        noise = random.normal(90, 50, (num, 16, 16, 3))
        arrays[f"x_{split}"] = np.clip(noise + 12 * labels[:, None, None, None], 0, 255).astype(np.uint8)
        arrays[f"y_{split}"] = labels
    np.savez(folder / "images.npz", **arrays)
    fit(Recipe.from_json({"data": str(folder / "images.npz"), **SHARED, **RUNS[name]}), folder / name)
    records = [json.loads(line) for line in (folder / name / "metrics.jsonl").read_text().splitlines()]
    return {split: [record[split] for record in records] for split in ("train_loss", "test_loss")}


@pytest.mark.parametrize("name", RUNS)
def test_a_tiny_run_has_its_golden_losses(name: str, tmp_path: Path) -> None:
    if RUNS[name]["kernels"] == "winograd" and (reason := why_unavailable()):
        pytest.skip(reason)
    golden = json.loads(GOLDEN.read_text())
    expected = golden.get(torch.backends.cpu.get_cpu_capability(), golden["DEFAULT"])[name]
    for split, losses in run_losses(name, tmp_path).items():
        assert losses == pytest.approx(expected[split], rel=TOLERANCE), split


def write_golden() -> None:
    """Write the losses under this process's CPU capability, and show how far they are from all those in the file."""
    with tempfile.TemporaryDirectory() as folder:
        found = {name: run_losses(name, Path(folder)) for name in RUNS}
    golden = json.loads(GOLDEN.read_text()) if GOLDEN.is_file() else {}
    for capability, curves in golden.items():
        pairs = [
            (new, old)
            for name, splits in found.items()
            for split, losses in splits.items()
            for new, old in zip(losses, curves.get(name, {}).get(split, ()), strict=False)
        ]
        furthest = max((abs(new - old) / old for new, old in pairs), default=0.0)
        print(f"furthest from {capability}: {furthest:.1e}", file=sys.stderr)
    golden[torch.backends.cpu.get_cpu_capability()] = found
    GOLDEN.write_text(json.dumps(dict(sorted(golden.items())), indent=1) + "\n")


if __name__ == "__main__":
    write_golden()
