"""Recipes: short functions from a network and its data to a frozen `Recipe`, with the arithmetic in view."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from wideresnet.base.arithmetic import ceil_div
from wideresnet.base.errors import UsageError
from wideresnet.base.format import nearest
from wideresnet.spec.execution import SETTLED
from wideresnet.spec.feed_options import FeedOptions
from wideresnet.spec.files import read_json
from wideresnet.spec.options import MachineOptions, NetworkOptions, OptimizerOptions, ScheduleOptions
from wideresnet.spec.recipe import ADDED, FIELDS, Recipe, overridden
from wideresnet.spec.recipes_imagenet import SMALL_SETS, is_imagenet_network, modern, paper_imagenet

NUM_TRAIN = {"digits": 1437, "cifar10": 50_000, "cifar100": 50_000, "svhn": 73_257}
"""Training images of the sets that are known by name. A test compares them with `data.facts`."""


GROWING = ((0.0, 0.625), (8 / 18, 0.75), (13 / 18, 1.0))
"""Sizes of the images of `quick` and `long`, from a share of the run on, as factors. Own choice, see LOG.md."""


def paper(
    network: str, data: str, known_as: str = "", num_train: int | None = None, *, family: str | None = None
) -> Recipe:
    """Return what Zagoruyko & Komodakis ran: CIFAR's values, or SVHN's; for other data CIFAR's schedule.

    For ImageNet's networks it is ImageNet's recipe, see `recipes_imagenet`, except on the small sets known by name.

    Args:
        network: name of the network.
        data: as for `--data`; it is kept in the recipe.
        known_as: the data set that `data` turned out to be ("cifar10", "svhn", ...), if that is known.
        num_train: not used, the paper's schedule counts epochs.
        family: reading of a name that has two.

    CIFAR: 200 epochs of 390 steps of 128 images; lr 0.1 for 59 epochs, then 0.02 from the 60th, 0.004 from the 120th,
    0.0008 from the 160th. BN scales start from U(0, 1).
    Source: paper, section 3; the authors' train.lua, models/wide-resnet.lua and scripts/train_cifar.sh.
    SVHN: 160 epochs on train + extra; lr 0.01, times 0.1 at 80 and 120; pixels / 255, no augmentation; dropout 0.4.
    Source: paper, section 3. (The authors' code would apply CIFAR's mean and std to SVHN's bytes.)
    Both: fp32, on a GPU too, whatever would be faster, because another precision gives other results. On a GPU
    PyTorch's default holds, which lets convolutions round their inputs to TF32. Source: train.lua, torch.CudaTensor.
    """
    del num_train
    known = _known(known_as, data)
    if known not in SMALL_SETS and is_imagenet_network(network, family):
        return paper_imagenet(network, data)
    if known == "svhn":
        return Recipe(
            network=network, data=data, name="paper",
            schedule=ScheduleOptions(epochs=160, lr=0.01, lr_drop_epochs=(80, 120), lr_drop_factor=0.1),
            feed=FeedOptions(preprocessing="scale", flip=False, crop_padding=0, extra_data=_known(data) == "svhn"),
            network_options=NetworkOptions(dropout=0.4, bn_scale="uniform"),
            machine=MachineOptions(precision="fp32"),
        )  # fmt: skip
    return Recipe(
        network=network, data=data, name="paper",
        feed=FeedOptions(flip=known != "digits"),  # a mirrored digit is another one, or none
        network_options=NetworkOptions(bn_scale="uniform"),
        machine=MachineOptions(precision="fp32"),
    )  # fmt: skip


def quick(network: str, data: str, known_as: str = "", num_train: int | None = None) -> Recipe:
    """Return a short modern schedule for CPUs and impatient people: one cycle, smoothed labels, small images first.

    Args:
        num_train: number of training images; small sets get more epochs, so that a run has 1,500 steps or 200 epochs.
            None for that of a set known by name.

    Raises:
        UsageError: the number of training images is not known; `recipe_for` finds it out.

    On CIFAR: 18 epochs; the first 8 on 20x20 images, 5 on 24x24, 5 on 32x32, which costs as much as
    8 * 0.39 + 5 * 0.56 + 5 = 10.9 epochs on 32x32.
    """
    return _one_cycle("quick", network, _known(known_as, data), data, num_train, 18, 9, GROWING)


def long(network: str, data: str, known_as: str = "", num_train: int | None = None) -> Recipe:
    """Return `quick` with more epochs: a good small network at less than a fifth of the cost of the paper's schedule.

    Args:
        num_train: as for `quick`.

    Raises:
        UsageError: as for `quick`.

    On CIFAR: 60 epochs; the first 27 on 20x20 images, 17 on 24x24, 16 on 32x32, which costs as much as
    27 * 0.39 + 17 * 0.56 + 16 = 36.1 epochs on 32x32.
    """
    return _one_cycle("long", network, _known(known_as, data), data, num_train, 60, 6, GROWING)


def fast(network: str, data: str, known_as: str = "", num_train: int | None = None) -> Recipe:
    """Return the least time to a good accuracy: `quick` by Muon, with fewer epochs, smaller images and crops.

    Args:
        num_train: as for `quick`.

    Raises:
        UsageError: as for `quick`.

    On CIFAR: 9 epochs of batches of 512; the first 4 on 16x16 images, 3 on 24x24, 2 on 32x32, which costs as much as
    4 * 0.25 + 3 * 0.56 + 2 = 4.7 epochs on 32x32. Sides of 16 and 24 leave whole tiles for the Winograd kernels. So few
    epochs need less augmentation: crops by 2 pixels, and Muon, as in airbench (Jordan 2024, arXiv 2404.00498). Muon's
    work does not grow with the batch, so that large ones cost less; its rate is this package's choice, see LOG.md.
    """
    scales = ((0.0, 0.5), (4 / 9, 0.75), (7 / 9, 1.0))
    recipe = _one_cycle("fast", network, _known(known_as, data), data, num_train, 9, 2, scales, crop_padding=2)
    recipe = recipe.replace(muon_lr=0.05)
    is_large = _num_train("fast", _known(known_as, data), data, num_train) >= 40_000  # at least 700 steps
    return recipe.replace(batch_size=512, lr=0.6) if is_large else recipe


def _one_cycle(
    name: str,
    network: str,
    known: str,
    data: str,
    num_train: int | None,
    least_epochs: int,
    num_evaluations: int,
    image_scales: tuple[tuple[float, float], ...],
    crop_padding: int = 4,
) -> Recipe:
    """One cycle to lr 0.3 and down to 0 with labels smoothed by 0.1.

    The sizes follow Howard's fast.ai entry to DAWNBench (2018), the triangular schedule cifar10-fast (Page 2018), the
    label smoothing Szegedy et al. (2016).
    """
    num_train = _num_train(name, known, data, num_train)
    batch_size = 128 if num_train >= 10_000 else min(64, max(1, num_train // 4))
    epochs = max(least_epochs, min(200, math.ceil(1500 / max(1, num_train // batch_size))))
    small_images = known == "digits"  # 8x8: smaller ones hold no digit, and a shift by 4 pixels leaves none
    return Recipe(
        network=network, data=data, name=name,
        schedule=ScheduleOptions(epochs=epochs, batch_size=batch_size, kind="one_cycle", lr=0.3, warmup_fraction=0.15),
        optimizer=OptimizerOptions(reset_momentum_at_drops=False, label_smoothing=0.1),
        feed=FeedOptions(
            flip=known not in ("digits", "svhn"),
            crop_padding=1 if small_images else crop_padding,
            padding_mode="zero" if small_images else "reflection",
            image_scales=((0.0, 1.0),) if small_images else image_scales,
            eval_every=ceil_div(epochs, num_evaluations),
        ),
    )  # fmt: skip


def finetune(
    network: str, data: str, known_as: str = "", num_train: int | None = None, *, family: str | None = None
) -> Recipe:
    """Return a short, careful schedule for a network that starts from trained weights, on a small set.

    Args:
        num_train: as for `quick`.
        family: as for `paper`.

    Raises:
        UsageError: as for `quick`.

    About 1,000 steps of 64 images, between 10 and 100 epochs: 64,000 images. BiT-HyperRule has 500 steps of 512 for
    sets below 20,000 images. Source: Kolesnikov et al. 2020 (arXiv 1912.11370), section 3.3.
    lr 0.01: PyTorch's tutorial on transfer learning has 0.001 for batches of 4, which is 0.016 for 64 by linear scaling
    (Goyal et al. 2017); a tenth of the paper's. Up in a fifth of the steps, as in BiT's schedule, then down along half
    a cosine to 0; Nesterov momentum 0.9; weight decay 0.0001 (a fifth of the paper's, which pulls trained weights
    less); labels smoothed by 0.1 (Szegedy et al. 2016); crop and flip alone, as BiT on small sets.
    ImageNet's networks: a random part of at least a quarter of the area, scaled to 224x224; test images scaled to 256,
    center crop 224. Source: fb.resnet.torch, with 0.08 there; a quarter is this package's choice.
    """
    known = _known(known_as, data)
    num_train = _num_train("finetune", known, data, num_train)
    batch_size = min(64, max(1, num_train // 4))
    epochs = max(10, min(100, math.ceil(1000 / max(1, num_train // batch_size))))
    evaluations: dict[str, Any] = {"eval_every": max(1, epochs // 10)}
    if known not in SMALL_SETS and is_imagenet_network(network, family):
        feed = FeedOptions(
            crop_padding=0, random_resized_crop=0.25, image_size=224, eval_size=224, eval_resize=256, **evaluations
        )
    else:
        feed = _basic_augmentation(known, **evaluations)
    return Recipe(
        network=network, data=data, name="finetune",
        schedule=ScheduleOptions(epochs=epochs, batch_size=batch_size, kind="cosine", lr=0.01, warmup_fraction=0.2),
        optimizer=OptimizerOptions(reset_momentum_at_drops=False, weight_decay=1e-4, label_smoothing=0.1),
        feed=feed,
    )  # fmt: skip


def _num_train(name: str, known: str, data: str, num_train: int | None) -> int:
    """Return the number of training images, on which a recipe depends."""
    num_train = num_train or NUM_TRAIN.get(known)
    if num_train is None:
        raise UsageError(
            f"data={data!r}: recipe {name} depends on the number of training images, which is not known by this name; "
            "give num_train=, or let recipe_for(...) load the data"
        )
    return num_train


def strong(network: str, data: str, known_as: str = "", num_train: int | None = None) -> Recipe:
    """Return a long schedule with strong augmentation: the setting in which TrivialAugment was published, and two more.

    Args:
        num_train: not used, the schedule counts epochs.

    200 epochs of batches of 128, lr 0.1 down to 0 along half a cosine, Nesterov momentum 0.9, weight decay 0.0005,
    gradients clipped to norm 5; crop from 4 black pixels, flip, TrivialAugmentWide, and on CIFAR cutout of 16 pixels.
    Source: automl/trivialaugment at e6545d8, confs/wresnet28x10_cifar100_b128_maxlr.1_ta_wide_nowarmup_200epochs.yaml,
    TrivialAugment/train.py and data.py. SVHN: lr and weight decay 0.005, cutout too. Source: their
    wresnet28x10_svhncore_b128_maxlr.1_ta_widesearchspace_2_nowarmup_fixedpreprocessing.yaml.
    In addition: labels smoothed by 0.1 (Szegedy et al. 2016; He et al. 2019, arXiv 1812.01187, section 5.2) and a
    warm-up of 5 of the 200 epochs (Goyal et al. 2017, section 2.2). Different there: the operation comes before crop
    and flip; here after them, as in torchvision's reference scripts.
    Results to compare with: `field_results`.
    """
    del num_train
    known = _known(known_as, data)
    rate, decay = (0.005, 0.005) if known == "svhn" else (0.1, 5e-4)
    cutout = 16 if known in ("cifar10", "cifar100", "svhn") else 0
    return Recipe(
        network=network, data=data, name="strong",
        schedule=ScheduleOptions(epochs=200, batch_size=128, kind="cosine", lr=rate, warmup_fraction=5 / 200),
        optimizer=OptimizerOptions(
            reset_momentum_at_drops=False, weight_decay=decay, clip_grad_norm=5.0, label_smoothing=0.1
        ),
        feed=_basic_augmentation(known, padding_mode="zero", auto_augment="trivial", cutout=cutout),
    )  # fmt: skip


def sam(network: str, data: str, known_as: str = "", num_train: int | None = None) -> Recipe:
    """Return sharpness-aware minimization with basic augmentation, as Foret et al. (2021) trained WRN-28-10 on CIFAR.

    Args:
        num_train: not used, the schedule counts epochs.

    200 epochs of batches of 128, lr 0.1 down to 0 along half a cosine, Nesterov momentum 0.9, rho 0.05 per process,
    gradients clipped to norm 5, no label smoothing, He initialization by the fan out, flip and crop from 4 reflected
    pixels. Their penalty is 0.5 * 0.001 * |w|^2 over all parameters, whose gradient is weight_decay 0.001 here.
    Source: google-research/sam at dae9904, sam_jax/train.py and training_utils/flax_training.py (defaults of the
    flags, with --sam_rho 0.05 as in its README), datasets/augmentation.py, models/wide_resnet.py.
    Different there: the penalty is part of the loss, so that it also shapes the perturbation and is clipped; a shortcut
    that changes shape averages and pads with zeros, without a convolution. A step costs two.
    Results to compare with: `field_results`.
    """
    del num_train
    known = _known(known_as, data)
    return Recipe(
        network=network, data=data, name="sam",
        schedule=ScheduleOptions(epochs=200, batch_size=128, kind="cosine", lr=0.1),
        optimizer=OptimizerOptions(
            reset_momentum_at_drops=False, weight_decay=1e-3, clip_grad_norm=5.0, sam_rho=0.05
        ),
        feed=_basic_augmentation(known, padding_mode="reflection"),
        network_options=NetworkOptions(init="fan_out"),
    )  # fmt: skip


def _basic_augmentation(known: str, **more: Any) -> FeedOptions:
    """Return flip and crop from 4 pixels of padding, as far as they leave an image what it is."""
    if known == "digits":  # 8x8: a shift by 4 pixels leaves no digit
        more |= {"crop_padding": 1, "padding_mode": "zero"}
    return FeedOptions(flip=known not in ("digits", "svhn"), **more)


def _known(*names: str) -> str:
    """Return the first name given, spelled as the data sets spell theirs: "CIFAR-10" -> "cifar10"."""
    return re.sub(r"[-_ ]", "", next((name for name in names if name), "").lower())


RECIPES: dict[str, Callable[[str, str, str, int | None], Recipe]] = {
    "paper": paper, "quick": quick, "fast": fast, "long": long, "strong": strong, "sam": sam, "modern": modern,
    "finetune": finetune,
}  # fmt: skip


def resolve(
    recipe: str,
    network: str,
    data: str,
    overrides: dict[str, Any] | None = None,
    *,
    known_as: str = "",
    num_train: int | None = None,
) -> Recipe:
    """Return the recipe of a name or a recipe file with overrides on top: function < file < overrides.

    Args:
        recipe: a name in `RECIPES`, or the path of a recipe file; fields that it leaves out come from the recipe that
            it names, or from `paper`.
        overrides: flat key -> value; network and data given here or as arguments win over a file's.
        known_as, num_train: as for `paper` and `quick`.

    Raises:
        UsageError: no such recipe or field, or a value that its field refuses.
        DataError: a file that cannot be read.
    """
    values = {} if recipe in RECIPES else _file_values(recipe)
    if "init_from" in (overrides or {}):
        values.pop("init_sha256", None)  # of the weights that the file starts from
    family = (overrides or {}).get("family", values.get("family"))
    base = base_of(recipe, network, data, known_as=known_as, num_train=num_train, family=family)
    changes = {**values, "network": network, "data": data, **(overrides or {})}
    changed = base.replace(**changes)
    if "eval_every" in changes:
        return changed
    # as many evaluations as in the named recipe, whatever the number of epochs
    every = base.feed.eval_every * changed.schedule.epochs // base.schedule.epochs
    return changed.replace(eval_every=max(1, every))


def base_of(
    recipe: str,
    network: str,
    data: str,
    *,
    known_as: str = "",
    num_train: int | None = None,
    family: str | None = None,
) -> Recipe:
    """Return the named recipe, or the one that a recipe file starts from, without any change.

    Raises:
        UsageError, DataError: as for `resolve`.
    """
    name = recipe
    if recipe not in RECIPES:
        values = _file_values(recipe)
        name = values.get("recipe", "paper")
        if not isinstance(name, str) or name not in RECIPES:
            if missing := sorted(FIELDS.keys() - values.keys() - {"network", "data", *ADDED}):
                raise UsageError(
                    f"{recipe}: its recipe {name!r}: {nearest(str(name), RECIPES)}; {len(missing)} fields that the "
                    f"file leaves out ({missing[0]}, ...) come from a named recipe"
                )
            return Recipe.flat(**values)
    if name in ("paper", "modern", "finetune"):
        make = {"paper": paper, "modern": modern, "finetune": finetune}[name]
        return make(network, data, known_as, num_train, family=family)
    return RECIPES[name](network, data, known_as, num_train)


def asked_of_machine(recipe: Recipe) -> list[str]:
    """List the fields that a recipe asks for, though the machine could decide them."""
    values = recipe.values()
    return [key for key in SETTLED if values[key] not in ("auto", None)]


def changes_in_record(recipe: Recipe, base: Recipe, asked_for: Iterable[str] = ()) -> dict[str, tuple[Any, Any]]:
    """Return what was changed in a named recipe, from a run's record.

    What the data and the machine decide, because the named recipe leaves it open, is no change.

    Args:
        recipe: the one that the run stored.
        base: the named recipe for the same network and data, see `base_of`.
        asked_for: fields that the machine would have decided, had the user not given them, see `asked_of_machine`.

    Returns:
        Flat key -> (base's value, recipe's value).
    """
    changed, asked, by_hand = overridden(recipe, base), base.values(), list(asked_for)
    decided = {key for key in ("family", "feed", *SETTLED) if asked[key] in ("auto", None) and key not in by_hand}
    return {key: pair for key, pair in changed.items() if key not in decided}


def _file_values(recipe: str) -> dict[str, Any]:
    if not Path(recipe).is_file():
        raise UsageError(f"recipe {recipe!r}: {nearest(recipe, RECIPES)}, or the path of a recipe.json")
    values = read_json(Path(recipe))
    if FIELDS.keys() - {"network", "data", *ADDED} <= values.keys():  # whole, as a run writes it: see `Recipe.to_json`
        values = {**{key: value for key, value in Recipe().values().items() if key in ADDED}, **values}
    return values
