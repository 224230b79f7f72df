"""`wrn train --processes N`: torchrun's own machinery, called from Python."""

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
    """Whether this process is one of the `num_processes` already, or is alone as asked.

    Raises:
        UsageError: fewer than one, or torchrun has started another number.
    """
    if num_processes < 1:
        raise UsageError(f"--processes {num_processes}: must be at least 1")
    started = int(os.environ["WORLD_SIZE"]) if "TORCHELASTIC_RUN_ID" in os.environ else None
    if started not in (None, num_processes):
        raise UsageError(f"--processes {num_processes}: torchrun has started {started}; leave out --processes")
    return started is not None or num_processes == 1


def launch(num_processes: int, argv: Sequence[str]) -> int:
    """Run `wrn` with these arguments in several processes of this machine, and wait for them.

    Returns:
        0, or the exit code of the process that failed; that process has said why.

    Raises:
        WRNError: a process was killed and none could say so.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # the processes speak for themselves
    with tempfile.TemporaryDirectory(prefix="wideresnet-") as said:
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=num_processes,
            run_id="wideresnet",
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",  # any free port, so that several runs fit on one machine
            local_addr="localhost",
            max_restarts=0,
            logs_specs=DefaultLogsSpecs(log_dir=said),
        )
        try:
            elastic_launch(config, sys.executable)("-m", "wideresnet", *argv)
        except SignalException:  # passed on to the processes, which have saved their work and said how to go on
            return 130
        except ChildFailedError as failed:
            failures = failed.failures
            spoken = any(Path(said).rglob("error.json"))
        else:
            return 0
    codes = [failure.exitcode for failure in failures.values()]
    killed = {rank: -failure.exitcode for rank, failure in failures.items() if failure.exitcode < 0}
    own = {rank: number for rank, number in killed.items() if number != signal.SIGTERM}  # the launcher ends the others
    if not spoken and killed:
        rank, number = next(iter((own or killed).items()))
        raise WRNError(
            f"process {rank} of {num_processes} (from 0) was ended by {signal.Signals(number).name}: the run has "
            "stopped; go on from its last checkpoint, if it has one, with --resume"
        )
    return next((code for code in codes if code > 0), 1)
