"""The fastest configuration for a network on the machine at hand: measured once, then read from the cache."""

from __future__ import annotations

import itertools
import json
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

import torch

from wideresnet.base.arithmetic import ceil_div
from wideresnet.base.errors import UsageError
from wideresnet.base.format import human_number
from wideresnet.distributed.world import World
from wideresnet.engines import why_no_kernels
from wideresnet.machine.cpu import usable_cpus
from wideresnet.machine.device import pick_precision
from wideresnet.machine.memory import reset_peak_memory
from wideresnet.networks import Network
from wideresnet.spec.execution import AUTOTUNE_MODES, Execution
from wideresnet.spec.options import MachineOptions
from wideresnet.spec.recipe import Recipe
from wideresnet.training.preflight import answers
from wideresnet.training.preflight.choice import choose, why_not_trusted
from wideresnet.training.preflight.host import Host
from wideresnet.training.preflight.trial import StepShape, Tell, Trial, time_candidates

Measure = Callable[[StepShape, Network, Sequence[Execution], Tell], Trial]
"""Times configurations, see `trial.time_candidates`."""

LONG_RUN_S = 180.0  # compiling takes 20 to 30 s on the machine of an H100 and gains a fifth
OTHERS_LACK_KERNELS = "not every process can run the kernels (its machine needs gcc or clang)"
MEASURED_BEFORE = "(measured before; autotune='again' measures again)"


def autotune(
    asked: MachineOptions,
    shape: StepShape,
    network: Network,
    device: str,
    num_images: int,
    *,
    mode: str | None = None,
    tell: Tell = lambda _: None,
    measure: Measure = time_candidates,
    host: Host | None = None,
) -> tuple[Execution, list[str]]:
    """Decide what was not asked for: kernels, layout, precision, threads and compile.

    Candidates are timed by training steps of a copy of the network, in rounds. The first candidate is the one that is
    usually fastest; another is taken if it is clearly faster in every round. The answer is cached for the same network,
    images, versions and hardware. A trial that proves nothing, because the machine is busy, is not: then the first
    candidate is taken.

    Args:
        asked: what is asked of the machine.
        shape: what one training step works on.
        network: on the CPU, with its initial weights; it is left as it is.
        num_images: images of the whole run, each epoch counted; compiling is tried only if it pays for itself.
        mode: one of `AUTOTUNE_MODES`; None for the environment variable WRN_AUTOTUNE, else "cached".
        tell: shows what is being timed.
        measure: times the candidates.
        host: what computes; None for this machine.

    Returns:
        The configuration, and notes about the decision.

    Raises:
        UsageError: what is asked for is not available here, or there is no such mode.
    """
    mode = check_mode(mode)
    notes: list[str] = []
    host = host or Host.here(device)
    candidates = _candidates(asked, network, device, shape.size, host, notes)
    may_compile = device == "cuda" and asked.compile is None
    question = _Question(shape, network, device, num_images, candidates, may_compile)
    if mode == "off" or (len(candidates) == 1 and not may_compile):
        return candidates[0], notes
    key = question.key(host)
    before = question.read(answers.find(key))
    if mode == "cached" and before:
        return before.execution, [*notes, f"{before.told} {MEASURED_BEFORE}"]
    with answers.turn(tell) as turn:
        if turn is None:
            others = "other processes have been timing configurations for minutes"
            return candidates[0], [*notes, _not_measured(candidates[0], others)]
        # another process may have answered while this one waited
        latest = question.read(answers.find(key))
        if latest and (mode == "cached" or latest != before):
            return latest.execution, [*notes, f"{latest.told} {MEASURED_BEFORE}"]
        if left := question.read(turn.left(key)):
            return left.execution, [*notes, left.told]
        try:
            answer, why_not = _measure(question, measure, tell, notes)
        except torch.OutOfMemoryError:  # the plan starts with few images and will say how many fit
            torch.cuda.empty_cache()
            return candidates[0], notes
        if not why_not:
            answers.store(key, answer.to_json(host))
        else:
            if before:
                told = f"not measured again, because {why_not}; {before.told} {MEASURED_BEFORE}"
                answer = replace(answer, execution=before.execution, told=told)
            turn.leave(key, answer.to_json(host))
    return answer.execution, [*notes, answer.told]


