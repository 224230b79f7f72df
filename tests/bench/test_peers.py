"""Other implementations: found, called, compared, and none of their failures is ours."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from wideresnet.base.errors import UsageError
from wideresnet.bench.case import Case
from wideresnet.bench.contenders import make_contender
from wideresnet.bench.measure import describe_problem
from wideresnet.bench.peers import PeerError, build_peer, check_peer, known_arguments
from wideresnet.networks import create
from wideresnet.spec.names import parse

MakeCase = Callable[..., Case]


def problem(name: str, case: Case) -> str:
    with pytest.raises((Exception, SystemExit)) as caught:
        make_contender(name, case).call()
    return describe_problem(caught.value)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("torchvison", "did you mean torchvision"),
        ("plain+careful", "did you mean plain"),
        ("no_such_module_anywhere:net", "no module 'no_such_module_anywhere'"),
        ("json:no_such_callable", "no callable 'no_such_callable'"),
        ("no/such/file.py:net", "no file"),
        (":net", "no module ''"),
    ],
)
def test_an_unknown_implementation_is_a_usage_error_before_anything_is_measured(name: str, said: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        check_peer(name)
    assert str(caught.value).startswith(f"against={name}")


@pytest.mark.parametrize("name", ["plain", "torchvision", "timm", "pytorchcv", "timm+careful", "broken:x"])
@pytest.mark.usefixtures("others")
def test_what_is_not_installed_or_fails_on_import_is_left_to_its_row(name: str) -> None:
    check_peer(name)


def test_a_missing_package_is_named_with_the_command_that_installs_it(make_case: MakeCase) -> None:
    sys.modules["timm"] = None  # type: ignore[assignment]  # so that importing it fails
    try:
        with pytest.raises(PeerError, match=r"^not installed; pip install timm$"):
            build_peer("timm", make_case())
    finally:
        del sys.modules["timm"]


@pytest.mark.parametrize(
    ("network", "params"), [("ResNet-18", 11_689_512), ("WRN-50-2-bottleneck", 68_883_240), ("WRN-18-1", 11_689_512)]
)
def test_torchvision_is_asked_for_the_same_network(network: str, params: int, make_case: MakeCase) -> None:
    with torch.device("meta"):
        peer = build_peer("torchvision", make_case(network, family="imagenet"))
    assert sum(p.numel() for p in peer.parameters()) == params == make_case(network, family="imagenet").cost.params


@pytest.mark.parametrize(("network", "family"), [("WRN-28-10", "cifar"), ("WRN-18-2", "imagenet")])
def test_most_wide_networks_are_missing_from_torchvision_and_reported(
    network: str, family: str, make_case: MakeCase
) -> None:
    with pytest.raises(PeerError, match=f"^has no {network}$"):
        build_peer("torchvision", make_case(network, family=family))


@pytest.mark.parametrize(
    ("network", "family", "expected"),
    [
        ("WRN-28-10", "cifar", ("wrn_cifar", {"num_classes": 10, "blocks": 28, "width_factor": 10})),
        ("PreActResNet-164", "cifar", ("preresnet_cifar", {"num_classes": 10, "blocks": 164, "bottleneck": True})),
        ("ResNet-110", "cifar", ("resnet_cifar", {"num_classes": 10, "blocks": 110, "bottleneck": False})),
        ("WRN-50-2-bottleneck", "imagenet", ("wrn", {"num_classes": 1000, "blocks": 50, "width_factor": 2})),
        ("ResNet-50", "imagenet", ("resnet", {"num_classes": 1000, "blocks": 50, "conv1_stride": False})),
        ("WRN-40-2-B(3,1,3)", "cifar", None),
        ("WRN-18-2", "imagenet", None),
    ],
)
def test_pytorchcv_gets_the_numbers_of_the_name(
    network: str, family: str, expected: tuple[str, dict] | None, make_case: MakeCase, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    for module in ("wrn_cifar", "preresnet_cifar", "resnet_cifar", "wrn", "resnet"):
        fake = ModuleType(module)
        setattr(
            fake, f"get_{module}", lambda module=module, **options: asked.append((module, options)) or nn.Identity()
        )
        monkeypatch.setitem(sys.modules, f"pytorchcv.models.{module}", fake)
    monkeypatch.setitem(sys.modules, "pytorchcv", ModuleType("pytorchcv"))
    monkeypatch.setitem(sys.modules, "pytorchcv.models", ModuleType("pytorchcv.models"))
    if expected is None:
        with pytest.raises(PeerError, match="has no"):
            build_peer("pytorchcv", make_case(network, family=family))
    else:
        build_peer("pytorchcv", make_case(network, family=family))
    assert asked == ([expected] if expected else [])


def test_a_callable_gets_the_arguments_that_it_takes(others: str, make_case: MakeCase) -> None:
    network = build_peer(f"{others}:same", make_case("WRN-10-2"))
    assert sum(p.numel() for p in network.parameters()) == make_case("WRN-10-2").cost.params
    assert build_peer(f"{others}.py:same", make_case())


def test_files_of_the_same_name_are_two_implementations(tmp_path: Path, make_case: MakeCase) -> None:
    for number in (1, 2):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "model.py").write_text(
            "from wideresnet.networks import create\n\n\ndef build():\n    found = create('WRN-10-1')\n"
            f"    found.number = {number}\n    return found\n"
        )
    built = [build_peer(f"{tmp_path}/{number}/model.py:build", make_case("WRN-10-1")) for number in (1, 2)]
    assert [network.number for network in built] == [1, 2]


def test_networks_with_the_same_depth_and_width_need_the_name(others: str, make_case: MakeCase) -> None:
    assert make_case("WRN-40-2-l1").cost.params == make_case("WRN-40-2").cost.params
    assert "do not identify WRN-40-2-l1" in problem(f"{others}:same", make_case("WRN-40-2-l1"))
    assert build_peer(f"{others}:by_name", make_case("WRN-40-2-l1"))


def test_depth_and_classes_are_distinguished_if_both_are_ten(make_case: MakeCase) -> None:
    known = known_arguments(make_case("WRN-10-3"))
    assert (known["depth"], known["num_classes"], known["k"], known["in_channels"]) == (10, 10, 3, 3)
    assert known_arguments(make_case("WRN-10-1.5"))["width"] == 1.5


@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("wider", "its WRN-10-1 has 303,706 parameters, not 77,850: another network"),
        ("raising", "RuntimeError: two lines"),
        ("leaving", "SystemExit: 2"),
        ("asking", "it needs a parameter 'temperature'"),
        ("returning", "it returned a str, not a torch.nn.Module"),
        ("Shapeless", "its output is (2, 5), not logits (2, 10)"),
    ],
)
def test_what_is_wrong_with_an_implementation_is_one_line(
    function: str, said: str, others: str, make_case: MakeCase
) -> None:
    assert problem(f"{others}:{function}", make_case()).startswith(said)
    assert problem("broken:x", make_case()).startswith("ModuleNotFoundError: No module named 'no_such_module_anywhere'")


@pytest.mark.parametrize(("name", "layout"), [("same", "NCHW"), ("same+careful", "channels_last")])
def test_careful_users_choose_channels_last(name: str, layout: str, others: str, make_case: MakeCase) -> None:
    for job in ("train", "infer"):
        contender = make_contender(f"{others}:{name}", make_case(job=job))
        contender.call()
        assert contender.configuration == f"{layout}, eager, fp32, 1 thread"


def test_careful_users_choose_our_precision_and_others_stay_in_fp32(others: str) -> None:
    case = Case("infer", "WRN-10-1", "cifar", 2, "cpu", "bf16", 1)
    assert make_contender(f"{others}:same+careful", case).call().dtype == torch.bfloat16  # type: ignore[union-attr]
    assert make_contender(f"{others}:same", case).call().dtype == torch.float32  # type: ignore[union-attr]
    assert make_contender("wideresnet", case).call().dtype == torch.bfloat16  # type: ignore[union-attr]


def test_the_plain_twin_computes_what_ours_does(make_case: MakeCase) -> None:
    for job in ("train", "infer"):
        names = [make_contender(name, make_case(job=job)).configuration for name in ("wideresnet", "plain")]
        assert names[0].startswith("Winograd kernels")
        assert names[1] == "NCHW, eager, fp32, 1 thread"


def test_adapters_name_the_variable_that_is_not_set(
    load_tool: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    adapters = load_tool("peers")
    monkeypatch.delenv("WRN_PEER_AUTHORS", raising=False)
    monkeypatch.setenv("WRN_PEER_XTERNALZ", "/no/such/folder")
    for variable, adapter in (("WRN_PEER_AUTHORS", adapters.authors), ("WRN_PEER_XTERNALZ", adapters.xternalz)):
        with pytest.raises(UsageError, match=f"^{variable}: set it to the folder that holds the other code's"):
            adapter(10, 1, 10)


def test_adapters_import_from_their_folder_and_restore_this_package(
    load_tool: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapters = load_tool("peers")
    (tmp_path / "utils.py").write_text("SCALE = 3.0\n")
    (tmp_path / "resnet.py").write_text(
        "import torch, utils\n"
        "def resnet(depth, width, num_classes):\n"
        "    tensors = {'a.b': torch.ones(2, requires_grad=True), 'a.mean': torch.zeros(1)}\n"
        "    return (lambda x, t, mode: x * utils.SCALE * t['a.b'] + float(mode)), tensors\n"
    )
    (tmp_path / "wideresnet.py").write_text(
        "class WideResNet:\n    def __init__(self, *args, **options):\n        self.given = args, options\n"
    )
    monkeypatch.setenv("WRN_PEER_AUTHORS", str(tmp_path))
    monkeypatch.setenv("WRN_PEER_XTERNALZ", str(tmp_path))
    network = adapters.authors(10, 1, 10)
    assert [name for name, _ in network.named_parameters()] == ["a__b"]
    assert [name for name, _ in network.named_buffers()] == ["a__mean"]
    images: Tensor = torch.ones(2)
    assert network(images).tolist() == [4.0, 4.0]
    assert network.eval()(images).tolist() == [3.0, 3.0]
    given = adapters.xternalz(28, 10, 10)
    assert given.given == ((28, 10), {"widen_factor": 10, "dropRate": 0.0})  # type: ignore[attr-defined]
    assert sys.modules["wideresnet"].__name__ == "wideresnet"
    assert create is sys.modules["wideresnet.networks"].create
    assert not {"resnet", "utils"} & {
        n for n, m in sys.modules.items() if str(tmp_path) in str(getattr(m, "__file__", ""))
    }


def test_a_case_is_what_its_name_and_family_say(make_case: MakeCase) -> None:
    case = make_case("WRN-50-2-bottleneck", "infer", "imagenet", 3)
    assert (case.size_px, case.num_classes, case.name) == (224, 1000, parse("WRN-50-2-bottleneck"))
    assert case.flops == 3 * 2 * case.cost.macs
    assert make_case(batch_size=4).flops == 4 * 6 * make_case().cost.macs
    assert Case(**case.to_json()) == case
