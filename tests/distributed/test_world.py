"""Several processes train as one: the same numbers, one record, one end. Two or three of them, over gloo on the CPU."""

from __future__ import annotations

import copy
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from processes import in_processes
from safetensors.torch import load_file
from torch import Tensor, nn

import wideresnet.distributed.world as distributed
import wideresnet.spec.record
import wideresnet.training.loop as loop
from wideresnet.base.errors import UsageError
from wideresnet.commands.main import main
from wideresnet.data.feeds.resident import share_of
from wideresnet.data.preprocess import Preprocessing
from wideresnet.distributed.launch import is_launched
from wideresnet.distributed.sync_norm import SyncBatchNorm2d, synchronise_norms
from wideresnet.distributed.world import GradientSum, World, describe_batch, join
from wideresnet.networks import create
from wideresnet.networks.blocks import draw_depth_from
from wideresnet.spec.recipe import Recipe
from wideresnet.spec.record import RunFolder
from wideresnet.training import evaluate, fit
from wideresnet.training.step import train_step

MakeNpz = Callable[..., Path]


def small(data: Path, **changes: Any) -> Recipe:
    values = {"epochs": 2, "batch_size": 16, "crop_padding": 1, "device": "cpu", "precision": "fp32", "lr": 0.05}
    return Recipe.flat(network="WRN-10-1", data=str(data), lr_drop_epochs=(2,), **{**values, **changes})


def weights(run: Path) -> bytes:
    return (run / "model.safetensors").read_bytes()


def metrics(run: Path) -> list[dict[str, Any]]:
    """The records without their times."""
    return [{k: v for k, v in r.items() if not k.endswith("_s")} for r in RunFolder(run).read_metrics()]


def assert_close(run: Path, other: Path, tolerance: float) -> None:
    """The same weights and statistics up to a share of each tensor's size."""
    found, expected = load_file(run / "model.safetensors"), load_file(other / "model.safetensors")
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert (found[name] - tensor).abs().sum() <= tolerance * tensor.abs().sum(), name


# --- gradients -------------------------------------------------------------------------------------------------------


