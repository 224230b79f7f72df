"""The fastest way to run a network on the machine at hand: measured, told, and remembered for the next run."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json
import os
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import nn

from wideresnet.base.errors import UsageError, WRNError
from wideresnet.base.paths import measurements_file
from wideresnet.engines import accelerate, why_no_kernels
from wideresnet.machine.description import hardware_name
from wideresnet.machine.device import pick_precision, synchronise
from wideresnet.machine.memory import keep_memory, reset_peak_memory
from wideresnet.networks import Network
from wideresnet.spec.recipe import Recipe
from wideresnet.spec.record import read_json, write_json
from wideresnet.training.optimizer import make_optimizer
from wideresnet.training.step import Meter, train_step

FEW, MANY, MOST = 8, 16, 32
"""Images of the batches that are tried on a CPU: FEW, and then MANY, or MOST where steps are short. Work on weights,
which does not grow with the batch, counts for too much in them: a whole batch's time is extrapolated."""

LONG_STEP_S = 0.3
FEWEST_STEPS, MOST_STEPS = 3, 5  # of a way; the former one less where steps are long
SETTLED_AT = 0.9  # of a way's best: a step that takes no less is its last; the first steps pay for memory
HOPELESS = 1.6  # what is so many times slower on few images is not tried on many
CLEARLY_FASTER = 1.1  # the first is kept unless another is so many times as fast, so that noise decides nothing
LONG_RUN_S = 300.0  # compiling takes about a minute
REMEMBERED = 200


def settle(
    recipe: Recipe, network: Network, device: str, size: tuple[int, int], num_images: int
) -> tuple[Recipe, list[str]]:
    """The recipe with kernels, layout, precision, threads and compile settled, and what to tell about it.

    What the recipe leaves open is measured by a few training steps of a copy of the network; the answer is remembered
    under the cache folder for the same network, images, versions and hardware.

    Args:
        network: on the CPU, with its first weights; left as it is.
        size: height and width of the images, px.
        num_images: in an epoch; compiling is tried only where the run is long enough to pay for it.

    Raises:
        UsageError: what is asked for cannot be had here.
    """
    notes: list[str] = []
    candidates = _candidates(recipe, network, device, size, notes)
    if len(candidates) == 1 and (device == "cpu" or recipe.compile is not None):
        return dataclasses.replace(recipe, **candidates[0]), notes
    key = _key(recipe, network, device, size, num_images, candidates)
    remembered = _remembered()
    with suppress(KeyError, TypeError):
        known = remembered[key]
        ways = candidates + [
            {**way, "compile": True} for way in candidates if device == "cuda" and recipe.compile is None
        ]
        if known["settings"] in ways:
            return dataclasses.replace(recipe, **known["settings"]), [*notes, f"{known['told']} (measured before)"]
    try:
        rates = _measure(recipe, network, device, size, candidates)
    except torch.OutOfMemoryError:  # the plan, which begins with few images, will say how many fit
        torch.cuda.empty_cache()
        return dataclasses.replace(recipe, **candidates[0]), notes
    if device == "cuda" and recipe.compile is None and recipe.epochs * num_images / max(rates) > LONG_RUN_S:
        way = {**candidates[rates.index(max(rates))], "compile": True}
        try:
            rates += _measure(recipe, network, device, size, [way])
            candidates.append(way)
        except Exception as error:  # a compiler that is not there or fails in any of its ways leaves what works
            notes.append(f"not compiled: {type(error).__name__}: {' '.join(str(error).split())[:160]}")
    if device == "cuda":
        torch.cuda.empty_cache()
    reset_peak_memory(device)  # the trial's memory is none of the run's
    best = max(range(len(candidates)), key=lambda i: rates[i])
    chosen = best if rates[best] > CLEARLY_FASTER * rates[0] else 0
    told = f"{describe_settings(candidates[chosen])}: {rates[chosen]:.3g} images/s in a trial"
    if others := [
        f"{describe_settings(c, candidates[chosen])} {rate:.3g}"
        for i, (c, rate) in enumerate(zip(candidates, rates, strict=True))
        if i != chosen
    ]:
        told += f" ({', '.join(others)})"
    newest = dict(itertools.islice(remembered.items(), max(0, len(remembered) + 1 - REMEMBERED), None))
    with suppress(OSError, WRNError):  # a folder that cannot be written to costs the next run a few seconds, no more
        measurements_file().parent.mkdir(parents=True, exist_ok=True)
        write_json(measurements_file(), {**newest, key: {"settings": candidates[chosen], "told": told}})
    return dataclasses.replace(recipe, **candidates[chosen]), [*notes, told]


