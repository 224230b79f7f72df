"""The blocks of trained weights, measured on test images: the content of `wrn analyze`."""

from __future__ import annotations

import time
from pathlib import Path

import torch

from wideresnet.analysis.blocks import analyze_blocks, named_blocks, num_passes
from wideresnet.analysis.similarity import MIN_IMAGES
from wideresnet.base import progress
from wideresnet.base.arithmetic import spread
from wideresnet.base.errors import DataError, UsageError
from wideresnet.data.feeds.resident import evaluation_batches
from wideresnet.machine.device import pick_device
from wideresnet.spec.analysis import Analysis
from wideresnet.weights.hub import read_weights
from wideresnet.weights.matching import data_of_run, fit_images, load_matching, run_of
from wideresnet.weights.pretrained import weights_name

DEFAULT_LIMIT = 1000
"""Test images. This package's choice: WRN-40-2 takes 80 s of CPU time at 32 px, extrapolated from 64 images on a core
with AVX512."""

BATCH_SIZE = 64
"""Images at once, on every device, because the norm of a gradient depends on it. It is that of evaluation on CPUs."""

BATCH_PIXELS = BATCH_SIZE * 64 * 64
"""Larger images come in smaller batches, because gradients need all feature maps at once. 64 px is the side to which a
user's large images are resized by default."""


def analyze(
    weights: str | Path,
    data: str | Path | None = None,
    *,
    limit: int | None = DEFAULT_LIMIT,
    device: str = "auto",
    skip_unreadable: bool = False,
) -> Analysis:
    """Measure what each residual block of trained weights contributes, in fp32, with the preprocessing stored in them.

    Args:
        weights: a run folder, a weights folder, a `model.safetensors` or the name of a shipped network.
        data: as for `load_dataset`; its images are resized to the size that the weights were trained on. None for the
            data of the run that produced the weights.
        limit: number of test images, spread evenly over the set; None for all.
        device: "auto", "cpu" or "cuda".
        skip_unreadable: leave out images that cannot be read, with a note.

    Raises:
        UsageError: weights and data do not fit each other (classes, channels), there are fewer than four images, or the
            network has no residual blocks.
        DataError: the weights or the data cannot be read.
    """
    if limit is not None and limit < MIN_IMAGES:
        raise UsageError(f"limit={limit}: must be at least {MIN_IMAGES}; the similarity of blocks needs as many images")
    device = pick_device(device)
    read = read_weights(weights)
    num_blocks = len(named_blocks(read.network)[0])
    if data is None:
        data = data_of_run(weights)
    dataset, notes = load_matching(read, data, run=run_of(weights), skip_unreadable=skip_unreadable)
    num_all = len(dataset.test)
    if num_all < MIN_IMAGES:
        raise UsageError(f"{data}: {num_all} test images; the similarity of blocks needs at least {MIN_IMAGES}")
    chosen = spread(num_all, limit or num_all)
    images, more = fit_images(read, dataset, dataset.test.images[chosen])
    labels = torch.from_numpy(dataset.test.labels[chosen]).to(device)
    size = max(MIN_IMAGES, min(BATCH_SIZE, BATCH_PIXELS // (images.shape[1] * images.shape[2])))
    batches = evaluation_batches(images, read.preprocessing, batch_size=size, device=device)
    network, started = read.network.to(device), time.monotonic()
    with progress.task(f"analyzing {network.name}", total=num_passes(num_blocks, len(chosen))) as task:
        try:
            measures = analyze_blocks(
                network, zip(batches, labels.split(size), strict=True), advance=lambda work: task.update(advance=work)
            )
        except DataError as error:
            raise DataError(f"{weights}: {error}") from None
    return Analysis(
        **vars(measures),
        weights=weights_name(weights),
        weights_sha256=read.sha256,
        network=str(network.name),
        params=sum(parameter.numel() for parameter in network.parameters()),
        dataset=dataset.name,
        num_test_images=num_all,
        device=device,
        seconds=round(time.monotonic() - started, 3),
        notes=(*notes, *more),
    )
