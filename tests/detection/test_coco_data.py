"""Annotations in COCO's format: found in the usual layouts, and whatever is wrong is counted, named and handled."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coco_scenes import change, path_of, write_scenes
from PIL import Image

from wideresnet.base.errors import DataError, UsageError
from wideresnet.data.images import UnreadableError, silent_pillow
from wideresnet.detection.coco import RULES, find_split, read_split
from wideresnet.detection.feed import read_scaled


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_scenes(tmp_path / "scenes")


def test_a_set_is_read_as_it_was_written(root: Path) -> None:
    found = read_split(root, "train")
    assert len(found.images) == 8
    assert found.categories == ((3, "red"), (7, "blue"))
    assert found.notes() == []
    document = json.loads(path_of(root).read_text())
    left, top, wide, high = document["annotations"][0]["bbox"]
    np.testing.assert_array_equal(found.boxes[0][0], [left, top, left + wide, top + high])
    assert [labels.tolist() for labels in found.labels] == [[0, 1]] * 8


def broken(document: dict[str, Any]) -> None:
    """Put one example of each kind of finding into the annotations, but for a missing image."""
    images, annotations = document["images"], document["annotations"]
    width, height = images[0]["width"], images[0]["height"]

    def add(**values: Any) -> None:
        number = max(entry["id"] for entry in annotations if isinstance(entry["id"], int)) + 1
        plain = {"id": number, "image_id": 1, "category_id": 3, "bbox": [1, 1, 9, 9], "area": 81, "iscrowd": 0}
        annotations.append({**plain, **values})

    images.append({**images[0], "file_name": images[1]["file_name"]})
    Path(document["empty"]).parent.joinpath("empty.png").write_bytes(Path(document["empty"]).read_bytes())
    images.append({**images[0], "id": 99, "file_name": "empty.png"})
    del document["empty"]
    add(id="seven")
    add(id=annotations[0]["id"])
    add(image_id=12345)
    add(image_id=[1])
    add(category_id=4)
    add(bbox=[1, 2, 3])
    add(bbox=[1, 2, float("inf"), 4])
    add(bbox=[5, 5, 0, 7])
    add(bbox=[width + 5, 0, 10, 10])
    add(bbox=[width - 10, height - 10, 30, 30])
    add(iscrowd=1)


def test_each_kind_of_bad_annotation_is_counted_named_and_handled(root: Path) -> None:
    def edit(document: dict[str, Any]) -> None:
        broken({**document, "empty": root / "train" / document["images"][0]["file_name"]})

    change(root, edit)
    found = read_split(root, "train")
    counts = {kind: len(examples) for kind, examples in found.findings.items() if examples}
    twice = {"annotations of unknown images": 2, "boxes that are not four numbers": 2}
    assert counts == {kind: twice.get(kind, 1) for kind in RULES if kind != "missing images"}
    notes = found.notes()
    assert len(notes) == len(counts)
    assert all(rule in " ".join(notes) for kind, rule in RULES.items() if kind in counts)
    assert any("1 boxes without area (22 in 000000000001.png)" in note for note in notes), notes
    # the image has its own two boxes, and the one that stands out, cut off
    image = found.images[0]
    np.testing.assert_array_equal(
        found.boxes[0][2:], [[image.width - 10, image.height - 10, image.width, image.height]]
    )
    # evaluation has the file's boxes as they are, of known images and categories: 16, and 4 of the odd ones
    assert len(found.truth["annotations"]) == 20
    assert sum(annotation["iscrowd"] for annotation in found.truth["annotations"]) == 1
    assert all(annotation["id"] > 0 for annotation in found.truth["annotations"])


def test_missing_images_are_named_and_left_out_only_if_asked_for(root: Path) -> None:
    (root / "train" / "000000000003.png").unlink()
    with pytest.raises(DataError, match=r"1 of 8 images are not in .*train \(000000000003.png\).*skip_unreadable=True"):
        read_split(root, "train")
    found = read_split(root, "train", skip_unreadable=True)
    assert [image.id for image in found.images] == [1, 2, 4, 5, 6, 7, 8]
    assert len(found.truth["images"]) == 7
    assert len(found.truth["annotations"]) == 14
    assert "1 missing images (000000000003.png)" in found.notes()[0]


@pytest.mark.parametrize("name", ["../val/000000000001.png", "/etc/passwd"])
def test_file_names_that_lead_out_of_the_folder_are_refused(root: Path, name: str) -> None:
    change(root, lambda document: document["images"][0].update(file_name=name))
    with pytest.raises(DataError, match="leads out of"):
        read_split(root, "train")


@pytest.mark.parametrize(
    ("edit", "problem"),
    [
        (lambda d: d.pop("categories"), "categories must be a list of objects"),
        (lambda d: d.update(images={}), "images must be a list of objects"),
        (lambda d: d.update(annotations=[1]), "annotations must be a list of objects"),
        (lambda d: d["images"][0].pop("width"), "each image needs id, file_name, height and width"),
        (lambda d: d["categories"].append({"id": 3, "name": "again"}), "category 3 is there twice"),
        (lambda d: d["categories"][0].update(id="x"), "each category needs an id"),
    ],
)
def test_a_file_that_is_not_cocos_is_refused_in_one_line(root: Path, edit: Any, problem: str) -> None:
    change(root, edit)
    with pytest.raises(DataError, match=problem) as caught:
        read_split(root, "train")
    assert "\n" not in str(caught.value)


def test_text_that_is_no_json_is_refused(root: Path) -> None:
    path_of(root).write_text('{"images": [')
    with pytest.raises(DataError, match="cannot be read as JSON"):
        read_split(root, "train")


def test_the_usual_layouts_are_found(root: Path, tmp_path: Path) -> None:
    plain = tmp_path / "plain"  # train.json beside train/
    plain.mkdir()
    roboflow = tmp_path / "roboflow"  # the JSON among its images, and valid for val
    for split, other in (("train", "train"), ("val", "valid")):
        shutil.copytree(root / split, plain / split)
        shutil.copy(path_of(root, split), plain / f"{split}.json")
        shutil.copytree(root / split, roboflow / other)
        shutil.copy(path_of(root, split), roboflow / other / "_annotations.coco.json")
    alone = tmp_path / "alone"  # one JSON beside images/
    shutil.copytree(root / "train", alone / "images")
    shutil.copy(path_of(root), alone / "boxes.json")
    (root / "annotations" / "captions_train.json").write_text("{}")  # COCO has them, too
    for place in (root, plain, roboflow):
        assert len(read_split(place, "train").images) == 8
        assert len(read_split(place, "val").images) == 4
    assert len(read_split(alone, "train").images) == 8
    assert find_split(alone, "val") is None
    with pytest.raises(UsageError, match="no val split"):
        read_split(alone, "val")


def test_two_files_of_a_split_are_not_chosen_between(root: Path) -> None:
    shutil.copy(path_of(root), root / "annotations" / "instances_train_2.json")
    with pytest.raises(UsageError, match="several files could be the train split"):
        find_split(root, "train")


def test_an_image_of_another_size_than_the_json_says_is_named(root: Path) -> None:
    found = read_split(root, "train")
    Image.new("RGB", (10, 20)).save(found.images[0].file)
    with silent_pillow(), pytest.raises(UnreadableError, match="10 x 20 px, but 96 x 64 in the JSON"):
        read_scaled(found.images[0], 64, 96)
