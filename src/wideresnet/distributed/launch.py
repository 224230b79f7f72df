"""Several processes on this machine: torchrun's own launcher, called from Python."""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from wideresnet.base.errors import UsageError, WRNError


def is_launched(num_processes: int) -> bool:
    """Tell whether this is already one of `num_processes` processes, or the only one that was asked for.

    Args:
        num_processes: number of processes, at least 1.

    Raises:
        UsageError: the number is less than 1, or torchrun has started another number of processes.
    """
    if num_processes < 1:
        raise UsageError(f"processes={num_processes}: must be at least 1")
    started = int(os.environ["WORLD_SIZE"]) if "TORCHELASTIC_RUN_ID" in os.environ else None
    if started not in (None, num_processes):
        raise UsageError(f"processes={num_processes}: torchrun has started {started}; leave out processes=")
    return started is not None or num_processes == 1


def launch(num_processes: int, argv: Sequence[str]) -> int:
    """Run `wrn` in several processes of this machine, and wait for them.

    Args:
        num_processes: number of processes.
        argv: the words of the command line after `wrn`.

    Returns:
        0, or the exit code of the process that failed, which has reported why.

    Raises:
        WRNError: a process was killed, and none could report it.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # the processes report by themselves
    with tempfile.TemporaryDirectory(prefix="wideresnet-") as logs:
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=num_processes,
            run_id="wideresnet",
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",  # any free port, so that several runs fit on one machine
            local_addr="localhost",
            max_restarts=0,
            logs_specs=DefaultLogsSpecs(log_dir=logs),
        )
        try:
            elastic_launch(config, sys.executable)("-m", "wideresnet", *argv)
        except SignalException:  # the processes got it, too: they have saved their work and reported how to continue
            return 130
        except ChildFailedError as failed:
            failures = failed.failures
            reported = any(Path(logs).rglob("error.json"))
        else:
            return 0
    codes = [failure.exitcode for failure in failures.values()]
    killed = {rank: -failure.exitcode for rank, failure in failures.items() if failure.exitcode < 0}
    own = {
        rank: number for rank, number in killed.items() if number != signal.SIGTERM
    }  # by which the launcher ends the others
    if not reported and killed:
        rank, number = next(iter((own or killed).items()))
        raise WRNError(
            f"process {rank} of {num_processes} (counted from 0) was ended by {signal.Signals(number).name}: the run "
            "has stopped; continue from its last checkpoint, if there is one, with resume=True"
        )
    return next((code for code in codes if code > 0), 1)
