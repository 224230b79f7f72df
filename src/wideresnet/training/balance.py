"""Classes of different sizes: how much an image of each counts in the loss."""

from __future__ import annotations

from torch import Tensor

from wideresnet.data.feeds.resident import Feed


def class_weights(feed: Feed, num_classes: int) -> Tensor:
    """Return the weights of the classes in the loss, float32 (classes,) on the feed's device.

    A class has N / (classes * its images), so that the mean over the training images is 1 and each class has the same
    sum. Classes without training images do not count. Source: King & Zeng 2001; scikit-learn's "balanced".
    """
    counts = class_counts(feed, num_classes).double()
    present = (counts > 0).sum()
    return (counts.sum() / (present * counts.clamp(min=1))).float().to(feed.labels.device)


def class_counts(feed: Feed, num_classes: int) -> Tensor:
    """Count the training images of each class, int64 (classes,) on the CPU."""
    return feed.labels.cpu().bincount(minlength=num_classes)
