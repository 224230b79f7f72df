"""The choice of the fastest way to train: by measurements, told, remembered, and without a trace on the network."""

from __future__ import annotations

import copy
import errno
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from wideresnet.base.errors import UsageError
from wideresnet.base.paths import measurements_file
from wideresnet.engines import winograd as fast
from wideresnet.kernels.library import why_unavailable
from wideresnet.networks import Network, create
from wideresnet.spec import record
from wideresnet.spec.recipe import Recipe
from wideresnet.training.preflight import autotune as tune
from wideresnet.training.preflight.autotune import arrange, describe_configuration, settle

MEASURE = tune._measure  # before conftest.py puts another in its place
Settings = dict[str, Any]


def a_recipe(**changes: Any) -> Recipe:
    values = {"network": "WRN-10-1", "data": "digits", "batch_size": 8, "precision": "fp32", **changes}
    return Recipe.flat(**values)


def a_network(name: str = "WRN-10-1", **options: Any) -> Network:
    torch.manual_seed(0)
    return create(name, 4, **options)


def settled(recipe: Recipe, network: Network | None = None, device: str = "cpu", **more: Any) -> tuple[Recipe, str]:
    """The recipe as settled, and the notes as one text."""
    values = {"size": (8, 8), "num_images": 1000, **more}
    result, notes = settle(recipe, network or a_network(), device, **values)
    assert all("\n" not in note for note in notes)
    return result, "; ".join(notes)


@pytest.fixture
def rates(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, float]], list[list[Settings]]]:
    """Sets images a second for ways whose words hold the keys, 100 for others; returns what is then measured."""

    def set_rates(by_word: dict[str, float]) -> list[list[Settings]]:
        asked: list[list[Settings]] = []

        def measure(*args: Any) -> list[float]:
            asked.append(list(args[-1]))
            words = [tune.describe_settings(settings) for settings in args[-1]]
            return [max([rate for word, rate in by_word.items() if word in text], default=100.0) for text in words]

        monkeypatch.setattr(tune, "_measure", measure)
        return asked

    return set_rates


@pytest.fixture
def needs_kernels() -> None:
    if reason := why_unavailable():
        pytest.skip(reason)


