"""Inputs from public bug reports, each a kind: the right value, or one line that says what was found and what to do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wideresnet.base.errors import DataError, UsageError
from wideresnet.data import Dataset, load_dataset

Write = Callable[..., Path]
TWO = {"cat": 6, "dog": 5}


def picture(path: Path, seed: int, side: int = 8) -> Path:
    """Write a small image that no other seed gives."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, "PNG" if path.suffix.lower() not in (".jpg", ".jpeg") else "JPEG")
    return path


def counts(dataset: Dataset) -> tuple[list[int], list[int]]:
    """Training and test images per class."""
    num = len(dataset.class_names)
    return tuple(np.bincount(part.labels, minlength=num).tolist() for part in (dataset.train, dataset.test))  # type: ignore[return-value]


def has_note(dataset: Dataset, text: str) -> bool:
    return any(text in note for note in dataset.notes)


# 1 and 3: names and places of splits


@pytest.mark.parametrize(
    ("train", "test"),
    [("train2017", "val2017"), ("flowers_train", "flowers_test"), ("Training Set", "Test Set"), ("TrainingData", "dev"),
     ("seg_train/seg_train", "seg_test/seg_test"), ("data/TRAIN", "data/TEST")],
)  # fmt: skip
def test_splits_in_other_spellings_and_nested_ones(class_folders: Write, train: str, test: str) -> None:
    dataset = load_dataset(class_folders({train: TWO, test: {"cat": 1, "dog": 2}}))
    assert (dataset.class_names, counts(dataset)) == (("cat", "dog"), ([6, 5], [1, 2]))


def test_a_validation_folder_is_not_mixed_into_train_or_test(class_folders: Write) -> None:
    dataset = load_dataset(class_folders({"Train": TWO, "VALID": {"cat": 2, "dog": 2}, "Test": {"cat": 1, "dog": 1}}))
    assert counts(dataset) == ([6, 5], [1, 1])
    assert has_note(dataset, "not read: folders VALID next to Train")


def test_words_beside_split_names_do_not_make_classes_splits(class_folders: Write) -> None:
    folder = class_folders({"train_station": {"a": 6}, "test_tube": {"b": 6}, "airport": {"c": 6}})
    assert load_dataset(folder).class_names == ("airport", "test_tube", "train_station")


def test_a_readme_beside_the_wrapping_folder_changes_nothing(class_folders: Write) -> None:
    folder = class_folders({"pets-v2/train": TWO, "pets-v2/test": TWO})
    (folder / "README.md").write_text("pets")
    assert counts(load_dataset(folder)) == ([6, 5], [6, 5])


# 2: litter


def test_litter_of_many_tools_is_named_and_never_a_class(class_folders: Write) -> None:
    litter = {
        "@eaDir": {"x": 1},
        "#recycle": {"x": 1},
        "$RECYCLE.BIN": {"x": 1},
        ".Trash-1000": {"x": 1},
        "lost+found": {},
    }
    folder = class_folders({"": TWO, **litter, "cat/thumbnails": {"": 2}, ".old": {"x": 1}})
    for name in ("cat/._0.png", "dog/Thumbs.db", "dog/desktop.ini", ".DS_Store"):
        (folder / name).write_bytes(b"x")
    picture(folder / "dog/.hidden.png", 90)
    dataset = load_dataset(folder)
    assert (dataset.class_names, counts(dataset)) == (("cat", "dog"), ([5, 4], [1, 1]))
    assert has_note(dataset, "folders and files that tools leave behind")
    assert has_note(dataset, "1 hidden folder and 1 hidden image: .old, dog/.hidden.png")


# 4: ImageNet and Tiny-ImageNet


def tiny_imagenet(root: Path) -> Path:
    for wnid in ("n01443537", "n01629819"):
        for index in range(3):
            picture(root / f"train/{wnid}/images/{wnid}_{index}.JPEG", len(wnid) * index + ord(wnid[-1]))
        (root / f"train/{wnid}/{wnid}_boxes.txt").write_text("")
    lines = []
    for index, wnid in enumerate(("n01629819", "n01443537", "n01629819")):
        picture(root / f"val/images/val_{index}.JPEG", 70 + index)
        lines.append(f"val_{index}.JPEG\t{wnid}\t0\t32\t44\t62")
        picture(root / f"test/images/test_{index}.JPEG", 80 + index)
    (root / "val/val_annotations.txt").write_text("\n".join(lines) + "\n")
    (root / "wnids.txt").write_text("n01629819\nn01443537\n")
    (root / "words.txt").write_text("n01443537\tgoldfish, Carassius auratus\nn01629819\tEuropean fire salamander\n")
    return root


