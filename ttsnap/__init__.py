"""Which of many seeds gives the best image? Seed search that prunes in the middle of denoising."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ttsnap.pipeline import TTSnapPipeline, TTSnapPipelineOutput
    from ttsnap.schedules.pruning_schedule import PruningSchedule
    from ttsnap.search.strategies.rounds import Rounds

__all__ = ["PruningSchedule", "Rounds", "TTSnapPipeline", "TTSnapPipelineOutput"]

_HOMES = {
    "PruningSchedule": "ttsnap.schedules.pruning_schedule",
    "Rounds": "ttsnap.search.strategies.rounds",
    "TTSnapPipeline": "ttsnap.pipeline",
    "TTSnapPipelineOutput": "ttsnap.pipeline",
}


def __getattr__(name: str) -> object:
    """Import on first use: `import ttsnap` alone costs no torch."""
    import importlib

    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
