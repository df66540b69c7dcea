"""What a detection writes: the record of a caption in journal.jsonl, and summary.json.

``docs/schemas`` holds the JSON schemas that ``scripts/json_schemas.py`` makes from these types. A value is None where
it is unknown; the reason stands beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import (
    Any,
    Literal,
    NotRequired,  # pydantic reads typing's own only from Python 3.12
    cast,
)

from typing_extensions import TypedDict

from diffkit.stats import Rate
from memorization.items import Role


class ScoreRecord(TypedDict):
    """One detector's score of a caption: the mean over seeds, each seed's, and why it is unknown."""

    value: float | None
    seeds: list[float | None]
    reason: str | None


class DetectRecord(TypedDict):
    """A journal record: one caption, its seeds, and its scores by detector."""

    id: str
    role: Role
    prompt: str
    kind: str | None
    seeds: list[int]
    scores: dict[str, ScoreRecord]


def read_records(items: Mapping[str, Mapping[str, Any]]) -> dict[str, DetectRecord]:
    """Journal records as read from JSON, by key."""
    return {key: cast("DetectRecord", item) for key, item in items.items()}


class ThresholdUsed(TypedDict):
    """A detector's threshold, None without one; flagged is what scores strictly higher."""

    value: float | None
    source: str
    false_alarms: Rate | None


class FlaggedCaptions(TypedDict):
    """How many of the scored suspects are flagged, with the exact 95 % interval."""

    count: int
    n: int
    interval: tuple[float, float]


class ScoredCounts(TypedDict):
    """How many captions a detector scored."""

    suspects: int
    controls: int


class DetectorResult(TypedDict):
    """One detector on all captions."""

    threshold: ThresholdUsed
    flagged: FlaggedCaptions | None
    auc_against_controls: float | None
    scored: ScoredCounts


class ScoreResult(TypedDict):
    """One detector on one suspect: its score, p-value against the controls, and whether it is flagged."""

    value: float | None
    p: float | None
    flagged: bool | None
    reason: str | None


class SuspectResult(TypedDict):
    """One suspect; flagged if any detector flags it, None if none has a threshold."""

    id: str
    prompt: str
    kind: str | None
    flagged: bool | None
    scores: dict[str, ScoreResult]


class UnscoredCaption(TypedDict):
    """A caption that a detector could not score."""

    key: str
    detector: str
    reason: str | None


class RowInError(TypedDict):
    """A row of the input that could not be read."""

    source: str
    row: int
    reason: str


class SettingsValues(TypedDict):
    """:class:`~memorization.detection.settings.DetectSettings` as JSON."""

    detectors: list[str]
    seeds: int
    num_inference_steps: int
    guidance_scale: float
    micro_batch: int | Literal["auto"]
    seed: int
    threshold: float | None
    fpr: float


class DetectFigures(TypedDict):
    """The part of summary.json that follows from the journal.

    ``truncated``: captions longer than a text encoder reads: key -> tokenizer -> tokens that do not count.
    """

    suspects: int
    controls: int
    detectors: dict[str, DetectorResult]
    findings: dict[str, SuspectResult]
    flagged: int
    unscored: list[UnscoredCaption]
    truncated: NotRequired[dict[str, dict[str, int]]]


class ModelUsed(TypedDict):
    """Which model was scored, and the settings."""

    schema_version: int
    model: str
    model_sha256: str | None
    mitigation: str | None
    settings: SettingsValues


class DetectSummary(ModelUsed, DetectFigures):
    """The content of summary.json."""

    rows_in_error: list[RowInError]