def check_mode(mode: str | None) -> str:
    """Return the mode of `autotune`; None for the environment variable WRN_AUTOTUNE, else "cached".

    Raises:
        UsageError: there is no such mode.
    """
    for name, value in (("autotune", mode), ("WRN_AUTOTUNE", os.environ.get("WRN_AUTOTUNE"))):
        if value and value not in AUTOTUNE_MODES:
            raise UsageError(f"{name}={value!r}: must be one of {', '.join(AUTOTUNE_MODES)}")
        if value:
            return value
    return "cached"


@dataclass(frozen=True)
class _Answer:
    """A configuration, the note about it, and the trial for the record."""

    execution: Execution
    told: str
    trial: dict[str, Any]

    def to_json(self, host: Host) -> dict[str, Any]:
        return {"settings": self.execution.settled(), "told": self.told, "measured": {**host.describe(), **self.trial}}


@dataclass(frozen=True)
class _Question:
    """What a choice depends on."""

    shape: StepShape
    network: Network
    device: str
    num_images: int
    candidates: list[Execution]
    may_compile: bool

    def key(self, host: Host) -> str:
        """Name everything that an answer depends on."""
        network, shape = self.network, self.shape
        options = {name: value for name, value in network.options.items() if name not in ("init", "bn_scale")}
        return json.dumps(
            [str(network.name), network.num_classes, options, shape.size, shape.batch_size, shape.accumulate,
             [candidate.settled() for candidate in self.candidates], self.num_images if self.may_compile else None,
             host.describe()]
        )  # fmt: skip

    def read(self, stored: Any) -> _Answer | None:
        """Return a stored answer; None if there is none, it is damaged, or it is about no candidate."""
        with suppress(KeyError, TypeError):
            choices = [*self.candidates]
            if self.may_compile:
                choices += [replace(candidate, compile=True) for candidate in choices]
            for choice in choices:
                if choice.settled() == stored["settings"]:
                    return _Answer(choice, str(stored["told"]), stored["measured"])
        return None


def _measure(question: _Question, measure: Measure, tell: Tell, notes: list[str]) -> tuple[_Answer, str]:
    """Time the candidates; return the answer and why it is not to be trusted, "" if it is."""
    shape, network, device, candidates = question.shape, question.network, question.device, question.candidates
    trials = [(candidates, measure(shape, network, candidates, tell))]
    chosen = choose(*trials[0])
    execution = candidates[chosen]
    if question.may_compile and question.num_images / fmean(trials[0][1].rates[chosen]) > LONG_RUN_S:
        both = [execution, replace(execution, compile=True)]
        try:
            trials.append((both, measure(shape, network, both, tell)))
            execution = both[choose(*trials[1])]
        except Exception as error:  # a compiler that is missing or fails, in whatever way, leaves what works
            notes.append(f"not compiled: {type(error).__name__}: {' '.join(str(error).split())[:160]}")
    if device == "cuda":
        torch.cuda.empty_cache()
    reset_peak_memory(device)  # the trial's memory does not count as the run's
    rates = {way: each for ways, trial in trials for way, each in zip(ways, trial.rates, strict=True)}
    record = {
        "date": time.strftime("%Y-%m-%d %H:%M:%S"),
        "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "cpu_share": round(min(trial.cpu_share for _, trial in trials), 3),
        "images_per_s": {way.describe(): [float(f"{rate:.4g}") for rate in each] for way, each in rates.items()},
    }
    if why_not := next(filter(None, (why_not_trusted(trial) for _, trial in trials)), ""):
        return _Answer(candidates[0], _not_measured(candidates[0], why_not), record), why_not
    told = f"{execution.describe()}: {_rate(rates[execution])} images/s in a trial"
    if others := [f"{way.describe(execution)} {_rate(each)}" for way, each in rates.items() if way != execution]:
        told += f" ({', '.join(others)})"
    return _Answer(execution, told, record), ""


def _rate(rates: Sequence[float]) -> str:
    return human_number(fmean(rates))


def _not_measured(execution: Execution, why: str) -> str:
    return (
        f"{execution.describe()}: usually the fastest; not measured, because {why}; nothing is stored, so the next run "
        "measures again"
    )


