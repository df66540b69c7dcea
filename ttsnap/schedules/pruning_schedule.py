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
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

from diffkit.errors import InputError
from diffkit.ledger import Cost

__all__ = ["PruningSchedule", "Stage"]


class Stage(NamedTuple):
    """One stretch of a search: ``candidates`` run from call ``start`` to before ``stop``, then are scored."""

    start: int
    stop: int
    candidates: int


@dataclass(frozen=True)
class PruningSchedule:
    """Look after each of ``steps`` (indices from 0, rising) and keep that share ``keep`` (in (0, 1]) of the candidates.

    Without steps it is best-of-N. After the last denoising step the survivors are always scored.

    Raises:
        InputError: lengths differ, steps do not rise or are negative, or a share is outside (0, 1].

    Example:
        >>> PruningSchedule.parse("2:0.4,6:0.4,11:0.5").survivors(32)
        [13, 5, 3]
    """

    steps: tuple[int, ...] = ()
    keep: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", tuple(self.steps))
        object.__setattr__(self, "keep", tuple(self.keep))
        if len(self.steps) != len(self.keep):
            raise InputError(f"A schedule needs one share for each step, got {len(self.steps)} and {len(self.keep)}.")
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

        Raises:
            InputError: another form.
        """
        steps, keep = [], []
        for part in filter(None, (piece.strip() for piece in text.split(","))):
            step, colon, share = part.partition(":")
            try:
                if not colon:
                    raise ValueError
                steps.append(int(step))
                keep.append(float(share))
            except ValueError:
                raise InputError(
                    f"Cannot read {part!r} of the schedule; write step:share, as in 2:0.4,6:0.4."
                ) from None
        return cls(tuple(steps), tuple(keep))

    def __str__(self) -> str:
        return ",".join(f"{step}:{share:g}" for step, share in zip(self.steps, self.keep, strict=True))

    def to_json(self) -> str:
        """The content of a file that :func:`ttsnap.schedules.load.load_schedule` reads."""
        return json.dumps({"steps": list(self.steps), "keep": list(self.keep)})

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
            InputError: a look does not lie before the last call.
        """
        if self.steps and self.steps[-1] >= calls - 1:
            raise InputError(
                f"The schedule looks after step {self.steps[-1]}, but the denoising has steps 0 to {calls - 1} and a "
                f"look must come before its last one; lower the step or use more inference steps."
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
        return [Stage(start, stop, size) for start, stop, size in zip(bounds, bounds[1:], sizes, strict=False)]

    def cost(self, n: int, calls: int, *, preview: bool = False, survivors: Sequence[int] | None = None) -> Cost:
        """Exact work of a search over ``n`` candidates when every score is finite.

        Each stage's candidates are denoised through its steps, then decoded and scored once.

        Args:
            preview: estimates are decoded by a preview decoder.
            survivors: how many are left after each look instead of :meth:`survivors`.
        """
        stages = self.stages(n, calls, survivors)
        scored = sum(stage.candidates for stage in stages)
        previewed = scored - stages[-1].candidates if preview else 0
        done = sum((stage.stop - stage.start) * stage.candidates for stage in stages)
        return Cost(done, scored - previewed, scored, previewed)