def make_network(**options: Any) -> nn.Module:
    torch.manual_seed(0)
    network = create("WRN-10-1", 5, **options).double()
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def make_batch(num_images: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(num_images, 3, 8, 8, generator=generator, dtype=torch.float64) + 3
    return images, torch.randint(0, 5, (num_images,), generator=generator)


def backward(num_images: int, options: dict[str, Any], world: World) -> dict[str, Any]:
    """Gradients, statistics, loss and number of errors of a batch whose images the processes share."""
    network = make_network(**options)
    if world.size > 1:
        draw_depth_from(network, world.depth)
        synchronise_norms(network)
    torch.manual_seed(5)
    world.depth.manual_seed(5)  # what `World.seed_step` does; here as a single process draws
    images, labels = (part[share_of(num_images, world.rank, world.size)] for part in make_batch(num_images))
    logits = network(images)
    loss = F.cross_entropy(logits, labels) * (len(labels) / num_images)
    loss.backward()
    loss, errors = loss.detach(), (logits.argmax(1) != labels).sum().double()
    if world.size > 1:
        loss, errors = GradientSum(network).exchange(loss, errors)
    tensors = {f"gradient of {name}": p.grad for name, p in network.named_parameters()}
    tensors |= {f"statistics {name}": buffer for name, buffer in network.named_buffers()}
    tensors |= {"loss": loss, "errors": errors}
    return {name: None if tensor is None else tensor.numpy() for name, tensor in tensors.items()}


def backward_in_world(num_images: int, options: dict[str, Any]) -> dict[str, Any]:
    with join() as world:
        return backward(num_images, options, world)


@pytest.mark.parametrize(("num", "num_images"), [(2, 8), (3, 10)], ids=["even", "uneven"])
@pytest.mark.parametrize("options", [{}, {"stochastic_depth": 0.3}, {"norm": "group"}], ids=str)
def test_a_shared_batch_gives_the_gradients_and_statistics_of_one_process(
    num: int, num_images: int, options: dict[str, Any]
) -> None:
    expected = backward(num_images, options, World.single())
    missing = [name for name, value in expected.items() if value is None]
    assert bool(missing) == ("stochastic_depth" in options)
    every = in_processes(num, backward_in_world, num_images, options)
    for found in every:
        for name, value in expected.items():
            value = np.zeros_like(found[name]) if value is None else value
            np.testing.assert_allclose(found[name], value, rtol=1e-9, atol=1e-12, err_msg=name)
            assert np.array_equal(found[name], every[0][name]), f"{name} differs between processes"


def plain_batches() -> list[bool]:
    """Whether without synchronised statistics each process's own are used."""
    with join() as world:
        images, _ = make_batch(8, seed=world.rank)
        network = make_network()
        expected = make_network()(images)
        return [torch.equal(network(images), expected), world.size == 2]


def test_without_sync_bn_each_process_normalises_by_its_own_images() -> None:
    assert in_processes(2, plain_batches) == [[True, True]] * 2


def test_synchronised_norms_keep_names_values_and_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = make_network()
    network = copy.deepcopy(plain)
    synchronise_norms(network)
    assert sum(isinstance(module, SyncBatchNorm2d) for module in network.modules()) == 7
    assert [*network.state_dict()] == [*plain.state_dict()]
    assert [id(p) for p in network.parameters()] == [id(p) for p in copy.copy(network).parameters()]
    images, _ = make_batch(4)
    assert torch.equal(network.eval()(images), plain.eval()(images))
    monkeypatch.setattr("wideresnet.distributed.sync_norm.all_gather", lambda tensor: tensor[None])
    torch.testing.assert_close(network.train()(images), plain.train()(images))


def compiled_step() -> list[bool]:
    with join():
        network = make_network()
        synchronise_norms(network)
        images, labels = make_batch(6)
        gradients = []
        for forward in (network, torch.compile(network, backend="aot_eager", dynamic=False)):
            F.cross_entropy(forward(images), labels).backward()
            gradients.append([p.grad.clone() for p in network.parameters() if p.grad is not None])
            network.zero_grad()
        return [torch.allclose(plain, fast, rtol=1e-9) for plain, fast in zip(*gradients, strict=True)]


@pytest.mark.slow
def test_synchronised_norms_work_in_a_compiled_network() -> None:
    pytest.importorskip("torch._inductor")
    for same in in_processes(2, compiled_step):
        assert same == [True] * 25


# --- one step, one evaluation ----------------------------------------------------------------------------------------


def draws_of(seed: int, step: int) -> tuple[list[float], list[float]]:
    with join() as world:
        world.seed_step(seed, step)
        return torch.rand(2).tolist(), torch.rand(2, generator=world.depth).tolist()


def test_dropout_differs_between_processes_and_stochastic_depth_does_not() -> None:
    (first, first_depth), (second, second_depth) = in_processes(2, draws_of, 0, 7)
    assert first != second
    assert first_depth == second_depth
    assert in_processes(2, draws_of, 0, 8)[0][1] != first_depth


class Uneven(nn.Module):
    """Tells each image's place in its batch, so that another cut into batches shows."""

    def forward(self, images: Tensor) -> Tensor:
        place = torch.arange(len(images), dtype=torch.float32)
        return torch.stack((images.mean((1, 2, 3)), place, place * 0 + len(images)), dim=1)


def logits_of(num_images: int, batch_size: int) -> np.ndarray:
    with join() as world:
        random = np.random.default_rng(0)
        images = random.integers(0, 256, (num_images, 4, 4, 3), dtype=np.uint8)
        labels = random.integers(0, 3, num_images)
        preprocessing = Preprocessing.fit("scale", images, None, None)
        result = evaluate(Uneven(), images, labels, preprocessing, batch_size=batch_size, world=world)
        assert result.num_images == num_images
        return np.append(result.logits.numpy(), [[result.loss, result.num_errors, 0]], axis=0)


@pytest.mark.parametrize(("num", "num_images"), [(2, 23), (3, 4)])
def test_a_shared_evaluation_is_that_of_one_process_to_the_last_bit(num: int, num_images: int) -> None:
    expected = logits_of(num_images, 4)
    for found in in_processes(num, logits_of, num_images, 4):
        assert np.array_equal(found, expected)


# --- runs ------------------------------------------------------------------------------------------------------------


def run(recipe: Recipe, out: Path, how: str = "", rank: int = 0, after: int = 0, resume: bool = False) -> Any:
    """`fit` in a process of a world; in the process `rank` something happens after so many steps."""
    done = 0

    def step(*args: Any, **kwargs: Any) -> None:
        nonlocal done
        if how == "nan" and int(os.environ["RANK"]) == rank and done == after:
            args[2].fill_(float("nan"))
        train_step(*args, **kwargs)
        done += 1
        if int(os.environ["RANK"]) == rank and done == after:
            if how == "interrupt":
                os.kill(os.getpid(), signal.SIGINT)
            if how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if how == "full disk":
                wideresnet.spec.record.os.fsync = _raise_full

    loop.train_step = step
    return fit(recipe, out, resume=resume, checkpoint_every_s=0.0 if how == "full disk" else 60.0)


def _raise_full(_: int) -> None:
    raise OSError(28, os.strerror(28))


def test_with_sync_bn_a_run_of_several_processes_is_that_of_one_up_to_rounding(
    make_npz: MakeNpz, tmp_path: Path
) -> None:
    recipe = small(make_npz(num_train=70), sync_bn=True, drop_last=False, stochastic_depth=0.5, ema_decay=0.9)
    single = fit(recipe, tmp_path / "one")
    results = in_processes(3, run, recipe, tmp_path / "three")  # batches of 16 and 6 images
    assert results[0] == results[1] == results[2]
    assert (single["num_processes"], results[0]["num_processes"]) == (1, 3)
    assert_close(tmp_path / "three", tmp_path / "one", 1e-3)
    for found, expected in zip(metrics(tmp_path / "three"), metrics(tmp_path / "one"), strict=True):
        assert found["step"] == expected["step"]
        assert found["train_loss"] == pytest.approx(expected["train_loss"], rel=1e-4)
    env = json.loads(RunFolder(tmp_path / "three").env.read_text())
    assert env["num_processes"] == 3


@pytest.mark.parametrize(
    ("rank", "changes"), [(1, {"dropout": 0.2, "ema_decay": 0.9}), (0, {"sync_bn": True})], ids=str
)
def test_an_interrupt_of_any_process_stops_all_and_resuming_gives_the_same_bits(
    make_npz: MakeNpz, tmp_path: Path, rank: int, changes: dict[str, Any]
) -> None:
    recipe = small(make_npz(), **changes)
    whole = in_processes(2, run, recipe, tmp_path / "whole")
    assert whole[0] == whole[1]
    ends = in_processes(2, run, recipe, tmp_path / "cut", "interrupt", rank, 3)
    spoken = [end for end in ends if end != 130]
    assert len(spoken) == 1, ends
    assert re.fullmatch(r"Interrupted: stopped after step 3; .* --resume --out .*cut --processes 2", spoken[0])
    in_processes(2, run, recipe, tmp_path / "cut", "", 0, 0, True)
    assert weights(tmp_path / "cut") == weights(tmp_path / "whole")
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "whole")
    assert (
        RunFolder(tmp_path / "cut").predictions.read_bytes() == RunFolder(tmp_path / "whole").predictions.read_bytes()
    )


