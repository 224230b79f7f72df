"""Jobs on random images, made ready for their first step."""

from __future__ import annotations

from typing import Any

import numpy as np

from wideresnet.data import Dataset, ImageSet
from wideresnet.spec.recipe import Recipe
from wideresnet.training import Job, prepare


def make_job(num_train: int = 50, **fields: Any) -> Job:
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (num_train + 10, 8, 8, 3), dtype=np.uint8)
    labels = np.arange(num_train + 10) % 4
    train, test = ImageSet(images[:num_train], labels[:num_train]), ImageSet(images[num_train:], labels[num_train:])
    dataset = Dataset("own", "own", train, test, ("a", "b", "c", "d"), None, ())
    values = {"network": "WRN-10-1", "epochs": 3, "batch_size": 16, "device": "cpu", "precision": "fp32", **fields}
    values |= {"kernels": "pytorch", "layout": "channels_last"}  # whose memory `cost` counts
    job, _ = prepare(Recipe.flat(**values), dataset)
    return job
