"""What a run is: one frozen `Recipe` that says what was asked for, and where each of its values comes from.

In Python a recipe is nested by concern (`recipe.schedule.epochs`). In `recipe.json`, on the command line and in
`Recipe.flat` the same values have flat keys (`epochs`).
"""

from __future__ import annotations

import dataclasses
import difflib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from wideresnet.base.errors import UsageError
from wideresnet.spec.feed_options import FeedOptions
from wideresnet.spec.fields import check_fields, key_of, option, types_of
from wideresnet.spec.files import read_json
from wideresnet.spec.options import MachineOptions, NetworkOptions, OptimizerOptions, ScheduleOptions


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What was asked for, and with `Execution` everything that decides a run's numbers.

    Both are stored flat in a run's `recipe.json`, which is enough to run it again.

    Raises:
        UsageError: a value outside its field's range or choices, naming the field, the value and the rule.
    """

    network: str = option("WRN-16-2", "name of the network, e.g. WRN-28-10")
    data: str = option("digits", "digits, cifar10, cifar100, svhn, or a path")
    name: str = option("paper", "name of the recipe that these values started from", key="recipe")
    init_from: str | None = option(
        None,
        "start from the trained weights of a run folder, a weights folder, a model.safetensors or a shipped network",
        "own choice; the paper starts from random weights",
    )
    init_sha256: str | None = option(None, "what the SHA-256 of that model.safetensors must be", "own choice")
    family: str | None = option(
        None, "reading of a name that has two", "paper, Tables 1 and 7", choices=("cifar", "imagenet")
    )
    seed: int = option(
        0,
        "decides initial weights, order, augmentation and dropout",
        "own choice; the authors' default is 444",
        low=0,
    )
    schedule: ScheduleOptions = ScheduleOptions()  # noqa: RUF009  # frozen
    optimizer: OptimizerOptions = OptimizerOptions()  # noqa: RUF009  # frozen
    feed: FeedOptions = FeedOptions()  # noqa: RUF009  # frozen
    network_options: NetworkOptions = NetworkOptions()  # noqa: RUF009  # frozen
    machine: MachineOptions = MachineOptions()  # noqa: RUF009  # frozen

    def __post_init__(self) -> None:
        check_fields(self)
        if self.init_sha256 is not None and self.init_from is None:
            raise UsageError(f"init_sha256={self.init_sha256}: is of the weights that init_from= names; give both")
        if self.optimizer.muon_lr and not self.schedule.lr:
            raise UsageError(
                f"muon_lr={self.optimizer.muon_lr:g}: rises and falls as lr does, which is 0; use lr above 0, or "
                "muon_lr=0"
            )
        if self.optimizer.freeze != "none" and self.init_from is None:
            raise UsageError(
                f"freeze={self.optimizer.freeze!r}: keeps trained weights, and this run starts from random ones; name "
                "trained ones with init_from=, or use freeze='none'"
            )

    @classmethod
    def flat(cls, **values: Any) -> Recipe:
        """Build a recipe from flat keys, as in `Recipe.flat(network="WRN-28-10", epochs=10)`.

        Raises:
            UsageError: a key that does not exist, naming the nearest, or a value that its field refuses.
        """
        return cls().replace(**values)

    def replace(self, **values: Any) -> Recipe:
        """Return the recipe with other values, given by flat keys. A new `init_from` drops the SHA-256 of the old one.

        Raises:
            UsageError: a key that does not exist, naming the nearest, or a value that its field refuses.
        """
        if "init_from" in values:
            values = {"init_sha256": None, **values}
        nested: dict[str, dict[str, Any]] = {}
        for key, value in values.items():
            if key not in FIELDS:
                close = difflib.get_close_matches(str(key), FIELDS, n=1, cutoff=0.0)[0]
                raise UsageError(f"recipe field {key!r} does not exist; nearest: {close}")
            field = FIELDS[key]
            nested.setdefault(field.section, {})[field.name] = value
        own = nested.pop("", {})
        sections = {name: dataclasses.replace(getattr(self, name), **changed) for name, changed in nested.items()}
        return dataclasses.replace(self, **own, **sections)

    def values(self) -> dict[str, Any]:
        """Return flat key -> value, in the order of `GROUPS`."""
        return {key: getattr(field.owner(self), field.name) for key, field in FIELDS.items()}

    def to_json(self) -> dict[str, Any]:
        """Return the flat recipe as plain JSON values; `Recipe.from_json` is the inverse.

        What came after the first release is there only if it is used, so that records stay as they were.
        """
        values, defaults = self.values(), _DEFAULTS
        values = {key: value for key, value in values.items() if key not in ADDED or value != defaults[key]}
        return json.loads(json.dumps(values))

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Recipe:
        """Build a recipe from the values of a `recipe.json`.

        Raises:
            UsageError: as for `flat`.
        """
        if values.get("task") == "detection":
            raise UsageError("is the recipe of a detection run; use wrn detect")
        return cls.flat(**values)

    @classmethod
    def from_file(cls, path: Path) -> Recipe:
        """Read the `recipe.json` of a run folder.

        Raises:
            DataError: the file cannot be read or is not a JSON object.
        """
        return cls.from_json(read_json(path))


def overridden(recipe: Recipe, base: Recipe) -> dict[str, tuple[Any, Any]]:
    """Return flat key -> (base's value, recipe's value) for all that differ.

    A SHA-256, which comes with `init_from`, is no difference of its own.
    """
    pairs = zip(base.values().items(), recipe.values().values(), strict=True)
    return {key: (old, new) for (key, old), new in pairs if old != new and key != "init_sha256"}


INITIAL = ("init_from", "init_sha256")
"""The flat keys of trained weights to start from."""

ADDED = (
    *INITIAL, "image_column", "label_column", "class_order", "white",
    "random_resized_crop", "color_jitter", "pca_lighting", "random_erasing", "mixup", "cutmix",
    "repeated_augmentation", "eval_size", "eval_resize", "feed", "workers", "time_s", "freeze", "layer_lr_decay",
    "balance", "muon_lr",
)  # fmt: skip
"""The flat keys that `recipe.json` has only if they are not at their defaults, with which all was done before them."""

GROUPS: dict[str, tuple[str, ...]] = {
    "what": ("network", "data", "recipe", *INITIAL),
    "schedule": (
        "epochs", "batch_size", "accumulate", "schedule", "batch_rule", "lr", "lr_drop_epochs", "lr_drop_factor",
        "lr_drop_at", "warmup_fraction", "time_s",
    ),
    "optimizer": (
        "reset_momentum_at_drops", "momentum", "nesterov", "dampening", "weight_decay", "weight_decay_on",
        "muon_lr", "label_smoothing", "clip_grad_norm", "sam_rho", "ema_decay", "freeze", "layer_lr_decay",
    ),
    "feed": (
        "drop_last", "flip", "crop_padding", "padding_mode", "auto_augment", "cutout", "random_resized_crop",
        "color_jitter", "pca_lighting", "random_erasing", "mixup", "cutmix", "repeated_augmentation", "image_scales",
        "preprocessing", "image_size", "eval_size", "eval_resize", "extra_data", "limit", "holdout",
        "skip_unreadable", "image_column", "label_column", "class_order", "white", "balance",
        "eval_every",
    ),
    "network": (
        "family", "dropout", "activation", "norm", "bn_momentum", "bn_eps", "sync_bn", "init", "bn_scale",
        "stochastic_depth",
    ),
    "machine": (
        "seed", "device", "precision", "kernels", "layout", "threads", "compile", "deterministic", "feed", "workers",
    ),
}  # fmt: skip
"""The flat keys as people see them: groups of flags, rows of the announcement and the page, order in `recipe.json`."""


class FlatField(NamedTuple):
    """Where a flat key lives.

    Attributes:
        section: name of the nested options; "" for the recipe's own fields.
        name: of the field there.
        kind: its type.
        metadata: help, source, choices and bounds, see `fields.option`.
    """

    section: str
    name: str
    kind: Any
    metadata: Any

    def owner(self, recipe: Recipe) -> Any:
        """Return the part of the recipe that has the field."""
        return getattr(recipe, self.section) if self.section else recipe


def _flat_fields() -> dict[str, FlatField]:
    sections = {field.name: type(field.default) for field in dataclasses.fields(Recipe) if "help" not in field.metadata}
    found = {
        key_of(field): FlatField(section, field.name, types_of(owner)[field.name], field.metadata)
        for section, owner in {"": Recipe, **sections}.items()
        for field in dataclasses.fields(owner)
        if "help" in field.metadata
    }
    listed = [key for keys in GROUPS.values() for key in keys]
    assert sorted(found) == sorted(listed), set(found) ^ set(listed)
    return {key: found[key] for key in listed}


FIELDS: dict[str, FlatField] = _flat_fields()
"""Every flat key, in the order of `GROUPS`."""

_DEFAULTS = Recipe().values()

CHOICES: dict[str, tuple[str, ...]] = {
    key: field.metadata["choices"] for key, field in FIELDS.items() if field.metadata["choices"]
}
"""The values that a field of words may take."""
