"""Our networks under torchvision's detectors: the wiring, the normalizations, and weights for the backbone."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from coco_scenes import small, write_scenes
from torch import nn
from torchvision.models.detection import FasterRCNN, RetinaNet
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from wideresnet import create
from wideresnet.base.errors import DataError, UsageError
from wideresnet.data.preprocess import Preprocessing
from wideresnet.detection.model import body_of, build_detector, freeze_norms, scaled_size
from wideresnet.detection.setup import prepare
from wideresnet.detection.weights import read_backbone, read_detector
from wideresnet.distributed.world import World
from wideresnet.spec.detection_results import COCO_RESULTS
from wideresnet.weights.hub import Weights, write_weights


def theirs(detector: str) -> nn.Module:
    """torchvision's own detector on its own ResNet-18, with random weights."""
    first = {"faster_rcnn": [1, 2, 3, 4], "retinanet": [2, 3, 4]}[detector]
    extra = None if detector == "faster_rcnn" else LastLevelP6P7(256, 256)
    backbone = resnet_fpn_backbone(
        backbone_name="resnet18", weights=None, norm_layer=nn.BatchNorm2d, trainable_layers=5, returned_layers=first,
        extra_blocks=extra,
    )  # fmt: skip
    kind = FasterRCNN if detector == "faster_rcnn" else RetinaNet
    return kind(backbone, 4, min_size=96, max_size=160)


@pytest.mark.parametrize("detector", ["faster_rcnn", "retinanet"])
def test_torchvisions_state_dict_loads_unchanged_and_gives_the_same_losses_and_features(detector: str) -> None:
    torch.manual_seed(0)
    other: Any = theirs(detector)
    sizes = tuple((x, int(x * 2 ** (1.0 / 3)), int(x * 2 ** (2.0 / 3))) for x in [32, 64, 128, 256, 512])
    ours = build_detector("ResNet-18", 3, detector=detector, min_size=96, max_size=160)
    if detector == "retinanet":
        assert tuple(ours.anchor_generator.sizes) == sizes  # type: ignore[union-attr]
    ours.load_state_dict(other.state_dict())
    other.transform = ours.transform  # theirs draws a size at random, even if there is only one
    images = [torch.rand(3, 96, 128), torch.rand(3, 96, 96)]
    targets = [{"boxes": torch.tensor([[8.0, 9.0, 60.0, 70.0]]), "labels": torch.tensor([label])} for label in (1, 3)]
    found = []
    for model in (ours.train(), other.train()):
        torch.manual_seed(1)  # which anchors and regions are sampled
        found.append(model(images, [dict(target) for target in targets]))
    assert found[0].keys() == found[1].keys()
    for name, value in found[0].items():
        torch.testing.assert_close(value, found[1][name])
    with torch.no_grad():
        maps, other_maps = (model.eval().backbone(torch.stack(images[:1])) for model in (ours, other))
        assert maps.keys() == other_maps.keys()
        assert all(torch.equal(maps[name], other_maps[name]) for name in maps)
        for one, two in zip(ours(images), other(images), strict=True):
            assert all(torch.equal(one[name], two[name]) for name in ("boxes", "labels", "scores"))


@pytest.mark.parametrize("name", ["WRN-18-0.5", "WRN-50-2-bottleneck", "ResNeXt-50-32x4d", "PreActResNet-200"])
def test_any_imagenet_network_gives_maps_of_strides_4_to_64(name: str) -> None:
    with torch.device("meta"):
        model = build_detector(name, 5, fpn_channels=16)
        maps = model.backbone(torch.empty(1, 3, 96, 128, device="meta"))
    assert [tuple(each.shape[1:]) for each in maps.values()] == [
        (16, 96 // stride, 128 // stride) if stride < 64 else (16, 2, 2) for stride in (4, 8, 16, 32, 64)
    ]


def test_a_network_for_small_images_is_no_backbone() -> None:
    with pytest.raises(UsageError):
        build_detector("WRN-28-10", 3)


def test_frozen_normalization_keeps_the_outputs_of_evaluation_and_is_not_trained() -> None:
    torch.manual_seed(0)
    network = create("WRN-18-0.25", 1, family="imagenet")
    with torch.no_grad():
        network(torch.randn(8, 3, 64, 64))  # moves the statistics
    x = torch.randn(2, 3, 64, 64)
    before = network.eval().features(x)["conv5"]
    freeze_norms(network)
    for mode in (True, False):
        torch.testing.assert_close(network.train(mode).features(x)["conv5"], before, rtol=1e-4, atol=1e-5)
    assert not any("bn" in name for name, _ in network.named_parameters())


def test_images_are_scaled_as_torchvision_scales_them() -> None:
    transform = GeneralizedRCNNTransform(800, 1333, [0.0], [1.0])
    for height, width in ((480, 640), (427, 640), (640, 425), (100, 1000), (333, 500)):
        (image,) = transform([torch.zeros(1, height, width)])[0].image_sizes
        ours = scaled_size(height, width, 800, 1333)
        assert max(abs(a - b) for a, b in zip(ours, image, strict=True)) <= 1  # which rounds down


def classifier(folder: Path, **options: Any) -> Path:
    torch.manual_seed(3)
    network = create("WRN-18-0.25", 4, family="imagenet", **options)
    with torch.no_grad():
        network(torch.randn(8, 3, 64, 64))
    folder.mkdir()
    preprocessing = Preprocessing("mean_std", (120.0, 110.0, 100.0), (60.0, 61.0, 62.0))
    write_weights(folder, Weights(network.eval(), preprocessing, tuple("abcd"), (64, 64)))
    return folder


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("detector") / "scenes", num_train=4, num_val=2)


