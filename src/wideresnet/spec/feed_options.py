"""The options of a recipe that are about images: which ones, how they are augmented, when they are evaluated."""

from __future__ import annotations

from dataclasses import dataclass

from wideresnet.base.errors import UsageError
from wideresnet.spec.fields import CODE, PAPER, check_fields, check_length, option


@dataclass(frozen=True, kw_only=True)
class FeedOptions:
    """The images: which ones, how they are augmented and preprocessed, when the network is evaluated."""

    drop_last: bool = option(
        True, "leave out an epoch's last, smaller batch (390 steps on CIFAR)", CODE + ", skip-last"
    )
    flip: bool = option(True, "mirror half of the images left-right", PAPER)
    crop_padding: int = option(4, "random crop from the image padded by this many pixels", PAPER, low=0)
    padding_mode: str = option("reflection", "what the padding holds", PAPER, choices=("reflection", "zero"))
    auto_augment: str = option(
        "none",
        "after crop and flip: trivial: one random operation of random strength per image (TrivialAugmentWide: shear, "
        "shift by up to 32 pixels, rotation, colors, contrast, ...)",
        "Mueller & Hutter 2021; the paper has none",
        choices=("none", "trivial"),
    )
    cutout: int = option(
        0,
        "side in pixels of a square at a random place that is set to 0 after preprocessing; 0: off",
        "DeVries & Taylor 2017; 16 on CIFAR-10, 8 on CIFAR-100 there", low=0, high=1024,
    )  # fmt: skip
    random_resized_crop: float = option(
        0.0,
        "cut a part of at least this share of the area, aspect 3/4 to 4/3, and scale it to image_size; 0: off",
        "Szegedy et al. 2015; 0.08 there",
        low=0,
        high=1,
    )
    color_jitter: float = option(
        0.0,
        "change brightness, contrast and saturation by up to this share, in random order; 0: off",
        "fb.resnet.torch, datasets/imagenet.lua; 0.4 there",
        low=0,
        high=1,
    )
    pca_lighting: float = option(
        0.0,
        "add colors along the principal components of ImageNet's, with this standard deviation; 0: off",
        "Krizhevsky et al. 2012; 0.1 there",
        low=0,
        high=10,
    )
    random_erasing: float = option(
        0.0,
        "probability of setting a random rectangle to 0 after preprocessing; 0: off",
        "Zhong et al. 2020; 0.1 in torchvision's recipe", low=0, high=1,
    )  # fmt: skip
    mixup: float = option(
        0.0,
        "alpha of mixup, blends of two images and of their labels; 0: off; with cutmix, one of the two per batch",
        "Zhang et al. 2018", low=0, high=100,
    )  # fmt: skip
    cutmix: float = option(
        0.0,
        "alpha of cutmix, a rectangle of another image and a share of its label; 0: off",
        "Yun et al. 2019; 1 there", low=0, high=100,
    )  # fmt: skip
    repeated_augmentation: int = option(
        1,
        "times that an image is in a batch, augmented differently; an epoch then has fewer different images",
        "Hoffer et al. 2020; 4 in torchvision's recipe", low=1, high=64,
    )  # fmt: skip
    image_scales: tuple[tuple[float, float], ...] = option(
        ((0.0, 1.0),),
        "pairs (from this share of the epochs, train on images scaled by this)",
        "Howard 2018, fast.ai's entry to DAWNBench",
    )
    preprocessing: str = option(
        "mean_std",
        "mean_std; zca: global contrast normalization and ZCA whitening (Tables 2-4); scale: pixels / 255 only",
        "paper, Tables 5-6 mean_std, 2-4 zca; SVHN scale",
        choices=("mean_std", "zca", "scale"),
    )
    image_size: int | None = option(
        None,
        "resize images to this side, px (own images of different sizes: 64)",
        "own choice; the paper has 32",
        low=8,
        high=1024,
    )
    eval_size: int | None = option(
        None, "side of the center crop of test images, px (none: image_size)", "fb.resnet.torch; 224 there",
        low=8, high=1024,
    )  # fmt: skip
    eval_resize: int | None = option(
        None,
        "shorter side, px, to which test images are scaled before the crop (none: eval_size)",
        "fb.resnet.torch; 256 there",
        low=8,
        high=2048,
    )
    extra_data: bool = option(False, "svhn: train on its 531,131 extra images too", PAPER)
    limit: int | None = option(
        None, "train on only this many images, drawn by the seed", "own choice, for trials", low=1
    )
    holdout: int = option(
        0,
        "validate on this many training images; the test set is then used once, at the end",
        "own choice; the paper has none",
        low=0,
    )
    skip_unreadable: bool = option(
        False, "leave out images that cannot be read (listed) instead of stopping", "own choice"
    )
    image_column: str | None = option(None, "own tables and parquet: the column of images", "own choice")
    label_column: str | None = option(None, "own tables and parquet: the column of labels", "own choice")
    class_order: str | None = option(
        None,
        "own classes called by numbers: order them as text (1, 10, 2) or by number; folders: text, tables: number",
        "own choice",
        choices=("text", "number"),
    )
    white: int | None = option(
        None,
        "own 16-bit images: the value that becomes white (the largest of as many bits as they all use)",
        "own choice",
        low=1,
        high=65_535,
    )
    balance: str = option(
        "none",
        "classes of different sizes: weights: each image counts in the loss by the inverse of the size of its class; "
        "sampling: an epoch has as many images of each class, small ones repeated",
        "Buda et al. 2018, who prefer sampling; the paper has none",
        choices=("none", "weights", "sampling"),
    )
    eval_every: int = option(
        1, "epochs between evaluations; the last is always evaluated", "own choice; the paper has 1", low=1
    )

    def __post_init__(self) -> None:
        check_fields(self)
        if self.auto_augment != "none" and self.preprocessing == "zca":
            raise UsageError(
                f"auto_augment={self.auto_augment!r}: changes pixels of 0..255, but preprocessing='zca' whitens the "
                "whole set in advance; use preprocessing='mean_std'"
            )
        if self.balance == "sampling" and self.repeated_augmentation > 1:
            raise UsageError(
                f"repeated_augmentation={self.repeated_augmentation}: balance='sampling' decides how often an image is "
                "in an epoch; use repeated_augmentation=1, or balance='weights'"
            )
        if self.preprocessing == "zca" and (self.streams or self.pca_lighting):
            raise UsageError(
                "preprocessing='zca': whitens the whole set in advance, so random_resized_crop, color_jitter, "
                "pca_lighting, eval_size and eval_resize cannot be used; use preprocessing='mean_std'"
            )
        if self.eval_resize is not None and self.eval_resize < (size := self.eval_size or self.image_size or 0):
            raise UsageError(
                f"eval_resize={self.eval_resize}: smaller than the crop of {size} px; use eval_resize={size} or more"
            )
        check_length("image_scales", self.image_scales)
        starts = [start for start, _ in self.image_scales]
        if (
            not starts
            or starts[0] != 0
            or starts != sorted(set(starts))
            or not all(0 <= start < 1 and 0 < scale <= 2 for start, scale in self.image_scales)
        ):
            raise UsageError(
                f"image_scales={self.image_scales}: pairs (start, scale) with the first start 0, starts rising and "
                "below 1, 0 < scale <= 2"
            )

    @property
    def streams(self) -> bool:
        """Whether images are needed as they are on the disk, at every use again."""
        return bool(self.random_resized_crop or self.color_jitter or self.eval_size or self.eval_resize)

    @property
    def mixes(self) -> bool:
        """Whether images and labels of a batch are mixed."""
        return bool(self.mixup or self.cutmix)
