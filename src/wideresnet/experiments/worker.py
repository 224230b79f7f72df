"""The process that trains one seed: `python -m wideresnet.experiments.worker`, started by `process.Worker` only.

It is a child as `base.child` describes: it reports its steps to the parent, and stops with a checkpoint when the parent
asks it to or has died, so it does not outlive its parent for long. Everything else goes to standard error, which is the
log of the seed.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
import traceback

import torch

from wideresnet.base import progress
from wideresnet.base.child import Parent
from wideresnet.base.errors import WRNError
from wideresnet.data.load import load_for
from wideresnet.spec.lock import FolderInUse
from wideresnet.spec.recipe import Recipe
from wideresnet.training import Diverged, Interrupted, fit
from wideresnet.training.summary import summarize

DIVERGED = 3
"""Exit code of a worker whose loss or weights were not finite: trying the same seed again would end the same way."""

IN_USE = 4
"""Exit code of a worker whose run is being trained by another process."""


class _Log(progress.Silent):
    """Reports epochs as lines of the log."""

    def report(self, message: str) -> None:
        print(message, flush=True)


def main() -> int:
    """Train. The job has the recipe and the arguments of `fit`, `num_threads`, and `command`, which may be None.

    Returns:
        The exit code: 0, 130 after a stop, `DIVERGED`, `IN_USE`, 1 or 2 after another failure.
    """
    parent = Parent()
    job = parent.document
    if job is None:
        return Interrupted.exit_code
    for number in (signal.SIGINT, signal.SIGTERM):  # the training loop heeds the first one; more do no harm
        signal.signal(number, lambda *_: None)
    parent.when_gone(_ask_to_stop)
    progress.set_reporter(_Log())
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(message)s")
    if job["num_threads"] is not None:
        torch.set_num_threads(job["num_threads"])
        job["recipe"]["threads"] = job["num_threads"]
    try:
        dataset = load_for(recipe := Recipe.from_json(job["recipe"]))
        fit(
            recipe,
            job["out"],
            dataset=dataset,
            resume=job["resume"],
            checkpoint_every_s=job["checkpoint_every_s"],
            asked=job["asked"],
            command=job["command"],
            announce=lambda job, plan: print(*summarize(job, plan, None).lines(), sep="\n"),
            watch=lambda step, loss, error_pct: parent.say(step=step, loss=loss, error_pct=error_pct),
        )
        return 0
    except FolderInUse as error:
        return _fail(parent, str(error), IN_USE)
    except Diverged as error:
        return _fail(parent, str(error), DIVERGED)
    except WRNError as error:
        return _fail(parent, str(error), error.exit_code)
    except Exception as error:  # the parent gets one line, the log the rest
        traceback.print_exc()
        return _fail(parent, f"{type(error).__name__}: {error}", 1)


def _ask_to_stop() -> None:
    while True:  # again and again: the training loop may not have begun, and nothing before it listens
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.2)


def _fail(parent: Parent, message: str, code: int) -> int:
    message = " ".join(message.split())
    print("wrn:", message, file=sys.stderr)
    parent.say(message=message)
    return code


if __name__ == "__main__":
    sys.exit(main())
