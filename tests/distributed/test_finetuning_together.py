"""Fine-tuning in several processes is that of one: frozen stages keep their bits, classes are balanced over all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from processes import in_processes
from safetensors.torch import load_file
from world_runs import MakeNpz, assert_close, run, small

from wideresnet.spec.record import RunFolder
from wideresnet.training import fit


@pytest.mark.parametrize(
    "changes",
    [
        {"freeze": "conv2", "layer_lr_decay": 0.5, "balance": "weights", "clip_grad_norm": 1.0},
        {"balance": "sampling", "mixup": 0.3},
    ],
    ids=str,
)
def test_two_processes_train_as_one_does(make_npz: MakeNpz, tmp_path: Path, changes: dict[str, Any]) -> None:
    data = make_npz(num_train=70)
    fit(small(data, epochs=1, seed=9), tmp_path / "source")
    recipe = small(data, sync_bn=True, drop_last=False, init_from=str(tmp_path / "source"), **changes)
    fit(recipe, tmp_path / "one")
    results = in_processes(2, run, recipe, tmp_path / "two")
    assert results[0] == results[1]
    assert_close(tmp_path / "two", tmp_path / "one", 1e-3)
    if "freeze" in changes:
        before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("source", "two"))
        frozen = [name for name in after if name.startswith(("stem.", "groups.0."))]
        assert len(frozen) > 10
        assert all(after[name].equal(before[name]) for name in frozen)


@pytest.mark.slow
def test_all_processes_agree_on_the_epochs_that_a_time_allows(make_npz: MakeNpz, tmp_path: Path) -> None:
    recipe = small(make_npz(), schedule="cosine", time_s=20.0, batch_size=32)
    results = in_processes(2, run, recipe, tmp_path / "run")
    assert results[0] == results[1]
    assert results[0]["epochs"] == len(RunFolder(tmp_path / "run").read_metrics())