def test_tiny_imagenet_as_distributed(tmp_path: Path) -> None:
    dataset = load_dataset(tiny_imagenet(tmp_path / "tiny-imagenet-200"))
    assert dataset.class_names == ("goldfish", "European fire salamander")
    assert counts(dataset) == ([3, 3], [1, 2])
    assert dataset.test.labels.tolist() == [0, 1, 1]
    assert has_note(dataset, "test/ has no class folders and no file of labels: unlabeled")


@pytest.mark.parametrize(
    ("name", "lines"),
    [("LOC_val_solution.csv", "ImageId,PredictionString\nval_1,n01 1 2 3 4\nval_0,n02 4 4 4 4 n02 5 6 7 8\n"),
     ("val.txt", "val_1.JPEG 0\nval_0.JPEG 1\n")],
)  # fmt: skip
def test_imagenets_flat_val_takes_labels_from_kaggles_or_caffes_file(
    class_folders: Write, name: str, lines: str
) -> None:
    folder = class_folders({"ILSVRC/Data/CLS-LOC/train": {"n01": 2, "n02": 2}})
    inner = folder / "ILSVRC/Data/CLS-LOC"
    for index in range(2):
        picture(inner / f"val/val_{index}.JPEG", 70 + index)
    (inner / name).write_text(lines)
    dataset = load_dataset(folder)
    assert (counts(dataset), dataset.test.labels.tolist()) == (([2, 2], [1, 1]), [0, 1])


def test_a_file_with_labels_of_some_images_stops(class_folders: Write) -> None:
    folder = class_folders({"train": {"n01": 2, "n02": 2}})
    for index in range(2):
        picture(folder / f"val/val_{index}.png", index)
    (folder / "val/labels.txt").write_text("val_0.png n01\n")
    with pytest.raises(DataError, match=r"has no label of 1 of 2 images in val/ \(val_1.png\)"):
        load_dataset(folder)


# 5: tables


def with_table(root: Path, text: str, name: str = "labels.csv", folder: str = "images") -> Path:
    for index in range(6):
        picture(root / folder / f"{index}.png", index)
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text)
    return root


ROWS = "0.png,cat\n1.png,dog\n2.png,cat\n3.png,dog\n4.png,dog\n5.png,cat\n"


@pytest.mark.parametrize(
    ("text", "name", "folder"),
    [
        ("file,label\n" + ROWS, "labels.csv", "images"),
        ("file_name,label\n" + ROWS.replace(".png,", ".png,").replace("", ""), "images/metadata.csv", "images"),
        ("label;file\n" + "".join(f"{b};{a}\n" for a, b in (r.split(",") for r in ROWS.split())), "a.csv", "pictures"),
        ("id,breed\n" + ROWS.replace(".png", ""), "train.csv", "train"),
        (ROWS, "labels.csv", "."),
        ("".join(f"images\\{row}\n" for row in ("file,label", *ROWS.split())), "labels.csv", "images"),
        ("".join(json.dumps(dict(zip(("file_name", "label"), r.split(","), strict=True))) + "\n" for r in ROWS.split()),
         "metadata.jsonl", "."),
    ],
)  # fmt: skip
def test_labels_in_a_table_beside_images(tmp_path: Path, text: str, name: str, folder: str) -> None:
    root = with_table(tmp_path / "pets", text.replace("images\\file", "file"), name, folder)
    for index in range(6, 12):  # five of a class make a test image
        picture(root / folder / f"{index}.png", index)
    extra = "".join(f"{i}.png,{'cat' if i % 2 else 'dog'}\n" for i in range(6, 12))
    if name.endswith("jsonl"):
        rows = (row.split(",") for row in extra.split())
        extra = "".join(json.dumps({"file_name": a, "label": b}) + "\n" for a, b in rows)
    elif ";" in text:
        extra = "".join(f"{b};{a}\n" for a, b in (row.split(",") for row in extra.split()))
    elif "breed" in text:
        extra = extra.replace(".png", "")
    with (root / name).open("a") as file:
        file.write(extra)
    dataset = load_dataset(root)
    assert (dataset.class_names, counts(dataset)) == (("cat", "dog"), ([5, 5], [1, 1]))
    first = next(image for image, label in zip(dataset.train.images, dataset.train.labels, strict=True) if label == 0)
    cats = [np.asarray(Image.open(root / folder / f"{i}.png")) for i in (0, 2, 5, 7, 9, 11)]
    assert any(np.array_equal(first, cat) for cat in cats)


