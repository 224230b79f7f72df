from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wideresnet.base.errors import UsageError
from wideresnet.data.augment import crop_and_flip, cut_out, draw_squares, pad_images, plan_epoch, resize

NUMPY_MODES = {"reflection": "reflect", "zero": "constant"}


def slow_crop(image: np.ndarray, padding: int, mode: str, top: int, left: int, flip: bool) -> np.ndarray:
    """The obvious way, for one image (H, W, C)."""
    height, width, _ = image.shape
    padded = np.pad(image, ((padding, padding), (padding, padding), (0, 0)), mode=NUMPY_MODES[mode])  # type: ignore[call-overload]
    crop = padded[top : top + height, left : left + width]
    return crop[:, ::-1] if flip else crop


@st.composite
def cases(draw: st.DrawFn) -> tuple[np.ndarray, int, str, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    height, width = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    channels, num = draw(st.sampled_from([1, 3])), draw(st.integers(1, 5))
    mode = draw(st.sampled_from(["reflection", "zero"]))
    padding = draw(st.integers(0, min(height, width) - 1 if mode == "reflection" else 5))
    dtype = draw(st.sampled_from([np.uint8, np.float32]))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    images = random.integers(0, 256, (num, height, width, channels)).astype(dtype)
    batch = draw(st.integers(0, 7))
    index = random.integers(0, num, batch)
    top, left = random.integers(0, 2 * padding + 1, (2, batch))
    return images, padding, mode, index, top, left, random.random(batch) < 0.5


@settings(max_examples=150, deadline=None)
@given(cases())
def test_a_batch_is_cut_as_image_by_image(
    case: tuple[np.ndarray, int, str, np.ndarray, np.ndarray, np.ndarray, np.ndarray],
) -> None:
    images, padding, mode, index, top, left, flip = case
    padded = pad_images(torch.from_numpy(images), padding, mode)
    size = (images.shape[1], images.shape[2])
    draws = [torch.from_numpy(draw) for draw in (index, top, left, flip)]
    crops = crop_and_flip(padded, draws[0], draws[1], draws[2], draws[3], size)
    expected = np.empty((len(index), *images.shape[1:]), images.dtype)
    for i in range(len(index)):
        expected[i] = slow_crop(images[index[i]], padding, mode, int(top[i]), int(left[i]), bool(flip[i]))
    assert crops.numpy().dtype == images.dtype
    np.testing.assert_array_equal(crops.numpy(), expected)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("padding", [0, 2])
def test_the_last_pixel_of_the_last_image_is_reached(channels: int, padding: int) -> None:
    images = torch.arange(2 * 4 * 6 * channels, dtype=torch.int32).view(2, 4, 6, channels)
    padded = pad_images(images, padding, "zero")
    corner = torch.tensor([2 * padding])
    crop = crop_and_flip(padded, torch.tensor([1]), corner, corner, torch.tensor([False]), (4, 6))
    assert torch.equal(crop[0], padded[1, 2 * padding :, 2 * padding :])


def test_a_crop_one_row_beyond_the_last_image_is_an_error_not_foreign_memory() -> None:
    padded = pad_images(torch.zeros(2, 4, 4, 1), 1, "zero")
    with pytest.raises((IndexError, RuntimeError)):
        crop_and_flip(padded, torch.tensor([1]), torch.tensor([3]), torch.tensor([2]), torch.tensor([False]), (4, 4))


def test_no_padding_leaves_the_images_where_they_are() -> None:
    images = torch.zeros(2, 4, 4, 1, dtype=torch.uint8)
    assert pad_images(images, 0, "reflection") is images


def test_many_images_are_padded_like_few() -> None:
    images = torch.randint(0, 256, (4099, 3, 2, 1), dtype=torch.uint8)
    expected = np.pad(images.numpy(), ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")
    np.testing.assert_array_equal(pad_images(images, 1, "reflection").numpy(), expected)


@pytest.mark.parametrize(("height", "width", "padding"), [(4, 8, 4), (8, 3, 3), (1, 1, 1)])
def test_a_reflection_that_the_image_cannot_fill_is_refused(height: int, width: int, padding: int) -> None:
    images = torch.zeros(1, height, width, 1)
    with pytest.raises(
        UsageError,
        match=rf"^crop_padding={padding}: .*\({height}x{width}\); use crop_padding={min(height, width) - 1} or less",
    ):
        pad_images(images, padding, "reflection")
    assert pad_images(images, padding, "zero").shape[1] == height + 2 * padding


def same_plan(a: int, b: int, *, seed: int = 0, other_seed: int = 0) -> bool:
    first = plan_epoch(seed, a, 500, padding=4, flip=True)
    second = plan_epoch(other_seed, b, 500, padding=4, flip=True)
    pairs = [(first.order, second.order), (first.top, second.top), (first.left, second.left), (first.flip, second.flip)]
    equal = {torch.equal(left, right) for left, right in pairs}
    assert len(equal) == 1  # all the same, or each one different
    return equal.pop()


def test_an_epochs_plan_is_a_function_of_seed_and_epoch_alone() -> None:
    torch.manual_seed(1)
    plan = plan_epoch(3, 7, 100, padding=4, flip=True)
    torch.manual_seed(2)
    assert same_plan(5, 5)
    assert torch.equal(plan.order, plan_epoch(3, 7, 100, padding=4, flip=True).order)


def test_making_a_plan_leaves_the_callers_random_state() -> None:
    before = torch.get_rng_state()
    plan_epoch(0, 0, 100, padding=4, flip=True)
    assert torch.equal(before, torch.get_rng_state())


def test_no_part_of_a_plan_repeats_in_another_epoch_or_seed() -> None:
    assert not same_plan(0, 1)
    assert not same_plan(0, 0, other_seed=1)
    assert not same_plan(1, 0, other_seed=1)


def test_the_order_is_every_image_once() -> None:
    order = plan_epoch(0, 0, 1000, padding=4, flip=True).order
    assert torch.equal(order.sort().values, torch.arange(1000))
    assert not torch.equal(order, torch.arange(1000))


def test_offsets_are_uniform_over_every_place_and_flips_half() -> None:
    num, padding = 45_000, 4
    plan = plan_epoch(0, 0, num, padding=padding, flip=True)
    places = (plan.top * 9 + plan.left).bincount(minlength=81)
    assert len(places) == 81
    expected = num / 81
    assert float(((places - expected) ** 2 / expected).sum()) < 140  # chi-squared, 80 degrees of freedom: p < 1e-4
    assert abs(int(plan.flip.sum()) - num / 2) < 4 * (num / 4) ** 0.5


def test_without_crop_and_flip_nothing_moves() -> None:
    plan = plan_epoch(0, 0, 100, padding=0, flip=False)
    assert not plan.flip.any()
    assert not plan.top.any()
    assert not plan.left.any()


def test_turning_augmentation_off_keeps_the_order() -> None:
    with_it, without = (plan_epoch(0, 0, 100, padding=padding, flip=padding > 0) for padding in (4, 0))
    assert torch.equal(with_it.order, without.order)


@pytest.mark.parametrize(
    ("scale", "shape"), [(0.625, (20, 20)), (0.75, (24, 24)), (1.0, (32, 32)), (0.01, (1, 1)), (2.0, (64, 64))]
)
def test_images_are_scaled_to_the_nearest_pixel(scale: float, shape: tuple[int, int]) -> None:
    assert resize(torch.zeros(2, 3, 32, 32), scale).shape == (2, 3, *shape)


def test_scaling_averages_and_does_not_pick_single_pixels() -> None:
    board = (torch.arange(8)[:, None] + torch.arange(8)[None, :]) % 2
    scaled = resize(board.float().view(1, 1, 8, 8), 0.5)
    assert float((scaled - 0.5).abs().max()) < 0.13
    batch = torch.rand(1, 3, 8, 8)
    assert resize(batch, 1.0) is batch


@pytest.mark.parametrize(("side", "height", "width"), [(1, 4, 6), (3, 6, 4), (4, 8, 5), (4, 4, 4)])
def test_a_square_is_cut_out_as_image_by_image(side: int, height: int, width: int) -> None:
    num = 60
    centers = draw_squares(0, 0, num, (height, width))
    batch = torch.ones(num, 2, height, width)
    expected = batch.clone()
    for i in range(num):
        row, column = centers[:, i].tolist()
        top, left = row - side // 2, column - side // 2
        expected[i, :, max(0, top) : max(0, top + side), max(0, left) : max(0, left + side)] = 0
    assert torch.equal(cut_out(batch, centers, side), expected)
    assert all(0 < int((image == 0).sum()) <= 2 * side**2 for image in expected)


def test_squares_are_centered_on_any_pixel_and_are_a_function_of_seed_and_epoch() -> None:
    before = torch.get_rng_state()
    centers = draw_squares(3, 1, 24_000, (4, 6))
    assert torch.equal(before, torch.get_rng_state())
    places = (centers[0] * 6 + centers[1]).bincount(minlength=24)
    assert len(places) == 24
    assert float(((places - 1000) ** 2 / 1000).sum()) < 65  # chi-squared, 23 degrees of freedom: p < 1e-4
    assert torch.equal(centers, draw_squares(3, 1, 24_000, (4, 6)))
    assert not torch.equal(centers, draw_squares(3, 2, 24_000, (4, 6)))
    assert not torch.equal(centers, draw_squares(4, 1, 24_000, (4, 6)))
