"""Which of many seeds gives the best image? Seed search that prunes in the middle of denoising."""

from __future__ import annotations

from typing import TYPE_CHECKING

from diffkit.lazy import lazy_names

if TYPE_CHECKING:
    from ttsnap.evaluation.compare import CompareSettings, compare
    from ttsnap.evaluation.simulate import simulate
    from ttsnap.fitting.fit_schedule import fit
    from ttsnap.noise_aware.curriculum import DistillSettings
    from ttsnap.noise_aware.distill import distill
    from ttsnap.noise_aware.reward import NoiseAwareReward
    from ttsnap.pipeline import TTSnapPipeline
    from ttsnap.schedules.load import load_schedule
    from ttsnap.schedules.pruning_schedule import PruningSchedule
    from ttsnap.search.output import TTSnapPipelineOutput
    from ttsnap.search.strategies.rounds import Rounds
    from ttsnap.trajectories.collect import collect
    from ttsnap.trajectories.read import load_tensor
    from ttsnap.trajectories.recorder import CollectSettings

__all__ = [
    "CollectSettings",
    "CompareSettings",
    "DistillSettings",
    "NoiseAwareReward",
    "PruningSchedule",
    "Rounds",
    "TTSnapPipeline",
    "TTSnapPipelineOutput",
    "collect",
    "compare",
    "distill",
    "fit",
    "load_schedule",
    "load_tensor",
    "simulate",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "CollectSettings": "ttsnap.trajectories.recorder",
        "CompareSettings": "ttsnap.evaluation.compare",
        "DistillSettings": "ttsnap.noise_aware.curriculum",
        "NoiseAwareReward": "ttsnap.noise_aware.reward",
        "PruningSchedule": "ttsnap.schedules.pruning_schedule",
        "Rounds": "ttsnap.search.strategies.rounds",
        "TTSnapPipeline": "ttsnap.pipeline",
        "TTSnapPipelineOutput": "ttsnap.search.output",
        "collect": "ttsnap.trajectories.collect",
        "compare": "ttsnap.evaluation.compare",
        "distill": "ttsnap.noise_aware.distill",
        "fit": "ttsnap.fitting.fit_schedule",
        "load_schedule": "ttsnap.schedules.load",
        "load_tensor": "ttsnap.trajectories.read",
        "simulate": "ttsnap.evaluation.simulate",
    },
)