@pytest.fixture
def a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `settle` asks of a GPU, where there is none."""
    monkeypatch.setattr(tune, "hardware_name", lambda device: f"a {device} device")
    monkeypatch.setattr(tune, "reset_peak_memory", lambda _: True)
    monkeypatch.setattr(tune, "pick_precision", lambda wanted, _: "bf16" if wanted == "auto" else wanted)


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("needs_kernels")
@pytest.mark.parametrize(
    ("by_word", "kernels", "layout"),
    [
        ({}, "winograd", "channels_last"),
        ({"contiguous": 109.0}, "winograd", "channels_last"),  # not clearly faster
        ({"contiguous": 111.0}, "pytorch", "contiguous"),
        ({"PyTorch": 150.0}, "pytorch", "channels_last"),
        ({"Winograd": 150.0}, "winograd", "channels_last"),
    ],
)
def test_the_first_way_is_taken_unless_another_is_clearly_faster(
    rates: Any, by_word: dict[str, float], kernels: str, layout: str
) -> None:
    asked = rates(by_word)
    recipe, notes = settled(a_recipe())
    assert (recipe.machine.kernels, recipe.machine.layout, recipe.machine.precision, recipe.machine.compile) == (
        kernels,
        layout,
        "fp32",
        False,
    )
    assert recipe.machine.threads == torch.get_num_threads()
    assert [(way["kernels"], way["layout"]) for way in asked[0]] == [
        ("winograd", "channels_last"),
        ("pytorch", "channels_last"),
        ("pytorch", "contiguous"),
    ]
    assert notes.startswith(describe_configuration(recipe))
    assert (
        f"{by_word.get('PyTorch', 100.0) if kernels == 'pytorch' and not by_word.get('contiguous') else 100:.3g}"
        in notes
    )


@pytest.mark.usefixtures("needs_kernels")
def test_what_is_told_names_the_choice_and_how_the_others_fared(rates: Any) -> None:
    rates({"Winograd": 200.0, "contiguous": 50.0})
    _, notes = settled(a_recipe(threads=1))
    assert notes == (
        "Winograd kernels, channels last, fp32, 1 thread: 200 images/s in a trial "
        "(PyTorch's kernels 100, PyTorch's kernels, contiguous 50)"
    )


@pytest.mark.usefixtures("needs_kernels")
@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"kernels": "pytorch"}, [("pytorch", "channels_last"), ("pytorch", "contiguous")]),
        ({"layout": "contiguous"}, [("pytorch", "contiguous")]),
        ({"layout": "channels_last"}, [("winograd", "channels_last"), ("pytorch", "channels_last")]),
        ({"precision": "bf16"}, [("pytorch", "channels_last")]),
        ({"compile": True}, [("pytorch", "channels_last"), ("pytorch", "contiguous")]),
        ({"kernels": "winograd"}, [("winograd", "channels_last")]),
        ({"norm": "group"}, [("pytorch", "channels_last"), ("pytorch", "contiguous")]),
    ],
    ids=str,
)
def test_what_the_recipe_says_holds_in_every_way(
    rates: Any, changes: Settings, expected: list[tuple[str, str]]
) -> None:
    asked = rates({})
    recipe, _ = settled(a_recipe(**changes), a_network(norm=changes.get("norm", "batch")))
    tried = (
        [(way["kernels"], way["layout"]) for way in asked[0]]
        if asked
        else [(recipe.machine.kernels, recipe.machine.layout)]
    )
    assert tried == expected
    assert bool(asked) == (len(expected) > 1)  # where nothing is left to choose, nothing is measured
    for name, value in changes.items():
        assert getattr(recipe, name) == value


@pytest.mark.usefixtures("needs_kernels")
def test_bf16_is_tried_beside_fp32_where_a_convolution_is_faster_so(
    rates: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tune, "pick_precision", lambda *_: "bf16")
    asked = rates({"bf16": 300.0})
    recipe, _ = settled(a_recipe(precision="auto"))
    assert recipe.machine.precision == "bf16"
    assert [(w["kernels"], w["layout"], w["precision"]) for w in asked[0]] == [
        ("winograd", "channels_last", "fp32"),
        ("pytorch", "channels_last", "fp32"),
        ("pytorch", "channels_last", "bf16"),
    ]
    assert settled(a_recipe(precision="auto", kernels="winograd"))[0].machine.precision == "fp32"


@pytest.mark.usefixtures("needs_kernels")
@pytest.mark.parametrize(
    ("changes", "device", "reason"),
    [
        ({"norm": "group"}, "cpu", "the kernels know no GroupNorm"),
        ({"network": "ResNet-8"}, "cpu", "the kernels are for pre-activation networks for small images"),
        ({"layout": "contiguous"}, "cpu", "the kernels need layout channels_last"),
        ({"precision": "bf16"}, "cpu", "the kernels are for fp32 on a CPU, not compiled"),
        ({"compile": True}, "cpu", "the kernels are for fp32 on a CPU, not compiled"),
        ({}, "cuda", "the kernels are for fp32 on a CPU, not compiled"),
    ],
    ids=str,
)
def test_kernels_that_cannot_be_had_are_refused_in_one_line(changes: Settings, device: str, reason: str) -> None:
    recipe = a_recipe(kernels="winograd", **changes)
    network = a_network(recipe.network, norm=recipe.network_options.norm)
    with pytest.raises(UsageError) as refusal:
        settled(recipe, network, device)
    assert str(refusal.value) == f"kernels winograd: {reason}; use --kernels pytorch"


def test_a_machine_without_a_compiler_is_told_and_trains_all_the_same(
    rates: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates({})
    monkeypatch.setattr(fast, "why_unavailable", lambda: "no C compiler here (gcc, cc or clang)")
    recipe, notes = settled(a_recipe())
    assert recipe.machine.kernels == "pytorch"
    assert notes.startswith("PyTorch's kernels are used: no C compiler here (gcc, cc or clang); ")
    with pytest.raises(UsageError, match=r"^kernels winograd: no C compiler here .*; use --kernels pytorch$"):
        settled(a_recipe(kernels="winograd"))


@pytest.mark.parametrize(
    ("asked_for", "own", "allowed", "environment", "tried"),
    [
        (None, 4, 8, None, [4, 8]),
        (None, 4, 4, None, [4]),
        (None, 1, 8, None, [1]),  # somebody wants one
        (None, 4, 8, "4", [4]),
        (3, 4, 8, None, [3]),
    ],
)
def test_threads_are_tried_where_pytorch_leaves_some_unused(
    monkeypatch: pytest.MonkeyPatch,
    asked_for: int | None,
    own: int,
    allowed: int,
    environment: str | None,
    tried: list[int],
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: own)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(allowed)), raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if environment:
        monkeypatch.setenv("OMP_NUM_THREADS", environment)
    assert tune._thread_counts(a_recipe(threads=asked_for), "cpu") == tried
    assert tune._thread_counts(a_recipe(threads=asked_for), "cuda") == [asked_for or own]


def test_an_answer_is_remembered_for_the_same_question(rates: Any) -> None:
    asked = rates({"contiguous": 200.0})
    first, told = settled(a_recipe())
    asked_again = rates({"channels last": 200.0})
    again, told_again = settled(a_recipe(epochs=3, lr=0.01, seed=7))
    assert (len(asked), asked_again) == (1, [])
    assert describe_configuration(again) == describe_configuration(first)
    assert told_again == f"{told} (measured before)"
    others: list[tuple[Recipe, dict[str, Any]]] = [
        (a_recipe(batch_size=16), {}),
        (a_recipe(accumulate=2), {}),
        (a_recipe(threads=3), {}),
        (a_recipe(kernels="pytorch"), {}),
        (a_recipe(), {"size": (16, 16)}),
        (a_recipe(), {"network": a_network("WRN-10-2")}),
        (a_recipe(), {"network": a_network(dropout=0.1)}),
        (a_recipe(), {"network": a_network(in_channels=1)}),
    ]
    for other, options in others:
        before = len(asked_again)
        settled(other, **options)
        assert len(asked_again) == before + 1, (other, options)
    assert settled(a_recipe())[1] == told_again  # which the others did not push out


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[1, 2]",
        b'{"KEY": 3}',
        b'{"KEY": "text"}',
        b'{"KEY": {"settings": {"kernels": "winograd"}, "told": ""}}',
        b'{"KEY": {"settings": {"kernels": "none", "layout": 1, "precision": 2, "threads": 0, "compile": 9}}}',
        b'{"KEY": {"settings": 5, "told": "x"}}',
    ],
)
def test_a_damaged_memory_is_measured_anew_and_mended(rates: Any, damage: bytes) -> None:
    asked = rates({})
    settled(a_recipe())
    (key,) = json.loads(measurements_file().read_text())
    measurements_file().write_bytes(damage.replace(b'"KEY"', json.dumps(key).encode()))
    settled(a_recipe())
    assert len(asked) == 2
    settled(a_recipe())
    assert len(asked) == 2


def test_a_memory_that_cannot_be_written_costs_nothing_else(
    rates: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rates({})
    (tmp_path / "file").touch()
    monkeypatch.setenv("WRN_DATA", str(tmp_path / "file"))
    settled(a_recipe())

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setenv("WRN_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(record.os, "fsync", full)
    settled(a_recipe())
    assert not measurements_file().exists()


def test_the_memory_keeps_the_newest_answers(rates: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune, "REMEMBERED", 3)
    asked = rates({})
    for batch_size in (1, 2, 3, 4):
        settled(a_recipe(batch_size=batch_size))
    assert len(json.loads(measurements_file().read_text())) == 3
    settled(a_recipe(batch_size=2))
    assert len(asked) == 4
    settled(a_recipe(batch_size=1))
    assert len(asked) == 5


@pytest.mark.usefixtures("a_gpu")
@pytest.mark.parametrize(
    ("epochs", "by_word", "compiled"),
    [
        (1, {"compiled": 900.0}, None),  # 10 s a run: not tried
        (100, {"compiled": 900.0}, True),
        (100, {"compiled": 105.0}, False),
        (100, {"channels last": 9000.0}, None),  # too fast for compiling to pay
    ],
)
def test_on_a_gpu_compiling_is_tried_for_long_runs_alone(
    rates: Any, epochs: int, by_word: dict[str, float], compiled: bool | None
) -> None:
    asked = rates(by_word)
    recipe, notes = settled(a_recipe(epochs=epochs, precision="auto"), device="cuda")
    assert (recipe.machine.kernels, recipe.machine.precision, recipe.machine.compile) == (
        "pytorch",
        "bf16",
        bool(compiled),
    )
    assert len(asked) == (1 if compiled is None else 2)
    assert not any(way["compile"] for way in asked[0])
    if compiled is not None:
        assert [way["compile"] for way in asked[1]] == [True]
        assert "compiled" in notes
    number = len(asked)
    assert settled(a_recipe(epochs=epochs, precision="auto"), device="cuda") == (recipe, f"{notes} (measured before)")
    assert len(asked) == number


@pytest.mark.usefixtures("a_gpu")
@pytest.mark.parametrize("compile_", [True, False])
def test_on_a_gpu_an_answer_about_compiling_is_not_asked_again(rates: Any, compile_: bool) -> None:
    asked = rates({})
    recipe, _ = settled(a_recipe(epochs=1000, compile=compile_), device="cuda")
    assert recipe.machine.compile is compile_
    assert [way["compile"] for ways in asked for way in ways] == [compile_] * 2


@pytest.mark.usefixtures("a_gpu")
def test_on_a_gpu_a_compiler_that_fails_is_told_and_left_out(rates: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rates({})
    measure = tune._measure

    def failing(*args: Any) -> list[float]:
        if args[-1][0]["compile"]:
            raise RuntimeError("no Triton\nanywhere here")
        return measure(*args)

    monkeypatch.setattr(tune, "_measure", failing)
    recipe, notes = settled(a_recipe(epochs=1000, layout="channels_last"), device="cuda")
    assert recipe.machine.compile is False
    assert notes == (
        "not compiled: RuntimeError: no Triton anywhere here; "
        f"PyTorch's kernels, channels last, fp32, {recipe.machine.threads} thread: 100 images/s in a trial"
    )


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("name", ["WRN-10-1", "ResNet-8"])
def test_measuring_leaves_no_trace(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(tune, "_measure", MEASURE)
    torch.set_num_threads(1)
    network = a_network(name, dropout=0.2)
    before, modes = copy.deepcopy(network.state_dict()), [m.training for m in network.modules()]
    random = torch.get_rng_state()
    recipe, notes = settled(a_recipe(threads=2), network)
    assert "images/s" in notes
    assert recipe.machine.threads == 2
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert [m.training for m in network.modules()] == modes
    assert all(p.grad is None for p in network.parameters())
    assert network.kernels is False
    assert torch.get_num_threads() == 1


@pytest.mark.usefixtures("threads")
def test_threads_are_put_back_where_measuring_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object, **__: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(tune, "_measure", MEASURE)
    monkeypatch.setattr(tune, "train_step", failing)
    torch.set_num_threads(1)
    with pytest.raises(RuntimeError, match="out of memory"):
        settled(a_recipe(threads=2))
    assert torch.get_num_threads() == 1


def test_every_way_is_measured_by_whole_steps_of_what_goes_through_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    train_step = tune.train_step

    def counting(*args: Any, **kwargs: Any) -> None:
        sizes.append(len(args[2]))
        train_step(*args, **kwargs)

    monkeypatch.setattr(tune, "train_step", counting)
    network, size = a_network("ResNet-8"), (4, 4)  # whose last maps are 1x1: a part of one image has no statistics
    recipe = a_recipe(network="ResNet-8", batch_size=8, accumulate=4)
    ways = tune._candidates(recipe, network, "cpu", size, [])
    rates = MEASURE(recipe, network, "cpu", size, ways)
    assert len(rates) == len(ways) == 2
    assert all(0 < rate < float("inf") for rate in rates)
    assert set(sizes) == {2}


def test_a_whole_batch_is_extrapolated_from_two_sizes_of_it_within_what_noise_may_do() -> None:
    def of(low: float, high: float) -> float:
        return tune._extrapolated((8, low), (32, high), 128)

    assert of(0.1 + 8 * 0.01, 0.1 + 32 * 0.01) == pytest.approx(0.1 + 128 * 0.01)  # work on weights counts once
    assert of(0.4, 0.32) == pytest.approx(0.32 + 96 * 0.005)  # fewer images cannot take longer
    assert of(0.01, 0.32) == pytest.approx(128 * 0.01)
    assert of(0.08, float("inf")) == pytest.approx(1.28)


def test_a_way_is_tried_until_it_gets_no_better_and_a_hopeless_one_on_few_images_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A way that first pays for memory is not taken for a slow one."""
    now, steps = 0.0, {number: list[str]() for number in range(33)}

    def step(_network: Any, _optimizer: Any, images: Any, *args: Any, **_: Any) -> None:
        nonlocal now
        way, num = args[2].layout, len(images)
        steps[num].append(way)
        number = steps[num].count(way)
        now += {"channels_last": 0.001 * num + 0.1 / 4**number, "contiguous": 0.002 * num}[way]

    monkeypatch.setattr(tune, "train_step", step)
    monkeypatch.setattr(tune.time, "perf_counter", lambda: now)
    recipe, network = a_recipe(network="ResNet-8", batch_size=128, kernels="pytorch"), a_network("ResNet-8")
    ways = tune._candidates(recipe, network, "cpu", (8, 8), [])
    rates = MEASURE(recipe, network, "cpu", (8, 8), ways)
    assert rates == [pytest.approx(1000, rel=0.02), pytest.approx(500)]
    assert steps[8].count("channels_last") > steps[8].count("contiguous") == tune.FEWEST_STEPS
    assert set(steps[32]) == {"channels_last"}


@pytest.mark.usefixtures("threads")
def test_a_settled_recipe_arranges_the_network() -> None:
    for kernels, layout, memory in (
        ("winograd", "channels_last", torch.channels_last),
        ("pytorch", "contiguous", torch.contiguous_format),
    ):
        network = arrange(a_network(), a_recipe(kernels=kernels, layout=layout, threads=2, compile=False))
        assert network.kernels == (kernels == "winograd")
        assert network.get_parameter("groups.0.0.convs.0.weight").is_contiguous(memory_format=memory)
        assert torch.get_num_threads() == 2
