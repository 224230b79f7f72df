"""Fine-tuning: frozen stages do not move at all, stages learn at their own rate, classes are balanced."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_runs import MakeNpz, after_steps, assert_same_run, interrupt, metrics, small
from torch import Tensor

from imagenet_like import make_folders
from wideresnet.base.errors import UsageError
from wideresnet.data import load_dataset
from wideresnet.data.feeds.lazy import stream_of
from wideresnet.data.feeds.resident import Feed
from wideresnet.data.feeds.stream import StreamFeed
from wideresnet.data.preprocess import Preprocessing
from wideresnet.engines import accelerate
from wideresnet.networks import create
from wideresnet.spec.execution import Execution
from wideresnet.spec.options import OptimizerOptions
from wideresnet.spec.recipe import Recipe
from wideresnet.training import Interrupted, fit, prepare
from wideresnet.training.optimizer import lr_scales, make_optimizer
from wideresnet.training.step import Meter, train_step, training_loss
from wideresnet.weights.hub import load
from wideresnet.weights.pretrained import DEFAULT

Ship = Callable[..., Path]
EXECUTION = Execution(device="cpu", layout="contiguous")


def uneven_npz(path: Path, counts: tuple[int, ...] = (40, 16, 8, 4)) -> Path:
    """Brightness tells the class, and classes have these numbers of training images."""
    random = np.random.default_rng(0)
    arrays: dict[str, Any] = {}
    for split, labels in (("train", np.repeat(np.arange(len(counts)), counts)), ("test", np.arange(24) % len(counts))):
        noise = random.integers(0, 40, (len(labels), 8, 8, 3))
        arrays[f"x_{split}"] = (noise + (labels * 50)[:, None, None, None]).astype(np.uint8)
        arrays[f"y_{split}"] = labels
    np.savez(path, **arrays)
    return path


@pytest.mark.parametrize(
    "changes",
    [
        {"weight_decay": 0.1, "ema_decay": 0.9, "clip_grad_norm": 1.0},
        {"sam_rho": 0.1, "accumulate": 2, "kernels": "pytorch"},
        {"stochastic_depth": 0.5, "layer_lr_decay": 0.5, "mixup": 0.5, "balance": "weights"},
    ],
    ids=str,
)
def test_frozen_stages_keep_every_bit_and_the_others_learn(
    ship: Ship, make_npz: MakeNpz, tmp_path: Path, changes: dict[str, Any]
) -> None:
    before = load(ship()).state_dict()
    fit(
        small(make_npz(), init_from=DEFAULT, freeze="conv3", dropout=0.2, epochs=2).replace(**changes), tmp_path / "run"
    )
    after = load(tmp_path / "run").state_dict()
    frozen = ("stem.", "groups.0.", "groups.1.")
    for name, tensor in after.items():
        if name.startswith(frozen):
            assert torch.equal(tensor, before[name]), name
        elif "num_batches" not in name:
            assert not torch.equal(tensor, before[name]), name


def test_a_frozen_backbone_leaves_only_the_head_to_learn_and_says_so(
    ship: Ship, make_npz: MakeNpz, tmp_path: Path
) -> None:
    before = load(ship()).state_dict()
    recipe = small(make_npz(), init_from=DEFAULT, freeze="backbone", epochs=1)
    job, plan = prepare(recipe, load_dataset(recipe.data))
    note = next(note for note in job.notes if note.startswith("frozen"))
    num = sum(parameter.numel() for parameter in job.network.parameters())
    assert note == f"frozen: conv1 to pooled, {num - 260:,} of {num:,} parameters, which keep their bits"
    whole = prepare(recipe.replace(freeze="none"), load_dataset(recipe.data))[1]
    assert plan.flops < 0.4 * whole.flops  # no backward pass but the head's
    fit(recipe, tmp_path / "run")
    after = load(tmp_path / "run").state_dict()
    assert {name for name in after if not torch.equal(after[name], before[name])} == {"fc.weight", "fc.bias"}


def test_a_stopped_run_with_frozen_stages_resumes_to_the_same_bits(
    ship: Ship, make_npz: MakeNpz, tmp_path: Path
) -> None:
    ship()
    recipe = small(make_npz(), init_from=DEFAULT, freeze="conv2", layer_lr_decay=0.7, ema_decay=0.9, balance="sampling")
    fit(recipe, tmp_path / "whole")
    with after_steps(6, interrupt), pytest.raises(Interrupted):
        fit(recipe, tmp_path / "run")
    with pytest.raises(UsageError, match=r"has freeze conv2, asked for is conv3; leave out freeze="):
        fit(recipe.replace(freeze="conv3"), tmp_path / "run", resume=True)
    fit(recipe, tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "run")


def test_the_kernels_give_way_to_pytorch_for_a_network_that_is_partly_frozen() -> None:
    torch.manual_seed(0)
    network = create("WRN-10-1", 4)
    network.freeze("conv2")
    images = torch.randn(8, 3, 8, 8)
    network.train()
    expected = network(images)
    assert torch.equal(accelerate(network)(images), expected)
    assert [network.groups[0].training, network.groups[1].training] == [False, True]  # type: ignore[index]
    assert not network.eval().groups[1].training  # type: ignore[index]


@pytest.mark.parametrize(
    ("until", "frozen"),
    [("conv1", ("conv1",)), ("conv5", ("conv1", "conv2", "conv3", "conv4", "conv5")),
     ("backbone", ("conv1", "conv2", "conv3", "conv4", "conv5", "pooled"))],
)  # fmt: skip
def test_stages_of_imagenet_networks_are_frozen_by_their_names(until: str, frozen: tuple[str, ...]) -> None:
    network = create("ResNet-18", 5)
    network.freeze(until)
    assert network.frozen == frozen
    assert network.fc.weight.requires_grad
    assert network.get_parameter("layer4.1.conv2.weight").requires_grad == (until == "conv1")


def test_what_cannot_be_frozen_is_refused(ship: Ship, make_npz: MakeNpz) -> None:
    ship()
    with pytest.raises(UsageError, match="freeze='conv2': keeps trained weights, and this run starts from random ones"):
        small(make_npz(), freeze="conv2")
    recipe = small(make_npz(), init_from=DEFAULT, freeze="conv5")
    with pytest.raises(UsageError, match=r"WRN-10-1 has the stages conv1, conv2, conv3, conv4, and backbone"):
        prepare(recipe, load_dataset(recipe.data))
    with pytest.raises(UsageError, match="freeze='conv9': one of none, conv1, "):
        Recipe.flat(freeze="conv9")


def test_each_stage_learns_slower_than_the_one_above_it() -> None:
    network = create("WRN-10-1", 4)
    assert lr_scales(network, 0.5) == {
        "conv1": 1 / 16, "conv2": 1 / 8, "conv3": 1 / 4, "conv4": 1 / 2, "pooled": 1 / 2, "fc": 1,
    }  # fmt: skip
    optimizer = make_optimizer(
        network, OptimizerOptions(layer_lr_decay=0.5, momentum=0, nesterov=False, weight_decay=0)
    )
    before = [parameter.clone() for parameter in network.parameters()]
    images, labels = torch.randn(8, 3, 8, 8), torch.arange(8) % 4
    training_loss(network, images, labels, EXECUTION)[0].backward()
    gradients = {name: parameter.grad.clone() for name, parameter in network.named_parameters()}  # type: ignore[union-attr]
    network.zero_grad()
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.reset_running_stats()
    train_step(network, optimizer, images, labels, Meter("cpu"), EXECUTION, step=0, lr=0.1)
    for (name, parameter), old in zip(network.named_parameters(), before, strict=True):
        stage = "fc" if name.startswith("fc") else "conv1" if name.startswith("stem") else "conv4"
        if name.startswith("groups"):
            stage = f"conv{int(name.split('.')[1]) + 2}"
        scale = lr_scales(network, 0.5)[stage]
        torch.testing.assert_close(parameter, old - 0.1 * scale * gradients[name], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("mixed", [False, True])
def test_class_weights_multiply_the_loss_of_each_image(mixed: bool) -> None:
    torch.manual_seed(0)
    network, images, labels = create("WRN-10-1", 3).eval(), torch.randn(5, 3, 8, 8), torch.tensor([0, 0, 1, 2, 2])
    weights = torch.tensor([0.5, 2.0, 1.5])
    targets: Tensor = labels
    if mixed:
        targets = 0.7 * torch.eye(3)[labels] + 0.3 * torch.eye(3)[labels.roll(1)]
    loss, logits = training_loss(network, images, targets, EXECUTION, 0.1, weights)
    shares = torch.eye(3)[labels] if not mixed else targets
    smoothed = 0.9 * shares + 0.1 / 3
    by_hand = -(smoothed * logits.log_softmax(1)).sum(1) * (shares * weights).sum(1)
    torch.testing.assert_close(loss, by_hand.mean())
    parts = [training_loss(network, images[s], targets[s], EXECUTION, 0.1, weights)[0] * n / 5
             for s, n in ((slice(2), 2), (slice(2, 5), 3))]  # fmt: skip
    torch.testing.assert_close(sum(parts), loss)


def test_weights_give_each_class_the_same_sum_and_images_a_mean_of_one(tmp_path: Path) -> None:
    recipe = small(uneven_npz(tmp_path / "uneven.npz"), balance="weights")
    job, _ = prepare(recipe, load_dataset(recipe.data))
    assert job.class_weights is not None
    sums = job.class_weights * torch.tensor([40, 16, 8, 4])
    torch.testing.assert_close(sums, torch.full((4,), 17.0))
    assert (
        "balance weights: classes have 4 to 40 training images; one of the smallest counts as much as 10 of the "
        "largest, also in train_loss" in job.notes
    )
    assert prepare(recipe.replace(balance="none"), load_dataset(recipe.data))[0].class_weights is None


def make_feed(kind: type[Feed], images: Any, labels: np.ndarray, **more: Any) -> Feed:
    return kind(images, labels, Preprocessing("scale"), batch_size=17, balanced=True, seed=3, **more)


def test_balanced_epochs_have_all_classes_alike_and_every_image_of_a_small_class() -> None:
    labels = np.repeat(np.arange(4), (40, 16, 8, 4))
    feed = make_feed(Feed, np.zeros((68, 8, 8, 3), np.uint8), labels)
    orders = [feed.plan(epoch, "cpu")[0].order for epoch in range(3)]
    for order in orders:
        assert np.bincount(labels[order]).tolist() == [17] * 4
        uses = torch.bincount(order, minlength=68)
        assert uses[:40].max() == 1  # of a large class no image twice
        for start, end in ((40, 56), (56, 64), (64, 68)):
            assert uses[start:end].max() - uses[start:end].min() <= 1
    assert not torch.equal(orders[0], orders[1])
    again = make_feed(Feed, np.zeros((68, 8, 8, 3), np.uint8), labels)
    assert torch.equal(again.plan(2, "cpu")[0].order, orders[2])  # a function of seed and epoch alone


@pytest.mark.parametrize("later", [{}, {"mixup": 0.4}])
def test_a_balanced_stream_has_the_batches_of_the_resident_set_and_shares_add_up(
    tmp_path: Path, later: dict[str, Any]
) -> None:
    from wideresnet.data.feeds.later import Later

    dataset = load_dataset(make_folders(tmp_path / "set", num_classes=3, train=7, high=90), image_size=32)
    keep = np.flatnonzero((dataset.train.labels != 1) | (np.arange(len(dataset.train)) % 3 == 0))
    images, labels = dataset.train.images[keep], dataset.train.labels[keep]
    how = {"later": Later(num_classes=3, **later)} if later else {}
    arguments: dict[str, Any] = {"flip": True, "batch_size": 5, "balanced": True, "seed": 1, **how}
    whole = list(Feed(images, labels, Preprocessing("scale"), **arguments).epoch(1))
    if not later:
        for each, expected in zip(
            StreamFeed(stream_of(images), labels, Preprocessing("scale"), **arguments).epoch(1), whole, strict=True
        ):
            assert torch.equal(each[0], expected[0])
            assert torch.equal(each[1], expected[1])
    shares = [Feed(images, labels, Preprocessing("scale"), rank=r, num_ranks=2, **arguments).epoch(1) for r in (0, 1)]
    for first, second, expected in zip(*shares, whole, strict=True):
        assert torch.equal(torch.cat((first[0], second[0])), expected[0])


@pytest.mark.parametrize("balance", ["weights", "sampling"])
def test_a_balanced_run_resumes_to_the_same_bits_and_is_in_the_record(tmp_path: Path, balance: str) -> None:
    recipe = small(uneven_npz(tmp_path / "uneven.npz"), balance=balance, label_smoothing=0.1, mixup=0.2)
    fit(recipe, tmp_path / "whole")
    with after_steps(5, interrupt), pytest.raises(Interrupted):
        fit(recipe, tmp_path / "run")
    fit(recipe, tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "run")
    assert Recipe.from_file(tmp_path / "run" / "recipe.json").feed.balance == balance
    fit(recipe.replace(balance="none"), tmp_path / "plain")
    assert metrics(tmp_path / "plain") != metrics(tmp_path / "run")


def test_balanced_sampling_and_repeats_are_not_combined() -> None:
    with pytest.raises(UsageError, match="repeated_augmentation=2: balance='sampling' decides how often"):
        Recipe.flat(balance="sampling", repeated_augmentation=2)