def test_a_run_goes_on_with_another_number_of_processes_where_only_rounding_changes(
    make_npz: MakeNpz, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = small(make_npz(), sync_bn=True)
    fit(recipe, tmp_path / "one")
    in_processes(2, run, recipe, tmp_path / "cut", "interrupt", 0, 5)
    assert fit(recipe, tmp_path / "cut", resume=True)["num_processes"] == 1
    assert "had 2 and goes on with 1 processes: the same up to rounding" in capsys.readouterr().err
    assert_close(tmp_path / "cut", tmp_path / "one", 1e-3)


@pytest.mark.parametrize(
    ("changes", "why"),
    [({}, "without sync_bn"), ({"norm": "group", "batch_rule": "linear"}, "under batch_rule linear")],
    ids=str,
)
def test_going_on_with_another_number_of_processes_is_refused_where_it_would_be_another_run(
    make_npz: MakeNpz, tmp_path: Path, changes: dict[str, Any], why: str
) -> None:
    recipe = small(make_npz(), **changes)
    in_processes(2, run, recipe, tmp_path / "cut", "interrupt", 0, 1)
    with pytest.raises(UsageError, match=rf"num_processes 2, now 1: {why}.*; go on with --processes 2"):
        fit(recipe, tmp_path / "cut", resume=True)


def test_a_killed_process_ends_the_others_at_once_and_is_named(make_npz: MakeNpz, tmp_path: Path) -> None:
    recipe = small(make_npz())
    in_processes(3, run, recipe, tmp_path / "whole")
    started = time.monotonic()
    ends = in_processes(3, run, recipe, tmp_path / "cut", "kill", 0, 6)
    assert time.monotonic() - started < 30
    assert ends[0] == -signal.SIGKILL
    spoken = [end for end in ends[1:] if end != 1]
    assert len(spoken) == 1, ends
    assert "process 0 of 3 (from 0) has been killed: the run has stopped; go on from the last checkpoint" in spoken[0]
    assert "\n" not in spoken[0]
    in_processes(3, run, recipe, tmp_path / "cut", "", 0, 0, True)
    assert weights(tmp_path / "cut") == weights(tmp_path / "whole")


def test_a_loss_that_is_not_finite_in_one_process_stops_all_at_its_step(make_npz: MakeNpz, tmp_path: Path) -> None:
    ends = in_processes(2, run, small(make_npz()), tmp_path / "run", "nan", 1, 5)
    assert sorted(end == 1 for end in ends) == [False, True], ends  # one speaks, the other leaves in silence
    assert any("not finite at epoch 2, step 2 of 4" in str(end) for end in ends)


def test_a_full_disk_ends_all_processes_with_the_one_reason(make_npz: MakeNpz, tmp_path: Path) -> None:
    ends = in_processes(2, run, small(make_npz()), tmp_path / "run", "full disk", 0, 3)
    assert ends[1] == 1
    assert "no space left on the disk" in ends[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 1}, "batch_size 1: fewer images than the 2 processes"),
        ({"batch_size": 21, "drop_last": False}, "leaves a last batch of 1, fewer than the 2 processes"),
    ],
    ids=str,
)
def test_a_batch_that_cannot_be_shared_is_refused(
    make_npz: MakeNpz, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    ends = in_processes(2, run, small(make_npz(), **changes), tmp_path / "run")
    assert [end for end in ends if end != 2] == [end for end in ends if message in str(end)] != []
    assert not (tmp_path / "run").exists()


# --- rules -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "changes", "line"),
    [
        (2, {"batch_size": 128}, "128 images a step: 2 processes x 64, lr 0.1 (rule global)"),
        (3, {"batch_size": 128}, "128 images a step: 3 processes of 43, 43, 42, lr 0.1 (rule global)"),
        (
            4,
            {"batch_size": 32, "batch_rule": "linear"},
            "128 images a step: 4 processes x 32, lr 0.4 (rule linear)",
        ),
    ],
)
def test_batch_and_lr_follow_a_named_rule_that_is_told(size: int, changes: dict[str, Any], line: str) -> None:
    world, recipe = World(size=size), Recipe.flat(**changes)
    scaled = world.scaled(recipe)
    assert scaled.batch_size == 128
    assert scaled.lr == pytest.approx(0.1 * (size if recipe.schedule.batch_rule == "linear" else 1))
    assert describe_batch(world, recipe, 128) == line


