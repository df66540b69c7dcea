"""What a mitigation costs in quality: the same prompts and seeds before and after, compared pair by pair.

:func:`quality_report` compares two pipelines. To compare two states of one pipeline (with and without a mitigation,
before and after training), take a :func:`snapshot` of each and pass them to :func:`compare_snapshots`.
"""

from memorization.quality.fidelity import fidelity
from memorization.quality.files import load_snapshot, save_snapshot
from memorization.quality.report import compare_snapshots, quality_report
from memorization.quality.result import QualityReport
from memorization.quality.settings import QualitySettings, read_quality_prompts
from memorization.quality.snapshots import Snapshot, Validation, snapshot

__all__ = [
    "QualityReport",
    "QualitySettings",
    "Snapshot",
    "Validation",
    "compare_snapshots",
    "fidelity",
    "load_snapshot",
    "quality_report",
    "read_quality_prompts",
    "save_snapshot",
    "snapshot",
]