def test_a_table_with_a_column_of_splits(tmp_path: Path) -> None:
    splits = ("Train", "train", "Train", "Test", "valid", "test")
    rows = "".join(f"{row},{split}\n" for row, split in zip(ROWS.split(), splits, strict=True))
    dataset = load_dataset(with_table(tmp_path / "d", "image,label,split\n" + rows))
    assert (counts(dataset), dataset.test.labels.tolist()) == (([2, 1], [1, 1]), [1, 0])
    assert has_note(dataset, "1 validation image")


def test_kaggles_tables_for_train_and_unlabeled_test(tmp_path: Path) -> None:
    root = with_table(
        tmp_path / "d", "id,label\n" + ROWS + "".join(f"{i}.png,dog\n" for i in (6, 7)), "train.csv", "train"
    )
    for index in range(8):
        picture(root / f"train/{index}.png", index)
        picture(root / f"test/{index}.png", 50 + index)
    (root / "test.csv").write_text("id,width\n" + "".join(f"{i}.png,8\n" for i in range(8)))
    (root / "sample_submission.csv").write_text("id,label\n0.png,cat\n")
    dataset = load_dataset(root)
    assert counts(dataset) == ([3, 4], [0, 1])
    assert has_note(dataset, "test.csv has no labels")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,label\n" + ROWS + "9.png,cat\n", r"1 file of 7 in the table is missing: 9.png. Add them"),
        ("file,a,b\n" + ROWS.replace("\n", ",x\n"), "no column is clearly the label; it has file, a, b; choose one"),
        ("file,label,category\n" + "".join(f"{row},{'xyz'[i % 3]}\n" for i, row in enumerate(ROWS.split())),
         "several columns may be the label: label, category"),
        ("file,label\n" + ROWS + "0.png,dog\n", "0.png has the labels cat and dog"),
        ("file,label\n" + ROWS.replace("cat", "Dog"), r"two labels look the same, 'Dog' and 'dog' \(U\+0044"),
        ("name,label\nx,cat\ny,dog\n", r"no column of it \(name, label\) names images in"),
        ("file,a,b\n" + "".join(f"{i}.png,1,1\n" for i in range(6)), "2 of 2 columns are 1: multi-label"),
    ],
)  # fmt: skip
def test_tables_that_cannot_be_used_say_why(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        load_dataset(with_table(tmp_path / "d", text))
    assert "\n" not in str(caught.value)


def test_a_table_reads_no_file_outside_its_folder(tmp_path: Path) -> None:
    picture(tmp_path / "secret.png", 1)
    text = "file,label\n" + ROWS + f"../../secret.png,cat\n{tmp_path / 'secret.png'},dog\n"
    with pytest.raises(DataError, match="2 files of 8 in the table are missing"):
        load_dataset(with_table(tmp_path / "d", text))


def test_columns_can_be_chosen_and_one_per_class_is_read(tmp_path: Path) -> None:
    rows = "".join(f"{i}.png,{i % 2},{i % 3}\n" for i in range(6))
    root = with_table(tmp_path / "d", "file,a,b\n" + rows, "train.csv", "train")
    with_table(root, "file,a,b\n" + rows, "test.csv", "test")
    assert load_dataset(root, label_column="b").class_names == ("0", "1", "2")
    assert load_dataset(root, label_column="a").class_names == ("0", "1")
    one_hot = "".join(f"{i}.png,{i % 2},{1 - i % 2}\n" for i in range(6))
    for name in ("train.csv", "test.csv"):
        (root / name).write_text("file,melanoma,nevus\n" + one_hot)
    dataset = load_dataset(root)
    assert (dataset.class_names, dataset.train.labels.tolist()) == (("melanoma", "nevus"), [1, 0, 1, 0, 1, 0])


def test_folders_that_a_table_contradicts_are_not_taken_for_classes(class_folders: Write) -> None:
    folder = class_folders({"": {"part_1": 6, "part_2": 6}})
    for index in range(6):  # every file has a name of its own
        (folder / f"part_2/{index}.png").rename(folder / f"part_2/{index + 6}.png")
    rows = "".join(f"{i},{'mel' if i % 2 else 'nv'},{i}\n" for i in range(12))
    (folder / "HAM_metadata.csv").write_text("image_id,dx,age\n" + rows)
    with pytest.raises(DataError, match=r"labels \(column dx\) that the folders part_1, part_2, ... contradict"):
        load_dataset(folder)
    assert load_dataset(folder, label_column="dx").class_names == ("mel", "nv")


# 6: numbers as names


def test_numeric_classes_say_their_order_and_it_can_be_chosen(class_folders: Write) -> None:
    folder = class_folders({"train": {"1": 2, "2": 2, "10": 2}, "test": {"1": 1, "2": 1, "10": 1}})
    assert load_dataset(folder).class_names == ("1", "10", "2")
    dataset = load_dataset(folder, class_order="number")
    assert dataset.class_names == ("1", "2", "10")
    assert has_note(dataset, "ordered as number: 1, 2, 10, ...; class_order='text' changes that")
    with pytest.raises(UsageError, match="class_order='alphabet': must be 'text' or 'number'"):
        load_dataset(folder, class_order="alphabet")
    with pytest.raises(DataError, match="class_order='number': 'cat' is no number"):
        load_dataset(class_folders({"train": {"cat": 2}}), class_order="number")


# 11: the same picture twice


def test_equal_pictures_in_train_and_test_or_in_two_classes_are_said_at_once(class_folders: Write) -> None:
    folder = class_folders({"train": TWO, "test": TWO})
    (folder / "test/cat/copy.png").write_bytes((folder / "train/cat/0.png").read_bytes())
    (folder / "train/dog/copy.png").write_bytes((folder / "train/cat/1.png").read_bytes())
    dataset = load_dataset(folder)
    assert has_note(dataset, "1 test image is also in the training set; wrn check shows them")
    assert has_note(dataset, "2 images are in two classes or more")


# 12: names that look the same


@pytest.mark.parametrize(
    ("names", "message"),
    [(("Cat", "cat"), r"'Cat' and 'cat' \(U\+0043 against U\+0063\)"), (("cat", "cat "), r"nothing against U\+0020"),
     (("caf\u00e9", "cafe\u0301"), r"\(U\+0065 U\+0301 against U\+00E9\)"), (("cat", "cat\u200b"), r"U\+200B")],
)  # fmt: skip
def test_two_classes_that_look_the_same_show_their_code_points(
    class_folders: Write, names: tuple[str, str], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        load_dataset(class_folders({"": dict.fromkeys(names, 5)}))
    dataset = load_dataset(class_folders({"x/train": {names[0]: 2, "dog": 2}, "x/test": {names[1]: 1, "dog": 1}}) / "x")
    assert dataset.class_names == tuple(sorted((names[0], "dog")))
    assert counts(dataset) == ([2, 2], [1, 1])


# 13: too few images


def test_small_and_empty_classes_are_accepted_where_the_result_is_defined(class_folders: Write) -> None:
    dataset = load_dataset(class_folders({"": {"cat": 6, "dog": 2}}))
    assert (counts(dataset), has_note(dataset, "1 class has fewer than 5 images, so no test image: dog")) == (
        ([5, 2], [1, 0]), True,
    )  # fmt: skip
    dataset = load_dataset(class_folders({"y/train": TWO, "y/val": {"cat": 1, "dog": 0, "emu": 0}}) / "y")
    assert counts(dataset) == ([6, 5], [1, 0])
    assert has_note(dataset, "not read: empty folders emu in val")
