"""PyTorch's number of threads."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import torch

from wideresnet.machine.cpu import usable_cpus


def limit_threads(root: Path = Path("/"), environ: Mapping[str, str] = os.environ) -> None:
    """Lower PyTorch's number of threads to the usable CPUs, unless OMP_NUM_THREADS is set.

    PyTorch itself knows the CPU affinity but not a container's quota: it would start a thread for every CPU of the
    machine, and they would spend most of each quota period stopped.

    Args:
        root: the folder that holds `proc` and `sys`.
        environ: the environment in which the user may have set OMP_NUM_THREADS.
    """
    if "OMP_NUM_THREADS" not in environ and torch.get_num_threads() > (threads := usable_cpus(root)):
        torch.set_num_threads(threads)
