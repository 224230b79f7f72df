from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wideresnet.base.errors import DataError, UsageError
from wideresnet.data.preprocess import Preprocessing, channel_statistics, contrast_normalize


def random_images(num: int = 40, height: int = 4, width: int = 5, channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (num, height, width, channels), dtype=np.uint8)


def apply(preprocessing: Preprocessing, images: np.ndarray) -> np.ndarray:
    return preprocessing(preprocessing.resident(images)).numpy()


@settings(max_examples=40, deadline=None)
@given(
    num=st.integers(1, 5),
    height=st.integers(1, 6),
    width=st.integers(1, 6),
    channels=st.sampled_from([1, 3]),
    seed=st.integers(0, 99),
)
def test_a_batch_is_normalized_as_image_by_image(num: int, height: int, width: int, channels: int, seed: int) -> None:
    images = random_images(num, height, width, channels, seed)
    mean, std = (125.3, 123.0, 113.9)[:channels], (63.0, 62.1, 66.7)[:channels]
    for preprocessing in (Preprocessing("mean_std", mean, std), Preprocessing("scale")):
        batch = apply(preprocessing, images)
        assert batch.shape == (num, channels, height, width)
        for i in range(num):
            for channel in range(channels):
                pixels = images[i, :, :, channel].astype(np.float64)
                wanted = (pixels - mean[channel]) / std[channel] if preprocessing.kind == "mean_std" else pixels / 255
                np.testing.assert_allclose(batch[i, channel], wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_training_set_comes_out_with_mean_zero_and_deviation_one(channels: int) -> None:
    images = random_images(channels=channels)
    images[..., 0] //= 3
    batch = apply(Preprocessing.fit("mean_std", images), images).astype(np.float64)
    np.testing.assert_allclose(batch.mean(axis=(0, 2, 3)), 0, atol=1e-6)
    np.testing.assert_allclose(batch.std(axis=(0, 2, 3)), 1, atol=1e-6)


def test_published_statistics_win_over_counted_ones() -> None:
    preprocessing = Preprocessing.fit("mean_std", random_images(), (1.0, 2.0, 3.0), (4.0, 5.0, 6.0))
    assert (preprocessing.mean, preprocessing.std) == ((1.0, 2.0, 3.0), (4.0, 5.0, 6.0))


@pytest.mark.parametrize("channels", [1, 3])
def test_statistics_of_channels_are_those_of_float64(channels: int) -> None:
    images = random_images(300, 7, 5, channels)
    mean, std = channel_statistics(images)
    pixels = images.astype(np.float64)
    np.testing.assert_allclose(mean, pixels.mean(axis=(0, 1, 2)), rtol=1e-13)
    np.testing.assert_allclose(std, pixels.std(axis=(0, 1, 2)), rtol=1e-13)


def test_statistics_do_not_depend_on_the_order_of_the_images() -> None:
    images = random_images(300)
    assert channel_statistics(images) == channel_statistics(images[::-1])


def test_a_constant_channel_is_refused_with_the_way_out() -> None:
    images = random_images()
    images[..., 1] = 7
    with pytest.raises(
        DataError, match=r"^channel 1 of the training images has the value 7 .*; use preprocessing='scale' to train"
    ):
        Preprocessing.fit("mean_std", images)
    assert apply(Preprocessing.fit("scale", images), images)[0, 1, 0, 0] == np.float32(7 / 255)


def test_a_kind_that_does_not_exist_is_refused() -> None:
    with pytest.raises(UsageError, match=r"^preprocessing='pca': .*one of mean_std, zca, scale$"):
        Preprocessing.fit("pca", random_images())


def test_contrast_normalized_images_have_mean_zero_and_norm_55() -> None:
    rows = contrast_normalize(random_images())
    np.testing.assert_allclose(rows.mean(axis=1), 0, atol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 55, rtol=1e-12)


def test_contrast_normalization_keeps_the_picture() -> None:
    image = random_images(1)
    row = contrast_normalize(image)[0]
    assert np.corrcoef(row, image.reshape(-1).astype(float))[0, 1] == pytest.approx(1)


@pytest.mark.parametrize("level", [0, 7, 255])
def test_a_constant_image_becomes_zeros(level: int) -> None:
    assert not contrast_normalize(np.full((1, 3, 3, 3), level, np.uint8)).any()


def textbook_zca(train: np.ndarray, images: np.ndarray) -> np.ndarray:
    """Krizhevsky 2009, appendix A, with the filter bias of 0.1: one line of algebra each, all in float64."""

    def normalize(image: np.ndarray) -> np.ndarray:
        row = image.reshape(-1).astype(np.float64)
        row = row - row.mean()
        return 55 * row / np.sqrt((row**2).sum())

    rows = np.stack([normalize(image) for image in train])
    covariance = np.cov(rows, rowvar=False, bias=True)
    u, s, _ = np.linalg.svd(covariance)
    whiten = u @ np.diag(1 / np.sqrt(s + 0.1)) @ u.T
    return np.stack([whiten @ (normalize(image) - rows.mean(axis=0)) for image in images]).reshape(images.shape)


@pytest.mark.parametrize("channels", [1, 3])
def test_whitening_is_the_textbooks_for_training_and_new_images(channels: int) -> None:
    train, new = random_images(200, 4, 3, channels), random_images(7, 4, 3, channels, seed=1)
    zca = Preprocessing.fit("zca", train)
    for images in (train, new):
        expected = textbook_zca(train, images).transpose(0, 3, 1, 2)
        np.testing.assert_allclose(apply(zca, images), expected, rtol=1e-3, atol=1e-4)


def test_the_covariance_of_whitened_images_is_v_over_v_plus_a_tenth() -> None:
    train = random_images(500, 3, 3, 1)
    train[:, 0] = train[:, 1] // 2 + train[:, 0] // 4  # correlated neighbors, as in pictures
    rows = contrast_normalize(train)
    values, vectors = np.linalg.eigh(np.cov(rows, rowvar=False, bias=True))
    whitened = apply(Preprocessing.fit("zca", train), train).reshape(500, -1).astype(np.float64)
    covariance = vectors.T @ np.cov(whitened, rowvar=False, bias=True) @ vectors
    values = np.maximum(values, 0)
    np.testing.assert_allclose(covariance, np.diag(values / (values + 0.1)), atol=1e-4)
    np.testing.assert_allclose(whitened.mean(axis=0), 0, atol=1e-5)


def test_the_whitening_matrix_is_symmetric_so_that_pictures_stay_pictures() -> None:
    matrix = Preprocessing.fit("zca", random_images(200, 3, 3, 1)).zca_matrix
    assert matrix is not None
    torch.testing.assert_close(matrix, matrix.T)


def test_many_images_are_whitened_like_few() -> None:
    images = random_images(4099, 2, 2, 1)
    zca = Preprocessing.fit("zca", images)
    alone = torch.cat([zca.resident(images[i : i + 1]) for i in (0, 2048, 4098)])
    torch.testing.assert_close(zca.resident(images)[[0, 2048, 4098]], alone)
    np.testing.assert_allclose(apply(zca, images), textbook_zca(images, images).transpose(0, 3, 1, 2), atol=1e-2)


def test_whitening_refuses_images_of_another_size() -> None:
    zca = Preprocessing.fit("zca", random_images(50, 4, 4, 3))
    with pytest.raises(UsageError, match=r"^images of \(4, 5, 3\): this whitening is for 48 values per image$"):
        zca.resident(random_images(2, 4, 5, 3))


@pytest.mark.parametrize("kind", ["mean_std", "scale", "zca"])
def test_preprocessing_survives_config_and_tensors_exactly(kind: str) -> None:
    images = random_images()
    before = Preprocessing.fit(kind, images)
    after = Preprocessing.from_config(json.loads(json.dumps(before.to_config())), before.tensors())
    assert (after.kind, after.mean, after.std) == (before.kind, before.mean, before.std)
    assert bool(before.tensors()) == (kind == "zca")
    np.testing.assert_array_equal(apply(after, images), apply(before, images))


def test_a_stored_kind_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="preprocessing 'magic': must be one of mean_std, zca, scale"):
        Preprocessing.from_config({"kind": "magic", "mean": [], "std": []}, {})


def test_stored_whitening_without_its_matrix_is_refused() -> None:
    with pytest.raises((KeyError, ValueError)):
        Preprocessing.from_config({"kind": "zca", "mean": [], "std": []}, {})


@pytest.mark.parametrize(
    ("mean", "std"), [([1.0], []), ([], []), ([1.0, 2.0], [1.0]), ([1.0], [0.0]), ([1.0], [float("nan")])]
)
def test_stored_statistics_that_cannot_be_are_refused(mean: list[float], std: list[float]) -> None:
    with pytest.raises(ValueError, match="mean"):
        Preprocessing.from_config({"kind": "mean_std", "mean": mean, "std": std}, {})


def test_resident_images_are_the_callers_bytes() -> None:
    images = random_images()[:, ::2]
    resident = Preprocessing("scale").resident(images)
    assert resident.dtype == torch.uint8
    np.testing.assert_array_equal(resident.numpy(), images)
