"""Reproductions of the paper's tables: nothing is lost, nothing is run twice, every number can be traced."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from wideresnet.base.errors import DataError, UsageError, WRNError
from wideresnet.data.dataset import digest
from wideresnet.data.load import load_dataset
from wideresnet.experiments.collect import collect
from wideresnet.experiments.estimate import Work, count_work, estimate
from wideresnet.experiments.plan import expand
from wideresnet.experiments.process import OverGPUs, Worker
from wideresnet.experiments.reproduce import Todo, list_tasks, train_all
from wideresnet.experiments.store import Store
from wideresnet.report.reproduction import write_reproduction
from wideresnet.spec.files import read_json, write_json
from wideresnet.spec.recipe import Recipe
from wideresnet.training import fit

MakeNpz = Callable[..., Path]


def small(
    data: Path, *, seeds: int = 2, networks: Sequence[str] = ("WRN-40-2-l3", "WRN-40-2-l4"), **changes: Any
) -> tuple[Todo, dict[str, Work]]:
    """Two rows of Table 3 with narrow networks, a few steps on images that stand in for CIFAR-10."""
    dataset = load_dataset(data)
    changes = {"batch_size": 16, "crop_padding": 1, "device": "cpu", **changes}
    expansion = expand("table3", {"cifar10": str(data)}, networks=networks, scale=0.005, width=1, changes=changes)
    todo = list_tasks(expansion, {"cifar10": digest(dataset.train, dataset.test)}, seeds)
    return todo, count_work(todo.all(), {"cifar10": dataset})


class Ended:
    """A worker that has ended already."""

    began = "started"

    def __init__(self, seed: int, code: int | None) -> None:
        self.seed, self.code, self.report, self.message = seed, code, None, ""

    def poll(self) -> int | None:
        return self.code

    def stop(self) -> None:
        pass

    def kill(self) -> None:
        pass

    def problem(self, code: int) -> str:
        return f"ended with {code}"


def train_here(seed: int, job: dict[str, Any], log: Path, num_threads: int | None) -> Worker:
    """Train in this process, which is faster than starting another one."""
    del log, num_threads
    fit(Recipe.from_json(job["recipe"]), job["out"], resume=job["resume"], command=job["command"])
    return Ended(seed, 0)  # type: ignore[return-value]


@pytest.mark.usefixtures("pages")
def test_runs_are_trained_once_and_end_in_a_table(make_npz: MakeNpz, tmp_path: Path, reported: list[str]) -> None:
    (todo, work), store = small(make_npz(), seeds=1), Store(tmp_path / "store")
    train_all(store, todo.all(), work, at_once=2, start_worker=train_here)
    document = collect(store, todo)
    assert [(cell["label"], cell["n"], cell["published_pct"]) for cell in document["cells"]] == [
        ("WRN-40-1-l3", 1, 5.65), ("WRN-40-1-l4", 1, 5.93),
    ]  # fmt: skip
    assert not document["is_partial"]
    assert document["scaled_down"] == "0.5 % of the paper's epochs and widening factor 1 in all networks"
    assert {cell["verdict"] for cell in document["cells"]} == {"scaled down: not comparable with the paper"}
    for cell in document["cells"]:
        for run in cell["runs"]:
            assert run["test_error_pct"] == store.run(run["name"]).read_result()["test_error_pct"]
    written = {task.name: store.run(task.name).result.stat().st_mtime_ns for task in todo.all()}
    reported.clear()
    train_all(store, todo.all(), work)
    assert reported == []
    assert written == {task.name: store.run(task.name).result.stat().st_mtime_ns for task in todo.all()}

    more, more_work = small(make_npz(), seeds=2)
    train_all(store, more.all(), more_work, start_worker=train_here)
    assert sum("started" in line for line in reported) == 2  # one more seed of each

    assert collect(store, more)["other_settings"] == {}
    other, _ = small(make_npz(), seeds=1, precision="bf16")
    assert collect(store, other)["other_settings"] == {"precision fp32": 4}

    files = write_reproduction(collect(store, more), store.path)
    page = files[0].read_text()
    assert "Scaled down" in page
    assert page.count('href="WRN-40-1-l3-cifar10-') == 2
    assert json.loads(files[1].read_text())["num_seeds"] == 2
    assert "| WRN-40-1-l4 | CIFAR-10 | 5.93 |" in files[2].read_text()
    assert len(files[3].read_text().splitlines()) == 5
    assert all(file.read_bytes() for file in files)
    assert str(tmp_path) not in page


def test_the_tracker_is_passed_to_every_run(make_npz: MakeNpz, tmp_path: Path) -> None:
    (todo, work), asked = small(make_npz(), seeds=1), []

    def start(seed: int, job: dict[str, Any], log: Path, num_threads: int | None) -> Worker:
        asked.append(job["track"])
        return train_here(seed, job, log, num_threads)

    train_all(Store(tmp_path / "store"), todo.all(), work, track="wandb", start_worker=start)
    assert asked == ["wandb", "wandb"]


def test_killed_at_random_it_ends_with_the_table_of_an_undisturbed_one(make_npz: MakeNpz, tmp_path: Path) -> None:
    data = make_npz(num_train=160)
    script = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[1]); "
        "from test_reproduce import small, Store, train_all; todo, work = small(Path(sys.argv[2]), seeds=1, epochs=4); "
        "train_all(Store(Path(sys.argv[3])), todo.all(), work, num_threads=1, checkpoint_every_s=0.0)"
    )

    def begin(out: Path) -> subprocess.Popen[bytes]:
        words = [sys.executable, "-c", script, str(Path(__file__).parent), str(data), str(out)]
        return subprocess.Popen(words, stderr=subprocess.DEVNULL)

    todo, work = small(data, seeds=1, epochs=4)
    draw = random.Random(0)
    for number in (signal.SIGKILL, signal.SIGTERM):
        process = begin(tmp_path / "killed")
        time.sleep(draw.uniform(3, 7))
        process.send_signal(number)
        process.wait()
    assert begin(tmp_path / "killed").wait() == 0
    train_all(Store(tmp_path / "whole"), todo.all(), work, start_worker=train_here)
    killed, whole = (collect(Store(tmp_path / name), todo) for name in ("killed", "whole"))
    assert not killed["is_partial"]
    for document in (killed, whole):
        for cell in document["cells"]:
            for run in cell["runs"]:
                for measured in ("seconds", "train_s", "images_per_s"):
                    del run[measured]
    assert killed == whole
    for task in todo.all():
        bits = [(Store(tmp_path / name).run(task.name).weights).read_bytes() for name in ("killed", "whole")]
        assert bits[0] == bits[1]


def test_a_run_that_diverges_counts_as_failed_and_is_not_tried_again(
    make_npz: MakeNpz, tmp_path: Path, reported: list[str]
) -> None:
    (todo, work), store = (
        small(make_npz(), seeds=1, lr=1e30, epochs=2, networks=["WRN-40-2-l4"]),
        Store(tmp_path / "store"),
    )
    train_all(store, todo.all(), work, num_threads=1)
    document = collect(store, todo)
    assert [(cell["n"], cell["num_failed"], cell["verdict"]) for cell in document["cells"]] == [(0, 1, "failed")]
    assert "not finite" in document["cells"][0]["runs"][0]["failure"]
    assert not document["is_partial"]
    reported.clear()
    train_all(store, todo.all(), work)
    assert reported == []


def test_a_killed_worker_is_replaced_and_another_failure_is_reported(make_npz: MakeNpz, tmp_path: Path) -> None:
    todo, work = small(make_npz(), seeds=1)
    begun = list[str]()

    def start(code: int) -> Callable[..., Worker]:
        def start_worker(seed: int, job: dict[str, Any], log: Path, num_threads: int | None) -> Worker:
            del log, num_threads
            begun.append(job["out"])
            return Ended(seed, code)  # type: ignore[return-value]

        return start_worker

    with pytest.raises(WRNError, match="2 runs could not be trained"):
        train_all(Store(tmp_path / "killed"), todo.all(), work, start_worker=start(-9))
    assert len(begun) == 6  # three attempts each
    begun.clear()
    with pytest.raises(WRNError, match="repeat the command"):
        train_all(Store(tmp_path / "full disk"), todo.all(), work, start_worker=start(1))
    assert len(begun) == 2
    assert not list((tmp_path / "full disk").glob("*.lock"))


def test_what_another_process_trains_is_left_to_it(make_npz: MakeNpz, tmp_path: Path, reported: list[str]) -> None:
    (todo, work), store = small(make_npz(), seeds=1), Store(tmp_path / "store")
    first, second = todo.all()
    store.path.mkdir()
    lease = store.lease(first.name)
    assert lease.acquire()
    train_all(store, todo.all(), work, patience_s=0.1, start_worker=train_here)
    assert [store.state(task.name) for task in (first, second)] == ["missing", "finished"]
    assert "1 runs are being trained by another process" in reported[-1]
    assert lease.path.is_file()
    assert collect(store, todo)["is_partial"]
    lease.release()


def test_an_intent_is_on_the_disk_before_the_worker_starts(make_npz: MakeNpz, tmp_path: Path) -> None:
    (todo, work), store = small(make_npz(), seeds=1), Store(tmp_path / "store")
    found = list[dict[str, Any]]()

    def start_worker(seed: int, job: dict[str, Any], log: Path, num_threads: int | None) -> Worker:
        del log, num_threads
        found.append(store.record(Path(job["out"]).name))
        return Ended(seed, 1)  # type: ignore[return-value]

    with pytest.raises(WRNError):
        train_all(store, todo.all(), work, start_worker=start_worker)
    assert [record["attempts"] for record in found] == [1, 1]
    assert found[0]["recipe"] == todo.all()[0].recipe.to_json()
    assert found[0]["owner"]["pid"] == os.getpid()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Todo]:
    """One seed of two rows."""
    import numpy as np

    draw, place = np.random.default_rng(0), tmp_path_factory.mktemp("finished")
    arrays = {}
    for split, num in (("train", 64), ("test", 24)):
        arrays[f"x_{split}"] = draw.integers(0, 256, (num, 8, 8, 3), dtype=np.uint8)
        arrays[f"y_{split}"] = np.arange(num) % 4
    np.savez(place / "data.npz", **arrays)
    todo, work = small(place / "data.npz", seeds=1)
    store = Store(place / "store")
    train_all(store, todo.all(), work, start_worker=train_here)
    return store, todo


def test_runs_of_another_machine_are_merged_once(finished: tuple[Store, Todo], tmp_path: Path) -> None:
    theirs, todo = finished
    here = Store(tmp_path / "here")
    names = sorted(task.name for task in todo.all())
    assert here.merge(theirs.path) == names
    assert here.merge(theirs.path) == []
    mine, other = collect(here, todo), collect(theirs, todo)
    assert mine == other
    assert here.digests("cifar10") == [todo.all()[0].data_digest]


def test_a_run_that_is_not_what_its_name_says_is_not_merged(finished: tuple[Store, Todo], tmp_path: Path) -> None:
    theirs, todo = finished
    name = todo.all()[0].name
    shutil.copytree(theirs.path, tmp_path / "theirs")
    record = read_json(tmp_path / "theirs" / f"{name}.json")
    write_json(tmp_path / "theirs" / f"{name}.json", {**record, "recipe": {**record["recipe"], "lr": 0.05}})
    with pytest.raises(DataError, match="its recipe is not the one"):
        Store(tmp_path / "here").merge(tmp_path / "theirs")


def test_a_folder_without_runs_is_not_merged(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no runs of wrn reproduce"):
        Store(tmp_path / "here").merge(tmp_path)


def test_the_cost_is_extrapolated_by_operations_from_what_was_timed(make_npz: MakeNpz) -> None:
    data = make_npz()
    dataset = load_dataset(data)
    networks, changes = ["WRN-28-2", "WRN-22-2-B(3,1,3)"], {"batch_size": 16}
    todo = list_tasks(expand("table2", {}, networks=networks, scale=0.01, changes=changes), {"cifar10": ""}, 2)
    work = count_work(todo.all(), {"cifar10": dataset})
    assert {each.num_steps for each in work.values()} == {2 * (64 // 16)}
    timed = list[str]()

    def time_run(recipe: Any, _: Any) -> float:
        if timed:
            raise UsageError("does not fit")
        timed.append(recipe.network)
        return 10.0

    cost = estimate(todo.all(), {"cifar10": dataset}, work, time_run=time_run)
    small_one, large_one = sorted({each.flops for each in work.values()})
    assert cost.num_runs == 4
    assert cost.seconds == pytest.approx(2 * 10 * (1 + large_one / small_one))
    assert cost.flops == pytest.approx(2 * (small_one + large_one))
    assert cost.how == "1 of 2 networks timed, the others by operations"


def test_ranks_compare_the_order_of_rows_with_the_papers(finished: tuple[Store, Todo], tmp_path: Path) -> None:
    done, once = finished
    result = done.run(once.all()[0].name).read_result()
    expansion, store = expand("table2", {}), Store(tmp_path)
    todo = list_tasks(expansion, {"cifar10": "none"}, 1)
    for cell, tasks in todo.tasks:  # errors in the paper's order
        run = store.run(tasks[0].name)
        run.path.mkdir()
        run.write_result({**result, "test_error_pct": 2 * (cell.published_pct or 0)}, {})
    rank = collect(store, todo)["ranks"]["cifar10"]
    assert (rank["n"], rank["tau"]) == (6, pytest.approx(1.0))
    assert rank["p_value"] < 0.01


def test_runs_are_spread_over_the_gpus_of_a_machine(tmp_path: Path) -> None:
    started = list[tuple[str, Ended]]()

    def start(seed: int, job: dict[str, Any], log: Path, num_threads: int | None, *, gpu: str) -> Worker:
        del job, log, num_threads
        started.append((gpu, Ended(seed, None)))
        return started[-1][1]  # type: ignore[return-value]

    start_worker = OverGPUs(["2", "5"], start=start)
    for seed in range(3):
        start_worker(seed, {}, tmp_path, None)
    started[1][1].code = 0  # the one on GPU 5 has ended
    start_worker(3, {}, tmp_path, None)
    assert [gpu for gpu, _ in started] == ["2", "5", "2", "5"]


def test_a_worker_sees_only_its_gpu(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho $CUDA_VISIBLE_DEVICES >&2\n")
    python.chmod(0o700)
    worker = Worker(0, {}, tmp_path / "log", None, gpu="5", python=python)
    while worker.poll() is None:
        time.sleep(0.01)
    assert (tmp_path / "log").read_text() == "5\n"
