"""The audit in ``diffkit demo``: what pruning hides from the caption, an attack brings back.

``lab`` gives its planted images from their captions. Under the shipped NeMo mask ``lab-nemo`` most captions no longer
do, and DoRI brings the images back; it brings back no control, and nothing on the twin ``lab-clean``, which never saw
the images.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from diffkit.demo import Demonstration

if TYPE_CHECKING:
    from memorization.auditing.result import AuditSummary
    from memorization.auditing.settings import AuditSettings

MASK, TWIN = "lab-nemo", "lab-clean"
SUSPECTS, CONTROLS = 8, 20  # planted verbatim at full strength; 19 controls are the fewest that allow a verdict
HEADERS = ("model", "images", "n", "replicated", "retained", "not shown", "no verdict")


def demonstrate(folder: Path) -> Demonstration:
    """Audit ``lab`` by captions, then ``lab`` under the mask by DoRI; each audit resumes in its subfolder."""
    from diffkit.lab.assets import mitigation_path
    from diffkit.model_options import ModelOptions
    from memorization.auditing.models import AuditedModel
    from memorization.auditing.run import audit
    from memorization.items import gather

    options = ModelOptions(model="lab", mitigation=mitigation_path(MASK))
    masked = AuditedModel.from_options(options, reference_model=TWIN)
    planted = gather("lab:planted", limit=SUSPECTS)
    both = gather("lab:planted", "lab:controls", limit=SUSPECTS, limit_controls=CONTROLS)
    before = audit("lab", planted, out=folder / "lab", settings=settings((0, 1))).summary
    after = audit(masked, both, out=folder / MASK, settings=settings((0, 15, 30))).summary
    files = [(f"report on {name}", folder / name / "report.html") for name in ("lab", MASK)]
    return Demonstration(title(before, after), HEADERS, rows(before, after), files)


def settings(budgets: tuple[int, ...]) -> AuditSettings:
    """Small enough for two cores: one start, two draws a step at twice the published rate, ten sampling steps."""
    from memorization.auditing.settings import AuditSettings

    return AuditSettings(
        budgets=budgets,
        starts=("gaussian",),
        learning_rates=(0.2,),
        draws=2,
        generations=5,
        attack_generations=1,
        num_inference_steps=10,
        items_at_once=8,
    )


def title(before: AuditSummary, after: AuditSummary) -> str:
    """The finding in a sentence, by this run's numbers."""
    given, (hidden, back, *_) = before["verdicts"]["replicated"], _verdicts(after)
    controls, _, of_controls, *_ = _controls(after)
    tried, from_twin, by_attack, *_ = _twin(after)
    return (
        f"Audit: captions give {given} of {before['suspects']} planted images; under a NeMo mask {hidden}, but an "
        f"attack brings {back} back.\nIt brings back {of_controls} of {controls} controls, and {from_twin + by_attack} "
        f"of {tried} planted images from a twin that never saw them."
    )


def rows(before: AuditSummary, after: AuditSummary) -> list[Sequence[object]]:
    """A row a model and group of images, under :data:`HEADERS`."""
    return [
        ("lab", "planted", before["suspects"], *_verdicts(before)),
        (f"lab with {MASK}", "planted", after["suspects"], *_verdicts(after)),
        (f"lab with {MASK}", "controls, never trained", *_controls(after)),
        (f"{TWIN}, never saw them", "planted", *_twin(after)),
    ]


def _verdicts(summary: AuditSummary) -> list[int]:
    """Counts of the verdicts; suspects that could not be scored have none."""
    counts = summary["verdicts"]
    no_verdict = counts["inconclusive"] + counts["could not be scored"]
    return [counts["replicated"], counts["retained"], counts["not shown"], no_verdict]


def _controls(summary: AuditSummary) -> list[int]:
    """Controls in all, those given by their captions, only by the attack, by neither, and not scored."""
    controls = summary["controls"]
    caption, flagged = controls["caption"]["count"], controls["flagged"]["count"]
    neither = controls["total"] - flagged - controls["unscored"]
    return [controls["total"], caption, flagged - caption, neither, controls["unscored"]]


def _twin(summary: AuditSummary) -> list[int]:
    """What the twin gives of the suspects that were attacked on it: how many, by caption, only by the attack, neither.

    Only what could otherwise be called retained needs to be attacked there.
    """
    threshold, rung = summary["operating_point"]["threshold"], summary["rung"]
    pairs = [
        (finding["reference_caption"], finding["rungs"][rung]["reference"])
        for finding in summary["findings"]
        if rung in finding["rungs"]
    ]
    tried = [(-1.0 if caption is None else caption, attack) for caption, attack in pairs if attack is not None]
    by_caption = sum(caption >= threshold for caption, _ in tried)
    by_attack = sum(caption < threshold <= attack for caption, attack in tried)
    return [len(tried), by_caption, by_attack, len(tried) - by_caption - by_attack, 0]
