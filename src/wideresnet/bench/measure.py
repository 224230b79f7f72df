"""Time, taken in turns: A B A B, so that whatever else the machine does disturbs everyone alike."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from wideresnet.base.errors import WRNError
from wideresnet.bench.contenders import Contender
from wideresnet.machine.device import synchronize

Clock = Callable[[], float]

# The four numbers below are this package's choices.

TURN_S = 0.2
"""A turn lasts at least this long. Shorter calls are repeated within it, so that the cost of a clock or of a launch
vanishes."""

WARM_UP_S = 1.0
"""Before its first turn, a contender is called at least twice and for at least this long."""

MIN_ROUNDS = 3
"""Number of rounds that are run however long they take: fewer have no quartiles."""

MATMUL_SIDE = {"cpu": 2048, "cuda": 8192}
"""Rows and columns of the matrices that a device is measured with: enough work to reach its rate."""


@dataclass
class Lane:
    """A contender and its times.

    Attributes:
        contender: what is timed.
        may_fail: whether an exception of the contender is recorded instead of raised, so that the others continue.
        first_s: seconds of the first call.
        call_s: seconds of a call, as measured during the warm-up.
        num_calls: number of calls per turn.
        seconds: for each round, seconds of one call.
        parts: for each round, seconds of the parts of a step, if the contender can tell them.
        problem: why there are no times; "" as long as there is no problem.
        peak_memory_mib: peak memory of a call, above what was in use before the contender was built; None if unknown.
        answers: what `compare_answers` found, as in a record.
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
    answers: dict[str, float] = field(default_factory=dict)

    def warm_up(
        self,
        device: str,
        clock: Clock = time.perf_counter,
        after_first: Callable[[], None] = lambda: None,
        *,
        turn_s: float = TURN_S,
        warm_up_s: float = WARM_UP_S,
    ) -> None:
        """Call the contender until it runs at its usual speed, and measure how long a call takes.

        Args:
            device: "cpu" or "cuda".
            clock: returns seconds.
            after_first: called after the first call, in which libraries may search for their fastest algorithms.
            turn_s: duration of a turn, at least.
            warm_up_s: duration of the warm-up, at least.
        """
        self.first_s, later = self._turn(device, clock, 1), []
        after_first()
        while not later or self.first_s + sum(later) < warm_up_s:
            later.append(self._turn(device, clock, 1))
        self.call_s = min(later)
        self.num_calls = max(1, math.ceil(turn_s / max(self.call_s, 1e-9)))

    @property
    def turn_s(self) -> float:
        """Expected seconds of a turn."""
        return (self.num_calls + (self.contender.parts is not None)) * self.call_s

    def take_turn(self, device: str, clock: Clock = time.perf_counter) -> None:
        """Run one more round: add the seconds of a call, and of its parts."""
        self.seconds.append(self._turn(device, clock, self.num_calls) / self.num_calls)
        if self.contender.parts:
            self.parts.append(self.contender.parts())

    def _turn(self, device: str, clock: Clock, num_calls: int) -> float:
        if torch.get_num_threads() != self.contender.num_threads:
            torch.set_num_threads(self.contender.num_threads)
        synchronize(device)
        start = clock()
        for _ in range(num_calls):
            self.contender.call()
        synchronize(device)
        return clock() - start


def attempt(lane: Lane, action: Callable[[], None]) -> None:
    """Do something with the contender of a lane. If it may fail, record its failure in the lane."""
    try:
        action()
    except (Exception, SystemExit) as error:
        if not lane.may_fail:
            raise
        lane.problem = describe_problem(error)


def describe_problem(error: BaseException) -> str:
    """Describe in one line what another implementation raised."""
    text = " ".join(str(error).split())
    return text if isinstance(error, WRNError) else f"{type(error).__name__}: {text}".removesuffix(": ")


def num_rounds(lanes: Sequence[Lane], repeats: int, budget_s: float) -> int:
    """Compute how many rounds fit the budget: at most `repeats`, at least three (or `repeats`, if that is less)."""
    return max(min(MIN_ROUNDS, repeats), min(repeats, int(budget_s / sum(lane.turn_s for lane in lanes))))


def take_turns(
    lanes: Sequence[Lane],
    rounds: int,
    device: str,
    *,
    clock: Clock = time.perf_counter,
    advance: Callable[[float], None] = lambda _: None,
) -> None:
    """Let all lanes take a turn in every round. A lane with a problem drops out.

    Args:
        lanes: whose `contender` is timed, after a warm-up.
        rounds: number of rounds.
        device: "cpu" or "cuda".
        clock: returns seconds.
        advance: called after each turn with its expected seconds, for a progress bar.
    """
    for _ in range(rounds):
        for lane in lanes:
            if not lane.problem:
                attempt(lane, lambda lane=lane: lane.take_turn(device, clock))
            advance(lane.turn_s)


def matmul_contender(device: str, precision: str, num_threads: int, side: int | None = None) -> tuple[Contender, int]:
    """Build the most that the machine can do: one large matrix product.

    In fp32, a GPU's convolutions use TF32 unless PyTorch is told otherwise, so the product does too.

    Args:
        device: "cpu" or "cuda".
        precision: "fp32" or "bf16".
        num_threads: threads of the CPU.
        side: rows and columns of the matrices; None for `MATMUL_SIDE`.

    Returns:
        The product as a contender, and its number of operations.
    """
    side = side or MATMUL_SIDE[device]
    tf32 = device == "cuda" and precision == "fp32" and torch.backends.cudnn.allow_tf32
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    generator = torch.Generator(device).manual_seed(0)  # random, because a product of equal numbers may be faster
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
