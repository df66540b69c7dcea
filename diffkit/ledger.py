"""The ledger: what a search cost, counted call by call, with floating-point operations and seconds."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Literal, NamedTuple, TypedDict

from diffkit.errors import InputError

__all__ = ["NOTHING", "UNKNOWN", "Budget", "Component", "Cost", "GuardCost", "Ledger", "Prices", "parse_budget"]

Component = Literal["denoiser", "decoder", "preview", "verifier", "guard", "text_encoder", "held_out"]


UNITS = {"": 1.0, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15}


class Budget(NamedTuple):
    """How much may be spent: ``amount`` of ``unit``; one ``x`` is the cost of one candidate denoised to the end."""

    amount: float
    unit: Literal["x", "FLOP", "s"]


def parse_budget(text: str) -> Budget:
    """Read ``"16x"`` (best-of-16's cost), ``"3.2TFLOP"``, ``"800 GFLOP"``, ``"40s"`` or ``"2min"``.

    Raises:
        InputError: another form, or an amount that is not positive.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(?:(x)|([KMGTP]?)FLOPs?|(s|min))\s*", str(text), re.IGNORECASE)
    if match is None or float(match[1]) <= 0:
        raise InputError(f"Cannot read the budget {text!r}; write for example 16x, 3.2TFLOP or 40s.")
    amount = float(match[1])
    if match[2]:
        return Budget(amount, "x")
    if match[4]:
        return Budget(amount * (60 if match[4].lower() == "min" else 1), "s")
    return Budget(amount * UNITS[match[3].upper()], "FLOP")


@dataclass(frozen=True)
class Prices:
    """What one unit of work costs, all in FLOP or all in seconds; None where unknown.

    Attributes:
        call: one denoiser call for one candidate, both rows with guidance.
        decode: one image decoded.
        verify: one image scored, and checked by the copy guard where there is one.
        encode: one prompt encoded.
        preview: one estimate decoded by a preview decoder.
    """

    call: float | None
    decode: float | None
    verify: float | None
    encode: float | None = 0.0
    preview: float | None = None


class Cost(NamedTuple):
    """Counted work of a search: denoiser calls (for one candidate each), images decoded and images scored.

    ``previewed`` images were decoded by a preview decoder; they are not among ``decoded``.
    """

    calls: int
    decoded: int
    verified: int
    previewed: int = 0

    def at(self, prices: Prices) -> float | None:
        """The total in the prices' unit, None when a price is unknown."""
        if prices.call is None or prices.decode is None or prices.verify is None:
            return None
        if self.previewed and prices.preview is None:
            return None
        previews = self.previewed * (prices.preview or 0.0)
        return self.calls * prices.call + self.decoded * prices.decode + self.verified * prices.verify + previews

    def plus(self, other: Cost) -> Cost:
        """Both together."""
        return Cost(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))


NOTHING, UNKNOWN = Cost(0, 0, 0), Prices(None, None, None, None)


class GuardCost(TypedDict):
    """What a copy guard did: images checked, and the FLOP of one check, None when unknown."""

    checks: int
    flop_per_check: float | None


@dataclass
class Ledger:
    """What a search has cost so far.

    Attributes:
        rows_per_call: rows of the denoiser's batch for one candidate, 2 with guidance.
        calls: denoiser calls, one for each step of each candidate.
        padding_calls: calls spent on padding micro-batches to constant size.
        calibration_calls: calls spent on timing or probing before the search.
        decoded, verified, encoded: images decoded, images scored, texts encoded.
        previewed: estimates decoded by a preview decoder.
        calibration_images: images decoded and scored on timing or probing.
        without_pruning: what the same candidates cost when all are denoised to the end.
        flops: FLOP of one unit of work.
        seconds: wall-clock seconds by component.
        budget: what was asked, what it allows and what the search was planned to cost, in one unit.
        guard: images that the copy guard checked, and the FLOP of a check, which are part of ``flops.verify``; None
            without a guard.

    Example:
        >>> ledger = Ledger(rows_per_call=2, calls=40, decoded=4, verified=4)
        >>> ledger.flops = Prices(call=1e9, decode=2e9, verify=5e8)
        >>> ledger.denoiser_rows, ledger.to_dict()["flop"]
        (80, 50000000000.0)
    """

    rows_per_call: int
    calls: int = 0
    padding_calls: int = 0
    calibration_calls: int = 0
    decoded: int = 0
    verified: int = 0
    encoded: int = 0
    previewed: int = 0
    calibration_images: int = 0
    without_pruning: Cost = NOTHING
    flops: Prices = UNKNOWN
    seconds: dict[str, float] = field(default_factory=dict)
    budget: dict[str, float | str] | None = None
    guard: GuardCost | None = None

    @property
    def denoiser_rows(self) -> int:
        """Rows that went through the denoiser, for whatever purpose."""
        return (self.calls + self.padding_calls + self.calibration_calls) * self.rows_per_call

    @property
    def cost(self) -> Cost:
        """The work counted for candidates, without padding, probing and text."""
        return Cost(self.calls, self.decoded, self.verified, self.previewed)

    @contextmanager
    def clock(self, component: Component) -> Iterator[None]:
        """Add the block's wall-clock time to a component."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[component] = self.seconds.get(component, 0.0) + time.perf_counter() - began

    def to_dict(self) -> dict[str, object]:
        """Everything, ready for JSON; unknown figures are null, ``guard`` is there only with a guard."""
        spent, full = self.cost.at(self.flops), self.without_pruning.at(self.flops)
        figures = {name: value for name, value in asdict(self).items() if name != "guard" or value is not None}
        return {
            **figures,
            "without_pruning": self.without_pruning._asdict(),
            "denoiser_rows": self.denoiser_rows,
            "flop": spent,
            "flop_without_pruning": full,
        }
