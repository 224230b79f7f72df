"""Time, taken in turns: A B A B, so that whatever else the machine does disturbs everyone alike."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from wideresnet.base.errors import WRNError
from wideresnet.bench.contenders import Contender
from wideresnet.machine.device import synchronise

Clock = Callable[[], float]

TURN_S = 0.2
"""A turn lasts at least so long: shorter calls are repeated within it, far beyond a clock's or a launch's cost."""

WARM_UP_S = 1.0
"""A contender is called at least twice, and until so much time has passed, before its first turn."""

MIN_ROUNDS = 3
"""Rounds that are made whatever they take: fewer have no quartiles."""

MATMUL_SIDE = {"cpu": 2048, "cuda": 8192}
"""Rows and columns of the matrices that a device is measured with: enough work to reach its rate."""


@dataclass
class Lane:
    """A contender and its times.

    Attributes:
        may_fail: what it raises is noted, and the others go on.
        first_s: seconds of its first call.
        call_s: seconds of a call, as the warm-up found it.
        num_calls: calls in a turn.
        seconds: of one call, for each round.
        parts: seconds of the pieces of a step, for each round, where the contender can tell.
        problem: why there are none; empty while all is well.
        peak_memory_mib: of a call, above what was there before the contender was built; None where unknown.
    """

    contender: Contender
    may_fail: bool = False
    first_s: float = math.nan
    call_s: float = math.nan
    num_calls: int = 1
    seconds: list[float] = field(default_factory=list)
    parts: list[dict[str, float]] = field(default_factory=list)
    problem: str = ""
    peak_memory_mib: float | None = None

    def warm_up(
        self, device: str, clock: Clock = time.perf_counter, after_first: Callable[[], None] = lambda: None
    ) -> None:
        """Call until the first times are over, and learn how long a call takes.

        Args:
            after_first: called after the first call, in which libraries may look for their fastest ways.
        """
        self.first_s, later = self._turn(device, clock, 1), []
        after_first()
        while not later or self.first_s + sum(later) < WARM_UP_S:
            later.append(self._turn(device, clock, 1))
        self.call_s = min(later)
        self.num_calls = max(1, math.ceil(TURN_S / max(self.call_s, 1e-9)))

    @property
    def turn_s(self) -> float:
        """What a turn is expected to take."""
        return (self.num_calls + (self.contender.parts is not None)) * self.call_s

    def take_turn(self, device: str, clock: Clock = time.perf_counter) -> None:
        """Add the seconds of a call, and of its pieces, in one more round."""
        self.seconds.append(self._turn(device, clock, self.num_calls) / self.num_calls)
        if self.contender.parts:
            self.parts.append(self.contender.parts())

    def _turn(self, device: str, clock: Clock, num_calls: int) -> float:
        if torch.get_num_threads() != self.contender.num_threads:
            torch.set_num_threads(self.contender.num_threads)
        synchronise(device)
        start = clock()
        for _ in range(num_calls):
            self.contender.call()
        synchronise(device)
        return clock() - start


def attempt(lane: Lane, action: Callable[[], None]) -> None:
    """Do something with a lane's contender; if it may fail, its failure is noted in the lane."""
    try:
        action()
    except (Exception, SystemExit) as error:
        if not lane.may_fail:
            raise
        lane.problem = describe_problem(error)


def describe_problem(error: BaseException) -> str:
    """One line for what another implementation raised."""
    text = " ".join(str(error).split())
    return text if isinstance(error, WRNError) else f"{type(error).__name__}: {text}".removesuffix(": ")


def num_rounds(lanes: Sequence[Lane], repeats: int, budget_s: float) -> int:
    """As many rounds as fit the budget: at most `repeats`, at least three (or `repeats`, where that is less)."""
    return max(min(MIN_ROUNDS, repeats), min(repeats, int(budget_s / sum(lane.turn_s for lane in lanes))))


def take_turns(
    lanes: Sequence[Lane],
    rounds: int,
    device: str,
    *,
    clock: Clock = time.perf_counter,
    advance: Callable[[float], None] = lambda _: None,
) -> None:
    """Let the lanes run one after the other, in every round anew; one with a problem drops out.

    Args:
        advance: told the seconds that a turn was expected to take.
    """
    for _ in range(rounds):
        for lane in lanes:
            if not lane.problem:
                attempt(lane, lambda lane=lane: lane.take_turn(device, clock))
            advance(lane.turn_s)


def matmul_contender(device: str, precision: str, num_threads: int) -> tuple[Contender, int]:
    """What the machine can do at most: one large matrix product, and its operations.

    In fp32 a GPU's convolutions use TF32 unless PyTorch is told otherwise, so the product does too.
    """
    side = MATMUL_SIDE[device]
    tf32 = device == "cuda" and precision == "fp32" and torch.backends.cudnn.allow_tf32
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    generator = torch.Generator(device).manual_seed(0)  # of equal numbers a product may be faster
    left, right = (torch.randn(side, side, generator=generator, device=device).to(dtype) for _ in range(2))
    result = torch.empty_like(left)

    def multiply() -> None:
        torch.mm(left, right, out=result)

    def multiply_in_tf32() -> None:
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high")
        multiply()
        torch.set_float32_matmul_precision(before)

    configuration = f"{'tf32' if tf32 else precision}, {side} x {side}"
    return Contender("matmul", configuration, multiply_in_tf32 if tf32 else multiply, num_threads), 2 * side**3
