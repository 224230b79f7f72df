"""Images with labels, from every place and format that the package reads, as arrays in memory."""

from __future__ import annotations

from wideresnet.data.dataset import Dataset, ImageSet
from wideresnet.data.facts import FACTS, Facts
from wideresnet.data.load import load_dataset

__all__ = ["FACTS", "Dataset", "Facts", "ImageSet", "load_dataset"]
