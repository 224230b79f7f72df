"""One image beside other programs: nobody waits for a thread that the system does not schedule."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

MOST = 3.0  # times the quiet median; 1.5 to 2 is what one thread takes
TRIES = 3

CODE = """
import json, os, statistics, subprocess, time, torch
from wideresnet import create, quantize
from wideresnet.kernels import ops
cpus = sorted(os.sched_getaffinity(0))[:2]
os.sched_setaffinity(0, cpus)
torch.manual_seed(0)
torch.set_num_threads(2)
network, image = quantize(create("WRN-16-4", 10).eval(), torch.randn(64, 3, 32, 32)), torch.randn(1, 3, 32, 32)
x, weight = ops.empty(1, 64, 32, 32).normal_(), ops.transform_weight(torch.randn(64, 64, 3, 3))
ways = {"network": lambda: network(image), "layer": lambda: ops.convolve(x, weight)}

def median_s(way):
    times, end = [], time.perf_counter() + 2
    while len(times) < 3 or (len(times) < 200 and time.perf_counter() < end):
        start = time.perf_counter()
        way()
        times.append(time.perf_counter() - start)
    return statistics.median(times)

def medians():
    return {name: median_s(way) for name, way in ways.items()}

medians()
quiet = medians()
# All threads but this one now share a processor with a busy loop, which has it whenever it wants.
loop = subprocess.Popen(["sh", "-c", "while kill -0 $PPID; do :; done"])
try:
    os.sched_setaffinity(loop.pid, cpus[1:])
    for thread in map(int, os.listdir("/proc/self/task")):
        if thread != os.getpid():
            os.sched_setaffinity(thread, cpus[1:])
            os.sched_setscheduler(thread, os.SCHED_IDLE, os.sched_param(0))
    os.sched_setaffinity(0, cpus[:1])
    busy = medians()
finally:
    loop.kill()
    loop.wait()
print(json.dumps({name: busy[name] / quiet[name] for name in ways}))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux" or len(os.sched_getaffinity(0)) < 2, reason="needs Linux and two CPUs")
@pytest.mark.usefixtures("needs_kernels")
def test_a_thread_that_the_system_does_not_schedule_costs_nothing() -> None:
    best = {"network": float("inf"), "layer": float("inf")}
    for _ in range(TRIES):  # other programs may come and go
        command = [sys.executable, "-W", "ignore", "-c", CODE]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
        except subprocess.TimeoutExpired:  # seconds for each image, where everybody waits for all threads
            continue
        best = {name: min(best[name], ratio) for name, ratio in json.loads(done.stdout).items()}
        if max(best.values()) <= MOST:
            return
    pytest.fail(f"times the quiet median: {best}")
