"""What a recording holds, in figures: how well each step ranks what its candidates become, and what it all costs."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import numpy as np

from ttsnap.alignment import kendall
from ttsnap.trajectories.dataset import Trajectories

__all__ = ["summarise_trajectories"]

SUMMARY_SCHEMA = 1


def summarise_trajectories(found: Trajectories) -> dict[str, Any]:
    """The content of ``summary.json``; what is unknown or infinite (the level of pure noise) is None.

    For each reward: ``tau``, one figure a recorded step, is the mean over prompts of Kendall's tau-b between the
    candidates' scores after that step and their final scores; prompts where it is undefined (a score is missing, or all
    are equal) are left out, and ``tau_prompts`` counts the others.
    """
    return {
        "schema_version": SUMMARY_SCHEMA,
        "prompts": len(found),
        "candidates": found.candidates,
        "steps": list(found.steps),
        "sigmas": [_finite(sigma) for sigma in found.sigmas],
        "log_snrs": [_finite(level) for level in found.log_snrs],
        "bytes": sum(item["bytes"] for item in found.items()),
        "rewards": {name: _reward(found, name) for name in found.names},
    }


def _reward(found: Trajectories, name: str) -> dict[str, Any]:
    tensor = found.reward_tensor(name)
    taus = [kendall(tensor.looks[:, :, step], tensor.final) for step in found.steps]
    known = [at_step[np.isfinite(at_step)] for at_step in taus]
    missing = [item["unscored"][name] for item in found.items() if name in item["unscored"]]
    return {
        "tau": [float(values.mean()) if len(values) else None for values in known],
        "tau_prompts": [len(values) for values in known],
        "unscored": sum(one["count"] for one in missing),
        "reason": missing[0]["reason"] if missing else None,
        "prices": {"FLOP": asdict(found.prices(name)), "s": asdict(found.prices(name, "s"))},
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
