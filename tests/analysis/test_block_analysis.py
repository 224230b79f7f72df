"""The contribution of single blocks, against networks in which it is known."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import nn

from wideresnet import create
from wideresnet.analysis.blocks import analyze_blocks, num_passes
from wideresnet.analysis.similarity import Similarity, gram, unbiased_hsic
from wideresnet.base.errors import DataError, UsageError
from wideresnet.networks import Network
from wideresnet.networks.blocks import PostActBlock, PreActBlock

NETWORKS = ("WRN-16-1", "WRN-10-1-B(3,1,3)", "ResNet-20", "PreActResNet-20")


def batches(num: int = 24, size: int = 12) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.randn(num, 3, 8, 8, generator=generator), torch.randint(0, 10, (num,), generator=generator)
    return list(zip(images.split(size), labels.split(size), strict=True))


def network(name: str = "WRN-16-1", **options: Any) -> Network:
    torch.manual_seed(0)
    return create(name, **options)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_block_is_reported_and_the_network_is_left_as_it_is(name: str) -> None:
    net = network(name)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    analysis = analyze_blocks(net, batches())
    assert len(analysis.blocks) == sum(net.name.num_blocks)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())
    assert sum(block.gradient_share for block in analysis.blocks) == pytest.approx(1)
    assert all(0 < block.branch_share < 1 for block in analysis.blocks)
    assert torch.tensor(analysis.similarity).diagonal().tolist() == [1] * len(analysis.blocks)
    expected = 100 * sum(int((net(x).argmax(1) != y).sum()) for x, y in batches()) / 24
    assert analysis.error_pct == pytest.approx(expected)


def test_removing_a_branch_that_adds_nothing_changes_nothing() -> None:
    net = network()
    dead = list(net.trunk()[1].children())[1]
    assert isinstance(dead, PreActBlock)
    with torch.no_grad():
        next(dead.convs[-1].parameters()).zero_()
    analysis = analyze_blocks(net, batches())
    report = {block.name: block for block in analysis.blocks}["conv3.2"]
    assert report.branch_share == 0
    assert report.error_without_pct == analysis.error_pct


def test_removing_the_only_branch_that_tells_classes_apart_is_seen() -> None:
    net = network("WRN-10-1")
    x, y = torch.randn(16, 3, 8, 8), torch.arange(16) % 10
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    net.train()
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    analysis = analyze_blocks(net, [(x, y)])
    assert max(block.error_without_pct for block in analysis.blocks) > analysis.error_pct


def test_similarity_is_one_for_the_same_and_for_rotated_features_and_low_for_unrelated_ones() -> None:
    generator = torch.Generator().manual_seed(1)
    similarity = Similarity(3)
    for _ in range(8):
        features = torch.randn(32, 6, generator=generator)
        rotation, _ = torch.linalg.qr(torch.randn(6, 6, generator=generator))
        layers = [features, 3 * features @ rotation, torch.randn(32, 6, generator=generator)]
        similarity.add([gram(layer) for layer in layers])
    first = similarity.result()[0].tolist()
    assert first[0] == pytest.approx(1)
    assert first[1] == pytest.approx(1, abs=1e-5)
    assert abs(first[2]) < 0.15


def test_batches_of_any_number_of_images_are_counted_whole() -> None:
    analysis = analyze_blocks(network(), batches(num=13, size=5))
    assert analysis.num_images == 13


@pytest.mark.parametrize("name", NETWORKS)
def test_a_removed_block_is_one_that_stochastic_depth_never_computes(name: str) -> None:
    net = network(name)
    analysis = analyze_blocks(net, batches())
    block = next(iter(net.trunk()[1].children()))
    assert isinstance(block, PreActBlock | PostActBlock)
    block.training, block.survival = True, 0.0  # alone, as in training with stochastic depth
    wrong = sum(int((net(x).argmax(1) != y).sum()) for x, y in batches())
    report = {block.name: block for block in analysis.blocks}["conv3.1"]
    assert report.projects
    assert report.error_without_pct == pytest.approx(100 * wrong / 24)


def test_gradients_are_those_of_the_loss_in_evaluation() -> None:
    net = network()
    ((x, y),) = batches(size=24)
    analysis = analyze_blocks(net, [(x, y)])
    nn.functional.cross_entropy(net.eval()(x), y).backward()
    for report, block in zip(analysis.blocks, itertools.chain(*(g.children() for g in net.trunk())), strict=True):
        flat = torch.cat([p.grad.flatten() for p in block.parameters() if p.grad is not None])
        assert report.gradient_norm == pytest.approx(float(flat.norm()), rel=1e-4)
        assert report.params == len(flat)


def test_a_branch_scaled_by_its_survival_counts_as_much_as_it_adds() -> None:
    whole, scaled = network(), network(stochastic_depth=0.5)
    scaled.load_state_dict(whole.state_dict())
    shares = [analyze_blocks(net, batches()).blocks[-1].branch_share for net in (whole, scaled)]
    assert 0 < shares[1] < shares[0]


def test_the_criterion_is_that_of_all_choices_of_four_images() -> None:
    layers = [torch.randn(6, 3, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)]
    k, m = grams = [gram(layer) for layer in layers]
    total = sum(
        float(k[i, j] * (m[i, j] + m[q, r] - 2 * m[i, q])) for i, j, q, r in itertools.permutations(range(6), 4)
    )
    assert float(unbiased_hsic(torch.stack(list(grams)))[0, 1]) == pytest.approx(total / 360)


def test_images_beyond_those_that_are_compared_count_for_errors_alone() -> None:
    done: list[float] = []
    analysis = analyze_blocks(network(), batches(size=6), num_compared=12, advance=done.append)
    assert (analysis.num_images, analysis.num_compared) == (24, 12)
    assert sum(done) == pytest.approx(num_passes(len(analysis.blocks), 24, 12))


def test_a_network_without_residual_blocks_is_refused() -> None:
    net = network()
    net.groups = nn.ModuleList([nn.Sequential(nn.Identity())])
    with pytest.raises(UsageError, match="WRN-16-1: has no residual blocks"):
        analyze_blocks(net, batches())


def test_damaged_weights_are_refused() -> None:
    net = network()
    with torch.no_grad():
        net.fc.bias.fill_(torch.nan)
    with pytest.raises(DataError, match="not finite"):
        analyze_blocks(net, batches())
