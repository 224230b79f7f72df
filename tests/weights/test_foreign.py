"""State dicts of other code: read without running anything, unwrapped with a note, refused in one line."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from wideresnet.base.errors import DataError
from wideresnet.networks import create
from wideresnet.spec.names import parse
from wideresnet.weights.downloads import torchvision_name
from wideresnet.weights.foreign import is_foreign, read_foreign


def state() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return create("ResNet-18", 7).state_dict()


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("wrap", "note"),
    [
        (lambda tensors: tensors, None),
        (lambda tensors: {"epoch": 3, "state_dict": tensors, "arch": "resnet18"},
         "the state dict is its 'state_dict'; it also holds epoch, arch"),
        (lambda tensors: {"model": tensors}, "the state dict is its 'model'"),
        (lambda tensors: {"model": {"state_dict": tensors}}, "the state dict is its 'state_dict'"),
        (lambda tensors: {f"module.{name}": tensor for name, tensor in tensors.items()},
         "'module.' was removed from the names of its tensors"),
        (lambda tensors: {"n_averaged": torch.tensor(3), **{f"module.{n}": t for n, t in tensors.items()}},
         "'module.' was removed from the names of its tensors"),
        (lambda tensors: {"state_dict": {f"module._orig_mod.{name}": t for name, t in tensors.items()}},
         "'_orig_mod.' was removed from the names of its tensors"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_state_dicts_are_unwrapped_and_that_is_said(
    tmp_path: Path, wrap: Callable[[dict[str, Tensor]], Any], note: str | None, suffix: str
) -> None:
    wrapped, path = wrap(state()), tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        if not all(isinstance(value, Tensor) for value in wrapped.values()):
            pytest.skip("safetensors holds tensors alone")
        save_file(wrapped, path)
    else:
        torch.save(wrapped, path)
    found = read_foreign(path)
    assert same(found.tensors, state())
    assert [each for each in found.notes if each == f"{path}: {note}"] == ([f"{path}: {note}"] if note else [])
    assert found.mean is None


class Attack:
    """What would run if it were unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch /tmp/wrn-was-run",)


def refusal(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        read_foreign(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_file_with_code_is_refused_and_nothing_of_it_runs(tmp_path: Path) -> None:
    mark = Path("/tmp/wrn-was-run")
    mark.unlink(missing_ok=True)
    torch.save({"state_dict": state(), "more": Attack()}, tmp_path / "evil.pth")
    assert "holds more than tensors (" in refusal(tmp_path / "evil.pth")
    torch.save(create("ResNet-18", 7), tmp_path / "whole.pt")
    assert "holds more than tensors (wideresnet.networks." in (message := refusal(tmp_path / "whole.pt"))
    assert "torch.save(model.state_dict(), ...)" in message
    assert not mark.exists()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("kept", [0, 40, 0.5, 0.999])
def test_a_truncated_file_is_refused_in_one_line(tmp_path: Path, suffix: str, kept: float) -> None:
    path = tmp_path / f"weights{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(state(), path)
    content = path.read_bytes()
    path.write_bytes(content[: kept if kept > 1 else int(kept * len(content))])  # type: ignore[misc]
    assert "not a complete" in refusal(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds no state dict (no mapping)"),
        ({"epoch": 3, "optimizer": {}}, "holds no state dict (its keys are 'epoch', 'optimizer')"),
        ({}, "holds no state dict (its keys are )"),
        ({"model": {"a": 1}}, "holds no state dict (its keys are 'a')"),
        ({"fc.weight": torch.eye(2).to_sparse()}, "holds no state dict"),
    ],
)
def test_what_is_no_state_dict_is_refused(tmp_path: Path, content: Any, message: str) -> None:
    torch.save(content, tmp_path / "odd.pth")
    assert message in refusal(tmp_path / "odd.pth")


def test_a_mapping_that_holds_itself_is_refused(tmp_path: Path) -> None:
    endless: dict[str, Any] = {}
    endless["model"] = endless
    torch.save(endless, tmp_path / "endless.pth")
    assert "holds no state dict" in refusal(tmp_path / "endless.pth")


def test_a_file_larger_than_memory_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "huge.safetensors"
    with path.open("wb") as file:
        file.truncate(2**43)  # sparse
    assert "GB is available" in refusal(path) or "GiB is available" in refusal(path)


def test_mean_and_std_of_timm_are_read_and_nonsense_is_not(tmp_path: Path) -> None:
    save_file(state(), tmp_path / "model.safetensors")
    config = {"architecture": "resnet18", "pretrained_cfg": {"mean": [0.5, 0.5, 0.4], "std": [0.5, 0.5, 0.2]}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert is_foreign(tmp_path / "model.safetensors")
    assert read_foreign(tmp_path / "model.safetensors").mean == (127.5, 127.5, 102.0)
    for bad in ({"mean": [0.5], "std": [0]}, {"mean": ["a"], "std": [1]}, {"mean": [2], "std": [1]}, [], 3):
        (tmp_path / "config.json").write_text(json.dumps({"pretrained_cfg": bad}))
        assert read_foreign(tmp_path / "model.safetensors").mean is None


def test_torchvision_and_timm_have_these_names() -> None:
    names = ("ResNet-50", "WRN-50-2-bottleneck", "ResNeXt-50-32x4d", "ResNeXt-101-64x4d")
    found = [torchvision_name(parse(name, "imagenet")) for name in names]
    assert found == ["resnet50", "wide_resnet50_2", "resnext50_32x4d", "resnext101_64x4d"]
    assert torchvision_name(parse("WRN-28-10", "cifar")) is None
