"""`wrn bench start`: the time from the start of a fresh process to the end of its first training step."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from wideresnet.base import progress
from wideresnet.base.child import Child, exit_text
from wideresnet.base.errors import UsageError, WRNError
from wideresnet.bench.case import Case
from wideresnet.bench.contenders import NUM_IMAGES
from wideresnet.bench.measure import MIN_ROUNDS
from wideresnet.bench.run import BATCH_SIZES, Settings, check_free, settled, start_document, write_record
from wideresnet.bench.summary import spread
from wideresnet.bench.words import START_WAYS
from wideresnet.spec.names import parse


def run_start(
    networks: Sequence[str], out: Path, *, batch_size: int | None = None, family: str | None = None,
    command: str | None = None, **machine: Any,
) -> dict[str, Any]:  # fmt: skip
    """Time the first steps of fresh processes, in turns: with an empty cache, with a filled one, and in a plain loop.

    The data is a small file of random images, so that nothing is downloaded or decoded.

    Args:
        networks: names.
        out: folder for `bench.json` and `bench.png`.
        batch_size: images per step; None for the paper's 128.
        family: of names that both families have.
        command: the command line that was typed, for the record; None if there was none.
        machine: as for `settled`.

    Returns:
        What `bench.json` holds: for each network its `starts`, see `START_WAYS`, with the seconds from the start of the
        process to the end of its first step.

    Raises:
        UsageError: the network is unknown, the batch is too small, or the folder is used.
        WRNError: a process failed.
    """
    names = [parse(network, family) for network in networks]
    size = BATCH_SIZES["train"][0] if batch_size is None else batch_size
    if size < 2:
        raise UsageError(f"batch_size={size}: must be at least 2, an image of each of two classes")
    check_free(out)
    with settled(**machine) as settings:
        document = start_document("start", settings, command)
        for name in dict.fromkeys(names):
            case = Case("train", str(name), name.family, size, settings.device, settings.precision,
                        settings.num_threads)  # fmt: skip
            found = _take_turns(case, settings, machine.get("threads"))
            document["cases"].append({**case.to_json(), "num_rounds": len(found["cold"]), "starts": _starts(found)})
            write_record(document, out)
    return document


def _take_turns(case: Case, settings: Settings, num_threads: int | None) -> dict[str, list[tuple[float, str]]]:
    """Time first steps in rounds; return each way's seconds and configurations."""
    found: dict[str, list[tuple[float, str]]] = {way: [] for way in START_WAYS}
    begun = time.monotonic()
    label = f"{case.network}, batch {case.batch_size}"
    with progress.task(label, total=settings.repeats, fields=("what",)) as task:
        for number in range(1, settings.repeats + 1):
            with tempfile.TemporaryDirectory() as folder:
                data = _write_images(case, Path(folder))
                for way, steps in found.items():
                    task.update(what=way)
                    steps.append(time_first_step(way, case, data, num_threads))
            task.update(advance=1)
            if number >= MIN_ROUNDS and (time.monotonic() - begun) * (number + 1) / number > settings.seconds:
                break
        rounds = len(found["cold"])
        task.update(total=rounds, what=f"{rounds} rounds")
    return found


def _write_images(case: Case, folder: Path) -> Path:
    """Write the random images of one step, and one test image."""
    images = np.random.default_rng(0).integers(0, 256, (case.batch_size, case.size_px, case.size_px, 3), dtype=np.uint8)
    labels = np.arange(case.batch_size) % case.num_classes
    np.savez(folder / "images.npz", x_train=images, y_train=labels, x_test=images[:1], y_test=labels[:1])
    return folder / "images.npz"


def time_first_step(way: str, case: Case, data: Path, num_threads: int | None) -> tuple[float, str]:
    """Time the first training step of a fresh process. Ctrl-C kills the process.

    Args:
        way: one of `START_WAYS`.
        case: the step.
        data: an `.npz`; the run folder and the cache go into its folder.
        num_threads: threads that were asked for; None leaves them to the process.

    Returns:
        Seconds from the start of the process to the end of its step, and how the step ran, in words.

    Raises:
        WRNError: the process ended before the step did.
    """
    recipe = case.recipe.replace(
        data=str(data), image_size=case.size_px, threads=num_threads,
        epochs=case.recipe.schedule.epochs * NUM_IMAGES // case.batch_size,  # as many steps as a real run
    )  # fmt: skip
    given = {
        "way": way, "recipe": recipe.to_json(), "out": str(data.parent / way), "device": case.device,
        "num_threads": case.num_threads, "num_classes": min(case.num_classes, case.batch_size),
        "size_px": case.size_px,
    }  # fmt: skip
    said: dict[str, Any] = {}
    started = time.perf_counter()
    # killed when this is left by Ctrl-C, which the child would take as a request to end its run in order
    with Child("wideresnet.bench.first_step", given, variables={"WRN_DATA": str(data.parent / "cache")}) as child:
        for answer in child:
            said |= answer
            if "stepped" in said:
                said.setdefault("seconds", time.perf_counter() - started)
        code = child.wait()
        last = child.last_stderr_line() or exit_text(code)
    if not {"seconds", "configuration"} <= said.keys():
        raise WRNError(f"{case.network}, {way}: the process ended before a step: {last}")
    return said["seconds"], said["configuration"]


def _starts(found: dict[str, list[tuple[float, str]]]) -> list[dict[str, Any]]:
    rows = []
    for way, steps in found.items():
        seconds, configurations = zip(*steps, strict=True)
        seconds = [round(value, 3) for value in seconds]
        rows.append(
            {"name": way, "configurations": list(dict.fromkeys(configurations)), "seconds": seconds,
             "stepped_s": spread(seconds)}
        )  # fmt: skip
    return rows
