"""The choice of the fastest configuration: by measurements, told, and never against what was asked for."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tuning import HOST, HOST_WITH_BF16, Rates, a_network, a_shape, decide

from wideresnet.base.errors import UsageError
from wideresnet.base.paths import measurements_file
from wideresnet.distributed.world import World
from wideresnet.kernels import library
from wideresnet.spec.execution import Execution
from wideresnet.spec.options import MachineOptions
from wideresnet.spec.recipe import Recipe
from wideresnet.spec.recipes import fast, paper
from wideresnet.training.preflight import autotune as module
from wideresnet.training.preflight.autotune import autotune, autotune_together
from wideresnet.training.preflight.trial import StepShape, time_candidates

pytestmark = pytest.mark.usefixtures("autotuning")


@pytest.mark.usefixtures("needs_kernels")
@pytest.mark.parametrize(
    ("rates", "kernels", "layout", "told"),
    [
        ({}, "winograd", "channels_last", "100"),
        ({"contiguous": 109.0}, "winograd", "channels_last", "100"),  # not clearly faster
        ({"contiguous": 111.0}, "pytorch", "contiguous", "111"),
        ({"PyTorch": 150.0}, "pytorch", "channels_last", "150"),
        ({"Winograd": 150.0}, "winograd", "channels_last", "150"),
    ],
)
def test_the_first_candidate_is_taken_unless_another_is_clearly_faster(
    rates: dict[str, float], kernels: str, layout: str, told: str
) -> None:
    measure = Rates(**rates)
    execution, notes = decide(measure)
    threads = torch.get_num_threads()
    assert execution == Execution(device="cpu", kernels=kernels, layout=layout, threads=threads)
    assert measure.tried("kernels", "layout") == [
        ("winograd", "channels_last"),
        ("pytorch", "channels_last"),
        ("pytorch", "contiguous"),
    ]
    assert notes.startswith(f"{execution.describe()}: {told} images/s")


@pytest.mark.usefixtures("needs_kernels")
def test_what_is_told_names_the_choice_and_how_the_others_fared() -> None:
    _, notes = decide(Rates(Winograd=200.0, contiguous=50.0), threads=1)
    assert notes == (
        "Winograd kernels, channels last, fp32, 1 thread: 200 images/s in a trial "
        "(PyTorch's kernels 100, PyTorch's kernels, contiguous 50.0)"
    )


@pytest.mark.usefixtures("needs_kernels")
@pytest.mark.parametrize(
    ("asked", "norm", "expected"),
    [
        ({"kernels": "pytorch"}, "batch", [("pytorch", "channels_last"), ("pytorch", "contiguous")]),
        ({"layout": "contiguous"}, "batch", [("pytorch", "contiguous")]),
        ({"layout": "channels_last"}, "batch", [("winograd", "channels_last"), ("pytorch", "channels_last")]),
        ({"precision": "bf16"}, "batch", [("pytorch", "channels_last")]),
        ({"compile": True}, "batch", [("pytorch", "channels_last"), ("pytorch", "contiguous")]),
        ({"kernels": "winograd"}, "batch", [("winograd", "channels_last")]),
        ({}, "group", [("pytorch", "channels_last"), ("pytorch", "contiguous")]),
    ],
    ids=str,
)
def test_what_is_asked_for_holds_in_every_candidate(
    asked: dict[str, Any], norm: str, expected: list[tuple[str, str]]
) -> None:
    measure = Rates()
    execution, _ = decide(measure, a_network(norm=norm), **asked)
    tried = measure.tried("kernels", "layout")
    assert (tried or [(execution.kernels, execution.layout)]) == expected
    assert bool(tried) == (len(expected) > 1)  # if nothing is left to choose, nothing is measured
    for name, value in asked.items():
        assert getattr(execution, name) == value
        assert all(got == (value,) for got in measure.tried(name))


@pytest.mark.usefixtures("needs_kernels")
def test_bf16_is_tried_beside_fp32_on_processors_with_instructions_for_it() -> None:
    measure = Rates(bf16=300.0)
    execution, _ = decide(measure, precision="auto", host=HOST_WITH_BF16)
    assert execution.precision == "bf16"
    assert measure.tried("kernels", "layout", "precision") == [
        ("winograd", "channels_last", "fp32"),
        ("pytorch", "channels_last", "fp32"),
        ("pytorch", "channels_last", "bf16"),
    ]
    pinned = decide(Rates(bf16=300.0), precision="auto", kernels="winograd", host=HOST_WITH_BF16)
    assert pinned[0].precision == "fp32"
    without = Rates(bf16=300.0)
    assert decide(without, precision="auto")[0].precision == "fp32"
    assert set(without.tried("precision")) == {("fp32",)}


def test_paper_stays_in_fp32_however_fast_bf16_is() -> None:
    measure = Rates(bf16=300.0)
    for data in ("cifar10", "svhn"):
        machine = paper("WRN-10-1", data).machine
        execution, _ = autotune(machine, a_shape(), a_network(), "cpu", 1000, measure=measure, host=HOST_WITH_BF16)
        assert execution.precision == "fp32"
    assert set(measure.tried("precision")) <= {("fp32",)}
    machine = fast("WRN-10-1", "cifar10").machine
    execution, _ = autotune(machine, a_shape(), a_network(), "cpu", 1000, measure=measure, host=HOST_WITH_BF16)
    assert execution.precision == "bf16"


@pytest.mark.usefixtures("needs_kernels")
@pytest.mark.parametrize(
    ("asked", "network", "device", "reason"),
    [
        ({}, {"norm": "group"}, "cpu", "the kernels know no GroupNorm"),
        ({}, {"name": "ResNet-8"}, "cpu", "pre-activation networks, and for ImageNet's"),
        ({"layout": "contiguous"}, {}, "cpu", "the kernels need layout channels_last"),
        ({"precision": "bf16"}, {}, "cpu", "they are for fp32 on a CPU, not compiled"),
        ({"compile": True}, {}, "cpu", "they are for fp32 on a CPU, not compiled"),
        ({}, {}, "cuda", "they are for fp32 on a CPU, not compiled"),
    ],
    ids=str,
)
def test_kernels_that_are_not_available_are_refused_with_the_reason(
    asked: dict[str, Any], network: dict[str, Any], device: str, reason: str
) -> None:
    with pytest.raises(UsageError, match=rf"^kernels='winograd': .*{reason}.*use kernels='pytorch'$"):
        decide(Rates(), a_network(**network), device=device, kernels="winograd", **asked)


def test_a_machine_without_a_compiler_is_told_and_trains_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "why_unavailable", lambda: "no C compiler here (gcc, cc or clang)")
    execution, notes = decide(Rates())
    assert execution.kernels == "pytorch"
    assert notes.startswith("PyTorch's kernels are used: no C compiler here (gcc, cc or clang); ")
    with pytest.raises(UsageError, match=r"^kernels='winograd': no C compiler here"):
        decide(Rates(), kernels="winograd")


@pytest.mark.usefixtures("a_gpu")
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
def test_more_threads_are_tried_if_pytorch_leaves_some_unused(
    monkeypatch: pytest.MonkeyPatch,
    asked_for: int | None,
    own: int,
    allowed: int,
    environment: str | None,
    tried: list[int],
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: own)
    monkeypatch.setattr(module, "usable_cpus", lambda: allowed)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if environment:
        monkeypatch.setenv("OMP_NUM_THREADS", environment)

    def threads(device: str) -> list[int]:
        measure = Rates()
        decide(measure, device=device, kernels="pytorch", threads=asked_for)
        return [num for num, layout in measure.tried("threads", "layout") if layout == "contiguous"]

    assert threads("cpu") == tried
    assert threads("cuda") == [asked_for or own]


def test_timing_can_be_turned_off_by_an_argument_or_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    measure = Rates(contiguous=1000.0)
    monkeypatch.setenv("WRN_AUTOTUNE", "off")
    for mode in ("off", None):
        execution, notes = decide(measure, kernels="pytorch", mode=mode)
        assert (execution.layout, notes, measure.asked) == ("channels_last", "", [])
    assert not measurements_file().exists()
    assert decide(measure, kernels="pytorch", mode="cached")[0].layout == "contiguous"  # the argument wins
    monkeypatch.setenv("WRN_AUTOTUNE", "sometimes")
    with pytest.raises(UsageError, match=r"^WRN_AUTOTUNE='sometimes': must be one of cached, again, off$"):
        decide(measure)
    with pytest.raises(UsageError, match=r"^autotune='never': must be one of cached, again, off$"):
        decide(measure, mode="never")


@pytest.mark.usefixtures("own_threads")
@pytest.mark.parametrize("name", ["WRN-10-1", "ResNet-8"])
def test_measuring_leaves_no_trace(name: str) -> None:
    torch.set_num_threads(1)
    network = a_network(name, dropout=0.2)
    before, modes = copy.deepcopy(network.state_dict()), [m.training for m in network.modules()]
    attributes, forward = dict(vars(network)), network.forward
    random = torch.get_rng_state()
    execution, notes = decide(time_candidates, network, threads=2)
    assert "images/s" in notes or "not measured, because" in notes  # on a busy machine
    assert execution.threads == 2
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert [m.training for m in network.modules()] == modes
    assert all(p.grad is None for p in network.parameters())
    assert vars(network) == attributes
    assert network.forward == forward
    assert torch.get_num_threads() == 1


class Together(World):
    """The first of several processes, to which the others listen; all have kernels."""

    def agree(self, value: Any) -> Any:
        return value

    def any_of(self, *flags: bool) -> tuple[bool, ...]:
        return flags


class SomeWithoutKernels(Together):
    """A world in which another process has no compiler."""

    def any_of(self, *flags: bool) -> tuple[bool, ...]:
        return (flags[0], *(True for _ in flags[1:]))


def test_several_processes_take_the_answer_for_a_share_of_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[MachineOptions, StepShape, int]] = []

    def spy(asked: MachineOptions, shape: StepShape, network: Any, device: str, num_images: int, **how: Any) -> Any:
        seen.append((asked, shape, num_images))
        return autotune(asked, shape, network, device, num_images, measure=Rates(contiguous=200.0), **how)

    monkeypatch.setattr(module, "autotune", spy)
    recipe = Recipe.flat(epochs=5, precision="fp32", deterministic=True, sync_bn=True)
    shape = a_shape(batch_size=7, accumulate=4)
    execution, notes = autotune_together(recipe, shape, a_network(), "cpu", 100, Together(size=3))
    ((asked, share, num_images),) = seen
    assert (share.batch_size, share.accumulate, num_images) == (3, 3, 500)
    assert (asked.kernels, asked.threads) == (recipe.machine.kernels, torch.get_num_threads())
    assert (execution.layout, execution.deterministic) == ("contiguous", True)
    assert "images/s" in notes[0]
    autotune_together(recipe, shape, a_network(), "cpu", 100, World.single())
    assert seen[1] == (recipe.machine, shape, 500)


@pytest.mark.usefixtures("needs_kernels")
@pytest.mark.parametrize("sync_bn", [False, True])
def test_processes_train_by_the_kernels_if_all_of_them_can(sync_bn: bool) -> None:
    recipe = Recipe.flat(precision="fp32", sync_bn=sync_bn)
    question = (recipe, a_shape(), a_network(), "cpu", 100)
    chosen, notes = autotune_together(*question, Together(size=2), measure=Rates(), host=HOST)
    assert (chosen.kernels, "PyTorch's kernels are used" in str(notes)) == ("winograd", False)
    chosen, notes = autotune_together(*question, SomeWithoutKernels(size=2), measure=Rates(), host=HOST)
    assert chosen.kernels == "pytorch"
    assert notes[0] == (
        "PyTorch's kernels are used: not every process can run the kernels (its machine needs gcc or clang)"
    )
    asked = recipe.replace(kernels="winograd")
    with pytest.raises(UsageError, match=r"^kernels='winograd': not every process can .*; use kernels='pytorch'$"):
        autotune_together(asked, *question[1:], SomeWithoutKernels(size=2), measure=Rates(), host=HOST)