def test_a_classification_runs_weights_are_frozen_by_default_with_its_preprocessing(
    tmp_path: Path, scenes: Path
) -> None:
    folder = classifier(tmp_path / "weights")
    job = prepare(small(scenes, init_from=str(folder)), World.single())
    assert job.recipe.norm == "frozen"
    assert job.recipe.frozen_stages == 2
    assert job.recipe.init_sha256
    assert job.architecture.mean == pytest.approx((120 / 255, 110 / 255, 100 / 255))
    body, wanted = body_of(job.network), read_backbone(str(folder)).tensors
    for name, tensor in body.state_dict().items():
        assert torch.equal(tensor, wanted[name]), name
    trained = {name for name, parameter in body.named_parameters() if parameter.requires_grad}
    assert trained
    assert all(name.startswith(("layer2", "layer3", "layer4")) for name in trained)
    assert any("the backbone starts from" in note and "weights (SHA-256" in note for note in job.notes)


def test_without_weights_group_normalization_is_trained_and_a_note_says_so(scenes: Path) -> None:
    job = prepare(small(scenes), World.single())
    assert job.recipe.norm == "group"
    assert job.recipe.frozen_stages == 0
    assert all(parameter.requires_grad for parameter in job.network.parameters())
    assert any("random weights" in note for note in job.notes)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in job.network.modules())


def test_a_state_dict_of_torchvisions_is_read_without_executing_it(tmp_path: Path, scenes: Path) -> None:
    torch.manual_seed(0)
    other: Any = torchvision.models.resnet18()
    torch.save(other.state_dict(), tmp_path / "resnet18.pth")
    job = prepare(small(scenes, backbone="ResNet-18", init_from=str(tmp_path / "resnet18.pth")), World.single())
    assert torch.equal(body_of(job.network).state_dict()["layer4.1.conv2.weight"], other.layer4[1].conv2.weight)

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path(tmp_path / "executed").touch, ())

    torch.save({"conv1.weight": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(DataError, match=r"evil.pth: holds more than tensors"):
        read_backbone(str(tmp_path / "evil.pth"))
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"norm": "frozen"}, "norm='frozen': needs the statistics of trained weights"),
        ({"max_size": 32}, "max_size=32: below min_size=64"),
        ({"init_from": "weights", "norm": "group"}, "norm='group': the weights of .* have batch normalization"),
        ({"init_from": "weights", "backbone": "WRN-18-0.5"}, r"do not fit WRN-18-0.5: layer1.0.conv1.weight is"),
        ({"init_from": "weights", "init_sha256": "0" * 64}, "but the recipe was made with 000000000000"),
        ({"batch_size": 5}, "batch_size=5: larger than the 4 training images"),
        ({"backbone": "WRN-28-10"}, "WRN-28-10"),
        ({"data": "nowhere"}, "data=nowhere: no such folder"),
    ],
)
def test_what_does_not_fit_is_refused(
    tmp_path: Path, scenes: Path, monkeypatch: pytest.MonkeyPatch, values: dict[str, Any], problem: str
) -> None:
    classifier(tmp_path / "weights")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=problem):
        prepare(small(scenes, **values), World.single())


def test_a_classifier_is_not_read_as_a_detector(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is no detector but a classifier"):
        read_detector(classifier(tmp_path / "weights"))


def test_the_neighbors_of_the_papers_number_are_torchvisions_own() -> None:
    models: Any = torchvision.models.detection
    for kind, weights in (
        ("Faster R-CNN", models.FasterRCNN_ResNet50_FPN_Weights),
        ("RetinaNet", models.RetinaNet_ResNet50_FPN_Weights),
    ):
        (row,) = (row for row in COCO_RESULTS if kind in row.detector)
        assert row.ap_pct == weights.COCO_V1.meta["_metrics"]["COCO-val2017"]["box_map"]


def test_no_warning_is_left_over(scenes: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prepare(small(scenes), World.single())
