"""The fastest way to run a network on the machine at hand: measured, told, and remembered for the next run."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import nn

from wideresnet.config import Recipe
from wideresnet.errors import UsageError, WRNError
from wideresnet.networks import Network
from wideresnet.networks.cost import cost
from wideresnet.places import measurements_file
from wideresnet.record import read_json, write_json
from wideresnet.training.machine import hardware_name, keep_memory, pick_precision, synchronise
from wideresnet.training.optimizer import make_optimizer
from wideresnet.training.step import Meter, train_step

PROBE_FLOPS = 60e9  # a step of about half a second on two CPU cores
PROBE_IMAGES = (8, 32)  # as few say nothing about work on weights; more say nothing new
ROUNDS = 3
HOPELESS = 1.5  # what is so many times slower, twice, is not tried again
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
        compiled = [{**candidate, "compile": True} for candidate in candidates if recipe.compile is None]
        if known["settings"] in (candidates if device == "cpu" else candidates + compiled):
            return dataclasses.replace(recipe, **known["settings"]), [*notes, f"{known['told']} (measured before)"]
    rates = _measure(recipe, network, device, size, candidates)
    if device == "cuda" and recipe.compile is None and recipe.epochs * num_images / max(rates) > LONG_RUN_S:
        compiled = {**candidates[rates.index(max(rates))], "compile": True}
        try:
            rates += _measure(recipe, network, device, size, [compiled])
            candidates.append(compiled)
        except Exception as error:  # a compiler that is not there or fails in any of its ways leaves what works
            notes.append(f"not compiled: {type(error).__name__}: {' '.join(str(error).split())[:160]}")
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
    """The network laid out and run as a settled recipe says; threads and allocator of this process too."""
    set_threads(recipe.threads)
    keep_memory()
    network.kernels = recipe.kernels == "winograd"
    layout = torch.channels_last if recipe.layout == "channels_last" else torch.contiguous_format
    return network.to(memory_format=layout)  # type: ignore[call-overload]


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
        reason = network.why_no_kernels(torch.zeros(2, network.in_channels, *size))
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
        if precision == "bf16" and layout == "contiguous" and recipe.layout == "auto":
            continue  # never the faster one where matrix units multiply
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
    """Images a second of each way: the best of a few training steps, taken in turns."""
    low, high = PROBE_IMAGES
    num_images = -(-recipe.batch_size // recipe.accumulate)  # what goes through at once
    recipe = dataclasses.replace(recipe, accumulate=1)
    if device == "cpu":
        flops = max(1, cost(network, size, batch_size=2).training_flops)
        num_images = min(num_images, high, max(low, int(PROBE_FLOPS / flops)))
    best = [float("inf")] * len(candidates)
    with _threads_kept(), torch.random.fork_rng(devices=[torch.cuda.current_device()] if device == "cuda" else []):
        images = torch.randn(num_images, network.in_channels, *size, device=device)
        images = images.contiguous(memory_format=torch.channels_last)  # as a feed yields them
        labels = torch.randint(network.num_classes, (num_images,), device=device)
        runs = []
        for settings in candidates:
            way = dataclasses.replace(recipe, **settings)
            twin = arrange(copy.deepcopy(network).to(device), way).train()
            forward: nn.Module = torch.compile(twin, dynamic=False) if way.compile else twin  # type: ignore[assignment]
            runs.append((way, forward, make_optimizer(twin, way)))
        for number in range(ROUNDS + 1):
            for i, (way, forward, optimizer) in enumerate(runs):
                warm_up = number == 0
                if number == ROUNDS and best[i] > HOPELESS * min(best):  # the first round pays for memory too
                    continue
                few = 2 if warm_up and device == "cpu" else num_images  # a CPU needs no more to have all in place
                set_threads(way.threads)
                synchronise(device)
                start = time.perf_counter()
                train_step(forward, optimizer, images[:few], labels[:few], Meter(device), way, device, step=0, lr=0.0)
                synchronise(device)
                if not warm_up:
                    best[i] = min(best[i], time.perf_counter() - start)
    return [num_images / seconds for seconds in best]


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
