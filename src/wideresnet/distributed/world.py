"""Several processes that train one network: who they are, what they exchange, how they end together.

They are started by torchrun, or by `wrn train --processes N`, which calls torchrun's own machinery (see `launch`).
Every process holds all training images and the whole network, makes its share of each batch, and after the exchange of
gradients takes the same step as the others, so that all weights stay equal to the last bit. Processes on several
machines must see the same run folder. Only the first process writes and speaks.
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
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.elastic.multiprocessing.errors import get_error_handler
from torch.distributed.rendezvous import rendezvous

from wideresnet.base.console import console
from wideresnet.base.errors import UsageError, WRNError
from wideresnet.base.seeding import seed_of

TIMEOUT = timedelta(minutes=10)
"""What a process waits for the others: a killed one is noticed at once, this is for one that hangs. It is far more than
a step, an evaluation's last batch or a compilation takes."""

SIGN_OFF_S = 1.0
"""In which those that are left say so, before the others are named as missing."""

_visits = itertools.count()  # one job of torchrun may train several times; each time has keys of its own in its store


class LostProcess(WRNError):
    """Another process has ended or no longer answers."""


@dataclass(frozen=True)
class World:
    """The processes that train together, seen from one of them.

    Attributes:
        rank: this process, from 0; 0 is the one that writes and speaks.
        size: number of processes.
        local_rank: this process among those of its machine; it uses the GPU of this number.
        depth: what stochastic depth draws from, the same in all processes.
        store: the launcher's key-value store, which outlives the processes; None for a single process.
        launcher_pid: process that started this one.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    depth: torch.Generator = field(default_factory=torch.Generator, repr=False, compare=False)
    store: Store | None = field(default=None, repr=False, compare=False)
    launcher_pid: int = field(default_factory=os.getppid, repr=False, compare=False)

    @staticmethod
    def single() -> World:
        """One process alone."""
        return World()

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    def use(self, device: str) -> None:
        """Make "cuda" mean this process's own GPU.

        Raises:
            UsageError: there are more processes than GPUs.
        """
        if self.size == 1 or device != "cuda":
            return
        if self.local_rank >= (num_gpus := torch.cuda.device_count()):
            raise UsageError(
                f"processes {self.size}: each needs a GPU of its own and this machine has {num_gpus}; use "
                f"--processes {num_gpus} or --device cpu"
            )
        torch.cuda.set_device(self.local_rank)

    def seed_step(self, seed: int, step: int) -> None:
        """Seed what a step draws: dropout in each process differently, stochastic depth in all as in one alone."""
        whole = seed_of(seed, "step", step)
        self.depth.manual_seed(whole)
        own = whole if self.size == 1 else seed_of(seed, "step", step, self.rank)
        torch.default_generator.manual_seed(own)  # torch.manual_seed also looks for devices of all kinds, at each step
        if torch.cuda.is_initialized():
            torch.cuda.default_generators[torch.cuda.current_device()].manual_seed(own)

    @contextmanager
    def first_alone(self) -> Iterator[None]:
        """The first process passes this block alone, then the others: for work that leaves files for the others to
        find, such as downloads and decoded images. However long it takes: the launcher ends all if the first one dies.
        """
        if self.store is None:
            yield
            return
        key = f"passed/{self.store.add(f'first_alone/{self.rank}', 1)}"
        with _noticing_loss():
            while not self.is_first and not self.store.check([key]):
                time.sleep(0.05)  # not store.wait, which Ctrl-C cannot interrupt
        yield
        if self.is_first:
            self.store.set(key, "")

    def agree(self, value: Any) -> Any:
        """The first process's value, a JSON one, in every process."""
        if self.size == 1:
            return value
        content = bytearray(json.dumps(value).encode() if self.is_first else b"")
        length = torch.tensor([len(content)])
        broadcast(length)
        content = content if self.is_first else bytearray(int(length))
        broadcast(torch.frombuffer(content, dtype=torch.uint8))
        return json.loads(content)

    def any_of(self, *flags: bool) -> tuple[bool, ...]:
        """For each flag, whether it is set in any process: the same answer in all, so that all act at the same step.

        On the host, over gloo, also where gradients go over NCCL: nothing waits for a GPU, and a killed process is
        noticed here. A process whose launcher is gone is noticed by the first flag, a request to stop.
        """
        if self.size == 1:
            return flags
        orphaned = os.getppid() != self.launcher_pid
        told = torch.tensor([flags[0] or orphaned, *flags[1:]], dtype=torch.uint8)
        all_reduce(told, dist.ReduceOp.MAX)
        return tuple(bool(flag) for flag in told.tolist())

    def meet(self) -> None:
        """Wait until every process is here."""
        self.any_of(False)

    def copy_first(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite tensors by those of the first process."""
        if self.size > 1:
            for tensor in tensors:
                broadcast(tensor)

    def gather_rows(self, parts: list[Tensor], counts: list[int]) -> Tensor:
        """Put all processes' rows together, in order of rank.

        Args:
            parts: this process's rows, float32 (n, C) each, on the CPU; the first process must have some.
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
        """Which processes have ended, in words, once one is lost."""
        _ignore_signals()  # the launcher now ends everyone: let there be time to say why
        if self.store is None:
            return "a process has ended"
        try:
            self.store.set(f"left/{self.rank}", "")
            time.sleep(SIGN_OFF_S)
            missing = [rank for rank in range(self.size) if not self.store.check([f"left/{rank}"])]
        except RuntimeError:
            return "the launcher has ended"
        if not missing:
            return f"the {self.size} processes have lost touch"
        names = ", ".join(map(str, missing))
        return f"process{'es'[: 2 * (len(missing) > 1)]} {names} of {self.size} (from 0) has been killed"


class GradientSum:
    """The exchange of a step: gradients, loss and number of errors of all processes, summed in one message.

    One flat message after the backward pass, not DistributedDataParallel: what counts is `parameter.grad` and not how
    it came about, so branches that stochastic depth left out, gradients accumulated over several passes, compiled
    networks and hand-written backward passes all work, and each process weighs by its own number of images. The price
    is that nothing is sent while the backward pass still runs, and one more copy of the gradients.

    Args:
        network: its parameters, on one device.
    """

    def __init__(self, network: nn.Module) -> None:
        self.parameters = list(network.parameters())
        sizes = [parameter.numel() for parameter in self.parameters]
        self.message = self.parameters[0].new_zeros(sum(sizes) + 2, requires_grad=False)
        starts = itertools.accumulate(sizes, initial=0)
        self.gradients = [  # in the parameters' own memory layout, so that the optimiser finds one piece of memory each
            self.message.as_strided(parameter.shape, parameter.stride(), start)
            for parameter, start in zip(self.parameters, starts, strict=False)
        ]

    @torch.no_grad()
    def exchange(self, loss: Tensor, errors: Tensor) -> tuple[Tensor, Tensor]:
        """Sum over the processes; each parameter's `grad` is then the sum.

        Args:
            loss: this process's part of the loss, a scalar.
            errors: number of this process's errors, a scalar.

        Returns:
            The sums of both.
        """
        for parameter, gradient in zip(self.parameters, self.gradients, strict=True):
            if parameter.grad is None:  # in every process: stochastic depth draws the same in all
                gradient.zero_()
            else:
                gradient.copy_(parameter.grad)
            parameter.grad = gradient
        self.message[-2], self.message[-1] = loss, errors
        all_reduce(self.message)
        loss, errors = self.message[-2:].clone()
        return loss, errors


def all_reduce(tensor: Tensor, operation: Any = dist.ReduceOp.SUM) -> None:
    """Combine a tensor over the processes, in place; the result has the same bits in all of them."""
    with _noticing_loss():
        dist.all_reduce(tensor, operation)


def all_gather(tensor: Tensor) -> Tensor:
    """Every process's tensor, stacked in order of rank."""
    parts = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    with _noticing_loss():
        dist.all_gather(parts, tensor)
    return torch.stack(parts)


def broadcast(tensor: Tensor, source: int = 0) -> None:
    """Overwrite a tensor by that of one process."""
    with _noticing_loss():
        dist.broadcast(tensor, source)


@contextmanager
def join(world: World | None = None) -> Iterator[World]:
    """Take part in what torchrun has started; a process that torchrun has not started is a world of its own.

    If this process fails, the others end too, and only the first that fails says why; the others leave in silence.

    Args:
        world: processes that are together already; nothing is done then.
    """
    if world is not None:
        yield world
        return
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1 or not dist.is_available() or not dist.is_torchelastic_launched():
        yield World.single()
        return
    _share_cores(int(os.environ["LOCAL_WORLD_SIZE"]))
    store, rank, size = next(rendezvous("env://", timeout=TIMEOUT))
    store = PrefixStore(f"wideresnet/{next(_visits)}", store)
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=TIMEOUT)
    world = World(rank, size, int(os.environ["LOCAL_RANK"]), store=store)
    was_quiet, console().quiet = console().quiet, not world.is_first
    try:
        world.meet()  # nobody may be gone again while another is still connecting
        yield world
    except BaseException as error:
        _leave(world, store, error)
        raise
    finally:
        console().quiet = was_quiet
    dist.destroy_process_group()


