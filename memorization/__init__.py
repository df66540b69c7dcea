"""Which training images a text-to-image model holds, how hard they are to get out, and whether they are still there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from diffkit.lazy import lazy_names

if TYPE_CHECKING:
    from diffkit.suspects import read_suspects
    from memorization.attack.base import Target
    from memorization.attack.dori import Dori
    from memorization.auditing.run import audit
    from memorization.auditing.settings import AuditSettings
    from memorization.comparison.run import compare_audits
    from memorization.copies import load_copy_detector
    from memorization.detection.run import detect
    from memorization.detection.settings import DetectSettings
    from memorization.mitigation.run import mitigate
    from memorization.quality import quality_report

__all__ = [
    "AuditSettings",
    "DetectSettings",
    "Dori",
    "Target",
    "audit",
    "compare_audits",
    "detect",
    "load_copy_detector",
    "mitigate",
    "quality_report",
    "read_suspects",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "AuditSettings": "memorization.auditing.settings",
        "DetectSettings": "memorization.detection.settings",
        "Dori": "memorization.attack.dori",
        "Target": "memorization.attack.base",
        "audit": "memorization.auditing.run",
        "compare_audits": "memorization.comparison.run",
        "detect": "memorization.detection.run",
        "load_copy_detector": "memorization.copies",
        "mitigate": "memorization.mitigation.run",
        "quality_report": "memorization.quality",
        "read_suspects": "diffkit.suspects",
    },
)
