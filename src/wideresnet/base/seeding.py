"""Seeds as pure functions of what they stand for, so that any part of a run can be replayed alone."""

from __future__ import annotations

import hashlib


def seed_of(*parts: int | str) -> int:
    """A 63-bit seed for `torch.Generator`, the same on every machine.

    Args:
        parts: what the draw is for, e.g. `seed_of(recipe.seed, "order", epoch)`.

    Seeds of neighboring epochs, or of neighboring runs, are unrelated. Parts are distinguished by their text, joined by
    slashes, so a part's text should contain none.
    """
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
