"""What a trend over checkpoints writes: summary.json, a JSON schema of which is in ``docs/schemas``."""

from __future__ import annotations

from typing_extensions import TypedDict

from diffkit.stats import Rate
from memorization.auditing.result import SettingsValues
from memorization.auditing.training_steps import Unit
from memorization.auditing.verdicts import Verdict


class TrendPoint(TypedDict):
    """One checkpoint; ``held``: suspects replicated or retained; ``folder``: of its audit; ``lora`` None: the base."""

    step: int
    folder: str
    lora: str | None
    lora_sha256: str | None
    verdicts: dict[Verdict, int]
    replicated: Rate
    held: Rate
    controls_flagged: Rate
    controls_failure: str | None
    items_in_error: int
    rung: str
    budget: int | None
    threshold: float


class SuspectPoint(TypedDict):
    """One suspect at one checkpoint: verdict, similarity by its caption and under the attack, as in the audit."""

    step: int
    verdict: Verdict
    caption: float | None
    similarity: float | None


class TrendSuspect(TypedDict):
    """One suspect: the first step at which its caption gives it, and at which it is replicated or retained.

    ``lost``: later steps at which it is ``not shown``.
    """

    key: str
    prompt: str
    kind: str | None
    first_replicated: int | None
    first_retained: int | None
    lost: list[int]
    points: list[SuspectPoint]


class Trend(TypedDict):
    """The content of summary.json; ``unit``: what a step counts, ``steps_from``: where it was read."""

    schema_version: int
    base: str
    base_sha256: str | None
    reference_model: str | None
    unit: Unit
    steps_from: str
    suspects: int
    points: list[TrendPoint]
    by_suspect: list[TrendSuspect]
    settings: SettingsValues
