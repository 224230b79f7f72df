"""Every module can be imported on a system that lacks what only Unix has."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import importlib, os, pkgutil, signal, sys

# libraries may use what the system has; they have their own ways around it on others
for name in ("matplotlib.pyplot", "multiprocessing.util", "numpy", "PIL.Image", "pyarrow.parquet", "rich.progress",
             "safetensors.torch", "sklearn.datasets", "torch", "torch.distributed", "torchvision.datasets"):
    importlib.import_module(name)

for name in ("fcntl", "grp", "pty", "pwd", "resource", "syslog", "termios", "tty"):
    sys.modules[name] = None  # importing it raises ImportError
for module, names in {
    os: ("fork", "getegid", "geteuid", "getgid", "getloadavg", "getpgid", "getuid", "initgroups", "killpg", "mkfifo",
         "nice", "openpty", "sched_getaffinity", "sched_setaffinity", "setsid", "statvfs", "sysconf", "uname", "wait"),
    signal: ("SIGALRM", "SIGHUP", "SIGKILL", "SIGUSR1", "SIGUSR2", "alarm", "pthread_sigmask", "setitimer"),
}.items():
    for name in names:
        if hasattr(module, name):
            delattr(module, name)

import wideresnet

modules = [module.name for module in pkgutil.walk_packages(wideresnet.__path__, "wideresnet.")]
failed = {}
for name in modules:
    if name == "wideresnet.__main__":
        continue
    try:
        importlib.import_module(name)
    except Exception as error:
        failed[name] = repr(error)
print(len(modules), failed)
if failed or len(modules) < 50:
    sys.exit(1)

sys.platform = "win32"
from wideresnet.kernels.library import start_build, why_unavailable
from wideresnet.machine.cpu import usable_cpus
from wideresnet.machine.description import describe
from wideresnet.machine.memory import available_memory_bytes, keep_memory

start_build()
keep_memory()
print(why_unavailable())
print(usable_cpus() >= 1, describe("cpu")["usable_cpus"] >= 1, available_memory_bytes("cpu") >= 0)
"""


def test_every_module_can_be_imported_and_the_machine_described_without_what_only_unix_has() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[1:] == ["the kernels are for Linux and macOS", "True True True"]
