"""Facts about the published data sets: sizes, classes, pixel statistics, and the source of each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np


@dataclass(frozen=True)
class Facts:
    """A published data set. All pixel statistics are in gray levels, 0..255.

    Attributes:
        name: the name that `load_dataset` takes.
        title: the name that people use.
        num_train, num_test: number of images.
        image_size: side of the square images, px.
        channels: 1 or 3.
        class_names: in the order of the labels.
        mean, std: per channel, what the paper's mean/std preprocessing subtracts and divides by.
        true_mean, true_std: per channel, computed over all pixels of the training images.
        mirror: whether a left-right flip keeps the label.
        source: where the numbers come from.
    """

    name: str
    title: str
    num_train: int
    num_test: int
    image_size: int
    channels: int
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    true_mean: tuple[float, ...]
    true_std: tuple[float, ...]
    mirror: bool
    source: str


_DIGIT_NAMES = tuple(str(digit) for digit in range(10))

_CIFAR100_NAMES = """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel
    can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur
    dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion
    lizard lobster man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree
    pear pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea
    seal shark shrew skunk skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table
    tank telephone television tiger tractor train trout tulip turtle wardrobe whale willow_tree wolf woman
    worm
"""

# Source: Krizhevsky 2009, chapter 3; the "coarse" labels of the published files
_CIFAR100_SUPERCLASSES = {
    "aquatic mammals": "beaver dolphin otter seal whale",
    "fish": "aquarium_fish flatfish ray shark trout",
    "flowers": "orchid poppy rose sunflower tulip",
    "food containers": "bottle bowl can cup plate",
    "fruit and vegetables": "apple mushroom orange pear sweet_pepper",
    "household electrical devices": "clock keyboard lamp telephone television",
    "household furniture": "bed chair couch table wardrobe",
    "insects": "bee beetle butterfly caterpillar cockroach",
    "large carnivores": "bear leopard lion tiger wolf",
    "large man-made outdoor things": "bridge castle house road skyscraper",
    "large natural outdoor scenes": "cloud forest mountain plain sea",
    "large omnivores and herbivores": "camel cattle chimpanzee elephant kangaroo",
    "medium-sized mammals": "fox porcupine possum raccoon skunk",
    "non-insect invertebrates": "crab lobster snail spider worm",
    "people": "baby boy girl man woman",
    "reptiles": "crocodile dinosaur lizard snake turtle",
    "small mammals": "hamster mouse rabbit shrew squirrel",
    "trees": "maple_tree oak_tree palm_tree pine_tree willow_tree",
    "vehicles 1": "bicycle bus motorcycle pickup_truck train",
    "vehicles 2": "lawn_mower rocket streetcar tank tractor",
}

# Computed over the 1,437 training images of 8 x 8 pixels.
_DIGITS_MEAN, _DIGITS_STD = 77.842, 95.920

_DIGITS = Facts(
    name="digits",
    title="scikit-learn digits",
    num_train=1437,
    num_test=360,
    image_size=8,
    channels=1,
    class_names=_DIGIT_NAMES,
    mean=(_DIGITS_MEAN,),
    std=(_DIGITS_STD,),
    true_mean=(_DIGITS_MEAN,),
    true_std=(_DIGITS_STD,),
    mirror=False,
    source="sklearn.datasets.load_digits (UCI optical digits, test part), values 0..16 scaled to 0..255; "
    "every fifth image is a test image; statistics computed over the other 1,437",
)

_CIFAR10 = Facts(
    name="cifar10",
    title="CIFAR-10",
    num_train=50_000,
    num_test=10_000,
    image_size=32,
    channels=3,
    class_names=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    mean=(125.3, 123.0, 113.9),
    std=(63.0, 62.1, 66.7),
    true_mean=(125.307, 122.950, 113.865),
    true_std=(62.993, 62.089, 66.705),
    mirror=True,
    source="Krizhevsky 2009; mean and std as in the authors' pytorch/main.py; true ones computed over train",
)

# The authors' scripts apply CIFAR-10's statistics to CIFAR-100, too; the paper's results were obtained this way.
_CIFAR100 = replace(
    _CIFAR10,
    name="cifar100",
    title="CIFAR-100",
    class_names=tuple(_CIFAR100_NAMES.split()),
    true_mean=(129.304, 124.070, 112.434),
    true_std=(68.170, 65.392, 70.418),
    source="Krizhevsky 2009; mean and std are CIFAR-10's, as in the authors' pytorch/main.py for both sets; "
    "true ones are the published 0.50707516 0.48654887 0.44091784 "
    "and 0.26733429 0.25643846 0.27615047, times 255",
)

_SVHN = Facts(
    name="svhn",
    title="SVHN",
    num_train=73_257,
    num_test=26_032,
    image_size=32,
    channels=3,
    class_names=_DIGIT_NAMES,
    mean=(111.609, 113.161, 120.565),
    std=(50.498, 51.259, 50.244),
    true_mean=(111.609, 113.161, 120.565),
    true_std=(50.498, 51.259, 50.244),
    mirror=False,
    source="Netzer et al. 2011, cropped digits; statistics are the published 0.4376821 0.4437697 0.47280442 "
    "and 0.19803012 0.20101562 0.19703614, times 255; the paper itself only divides by 255 (section 3)",
)

# Train and extra together, the set of the paper's SVHN results: 73,257 + 531,131 images.
SVHN_WITH_EXTRA = replace(
    _SVHN,
    num_train=604_388,
    mean=(109.9, 109.7, 113.8),
    std=(50.1, 50.6, 50.8),
    true_mean=(109.9, 109.7, 113.8),
    true_std=(50.1, 50.6, 50.8),
    source="Netzer et al. 2011, train and extra; statistics as in train.py of Cutout (DeVries & Taylor 2017)",
)

FACTS: Mapping[str, Facts] = MappingProxyType({f.name: f for f in (_DIGITS, _CIFAR10, _CIFAR100, _SVHN)})


def superclasses(class_names: Sequence[str]) -> dict[str, list[int]]:
    """Group the classes of a set by its published superclasses.

    Args:
        class_names: in the order of the labels.

    Returns:
        Superclass -> labels of its classes; empty unless the classes are those of CIFAR-100.
    """
    if sorted(class_names) != sorted(_CIFAR100.class_names):
        return {}
    return {
        name: [class_names.index(member) for member in members.split()]
        for name, members in _CIFAR100_SUPERCLASSES.items()
    }


# Far more than the rounding of the published means, far less than the difference of two data sets of one shape.
_MEAN_TOLERANCE = 0.2


def recognize(
    train_images: np.ndarray, num_test: int, num_classes: int, known: Iterable[Facts] = tuple(FACTS.values())
) -> Facts | None:
    """Recognize a published data set in a user's files.

    Args:
        train_images: uint8 (N, H, W, C), the training images.
        num_test: number of test images.
        num_classes: number of classes.
        known: the sets to look for.

    Returns:
        The facts of the set whose counts, image size, channels and number of classes are equal and whose true
        channel means are within 0.2 gray levels; None if there is none.
    """
    num_train, height, width, channels = train_images.shape
    for facts in known:
        shape = (facts.num_train, facts.image_size, facts.image_size, facts.channels)
        if (
            shape == (num_train, height, width, channels)
            and (facts.num_test, len(facts.class_names)) == (num_test, num_classes)
            and np.abs(np.asarray(train_images).mean(axis=(0, 1, 2)) - facts.true_mean).max() <= _MEAN_TOLERANCE
        ):
            return facts
    return None
