"""The pool of threads: every part of a loop runs once, whoever calls, forks or shares the cores."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from fake_compilers import GCC
from native import COMPILERS, compile_driver, sanitize
from native import run as run_program
from torch import nn

from wideresnet.kernels import ops
from wideresnet.kernels.library import Loader, why_unavailable
from wideresnet.kernels.quantized import QuantizedConv, Quantizer


@pytest.fixture
def needs_kernels() -> None:
    if reason := why_unavailable():
        pytest.skip(reason)


def run(code: str, **options: object) -> subprocess.CompletedProcess[str]:
    """Run Python that has the kernels and uses two threads at first."""
    head = """
import os, signal, sys, threading, time, torch
from wideresnet.kernels import ops
signal.alarm(60)
torch.manual_seed(0)
torch.set_num_threads(2)
x, weight = ops.channels_last(torch.randn(2, 32, 32, 32)), ops.transform_weight(torch.randn(64, 32, 3, 3))
def compute(threads=2):
    torch.set_num_threads(threads)
    y = ops.convolve(x, weight)[0]
    torch.set_num_threads(1)  # PyTorch itself may not start threads in a fork
    return y
"""
    command = [sys.executable, "-W", "ignore", "-c", head + code]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, **options)  # type: ignore[call-overload]


def drive(tmp_path: Path, compiler: str, *flags: str, pool_flags: tuple[str, ...] = (), num_forks: int = 5) -> None:
    """Compile and run the C driver."""
    program = compile_driver(tmp_path, compiler, "pool_driver.c", ["pool.c"], *flags, source_flags=pool_flags)
    run_program([str(program), str(num_forks)])


@pytest.mark.parametrize("compiler", COMPILERS)
def test_every_index_runs_once_for_several_callers_and_in_forks(compiler: str, tmp_path: Path) -> None:
    drive(tmp_path, compiler)


@pytest.mark.skipif(GCC is None, reason="no C compiler here")
def test_without_threads_the_caller_runs_everything(tmp_path: Path) -> None:
    drive(tmp_path, str(GCC), pool_flags=("-Dpthread_create=start_nothing",))


@pytest.mark.parametrize("sanitizer", ["thread", "address,undefined"])
@pytest.mark.parametrize("compiler", COMPILERS)
def test_sanitizers_have_no_complaints(compiler: str, sanitizer: str, tmp_path: Path) -> None:
    flag = sanitize(tmp_path, compiler, sanitizer)
    drive(tmp_path, compiler, flag, num_forks=0 if sanitizer == "thread" else 5)  # it does not support threads of forks


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("compiler", COMPILERS)
def test_each_compiler_makes_a_library(compiler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", compiler)
    x = torch.arange(2.0 * 16).reshape(2, 16)
    y, one = torch.empty_like(x), torch.ones(16)
    Loader().library().wrn_activate(x.data_ptr(), 2, 16, one.data_ptr(), one.data_ptr(), y.data_ptr(), 2)
    assert torch.equal(y, x + 1)


@pytest.mark.usefixtures("needs_kernels")
def test_python_threads_at_once_compute_what_one_does() -> None:
    torch.manual_seed(0)
    x, weight = ops.channels_last(torch.randn(3, 32, 33, 31)), torch.randn(48, 32, 3, 3)
    gradient, q = ops.channels_last(torch.randn(3, 48, 33, 31)), (torch.rand(2, 13, 9, 32) * 255).byte()
    conv = QuantizedConv(nn.Conv2d(32, 48, 3, padding=1, bias=False), torch.ones(32, dtype=torch.float64))
    quantizer = Quantizer(torch.rand(48), torch.rand(48))

    def compute() -> list[torch.Tensor]:
        torch.set_num_threads(3)  # OpenMP's setting belongs to the thread
        values, result = conv(q.permute(0, 3, 1, 2), quantizer=quantizer)
        y, sums = ops.convolve(x, ops.transform_weight(weight), summed=True)
        assert values is not None
        assert result is not None
        assert sums is not None
        return [values, result, y, sums, ops.convolve_weight_gradient(x, gradient), ops.statistics(x)]

    before = torch.get_num_threads()
    failures: list[BaseException] = []

    def repeat() -> None:
        try:
            for _ in range(30):
                assert all(torch.equal(a, b) for a, b in zip(compute(), wanted, strict=True))
        except BaseException as error:
            failures.append(error)

    try:
        wanted = compute()
        callers = [threading.Thread(target=repeat) for _ in range(3)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
    finally:
        torch.set_num_threads(before)
    assert not failures


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.usefixtures("needs_kernels")
def test_a_fork_while_another_thread_computes_uses_threads_of_its_own() -> None:
    done = run("""
wanted = compute(4)
stop = threading.Event()
def others():
    while not stop.is_set(): compute(3)
thread = threading.Thread(target=others)
thread.start()
for _ in range(10):
    if not (child := os.fork()):
        signal.alarm(30)
        os._exit(0 if torch.equal(compute(3), wanted) and torch.equal(compute(1), wanted) else 3)
    assert os.waitpid(child, 0)[1] == 0
stop.set()
thread.join()
assert torch.equal(compute(4), wanted)
""")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.usefixtures("needs_kernels")
@pytest.mark.parametrize("how", ["pass", "time.sleep(0.3)"], ids=["spinning", "asleep"])
def test_threads_of_the_pool_neither_keep_a_process_alive_nor_disturb_its_end(how: str) -> None:
    done = run(f"compute(5)\n{how}")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.usefixtures("needs_kernels")
def test_signals_are_left_to_the_threads_of_the_program() -> None:
    done = run("""
before = set(os.listdir("/proc/self/task"))
library = ops.library()
library.wrn_activate(x.data_ptr(), 64, 1024, x.data_ptr(), x.data_ptr(), x.data_ptr(), 3)
for task in set(os.listdir("/proc/self/task")) - before:
    blocked = next(line for line in open(f"/proc/self/task/{task}/status") if line.startswith("SigBlk"))
    print(all(int(blocked.split()[1], 16) >> (number - 1) & 1 for number in (signal.SIGINT, signal.SIGTERM)))
""")
    assert (done.stdout.split(), done.stderr) == (["True"], "")


@pytest.mark.skipif(sys.platform != "linux", reason="about GNU's OpenMP")
@pytest.mark.usefixtures("needs_kernels")
@pytest.mark.parametrize(("setting", "expected"), [({}, 1), ({"GOMP_SPINCOUNT": "3000"}, 0)], ids=str)
def test_pytorchs_threads_get_a_second_team_once_unless_they_spin_shortly(
    setting: dict[str, str], expected: int
) -> None:
    environ = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    done = run(
        """
for threads in (2, 3, 2, 1): compute(threads)
print(sum("second team" in thread.name for thread in threading.enumerate()), torch.get_num_threads())
""",
        env={**environ, **setting},
    )
    assert (done.stdout.split(), done.stderr) == ([str(expected), "1"], "")