def test_each_process_needs_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    used = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", used.append)
    World(rank=1, size=2, local_rank=1).use("cuda")
    World(rank=5, size=6, local_rank=5).use("cpu")
    assert used == [1]
    with pytest.raises(UsageError, match="this machine has 2; use --processes 2 or --device cpu"):
        World(rank=2, size=3, local_rank=2).use("cuda")


def test_an_impossible_number_of_processes_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "WRN-10-1", "--data", "digits", "--processes", "0"]) == 2
    assert capsys.readouterr().err == "wrn: --processes 0: must be at least 1\n"
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert is_launched(2)
    with pytest.raises(UsageError, match="torchrun has started 2; leave out --processes"):
        is_launched(4)


@pytest.mark.skipif(not Path("/proc/self/environ").is_file(), reason="needs Linux's /proc")
@pytest.mark.parametrize(("users", "expected"), [({}, [3]), ({"OMP_NUM_THREADS": "1"}, [])], ids=str)
def test_processes_share_the_cores_unless_the_user_has_set_the_number_of_threads(
    monkeypatch: pytest.MonkeyPatch, users: dict[str, str], expected: list[int]
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as torchrun sets it where the user has not
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(7)))
    threads: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    with subprocess.Popen(["sleep", "60"], env={"PATH": os.environ["PATH"], **users}) as launcher:
        monkeypatch.setattr(os, "getppid", lambda: launcher.pid)
        while b"PATH=" not in Path(f"/proc/{launcher.pid}/environ").read_bytes():  # not yet started
            time.sleep(0.01)
        distributed._share_cores(2)
        launcher.kill()
    assert threads == expected


