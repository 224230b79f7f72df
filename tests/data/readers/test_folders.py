from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wideresnet.base.errors import DataError
from wideresnet.data import load_dataset

Write = Callable[..., Path]
TWO = {"cat": 2, "dog": 3}


@pytest.mark.parametrize("test_name", ["test", "val", "validation"])
def test_class_folders_are_labelled_in_sorted_order(class_folders: Write, test_name: str) -> None:
    dataset = load_dataset(class_folders({"train": {"dog": 3, "cat": 2}, test_name: {"dog": 1, "cat": 1}}))
    assert (dataset.name, dataset.class_names) == ("pets", ("cat", "dog"))
    assert dataset.train.labels.tolist() == [0, 0, 1, 1, 1]
    assert dataset.test.labels.tolist() == [0, 1]
    assert dataset.train.images.shape == (5, 8, 8, 3)
    assert dataset.notes == (() if test_name == "test" else (f"no test folder: {test_name} is the test set",))


@pytest.mark.parametrize("split", ["", "train"])
def test_without_a_test_folder_every_fifth_image_is_held_out_whatever_its_content(
    class_folders: Write, split: str
) -> None:
    folder = class_folders({split: {"cat": 10, "dog": 12}})
    first = load_dataset(folder)
    assert np.bincount(first.train.labels).tolist() == [8, 10]
    assert np.bincount(first.test.labels).tolist() == [2, 2]
    assert first.notes == ("no test folder: every 5th image of each class is held out, 4 images",)
    for path in folder.rglob("*.png"):
        Image.fromarray(255 - np.asarray(Image.open(path))).save(path)
    np.testing.assert_array_equal(load_dataset(folder).test.images, 255 - first.test.images)


def test_nested_folders_belong_to_their_class_and_hidden_files_to_none(class_folders: Write) -> None:
    folder = class_folders({"train": TWO, "test": TWO})
    (folder / "train/cat/kittens").mkdir()
    for target in ("train/cat/kittens/k.png", "train/cat/.hidden.png"):
        (folder / target).write_bytes((folder / "train/cat/0.png").read_bytes())
    (folder / ".cache").mkdir()
    dataset = load_dataset(folder)
    assert np.bincount(dataset.train.labels).tolist() == [3, 3]
    assert dataset.notes == ("not read: 1 hidden image: train/cat/.hidden.png",)


def test_files_that_are_not_read_are_counted_and_named(class_folders: Write) -> None:
    folder = class_folders({"train": TWO, "test": TWO, "val": TWO})
    (folder / "train/cat/notes.txt").write_text("meow")
    (folder / "README").write_text("pets")
    notes = load_dataset(folder).notes
    assert notes[0] == "not read: folders val next to train"
    assert notes[1].startswith("2 files not read")
    assert "README" in notes[1]
    assert "train/cat/notes.txt" in notes[1]


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ({}, "accepted are class folders"),
        ({"": {"cat": 3}}, "accepted are class folders"),
        (
            {"train": {"cat": 3}, "test": {"cat": 1}},
            "1 class folder, at least 2 are needed: it holds cat/ .3 images, no folders in it",
        ),
        ({"test": TWO}, "has test/ but no train/"),
        ({"train": {"cat": 2, "dog": 0}, "test": TWO}, "train/dog: a class folder without images"),
        ({"": TWO}, r"no class has 5 images, of which one would be held out \(the largest has 3\)"),
        ({"": {"cat": 9, "dog": 0}}, "pets/dog: a class folder without images"),
        (
            {"train": TWO, "test": {"cat": 1, "emu": 1}},
            r"test/emu: train has no such class \(only cat, dog\)",
        ),
    ],
)
def test_folders_that_cannot_be_used_are_named(
    class_folders: Write, layout: dict[str, dict[str, int]], message: str
) -> None:
    with pytest.raises(DataError, match=message) as caught:
        load_dataset(class_folders(layout))
    assert "\n" not in str(caught.value)


def test_a_class_without_test_images_is_noted(class_folders: Write) -> None:
    dataset = load_dataset(class_folders({"train": TWO, "test": {"cat": 2, "dog": 0}}))
    assert dataset.notes == ("1 class has no test image: dog",)


def test_all_unreadable_images_are_counted_and_ten_listed(class_folders: Write) -> None:
    folder = class_folders({"train": {"cat": 15, "dog": 3}, "test": TWO})
    for index in range(12):
        (folder / f"train/cat/{index}.png").write_bytes(b"" if index else b"text")
    with pytest.raises(DataError) as caught:
        load_dataset(folder)
    message = str(caught.value)
    assert message.startswith("12 of 23 images cannot be read: ")
    assert message.count("train/cat/") == 10
    assert "train/cat/0.png (not an image" in message
    assert "skip_unreadable=True" in message
    dataset = load_dataset(folder, skip_unreadable=True)
    assert np.bincount(dataset.train.labels).tolist() == [3, 3]
    assert dataset.notes[0].startswith("left out, 12 of 23 images cannot be read")


