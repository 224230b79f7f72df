"""What each residual block of a trained network contributes.

Diminishing feature reuse, the paper's reason for width, says that few blocks of a very deep network learn much, because
a gradient can bypass all others (Srivastava et al. 2015; Wide Residual Networks, Section 1). Here it is measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wideresnet.analysis.similarity import Similarity, gram
from wideresnet.base.errors import DAMAGED, DataError, UsageError
from wideresnet.networks import Network
from wideresnet.networks.blocks import PostActBlock, PreActBlock
from wideresnet.spec.analysis import Block, BlockMeasures

Residual = PreActBlock | PostActBlock

NUM_COMPARED = 512
"""Images for gradients and similarity, which need fewer images than errors do. This package's choice."""

GRADIENT_PASSES = 3
"""What gradients cost, in passes of the network: one forward, and backward twice as much."""


def analyze_blocks(
    network: Network,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    num_compared: int = NUM_COMPARED,
    advance: Callable[[float], object] | None = None,
) -> BlockMeasures:
    """Remove the branch of each block in turn; measure its norm, its gradient and its similarity to other blocks.

    A block without its branch computes its shortcut alone, as stochastic depth has it in training.

    Args:
        network: trained; it is in evaluation mode afterwards, and all its gradients are None.
        batches: preprocessed images (B, C, H, W) with labels (B,), on the network's device; at least one batch. The
            norm of a gradient depends on their size.
        num_compared: images for gradients and similarity, rounded up to whole batches from the first one on.
        advance: called with what has been done since the last call, in images' passes through the network; the whole is
            `num_passes`.

    Raises:
        UsageError: the network has no residual blocks.
        DataError: its outputs or gradients are not finite.
    """
    network.eval()
    names, blocks = named_blocks(network)
    advance = advance or (lambda _: None)
    num_wrong, num_images, seen, rounds = 0, 0, 0, 0
    wrong_without = [0] * len(blocks)
    shares, gradients = torch.zeros(len(blocks), dtype=torch.float64), torch.zeros(len(blocks), dtype=torch.float64)
    similarity = Similarity(len(blocks))
    for images, labels in batches:
        is_compared, grams = seen < num_compared, list[Tensor]()
        with torch.no_grad():
            x = network.maxpool(network.enter(images))
            for place, block in enumerate(blocks):
                wrong_without[place] += _num_wrong(_without_first(network, blocks[place:], x), labels)
                x, share = _with_share(block, x)
                shares[place] += share
                if is_compared:
                    grams.append(gram(x))
                advance(len(images) * (len(blocks) - place) / len(blocks))
            num_wrong += _num_wrong(logits := _head(network, x), labels)
        if is_compared:
            similarity.add(grams)
            gradients += _gradient_norms(network, blocks, images, labels)
            seen, rounds = seen + len(images), rounds + 1
            advance(len(images) * GRADIENT_PASSES)
        num_images += len(images)
        if not (logits.isfinite().all() and gradients.isfinite().all()):
            raise DataError(DAMAGED)
    norms = (gradients / rounds).tolist()
    total = sum(norms) or 1.0
    return BlockMeasures(
        num_images=num_images,
        num_compared=seen,
        error_pct=100 * num_wrong / num_images,
        blocks=tuple(
            Block(
                name=name,
                projects=_projects(block),
                params=sum(parameter.numel() for parameter in block.parameters()),
                error_without_pct=100 * wrong_without[place] / num_images,
                branch_share=float(shares[place]) / num_images,
                gradient_norm=norms[place],
                gradient_share=norms[place] / total,
            )
            for place, (name, block) in enumerate(zip(names, blocks, strict=True))
        ),
        similarity=tuple(tuple(round(cell, 4) for cell in row) for row in similarity.result().tolist()),
    )


def num_passes(num_blocks: int, num_images: int, num_compared: int = NUM_COMPARED) -> float:
    """Return the work of `analyze_blocks`, in images' passes through the network, blocks taken to cost alike."""
    return num_images * (num_blocks + 1) / 2 + min(num_images, num_compared) * GRADIENT_PASSES


def named_blocks(network: Network) -> tuple[list[str], list[Residual]]:
    """Return the residual blocks from the first to the last: their names, as `Block` has them, and themselves.

    Raises:
        UsageError: there are none.
    """
    blocks = {
        f"conv{number}.{place}": block
        for number, group in enumerate(network.trunk(), start=2)
        for place, block in enumerate(group.children(), start=1)
        if isinstance(block, Residual)
    }
    if not blocks:
        raise UsageError(f"{network.name}: has no residual blocks, so there is nothing to analyze")
    return list(blocks), list(blocks.values())


def _projects(block: Residual) -> bool:
    if isinstance(block, PreActBlock):
        return block.shortcut is not None
    return block.stride != 1 or bool(block.new_channels)


@contextmanager
def without_branch(block: Residual) -> Iterator[None]:
    """Let a block compute its shortcut alone, as stochastic depth does in training; normalizations stay as they are."""
    training, survival = block.training, block.survival
    block.training, block.survival = True, 0.0  # the flag of this module alone, not of the ones within it
    try:
        yield
    finally:
        block.training, block.survival = training, survival


def _without_first(network: Network, blocks: Sequence[Residual], x: Tensor) -> Tensor:
    """Compute logits from the input of the first of some blocks, without its branch."""
    removed, *later = blocks
    with without_branch(removed):
        x = removed(x)
    for block in later:
        x = block(x)
    return _head(network, x)


def _with_share(block: Residual, x: Tensor) -> tuple[Tensor, float]:
    """Return a block's output, and the branch's share of it, summed over the images."""
    norms = list[Tensor]()
    last = block.convs[-1] if isinstance(block, PreActBlock) else getattr(block, f"bn{block.num_convs}")

    def keep(module: nn.Module, inputs: object, output: Tensor) -> None:
        del module, inputs
        norms.append(_norm(output))  # now: the shortcut will be added in place

    shortcut = _norm(_shortcut(block, x))
    handle = last.register_forward_hook(keep)
    try:
        y = block(x)
    finally:
        handle.remove()
    branch = block.survival * norms[0]
    return y, float((branch / (branch + shortcut).clamp_min(1e-12)).sum())


def _gradient_norms(network: Network, blocks: Sequence[Residual], images: Tensor, labels: Tensor) -> Tensor:
    """Return for each block the norm of the loss's gradient with respect to its parameters, float64 (blocks,)."""
    network.zero_grad()
    F.cross_entropy(network(images), labels).backward()
    squares = [
        sum(float(p.grad.double().square().sum()) for p in block.parameters() if p.grad is not None) for block in blocks
    ]
    network.zero_grad()
    return torch.tensor([math.sqrt(square) for square in squares], dtype=torch.float64)


def _shortcut(block: Residual, x: Tensor) -> Tensor:
    """Return what a block adds its branch to."""
    if isinstance(block, PostActBlock):
        return block.shortcut(x)
    if block.shortcut is None:
        return x
    return block.shortcut(x if block.preactivated else block.activation(block.norms[0](x)))


def _head(network: Network, x: Tensor) -> Tensor:
    return network.fc(F.adaptive_avg_pool2d(network.finish(x), 1).flatten(1))


def _num_wrong(logits: Tensor, labels: Tensor) -> int:
    return int((logits.argmax(1) != labels).sum())


def _norm(x: Tensor) -> Tensor:
    """Return the L2 norm of each image's map: (B, C, H, W) -> float64 (B,)."""
    return x.flatten(1).norm(dim=1).double()
