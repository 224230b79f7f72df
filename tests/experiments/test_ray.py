"""Reproductions on a real Ray cluster of two nodes on loopback: a node dies, the driver dies, somebody stops it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from test_reproduce import MakeNpz, small

from wideresnet.experiments.collect import collect
from wideresnet.experiments.reproduce import Todo, train_all
from wideresnet.experiments.store import Store
from wideresnet.weights.checkpoint import newest_checkpoint

pytest.importorskip("ray", reason="Ray is not installed: pip install 'wideresnet[ray]'")
pytestmark = pytest.mark.slow

HERE = Path(__file__).parent

DRIVER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_reproduce import Store, small, train_all
from wideresnet.base import progress
from wideresnet.experiments.cluster import connect

class Lines(progress.Silent):
    def report(self, message):
        print(message, file=sys.stderr, flush=True)

progress.set_reporter(Lines())
data, out, seeds, epochs, every_s = Path(sys.argv[2]), Path(sys.argv[3]), *map(int, sys.argv[4:7])
todo, work = small(data, seeds=seeds, epochs=epochs)
with connect(out, paths=[data]) as cluster:
    print(cluster.text, file=sys.stderr)
    train_all(Store(out), todo.all(), work, at_once=100, num_threads=cluster.share.cpus, checkpoint_every_s=every_s,
              start_worker=cluster.start)
"""


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Two nodes of one CPU each, which RAY_ADDRESS leads to; yields the pids of their raylets, the head's first."""
    folder = tempfile.mkdtemp(prefix="wrn-ray-", dir="/tmp")  # the path of a socket is limited to 107 characters
    monkeypatch.setenv("RAY_TMPDIR", folder)
    monkeypatch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # with this, Ray listens on loopback alone
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    script = [sys.executable, str(HERE / "ray_nodes.py")]
    process = subprocess.Popen(script, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        started = json.loads(process.stdout.readline())
        monkeypatch.setenv("RAY_ADDRESS", started["address"])
        yield started["raylets"]
    finally:
        process.stdin.close()
        process.wait()
        process.stdout.close()
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def drive(
    data: Path, out: Path, *, seeds: int, epochs: int, checkpoint_every_s: int
) -> Iterator[subprocess.Popen[str]]:
    """Start a reproduction on the cluster in a process of its own."""
    words = [HERE, data, out, seeds, epochs, checkpoint_every_s]
    script = [sys.executable, "-W", "error::UserWarning:wideresnet", "-c", DRIVER, *map(str, words)]
    with subprocess.Popen(script, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_for(look: Callable[[], Any], what: str, seconds: float = 120.0) -> Any:
    """Return what `look` returns, once that is true."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if found := look():
            return found
        time.sleep(0.05)
    raise AssertionError(f"not within {seconds} s: {what}")


def actors(log: Path) -> list[int]:
    """The process IDs of the actors that have started a run's process, from its log."""
    return [int(pid) for pid in re.findall(r"on node .*, pid (\d+)$", log.read_text(), re.MULTILINE)]


def parent_of(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except FileNotFoundError:
        return -1


def epochs_in(log: Path) -> list[int]:
    return [int(number) for number in re.findall(r"^epoch +(\d+)  lr", log.read_text(), re.MULTILINE)]


def saved_step(store: Store, name: str) -> int:
    found, damaged = newest_checkpoint(store.run(name).checkpoint, set_aside=False)
    assert found is not None
    assert not damaged
    return found.step


def results(store: Store, todo: Todo) -> dict[str, Any]:
    """The table of a reproduction, without times."""
    document = collect(store, todo)
    for cell in document["cells"]:
        for run in cell["runs"]:
            for measured in ("seconds", "train_s", "images_per_s"):
                del run[measured]
    return document


def test_a_lost_node_costs_nothing_and_changes_no_bit(nodes: list[int], make_npz: MakeNpz, tmp_path: Path) -> None:
    data, epochs = make_npz(num_train=160), 40
    there, here = Store(tmp_path / "ray"), Store(tmp_path / "local")

    def in_the_middle() -> str | None:
        """A run on the second node that has trained for some epochs."""
        for log in there.path.glob("*.log"):
            if log.name != "ray.log" and len(epochs_in(log)) > 5 and parent_of(actors(log)[-1]) == nodes[1]:
                return log.stem
        return None

    with drive(data, there.path, seeds=2, epochs=epochs, checkpoint_every_s=1) as driver:
        victim = wait_for(in_the_middle, "a run trains on the second node")
        os.kill(nodes[1], signal.SIGKILL)
        out, said = driver.communicate(timeout=600)
    assert driver.returncode == 0, said
    assert out == ""  # where the result belongs

    todo, work = small(data, seeds=2, epochs=epochs)
    names = [task.name for task in todo.all()]
    attempts = {name: there.record(name)["attempts"] for name in names}
    assert attempts == {name: 1 + (name == victim) for name in names}  # that one was continued, the others not touched
    for name in names:
        log = there.log(name)
        assert len(actors(log)) == attempts[name]
        assert epochs_in(log) == list(range(1, epochs + 1))  # in both attempts together: none twice, none left out
        assert len(re.findall("^resumed from step", log.read_text(), re.MULTILINE)) == attempts[name] - 1
    assert f"{victim}: lost with its node" in said
    assert not list(there.path.glob("*.lock"))

    train_all(here, todo.all(), work, num_threads=1, at_once=2)
    assert results(there, todo) == results(here, todo)
    for name in names:
        ours, theirs = (store.run(name) for store in (there, here))
        assert ours.weights.read_bytes() == theirs.weights.read_bytes(), name
        records = ([epoch | {"train_s": 0} for epoch in run.read_metrics()] for run in (ours, theirs))
        assert next(records) == next(records), name


def test_without_its_driver_a_run_saves_a_checkpoint_and_ends(
    nodes: list[int], make_npz: MakeNpz, tmp_path: Path
) -> None:
    del nodes
    store = Store(tmp_path / "store")
    todo, _ = small(make_npz(), seeds=1, epochs=100_000)
    runs = [task.name for task in todo.all()]
    locks = [store.path / f"{name}.worker.lock" for name in runs]
    with drive(make_npz(), store.path, seeds=1, epochs=100_000, checkpoint_every_s=3600) as driver:
        wait_for(lambda: all(store.log(name).is_file() and len(epochs_in(store.log(name))) > 3 for name in runs),
                 "both runs train")  # fmt: skip
        pids = [json.loads(lock.read_text())["pid"] for lock in locks]
        driver.kill()
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), "the processes have ended", 30.0)
    assert not any(map(Path.is_file, locks))
    for name in runs:
        # without a stop there would be the checkpoint after the first step alone
        assert saved_step(store, name) >= 3 * 4
        assert store.state(name) == "begun"


def test_after_ctrl_c_running_runs_are_saved_and_queued_ones_were_never_begun(
    nodes: list[int], make_npz: MakeNpz, tmp_path: Path
) -> None:
    del nodes
    store = Store(tmp_path / "store")
    todo, _ = small(make_npz(), seeds=2, epochs=100_000)
    names = [task.name for task in todo.all()]

    def training() -> list[str]:
        return [name for name in names if store.log(name).is_file() and len(epochs_in(store.log(name))) > 3]

    with drive(make_npz(), store.path, seeds=2, epochs=100_000, checkpoint_every_s=3600) as driver:
        wait_for(lambda: len(training()) == 2, "two runs train")
        driver.send_signal(signal.SIGINT)
        _, said = driver.communicate(timeout=60)
    assert "stopped; 0 of 4 runs have ended, the running ones are saved" in said, said
    assert "could not be trained" not in said
    assert sorted(store.state(name) for name in names) == ["begun", "begun", "missing", "missing"]
    for name in training():
        assert saved_step(store, name) >= 3 * 4
    assert not list(store.path.glob("*.lock"))


def test_a_node_that_does_not_see_the_data_is_named(nodes: list[int], tmp_path: Path) -> None:
    del nodes
    script = (
        "import sys; from pathlib import Path; from wideresnet.experiments.cluster import connect\n"
        "with connect(Path(sys.argv[1]), paths=[Path(sys.argv[2])]): pass"
    )
    words = [sys.executable, "-c", script, str(tmp_path / "store"), str(tmp_path / "data")]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert re.search(rf"UsageError: on='ray': node .* does not see data={tmp_path / 'data'}; put it", done.stderr)
