"""Integer arithmetic that the language lacks."""

from __future__ import annotations


def ceil_div(dividend: int, divisor: int) -> int:
    """Divide and round up, exactly: how many batches of `divisor` hold `dividend` images.

    Args:
        dividend: any integer.
        divisor: a positive integer.

    Returns:
        The smallest integer that is at least `dividend / divisor`.
    """
    return -(-dividend // divisor)


def spread(num: int, most: int) -> list[int]:
    """Choose indices that are spread evenly over a set, which may be sorted by class.

    Args:
        num: size of the set.
        most: how many to choose; all if there are fewer.

    Returns:
        `min(num, most)` different indices, in order.
    """
    chosen = min(num, most)
    return [place * num // chosen for place in range(chosen)]
