"""What the processes of a world agree on: random draws, evaluation, devices and CPUs."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from processes import in_processes
from torch import Tensor, nn

from wideresnet.base.errors import UsageError
from wideresnet.data.preprocess import Preprocessing
from wideresnet.distributed.launch import is_launched
from wideresnet.distributed.world import World, join, share_cpus
from wideresnet.engines.evaluate import evaluate
from wideresnet.machine.cpu import usable_cpus


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
    """Tells each image's position in its batch, so that another division into batches shows."""

    def forward(self, images: Tensor) -> Tensor:
        position = torch.arange(len(images), dtype=torch.float32)
        return torch.stack((images.mean((1, 2, 3)), position, position * 0 + len(images)), dim=1)


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


def test_each_process_needs_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    used = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", used.append)
    World(rank=1, size=2, local_rank=1).use("cuda")
    World(rank=5, size=6, local_rank=5).use("cpu")
    assert used == [1]
    with pytest.raises(UsageError, match=r"^processes=3: .*has 2; use processes=2 or device='cpu'$"):
        World(rank=2, size=3, local_rank=2).use("cuda")


def test_an_impossible_number_of_processes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"^processes=0: must be at least 1$"):
        is_launched(0)
    assert is_launched(1)
    assert not is_launched(2)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert is_launched(2)
    with pytest.raises(UsageError, match=r"torchrun has started 2; leave out processes=$"):
        is_launched(4)


@pytest.mark.skipif(not Path("/proc/self/environ").is_file(), reason="needs Linux's /proc")
@pytest.mark.parametrize(
    ("users", "expected"), [({}, max(1, usable_cpus() // 2)), ({"OMP_NUM_THREADS": "1"}, 7)], ids=str
)
def test_processes_share_the_usable_cpus_unless_the_user_has_set_the_number_of_threads(
    monkeypatch: pytest.MonkeyPatch, users: dict[str, str], expected: int
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as torchrun does if the user has not set it
    before = torch.get_num_threads()
    torch.set_num_threads(7)
    with subprocess.Popen(["sleep", "60"], env={"PATH": os.environ["PATH"], **users}) as launcher:
        while b"PATH=" not in Path(f"/proc/{launcher.pid}/environ").read_bytes():  # not yet started
            time.sleep(0.01)
        share_cpus(2, launcher.pid)
        launcher.kill()
    threads = torch.get_num_threads()
    torch.set_num_threads(before)
    assert threads == expected
