"""What a folder or file is that no reader reads: one line that names it and says how to convert it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from wideresnet.base.format import counted
from wideresnet.data.readers.walk import Found, Place, all_images, has_image_name, listed, visible

_FILES: dict[str, str] = {
    ".tfrecord": "TensorFlow records; write the images into class folders, e.g. with tensorflow_datasets",
    ".tfrecords": "TensorFlow records; write the images into class folders",
    ".rec": "MXNet records; unpack them with im2rec",
    ".mdb": "an LMDB; write the images into class folders",
    ".h5": "HDF5; save the arrays as x_train, y_train, x_test, y_test with np.savez",
    ".hdf5": "HDF5; save the arrays as x_train, y_train, x_test, y_test with np.savez",
    ".mat": "MATLAB files; load them with scipy.io.loadmat and save the arrays with np.savez",
    ".pkl": "a pickle, which can run code and is never read; save the arrays with np.savez",
    ".pickle": "a pickle, which can run code and is never read; save the arrays with np.savez",
    ".pt": "PyTorch tensors; save them as x_train, y_train, x_test, y_test with np.savez",
    ".arrow": "Arrow files of Hugging Face's save_to_disk; write them with dataset.to_parquet()",
    ".tgz": "a tar archive; unpack it",
    ".gz": "compressed files; unpack them",
    ".7z": "a 7z archive; unpack it, or pack it as .zip",
    ".rar": "a rar archive; unpack it, or pack it as .zip",
    ".npy": "NumPy arrays; put images and labels into one .npz with np.savez",
    ".csv": "a table; use the folder that holds it and its images",
    ".json": "a file of annotations; use the folder that holds it and its images (wrn detect takes COCO's)",
    ".parquet": "a parquet file; use the folder that holds train-*.parquet",
}
_MANY = 3


def describe_file(path: Path) -> str:
    """Say what a single file is, and what to do."""
    for extension, what in _FILES.items():
        if path.name.lower().endswith(extension):
            return f"{path}: {what}"
    return f"{path}: a single file must be an .npz, a .zip or a .tar; for images or parquet files use their folder"


def describe_folder(root: Any, found: Found) -> str:
    """Say what a folder holds in which no layout was recognized, and what it looks like."""
    paths = visible(root, found)
    folders, files = [path for path in paths if path.is_dir()], [path for path in paths if not path.is_dir()]
    images = [path for path in files if has_image_name(path)]
    parts = [_described(folder) for folder in folders[:_MANY]] + ["..."] * (len(folders) > _MANY)
    parts += [counted(len(images), "image") + " without class folders"] if images else []
    others = [path for path in files if path not in images]
    parts += [f"{counted(len(others), 'other file')} ({listed(others, root)})"] if others else []
    classes = "1 class folder, at least 2 are needed" if len(folders) == 1 else "no layout is recognized"
    guess = guess_kind(root)
    return f"{classes}: it holds {', '.join(parts) or 'nothing'}" + (f"; {guess}" if guess else "")


def guess_kind(root: Any) -> str:
    """Say what a folder without class folders looks like, or nothing."""
    paths = visible(root, Found())
    folders, files = [path for path in paths if path.is_dir()], [path for path in paths if not path.is_dir()]
    return next((text for text, fits in _GUESSES.items() if fits(root, folders, files)), "")


def _described(folder: Any) -> str:
    inside = visible(folder, Found())
    num_folders = sum(path.is_dir() for path in inside)
    images = len(all_images(folder, Found()))
    where = f" in {counted(num_folders, 'folder')}" if num_folders else ", no folders in it"
    return f"{folder.name}/ ({counted(images, 'image')}{where})"


def _has_names(*names: str) -> Callable[[Any, list[Any], list[Any]], bool]:
    return lambda _root, folders, files: set(names) <= {path.name.lower() for path in (*folders, *files)}


def _labels_in_names(_root: Place, folders: list[Any], files: list[Any]) -> bool:
    """Whether most images are called like `cat.0.jpg`, `dog_17.png`: a few words before numbers."""
    images = [path for path in files if has_image_name(path)]
    for folder in folders[:_MANY]:
        images = images or [path for path in visible(folder, Found()) if has_image_name(path)]
    words = {path.stem.rstrip("0123456789._- ()") for path in images}
    return len(images) >= 10 and 2 <= len(words - {""}) <= len(images) // 5


def _only_archives(_root: Place, folders: list[Any], files: list[Any]) -> bool:
    return not folders and bool(files) and all(path.suffix.lower() in (".zip", ".tar", ".gz", ".7z") for path in files)


def _is_coco(folder: Any) -> bool:
    """Whether a folder holds COCO's JSON: `annotations/instances_*.json`, or `train/_annotations.coco.json`."""
    names = [file.name for file in visible(folder, Found())]
    instances = folder.name.lower() == "annotations" and any(name.startswith("instances") for name in names)
    return instances or "_annotations.coco.json" in names


_GUESSES: dict[str, Callable[[Any, list[Any], list[Any]], bool]] = {
    "it looks like CIFAR-10-C, corrupted test images without training images: wrn eval RUN --data takes these": (
        lambda _root, _folders, files: "labels.npy" in (names := {path.name for path in files}) and len(names) > 1
    ),
    "it looks like detection data in YOLO's layout; cut out the objects into class folders": (
        lambda _root, folders, _files: {"images", "labels"} <= {path.name.lower() for path in folders}
    ),
    "it looks like COCO, objects in boxes instead of one class per image: wrn detect train --data takes it": (
        lambda root, folders, _files: any(_is_coco(folder) for folder in (root, *folders))
    ),
    "it looks like Pascal VOC; sort the images into class folders": _has_names("jpegimages", "annotations"),
    "it looks like a data set with annotations apart; sort the images into class folders, or write labels.csv with "
    "columns file,label": (
        lambda _root, folders, _files: any(path.name.lower() in ("annotations", "annotation") for path in folders)
    ),
    "it looks like Hugging Face's save_to_disk; write it with dataset.to_parquet()": (
        lambda _root, _folders, files: any(path.name in ("dataset_dict.json", "dataset_info.json") for path in files)
    ),
    "the labels seem to be in the names of the files; sort the files into class folders": _labels_in_names,
    "unpack the archives, or use the path of one .zip": _only_archives,
}
