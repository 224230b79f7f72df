from __future__ import annotations

import json
import logging
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from wideresnet.base.errors import DataError, UsageError, WRNError
from wideresnet.data.preprocess import Preprocessing
from wideresnet.networks import Network, create
from wideresnet.spec.record import CONFIG, MATRICES, MODEL
from wideresnet.weights import hub
from wideresnet.weights.hub import Weights, load, read_weights, write_weights


def make_weights(
    name: str = "WRN-10-1", kind: str = "mean_std", num_classes: int = 4, size: tuple[int, int] = (8, 8), **options: Any
) -> Weights:
    """A network whose every value, running statistics and counters too, differs from that of a new one."""
    torch.manual_seed(7)
    network = create(name, num_classes, **options)
    with torch.no_grad():
        for tensor in network.state_dict().values():
            tensor.copy_(torch.rand_like(tensor) + 0.5 if tensor.is_floating_point() else torch.full_like(tensor, 77))
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (30, *size, network.in_channels), dtype=np.uint8)
    names = tuple(f"class {i}" for i in range(num_classes))
    return Weights(network.eval(), Preprocessing.fit(kind, images), names, size)


def answer(weights: Weights, images: np.ndarray) -> torch.Tensor:
    with torch.inference_mode():
        return weights.network(weights.preprocessing(weights.preprocessing.resident(images)))


def refusal(kind: type[WRNError], path: Path) -> str:
    with pytest.raises(kind) as caught:
        read_weights(path)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_weights(tmp_path, make_weights())
    return tmp_path


@pytest.fixture
def edit(folder: Path) -> Callable[..., None]:
    """Change values of `config.json`, which then holds no digests, as that of another program."""

    def change(**values: Any) -> None:
        config = json.loads((folder / CONFIG).read_text())
        config.pop("sha256", None)
        (folder / CONFIG).write_text(json.dumps({**config, **values}))

    return change


@pytest.mark.parametrize(
    ("name", "kind", "options"),
    [
        ("WRN-10-1", "mean_std", {}),
        ("WRN-16-2-B(3,1,3)", "mean_std", {}),
        ("ResNet-20", "mean_std", {}),
        ("PreActResNet-20", "scale", {"activation": "silu"}),
        ("WRN-10-1", "mean_std", {"in_channels": 1}),
        ("WRN-10-1", "zca", {}),
        ("WRN-10-1", "zca", {"in_channels": 1}),
        ("WRN-10-1", "mean_std", {"norm": "group"}),
        ("WRN-10-2", "scale", {"dropout": 0.3, "stochastic_depth": 0.5, "init": "fan_out", "bn_scale": "uniform"}),
        ("WRN-34-2", "mean_std", {"family": "cifar"}),
    ],
)
def test_weights_come_back_bit_identical(tmp_path: Path, name: str, kind: str, options: dict[str, Any]) -> None:
    before = make_weights(name, kind, **options)
    write_weights(tmp_path, before)
    after = read_weights(tmp_path)
    old, new = before.network.state_dict(), after.network.state_dict()
    assert list(old) == list(new)
    for key in old:
        assert old[key].dtype == new[key].dtype
        assert torch.equal(old[key], new[key])
    assert (after.network.name, after.network.options) == (before.network.name, before.network.options)
    assert (after.class_names, after.input_size) == (before.class_names, before.input_size)
    images = np.random.default_rng(1).integers(0, 256, (2, 8, 8, before.network.in_channels), dtype=np.uint8)
    assert torch.equal(answer(before, images), answer(after, images))
    assert (tmp_path / MATRICES).exists() == (kind == "zca")


def test_weights_that_lie_channels_last_come_back_bit_identical(tmp_path: Path) -> None:
    before = make_weights()
    before.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    write_weights(tmp_path, before)
    old, new = before.network.state_dict(), load(tmp_path).state_dict()
    assert all(torch.equal(old[key], new[key]) for key in old)


def test_a_folder_and_its_file_are_the_same_weights_ready_to_evaluate_and_to_train(folder: Path) -> None:
    for path in (folder, folder / MODEL, str(folder)):
        network = load(path)
        assert isinstance(network, Network)
        assert not network.training
        assert all(parameter.requires_grad for parameter in network.parameters())
        assert all(tensor.device.type == "cpu" for tensor in network.state_dict().values())


def test_reading_leaves_the_callers_random_state(folder: Path) -> None:
    before = torch.get_rng_state()
    read_weights(folder)
    assert torch.equal(before, torch.get_rng_state())


