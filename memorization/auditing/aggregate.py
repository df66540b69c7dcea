"""From journal records to scores: median over seeds, the best start and learning rate, one rung at a time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Any, Literal, NamedTuple

from memorization.attack.ladder import rung_of
from memorization.auditing.controls import ControlCheck, Scores
from memorization.auditing.settings import AuditSettings
from memorization.auditing.verdicts import Finding, Rung, judge_ladder

Record = Mapping[str, Any]
Aggregate = Literal["median", "maximum"]


def scores(key: str, record: Record, budgets: Sequence[int], rung: str, how: Aggregate = "median") -> Scores:
    """Aggregate one journal record over seeds, then take the best start and learning rate at each budget.

    The median over seeds is what verdicts rest on; the maximum is what labels of published lists rest on.
    """
    over = median if how == "median" else max
    caption = over(record["caption"]) if record["caption"] is not None else None
    curve = None
    variants = (record["attack"] or {}).get(rung)
    if variants is not None:
        columns = zip(*([over(row) for row in rows] for rows in variants.values()), strict=True)
        curve = dict(zip(budgets, (max(column) for column in columns), strict=True))
    ceiling = record["ceiling"][0] if record["ceiling"] else 1.0
    return Scores(key, caption, curve, record["reason"], ceiling)


def of_role(records: Mapping[str, Record], role: str, *, edit: str | None = None) -> dict[str, Record]:
    """The records of one role, and of one family of edits."""
    return {key: record for key, record in records.items() if record["role"] == role and record["edit"] == edit}


def aggregate(
    records: Mapping[str, Record], budgets: Sequence[int], rung: str, how: Aggregate = "median"
) -> list[Scores]:
    """:func:`scores` of many records."""
    return [scores(key, record, budgets, rung, how) for key, record in records.items()]


def ladder(records: Mapping[str, Record], budgets: Sequence[int], rungs: Iterable[str]) -> dict[str, Rung]:
    """What the verdicts are made from: by rung the suspects, the controls and, by suspect, the reference."""
    suspects, controls = of_role(records, "suspect"), of_role(records, "control")
    reference = {record["of"]: record for record in of_role(records, "reference").values()}
    return {
        rung: Rung(
            aggregate(suspects, budgets, rung),
            aggregate(controls, budgets, rung),
            {key: scores(key, record, budgets, rung) for key, record in reference.items()} or None,
        )
        for rung in rungs
    }


def detector_values(records: Mapping[str, Record], name: str) -> list[float]:
    """A detector's scores of captions, those that are known."""
    found = (record["detectors"].get(name, {}).get("value") for record in records.values())
    return [value for value in found if value is not None]


class Outcome(NamedTuple):
    """Verdicts on the suspects, and what the controls were found to carry under each attack, weak to strong."""

    findings: list[Finding]
    checks: dict[str, ControlCheck]

    @property
    def strongest(self) -> str:
        """The strongest attack whose controls hold; where none do, the strongest."""
        hold = [name for name, check in self.checks.items() if check.failure is None]
        return (hold or list(self.checks))[-1]


def conclude(records: Mapping[str, Record], settings: AuditSettings, *, threshold: float) -> Outcome:
    """Judge every suspect against the controls."""
    rungs = sorted(settings.attacks, key=rung_of)
    tested = ladder(records, settings.budgets, rungs)
    findings, checks = judge_ladder(tested, threshold=threshold, alpha=settings.alpha, correction=settings.correction)
    return Outcome(findings, checks)
