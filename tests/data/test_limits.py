"""What untrusted files may cost: memory and time are bounded before anything is allocated."""

from __future__ import annotations

import io
import json
import os
import struct
import subprocess
import sys
import threading
import time
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from wideresnet.base.errors import DataError
from wideresnet.data import limits, load_dataset
from wideresnet.data.images import MAX_SIDE_PX, decode
from wideresnet.data.limits import ByteBudget, check_fits, damage_in_one_line

Write = Callable[..., Path]
GIB = 2**30

MEASURED = """
import sys, threading, time
from wideresnet.base.errors import WRNError
from wideresnet.data import limits, load_dataset
from wideresnet.data.images import decode
from wideresnet.data.dataset import Dataset

def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) * 1024

before, start = peak(), time.monotonic()
try:
    {work}
    answer = "done"
except WRNError as error:
    answer = str(error)
print(peak() - before, time.monotonic() - start, answer)
"""


def measured(work: str, *arguments: str | Path) -> tuple[float, str]:
    """Run a statement in a process of its own. Return its peak memory in bytes, and "done" or the error."""
    command = [sys.executable, "-c", MEASURED.format(work=work), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    num_bytes, seconds, answer = done.stdout.rstrip("\n").split(" ", 2)
    assert float(seconds) < 30
    assert "\n" not in answer
    return float(num_bytes), answer


needs_proc = pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")


def zipped_npz(path: Path, headers: dict[str, tuple[str, str]], zeros: dict[str, int], **arrays: np.ndarray) -> Path:
    """An .npz of given arrays, and of zeros under headers that need not be true."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w") as file:
                np.lib.format.write_array(file, array)
        for name, (descr, shape) in headers.items():
            text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                file.write(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode())
                for _ in range(zeros.get(name, 0) // 2**20):
                    file.write(bytes(2**20))
    return path


def small_arrays() -> dict[str, np.ndarray]:
    images, labels = np.zeros((4, 8, 8, 3), dtype=np.uint8), np.array([0, 1, 0, 1])
    return {"x_train": images, "y_train": labels, "x_test": images, "y_test": labels}


@needs_proc
def test_an_unused_array_of_an_archive_is_never_unpacked(tmp_path: Path) -> None:
    path = zipped_npz(tmp_path / "a.npz", {"big": ("'|u1'", "(4294967296,)")}, {"big": 2**30}, **small_arrays())
    num_bytes, answer = measured("load_dataset(sys.argv[1])", path)
    assert answer == "done"
    assert num_bytes < GIB / 4


@pytest.mark.parametrize(
    ("descr", "shape", "message"),
    [
        ("'|u1'", "(1000000000000, 32, 32, 3)", "more than it can hold"),
        ("'|u1'", "(-4, 8, 8, 3)", "a.npz: "),
        ("'<U100000000'", "(4, 8, 8, 3)", "more than it can hold"),
        ("'(2,3'", "(4, 8, 8, 3)", "a.npz: damaged"),
        ("'|O'", "(4, 8, 8, 3)", "pickled objects"),
        ("[('a', '|O')]", "(4,)", "pickled objects"),
        ("'|u1'", "(4, 8, 8, 3", "a.npz: damaged"),
        ("'|u1'", "(" * 5000, "a.npz: damaged"),
    ],
)
def test_an_archives_header_is_checked_before_its_array_is_read(
    tmp_path: Path, descr: str, shape: str, message: str
) -> None:
    arrays = small_arrays()
    del arrays["x_train"]
    path = zipped_npz(tmp_path / "a.npz", {"x_train": (descr, shape)}, {}, **arrays)
    with pytest.raises(DataError, match=message) as caught:
        load_dataset(path)
    assert "\n" not in str(caught.value)


def test_arrays_that_do_not_fit_in_memory_are_refused_by_their_headers(tmp_path: Path) -> None:
    arrays = small_arrays()
    del arrays["x_train"]
    path = zipped_npz(tmp_path / "a.npz", {"x_train": ("'|u1'", "(1048576, 32, 32, 3)")}, {"x_train": 2**20}, **arrays)
    # The directory at the end says how long the array is, and so does the local header: both are made to lie.
    content = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo("x_train.npy")
    lied = content.replace(struct.pack("<II", info.compress_size, info.file_size), struct.pack("<II", 2**31, 2**32 - 2))
    assert lied != content
    path.write_bytes(lied)
    with pytest.raises(DataError, match=r"a\.npz: "):
        load_dataset(path)


def test_what_is_no_plain_archive_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        for name, array in small_arrays().items():
            with archive.open(f"{name}.npy", "w") as file:
                np.lib.format.write_array(file, array)
    with pytest.raises(DataError, match="unusual compression"):
        load_dataset(path)
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(3))
    path.write_bytes(buffer.getvalue() + path.read_bytes())  # an .npy and a zip in one
    with pytest.raises(DataError, match=r"a\.npz"):
        load_dataset(path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(DataError, match=r"not an \.npz"):
        load_dataset(path)


def test_a_missing_shard_is_found_without_counting_all_that_the_name_promises(
    tmp_path: Path, parquet_file: Write
) -> None:
    parquet_file(tmp_path / "d/train-00000-of-99999999999.parquet")
    start = time.monotonic()
    with pytest.raises(DataError, match="is one of 99999999999 files, and number 1 is missing"):
        load_dataset(tmp_path / "d")
    assert time.monotonic() - start < 5


@needs_proc
def test_many_large_images_in_one_parquet_file_are_read_one_after_another(tmp_path: Path) -> None:
    image = io.BytesIO()
    Image.new("RGB", (8, 8)).save(image, "PNG")
    padding = zlib.crc32(b"tEXt" + bytes(30 * 2**20))
    chunk = struct.pack(">I", 30 * 2**20) + b"tEXt" + bytes(30 * 2**20) + struct.pack(">I", padding)
    large = image.getvalue()[:33] + chunk + image.getvalue()[33:]
    images = pa.array([{"bytes": large, "path": None}] * 60, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    table = pa.table({"image": images, "label": [0, 1] * 30})
    (tmp_path / "d").mkdir()
    pq.write_table(table, tmp_path / "d/train.parquet", compression="zstd")
    assert (tmp_path / "d/train.parquet").stat().st_size < 10**6
    num_bytes, _ = measured("load_dataset(sys.argv[1], skip_unreadable=True)", tmp_path / "d")
    assert num_bytes < GIB


def test_parquet_rows_that_do_not_fit_in_memory_are_refused_by_their_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "available_host_memory_bytes", lambda: GIB)
    rows = 3 * 10**6
    nulls = pa.nulls(rows, pa.binary())
    (tmp_path / "d").mkdir()
    pq.write_table(pa.table({"image": nulls, "label": np.zeros(rows, np.int8)}), tmp_path / "d/train.parquet")
    with pytest.raises(
        DataError, match=r"its 3,000,000 rows need 2\.9 GiB of memory, available are 1\.0 GiB"
    ) as caught:
        load_dataset(tmp_path / "d")
    assert "\n" not in str(caught.value)


def test_doubled_columns_and_deep_metadata_of_parquet_are_one_line_or_no_obstacle(
    tmp_path: Path, parquet_file: Write
) -> None:
    path = parquet_file(tmp_path / "d/train.parquet", [0, 1] * 5)
    table = pq.read_table(path)
    deep = b"[" * 100_000
    pq.write_table(table.replace_schema_metadata({"huggingface": deep}), path)
    assert load_dataset(tmp_path / "d").class_names == ("0", "1")
    pq.write_table(pa.table([table["image"], table["label"], table["label"]], names=["image", "label", "label"]), path)
    with pytest.raises(DataError, match="has 2 columns label; remove all but one"):
        load_dataset(tmp_path / "d")


def test_a_label_beyond_int64_is_named_as_it_is(tmp_path: Path, parquet_file: Write) -> None:
    parquet_file(tmp_path / "d/train.parquet", [0, 1, 2**64 - 1], label_type=pa.uint64())
    with pytest.raises(DataError, match=f"label row 2: label {2**64 - 1} is out of range"):
        load_dataset(tmp_path / "d")


def test_a_parquet_file_that_is_a_pipe_is_refused_and_does_not_hang(tmp_path: Path, parquet_file: Write) -> None:
    parquet_file(tmp_path / "d/test.parquet")
    os.mkfifo(tmp_path / "d/train.parquet")
    with pytest.raises(DataError, match=r"train\.parquet: not a file"):
        load_dataset(tmp_path / "d")


@pytest.mark.parametrize("size", [(1, 40_000), (MAX_SIDE_PX + 1, 1)])
def test_a_side_beyond_the_limit_is_refused_on_the_header(size: tuple[int, int]) -> None:
    buffer = io.BytesIO()
    Image.new("L", size).save(buffer, "PNG")
    with pytest.raises(DataError, match=f"{size[0]} x {size[1]} pixels, a side may have 32,768"):
        decode(buffer.getvalue())


def large_webp(side: int) -> bytes:
    buffer = io.BytesIO()
    frames = [Image.new("RGBA", (side, side), color) for color in ("red", "blue")]
    frames[0].save(buffer, "WEBP", save_all=True, append_images=frames[1:], lossless=True, quality=0, method=0)
    return buffer.getvalue()


@needs_proc
@pytest.mark.slow
def test_large_images_in_many_threads_take_turns(tmp_path: Path) -> None:
    (tmp_path / "a.webp").write_bytes(large_webp(4000))
    work = (
        "from pathlib import Path; from concurrent.futures import ThreadPoolExecutor; import numpy; "
        "pool = ThreadPoolExecutor(16); sums = list(pool.map(lambda _: decode(Path(sys.argv[1]))[0].sum(), range(16)))"
    )
    num_bytes, answer = measured(work, tmp_path / "a.webp")
    assert answer == "done"
    assert num_bytes < 4.5 * GIB  # 16 at once would take 6


def progressive_jpeg(side: int, num_scans: int) -> bytes:
    """A progressive JPEG whose last scan, which adds nothing, is repeated."""
    buffer = io.BytesIO()
    Image.new("L", (side, side)).save(buffer, "JPEG", progressive=True)
    content = buffer.getvalue()
    last = content.rindex(b"\xff\xda")
    return content[:last] + content[last:-2] * num_scans + content[-2:]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"P5\n#" + b"a" * 50_000_000 + b"\n2 2\n255\n1234", "a comment without end"),
        (b"P6 3000 3000 254\n", "in a slow encoding, the limit is 8 million"),
        (b"P2 3000 3000 255\n", "in a slow encoding, the limit is 8 million"),
        (b"GIF89a\x02\x00\x02\x00\x00\x00\x00" + b"!\xfe" + (b"\xff" + b"a" * 255) * 100_000, "without end"),
        (progressive_jpeg(2000, 600), "scans; save as PNG"),
    ],
    ids=["comment", "ppm", "plain", "gif", "scans"],
)
def test_an_image_that_would_take_minutes_is_refused_at_once(content: bytes, message: str) -> None:
    start = time.monotonic()
    with pytest.raises(DataError, match=message):
        decode(content)
    assert time.monotonic() - start < 5


def test_libtiff_writes_nothing_to_the_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, "TIFF", compression="tiff_adobe_deflate")
    content = bytearray(buffer.getvalue())
    content[20:60] = bytes(40)
    with pytest.raises(DataError):
        decode(bytes(content))
    assert capfd.readouterr() == ("", "")


def test_links_that_fork_and_join_are_walked_once(class_folders: Write) -> None:
    folder = class_folders({"train": {"cat": 2, "dog": 3}, "test": {"cat": 2, "dog": 3}})
    hidden = [folder / f".{level}" for level in range(24)]
    for level, here in enumerate(hidden):
        here.mkdir()
        if level:
            (hidden[level - 1] / "a").symlink_to(here)
            (hidden[level - 1] / "b").symlink_to(here)
    (hidden[-1] / "x.png").write_bytes((folder / "train/cat/0.png").read_bytes())
    (folder / "train/cat/in").symlink_to(hidden[0])
    dataset = load_dataset(folder)
    assert np.bincount(dataset.train.labels).tolist() == [3, 3]
    assert dataset.notes == (
        "not read: 2 hidden folders with images: .22, .23",
        "did not follow 23 links to folders that are read already",
    )


def test_a_folder_behind_a_link_belongs_to_the_class_that_contains_it(class_folders: Write) -> None:
    folder = class_folders({"train": {"cat": 2, "dog": 3}, "test": {"cat": 2, "dog": 3}})
    (folder / "train/cat/friends").symlink_to(folder / "train/dog")
    assert np.bincount(load_dataset(folder).train.labels).tolist() == [2, 3]
    (folder / "train/puppy").symlink_to(folder / "train/dog")
    with pytest.raises(DataError, match="puppy: a link to a folder that is read already"):
        load_dataset(folder)


def test_a_deep_folder_is_read(class_folders: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = class_folders({"train": {"cat": 2, "dog": 3}, "test": {"cat": 2, "dog": 3}})
    content = (folder / "train/cat/0.png").read_bytes()
    monkeypatch.chdir(folder / "train/cat")
    for _ in range(1500):
        Path("d").mkdir()
        os.chdir("d")
    Path("x.png").write_bytes(content)
    start = time.monotonic()
    try:
        assert np.bincount(load_dataset(folder).train.labels).tolist() == [3, 3]
        assert time.monotonic() - start < 20
    finally:  # too deep for pytest to remove
        Path("x.png").unlink()
        for _ in range(1500):
            os.chdir("..")
            Path("d").rmdir()


NAMES: Sequence[tuple[bytes, str]] = [(b"caf\xe9", r"caf\xe9"), (b"a\x1b[2Jb", r"a\x1b[2Jb"), ("möwe".encode(), "möwe")]


@pytest.mark.parametrize(("name", "shown"), NAMES)
def test_class_names_are_text_wherever_they_come_from(
    class_folders: Write, parquet_file: Write, tmp_path: Path, name: bytes, shown: str
) -> None:
    folder = class_folders({"": {"zebra": 6}})
    renamed = folder.rename(folder.with_name(os.fsdecode(b"in\xff")))
    os.mkdir(os.fsencode(renamed) + b"/" + name)  # noqa: PTH102
    for index in range(6):
        os.link(renamed / f"zebra/{index}.png", os.fsencode(renamed) + b"/" + name + b"/%d.png" % index)
    text = os.fsdecode(name)
    arrays: dict[str, Any] = small_arrays() | {"class_names": np.array([text, "zebra"])}
    np.savez(tmp_path / "a.npz", **arrays)
    parquet_file(tmp_path / "d/train.parquet", [0, 1] * 5, class_names=[text, "zebra"])
    for source in (renamed, tmp_path / "a.npz", tmp_path / "d"):
        dataset = load_dataset(source)
        assert set(dataset.class_names) == {shown, "zebra"}
        json.dumps([dataset.class_names, dataset.name, dataset.notes], ensure_ascii=False).encode()
    assert load_dataset(renamed).name == r"in\xff"


def test_a_class_name_without_end_is_refused(tmp_path: Path, parquet_file: Write) -> None:
    parquet_file(tmp_path / "d/train.parquet", [0, 1] * 5, class_names=["a" * 10**6, "b"])
    with pytest.raises(DataError, match=r"a class name of 1,000,000 characters \(aaaaaaaaaaaaaaaaaaaa...\)"):
        load_dataset(tmp_path / "d")


def test_a_budget_of_bytes_lets_only_as_many_threads_in_as_fit() -> None:
    budget, inside, most, lock = ByteBudget(10), [0], [0], threading.Lock()

    def work(num_bytes: int) -> None:
        with budget.hold(num_bytes):
            with lock:
                inside[0] += num_bytes
                most[0] = max(most[0], inside[0])
            time.sleep(0.01)
            with lock:
                inside[0] -= num_bytes

    threads = [threading.Thread(target=work, args=(size,)) for size in (3, 4, 3, 5, 2, 9, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(5)
    assert most[0] <= 10
    with budget.hold(1000):  # more than there is: alone
        pass
    with pytest.raises(KeyError), budget.hold(10):
        raise KeyError
    with budget.hold(10):
        pass


def test_what_does_not_fit_is_refused_with_both_sizes() -> None:
    check_fits(1000, "these arrays", "")
    with pytest.raises(DataError, match=r"^these arrays need 1024.0 TiB of memory, available are .*; use fewer$"):
        check_fits(2.0**50, "these arrays", "use fewer")


def test_any_error_of_a_parser_becomes_one_short_line() -> None:
    for error in (RecursionError("deep"), MemoryError(), SyntaxError("a\nb"), KeyError("x" * 10_000)):
        with pytest.raises(DataError) as caught, damage_in_one_line("a.npz: damaged"):
            raise error
        assert str(caught.value).startswith("a.npz: damaged (")
        assert len(str(caught.value)) < 400
    with pytest.raises(DataError, match=r"^own words$"), damage_in_one_line("a.npz: damaged"):
        raise DataError("own words")
