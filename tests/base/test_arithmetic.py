from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wideresnet.base.arithmetic import ceil_div


@pytest.mark.parametrize(("dividend", "divisor", "quotient"), [(0, 3, 0), (1, 3, 1), (3, 3, 1), (4, 3, 2), (-4, 3, -1)])
def test_division_rounds_up(dividend: int, divisor: int, quotient: int) -> None:
    assert ceil_div(dividend, divisor) == quotient


@given(st.integers(0, 10**20), st.integers(1, 10**12))
def test_the_quotient_is_the_smallest_that_covers_the_dividend(dividend: int, divisor: int) -> None:
    quotient = ceil_div(dividend, divisor)
    assert (quotient - 1) * divisor < dividend <= quotient * divisor
