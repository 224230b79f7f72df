"""Memory as a line over the images: what fits, what is refused and with which fix, and how the line is found."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from wideresnet.base.errors import UsageError
from wideresnet.training.preflight.memory import Memory, fit_line

MIB = 2**20
LITTLE = Memory(
    fixed_bytes=600 * MIB,
    image_bytes=4.0 * MIB,
    floor_bytes=500 * MIB,
    in_use_bytes=550 * MIB,
    available_bytes=150 * MIB,
)


def test_the_peak_is_a_line_over_the_images_and_never_below_that_of_all_else() -> None:
    assert LITTLE.peak_bytes(10) == 640 * MIB
    assert dataclasses.replace(LITTLE, floor_bytes=900 * MIB).peak_bytes(10) == 900 * MIB


def test_the_most_images_fit_and_one_more_does_not() -> None:
    assert LITTLE.most_images() == 25
    assert LITTLE.fits(25)
    assert not LITTLE.fits(26)


def test_everything_fits_if_the_system_does_not_say_what_is_available() -> None:
    unknown = dataclasses.replace(LITTLE, available_bytes=0)
    assert unknown.fits(10**6)
    unknown.check(10**6, 1, 0)


@pytest.mark.parametrize(
    ("batch_size", "accumulate", "fragments"),
    [
        (128, 1, ("batch_size=128: needs 562.0 MiB", "150.0 MiB is", "use batch_size=25, ", "with accumulate=7")),
        (128, 2, ("batch_size=128 in 2 parts: needs 306.0 MiB", "use batch_size=50, ", "with accumulate=6")),
    ],
)
def test_a_batch_that_cannot_fit_is_refused_with_the_largest_and_both_fixes(
    batch_size: int, accumulate: int, fragments: tuple[str, ...]
) -> None:
    with pytest.raises(UsageError) as refused:
        LITTLE.check(batch_size, accumulate, gradient_bytes=20 * MIB)  # 20 MiB are 5 images
    for fragment in fragments:
        assert fragment in str(refused.value)
    LITTLE.check(25, 1, 20 * MIB)
    LITTLE.check(128, 7, 0)


def test_processes_that_share_a_batch_are_told_the_whole_of_it() -> None:
    with pytest.raises(UsageError) as refused:
        LITTLE.check(256, 1, gradient_bytes=20 * MIB, processes=2)
    fragments = ("batch_size=256 shared by 2 processes: needs 562.0 MiB", "use batch_size=50, ", "with accumulate=7")
    for fragment in fragments:
        assert fragment in str(refused.value)


def test_a_run_that_has_begun_is_not_told_to_change_its_batch() -> None:
    with pytest.raises(UsageError, match=r"batch_size=128: needs 562\.0 MiB .* a run keeps its batch") as refused:
        LITTLE.check(128, 1, gradient_bytes=0, resumed=True)
    assert "use " not in str(refused.value)


def test_if_not_even_one_image_fits_the_network_is_named_as_the_fix() -> None:
    with pytest.raises(UsageError, match=r"10\.0 MiB is available, too little for one image; use a smaller network"):
        dataclasses.replace(LITTLE, available_bytes=10 * MIB).check(128, 1, 0)


def test_the_line_goes_through_both_peaks() -> None:
    fixed, slope = fit_line((4, 540), (16, 648), kept_image_bytes=8.0, weights_bytes=100, kernels="pytorch")
    assert (fixed, slope) == (504, 9.0)


@pytest.mark.parametrize(
    ("kernels", "high", "slope"),
    [("pytorch", 541, 8.0), ("pytorch", 900, 9.6), ("winograd", 541, 9.6), ("winograd", 900, 16.0)],
)
def test_an_image_takes_no_less_than_autograd_keeps_and_no_more_than_a_heap_makes_of_it(
    kernels: str, high: int, slope: float
) -> None:
    line = fit_line((4, 540), (16, high), kept_image_bytes=8.0, weights_bytes=100, kernels=kernels)
    assert line == (pytest.approx(high - 16 * slope, abs=0.5), pytest.approx(slope))


@pytest.mark.parametrize(("kernels", "slope"), [("pytorch", 8.0), ("winograd", 10.4)])
def test_few_images_among_large_weights_take_little_more_than_autograd_keeps(kernels: str, slope: float) -> None:
    fixed, found = fit_line((2, 540), (4, 600), kept_image_bytes=8.0, weights_bytes=1000, kernels=kernels)
    assert (fixed, found) == (pytest.approx(600 - 4 * slope, abs=0.5), pytest.approx(slope))


def test_one_peak_alone_is_met_exactly() -> None:
    fixed, slope = fit_line((4, 540), (4, 540), kept_image_bytes=8.0, weights_bytes=100, kernels="pytorch")
    assert fixed + 4 * slope == 540


@pytest.mark.usefixtures("autotuning")
@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="the system keeps no peak to measure")
@pytest.mark.parametrize("flags", [[], ["--accumulate", "3", "--norm", "group", "--ema-decay", "0.9"]])
def test_the_record_holds_a_prediction_within_ten_percent_of_the_peak(
    make_npz: Callable[..., Path], tmp_path: Path, flags: list[str]
) -> None:
    data = make_npz(num_train=128, size=32)
    command = [sys.executable, "-m", "wideresnet", "train", "WRN-10-2", "--data", str(data), "--epochs", "1",
               "--batch-size", "128", "--device", "cpu", "--precision", "fp32", "--json", "--out",
               str(tmp_path / "run"), *flags]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["predicted_memory_mib"] == pytest.approx(result["peak_memory_mib"], rel=0.1)
