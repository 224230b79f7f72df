"""Runs a function in several processes of one world, as torchrun would have started them, but in a second."""

from __future__ import annotations

import multiprocessing
import os
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from typing import Any

from torch.distributed import TCPStore  # type: ignore[attr-defined]

MODULES = ["wideresnet.training", "wideresnet.distributed.sync_norm"]


def in_processes(num: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What `function(*arguments)` returns in each process, in order of rank; where it fails, one line that says how.

    A process that is killed returns its exit code. The function must be importable.
    """
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(MODULES)  # imports PyTorch once, not once a process
    store = TCPStore("localhost", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=60))
    processes, ends = [], []
    for rank in range(num):
        environment = {
            "RANK": str(rank),
            "WORLD_SIZE": str(num),
            "LOCAL_RANK": str(rank),
            "LOCAL_WORLD_SIZE": str(num),
            "MASTER_ADDR": "localhost",
            "MASTER_PORT": str(store.port),
            "TORCHELASTIC_RUN_ID": "test",
            "TORCHELASTIC_USE_AGENT_STORE": "True",
            "OMP_NUM_THREADS": "1",
            "WRN_DATA": os.environ["WRN_DATA"],
        }
        end, other = multiprocessing.Pipe(duplex=False)
        process = server.Process(target=_run, args=(environment, other, function, arguments))
        process.start()
        other.close()
        processes.append(process)
        ends.append(end)
    answers = [_receive(end) for end in ends]
    for process in processes:
        process.join()
    return [process.exitcode if answer is None else answer for process, answer in zip(processes, answers, strict=True)]


def _receive(end: Connection) -> Any:
    wait([end], timeout=120)
    try:
        return end.recv()
    except EOFError:  # killed, or gone in silence
        return None


def _run(
    environment: dict[str, str], end: Connection, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    os.environ.update(environment)
    import torch

    torch.set_num_threads(1)
    try:
        end.send(function(*arguments))
    except Exception as error:
        if type(error).__module__ == "builtins":
            traceback.print_exc()
        end.send(f"{type(error).__name__}: {error}")
