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
