"""What an audit writes: the record of an item in journal.jsonl, and summary.json.

``docs/schemas`` holds the JSON schemas that ``scripts/json_schemas.py`` makes from these types. A similarity is a copy
detector's, higher = more alike. A value is None where it is unknown; the reason stands beside it.
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
from memorization.auditing.controls import Correction, Stopped
from memorization.auditing.p_values import NullSummary, PowerSummary
from memorization.auditing.verdicts import Verdict
from memorization.copies import OperatingPoint
from memorization.items import EditName, Role

Aggregate = Literal["median", "maximum"]

# ------------------------------------------------------------------------------------------------ journal.jsonl


class DetectorScore(TypedDict):
    """A detector's score of a caption: the mean over seeds, each seed's, and why it is unknown."""

    value: float | None
    scores: list[float | None]
    reason: str | None


class BestImage(TypedDict):
    """The most similar image of one attack at one budget: its start (and learning rate), its similarity."""

    start: str
    similarity: float


#: Attack -> start (with "@rate" where several learning rates are tried) -> similarities, budgets x generations.
Curves = dict[str, dict[str, list[list[float]]]]


class MeasuredRecord(TypedDict):
    """What was measured of one item.

    ``of``: key of the suspect an edit or a reference item belongs to. ``caption``: similarity of each image generated
    from the caption, by seed. ``ceiling``: similarity of the image to itself after the model's autoencoder. ``best``:
    attack -> budget -> image. ``mask``: why a template has no mask. ``reason``: why there is no similarity.
    ``stopped``: attack -> why it ended before its last budget, or was not begun, see
    :mod:`memorization.auditing.effort`; without it the curves end at the pre-set budget.
    """

    id: str
    role: Role
    of: str | None
    edit: EditName | None
    prompt: str
    kind: str | None
    reason: str | None
    seeds: list[int]
    ceiling: list[float] | None
    caption: list[float] | None
    detectors: dict[str, DetectorScore]
    attack: Curves | None
    best: dict[str, dict[str, BestImage]]
    mask: str | None
    sample_gradients: int
    stopped: NotRequired[dict[str, Stopped]]


class AuditRecord(MeasuredRecord):
    """A journal record: the measurements and the files written for them, by paths in the run's folder.

    ``sha256``: checksums of these files by path; version 0.1.0 recorded none.
    """

    pictures: dict[str, str]
    triggers: NotRequired[str]
    sha256: NotRequired[dict[str, str]]


def read_records(items: Mapping[str, Mapping[str, Any]]) -> dict[str, AuditRecord]:
    """Journal records as read from JSON, by key."""
    return {key: cast("AuditRecord", item) for key, item in items.items()}


def repeated_controls_of(summary: Mapping[str, Any]) -> Mapping[str, str]:
    """The ``repeated_controls`` of a summary.json; empty where it has none, or is damaged."""
    clusters = summary.get("clusters")
    return clusters.get("repeated_controls", {}) if isinstance(clusters, dict) else {}


def judged_records(records: Mapping[str, AuditRecord], summary: Mapping[str, Any]) -> dict[str, AuditRecord]:
    """The records that an audit's figures are made of: all but those of controls that repeat another's picture.

    A journal has such records where an audit was begun by an earlier version.
    """
    repeated = repeated_controls_of(summary)
    return {key: record for key, record in records.items() if (record["of"] or key) not in repeated}


# ------------------------------------------------------------------------------------------------- summary.json


class ControlSummary(TypedDict):
    """The controls under one attack, see :class:`~memorization.auditing.controls.ControlCheck`."""

    n: int
    caption: Rate
    by_budget: dict[str, Rate]
    budget: int | None
    smallest_p: float
    failure: str | None
    total: int
    unscored: int


class FlaggedControls(ControlSummary):
    """The controls under the deciding attack, and those reproduced by their caption or by any attack."""

    flagged: Rate
    flagged_keys: list[str]


class BudgetRow(TypedDict):
    """Suspects against controls at one budget of one attack."""

    budget: int
    suspects: Rate
    controls: Rate | None
    suspect_median: float | None
    control_median: float | None
    auc: float | None


class SurvivalStep(TypedDict):
    """One point of a Kaplan-Meier curve, see :class:`~memorization.auditing.kaplan_meier.Step`."""

    work: float
    at_risk: int
    back: int
    share: float
    low: float
    high: float


class MedianWork(TypedDict):
    """Attack steps after which half of a group is reproduced."""

    suspects: float | None
    controls: float | None


class WorkSummary(TypedDict):
    """Attack steps until an image is reproduced: curves, medians, and the log-rank test between the groups."""

    suspects: list[SurvivalStep]
    controls: list[SurvivalStep]
    median: MedianWork
    log_rank_p: float | None


class RungSummary(TypedDict):
    """One attack: its pre-set budget, its controls, its curve, and how many suspects it reproduces."""

    budget: int | None
    controls: ControlSummary
    attack: list[BudgetRow]
    work: WorkSummary
    weakest_for: int
    retained: int
    null: NullSummary
    power: PowerSummary


class GroupShares(TypedDict):
    """Shares reproduced by the caption, and by the deciding attack at its pre-set budget."""

    caption: Rate
    attack: Rate


class AggregationSummary(TypedDict):
    """Shares of suspects and controls under one way to aggregate over seeds."""

    suspects: GroupShares
    controls: GroupShares


class EditRow(TypedDict):
    """One family of edited suspects at one budget."""

    budget: int
    edit_median: float | None
    auc: float | None
    back: Rate


class EditSummary(TypedDict):
    """One family of edited suspects; ``back``: keys of the suspects whose edit is reproduced."""

    n: int
    attack: list[EditRow]
    back: list[str]


class ReferenceSummary(TypedDict):
    """Suspects that the reference model reproduces, by caption and by attack."""

    caption: Rate
    attack: dict[str, Rate]


class DetectorSummary(TypedDict):
    """How well a detector separates the captions of suspects from those of controls."""

    suspects: int
    controls: int
    auc: float | None
    tpr_at_1_fpr: float | None
    reasons: list[str]


class RungResult(TypedDict):
    """One attack on one suspect, see :class:`~memorization.auditing.verdicts.RungFinding`."""

    verdict: Verdict
    reason: str
    budget: int | None
    similarity: float | None
    p: float | None
    q: float | None
    tail_p: float | None
    bulk_p: float | None
    evidence: str | None
    reference: float | None
    similarity_max: float | None


class SuspectResult(TypedDict):
    """One suspect's verdict, see :class:`~memorization.auditing.verdicts.Finding`.

    ``caption`` is the median. ``p`` is the rank p-value, ``tail_p`` that of the controls' tail, ``bulk_p`` that of the
    suspects' bulk; ``evidence`` says which of them decides, and ``q`` is that one corrected.
    """

    key: str
    verdict: Verdict
    reason: str
    rung: str | None
    budget: int | None
    caption: float | None
    similarity: float | None
    p: float | None
    q: float | None
    tail_p: float | None
    bulk_p: float | None
    evidence: str | None
    caption_tail_p: float | None
    caption_q: float | None
    reference_caption: float | None
    rungs: dict[str, RungResult]
    kind: str | None
    seeds: int
    seeds_at_threshold: int
    caption_max: float | None


class ClusterSummary(TypedDict):
    """Verdicts with each cluster of near-duplicate suspects counted once.

    ``repeated_controls``: the controls that were left out since they show the picture of another, and that one's key.
    """

    n: int
    verdicts: dict[Verdict, int]
    rates: dict[Verdict, Rate]
    labels: dict[str, int]
    distinct_controls: int | None
    repeated_controls: NotRequired[dict[str, str]]


class UnreadableRow(TypedDict):
    """A row of the input that could not be read."""

    of: Literal["suspects", "controls"]
    source: str
    row: int
    reason: str


class CostSummary(TypedDict):
    """What the audit computed: sample gradients of the attacks, generated images.

    ``stopped``: how many attacks ended before their last budget or were not begun, by reason.
    """

    stopped: dict[Stopped, int]
    sample_gradients: int
    caption_images: int
    trigger_images: int


class SettingsValues(TypedDict):
    """:class:`~memorization.auditing.settings.AuditSettings` as JSON."""

    attacks: list[str]
    budgets: list[int]
    starts: list[str]
    generations: int
    attack_generations: int
    num_inference_steps: int
    guidance_scale: float
    learning_rates: list[float] | None
    draws: int
    pooled: Literal["fixed", "attacked"]
    size: list[int] | None
    alpha: float
    correction: Correction
    copies: str
    detectors: list[str]
    edits: list[EditName]
    masks: bool
    threshold: float | None
    seed: int
    items_at_once: int
    micro_batch: int | Literal["auto"]
    other_captions: list[str] | None
    attack_all: NotRequired[bool]
    triage: NotRequired[str | None]


class AuditFigures(TypedDict):
    """All figures of an audit, the part of summary.json that follows from the journal."""

    suspects: int
    verdicts: dict[Verdict, int]
    rates: dict[Verdict, Rate]
    clusters: ClusterSummary
    by_kind: dict[str, dict[Verdict, int]]
    rung: str
    budget: int | None
    controls: FlaggedControls
    attack: list[BudgetRow]
    rungs: dict[str, RungSummary]
    aggregation: dict[Aggregate, AggregationSummary]
    edits: dict[EditName, EditSummary]
    reference: ReferenceSummary | None
    detectors: dict[str, DetectorSummary]
    operating_point: OperatingPoint
    findings: list[SuspectResult]
    unreadable: list[UnreadableRow]
    cost: CostSummary
    settings: SettingsValues


class LoraUsed(TypedDict):
    """The LoRA in the audited weights: what the user called it, its file's checksum."""

    name: str
    sha256: str


class MitigationUsed(TypedDict):
    """The mitigation of the audited model: its method, the checksum of its weights."""

    method: str
    sha256: str


class ReferenceUsed(TypedDict):
    """The reference model: what the user called it, the checksum of its weights."""

    model: str
    sha256: str | None


class ModelUsed(TypedDict):
    """Which model was audited."""

    schema_version: int
    model: str
    model_sha256: str | None
    lora: LoraUsed | None
    mitigation: MitigationUsed | None
    reference_model: ReferenceUsed | None


class AuditSummary(ModelUsed, AuditFigures):
    """The content of summary.json.

    ``truncated``: captions longer than a text encoder reads: key -> tokenizer -> tokens that do not count.
    """

    truncated: NotRequired[dict[str, dict[str, int]]]
