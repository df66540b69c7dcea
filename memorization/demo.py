"""The audit in ``diffkit demo``: planted images are found, never-trained ones are not; about two minutes."""

from __future__ import annotations

from pathlib import Path

from diffkit.demo import Demonstration

SUSPECTS, CONTROLS = 12, 20  # 19 controls are the fewest that can give p = 0.05


def demonstrate(folder: Path) -> Demonstration:
    """Audit a part of the lab's planted images, small enough for two cores; resumes in ``folder``."""
    from memorization.auditing.run import audit
    from memorization.auditing.settings import AuditSettings
    from memorization.items import gather

    settings = AuditSettings(
        budgets=(0, 10, 25),
        starts=("other",),
        generations=3,
        attack_generations=1,
        num_inference_steps=20,
        items_at_once=8,
    )
    gathered = gather("lab:planted", "lab:controls", limit=SUSPECTS, limit_controls=CONTROLS)
    summary = audit("lab", gathered, out=folder, settings=settings).summary
    controls, verdicts = summary["controls"], summary["verdicts"]
    by_caption = controls["caption"]["count"]
    by_attack = controls["flagged"]["count"] - by_caption
    rows = [
        ["planted images", summary["suspects"], *(verdicts[name] for name in verdicts)],
        [
            "never-trained controls",
            controls["total"],
            by_caption,
            by_attack,
            controls["total"] - controls["flagged"]["count"] - controls["unscored"],
            None,
            controls["unscored"],
        ],
    ]
    title = f"Audit: which images does the lab hold? (attack judged at budget {summary['budget']})"
    files = [("report", folder / "report.html"), ("pictures", folder / "images")]
    return Demonstration(title, ["images", "n", *verdicts], rows, files)
