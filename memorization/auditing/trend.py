"""The checkpoints of a fine-tune side by side: at which training step did each image become retained, replicated?

Every checkpoint gets the same audit (suspects, controls, settings, seeds), by default with the model without the LoRA
as reference. The audits stand in subfolders of the run, each a run of its own that resumes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from diffkit.console import say
from diffkit.errors import InputError, Interrupted
from diffkit.model_options import ModelOptions
from diffkit.runs.files import dump_json
from diffkit.runs.shared import open_shared
from diffkit.stats import rate
from memorization.auditing.models import Adapter, AuditedModel
from memorization.auditing.result import AuditSummary, SuspectResult
from memorization.auditing.run import audit
from memorization.auditing.settings import AuditSettings
from memorization.auditing.summary import items_in_error
from memorization.auditing.training_steps import TrainingSteps, Unit, training_steps
from memorization.auditing.trend_result import Trend, TrendPoint, TrendSuspect
from memorization.auditing.verdicts import Verdict
from memorization.items import Gathered, Source, data_digest, gather, stated_count, with_companions
from memorization.presets import PresetName, choose_preset

__all__ = ["Checkpoint", "TrendResult", "audit_trend", "planned_checkpoints", "summarise_trend"]

TREND_SCHEMA = 1
#: Verdicts that say that the image is in the weights: what its caption gives needs no attack.
HELD: tuple[Verdict, ...] = ("replicated", "retained")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint to audit: its step, its model, and the name of its audit's folder."""

    step: int
    model: AuditedModel
    folder: str


@dataclass(frozen=True)
class TrendResult:
    """The trend's folder and the content of its summary.json."""

    folder: Path
    summary: Trend


def audit_trend(
    base: ModelOptions,
    checkpoints: Sequence[str],
    suspects: Source | Gathered,
    controls: Source | None = None,
    *,
    out: str | Path,
    steps: Sequence[int] | None = None,
    with_base: bool = False,
    reference_model: str | None = None,
    settings: AuditSettings | None = None,
    preset: PresetName = "auto",
) -> TrendResult:
    """Audit every checkpoint of a LoRA, or resume in ``out``, and write the trend.

    Args:
        base: the model that was fine-tuned; the reference model too, unless ``reference_model`` names another.
        checkpoints: two or more LoRAs, as :func:`diffkit.lora.find_lora` takes them, in any order.
        suspects: what :func:`memorization.items.gather` takes; ``controls`` likewise.
        out: the run's folder; each audit stands in a subfolder.
        steps: the training step of each checkpoint; by default read from the files, see
            :func:`memorization.auditing.training_steps.training_steps`.
        with_base: audit the base as step 0.
        reference_model: name of another reference model, or "none".
        settings: of every audit; by default :class:`AuditSettings` without detectors.
        preset: see :func:`memorization.audit`.

    Raises:
        InputError: checkpoints that cannot be put in order or do not exist, or anything that an audit refuses.
        Interrupted: Ctrl-C; the same call goes on.
    """
    gathered = gather(suspects, controls)
    settings = settings or AuditSettings(detectors=())
    ordered = training_steps(checkpoints, steps)
    points = planned_checkpoints(base, checkpoints, ordered, with_base=with_base, reference_model=reference_model)
    config = _config(base, points, gathered, settings, ordered.unit, choose_preset(preset, base.name).name)
    try:
        with open_shared(out, config=config, kind="audit-trend", provenance={"steps from": ordered.source}) as run:
            summaries = []
            for number, point in enumerate(points, start=1):
                say(f"{ordered.unit} {point.step}, {number} of {len(points)}: {Path(out) / point.folder}")
                result = audit(point.model, gathered, out=Path(out) / point.folder, settings=settings, preset=preset)
                summaries.append(result.summary)
            prompts = {item.key: item.suspect.caption for item in gathered.items}
            trend: Trend = json.loads(dump_json(summarise_trend(points, summaries, prompts, ordered)))  # as it is read
            if run is not None:
                from memorization.auditing.trend_report import write_trend

                run.write_json("summary.json", trend)
                write_trend(run, trend)
    except Interrupted as stopped:
        raise Interrupted(Path(out)) from stopped
    return TrendResult(Path(out), trend)


