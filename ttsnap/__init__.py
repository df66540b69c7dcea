"""Which of many seeds gives the best image? Seed search that prunes in the middle of denoising."""

from __future__ import annotations

from typing import TYPE_CHECKING

from diffkit.lazy import lazy_names

if TYPE_CHECKING:
    from ttsnap.pipeline import TTSnapPipeline, TTSnapPipelineOutput
    from ttsnap.schedules.load import load_schedule
    from ttsnap.schedules.pruning_schedule import PruningSchedule
    from ttsnap.search.strategies.rounds import Rounds

__all__ = ["PruningSchedule", "Rounds", "TTSnapPipeline", "TTSnapPipelineOutput", "load_schedule"]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "PruningSchedule": "ttsnap.schedules.pruning_schedule",
        "Rounds": "ttsnap.search.strategies.rounds",
        "TTSnapPipeline": "ttsnap.pipeline",
        "TTSnapPipelineOutput": "ttsnap.pipeline",
        "load_schedule": "ttsnap.schedules.load",
    },
)
