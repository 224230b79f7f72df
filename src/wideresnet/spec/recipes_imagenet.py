"""The recipes for ImageNet's networks: the one that the paper used, and torchvision's newer one."""

from __future__ import annotations

import re

from wideresnet.base.errors import UsageError
from wideresnet.spec.feed_options import FeedOptions
from wideresnet.spec.names import is_ambiguous, parse
from wideresnet.spec.options import MachineOptions, NetworkOptions, OptimizerOptions, ScheduleOptions
from wideresnet.spec.recipe import Recipe

SMALL_SETS = ("digits", "cifar10", "cifar100", "svhn")
"""The sets known by name, all of small images."""


def is_imagenet_network(network: str, family: str | None = None) -> bool:
    """Tell whether a name, in the given family, is that of a network for images of 224x224."""
    if family is None and is_ambiguous(network):
        return False
    try:
        return parse(network, family).family == "imagenet"
    except UsageError:  # a wrong name is reported where the network is built
        return False


def paper_imagenet(network: str, data: str) -> Recipe:
    """Return fb.resnet.torch's recipe, which the paper used on ImageNet (section 3.3).

    90 epochs of batches of 256; lr 0.1, times 0.1 from the 31st and the 61st; Nesterov momentum 0.9; weight decay
    0.0001 on every parameter; a random part of at least 8 % of the area, scaled to 224x224; color jitter 0.4, PCA
    lighting 0.1, flip; test images scaled to 256, center crop 224; the last, smaller batch is kept.
    Source: facebookarchive/fb.resnet.torch, opts.lua, train.lua (learningRate), datasets/imagenet.lua,
    datasets/transforms.lua, dataloader.lua, models/resnet.lua (He initialization by the fan out, no bias).
    Different there: bicubic scaling without antialiasing, here bilinear with it; color jitter of unrounded pixels.
    """
    return Recipe(
        network=network, data=data, name="paper",
        schedule=ScheduleOptions(
            epochs=90, batch_size=256, lr=0.1, lr_drop_epochs=(31, 61), lr_drop_factor=0.1, lr_drop_at="start"
        ),
        optimizer=OptimizerOptions(reset_momentum_at_drops=False, weight_decay=1e-4),
        feed=FeedOptions(
            drop_last=False, crop_padding=0, random_resized_crop=0.08, color_jitter=0.4, pca_lighting=0.1,
            image_size=224, eval_size=224, eval_resize=256,
        ),
        network_options=NetworkOptions(init="fan_out"),
        machine=MachineOptions(precision="fp32"),
    )  # fmt: skip


def modern(
    network: str, data: str, known_as: str = "", num_train: int | None = None, *, family: str | None = None
) -> Recipe:
    """Return torchvision's second recipe, by which its ResNet-50 went from 76.13 to 80.86 % on ImageNet.

    Args:
        network, data: as for `paper`.
        known_as: the data set that `data` turned out to be: digits and house numbers are not mirrored.
        num_train: number of training images: below 100 batches of 1,024, and on sets known by name, a batch is 128
            images and lr an eighth (linear scaling, Goyal et al. 2017), so that an epoch has steps.
        family: reading of a name that has two.

    600 epochs of batches of 8 * 128 = 1,024; lr 0.5 down to 0 along half a cosine after 5 epochs of warm-up; momentum
    0.9 without Nesterov; weight decay 0.00002 on weights alone; labels smoothed by 0.1; mixup 0.2 or cutmix 1 in each
    batch; TrivialAugmentWide; random erasing 0.1; each image 4 times per batch; training at 176x176, test images
    scaled to 232, center crop 224; averaged weights.
    Averages there move by (1 - 0.99998) * 1024 * 32 / 600 every 32 steps, which is 1024 / 600 * 0.00002 per step.
    Source: pytorch/vision, references/classification/README.md (ResNet50, new recipe), train.py, sampler.py,
    presets.py; https://pytorch.org/blog/how-to-train-state-of-the-art-models-using-torchvision-latest-primitives.
    Different there: the warm-up starts at lr 0.005, here at 0; the bias of the linear layer decays; averages start
    after the warm-up. Networks for 32x32 images keep the size of the images.
    """
    is_large = is_imagenet_network(network, family)
    known = re.sub("[-_ ]", "", (known_as or data).lower())
    batch_size = 128 if known in SMALL_SETS or (num_train and num_train < 100 * 1024) else 8 * 128
    return Recipe(
        network=network, data=data, name="modern",
        schedule=ScheduleOptions(
            epochs=600, batch_size=batch_size, kind="cosine", lr=0.5 * batch_size / 1024, warmup_fraction=5 / 600
        ),
        optimizer=OptimizerOptions(
            reset_momentum_at_drops=False, nesterov=False, weight_decay=2e-5, weight_decay_on="weights",
            label_smoothing=0.1, ema_decay=1 - batch_size / 600 * 2e-5,
        ),
        feed=FeedOptions(
            flip=known not in ("digits", "svhn"),
            crop_padding=0, random_resized_crop=0.08, auto_augment="trivial", random_erasing=0.1,
            mixup=0.2, cutmix=1.0, repeated_augmentation=4,
            image_size=176 if is_large else None,
            eval_size=224 if is_large else None,
            eval_resize=232 if is_large else None,
        ),
        network_options=NetworkOptions(init="fan_out"),
    )  # fmt: skip