def planned_checkpoints(
    base: ModelOptions,
    checkpoints: Sequence[str],
    steps: TrainingSteps,
    *,
    with_base: bool = False,
    reference_model: str | None = None,
) -> list[Checkpoint]:
    """The models to audit, rising in their steps. The base is hashed once, and loaded once for all audits.

    Raises:
        InputError: a model or LoRA that does not exist or cannot be read, or a checkpoint of step 0 beside the base.
    """
    from diffkit.lora import lora_checksum

    for checkpoint in checkpoints:
        replace(base, lora=checkpoint).check()
    first = AuditedModel.from_options(replace(base, lora=checkpoints[0]), reference_model=reference_model)
    shared = cache(base.load)
    if first.reference is not None:
        load = shared if reference_model is None else cache(first.reference.load)
        first = replace(first, reference=first.reference._replace(load=load))
    points = [
        Checkpoint(
            step,
            replace(
                first, load=replace(base, lora=checkpoint).load, lora=Adapter(checkpoint, lora_checksum(checkpoint))
            ),
            f"{steps.unit}-{step}",
        )
        for step, checkpoint in zip(steps.values, checkpoints, strict=True)
    ]
    if with_base:
        if 0 in steps.values:
            raise InputError("A checkpoint is of step 0 already: leave out --with-base, or that checkpoint.")
        reference = None if reference_model is None else first.reference
        points.append(Checkpoint(0, replace(first, load=shared, lora=None, reference=reference), "base"))
    return sorted(points, key=lambda point: point.step)


def _config(
    base: ModelOptions,
    points: Sequence[Checkpoint],
    gathered: Gathered,
    settings: AuditSettings,
    unit: Unit,
    preset: str,
) -> dict[str, Any]:
    """Everything that identifies the trend; what an audit adds (the resolved dtype) is in its own configuration."""
    last = points[-1].model
    named = {"variant": base.variant, "model_config": base.config, "scheduler": base.scheduler}
    reference = last.reference
    items = with_companions(gathered.items, edits=settings.edits, reference=reference is not None)
    return {
        "base": base.name,
        "base_sha256": last.sha256,
        "dtype": base.dtype,
        "preset": preset,
        "unit": unit,
        "checkpoints": [
            {"step": p.step, "sha256": p.model.lora.sha256 if p.model.lora is not None else None} for p in points
        ],
        "reference": None if reference is None else {"model": reference.model, "sha256": reference.model_sha256},
        "data_sha256": data_digest(gathered.items),
        "items": stated_count(item.role for item in items),
        "settings": settings.to_json(),
    } | {key: value for key, value in named.items() if value is not None}


def summarise_trend(
    points: Sequence[Checkpoint], summaries: Sequence[AuditSummary], prompts: Mapping[str, str], steps: TrainingSteps
) -> Trend:
    """The trend as JSON values.

    Args:
        points: rising in their steps.
        summaries: of their audits.
        prompts: caption by key of the suspects.
        steps: where the steps come from.
    """
    last, model = summaries[-1], points[-1].model
    by_step = {
        point.step: {finding["key"]: finding for finding in summary["findings"]}
        for point, summary in zip(points, summaries, strict=True)
    }
    return {
        "schema_version": TREND_SCHEMA,
        "base": model.name,
        "base_sha256": model.sha256,
        "reference_model": None if model.reference is None else model.reference.model,
        "unit": steps.unit,
        "steps_from": steps.source,
        "suspects": last["suspects"],
        "points": [_point(point, summary) for point, summary in zip(points, summaries, strict=True)],
        "by_suspect": [
            _suspect(prompts[key], {step: findings[key] for step, findings in by_step.items()})
            for key in by_step[points[-1].step]
        ],
        "settings": last["settings"],
    }


def _point(point: Checkpoint, summary: AuditSummary) -> TrendPoint:
    lora = point.model.lora
    return {
        "step": point.step,
        "folder": point.folder,
        "lora": None if lora is None else lora.name,
        "lora_sha256": None if lora is None else lora.sha256,
        "verdicts": summary["verdicts"],
        "replicated": summary["rates"]["replicated"],
        "held": rate(sum(summary["verdicts"][verdict] for verdict in HELD), summary["suspects"]),
        "controls_flagged": summary["controls"]["flagged"],
        "controls_failure": summary["controls"]["failure"],
        "items_in_error": items_in_error(summary),
        "rung": summary["rung"],
        "budget": summary["budget"],
        "threshold": summary["operating_point"]["threshold"],
    }


def _suspect(prompt: str, findings: Mapping[int, SuspectResult]) -> TrendSuspect:
    """One suspect, from its findings by step, rising."""
    verdicts = {step: finding["verdict"] for step, finding in findings.items()}
    held = [step for step, verdict in verdicts.items() if verdict in HELD]
    last = list(findings.values())[-1]
    return {
        "key": last["key"],
        "prompt": prompt,
        "kind": last["kind"],
        "first_replicated": next((step for step, verdict in verdicts.items() if verdict == "replicated"), None),
        "first_retained": held[0] if held else None,
        "lost": [step for step, verdict in verdicts.items() if held and step > held[0] and verdict == "not shown"],
        "points": [
            {
                "step": step,
                "verdict": finding["verdict"],
                "caption": finding["caption"],
                "similarity": finding["similarity"],
            }
            for step, finding in findings.items()
        ],
    }