def test_writing_again_replaces_the_weights(folder: Path) -> None:
    write_weights(folder, make_weights("WRN-10-2", num_classes=3))
    assert str(load(folder).name) == "WRN-10-2"
    assert sorted(path.name for path in folder.iterdir()) == [CONFIG, MODEL]


def test_the_config_is_plain_and_says_what_the_weights_are(folder: Path) -> None:
    config = json.loads((folder / CONFIG).read_text())
    assert config["model_type"] == "wideresnet"
    assert config["network"] == "WRN-10-1"
    assert config["num_classes"] == 4
    assert config["class_names"][3] == "class 3"
    assert config["preprocessing"]["range"] == "0..255"


def test_a_path_without_weights_is_named(tmp_path: Path) -> None:
    assert refusal(UsageError, tmp_path).startswith(
        f"{tmp_path}: no {MODEL} there; use the folder of a run, or of weights"
    )
    assert "nowhere: no model.safetensors there" in refusal(UsageError, tmp_path / "nowhere")


def test_a_run_that_has_not_finished_says_so(tmp_path: Path) -> None:
    (tmp_path / "recipe.json").write_text("{}")
    assert "an unfinished run without a checkpoint: continue its training first" in refusal(UsageError, tmp_path)


def test_a_model_without_its_config_is_refused(folder: Path) -> None:
    (folder / CONFIG).unlink()
    assert f"no {CONFIG} next to it" in refusal(UsageError, folder / MODEL)


@pytest.mark.parametrize("kept", [0.0, 0.01, 0.5, 0.999])
def test_a_truncated_model_is_refused(folder: Path, edit: Callable[..., None], kept: float) -> None:
    content = (folder / MODEL).read_bytes()
    (folder / MODEL).write_bytes(content[: int(len(content) * kept)])
    assert refusal(DataError, folder).startswith(f"{folder / MODEL}: does not match its SHA-256 in {CONFIG}, ")
    edit()
    assert refusal(DataError, folder).startswith(f"{folder / MODEL}: not a complete safetensors file (")


def test_a_truncated_whitening_is_refused(tmp_path: Path) -> None:
    write_weights(tmp_path, make_weights(kind="zca"))
    (tmp_path / MATRICES).write_bytes((tmp_path / MATRICES).read_bytes()[:1000])
    assert f"{MATRICES}: does not match its SHA-256" in refusal(DataError, tmp_path)
    (tmp_path / MATRICES).unlink()
    assert f"{MATRICES}: not a complete safetensors file" in refusal(DataError, tmp_path)


def test_a_pickle_named_like_a_model_is_refused_and_not_executed(folder: Path, edit: Callable[..., None]) -> None:
    edit()
    marker = folder / "executed"

    class Hostile:
        def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
            return Path.touch, (marker,)

    (folder / MODEL).write_bytes(pickle.dumps(Hostile()))
    assert "not a complete safetensors file" in refusal(DataError, folder)
    torch.save({"fc.weight": torch.zeros(1), "evil": Hostile()}, folder / MODEL)
    assert "not a complete safetensors file" in refusal(DataError, folder)
    assert not marker.exists()
    function, arguments = Hostile().__reduce__()
    function(*arguments)
    assert marker.exists()  # executing it would have shown


@pytest.mark.parametrize(
    ("network", "complaint"),
    [("WRN-16-1", "lacks "), ("WRN-10-2", "lacks groups.0.0.shortcut.weight"), ("ResNet-20", "lacks bn1.bias")],
)
def test_the_config_of_another_network_is_refused(
    folder: Path, edit: Callable[..., None], network: str, complaint: str
) -> None:
    edit(network=network)
    message = refusal(DataError, folder)
    assert message.startswith(f"{folder / MODEL}: ")
    assert network in message
    assert complaint in message


def test_a_tensor_too_many_is_named(folder: Path, edit: Callable[..., None]) -> None:
    edit()
    tensors = load_file(folder / MODEL)
    save_file({**tensors, "extra": torch.zeros(1)}, folder / MODEL)
    assert "has extra (0 names missing, 1 unknown)" in refusal(DataError, folder)


def test_another_number_of_outputs_is_refused(folder: Path, edit: Callable[..., None]) -> None:
    edit(num_classes=5, class_names=list("abcde"))
    assert "fc.weight is (4, 64), WRN-10-1 needs (5, 64)" in refusal(DataError, folder)


