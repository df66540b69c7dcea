"""The summary of a recording: how well the scores at each step rank the candidates, and what a score costs."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ttsnap.alignment import kendall
from ttsnap.reward_tensor import RewardTensor
from ttsnap.trajectories.dataset import Trajectories

__all__ = ["summarise_trajectories"]

SUMMARY_SCHEMA = 1


def summarise_trajectories(trajectories: Trajectories) -> dict[str, Any]:
    """The content of ``summary.json``; what is unknown or infinite (the level of pure noise) is None.

    For each reward: ``tau``, one figure a recorded step, is the mean over prompts of Kendall's tau-b between the
    candidates' scores after that step and their final scores; prompts where it is undefined (a score is missing, or all
    are equal) are left out, and ``tau_prompts`` counts the others. Where lookaheads were recorded, ``lookahead`` lists
    their pairs (step, calls), and ``lookahead_tau`` has one figure each.
    """
    ahead = {"lookahead": [list(pair) for pair in trajectories.lookahead]} if trajectories.lookahead else {}
    return {
        "schema_version": SUMMARY_SCHEMA,
        "prompts": len(trajectories),
        "candidates": trajectories.candidates,
        "steps": list(trajectories.steps),
        "sigmas": [_finite(sigma) for sigma in trajectories.sigmas],
        "log_snrs": [_finite(level) for level in trajectories.log_snrs],
        **ahead,
        "bytes": sum(item["bytes"] for item in trajectories.items()),
        "rewards": {name: _reward(trajectories, name) for name in trajectories.names},
    }


def _reward(trajectories: Trajectories, name: str) -> dict[str, Any]:
    tensor = trajectories.reward_tensor(name)
    defined = [_taus(tensor, step) for step in trajectories.steps]
    ahead = [_mean(_taus(tensor, step, calls)) for step, calls in trajectories.lookahead]
    missing = [item["unscored"][name] for item in trajectories.items() if name in item["unscored"]]
    return {
        "tau": [_mean(values) for values in defined],
        "tau_prompts": [len(values) for values in defined],
        **({"lookahead_tau": ahead} if ahead else {}),
        "unscored": sum(item["count"] for item in missing),
        "reason": missing[0]["reason"] if missing else None,
        "prices": {"FLOP": asdict(trajectories.prices(name)), "s": asdict(trajectories.prices(name, "s"))},
    }


def _taus(tensor: RewardTensor, step: int, calls: int = 0) -> NDArray[np.float64]:
    """Kendall's tau of a look with the final reward, of the prompts where it is defined."""
    values = kendall(tensor.look(step, calls), tensor.final)
    return values[np.isfinite(values)]


def _mean(values: NDArray[np.float64]) -> float | None:
    return float(values.mean()) if len(values) else None


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
