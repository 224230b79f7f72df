"""Seeds as pure functions of their purpose, so that any part of a run can be replayed on its own."""

from __future__ import annotations

import hashlib


def seed_of(*parts: int | str) -> int:
    """Derive a seed for `torch.Generator` that is the same on every machine.

    Seeds of neighboring epochs or runs are unrelated. The text of the parts is joined by slashes, so a part should not
    contain one.

    Args:
        parts: what the random numbers are for, e.g. `seed_of(recipe.seed, "order", epoch)`.

    Returns:
        An integer of 63 bits.
    """
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