def test_a_truncated_png_is_named_and_stops_the_run(class_folders: Write) -> None:
    folder = class_folders({"train": TWO, "test": TWO})
    path = folder / "train/dog/1.png"
    path.write_bytes(path.read_bytes()[:-60])
    with pytest.raises(DataError, match=r"1 of 10 images cannot be read: train/dog/1.png \(damaged"):
        load_dataset(folder)


def test_every_conversion_is_counted(class_folders: Write) -> None:
    folder = class_folders({"train": {"cat": 8, "dog": 3}, "test": TWO})
    exif = Image.Exif()
    exif[0x0112] = 6
    cat = folder / "train/cat"
    Image.new("RGBA", (8, 8)).save(cat / "0.png")
    Image.new("L", (8, 8)).save(cat / "1.png")
    Image.new("L", (8, 8)).save(cat / "2.png")
    Image.new("P", (8, 8)).save(cat / "3.png")
    Image.fromarray(np.zeros((8, 8), dtype=np.uint16)).save(cat / "4.png")
    Image.new("CMYK", (8, 8)).save(cat / "5.tif")
    Image.new("RGB", (8, 8)).save(cat / "6.png", exif=exif)
    assert load_dataset(folder).notes == (
        "1 image scaled from 16 to 8 bits",
        "1 image converted from CMYK",
        "1 image rotated upright by EXIF",
        "1 image with transparency: placed on white",
        "3 images converted from grayscale to RGB",
        "1 image converted from palette",
    )


def test_all_gray_images_keep_one_channel(class_folders: Write) -> None:
    folder = class_folders({"train": TWO, "test": TWO})
    for path in folder.rglob("*.png"):
        Image.open(path).convert("L").save(path)
    dataset = load_dataset(folder)
    assert dataset.train.images.shape == (5, 8, 8, 1)
    assert dataset.notes == ("all images are grayscale: 1 channel",)


def test_images_of_several_sizes_are_resized_to_64_px_and_noted(class_folders: Write) -> None:
    folder = class_folders({"train": TWO, "test": TWO})
    Image.new("RGB", (40, 20)).save(folder / "train/cat/0.png")
    dataset = load_dataset(folder)
    assert dataset.train.images.shape == (5, 64, 64, 3)
    assert dataset.notes == (
        "10 images of 2 sizes (shorter side 8 to 20 px) resized to 64 x 64 px: shorter side scaled, center cropped",
    )
    assert load_dataset(folder, image_size=16).test.images.shape == (5, 16, 16, 3)


@pytest.mark.parametrize(("side", "kept"), [(128, True), (129, False)])
def test_images_of_one_size_are_kept_up_to_128_px(class_folders: Write, side: int, kept: bool) -> None:
    dataset = load_dataset(class_folders({"train": TWO, "test": TWO}, height=20, width=side))
    assert dataset.train.images.shape[1:3] == ((20, side) if kept else (64, 64))
    assert bool(dataset.notes) != kept


def test_links_are_followed_but_never_in_a_circle(class_folders: Write, tmp_path: Path) -> None:
    folder = class_folders({"train": TWO, "test": TWO})
    outside = tmp_path / "elsewhere.png"
    outside.write_bytes((folder / "train/cat/0.png").read_bytes())
    (folder / "train/cat/out.png").symlink_to(outside)
    (folder / "train/cat/loop").symlink_to(folder / "train", target_is_directory=True)
    dataset = load_dataset(folder)
    assert np.bincount(dataset.train.labels).tolist() == [3, 3]
    assert dataset.notes == (
        "followed 1 link to outside the folder",
        "did not follow 1 link to folders that are read already",
    )


def test_a_link_to_what_contains_the_data_brings_nothing_in(class_folders: Write) -> None:
    folder = class_folders({"train": TWO, "test": TWO})
    beside = folder.parent / "beside.png"
    beside.write_bytes((folder / "train/cat/0.png").read_bytes())
    (folder / "train/cat/up").symlink_to(folder.parent, target_is_directory=True)
    dataset = load_dataset(folder)
    assert np.bincount(dataset.train.labels).tolist() == [2, 3]
    assert dataset.notes == ("did not follow 1 link to folders that are read already",)


def test_images_under_names_of_other_files_are_named_with_the_remedy(class_folders: Write) -> None:
    folder = class_folders({"": {"cat": 6, "dog": 6}})
    for path in (folder / "dog").iterdir():
        path.rename(path.with_suffix(".txt"))
    with pytest.raises(
        DataError, match=r"dog: a class folder without images \(6 other files: 0.txt, ...\); give images"
    ):
        load_dataset(folder)