def arrange(network: Network, recipe: Recipe) -> Network:
    """Lay out the network in memory as a settled recipe says; also set the threads and allocator of this process."""
    set_threads(recipe.threads)
    keep_memory()
    if next(network.parameters()).is_cuda:  # the fastest of cuDNN's ways for each shape, as the published scripts do
        torch.backends.cudnn.benchmark = not recipe.deterministic
    layout = torch.channels_last if recipe.layout == "channels_last" else torch.contiguous_format
    return network.to(memory_format=layout)  # type: ignore[call-overload]


def forward_of(network: Network, recipe: Recipe) -> nn.Module:
    """Return the module that runs a network as a settled recipe says: compiled, accelerated, or the network itself."""
    if recipe.compile:
        return compiled(network)
    return accelerate(network) if recipe.kernels == "winograd" else network


def compiled(network: nn.Module) -> nn.Module:
    """The network compiled by PyTorch, which counts the forms of all networks' `forward` together."""
    torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
    return torch.compile(network, dynamic=False)  # type: ignore[return-value]  # a module for a module


def set_threads(threads: int | None) -> None:
    """Let PyTorch and the kernels use so many threads; None leaves them as they are."""
    if threads and threads != torch.get_num_threads():
        torch.set_num_threads(threads)


def describe_configuration(recipe: Recipe) -> str:
    """A settled recipe's way of running, in words."""
    return describe_settings({name: getattr(recipe, name) for name in _SETTINGS})


def describe_settings(settings: dict[str, Any], than: dict[str, Any] | None = None) -> str:
    """Settings in words; only those that differ from other ones, where these are given."""
    words = {
        "kernels": {"winograd": "Winograd kernels", "pytorch": "PyTorch's kernels"}.get(settings["kernels"], "-"),
        "layout": str(settings["layout"]).replace("_", " "),
        "precision": settings["precision"],
        "threads": f"{settings['threads']} thread{'s' if settings['threads'] != 1 else ''}",
        "compile": "compiled" if settings["compile"] else "not compiled",
    }
    names = [name for name in words if than is None or settings[name] != than[name]]
    return ", ".join(words[name] for name in names if than is not None or name != "compile" or settings["compile"])


_SETTINGS = ("kernels", "layout", "precision", "threads", "compile")


def _candidates(
    recipe: Recipe, network: Network, device: str, size: tuple[int, int], notes: list[str]
) -> list[dict[str, Any]]:
    """The ways to try, the likely fastest first; all that the recipe says already holds in each."""
    kernels = ["pytorch"]
    if device == "cpu" and recipe.kernels != "pytorch" and recipe.precision != "bf16" and not recipe.compile:
        reason = why_no_kernels(network, torch.zeros(2, network.in_channels, *size))
        if reason is None and recipe.layout == "contiguous":
            reason = "the kernels need layout channels_last"
        if reason is None:
            kernels = ["winograd"] if recipe.kernels == "winograd" else ["winograd", "pytorch"]
        elif recipe.kernels == "winograd":
            raise UsageError(f"kernels winograd: {reason}; use --kernels pytorch")
        else:
            notes.append(f"PyTorch's kernels are used: {reason}")
    elif recipe.kernels == "winograd":
        raise UsageError("kernels winograd: the kernels are for fp32 on a CPU, not compiled; use --kernels pytorch")
    layouts = ["channels_last", "contiguous"] if recipe.layout == "auto" else [recipe.layout]
    precisions = [pick_precision(recipe.precision, device)]
    if device == "cpu" and recipe.precision == "auto" and precisions == ["bf16"]:
        precisions = ["fp32", "bf16"]
    ways = []
    for kernel, layout, precision in itertools.product(kernels, layouts, precisions):
        if kernel == "winograd" and (layout, precision) != ("channels_last", "fp32"):
            continue
        if "bf16" in precisions and layout == "contiguous" and recipe.layout == "auto":
            continue  # never the faster one where there are instructions for bf16
        for threads in _thread_counts(recipe, device):
            ways.append(dict(zip(_SETTINGS, (kernel, layout, precision, threads, bool(recipe.compile)), strict=True)))
    return ways


