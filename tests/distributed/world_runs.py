"""Runs of a few seconds in several processes: their recipes, what they leave, what happens to one of them."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from wideresnet.spec.recipe import Recipe
from wideresnet.spec.record import RunFolder
from wideresnet.training import classification, fit
from wideresnet.training.captured import Step, make_step

MakeNpz = Callable[..., Path]


def small(data: Path, **changes: Any) -> Recipe:
    values = {"epochs": 2, "batch_size": 16, "crop_padding": 1, "device": "cpu", "precision": "fp32", "lr": 0.05}
    return Recipe.flat(network="WRN-10-1", data=str(data), lr_drop_epochs=(2,), **{**values, **changes})


def weights(run: Path) -> bytes:
    return (run / "model.safetensors").read_bytes()


def metrics(run: Path) -> list[dict[str, Any]]:
    """The records without their times."""
    return [{k: v for k, v in r.items() if not k.endswith("_s")} for r in RunFolder(run).read_metrics()]


def assert_close(run: Path, other: Path, tolerance: float) -> None:
    """The same weights and statistics up to a fraction of each tensor's size."""
    found, expected = load_file(run / "model.safetensors"), load_file(other / "model.safetensors")
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert (found[name] - tensor).abs().sum() <= tolerance * tensor.abs().sum(), name


def run(recipe: Recipe, out: Path, how: str = "", rank: int = 0, after: int = 0, resume: bool = False) -> Any:
    """`fit` in a process of a world; something happens in the process `rank` after a number of steps."""
    done = 0

    def make(*args: Any, **kwargs: Any) -> Step:
        take_step = make_step(*args, **kwargs)

        def step(images: Tensor, labels: Tensor, **more: Any) -> None:
            nonlocal done
            if how == "nan" and int(os.environ["RANK"]) == rank and done == after:
                images.fill_(float("nan"))
            take_step(images, labels, **more)
            done += 1
            if int(os.environ["RANK"]) == rank and done == after:
                if how == "interrupt":
                    os.kill(os.getpid(), signal.SIGINT)
                if how == "kill":
                    os.kill(os.getpid(), signal.SIGKILL)
                if how == "full disk":
                    os.fsync = _raise_full

        return step

    classification.make_step = make
    return fit(recipe, out, resume=resume, checkpoint_every_s=0.0 if how == "full disk" else 60.0)


def _raise_full(_: int) -> None:
    raise OSError(28, os.strerror(28))
