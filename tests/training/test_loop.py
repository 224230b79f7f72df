"""The loop equals the one that anybody would write in plain PyTorch."""

from __future__ import annotations

import itertools
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_runs import MakeNpz, small
from torch import nn

from wideresnet.base import progress
from wideresnet.base.seeding import seed_of
from wideresnet.spec.recipe import Recipe
from wideresnet.training import fit, prepare
from wideresnet.weights.hub import load


def trained_plainly(recipe: Recipe) -> nn.Module:
    """Train as `small` says, with lr and momentum written out: 0.05, and 0.01 from the third epoch on."""
    job, _ = prepare(recipe)
    network, options, step = job.network, recipe.optimizer, 0

    def make_optimizer() -> torch.optim.Optimizer:
        return torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)

    optimizer = make_optimizer()
    for epoch in range(3):
        if epoch == 2:
            if options.reset_momentum_at_drops:
                optimizer = make_optimizer()
            optimizer.param_groups[0]["lr"] = 0.01
        for images, labels in job.data.feed.epoch(epoch):
            torch.manual_seed(seed_of(recipe.seed, "step", step))  # dropout
            optimizer.zero_grad()
            F.cross_entropy(network(images), labels, label_smoothing=options.label_smoothing).backward()
            optimizer.step()
            step += 1
    assert step == 12
    return network


@pytest.mark.parametrize(
    "changes", [{}, {"reset_momentum_at_drops": False}, {"label_smoothing": 0.1, "dropout": 0.0}], ids=str
)
def test_a_run_equals_the_loop_written_out_in_plain_pytorch(
    make_npz: MakeNpz, tmp_path: Path, changes: dict[str, Any]
) -> None:
    recipe = small(make_npz(), kernels="pytorch", precision="fp32", **changes)
    fit(recipe, tmp_path / "run")
    found, expected = load(tmp_path / "run").state_dict(), trained_plainly(recipe).state_dict()
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-5, msg=name)


def test_restarting_momentum_makes_a_difference(make_npz: MakeNpz, tmp_path: Path) -> None:
    data = make_npz()
    for reset in (True, False):
        fit(small(data, kernels="pytorch", reset_momentum_at_drops=reset), tmp_path / str(reset))
    a, b = (load(tmp_path / str(reset)).state_dict()["fc.weight"] for reset in (True, False))
    assert (a - b).abs().max() > 1e-3  # far more than the tolerance of the comparison above


def test_progress_counts_the_area_of_the_images(make_npz: MakeNpz, tmp_path: Path, monkeypatch: Any) -> None:
    """Epochs on small images take less time, so that shares of the epochs would promise too early an end."""
    seen: list[dict[str, Any]] = []

    class Task:
        def update(self, **values: Any) -> None:
            seen.append(values)

    real = progress.task
    monkeypatch.setattr(
        progress, "task", lambda text, *a, **kw: nullcontext(Task()) if text == "training" else real(text, *a, **kw)
    )
    fit(small(make_npz(), image_scales=((0, 0.5), (0.6, 1.0)), kernels="pytorch"), tmp_path / "run")
    begun = [(values["completed"], values["total"]) for values in seen if "total" in values]
    assert begun == [(0, 1.5), (0.25, 1.5), (0.5, 1.5)]
    assert seen[-1] == {"completed": 1.5}
    assert all(a.get("completed", 0) <= b.get("completed", 2) for a, b in itertools.pairwise(seen))
