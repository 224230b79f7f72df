"""A run that is overwritten is there until the new one can be resumed."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from small_runs import MakeNpz, after_steps, break_off, small

from wideresnet.base.errors import WRNError
from wideresnet.spec.record import RunFolder
from wideresnet.training import Interrupted, fit


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def run(make_npz: MakeNpz, tmp_path: Path) -> Path:
    fit(small(make_npz(), epochs=1), tmp_path / "run")
    return tmp_path / "run"


def test_a_disk_too_small_for_the_new_run_leaves_the_old_one(
    run: Path, make_npz: MakeNpz, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(run)
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(WRNError, match="checkpoints need"):
        fit(small(make_npz(), epochs=1, seed=5), run, overwrite=True)
    assert contents(run) == before


def test_ctrl_c_before_the_first_step_writes_nothing_and_says_so(run: Path, make_npz: MakeNpz) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = contents(run)
    with pytest.raises(Interrupted, match=r"^interrupted before the first step; nothing was written$"):
        fit(small(make_npz(), epochs=1, seed=5), run, overwrite=True, announce=interrupt)
    assert contents(run) == before


def test_a_failure_before_the_first_checkpoint_puts_the_old_run_back(run: Path, make_npz: MakeNpz) -> None:
    before = contents(run)
    with after_steps(1, break_off), pytest.raises(Interrupted):
        fit(small(make_npz(), epochs=1, seed=5), run, overwrite=True)
    assert contents(run) == before
    with pytest.raises(WRNError, match="not finite"):
        fit(small(make_npz(), epochs=1, lr=1e38, bn_scale="uniform", momentum=0, nesterov=False), run, overwrite=True)
    assert contents(run) != before  # the first step was finite and saved: from then on the new run is the run


def test_the_old_run_is_gone_once_the_new_one_can_be_resumed(run: Path, make_npz: MakeNpz) -> None:
    with after_steps(2, break_off), pytest.raises(Interrupted):
        fit(small(make_npz(), epochs=1, seed=5), run, overwrite=True, checkpoint_every_s=0)
    folder = RunFolder(run)
    assert not folder.replaced.exists()
    assert not folder.result.exists()
    assert folder.read_recipe().seed == 5


def test_a_kill_before_the_first_checkpoint_loses_neither_run(run: Path, make_npz: MakeNpz) -> None:
    before, folder = contents(run), RunFolder(run)
    folder.create(overwrite=True)  # as far as a kill lets it come
    folder.recipe.write_text("{}")
    assert contents(folder.replaced) == before
    with after_steps(1, break_off), pytest.raises(Interrupted):
        fit(small(make_npz(), epochs=1, seed=5), run, overwrite=True)
    assert contents(run) == before
    fit(small(make_npz(), epochs=1, seed=5), run, overwrite=True)
    assert folder.read_result()["seed"] == 5
    assert not folder.replaced.exists()
