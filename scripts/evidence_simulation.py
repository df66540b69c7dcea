"""Audits drawn from recorded similarities: how often a null suspect is called, and how many memorized ones are.

Controls and null suspects of an audit are drawn from the same population; the verdicts are those of
:func:`memorization.auditing.verdicts.judge_ladder`. Rows of the populations are z = atanh(similarity).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np

from diffkit.stats import benjamini_hochberg, bootstrap_mean, clopper_pearson, rank_p_value
from memorization.auditing.controls import Scores
from memorization.auditing.verdicts import Rung, judge_ladder

Tail = Literal["resampled", "normal", "t4", "t3"]
CONTROLS, SUSPECTS, ALPHA = 30, 500, 0.05
VERDICTS, WITHOUT, RANKS = "verdicts", "verdicts without a reference", "highest look, by rank"


class Layout(NamedTuple):
    """The columns of a row: the looks at these budgets, those on the reference model, then statistics by name."""

    budgets: Sequence[int]
    statistics: Sequence[str]
    reference: bool = True

    @property
    def looks(self) -> list[int]:
        """The columns of the looks."""
        return list(range(len(self.budgets)))

    @property
    def reference_looks(self) -> list[int]:
        """The columns of the looks on the reference model."""
        return [len(self.budgets) + look for look in self.looks] if self.reference else []

    def column(self, name: str) -> int:
        """The column of a statistic."""
        return len(self.looks) + len(self.reference_looks) + self.statistics.index(name)


@dataclass(frozen=True)
class Population:
    """Rows of z by kind of image, and how a new row is drawn.

    Attributes:
        rows: kind -> (n, columns).
        tail: "resampled": a recorded row, plus noise with the kind's covariance, shrunk so that mean and covariance
            stay (Silverman 1986, section 6.4): a resample is not only duplicates; "normal", "t4", "t3": the kind's mean
            and covariance with a multivariate normal or t distribution of 4 or 3 degrees of freedom.
        shares: kind -> share of the items; as in ``rows`` where it is None.
    """

    rows: Mapping[str, np.ndarray]
    tail: Tail = "resampled"
    shares: Mapping[str, float] | None = None

    def draw(self, kind: str, n: int, rng: np.random.Generator) -> np.ndarray:
        """(n, columns) new rows of one kind."""
        rows = self.rows[kind]
        count = len(rows)
        mean = rows.mean(axis=0)
        root = (rows - mean) / np.sqrt(count - 1)  # root.T @ root is the covariance
        noise = rng.standard_normal((n, count)) @ root
        if self.tail == "resampled":
            width = (4 / 3 / count) ** 0.2  # for one column: each statistic is read on its own
            chosen = (rows[rng.integers(count, size=n)] - mean) * np.sqrt(count / (count - 1))
            return mean + (chosen + width * noise) / np.sqrt(1 + width**2)
        if self.tail == "normal":
            return mean + noise
        freedom = float(self.tail[1:])
        scale = np.sqrt((freedom - 2) / rng.chisquare(freedom, (n, 1)))
        return mean + noise * scale

    def counts(self, total: int) -> dict[str, int]:
        """How many of so many items are of each kind, in proportion to ``shares``."""
        shares = self.shares or {kind: float(len(rows)) for kind, rows in self.rows.items()}
        edges = np.round(np.cumsum(list(shares.values())) / sum(shares.values()) * total).astype(int)
        return dict(zip(shares, np.diff(edges, prepend=0).tolist(), strict=True))

    def sample(self, total: int, rng: np.random.Generator) -> tuple[np.ndarray, list[str]]:
        """(total, columns) rows, and the kind of each."""
        counts = {kind: n for kind, n in self.counts(total).items() if n}
        drawn = [self.draw(kind, n, rng) for kind, n in counts.items()]
        return np.concatenate(drawn), [kind for kind, n in counts.items() for _ in range(n)]

    def hardest(self, column: int) -> str:
        """The kind whose rows reach furthest in a column: mean plus three standard deviations."""
        values = {kind: rows[:, column] for kind, rows in self.rows.items()}
        return max(values, key=lambda kind: float(values[kind].mean() + 3 * values[kind].std()))


class Drawn(NamedTuple):
    """One audit: (n, columns) rows of controls and suspects, of whom the first are memorized."""

    controls: np.ndarray
    kinds: list[str]
    suspects: np.ndarray


def draw_audit(
    controls: Population,
    suspects: Population,
    rng: np.random.Generator,
    memorized: np.ndarray | None = None,
    *,
    count: int = CONTROLS,
) -> Drawn:
    """So many controls and 500 suspects, null ones except for the (n, columns) rows of memorized ones."""
    rows, kinds = controls.sample(count, rng)
    null = rng.permutation(suspects.sample(SUSPECTS, rng)[0])
    if memorized is not None:
        null[: len(memorized)] = memorized
    return Drawn(rows, kinds, null)


def scores(rows: np.ndarray, kinds: Sequence[str | None], budgets: Sequence[int]) -> list[Scores]:
    """Rows of looks as what the verdict rules take; the start, budget 0, decides nothing."""
    curves = [dict(zip((0, *budgets), (0.0, *row), strict=True)) for row in np.tanh(rows).tolist()]
    return [Scores(str(i), curve=c, kind=kind) for i, (c, kind) in enumerate(zip(curves, kinds, strict=True))]


def retained(
    drawn: Drawn,
    columns: Sequence[int],
    budgets: Sequence[int],
    threshold: float | None,
    reference: Sequence[int] = (),
) -> np.ndarray:
    """(suspects,) which of them :func:`judge_ladder` calls retained, by the looks in these columns.

    Args:
        threshold: None: the least that no control reaches, so that only the p-values decide.
        reference: columns of the looks on the reference model, if one takes part.
    """
    suspects, controls = (
        scores(group[:, list(columns)], kinds, budgets)
        for group, kinds in ((drawn.suspects, [None] * len(drawn.suspects)), (drawn.controls, drawn.kinds))
    )
    if threshold is None:
        threshold = float(np.nextafter(np.tanh(drawn.controls[:, list(columns)].max()), 2.0))
    on_reference = [
        {score.key: score for score in scores(group[:, list(reference)], [None] * len(group), budgets)}
        for group in (drawn.suspects, drawn.controls)
        if reference
    ]
    rung = Rung(suspects, controls, *on_reference)
    findings = judge_ladder({"attack": rung}, threshold=threshold, alpha=ALPHA).findings
    return np.array([finding.verdict == "retained" for finding in findings])


def by_rank(drawn: Drawn, column: int) -> np.ndarray:
    """(suspects,) which of them rank p-values call, corrected, as before tails were fitted."""
    p = [rank_p_value(value, drawn.controls[:, column]) for value in drawn.suspects[:, column]]
    return np.array(benjamini_hochberg(p)) <= ALPHA


def counted(k: int, n: int) -> dict[str, float]:
    """k of n with its exact 95 % interval."""
    low, high = clopper_pearson(k, n)
    return {"k": k, "n": n, "share": k / n, "low": low, "high": high}


def decide(name: str, drawn: Drawn, layout: Layout, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """(suspects,) which of them one rule calls: by the p-values alone, and with the threshold, as verdicts do.

    Without a reference model it is judged again only where a control reaches the threshold, which may lower the pre-set
    budget; elsewhere its "retained" are those of the p-values alone that reach the threshold.
    """
    looks = layout.looks
    back = np.tanh(drawn.suspects[:, looks].max(axis=1)) >= threshold
    if name == VERDICTS:
        whole = retained(drawn, looks, layout.budgets, threshold, layout.reference_looks)
        return whole, whole  # what does not reach the threshold is not tested
    if name == WITHOUT:
        alone = retained(drawn, looks, layout.budgets, None)
        reached = np.tanh(drawn.controls[:, looks].max()) >= threshold
        return alone, retained(drawn, looks, layout.budgets, threshold) if reached else alone & back
    if name == RANKS:
        alone = by_rank(drawn, layout.column("highest look"))
    else:
        alone = retained(drawn, [layout.column(name)], layout.budgets[-1:], None)
    return alone, alone & back


def false_positives(
    name: str, controls: Population, suspects: Population, layout: Layout, *, threshold: float, audits: int
) -> dict[str, Any]:
    """Share of the audits of null suspects with any "retained": by the whole rule, and by the p-values alone."""
    rng = np.random.default_rng(0)
    decided = [decide(name, draw_audit(controls, suspects, rng), layout, threshold) for _ in range(audits)]
    alone, whole = (sum(bool(calls[side].any()) for calls in decided) for side in (0, 1))
    return {"verdicts": counted(whole, audits), "p-values alone": counted(alone, audits)}


def power(
    name: str,
    controls: Population,
    memorized: Population,
    shift: np.ndarray | float,
    layout: Layout,
    *,
    n: int,
    threshold: float,
    audits: int,
    count: int = CONTROLS,
) -> dict[str, Any]:
    """Share of n memorized suspects among 500 that a rule calls; the memorized are moved by ``shift``, a row.

    Returns:
        The mean over audits, its bootstrap interval over audits, the audits in which all were found, and how many were
        found of those that reach the threshold: no statistic can make up for an attack that does not get there.
    """
    rng = np.random.default_rng(n)
    shares, found, back = [], 0, 0
    for _ in range(audits):
        drawn = draw_audit(controls, controls, rng, memorized.sample(n, rng)[0] + shift, count=count)
        called = decide(name, drawn, layout, threshold)[1][:n]
        shares.append(float(called.mean()))
        found += int(called.sum())
        back += int((np.tanh(drawn.suspects[:n, layout.looks].max(axis=1)) >= threshold).sum())
    low, high = bootstrap_mean(shares)
    every = counted(sum(share == 1 for share in shares), audits)
    return {"n": n, "audits": audits, "share": float(np.mean(shares)), "low": low, "high": high, "all found": every,
            "of those that come back": counted(found, back) if back else None}  # fmt: skip


def with_tail(population: Population, tail: Tail) -> Population:
    """The same population with another distribution."""
    return replace(population, tail=tail)
