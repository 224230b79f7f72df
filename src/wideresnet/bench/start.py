"""`wrn bench start`: how long people wait for the first training step, from the start of a fresh process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from wideresnet.bench.case import Case
from wideresnet.bench.run import check_free, settled, start_document, write_record
from wideresnet.bench.summary import spread
from wideresnet.bench.words import START_WAYS
from wideresnet.errors import UsageError, WRNError
from wideresnet.names import parse
from wideresnet.progress import bar

BATCH_SIZE = 128
"""The paper's."""


def run_start(
    networks: Sequence[str], out: Path, *, batch_size: int = BATCH_SIZE, family: str | None = None, **machine: Any
) -> dict[str, Any]:
    """Time first steps of fresh processes, in turns: with an empty cache, with what that left there, and plainly.

    The data is a small file of random images, so that nothing is downloaded or decoded.

    Args:
        networks: names.
        out: folder for `bench.json` and `bench.png`.
        batch_size: images a step.
        family: for names that both families have.
        machine: as for `settled`.

    Returns:
        What `bench.json` holds: for each network its `starts`, with the seconds until a first step began (`ready_s`)
        and until it had ended (`stepped_s`).

    Raises:
        UsageError: an unknown network, a batch of no images, or a used folder.
        WRNError: a process failed.
    """
    names = [parse(network, family) for network in networks]
    if batch_size < 2:  # batch normalisation needs two
        raise UsageError(f"--batch-size {batch_size}: must be at least 2")
    check_free(out)
    with settled(**machine) as settings, bar("{task.fields[what]}") as progress:
        document = start_document("start", settings)
        for name in dict.fromkeys(names):
            case = Case(
                "train", str(name), name.family, batch_size, settings.device, settings.precision, settings.num_threads
            )
            task = progress.add_task(f"{name}, batch {batch_size}", total=settings.repeats, what="")
            times: dict[str, list[tuple[float, float]]] = {way: [] for way in START_WAYS}
            begun = time.monotonic()
            for number in range(1, settings.repeats + 1):
                with tempfile.TemporaryDirectory() as folder:
                    data = _write_images(case, Path(folder))
                    for way, found in times.items():
                        progress.update(task, what=way)
                        found.append(_first_step(way, case, data))
                progress.advance(task)
                if number >= 3 and (time.monotonic() - begun) * (number + 1) / number > settings.seconds:
                    break
            progress.update(task, total=len(times["cold"]), what=f"{len(times['cold'])} rounds")
            document["cases"].append(_case_document(case, times))
            write_record(document, out)
    return document


def _write_images(case: Case, folder: Path) -> Path:
    """As many random images as a step takes, and one to test on."""
    images = np.random.default_rng(0).integers(0, 256, (case.batch_size, case.size_px, case.size_px, 3), dtype=np.uint8)
    labels = np.arange(case.batch_size) % case.num_classes
    np.savez(folder / "images.npz", x_train=images, y_train=labels, x_test=images[:1], y_test=labels[:1])
    return folder / "images.npz"


def _first_step(way: str, case: Case, data: Path) -> tuple[float, float]:
    """Seconds from the start of a process until its first step begins, and until that has ended."""
    given = {
        "recipe": replace(case.recipe, data=str(data)).to_json(), "out": str(data.parent / way), "device": case.device,
        "num_threads": case.num_threads, "num_classes": case.num_classes, "size_px": case.size_px,
    }  # fmt: skip
    words = [sys.executable, "-m", "wideresnet.bench.first_step", "plain" if way == "plain" else "ours"]
    environment = {**os.environ, "WRN_DATA": str(data.parent / "cache")}
    said: dict[str, float] = {}
    started = time.perf_counter()
    with subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, text=True
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stderr is not None
        child.stdin.write(json.dumps(given))
        child.stdin.close()
        for line in child.stdout:
            said[line.strip()] = time.perf_counter() - started
        complaint = child.stderr.read().strip()
    if not {"ready", "stepped"} <= said.keys():
        reason = complaint.splitlines()[-1] if complaint else f"exit code {child.returncode}"
        raise WRNError(f"{case.network}, {way}: the process ended before a step: {reason}")
    return said["ready"], said["stepped"]


def _case_document(case: Case, times: dict[str, list[tuple[float, float]]]) -> dict[str, Any]:
    starts = []
    for way, found in times.items():
        ready, stepped = ([round(seconds, 3) for seconds in part] for part in zip(*found, strict=True))
        starts.append(
            {"name": way, "ready_s": {**spread(ready), "seconds": ready},
             "stepped_s": {**spread(stepped), "seconds": stepped}}
        )  # fmt: skip
    return {**case.to_json(), "num_rounds": len(times["cold"]), "starts": starts}
