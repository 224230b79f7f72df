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
from pathlib import Path

import torch

from wideresnet.base import progress
from wideresnet.base.child import Parent
from wideresnet.base.errors import DataError, WRNError
from wideresnet.data import Dataset
from wideresnet.data.dataset import digest
from wideresnet.data.load import load_for
from wideresnet.experiments.lease import Lease
from wideresnet.spec.lock import FolderInUse
from wideresnet.spec.recipe import Recipe
from wideresnet.training import Diverged, Interrupted, fit
from wideresnet.training.interrupt import StopRequest
from wideresnet.training.summary import summarize

DIVERGED = 3
"""Exit code of a worker whose loss or weights were not finite: trying the same seed again would end the same way."""

IN_USE = 4
"""Exit code of a worker whose run is being trained by another process."""

LOST_LEASE = 1
"""Exit code of a worker that was believed dead and whose run another one has taken over. It writes nothing anymore."""

WAIT_S = 0.5
"""How often a worker that waits for a lease looks."""


class _Log(progress.Silent):
    """Reports epochs as lines of the log."""

    def report(self, message: str) -> None:
        print(message, flush=True)


def main() -> int:
    """Train. The job has the recipe and the arguments of `fit`, `num_threads`, and `command`, which may be None.

    It may also have `track`, as for `fit`; `data_digest`, of the images that the run is meant for; and `lease`, the
    path of a lease that keeps this run from being trained by two processes, of which one is believed dead: on a node
    that cannot be reached, say.

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
    lease = Lease(Path(job["lease"]), when_lost=lambda: os._exit(LOST_LEASE)) if job.get("lease") else None
    try:
        if lease and not _take(lease):
            return Interrupted.exit_code
        dataset = load_for(recipe := Recipe.from_json(job["recipe"]))
        _check(dataset, job.get("data_digest"))
        fit(
            recipe,
            job["out"],
            dataset=dataset,
            resume=job["resume"],
            checkpoint_every_s=job["checkpoint_every_s"],
            asked=job["asked"],
            command=job["command"],
            track=job.get("track"),
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
    finally:
        if lease:
            lease.release()


def _take(lease: Lease) -> bool:
    """Take a lease, once its owner has ended or has not been heard of for long; tell whether to go on."""
    if lease.acquire():
        return True
    owner = lease.owner()
    print(f"waiting for pid {owner.get('pid')} on {owner.get('host')}, which trains this run", flush=True)
    with StopRequest() as stop:
        while not lease.acquire():
            if stop.asked:
                return False
            time.sleep(WAIT_S)
    return True


def _check(dataset: Dataset, expected: str | None) -> None:
    """Refuse other images than those that the run is named after."""
    if expected is not None and digest(dataset.train, dataset.test) != expected:
        raise DataError(f"data={dataset.source}: holds other images here than where the run was asked for")


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
