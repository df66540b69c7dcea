"""When to look at the candidates and how many to keep, with its exact cost in whole calls.

TTSnap (arXiv 2511.22242) prunes at fixed steps to fixed fractions. The authors' simulation charges a score at step
index s with s denoiser calls; it takes s + 1, and so it is counted here. Their cost uses fractional survivors; here
both the search and its cost use the same whole numbers.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import NamedTuple

from diffkit.errors import InputError
from diffkit.ledger import Cost

__all__ = ["PruningSchedule", "Stage"]


class Stage(NamedTuple):
    """One stretch of a search: ``candidates`` run from call ``start`` to before ``stop``, then are scored; where there
    is a lookahead, after so many calls more that lead to estimates only."""

    start: int
    stop: int
    candidates: int
    lookahead: int = 0

    @property
    def calls(self) -> int:
        """Denoiser calls of each candidate."""
        return self.stop - self.start + self.lookahead


@dataclass(frozen=True)
class PruningSchedule:
    """Look after each of ``steps`` (indices from 0, rising) and keep that share ``keep`` (in (0, 1]) of the candidates.

    Without steps it is best-of-N. After the last denoising step the survivors are always scored.

    Attributes:
        lookahead: for each look the denoiser calls by which it looks ahead, see :mod:`diffkit.lookahead`, 0 for the
            estimate x0 that the step itself leaves; empty where all are 0.

    Raises:
        InputError: lengths differ, steps do not rise or are negative, a share is outside (0, 1], or a lookahead is no
            number of calls.

    Example:
        >>> PruningSchedule.parse("2:0.4,6:0.4,11:0.5").survivors(32)
        [13, 5, 3]
        >>> PruningSchedule.parse("1:0.06+3").cost(50, 20).calls
        304
    """

    steps: tuple[int, ...] = ()
    keep: tuple[float, ...] = ()
    lookahead: tuple[int, ...] = field(default=(), kw_only=True)

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", tuple(self.steps))
        object.__setattr__(self, "keep", tuple(self.keep))
        object.__setattr__(self, "lookahead", tuple(self.lookahead) if any(self.lookahead) else ())
        if len(self.steps) != len(self.keep):
            raise InputError(f"A schedule needs one share for each step, got {len(self.steps)} and {len(self.keep)}.")
        if self.lookahead and len(self.lookahead) != len(self.steps):
            raise InputError(
                f"A schedule needs one lookahead for each step, got {len(self.steps)} and {len(self.lookahead)}."
            )
        for calls in self.lookahead:
            if isinstance(calls, bool) or not isinstance(calls, int) or calls < 0:
                raise InputError(f"A lookahead must be a whole number of calls, got {calls!r}.")
        for step in self.steps:
            if isinstance(step, bool) or not isinstance(step, int) or step < 0:
                raise InputError(f"A step of the schedule must be a whole number from 0, got {step!r}.")
        if any(later <= step for step, later in itertools.pairwise(self.steps)):
            raise InputError(f"The steps of the schedule must rise, got {', '.join(map(str, self.steps))}.")
        for share in self.keep:
            if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1:
                raise InputError(f"A share to keep must lie in (0, 1], got {share!r}.")

    @classmethod
    def parse(cls, text: str) -> PruningSchedule:
        """Read ``"2:0.4,6:0.4,11:0.5"``: after step index 2 keep 40 %, and so on; ``""`` is best-of-N.

        ``"1:0.06+3"`` looks ahead by 3 calls after step index 1 and keeps 6 %.

        Raises:
            InputError: another form.
        """
        looks = [_look(part) for part in filter(None, (piece.strip() for piece in text.split(",")))]
        steps, keep, lookahead = zip(*looks, strict=True) if looks else ((), (), ())
        return cls(steps, keep, lookahead=lookahead)

    def __str__(self) -> str:
        looks = zip(self.steps, self.keep, self.calls_ahead, strict=True)
        return ",".join(f"{step}:{share:g}" + (f"+{calls}" if calls else "") for step, share, calls in looks)

    @property
    def calls_ahead(self) -> tuple[int, ...]:
        """The lookahead of each look, 0 where there is none."""
        return self.lookahead or (0,) * len(self.steps)

    @property
    def looks(self) -> tuple[tuple[int, int], ...]:
        """(step, lookahead) of each look."""
        return tuple(zip(self.steps, self.calls_ahead, strict=True))

    @property
    def looks_ahead(self) -> bool:
        """Whether any look does."""
        return bool(self.lookahead)

    def written(self) -> dict[str, list[int] | list[float]]:
        """Steps and shares, and lookaheads where there are any, ready for JSON."""
        plain: dict[str, list[int] | list[float]] = {"steps": list(self.steps), "keep": list(self.keep)}
        return {**plain, "lookahead": list(self.lookahead)} if self.lookahead else plain

    def to_json(self) -> str:
        """The content of a file that :func:`ttsnap.schedules.load.load_schedule` reads."""
        return json.dumps(self.written())

    def resolve(self, calls: int, *, equivalent: float | None = None, candidates: int | None = None) -> PruningSchedule:
        """The schedule for a denoising of ``calls`` calls and a budget (in best-of-N equivalents: the N of the
        best-of-N that costs as much) or a number of candidates. A plain schedule is the same for all."""
        return self

    def at_budget(self, budget: float) -> PruningSchedule:
        """The schedule for a budget in the unit of the prices it was fitted with. A plain one is the same for all."""
        return self

    def validate(self, calls: int) -> None:
        """Whether a denoising of ``calls`` denoiser calls can be looked at so.

        Raises:
            InputError: a look does not lie before the last call, or looks ahead by more calls than are left.
        """
        if self.steps and self.steps[-1] >= calls - 1:
            raise InputError(
                f"The schedule looks after step {self.steps[-1]}, but the denoising has steps 0 to {calls - 1} and a "
                f"look must come before its last one; lower the step or use more inference steps."
            )
        for step, ahead in zip(self.steps, self.calls_ahead, strict=True):
            if ahead > (left := calls - step - 1):
                raise InputError(
                    f"The schedule looks ahead by {ahead} calls after step {step}, but only {left} of the {calls} are "
                    f"left there; look ahead by at most {left}."
                )

    def survivors(self, n: int) -> list[int]:
        """How many of ``n`` candidates are left after each look.

        Each share is applied to what the look before has left, rounded half up (0.5 candidates keep 1), at least 1.
        The share counts as the decimal number that it is written as, so 0.07 of 50 keeps 4, never 3.
        """
        left = []
        for share in self.keep:
            n = max(1, math.floor(n * Fraction(repr(share)) + Fraction(1, 2)))
            left.append(n)
        return left

    def stages(self, n: int, calls: int, survivors: Sequence[int] | None = None) -> list[Stage]:
        """The stretches between looks for ``n`` candidates; the last one ends with the denoising.

        Args:
            survivors: how many are left after each look instead of :meth:`survivors`.
        """
        bounds = [0, *(step + 1 for step in self.steps), calls]
        sizes = [n, *(self.survivors(n) if survivors is None else survivors)]
        ahead = [*self.calls_ahead, 0]
        return [Stage(*stage) for stage in zip(bounds, bounds[1:], sizes, ahead, strict=False)]

    def cost(self, n: int, calls: int, *, preview: bool = False, survivors: Sequence[int] | None = None) -> Cost:
        """Exact work of a search over ``n`` candidates when every score is finite.

        Each stage's candidates are denoised through its steps and those of its lookahead, then decoded and scored once.

        Args:
            preview: estimates are decoded by a preview decoder.
            survivors: how many are left after each look instead of :meth:`survivors`.
        """
        stages = self.stages(n, calls, survivors)
        scored = sum(stage.candidates for stage in stages)
        previewed = scored - stages[-1].candidates if preview else 0
        done = sum(stage.calls * stage.candidates for stage in stages)
        return Cost(done, scored - previewed, scored, previewed)


def _look(part: str) -> tuple[int, float, int]:
    """Step, share and lookahead of ``step:share`` or ``step:share+calls``."""
    step, colon, rest = part.partition(":")
    share, plus, calls = rest.partition("+")
    try:
        if not colon:
            raise ValueError
        look = int(step), float(share), int(calls) if plus else 0
    except ValueError:
        raise InputError(
            f"Cannot read {part!r} of the schedule; write step:share, as in 2:0.4,6:0.4, or step:share+calls to look "
            f"ahead, as in 1:0.06+3."
        ) from None
    if plus and look[2] < 1:
        raise InputError(f"A lookahead is of at least 1 call, got {part!r}; leave the {plus}{calls} out for none.")
    return look
