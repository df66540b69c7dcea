"""The order of work: controls on both models, what they say about the effort, suspects, edits, the reference model.

The reference model is only needed for suspects that it could acquit: those that their captions or an attack bring back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from diffkit import parallel
from memorization.attack.ladder import rung_of
from memorization.auditing.aggregate import aggregate, conclude, of_originals, of_role
from memorization.auditing.controls import Scores, Stopped
from memorization.auditing.effort import Effort, not_borne_out, of_suspects, unsettled
from memorization.auditing.measure_all import done_keys, measure_all
from memorization.auditing.models import Reference
from memorization.auditing.result import AuditRecord, read_records
from memorization.auditing.settings import AuditSettings
from memorization.auditing.verdicts import Finding
from memorization.copies import CopyDetector
from memorization.items import ON_REFERENCE, AuditItem

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from diffkit.runs import Run

__all__ = ["Bench", "measure_controls", "measure_in_order", "needs_reference"]


class Bench(NamedTuple):
    """What every item is measured with.

    Attributes:
        run: the journal and the files; None on all processes but the first.
        folder: the run's.
        settings: the audit's settings.
        copies: the copy detector.
        save_triggers: keep the embeddings.
    """

    run: Run | None
    folder: Path
    settings: AuditSettings
    copies: CopyDetector
    save_triggers: bool

    def measure(self, pipe: DiffusionPipeline, items: Sequence[AuditItem], effort: Effort, what: str) -> None:
        """Measure the items that are not in the journal yet."""
        keep = self.save_triggers and all(item.role not in ON_REFERENCE for item in items)
        measure_all(
            self.run,
            self.folder,
            pipe,
            items,
            self.settings,
            self.copies,
            effort=effort,
            what=what,
            save_triggers=keep,
        )

    def records(self, items: Sequence[AuditItem]) -> dict[str, AuditRecord]:
        """The journal's records of these items, those that are there; on the first process."""
        assert self.run is not None
        return read_records({item.key: self.run.done[item.key] for item in items if item.key in self.run.done})


def measure_controls(bench: Bench, pipe: DiffusionPipeline, items: Sequence[AuditItem]) -> None:
    """Measure the controls among the items, at every budget."""
    bench.measure(pipe, [item for item in items if item.role == "control"], Effort(), "controls")


def measure_in_order(
    bench: Bench,
    pipe: DiffusionPipeline,
    items: Sequence[AuditItem],
    *,
    threshold: float,
    reference: Reference | None,
    left_out: Mapping[str, Stopped],
) -> None:
    """Measure what comes after the controls.

    Args:
        bench: the run and its settings.
        pipe: the audited model.
        items: of all roles; see :func:`memorization.items.with_companions`. The controls are measured.
        threshold: the copy detector's operating point.
        reference: loaded only if some suspect needs it.
        left_out: suspects that are not attacked, by key.
    """
    controls, suspects, edits, controls_on_reference, on_reference = (
        [item for item in items if item.role == role]
        for role in ("control", "suspect", "edit", "reference_control", "reference")
    )
    everything = bench.settings.attack_all
    load = cache(lambda: _quiet(reference.load())) if reference is not None else None
    effort = _effort(bench, controls, len(suspects), threshold)
    if load is not None and (effort.limits or everything):
        _on_reference(bench, load, controls_on_reference, effort.whole(), "controls")
        effort = _effort(bench, [*controls, *controls_on_reference], len(suspects), threshold)
    effort = effort.without(left_out)
    bench.measure(pipe, suspects, effort, "suspects")
    own = [*controls, *controls_on_reference, *suspects]
    _measure_again(bench, pipe, suspects, effort, lambda: _unsettled(bench, own, threshold))
    bench.measure(pipe, edits, replace(effort.whole(), settled={}), "edited suspects")
    if load is None:
        return
    needed = on_reference
    on_needed = effort
    if not everything:
        nobody = _Acquittable(frozenset(), effort)
        acquittable = parallel.broadcast(
            _acquittable(bench, items, effort, threshold) if bench.run is not None else nobody
        )
        needed = [item for item in on_reference if item.of in acquittable.keys]
        on_needed = acquittable.effort
    _on_reference(bench, load, needed, on_needed, "suspects")
    _measure_again(bench, pipe, suspects, effort, lambda: _not_borne_out(bench, [*own, *on_reference], threshold))


