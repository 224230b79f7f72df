"""The fastest configuration for a network on the machine at hand: measured once, then read from the cache."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch

from wideresnet.base.arithmetic import ceil_div
from wideresnet.base.errors import UsageError, WRNError
from wideresnet.base.paths import measurements_file
from wideresnet.distributed.world import World
from wideresnet.engines import why_no_kernels
from wideresnet.machine.cpu import usable_cpus
from wideresnet.machine.description import hardware_name
from wideresnet.machine.device import pick_precision
from wideresnet.machine.memory import reset_peak_memory
from wideresnet.networks import Network
from wideresnet.spec.execution import Execution
from wideresnet.spec.recipe import MachineOptions, Recipe
from wideresnet.spec.record import read_json, write_json
from wideresnet.training.preflight.trial import StepShape, measure_rates

Measure = Callable[[StepShape, Network, Sequence[Execution]], list[float]]
"""Images per second of each configuration, see `trial.measure_rates`."""

CLEARLY_FASTER = 1.1  # the first candidate is kept unless another is this many times as fast: noise decides nothing
LONG_RUN_S = 300.0  # compiling takes about a minute
MAX_REMEMBERED = 200


def autotune(
    asked: MachineOptions,
    shape: StepShape,
    network: Network,
    device: str,
    num_images: int,
    *,
    measure: Measure = measure_rates,
) -> tuple[Execution, list[str]]:
    """Decide what was not asked for: kernels, layout, precision, threads and compile.

    Candidates are timed by a few training steps of a copy of the network. The answer is cached for the same network,
    images, versions and hardware. With the environment variable WRN_AUTOTUNE=off nothing is timed and the candidate
    that is usually fastest is taken.

    Args:
        asked: what is asked of the machine.
        shape: what one training step works on.
        network: on the CPU, with its initial weights; it is left as it is.
        num_images: images of the whole run, each epoch counted; compiling is tried only if it pays for itself.
        measure: times the candidates.

    Returns:
        The configuration, and notes about the decision.

    Raises:
        UsageError: what is asked for is not available here.
    """
    notes: list[str] = []
    candidates = _candidates(asked, network, device, shape.size, notes)
    is_settled = len(candidates) == 1 and (device == "cpu" or asked.compile is not None)
    if is_settled or os.environ.get("WRN_AUTOTUNE") == "off":
        return candidates[0], notes
    may_compile = device == "cuda" and asked.compile is None
    key = _key(asked, shape, network, device, num_images, candidates)
    remembered = _remembered()
    with suppress(KeyError, TypeError):
        known = remembered[key]
        choices = candidates + [replace(candidate, compile=True) for candidate in candidates if may_compile]
        for choice in choices:
            if choice.settled() == known["settings"]:
                return choice, [*notes, f"{known['told']} (measured before)"]
    try:
        rates = measure(shape, network, candidates)
    except torch.OutOfMemoryError:  # the plan starts with few images and will say how many fit
        torch.cuda.empty_cache()
        return candidates[0], notes
    if may_compile and num_images / max(rates) > LONG_RUN_S:
        candidate = replace(candidates[rates.index(max(rates))], compile=True)
        try:
            rates += measure(shape, network, [candidate])
            candidates.append(candidate)
        except Exception as error:  # a compiler that is missing or fails, in whatever way, leaves what works
            notes.append(f"not compiled: {type(error).__name__}: {' '.join(str(error).split())[:160]}")
    if device == "cuda":
        torch.cuda.empty_cache()
    reset_peak_memory(device)  # the trial's memory does not count as the run's
    best = max(range(len(candidates)), key=lambda i: rates[i])
    chosen = best if rates[best] > CLEARLY_FASTER * rates[0] else 0
    told = f"{candidates[chosen].describe()}: {rates[chosen]:.3g} images/s in a trial"
    if others := [
        f"{candidate.describe(candidates[chosen])} {rate:.3g}"
        for i, (candidate, rate) in enumerate(zip(candidates, rates, strict=True))
        if i != chosen
    ]:
        told += f" ({', '.join(others)})"
    newest = dict(itertools.islice(remembered.items(), max(0, len(remembered) + 1 - MAX_REMEMBERED), None))
    with suppress(OSError, WRNError):  # a folder that cannot be written to costs the next run a few seconds, no more
        measurements_file().parent.mkdir(parents=True, exist_ok=True)
        write_json(measurements_file(), {**newest, key: {"settings": candidates[chosen].settled(), "told": told}})
    return candidates[chosen], [*notes, told]


def autotune_together(
    recipe: Recipe, shape: StepShape, network: Network, device: str, num_images: int, world: World
) -> tuple[Execution, list[str]]:
    """Run `autotune` for a recipe; in the first of several processes, with its share of a batch, for all.

    Args:
        num_images: images per epoch.
    """
    asked, num_images = recipe.machine, num_images * recipe.schedule.epochs
    if world.size == 1:
        return autotune(asked, shape, network, device, num_images)
    if recipe.schedule.sync_bn:
        if asked.kernels == "winograd":
            raise UsageError("kernels='winograd': they do not support sync_bn=True; use kernels='pytorch'")
        asked = replace(asked, kernels="pytorch")
    asked = replace(asked, threads=asked.threads or torch.get_num_threads())
    answer: Any = None
    if world.is_first:
        share = ceil_div(shape.batch_size, world.size)
        shape = replace(shape, batch_size=share, accumulate=min(shape.accumulate, share))
        execution, notes = autotune(asked, shape, network, device, num_images)
        answer = (execution.settled(), notes)
    settled, notes = world.agree(answer)
    return Execution(device=device, deterministic=asked.deterministic, **settled), notes


def _candidates(
    asked: MachineOptions, network: Network, device: str, size: tuple[int, int], notes: list[str]
) -> list[Execution]:
    """List the configurations to try, the likely fastest first; each has all that was asked for."""
    kernels = ["pytorch"]
    if device == "cpu" and asked.kernels != "pytorch" and asked.precision != "bf16" and not asked.compile:
        reason = why_no_kernels(network, torch.zeros(2, network.in_channels, *size))
        if reason is None and asked.layout == "contiguous":
            reason = "the kernels need layout channels_last"
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
    if device == "cpu" and asked.precision == "auto" and precisions == ["bf16"]:
        precisions = ["fp32", "bf16"]
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


def _thread_counts(asked: MachineOptions, device: str) -> list[int]:
    """Return PyTorch's own choice, and on a CPU also all that this process may use, if that is more."""
    if asked.threads:
        return [asked.threads]
    own = torch.get_num_threads()
    allowed = usable_cpus()
    if device == "cpu" and own < allowed and own > 1 and "OMP_NUM_THREADS" not in os.environ:
        return [own, allowed]
    return [own]


def _remembered() -> dict[str, Any]:
    """Read what was measured before; nothing if that cannot be read."""
    try:
        values = read_json(measurements_file())
    except Exception:  # damaged or missing: measured again
        return {}
    return values if isinstance(values, dict) else {}


def _key(
    asked: MachineOptions,
    shape: StepShape,
    network: Network,
    device: str,
    num_images: int,
    candidates: list[Execution],
) -> str:
    """Name everything that an answer depends on."""
    options = {name: value for name, value in network.options.items() if name not in ("init", "bn_scale")}
    compiling = [asked.compile, num_images] if device == "cuda" else []
    return json.dumps(
        [str(network.name), network.num_classes, options, shape.size, shape.batch_size, shape.accumulate,
         str(torch.__version__), hardware_name(device), compiling, [candidate.settled() for candidate in candidates]]
    )  # fmt: skip