@contextmanager
def _noticing_loss() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # what gloo and NCCL raise when the other end is gone, or TIMEOUT has passed
        raise LostProcess(f"another process has ended or no longer answers ({error})") from error


def _leave(world: World, store: Store, error: BaseException) -> None:
    """Before this process ends by an error: return if it is to say why, else end in silence."""
    _ignore_signals()
    try:
        speaks = store.add("spoken", 1) == 1
    except RuntimeError:  # the launcher is gone, and with it the store
        speaks = world.is_first
    if not speaks:
        raise SystemExit(getattr(error, "exit_code", 1)) from None
    get_error_handler().record_exception(error)  # torchrun shows it; `launch` sees that something was said


def _ignore_signals() -> None:
    """For the last second of a process: the launcher's SIGTERM must not cut off its last words."""
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)


def _share_cores(num_processes: int) -> None:
    """Give each process of a machine its part of the cores, unless the user has set OMP_NUM_THREADS.

    torchrun sets OMP_NUM_THREADS to 1 itself where it is not set; the environment that torchrun was started with tells
    this apart from the user's setting.
    """
    try:
        users = b"OMP_NUM_THREADS=" in Path(f"/proc/{os.getppid()}/environ").read_bytes()
    except OSError:  # not Linux
        users = "OMP_NUM_THREADS" in os.environ
    if not users:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        torch.set_num_threads(max(1, cores // num_processes))
