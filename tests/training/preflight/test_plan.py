"""The plan counts what will run: steps, operations, time, memory."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
import torch
from small_jobs import make_job

from wideresnet.networks import cost
from wideresnet.training import make_plan
from wideresnet.training.preflight.memory import Memory
from wideresnet.training.preflight.probe import Probe


class HalfASecondPerImage(Probe):
    """Takes half a second for an image, and no memory to speak of."""

    def memory(self) -> Memory:
        self.image_s, self.num_images = 0.5, self.part
        return Memory(10**6, 1.0, 0, 0, 0)


@pytest.mark.parametrize(("drop_last", "steps"), [(True, 3), (False, 4)])
def test_steps_are_epochs_times_batches(drop_last: bool, steps: int) -> None:
    plan = make_plan(make_job(drop_last=drop_last))
    assert (plan.steps_per_epoch, plan.num_steps) == (steps, 3 * steps)


def test_operations_are_those_of_every_image_forward_and_backward() -> None:
    job = make_job()
    plan = make_plan(job)
    macs = cost(job.network, 8).macs
    assert plan.flops == 2 * 3 * macs * 3 * 48  # multiply and add, three passes, three epochs of 48 images
    assert plan.params == sum(parameter.numel() for parameter in job.network.parameters())


def test_smaller_images_cost_their_share_of_the_area() -> None:
    full = make_plan(make_job(epochs=4))
    part = make_plan(make_job(epochs=4, image_scales=((0.0, 0.5), (0.5, 1.0))))
    assert part.flops == pytest.approx(full.flops * (0.25 + 0.25 + 1 + 1) / 4)


def test_a_smaller_last_batch_costs_its_own_images() -> None:
    job = make_job(drop_last=False)
    assert make_plan(job).flops == 2 * 3 * cost(job.network, 8).macs * 3 * 50


def test_time_is_that_of_the_steps_and_a_third_for_evaluated_images() -> None:
    plan = make_plan(make_job(), make_probe=HalfASecondPerImage)
    assert plan.seconds == pytest.approx(0.5 * (3 * 48 + 3 * 10 / 3))
    assert plan.evaluation_s == pytest.approx(0.5 * 3 * 10 / 3)
    seldom = make_plan(make_job(eval_every=2), make_probe=HalfASecondPerImage)
    assert seldom.seconds == pytest.approx(0.5 * (3 * 48 + 2 * 10 / 3))  # after epochs 2 and 3, which is the result
    held = make_plan(make_job(eval_every=2, holdout=16), make_probe=HalfASecondPerImage)
    assert held.evaluation_s == pytest.approx(0.5 * (2 * 16 + 10) / 3)  # the test set once more


def test_a_long_run_names_a_shorter_choice_with_its_time() -> None:
    def shorter(**fields: Any) -> str:
        return make_plan(make_job(**fields), make_probe=HalfASecondPerImage).shorter

    assert shorter(epochs=3) == ""  # 72 s
    # fast on 48 images: 125 steps of 12 images, 200 epochs, which are 200 * (0.25 * 4 + 0.56 * 3 + 2) / 9 at full size
    assert re.fullmatch(r"recipe fast, 200 epochs: (41|42) min", shorter(epochs=200))
    one_cycle = {"schedule": "one_cycle", "recipe": "fast"}
    assert shorter(epochs=188, eval_every=62, **one_cycle) == "recipe fast, 47 epochs: 19 min"
    assert shorter(epochs=26, **one_cycle) == "recipe fast, 6 epochs: 3 min"


def test_a_step_of_two_passes_is_counted_twice_and_told() -> None:
    """The probe times whole steps; evaluation and recipes without SAM have the time of a single pass."""
    plain, sam = (make_plan(make_job(sam_rho=rho), make_probe=HalfASecondPerImage) for rho in (0.0, 0.05))
    assert sam.flops == 2 * plain.flops
    assert sam.seconds - sam.evaluation_s == plain.seconds - plain.evaluation_s  # both are half a second per image
    assert sam.evaluation_s == plain.evaluation_s / 2
    assert dict(sam.lines())["steps"] == "9 (3 per epoch), each of 2 passes over its batch (sam_rho)"
    long = make_plan(make_job(sam_rho=0.05, epochs=200, schedule="cosine"), make_probe=HalfASecondPerImage)
    assert re.fullmatch(r"recipe fast, 200 epochs: (20|21) min", long.shorter)  # 42 min with two passes


def test_a_resumed_run_has_no_shorter_choice() -> None:
    assert make_plan(make_job(epochs=200), make_probe=HalfASecondPerImage, resumed=True).shorter == ""


@pytest.mark.parametrize("fields", [{}, {"dropout": 0.3, "network": "WRN-10-2"}, {"stochastic_depth": 0.5}])
def test_planning_leaves_the_job_and_the_random_state_as_they_were(fields: dict[str, Any]) -> None:
    job = make_job(**fields)
    weights = copy.deepcopy(job.network.state_dict())
    batches = [images.clone() for images, _ in job.data.feed.epoch(0)]
    random = torch.get_rng_state()
    plan = make_plan(job)
    assert plan.seconds > 0
    assert torch.equal(random, torch.get_rng_state())
    for name, tensor in job.network.state_dict().items():
        assert torch.equal(tensor, weights[name])
    assert all(parameter.grad is None for parameter in job.network.parameters())
    assert not job.optimizer.state
    assert job.network.training
    for images, (again, _) in zip(batches, job.data.feed.epoch(0), strict=True):
        assert torch.equal(images, again)


def test_the_rows_say_what_will_run() -> None:
    plan = make_plan(make_job())
    rows = dict(plan.lines())
    assert list(rows) == ["parameters", "steps", "operations", "expected time", "expected memory"]
    assert rows["parameters"] == f"{plan.params:,}"
    assert rows["steps"] == "9 (3 per epoch)"
    assert rows["expected time"].endswith("0 s of it for evaluation (timed on batches of 16)")
    long = dict(make_plan(make_job(epochs=188), make_probe=HalfASecondPerImage).lines())
    assert long["in less time"].startswith("recipe fast, ")
