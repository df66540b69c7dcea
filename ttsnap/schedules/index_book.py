"""The index rule as it is stored: a score model and, for each budget, the price and cap that keep to it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffkit.errors import InputError
from ttsnap.schedules.index_rule import IndexRule
from ttsnap.schedules.pruning_schedule import PruningSchedule
from ttsnap.schedules.score_model import ScoreModel, price_table

Floats = NDArray[np.float64]


SCHEMA, KIND = 2, "ttsnap-index"
CAP = 2.0  # most that one prompt may cost, over the mean budget
CAUTION = 4.0


@dataclass(frozen=True, eq=False)
class IndexBook:
    """Prices of the index rule by mean budget, with the model they were found for.

    Attributes:
        entries: (budget, price), budgets in finished candidates (best-of-N equivalents), rising.
        cap: most that one prompt may cost, over the mean budget.
        fallbacks: for each entry the pruning schedule to search by instead, where that was better on held-out prompts;
            None where the rule is. Empty stands for none at all, as in files of schema 1.
        info: where it comes from.
    """

    model: ScoreModel
    costs: Floats
    entries: tuple[tuple[float, float], ...]
    cap: float = CAP
    caution: float = CAUTION
    info: Mapping[str, object] = field(default_factory=dict)
    fallbacks: tuple[PruningSchedule | None, ...] = ()

    @cached_property
    def table(self) -> tuple[Floats, Floats]:
        """The offsets at every price, shared by the rules of all budgets."""
        return price_table(self.model, self.costs)

    def at(self, budget: float, *, hard: bool = False) -> IndexRule:
        """The rule for a mean budget in finished candidates; prices between entries are interpolated, both by ratio.

        Args:
            hard: no prompt may cost more than the budget, and each spends all it can of it.
        """
        budgets, prices = np.log(np.array(self.entries)).T
        price = math.exp(float(np.interp(math.log(budget), budgets, prices)))
        limit = budget if hard else self.cap * budget
        return IndexRule(self.model, self.costs, price, limit, self.caution, spend_all=hard, _table=self.table)

    def fallback(self, budget: float) -> PruningSchedule | None:
        """The schedule that takes the rule's place at a mean budget in finished candidates, None where the rule stays.

        It is that of the nearest entry by ratio.
        """
        pairs = zip(self.entries, self.fallbacks, strict=False)
        return min(pairs, key=lambda pair: abs(math.log(pair[0][0] / budget)))[1] if self.fallbacks else None

    def to_json(self) -> str:
        """The content of a file that :meth:`from_json` reads."""
        return json.dumps({
            "schema": SCHEMA, "kind": KIND, "model": self.model.to_dict(), "costs": list(self.costs),
            "entries": [list(entry) for entry in self.entries], "cap": self.cap, "caution": self.caution,
            "info": dict(self.info),
            "fallbacks": [None if plan is None else str(plan) for plan in self.fallbacks],
        }, indent=1, allow_nan=False)  # fmt: skip

    @classmethod
    def from_json(cls, path: str | Path) -> IndexBook:
        """Read such a file.

        Raises:
            InputError: no such file, another content or a newer schema.
        """
        try:
            content: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
            if content["kind"] != KIND or content["schema"] > SCHEMA:
                raise ValueError(f"kind {content['kind']!r}, schema {content['schema']}")
            entries = tuple((float(budget), float(price)) for budget, price in content["entries"])
            if not entries or min(min(entry) for entry in entries) <= 0:
                raise ValueError("entries must be positive")
            model = ScoreModel.from_dict(content["model"])
            costs = np.array(content["costs"], dtype=np.float64)
            plans = content.get("fallbacks", [])
            if plans and len(plans) != len(entries):
                raise ValueError(f"{len(plans)} fallbacks for {len(entries)} entries")
            fallbacks = tuple(None if plan is None else PruningSchedule.parse(plan) for plan in plans)
            return cls(model, costs, entries, content["cap"], content["caution"], content["info"], fallbacks)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"Cannot read an index rule from {str(path)!r}: {type(error).__name__}: {error}."
            ) from error
