"""What runs on a cluster get and need; tests on a real one are in test_ray.py."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from wideresnet.base.errors import UsageError
from wideresnet.base.remote import Host
from wideresnet.commands.main import main
from wideresnet.data.dataset import digest
from wideresnet.data.load import load_dataset
from wideresnet.experiments.cluster import connect, look_around, share_of
from wideresnet.experiments.lease import Lease
from wideresnet.experiments.process import Worker
from wideresnet.spec.recipe import Recipe

CPUS, GPUS = {"CPU": 8.0}, {"CPU": 64.0, "GPU": 8.0}


def test_a_run_gets_a_cpu_or_a_gpu_with_its_part_of_the_cpus() -> None:
    shares = [share_of(nodes, None, None) for nodes in ([CPUS], [CPUS, GPUS], [GPUS, {"CPU": 8.0, "GPU": 4.0}])]
    assert [(share.cpus, share.gpus) for share in shares] == [(1, 0), (8, 1), (2, 1)]
    assert [share.room(GPUS) for share in shares] == [64, 8, 8]
    assert shares[1].room(CPUS) == 0


@pytest.mark.parametrize(
    ("cpus_each", "gpus_each", "room"), [(2, 0.0, 32), (4, 0.5, 16), (1, 0.3, 24), (8, 2.0, 4), (32, 1.0, 2)]
)
def test_room_is_what_the_scarcer_resource_allows(cpus_each: int, gpus_each: float, room: int) -> None:
    assert share_of([GPUS], cpus_each, gpus_each).room(GPUS) == room


@pytest.mark.parametrize(
    ("cpus_each", "gpus_each", "words"),
    [
        (0, None, "cpus_each=0: must be at least 1"),
        (None, 1.5, "gpus_each=1.5: must be a share"),
        (9, None, "no node of the cluster has as much; the largest has 8 CPUs and 0 GPUs"),
        (1, 1.0, "no node of the cluster has as much"),
    ],
)
def test_a_share_that_no_node_has_is_refused(cpus_each: int | None, gpus_each: float | None, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        share_of([CPUS], cpus_each, gpus_each)


def test_without_ray_the_error_names_the_command_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=r"Ray is not installed; pip install 'wideresnet\[ray\]'"), connect(tmp_path):
        pass


def test_a_client_of_ray_is_sent_to_a_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'wideresnet[ray]'")
    monkeypatch.setenv("RAY_ADDRESS", "ray://head:10001")
    with pytest.raises(UsageError, match="run this on a node of the cluster"), connect(tmp_path):
        pass


def test_shares_are_for_clusters_only(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce", "table3", "--cpus-each", "2"]) == 2
    assert "--cpus-each 2: is for a cluster; add --on ray" in capsys.readouterr().err


def test_a_node_looks_for_the_folder_and_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wideresnet.experiments.cluster.SEEN_S", 0.0)
    marker = tmp_path / ".cluster-1"
    assert look_around(marker, [])[0].startswith(f"does not see out={tmp_path}; it must be on storage that all nodes")
    marker.touch()
    assert look_around(marker, [tmp_path / "data"])[0].startswith(f"does not see data={tmp_path / 'data'}")
    problem, versions = look_around(marker, [tmp_path])
    assert problem == ""
    assert versions.keys() == {"wideresnet", "torch"}
    assert list(tmp_path.iterdir()) == [marker]


def test_on_a_node_that_does_not_see_the_folder_nothing_is_trained(tmp_path: Path) -> None:
    said = list(Host().run("wideresnet.experiments.worker", {}, tmp_path / "run.log", tmp_path / ".cluster-1"))
    assert "does not see" in said[0]["message"]
    assert said[1] == {"exit code": 2}
    assert list(tmp_path.iterdir()) == []


def start(data: Path, folder: Path, **job: Any) -> Worker:
    """Start a worker on a short run."""
    recipe = Recipe.flat(
        network="WRN-10-1", data=str(data), epochs=1, batch_size=16, crop_padding=1, device="cpu", threads=1
    )
    job = {"recipe": recipe.to_json(), "out": str(folder / "run"), "resume": False, "checkpoint_every_s": 60.0,
           "command": None, "asked": None, **job}  # fmt: skip
    return Worker(0, job, folder / "run.log", 1)


def code_of(worker: Worker) -> int:
    until = time.monotonic() + 60
    while (code := worker.poll()) is None:
        assert time.monotonic() < until
        time.sleep(0.05)
    return code


def wait_for(text: str, log: Path) -> None:
    until = time.monotonic() + 60
    while not (log.is_file() and text in log.read_text()):
        assert time.monotonic() < until, text
        time.sleep(0.05)


def test_a_worker_waits_until_the_one_before_it_has_ended(make_npz: Callable[..., Path], tmp_path: Path) -> None:
    lease = Lease(tmp_path / "run.worker.lock")
    assert lease.acquire()
    worker = start(make_npz(), tmp_path, lease=str(lease.path))
    wait_for("waiting for pid", tmp_path / "run.log")
    assert not (tmp_path / "run").exists()
    lease.release()
    assert code_of(worker) == 0
    assert (tmp_path / "run" / "result.json").is_file()
    assert not lease.path.exists()


def test_a_worker_that_waits_can_be_stopped(make_npz: Callable[..., Path], tmp_path: Path) -> None:
    lease = Lease(tmp_path / "run.worker.lock")
    assert lease.acquire()
    worker = start(make_npz(), tmp_path, lease=str(lease.path))
    wait_for("waiting for pid", tmp_path / "run.log")
    worker.stop()
    assert code_of(worker) == 130
    assert lease.path.exists()
    lease.release()


def test_a_worker_refuses_other_images_than_those_of_its_run(make_npz: Callable[..., Path], tmp_path: Path) -> None:
    data = make_npz()
    dataset = load_dataset(data)
    right = digest(dataset.train, dataset.test)
    worker = start(data, tmp_path, data_digest="0" * 16)
    assert code_of(worker) == 1
    assert "holds other images here" in worker.message
    assert not (tmp_path / "run").exists()
    assert code_of(start(data, tmp_path, data_digest=right)) == 0
