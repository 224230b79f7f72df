"""`wrn train` in several processes: killed, interrupted, resumed, by its own launcher and by torchrun."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from processes import in_processes
from world_runs import MakeNpz, metrics, run, small, weights

from wideresnet.spec.record import RunFolder


def children_of(pid: int) -> list[int]:
    lines = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    pairs = (map(int, line.split()) for line in lines.splitlines())
    return sorted(child for child, parent in pairs if parent == pid)


def start(*command: str) -> subprocess.Popen[str]:
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", *command], env=env, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def wait_for_new_checkpoint(folder: RunFolder, process: subprocess.Popen[str]) -> None:
    seen = {path.name for path in folder.checkpoint.glob("step-*")}
    deadline = time.monotonic() + 120
    while not {path.name for path in folder.checkpoint.glob("step-*")} - seen - {"step-000000000"}:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def listeners(pid: int) -> list[str]:
    """Local addresses, as /proc/net has them, on which a process listens."""
    inodes: set[str] = set()
    with contextlib.suppress(FileNotFoundError):  # it has ended, as a compiler soon does
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # closed since it was listed
                inodes.add(str(descriptor.readlink()))
    tables = (Path(f"/proc/net/{name}") for name in ("tcp", "tcp6"))  # of the network that all processes here share
    rows = [line.split() for table in tables if table.exists() for line in table.read_text().splitlines()]
    listening = "0A"
    return [row[1].split(":")[0] for row in rows if row[3] == listening and f"socket:[{row[9]}]" in inodes]


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="the system lists no sockets")
def test_no_process_listens_to_other_machines(make_npz: MakeNpz, tmp_path: Path) -> None:
    loopback = {"0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F"}
    folder = RunFolder(tmp_path / "run")
    process = start(
        "wideresnet", "train", "WRN-10-1", "--data", str(make_npz(num_train=256)), "--epochs", "200", "--crop-padding",
        "1", "--batch-size", "16", "--processes", "2", "--checkpoint-every", "0.05", "--out", str(folder.path),
    )  # fmt: skip
    try:
        wait_for_new_checkpoint(folder, process)
        pids = children_of(process.pid)
        assert len(pids) >= 2
        found = {address for pid in (process.pid, *pids) for address in listeners(pid)}
        assert found  # gloo's, or the test would prove nothing
        assert found <= loopback
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)


@pytest.mark.slow
def test_kill_9_then_ctrl_c_then_torchrun_end_in_the_weights_of_a_run_that_was_never_stopped(
    make_npz: MakeNpz, tmp_path: Path
) -> None:
    recipe = small(make_npz(num_train=256), epochs=6, dropout=0.2)
    in_processes(2, run, recipe, tmp_path / "whole")
    folder = RunFolder(tmp_path / "cut")
    (tmp_path / "recipe.json").write_text(json.dumps(recipe.to_json()))
    train = ["wideresnet", "train", "--recipe", str(tmp_path / "recipe.json"), "--out", str(folder.path)]
    more = ["--processes", "2", "--checkpoint-every", "0.05"]

    process = start(*train, *more)
    wait_for_new_checkpoint(folder, process)
    first, second = children_of(process.pid)
    os.kill(second, signal.SIGKILL)
    killed = time.monotonic()
    _, err = process.communicate(timeout=60)
    assert time.monotonic() - killed < 20
    assert process.returncode == 1
    said = [line for line in err.splitlines() if line.startswith("wrn:")]
    assert len(said) == 1, err
    assert re.search(r"process 1 of 2 .* was killed: .*--resume --out .*cut --processes 2$", said[0])
    assert "Traceback" not in err
    assert "signal" not in err  # what torchrun would report
    for pid in (first, second):
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)

    resume = ["wideresnet", "train", "--resume", "--out", str(folder.path)]
    process = start(*resume, *more)
    wait_for_new_checkpoint(folder, process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    said = [line for line in err.splitlines() if line.startswith("wrn:")]
    assert len(said) == 1, err
    assert "everything is saved; continue with: wrn train --resume" in said[0]

    process = start("torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", *resume, "--json")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert json.loads(out)["num_processes"] == 2  # one document, from one process
    assert weights(folder.path) == weights(tmp_path / "whole")
    assert metrics(folder.path) == metrics(tmp_path / "whole")
    assert "--processes 2" in json.loads(folder.env.read_text())["command"]