def test_a_broken_link_and_a_pipe_are_unreadable_and_do_not_hang(class_folders: Write) -> None:
    folder = class_folders({"train": TWO, "test": TWO})
    (folder / "train/cat/broken.png").symlink_to(folder / "nowhere.png")
    os.mkfifo(folder / "train/cat/pipe.png")
    with pytest.raises(DataError, match=r"broken.png \(no such file\); train/cat/pipe.png \(not a file\)"):
        load_dataset(folder)


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("Training", "Testing"),
        ("Train", "Test"),
        ("train", "valid"),
        ("TRAIN", "dev"),
        ("seg_train", "seg_test"),
        ("train_images", "test_images"),
        ("training_set", "test_set"),
        ("train", "Validation"),
    ],
)
def test_splits_are_known_in_common_spellings(class_folders: Write, train: str, test: str) -> None:
    dataset = load_dataset(class_folders({train: TWO, test: {"cat": 1, "dog": 1}}))
    assert (dataset.class_names, len(dataset.train), len(dataset.test)) == (("cat", "dog"), 5, 2)


def test_a_class_may_be_called_like_a_split(class_folders: Write) -> None:
    assert load_dataset(class_folders({"": {"bus": 5, "Train": 5, "dev": 5}})).class_names == ("Train", "bus", "dev")


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ({"Train": TWO, "train": TWO}, "Train/ and train/ both look like the train images"),
        ({"": {"train": 3, "valid": 3}}, r"has valid/ but no train/ with class folders"),
        ({"cat": {"train": 3, "test": 3}, "dog": {"x": 3}}, "cat has splits inside, but dog has none"),
    ],
)
def test_names_that_look_like_splits_but_make_no_sense_stop_the_run(
    class_folders: Write, layout: dict[str, dict[str, int]], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        load_dataset(class_folders(layout))


def test_splits_inside_each_class_are_never_mixed(class_folders: Write) -> None:
    dataset = load_dataset(class_folders({"cat": {"train": 3, "test": 1}, "dog": {"train": 2, "test": 2}}))
    assert np.bincount(dataset.train.labels).tolist() == [3, 2]
    assert np.bincount(dataset.test.labels).tolist() == [1, 2]
    assert dataset.notes == ("each class folder holds its own splits: test, train",)


@pytest.mark.parametrize("split", ["", "train", "images/all"])
def test_a_folder_that_holds_nothing_but_another_is_looked_through(class_folders: Write, split: str) -> None:
    dataset = load_dataset(class_folders({f"PetImages/{split}": {"cat": 10, "dog": 10}}))
    assert dataset.class_names == ("cat", "dog")
    assert len(dataset.train) == 16
    assert dataset.notes[0].startswith("read from its only subfolder PetImages")


def test_what_tools_leave_behind_is_no_class_and_is_named(class_folders: Write) -> None:
    litter = {"__MACOSX": {"cat": 1}, "cat": {"@eaDir": 2, ".ipynb_checkpoints": 1}, ".trash": {"old": 1}}
    folder = class_folders({"": {"cat": 5, "dog": 5}, **litter})
    (folder / "dog/Thumbs.db").write_bytes(b"")
    dataset = load_dataset(folder)
    assert np.bincount(dataset.train.labels).tolist() == [4, 4]
    assert dataset.notes[1:] == (
        "ignored 4 folders and files that tools leave behind: __MACOSX, cat/.ipynb_checkpoints, cat/@eaDir, "
        "dog/Thumbs.db",
        "not read: 1 hidden folder with images: .trash",
    )


def test_names_in_two_forms_of_unicode_are_one_class_across_splits_and_two_are_refused(class_folders: Write) -> None:
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    folder = class_folders({"train": {composed: 3, "dog": 2}, "test": {decomposed: 1, "dog": 1}})
    dataset = load_dataset(folder)
    assert dataset.class_names == (composed, "dog")
    assert dataset.test.labels.tolist() == [0, 1]
    class_folders({"train": {decomposed: 3}})
    with pytest.raises(DataError, match=r"two class folders look the same, 'cafe\\u0301' and 'caf\\xe9'"):
        load_dataset(folder)


def test_numbered_classes_out_of_order_are_noted(class_folders: Write) -> None:
    dataset = load_dataset(class_folders({"train": {"1": 2, "2": 2, "10": 2}, "test": {"1": 1, "2": 1, "10": 1}}))
    assert dataset.class_names == ("1", "10", "2")
    assert dataset.notes == ("class names are ordered as text: 1, 10, 2, ...; class_order='number' changes that",)
    assert load_dataset(class_folders({"train": {"3": 2}}, 8, 8)).class_names == ("1", "10", "2", "3")
