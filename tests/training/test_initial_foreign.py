"""`wrn train --from FILE`: a run starts from weights that other code has written, and says what it assumes."""

from __future__ import annotations

import socket
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision
from small_runs import MakeNpz, assert_same_run, small

from wideresnet.base.errors import UsageError, WRNError
from wideresnet.data import load_dataset
from wideresnet.networks import create
from wideresnet.spec.recipe import Recipe
from wideresnet.training import fit, prepare


def refusal(recipe: Recipe) -> str:
    with pytest.raises(UsageError) as caught:
        prepare(recipe, load_dataset(recipe.data))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def resnet_file(path: Path, num_classes: int = 1000, **changes: Any) -> dict[str, torch.Tensor]:
    torch.manual_seed(7)
    state = {**torchvision.models.resnet18(num_classes=num_classes).state_dict(), **changes}
    torch.save({name: tensor for name, tensor in state.items() if "num_batches_tracked" not in name}, path)
    return state


def imagenet_recipe(data: Path, weights: Path | str, **changes: Any) -> Recipe:
    values = {"epochs": 1, "batch_size": 16, "crop_padding": 1, "device": "cpu", "family": "imagenet", **changes}
    return Recipe.flat(network="ResNet-18", data=str(data), init_from=str(weights), **values)


def test_a_network_starts_from_a_state_dict_of_torchvision_with_its_preprocessing(
    make_npz: MakeNpz, tmp_path: Path
) -> None:
    state = resnet_file(tmp_path / "resnet18.pth")
    data = load_dataset(make_npz())
    job, _ = prepare(imagenet_recipe(tmp_path / "own.npz", tmp_path / "resnet18.pth"), data)
    for name, tensor in job.network.state_dict().items():
        assert name.startswith("fc.") or torch.equal(tensor, state[name]), name
    assert job.data.preprocessing.mean == pytest.approx((123.675, 116.28, 103.53))
    notes = " ".join(job.notes)
    assert "the head is new: that of" in notes
    assert "is for 1,000 classes, it does not say which" in notes
    assert "mean 0.485/0.456/0.406 and std 0.229/0.224/0.225 (of 0..1): as torchvision's and most of timm's" in notes
    assert job.recipe.init_sha256 == sha256((tmp_path / "resnet18.pth").read_bytes()).hexdigest()


def test_the_head_of_imagenet_is_kept_for_its_synsets_alone(make_npz: MakeNpz, tmp_path: Path) -> None:
    names = np.array([f"n{number:08d}" for number in range(1000)])
    arrays = dict(np.load(make_npz(num_train=2000, num_test=1000, num_classes=1000)))
    np.savez(data := tmp_path / "net.npz", **arrays, class_names=names)
    state = resnet_file(tmp_path / "resnet18.pth")
    job, _ = prepare(imagenet_recipe(data, tmp_path / "resnet18.pth"), load_dataset(data))
    assert torch.equal(job.network.fc.weight, state["fc.weight"])
    assert any("the head is kept: these classes are ImageNet's synsets" in note for note in job.notes)


@pytest.mark.parametrize(
    ("network", "changes", "channels", "message"),
    [
        ("ResNet-34", {}, 3, "the weights of that file do not fit ResNet-34: layer1.2.conv1.weight is missing there, "
         "(64, 64, 3, 3) here; layer1.2.bn1.weight is missing there, (64,) here; layer1.2.bn1.bias is missing there, "
         "(64,) here; and 77 more; train the network that they are of, or start from weights of ResNet-34"),
        ("ResNet-18", {"layer1.0.conv1.weight": torch.zeros(2, 3)}, 3, "layer1.0.conv1.weight is (2, 3) there, "
         "(64, 64, 3, 3) here; train"),
        ("ResNet-18", {"extra": torch.zeros(1)}, 3, "extra is (1,) there, missing here; train the"),
        ("ResNet-18", {}, 1, "conv1.weight is (64, 3, 7, 7) there, (64, 1, 7, 7) here; they are for images of 3 "
         "channels, these have 1"),
        ("WRN-10-1", {}, 3, "do not fit WRN-10-1: "),
    ],
)  # fmt: skip
def test_a_state_dict_of_another_network_is_refused_with_keys_and_shapes(
    make_npz: MakeNpz, tmp_path: Path, network: str, changes: dict[str, Any], channels: int, message: str
) -> None:
    resnet_file(tmp_path / "resnet18.pth", **changes)
    recipe = imagenet_recipe(make_npz(channels=channels), tmp_path / "resnet18.pth")
    assert message in refusal(recipe.replace(network=network, family="cifar" if network[0] == "W" else "imagenet"))


def test_a_state_dict_of_a_small_network_is_taken_with_the_statistics_of_these_images(
    make_npz: MakeNpz, tmp_path: Path
) -> None:
    torch.manual_seed(1)
    network = create("WRN-10-1", 4)
    torch.save({"model": network.state_dict()}, tmp_path / "own.pt")
    recipe = small(make_npz(), init_from=str(tmp_path / "own.pt"), epochs=1)
    job, _ = prepare(recipe, load_dataset(recipe.data))
    state, notes = job.network.state_dict(), job.notes
    assert torch.equal(state["stem.weight"], network.state_dict()["stem.weight"])
    assert any(
        "does not say how images were preprocessed: the mean and std of these images are used" in n for n in notes
    )
    fit(recipe, tmp_path / "run")
    fit(Recipe.from_file(tmp_path / "run" / "recipe.json"), tmp_path / "again")
    assert_same_run(tmp_path / "run", tmp_path / "again")


def test_torchvisions_own_weights_are_taken_by_name(
    make_npz: MakeNpz, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = resnet_file(tmp_path / "unused.pth")
    asked: dict[str, Any] = {}

    def fetch(_: Any, **how: Any) -> dict[str, torch.Tensor]:
        asked.update(how)
        return state

    monkeypatch.setattr(torchvision.models.WeightsEnum, "get_state_dict", fetch)
    recipe = imagenet_recipe(make_npz(), "Torchvision")
    job, _ = prepare(recipe, load_dataset(recipe.data))
    assert torch.equal(job.network.state_dict()["conv1.weight"], state["conv1.weight"])
    assert (job.recipe.init_from, asked["weights_only"], asked["check_hash"]) == ("torchvision", True, True)
    assert "torchvision's weights are ResNet18_Weights.IMAGENET1K_V1" in job.notes

    def offline(_: Any, **__: Any) -> None:
        raise URLError("no route to host")

    monkeypatch.setattr(torchvision.models.WeightsEnum, "get_state_dict", offline)
    with pytest.raises(
        WRNError, match=r"resnet18-f37072fd.pth cannot be downloaded \(.*no route to host.*\); connect to"
    ):
        prepare(recipe, load_dataset(recipe.data))
    assert "it has no weights for WRN-10-1" in refusal(small(make_npz(), init_from="torchvision"))


@pytest.mark.net
def test_torchvisions_weights_are_downloaded(
    make_npz: MakeNpz, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    try:
        socket.create_connection(("download.pytorch.org", 443), timeout=5).close()
    except OSError:
        pytest.skip("needs the network")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    recipe = imagenet_recipe(make_npz(), "torchvision")
    prepare(recipe, load_dataset(recipe.data))
