"""Triage: attack only the suspects whose captions a cheap detector scores highest.

A detector looks at the caption's own generation and takes seconds where an attack takes minutes. What it ranks low is
not attacked, and the report says so: a memory that the detector does not see is missed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from memorization.auditing.controls import Stopped
from memorization.auditing.models import AuditedModel
from memorization.auditing.settings import AuditSettings, Triage
from memorization.detection.run import detect
from memorization.detection.settings import DetectSettings
from memorization.items import Gathered

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

__all__ = ["FOLDER", "lowest", "not_attacked"]

FOLDER = "triage"  # of the audit's; a run of `diffkit detect`


def lowest(scores: Mapping[str, float | None], share: float) -> set[str]:
    """Keys of those that are left out when a share of all is taken, by the highest scores; ties by their order.

    What could not be scored cannot be ranked, and is taken beyond the share.

    Args:
        scores: by key, higher = likelier memorized.
        share: in (0, 1]; rounded up to whole suspects.

    Example:
        >>> sorted(lowest({"a": 0.9, "b": 0.1, "c": None, "d": 0.5}, 0.5))
        ['b']
    """
    scored = [(score, key) for key, score in scores.items() if score is not None]
    ranked = [key for _, key in sorted(scored, key=lambda pair: -pair[0])]
    return set(ranked[math.ceil(share * len(scores) - 1e-9) :])


def not_attacked(
    audited: AuditedModel, pipe: DiffusionPipeline, gathered: Gathered, settings: AuditSettings, out: Path
) -> dict[str, Stopped]:
    """The suspects that the triage leaves out, by key; their scores are kept in ``triage`` of the run's folder.

    Every process of a launch calls this alike.
    """
    if settings.triage is None:
        return {}
    triage = Triage.read(settings.triage)
    suspects = [item for item in gathered.items if item.role == "suspect"]
    chosen = DetectSettings(
        detectors=(triage.detector,),
        num_inference_steps=settings.num_inference_steps,
        guidance_scale=settings.guidance_scale,
        seed=settings.seed,
        micro_batch=settings.micro_batch,
    )
    mitigation = audited.mitigation.sha256 if audited.mitigation else None
    summary = detect(
        pipe,
        Gathered(suspects, [], []),
        out=out / FOLDER,
        settings=chosen,
        name=audited.name,
        model_sha256=audited.sha256,
        mitigation=mitigation,
    )
    scores = {key: finding["scores"][triage.detector]["value"] for key, finding in summary["findings"].items()}
    return dict.fromkeys(sorted(lowest(scores, triage.share)), "triage")
