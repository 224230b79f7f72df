"""Several processes that train one network: who they are, what they agree on, how they end together.

They are started by torchrun, or by `wrn train --processes N` (see `launch`). Every process has all training images and
the whole network, computes its share of each batch, and after the exchange of gradients takes the same step as the
others, so that all weights stay equal to the last bit. Processes on several machines must see the same run folder. Only
the first process writes and reports.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from wideresnet.base.errors import UsageError
from wideresnet.base.seeding import seed_of
from wideresnet.distributed.collectives import all_reduce_max, broadcast, noticing_loss
from wideresnet.distributed.launch import STORE, reported_file
from wideresnet.machine.cpu import usable_cpus

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

TIMEOUT = timedelta(minutes=10)
"""How long a process waits for the others. One that was killed is noticed at once; this is for one that hangs. It is
much longer than a step, the last batch of an evaluation, or a compilation takes."""

SIGN_OFF_S = 1.0
"""How long the remaining processes have to sign off before the others are reported as missing."""

_visits = itertools.count()  # one torchrun job may train several times, each time with its own keys in the store


@dataclass(frozen=True)
class World:
    """The processes that train together, seen from one of them.

    Attributes:
        rank: number of this process, from 0; process 0 writes and reports.
        size: number of processes.
        local_rank: number of this process on its machine, which is also the number of its GPU.
        depth: the generator of stochastic depth, equal in all processes.
        store: the launcher's key-value store, which outlives the processes; None for a single process.
        launcher_pid: the process that started this one.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    depth: torch.Generator = field(default_factory=torch.Generator, repr=False, compare=False)
    store: Store | None = field(default=None, repr=False, compare=False)
    launcher_pid: int = field(default_factory=os.getppid, repr=False, compare=False)

    @staticmethod
    def single() -> World:
        """Return the world of one process alone."""
        return World()

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes and reports."""
        return self.rank == 0

    def use(self, device: str) -> None:
        """Make "cuda" mean this process's own GPU.

        Args:
            device: "cpu" or "cuda"; nothing happens for "cpu".

        Raises:
            UsageError: there are more processes than GPUs.
        """
        if self.size == 1 or device != "cuda":
            return
        if self.local_rank >= (num_gpus := torch.cuda.device_count()):
            raise UsageError(
                f"processes={self.size}: each needs its own GPU, and this machine has {num_gpus}; use "
                f"processes={num_gpus} or device='cpu'"
            )
        torch.cuda.set_device(self.local_rank)

    def seed_step(self, seed: int, step: int) -> None:
        """Seed the random draws of a step: dropout differs between processes, stochastic depth is equal in all.

        Args:
            seed: the run's seed.
            step: counted from 0.
        """
        whole = seed_of(seed, "step", step)
        self.depth.manual_seed(whole)
        own = whole if self.size == 1 else seed_of(seed, "step", step, self.rank)
        torch.default_generator.manual_seed(own)  # cheaper than torch.manual_seed, which looks for devices of all kinds
        if torch.cuda.is_initialized():
            torch.cuda.default_generators[torch.cuda.current_device()].manual_seed(own)

    @contextmanager
    def first_alone(self) -> Iterator[None]:
        """Run a block in the first process alone, then in the others.

        This is for work that leaves files for the others to find, such as downloads and decoded images. It may take
        any time; the launcher ends all processes if the first one dies.
        """
        if self.store is None:
            yield
            return
        key = f"passed/{self.store.add(f'first_alone/{self.rank}', 1)}"
        with noticing_loss():
            while not self.is_first and not self.store.check([key]):
                time.sleep(0.05)  # store.wait could not be interrupted by Ctrl-C
        yield
        if self.is_first:
            self.store.set(key, "")

    def agree(self, value: Any) -> Any:
        """Return the first process's value in every process.

        Args:
            value: what JSON can hold; ignored in the other processes.
        """
        if self.size == 1:
            return value
        content = bytearray(json.dumps(value).encode() if self.is_first else b"")
        length = torch.tensor([len(content)])
        broadcast(length)
        content = content if self.is_first else bytearray(int(length))
        broadcast(torch.frombuffer(content, dtype=torch.uint8))
        return json.loads(content)

    def any_of(self, *flags: bool) -> tuple[bool, ...]:
        """Tell for each flag whether it is set in any process. All get the same answer and act at the same step.

        The flags travel between hosts over gloo even if gradients use NCCL: nothing waits for a GPU, and a killed
        process is noticed here.

        Args:
            flags: the first one is a request to stop; a process whose launcher has ended sets it, too.
        """
        if self.size == 1:
            return flags
        orphaned = os.getppid() != self.launcher_pid
        told = torch.tensor([flags[0] or orphaned, *flags[1:]], dtype=torch.uint8)
        all_reduce_max(told)
        return tuple(bool(flag) for flag in told.tolist())

    def meet(self) -> None:
        """Wait until every process has called this."""
        self.any_of(False)

    def copy_first(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite tensors with those of the first process."""
        if self.size > 1:
            for tensor in tensors:
                broadcast(tensor)

    def gather_rows(self, parts: list[Tensor], counts: list[int]) -> Tensor:
        """Concatenate the rows of all processes in order of rank.

        Args:
            parts: this process's rows, float32 (n, C) each, on the CPU; the first process must have at least one.
            counts: number of rows of each process.

        Returns:
            float32 (sum of counts, C), the same in every process.
        """
        if self.size == 1:
            return torch.cat(parts)
        every = torch.empty(sum(counts), self.agree(parts[0].shape[1] if parts else 0))
        for rank, rows in enumerate(every.split(counts)):
            if rank == self.rank and parts:
                torch.cat(parts, out=rows)
            if len(rows):
                broadcast(rows, rank)
        return every

    def name_missing(self) -> str:
        """Describe which processes have ended, after one was lost."""
        _ignore_signals()  # the launcher now ends all processes; this one still has to say why
        if self.store is None:
            return "a process has ended"
        try:
            self.store.set(f"left/{self.rank}", "")
            time.sleep(SIGN_OFF_S)
            missing = [rank for rank in range(self.size) if not self.store.check([f"left/{rank}"])]
        except RuntimeError:
            return "the launcher has ended"
        if not missing:
            return f"the {self.size} processes have lost their connection"
        names = ", ".join(map(str, missing))
        subject, verb = ("process", "was") if len(missing) == 1 else ("processes", "were")
        return f"{subject} {names} of {self.size} (counted from 0) {verb} killed"


