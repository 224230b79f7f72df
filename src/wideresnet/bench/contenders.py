"""The contenders: this package's network as it runs best, the same network run plainly, and other implementations."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wideresnet.bench.case import FEED_BYTES, Case
from wideresnet.bench.engines import build_engine, in_batches
from wideresnet.bench.peers import CAREFUL, PLAIN, PeerError, build_peer
from wideresnet.bench.words import ENGINES, OURS, OURS_BF16, OURS_INT8
from wideresnet.engines import optimize, quantize
from wideresnet.machine.device import synchronize
from wideresnet.machine.memory import keep_memory
from wideresnet.training.captured import CapturedSteps, make_step
from wideresnet.training.configure import configure, make_forward
from wideresnet.training.optimizer import make_optimizer
from wideresnet.training.preflight.autotune import autotune
from wideresnet.training.preflight.trial import StepShape
from wideresnet.training.setup import build_network
from wideresnet.training.step import Meter, training_loss

NUM_IMAGES = 50_000
"""Images per epoch, as in CIFAR: decides whether compiling would pay for itself."""

LR = 0.0
"""Learning rate of every step that is timed: the arithmetic is the same as with any other, and the weights stay the
same, so that the thousandth step does the work of the first."""


@dataclass(frozen=True)
class Contender:
    """Something that can be timed.

    Attributes:
        name: as in the table.
        configuration: how it runs, e.g. "channels_last, eager, fp32, 2 threads".
        call: runs one training step or one forward pass.
        num_threads: threads of the CPU that it runs with.
        precision: "fp32", "bf16" or "int8".
        logits: computes float32 (N, classes) on the CPU of preprocessed images (N, C, H, W); None for networks with
            other weights, and for training.
        parts: runs one step part by part and returns the seconds of each; None for other implementations.
        notes: why it runs in this configuration.
    """

    name: str
    configuration: str
    call: Callable[[], object]
    num_threads: int
    precision: str = "fp32"
    logits: Callable[[Tensor], Tensor] | None = None
    parts: Callable[[], dict[str, float]] | None = None
    notes: tuple[str, ...] = ()


def make_contender(name: str, case: Case, *, feed_bytes: int = FEED_BYTES) -> Contender:
    """Build a contender.

    Args:
        name: "wideresnet", "wideresnet bf16", "wideresnet int8", "plain", or another implementation as in `run_bench`.
        case: what it is to do.
        feed_bytes: size of the training set that the parts of a step are timed with.

    Raises:
        PeerError: another implementation is not installed, or has a different network or none.
        Exception: whatever its code raises.
    """
    with torch.random.fork_rng(devices=[torch.cuda.current_device()] if case.device == "cuda" else []):
        if name in (OURS, OURS_BF16):
            own = replace(case, precision="bf16") if name == OURS_BF16 else case
            return replace(ours_train(own, feed_bytes) if case.job == "train" else ours_infer(own), name=name)
        if name == OURS_INT8:
            return ours_int8(case)
        if name in ENGINES:
            return engine(name, case)
        if name == PLAIN:
            network: nn.Module = case.build()
        else:
            network = build_peer(name, case)
            params = sum(parameter.numel() for parameter in network.parameters())
            if params != case.cost.params:
                raise PeerError(
                    f"its {case.network} has {params:,} parameters, not {case.cost.params:,}: another network"
                )
    return _as_users_run_it(name, network, case)


def ours_train(case: Case, feed_bytes: int = FEED_BYTES) -> Contender:
    """Build this package's training step, in the configuration that `wrn train` chooses on this machine."""
    device, recipe = case.device, case.recipe
    network, _ = build_network(recipe, case.num_classes, in_channels=3)
    asked = replace(recipe.machine, threads=case.num_threads)
    images, labels = case.batch()
    size = (images.shape[2], images.shape[3])
    shape = StepShape(case.batch_size, 1, size, recipe.optimizer)
    execution, notes = autotune(asked, shape, network, device, NUM_IMAGES * recipe.schedule.epochs)
    network = configure(network.to(device), execution).train()
    forward = make_forward(network, execution)
    optimizer = make_optimizer(network, recipe.optimizer)
    meter = Meter(device)
    take_step = make_step(network, forward, optimizer, meter, execution)
    images = images.contiguous(memory_format=torch.channels_last)  # as a feed yields them

    def step() -> None:
        take_step(images, labels, step=0, lr=LR)

    batches = None

    def parts() -> dict[str, float]:
        nonlocal batches
        if batches is None:
            feed = case.feed(feed_bytes)
            batches = itertools.chain.from_iterable(map(feed.epoch, itertools.count()))
        watch = _Stopwatch(device)
        fresh_images, fresh_labels = next(batches)
        watch.lap("loading and augmentation")
        loss, logits = training_loss(forward, fresh_images, fresh_labels, execution)
        watch.lap("forward")
        loss.backward()
        watch.lap("backward")
        meter.add(loss.detach(), logits.detach(), fresh_labels, 0)
        optimizer.step()
        optimizer.zero_grad()
        watch.lap("optimiser")  # a key of committed records
        return watch.seconds

    return Contender(
        OURS,
        execution.describe() + ", CUDA graph" * isinstance(take_step, CapturedSteps),
        step,
        execution.threads,
        execution.precision,
        parts=parts,
        notes=tuple(notes),
    )