def autotune_together(
    recipe: Recipe,
    shape: StepShape,
    network: Network,
    device: str,
    num_images: int,
    world: World,
    **how: Any,
) -> tuple[Execution, list[str]]:
    """Run `autotune` for a recipe; in the first of several processes, with its share of a batch, for all.

    Args:
        num_images: images per epoch.
        how: `mode`, `tell` and whatever else `autotune` takes.
    """
    asked, num_images = recipe.machine, num_images * recipe.schedule.epochs
    if (recipe.schedule.time_s or LONG_RUN_S) < LONG_RUN_S and asked.compile is None:
        asked = replace(asked, compile=False)  # the epochs are not known yet, but that they end before it pays
    if world.size == 1:
        return autotune(asked, shape, network, device, num_images, **how)
    asked = replace(asked, threads=asked.threads or torch.get_num_threads())
    reason = _why_not_by_kernels(asked, network, shape.size) if _may_try_kernels(asked, device) else None
    _, some_lack_them = world.any_of(False, reason is not None)
    answer: Any = None
    if world.is_first:
        told = []
        if some_lack_them and reason is None:  # else `autotune` tells the reason
            # With sync_bn a process that fell back to PyTorch would send other messages than those with kernels expect.
            if asked.kernels == "winograd":
                raise UsageError(f"kernels='winograd': {OTHERS_LACK_KERNELS}; use kernels='pytorch'")
            asked, told = replace(asked, kernels="pytorch"), [f"PyTorch's kernels are used: {OTHERS_LACK_KERNELS}"]
        share = ceil_div(shape.batch_size, world.size)
        shape = replace(shape, batch_size=share, accumulate=min(shape.accumulate, share))
        execution, notes = autotune(asked, shape, network, device, num_images, **how)
        answer = (execution.settled(), [*told, *notes])
    settled, notes = world.agree(answer)
    return Execution(device=device, deterministic=asked.deterministic, **settled), notes


def _candidates(
    asked: MachineOptions, network: Network, device: str, size: tuple[int, int], host: Host, notes: list[str]
) -> list[Execution]:
    """List the configurations to try, the likely fastest first; each has all that was asked for."""
    kernels = ["pytorch"]
    if _may_try_kernels(asked, device):
        reason = _why_not_by_kernels(asked, network, size)
        if reason is None:
            kernels = ["winograd"] if asked.kernels == "winograd" else ["winograd", "pytorch"]
        elif asked.kernels == "winograd":
            raise UsageError(f"kernels='winograd': {reason}; use kernels='pytorch'")
        else:
            notes.append(f"PyTorch's kernels are used: {reason}")
    elif asked.kernels == "winograd":
        raise UsageError("kernels='winograd': they are for fp32 on a CPU, not compiled; use kernels='pytorch'")
    layouts = ["channels_last", "contiguous"] if asked.layout == "auto" else [asked.layout]
    precisions = [pick_precision(asked.precision, device)]
    if device == "cpu" and asked.precision == "auto" and host.has_bf16:
        precisions.append("bf16")
    candidates = []
    for kernel, layout, precision in itertools.product(kernels, layouts, precisions):
        if kernel == "winograd" and (layout, precision) != ("channels_last", "fp32"):
            continue
        if "bf16" in precisions and layout == "contiguous" and asked.layout == "auto":
            continue  # never the faster one on processors with instructions for bf16
        candidates += [
            Execution(
                device=device,
                precision=precision,
                kernels=kernel,
                layout=layout,
                threads=threads,
                compile=bool(asked.compile),
                deterministic=asked.deterministic,
            )
            for threads in _thread_counts(asked, device)
        ]
    return candidates


def _may_try_kernels(asked: MachineOptions, device: str) -> bool:
    return device == "cpu" and asked.kernels != "pytorch" and asked.precision != "bf16" and not asked.compile


def _why_not_by_kernels(asked: MachineOptions, network: Network, size: tuple[int, int]) -> str | None:
    """Return why the kernels cannot train this network in this process, or None."""
    reason = why_no_kernels(network, torch.zeros(2, network.in_channels, *size))
    return "the kernels need layout channels_last" if reason is None and asked.layout == "contiguous" else reason


def _thread_counts(asked: MachineOptions, device: str) -> list[int]:
    """Return PyTorch's own choice, and on a CPU also all that this process may use, if that is more."""
    if asked.threads:
        return [asked.threads]
    own = torch.get_num_threads()
    allowed = usable_cpus()
    if device == "cpu" and own < allowed and own > 1 and "OMP_NUM_THREADS" not in os.environ:
        return [own, allowed]
    return [own]