@contextmanager
def join(world: World | None = None) -> Iterator[World]:
    """Join the processes that torchrun has started; without torchrun, yield a world of this process alone.

    If this process fails, the others end, too. Only the first one that fails says why; the others exit silently.

    Args:
        world: processes that have joined already; then nothing happens.
    """
    if world is not None:
        yield world
        return
    size = int(os.environ.get("WORLD_SIZE", "1"))
    own_store = os.environ.get(STORE)
    if size == 1 or not dist.is_available() or not (own_store or dist.is_torchelastic_launched()):
        yield World.single()
        return
    from torch.distributed.distributed_c10d import FileStore, PrefixStore
    from torch.distributed.rendezvous import rendezvous

    share_cpus(int(os.environ["LOCAL_WORLD_SIZE"]), os.getppid())
    if own_store:
        store, rank = FileStore(own_store, size), int(os.environ["RANK"])
    else:
        store, rank, size = next(rendezvous("env://", timeout=TIMEOUT))
    store = PrefixStore(f"wideresnet/{next(_visits)}", store)
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=TIMEOUT)
    world = World(rank, size, int(os.environ["LOCAL_RANK"]), store=store)
    try:
        world.meet()  # no process may leave while another one is still connecting
        yield world
    except BaseException as error:
        _leave(world, store, error)
        raise
    dist.destroy_process_group()


def share_cpus(num_processes: int, launcher_pid: int) -> None:
    """Divide the usable CPUs among the processes of a machine, unless the user has set OMP_NUM_THREADS.

    torchrun sets OMP_NUM_THREADS to 1 if the user has not. The environment that torchrun itself was started with tells
    which of the two it was.

    Args:
        num_processes: processes on this machine.
        launcher_pid: process of torchrun.
    """
    try:
        is_users = b"OMP_NUM_THREADS=" in Path(f"/proc/{launcher_pid}/environ").read_bytes()
    except OSError:  # not Linux
        is_users = "OMP_NUM_THREADS" in os.environ
    if not is_users:
        torch.set_num_threads(max(1, usable_cpus() // num_processes))


def _leave(world: World, store: Store, error: BaseException) -> None:
    """Before an error ends this process: return if it is the one to report, else exit silently."""
    from torch.distributed.elastic.multiprocessing.errors import get_error_handler

    _ignore_signals()
    try:
        reports = store.add("reported", 1) == 1
    except RuntimeError:  # the launcher has ended, and the store with it
        reports = world.is_first
    if not reports:
        raise SystemExit(getattr(error, "exit_code", 1)) from None
    if own_store := os.environ.get(STORE):
        reported_file(Path(own_store)).touch()
    else:
        get_error_handler().record_exception(error)  # for torchrun, which shows it


def _ignore_signals() -> None:
    """For the last second of a process: the launcher's SIGTERM must not interrupt its report."""
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