def _on_reference(
    bench: Bench, load: Callable[[], DiffusionPipeline], items: Sequence[AuditItem], effort: Effort, what: str
) -> None:
    """Measure items on the reference model, which is only loaded if some are not in the journal yet."""
    if not done_keys(bench.run).issuperset(item.key for item in items):
        bench.measure(load(), items, effort, f"{what} on the reference model")


def _measure_again(
    bench: Bench,
    pipe: DiffusionPipeline,
    suspects: Sequence[AuditItem],
    effort: Effort,
    ended_too_early: Callable[[], list[str]],
) -> None:
    """Attack suspects up to the limits whose attacks turned out to have ended too early."""
    again = [] if bench.settings.attack_all or bench.run is None else ended_too_early()
    if parallel.broadcast(bool(again)):
        if bench.run is not None:
            bench.run.retry(again, "suspects", why="whose attack ended too early")
        bench.measure(pipe, suspects, effort.whole(), "suspects")


class _Acquittable(NamedTuple):
    """Keys of the suspects that the reference model could acquit, and how far it is attacked on them."""

    keys: frozenset[str]
    effort: Effort


def _effort(bench: Bench, controls: Sequence[AuditItem], suspects: int, threshold: float) -> Effort:
    """The effort on the suspects by the controls that are measured; the same on every process."""
    effort = Effort()
    if bench.run is not None and not bench.settings.attack_all:
        settings, records = bench.settings, bench.records(controls)
        names = sorted(settings.attacks, key=rung_of)
        effort = of_suspects(
            _by_attack(of_role(records, "control"), settings),
            {name: of_originals(records, "reference_control", settings.budgets, name) for name in names},
            threshold=threshold,
            alpha=settings.alpha,
            correction=settings.correction,
            suspects=suspects,
        )
    return parallel.broadcast(effort)


def _unsettled(bench: Bench, items: Sequence[AuditItem], threshold: float) -> list[str]:
    records = bench.records(items)
    outcome = conclude(records, bench.settings, threshold=threshold)
    budgets = {name: check.budget for name, check in outcome.checks.items()}
    return unsettled(outcome.findings, _by_attack(of_role(records, "suspect"), bench.settings), budgets)


def _not_borne_out(bench: Bench, items: Sequence[AuditItem], threshold: float) -> list[str]:
    records = bench.records(items)
    outcome = conclude(records, bench.settings, threshold=threshold)
    return not_borne_out(outcome.findings, _by_attack(of_role(records, "suspect"), bench.settings))


def _acquittable(bench: Bench, items: Sequence[AuditItem], effort: Effort, threshold: float) -> _Acquittable:
    """By the verdicts without a reference model."""
    own = bench.records([item for item in items if item.role in ("suspect", "control")])
    findings = conclude(own, bench.settings, threshold=threshold).findings
    by_caption, by_attack = needs_reference(findings, threshold)
    left_out: dict[str, Stopped] = {
        item.key: "caption" for item in items if item.role == "reference" and item.of not in by_attack
    }
    until_drawn = dict.fromkeys(bench.settings.attacks, threshold)
    return _Acquittable(
        frozenset(by_caption | by_attack), Effort(effort.limits, until_drawn, None, left_out, "reference")
    )


def needs_reference(findings: Sequence[Finding], threshold: float) -> tuple[set[str], set[str]]:
    """Keys of the suspects that the reference model could acquit: by its caption, and by an attack.

    Args:
        findings: the verdicts without a reference model.
        threshold: the copy detector's.
    """
    by_caption = {f.key for f in findings if f.caption is not None and f.caption >= threshold}
    by_attack = {
        f.key
        for f in findings
        if any(rung.similarity is not None and rung.similarity >= threshold for rung in f.rungs.values())
    }
    return by_caption, by_attack


def _by_attack(records: Mapping[str, AuditRecord], settings: AuditSettings) -> dict[str, list[Scores]]:
    """Scores of some items under each attack, weak to strong."""
    return {name: aggregate(records, settings.budgets, name) for name in sorted(settings.attacks, key=rung_of)}


def _quiet(pipe: DiffusionPipeline) -> DiffusionPipeline:
    pipe.set_progress_bar_config(disable=True)
    return pipe