def ours_infer(case: Case) -> Contender:
    """Build this package's forward pass, in the configuration of `wrn predict` and `wrn eval` on this machine."""
    keep_memory()
    network = optimize(case.build().to(case.device))
    images, precision = case.batch()[0].contiguous(memory_format=torch.channels_last), case.precision
    preprocessing, pixels = case.preprocessing, case.pixels()

    def compute(images: Tensor) -> Tensor:
        with (
            torch.inference_mode(),
            torch.autocast(case.device, torch.bfloat16, enabled=precision == "bf16"),
        ):
            return network(images)

    def forward() -> Tensor:
        return compute(images)

    def parts() -> dict[str, float]:
        watch = _Stopwatch(case.device)
        preprocessing(pixels)
        watch.lap("preprocessing")
        forward()
        watch.lap("forward")
        return watch.seconds

    configuration = f"{network.how(precision)}, {precision}{_threads_of(case)}"
    return Contender(OURS, configuration, forward, case.num_threads, precision, _on_cpu(compute, case), parts)


def ours_int8(case: Case) -> Contender:
    """Build this package's forward pass in int8."""
    keep_memory()
    network = quantize(case.build().to(case.device), case.calibration(), batch_size=case.batch_size)
    images = case.batch()[0].contiguous(memory_format=torch.channels_last)

    def compute(images: Tensor) -> Tensor:
        with torch.inference_mode():
            return network(images)

    return Contender(
        OURS_INT8,
        f"8-bit kernels{_threads_of(case)}",
        lambda: compute(images),
        case.num_threads,
        "int8",
        _on_cpu(compute, case),
    )


def engine(name: str, case: Case, *, folder: Path | None = None, choice: int | None = None) -> Contender:
    """Build an inference engine with our weights and images; arguments as for `build_engine`."""
    built = build_engine(name, case, folder=folder, choice=choice)
    images = case.batch()[0].numpy()

    def logits(images: Tensor) -> Tensor:
        return torch.from_numpy(in_batches(built.run, images.contiguous().numpy(), case.batch_size))

    return Contender(name, built.configuration, lambda: built.run(images), case.num_threads, built.precision, logits)


def _on_cpu(compute: Callable[[Tensor], Tensor], case: Case) -> Callable[[Tensor], Tensor]:
    """Compute logits of any number of images as they are timed: in batches of the case, channels last in memory."""

    def logits(images: Tensor) -> Tensor:
        batches = images.split(case.batch_size)
        layout = torch.channels_last
        return torch.cat([compute(b.to(case.device).contiguous(memory_format=layout)).float().cpu() for b in batches])

    return logits


def _as_users_run_it(name: str, network: nn.Module, case: Case) -> Contender:
    """Build the plain loop that users of PyTorch write; `+careful` adds what careful users add."""
    careful = name.endswith(CAREFUL)
    layout = torch.channels_last if careful else torch.contiguous_format
    precision = case.precision if careful else "fp32"
    network = network.to(case.device).to(memory_format=layout)  # type: ignore[call-overload]
    images, labels = case.batch()
    images = images.contiguous(memory_format=layout)

    def arithmetic() -> contextlib.AbstractContextManager[object]:
        return torch.autocast(case.device, torch.bfloat16) if precision == "bf16" else contextlib.nullcontext()

    def compute(images: Tensor) -> Tensor:
        output = network(images)
        if not isinstance(output, Tensor) or tuple(output.shape) != (len(images), case.num_classes):
            shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise PeerError(f"its output is {shape}, not logits {(len(images), case.num_classes)}")
        return output

    def infer(images: Tensor) -> Tensor:
        with torch.no_grad(), arithmetic():
            return compute(images)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with arithmetic():
            loss = F.cross_entropy(compute(images), labels)
        loss.backward()
        optimizer.step()

    network.train(case.job == "train")
    recipe = case.recipe
    optimizer = torch.optim.SGD(
        network.parameters(),
        lr=LR,
        momentum=recipe.optimizer.momentum,
        weight_decay=recipe.optimizer.weight_decay,
        nesterov=recipe.optimizer.nesterov,
    )
    configuration = f"{'channels_last' if careful else 'NCHW'}, eager, {precision}{_threads_of(case)}"
    if case.job == "train":
        return Contender(name, configuration, step, case.num_threads, precision)
    logits = _on_cpu(infer, case) if name == PLAIN else None  # others have weights of their own
    return Contender(name, configuration, lambda: infer(images), case.num_threads, precision, logits)


def _threads_of(case: Case) -> str:
    return f", {case.num_threads} thread{'s' * (case.num_threads > 1)}" if case.device == "cpu" else ""


class _Stopwatch:
    """Seconds between laps, including the device's work."""

    def __init__(self, device: str) -> None:
        self.device, self.seconds = device, dict[str, float]()
        synchronize(device)
        self.last = time.perf_counter()

    def lap(self, name: str) -> None:
        synchronize(self.device)
        now = time.perf_counter()
        self.seconds[name] = now - self.last
        self.last = now
