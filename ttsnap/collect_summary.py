"""What a recording holds, in figures: how well each step ranks what its candidates become, and what it all costs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from scipy.stats import kendalltau

from ttsnap.trajectories import Trajectories

__all__ = ["summarise"]

SUMMARY_SCHEMA = 1


def summarise(found: Trajectories) -> dict[str, Any]:
    """The content of ``summary.json``; what is unknown is None.

    For each reward: ``tau``, one figure a recorded step, is the mean over prompts of Kendall's tau-b between the
    candidates' scores after that step and their final scores; prompts where it is undefined are left out, and
    ``tau_prompts`` counts the others.
    """
    return {
        "schema_version": SUMMARY_SCHEMA,
        "prompts": len(found),
        "candidates": found.candidates,
        "steps": list(found.steps),
        "sigmas": list(found.sigmas),
        "log_snrs": list(found.log_snrs),
        "bytes": sum(item["bytes"] for item in found.items()),
        "rewards": {name: _reward(found, name) for name in found.names},
    }


def _reward(found: Trajectories, name: str) -> dict[str, Any]:
    tensor = found.reward_tensor(name)
    taus = [
        [_tau(look, final) for look, final in zip(tensor.looks[:, :, step], tensor.final, strict=True)]
        for step in found.steps
    ]
    known = [[tau for tau in at_step if math.isfinite(tau)] for at_step in taus]
    missing = [item["unscored"][name] for item in found.items() if name in item["unscored"]]
    return {
        "tau": [sum(values) / len(values) if values else None for values in known],
        "tau_prompts": [len(values) for values in known],
        "unscored": sum(one["count"] for one in missing),
        "reason": missing[0]["reason"] if missing else None,
        "prices": {"FLOP": asdict(found.prices(name)), "s": asdict(found.prices(name, "s"))},
    }


def _tau(look: Sequence[float], final: Sequence[float]) -> float:
    """Kendall's tau-b of the candidates that both have scored, NaN where it is undefined."""
    pairs = [(a, b) for a, b in zip(look, final, strict=True) if math.isfinite(a) and math.isfinite(b)]
    if len({a for a, _ in pairs}) < 2 or len({b for _, b in pairs}) < 2:
        return math.nan
    return float(kendalltau(*zip(*pairs, strict=True)).statistic)
