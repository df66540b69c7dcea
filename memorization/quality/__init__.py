"""What a mitigation costs: the same prompts and seeds before and after, compared pair by pair.

``quality_report(before, after, prompts)`` does it at once. Where one pipeline serves for both (a mitigation switched on
and off, a training loop that looks up now and then), take a :func:`snapshot` of each state and :func:`compare` them.
"""

from memorization.quality.fidelity import fidelity
from memorization.quality.files import load_snapshot, save_snapshot
from memorization.quality.report import compare, quality_report
from memorization.quality.settings import QualityBudget, QualitySettings, read_quality_prompts
from memorization.quality.snapshots import Snapshot, Validation, snapshot

__all__ = [
    "QualityBudget",
    "QualitySettings",
    "Snapshot",
    "Validation",
    "compare",
    "fidelity",
    "load_snapshot",
    "quality_report",
    "read_quality_prompts",
    "save_snapshot",
    "snapshot",
]