def test_another_number_of_class_names_is_refused(folder: Path, edit: Callable[..., None]) -> None:
    edit(class_names=["cat", "dog"])
    assert "2 class names for 4 outputs" in refusal(DataError, folder)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"not json", b"[1]", b"null", b"{}", b"\xff\xfe", b"[" * 100_000, b'{"network": 3}']
)
def test_a_config_that_is_none_is_refused(folder: Path, content: bytes) -> None:
    (folder / CONFIG).write_bytes(content)
    rules = ("not the configuration of a network (", "cannot be read as JSON (", "must be a JSON object")
    assert refusal(DataError, folder).startswith(tuple(f"{folder / CONFIG}: {rule}" for rule in rules))


@pytest.mark.parametrize(
    "values",
    [
        {"network": "WRN-11-1"},
        {"network": "os.system('true')"},
        {"network": None},
        {"num_classes": 0},
        {"num_classes": "4"},
        {"num_classes": 1e300},
        {"options": {"dropout": 7}},
        {"options": {"evil": True}},
        {"options": [1]},
        {"class_names": 4},
        {"class_names": "0123"},
        {"class_names": [0, 1, 2, 3]},
        {"input_size": "88"},
        {"input_size": [8, 8.0]},
        {"input_size": [True, 8]},
        {"input_size": [8, 10**400]},
        {"input_size": [8]},
        {"input_size": "large"},
        {"preprocessing": None},
        {"preprocessing": {}},
        {"preprocessing": {"kind": "magic", "mean": [], "std": []}},
        {"preprocessing": {"kind": "mean_std", "mean": [1.0], "std": []}},
        {"preprocessing": {"kind": "mean_std", "mean": ["a"], "std": [1.0]}},
        {"preprocessing": {"kind": "zca", "mean": [], "std": []}},
    ],
)
def test_a_hostile_config_is_refused_in_one_line(
    folder: Path, edit: Callable[..., None], values: dict[str, Any]
) -> None:
    edit(**values)
    assert refusal(DataError, folder).startswith(str(folder))


def test_a_config_that_claims_a_network_larger_than_memory_takes_none(folder: Path, edit: Callable[..., None]) -> None:
    edit(network="WRN-3994-100")  # 2.3 TiB of weights
    assert "not the weights of WRN-3994-100" in refusal(DataError, folder)


def test_preprocessing_of_other_images_is_refused(folder: Path, edit: Callable[..., None]) -> None:
    edit(preprocessing={"kind": "mean_std", "mean": [1.0], "std": [1.0]})
    assert refusal(DataError, folder).endswith("its mean_std is not for images of 8x8 with 3 channels")


def test_whitening_of_other_images_is_refused(tmp_path: Path) -> None:
    write_weights(tmp_path, make_weights(kind="zca"))
    config = json.loads((tmp_path / CONFIG).read_text())
    del config["sha256"]
    (tmp_path / CONFIG).write_text(json.dumps({**config, "input_size": [9, 8]}))
    assert refusal(DataError, tmp_path).endswith("its zca is not for images of 9x8 with 3 channels")


def test_an_input_size_at_which_one_image_does_not_fit_into_memory_is_refused(
    folder: Path, edit: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    edit(input_size=[8000, 8000])
    monkeypatch.setattr(hub, "available_memory_bytes", lambda _: 10**9)
    assert re.search(r"input_size 8000x8000: one image needs about \S+ GiB of memory", refusal(DataError, folder))
    edit(input_size=[1024, 1024])
    read_weights(folder)


@pytest.mark.parametrize("name", [CONFIG, MODEL, MATRICES])
def test_one_flipped_bit_is_an_error_or_changes_no_answer(tmp_path: Path, name: str) -> None:
    write_weights(tmp_path, make_weights(kind="zca", num_classes=3))
    images = np.random.default_rng(1).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    before, content = read_weights(tmp_path), (tmp_path / name).read_bytes()
    expected, random, num_refused = answer(before, images), np.random.default_rng(3), 0
    for bit in random.choice(8 * len(content), 60, replace=False):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << (bit % 8)
        (tmp_path / name).write_bytes(damaged)
        try:
            after = read_weights(tmp_path)
        except DataError:
            num_refused += 1
            continue
        assert torch.equal(answer(after, images), expected)
        assert (after.class_names, after.input_size) == (before.class_names, before.input_size)
    assert num_refused > 30


def test_weights_without_digests_are_read_with_a_note(
    folder: Path, edit: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    assert read_weights(folder).notes == ()
    load(folder)
    assert caplog.records == []
    edit()
    assert read_weights(folder).notes == (
        f"{folder}: holds no SHA-256 of {MODEL}, so damage to it would not be noticed",
    )
    load(folder)
    (record,) = caplog.records
    assert (record.levelno, "no SHA-256" in record.getMessage()) == (logging.WARNING, True)