# --- the command line ------------------------------------------------------------------------------------------------


def children_of(pid: int) -> list[int]:
    lines = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    pairs = (map(int, line.split()) for line in lines.splitlines())
    return sorted(child for child, parent in pairs if parent == pid)


def start(*command: str) -> subprocess.Popen[str]:
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", *command], env=env, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def wait_for_new_checkpoint(folder: RunFolder, process: subprocess.Popen[str]) -> None:
    seen = {path.name for path in folder.checkpoint.glob("step-*")}
    deadline = time.monotonic() + 120
    while not {path.name for path in folder.checkpoint.glob("step-*")} - seen - {"step-000000000"}:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.slow
def test_kill_9_then_ctrl_c_then_torchrun_end_in_the_weights_of_a_run_that_was_never_stopped(
    make_npz: MakeNpz, tmp_path: Path
) -> None:
    recipe = small(make_npz(num_train=256), epochs=6, dropout=0.2)
    in_processes(2, run, recipe, tmp_path / "whole")
    folder = RunFolder(tmp_path / "cut")
    (tmp_path / "recipe.json").write_text(json.dumps(recipe.to_json()))
    train = ["wideresnet", "train", "--recipe", str(tmp_path / "recipe.json"), "--out", str(folder.path)]
    more = ["--processes", "2", "--checkpoint-every", "0.05"]

    process = start(*train, *more)
    wait_for_new_checkpoint(folder, process)
    first, second = children_of(process.pid)
    os.kill(second, signal.SIGKILL)
    killed = time.monotonic()
    _, err = process.communicate(timeout=60)
    assert time.monotonic() - killed < 20
    assert process.returncode == 1
    said = [line for line in err.splitlines() if line.startswith("wrn:")]
    assert len(said) == 1, err
    assert re.search(r"process 1 of 2 .* has been killed: .*--resume --out .*cut --processes 2$", said[0])
    assert "Traceback" not in err
    assert "signal" not in err  # what torchrun's machinery would report
    for pid in (first, second):
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)

    resume = ["wideresnet", "train", "--resume", "--out", str(folder.path)]
    process = start(*resume, *more)
    wait_for_new_checkpoint(folder, process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    said = [line for line in err.splitlines() if line.startswith("wrn:")]
    assert len(said) == 1, err
    assert "everything is saved, go on with: wrn train --resume" in said[0]

    process = start("torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", *resume, "--json")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert json.loads(out)["num_processes"] == 2  # one document, from one process
    assert weights(folder.path) == weights(tmp_path / "whole")
    assert metrics(folder.path) == metrics(tmp_path / "whole")
    assert "--processes 2" in json.loads(folder.env.read_text())["command"]
