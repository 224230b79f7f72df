from __future__ import annotations

import hashlib

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wideresnet.base.seeding import seed_of

part = st.integers(-(10**9), 10**9) | st.sampled_from(["order", "weights", "step", "epoch"])


def test_a_seed_is_the_same_on_every_machine() -> None:
    assert seed_of(0, "epoch", 3) == int.from_bytes(hashlib.sha256(b"0/epoch/3").digest()[:8], "little") // 2
    assert seed_of(0, "weights") == 4194789700723333633


@settings(max_examples=50, deadline=None)
@given(st.lists(part, max_size=4))
def test_a_seed_fits_a_generator(parts: list[int | str]) -> None:
    seed = seed_of(*parts)
    assert 0 <= seed < 2**63
    torch.Generator().manual_seed(seed)


def test_seeds_epochs_and_purposes_share_no_seed() -> None:
    seeds = [
        seed_of(run, purpose, number) for run in range(20) for purpose in ("epoch", "step") for number in range(100)
    ]
    assert len(set(seeds)) == len(seeds)
