"""Runs of a few seconds: their recipes, what they leave, and ways to stop them at a step."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from wideresnet.spec.recipe import Recipe
from wideresnet.spec.record import RunFolder
from wideresnet.training import classification
from wideresnet.training.captured import Step, make_step

MakeNpz = Callable[..., Path]


def small(data: Path, **changes: Any) -> Recipe:
    """Four steps per epoch on `make_npz()`; lr drops, and momentum restarts, at the third epoch."""
    values = {"epochs": 3, "batch_size": 16, "crop_padding": 1, "dropout": 0.2, "device": "cpu", "lr": 0.05, **changes}
    return Recipe.flat(network="WRN-10-1", data=str(data), lr_drop_epochs=(3,), **values)


def weights(run: Path) -> bytes:
    return (run / "model.safetensors").read_bytes()


def metrics(run: Path) -> list[dict[str, Any]]:
    """The records without their times."""
    return [{k: v for k, v in r.items() if not k.endswith("_s")} for r in RunFolder(run).read_metrics()]


def assert_same_run(a: Path, b: Path) -> None:
    assert weights(a) == weights(b)
    assert metrics(a) == metrics(b)


@contextmanager
def after_steps(num_steps: int, act: Callable[[], None]) -> Iterator[None]:
    """Act once within the block, when so many training steps are done."""
    done = 0

    def make(*args: Any, **kwargs: Any) -> Step:
        take_step = make_step(*args, **kwargs)

        def step(*args: Any, **kwargs: Any) -> None:
            nonlocal done
            take_step(*args, **kwargs)
            done += 1
            if done == num_steps:
                act()

        return step

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(classification, "make_step", make)
        yield


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def break_off() -> None:
    """Stand for a second Ctrl-C, which does not wait for the end of the step."""
    raise KeyboardInterrupt


class Killed(BaseException):
    """Stands for kill -9: nothing after it runs."""


def kill() -> None:
    raise Killed