def _thread_counts(recipe: Recipe, device: str) -> list[int]:
    """PyTorch's own choice, and on a CPU where that leaves some unused, one for each that this process may use."""
    if recipe.threads:
        return [recipe.threads]
    own = torch.get_num_threads()
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or own
    if device == "cpu" and own < allowed and own > 1 and "OMP_NUM_THREADS" not in os.environ:
        return [own, allowed]
    return [own]


def _measure(
    recipe: Recipe, network: Network, device: str, size: tuple[int, int], candidates: list[dict[str, Any]]
) -> list[float]:
    """Images a second of each way in a step of the recipe, from the best of a few training steps taken in turns."""
    whole = -(-recipe.batch_size // recipe.accumulate)  # what goes through at once
    recipe = dataclasses.replace(recipe, accumulate=1)
    with _threads_kept(), torch.random.fork_rng(devices=[torch.cuda.current_device()] if device == "cuda" else []):
        images = torch.randn(whole if device == "cuda" else min(whole, MOST), network.in_channels, *size, device=device)
        images = images.contiguous(memory_format=torch.channels_last)  # as a feed yields them
        labels = torch.randint(network.num_classes, (len(images),), device=device)
        runs = []
        for settings in candidates:
            way = dataclasses.replace(recipe, **settings)
            twin = arrange(copy.deepcopy(network).to(device), way).train()
            runs.append((way, forward_of(twin, way), make_optimizer(twin, way)))

        def turns(num_images: int, among: Collection[int]) -> list[float]:
            """Each way's best seconds of a step, taken until they get no better."""
            best, waiting = [float("inf")] * len(runs), set(among)
            for number in range(1, MOST_STEPS + 1):
                for i in sorted(waiting):
                    way, forward, optimizer = runs[i]
                    set_threads(way.threads)
                    synchronise(device)
                    start = time.perf_counter()
                    train_step(
                        forward, optimizer, images[:num_images], labels[:num_images], Meter(device), way, device,
                        step=0, lr=0.0,
                    )  # fmt: skip
                    synchronise(device)
                    took = time.perf_counter() - start
                    fewest = FEWEST_STEPS - (took > LONG_STEP_S)
                    if number >= fewest and took > SETTLED_AT * best[i]:
                        waiting.remove(i)
                    best[i] = min(best[i], took)
            return best

        everyone = range(len(runs))
        if device == "cuda" or whole <= FEW:
            return [whole / seconds for seconds in turns(whole, everyone)]
        small = turns(FEW, everyone)
        many = min(whole, MOST if min(small) < LONG_STEP_S else MANY)
        large = turns(many, [i for i in everyone if small[i] < HOPELESS * min(small)])
    return [whole / _extrapolated((FEW, low), (many, high), whole) for low, high in zip(small, large, strict=True)]


def _extrapolated(small: tuple[int, float], large: tuple[int, float], whole: int) -> float:
    """Seconds of a step of `whole` images, from (images, seconds) of two smaller ones, the larger perhaps not taken.

    Between half and all of the larger one's time is taken to grow with the images, whatever noise makes of the two.
    """
    (few, low), (many, high) = small, large
    if high == float("inf"):
        return low * whole / few
    each = min(max((high - low) / (many - few), high / many / 2), high / many)
    return high + (whole - many) * each


@contextmanager
def _threads_kept() -> Iterator[None]:
    """Leave PyTorch's number of threads as it was."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        set_threads(before)


def _remembered() -> dict[str, Any]:
    """What was measured before; nothing where that cannot be read."""
    try:
        values = read_json(measurements_file())
    except Exception:  # damaged or not there: it is measured again
        return {}
    return values if isinstance(values, dict) else {}


def _key(
    recipe: Recipe,
    network: Network,
    device: str,
    size: tuple[int, int],
    num_images: int,
    candidates: list[dict[str, Any]],
) -> str:
    """What an answer depends on."""
    options = {name: value for name, value in network.options.items() if name not in ("init", "bn_scale")}
    compiling = [recipe.compile, num_images * recipe.epochs] if device == "cuda" else []
    return json.dumps(
        [str(network.name), network.num_classes, options, size, recipe.batch_size, recipe.accumulate,
         str(torch.__version__), hardware_name(device), compiling, candidates]
    )  # fmt: skip
