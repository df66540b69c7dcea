"""The rewards that the TTSnap authors published: one YAML file a step, ``{p0000: {id000: score}}``."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import yaml
from numpy.typing import NDArray

from diffkit.errors import InputError

__all__ = ["YAML_NAME", "StepRewards", "read_yaml_rewards"]

YAML_NAME = re.compile(r".*_s(\d+)\.ya?ml")
_Loader: type = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the same safe subset, ten times as fast


class StepRewards(NamedTuple):
    """Scores (P, N, T) float64 with NaN where a file, a prompt or a candidate is missing, and their names, sorted."""

    scores: NDArray[np.float64]
    prompts: tuple[str, ...]
    candidates: tuple[str, ...]


def read_yaml_rewards(folder: Path, *, like: StepRewards | None = None) -> StepRewards:
    """Read every ``*_sNN.yaml`` of a folder; NN is the step index and T one more than the largest.

    Args:
        like: take the prompts, candidates and T of these instead, and leave out what they do not have.

    Raises:
        InputError: no such file, not the expected content, or a score that is not a number.
    """
    files = sorted((int(match[1]), file) for file in folder.iterdir() if (match := YAML_NAME.fullmatch(file.name)))
    if not files:
        raise InputError(f"There is no file like p200_i200_s00.yaml in {str(folder)!r}.")
    steps = [step for step, _ in files]
    if len(set(steps)) < len(steps):
        raise InputError(f"{str(folder)!r} holds two files of one step; keep one set of rewards in a folder.")
    contents = {step: _read(file) for step, file in files}
    if like is None:
        prompts = tuple(sorted({prompt for content in contents.values() for prompt in content}))
        rows = [row for content in contents.values() for row in content.values()]
        candidates = tuple(sorted({candidate for row in rows for candidate in row}))
        calls = max(steps) + 1
    else:
        prompts, candidates, calls = like.prompts, like.candidates, like.scores.shape[2]
    scores = np.full((len(prompts), len(candidates), calls), np.nan)
    for step in steps:
        if step < calls:
            rows = [contents[step].get(prompt, {}) for prompt in prompts]
            scores[:, :, step] = [[row.get(candidate, math.nan) for candidate in candidates] for row in rows]
    return StepRewards(scores, prompts, candidates)


def _read(file: Path) -> dict[str, dict[str, float]]:
    try:
        content = yaml.load(file.read_bytes(), Loader=_Loader)  # safe: see _Loader
        table = {
            str(prompt): {str(candidate): float(score) for candidate, score in row.items()}
            for prompt, row in content.items()
        }
    except (OSError, yaml.YAMLError, AttributeError, TypeError, ValueError) as error:
        raise InputError(
            f"Cannot read rewards from {str(file)!r}; expected {{p0000: {{id000: score}}}}: "
            f"{type(error).__name__}: {error}."
        ) from error
    if not any(table.values()):
        raise InputError(f"There are no rewards in {str(file)!r}.")
    return table
