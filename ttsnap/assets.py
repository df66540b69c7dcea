"""What ships for a model of the lab: a distilled reward, recorded rewards, and the schedules
and index rules learned from them."""

from __future__ import annotations

from pathlib import Path

from diffkit.errors import InputError

__all__ = ["INDEX", "LOOKAHEAD", "NAMES", "NOISE_AWARE", "REWARDS", "SCHEDULE", "shipped"]

NAMES = ("lab", "lab-trio")  # one folder here for each model
NOISE_AWARE, REWARDS = "noise_aware", "rewards.npz"
SCHEDULE, LOOKAHEAD, INDEX = "schedule.json", "lookahead.json", "index.json"
FOLDER = Path(__file__).parent


def shipped(name: str, part: str) -> Path:
    """One part of what ships for a model.

    Args:
        name: of a model in ``NAMES``.
        part: ``NOISE_AWARE`` (a folder), ``REWARDS``, ``SCHEDULE``, ``LOOKAHEAD`` or ``INDEX``.

    Raises:
        InputError: this installation lacks it.
    """
    path = FOLDER / name / part
    if not path.exists():
        raise InputError(
            f"{name}/{part} is missing from this installation of ttsnap: install it again, or make one with diffkit "
            f"ttsnap collect, distill, rescore and fit, and give its path instead of the name."
        )
    return path
