"""The process that trains one seed: `python -m wideresnet.experiments.worker`, started by `process.Worker` only.

Its first line of standard input says what to do, and the end of its input, which comes when the parent closes it or has
died, however that was, says to stop: so a worker leaves a checkpoint and never outlives its parent for long. Reports go
to standard output, a JSON object a line; all else goes to standard error, which is the seed's log.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
import traceback
from contextlib import suppress
from typing import IO, Any

import torch

from wideresnet.base.errors import WRNError
from wideresnet.data.load import load_for
from wideresnet.spec.recipe import Recipe
from wideresnet.training import fit
from wideresnet.training.summary import summarize


def main() -> int:
    """Train; returns the exit code: 0, 130 when stopped, 1 for a failure."""
    reports = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a library prints is no report
    job = json.loads(sys.stdin.readline() or "null")
    if job is None:
        return 130
    for number in (signal.SIGINT, signal.SIGTERM):  # while the loop trains it heeds the first one; more do no harm
        signal.signal(number, lambda *_: None)
    threading.Thread(target=_stop_at_end_of_input, daemon=True).start()
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
            command=job["command"],
            announce=lambda job, plan: print(*summarize(job, plan, None).lines(), sep="\n"),
            watch=lambda step, loss, error_pct: _tell(reports, step=step, loss=loss, error_pct=error_pct),
        )
        return 0
    except WRNError as error:
        return _fail(reports, str(error), error.exit_code)
    except Exception as error:  # whatever it was, the parent tells it in one line and the log has the rest
        traceback.print_exc()
        return _fail(reports, f"{type(error).__name__}: {error}", 1)


def _stop_at_end_of_input() -> None:
    while os.read(sys.stdin.fileno(), 1):  # not sys.stdin.read(), which at exit would hold a lock
        pass
    while True:  # the loop may not have begun, and what comes before it does not listen
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.2)


def _fail(reports: IO[str], message: str, code: int) -> int:
    message = " ".join(message.split())
    print("wrn:", message, file=sys.stderr)
    _tell(reports, message=message)
    return code


def _tell(reports: IO[str], **values: Any) -> None:
    with suppress(BrokenPipeError):  # the parent has died
        print(json.dumps(values), file=reports, flush=True)


if __name__ == "__main__":
    sys.exit(main())
