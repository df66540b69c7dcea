"""The rewards that the TTSnap authors published: one YAML file a step, in one of their two layouts.

``{0: [score, ...]}``
    Of their simulation (``simulation/values/flux_imr_val_base``): numbered prompts, scores in the candidates' order.
``{p0000: {id000: score}}``
    Of their training data, named as the folders of their pictures. Numbers of the first layout get these names, so
    that both can stand together.
"""

from __future__ import annotations

import math
import re
from collections.abc import Container, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import yaml
from numpy.typing import NDArray

from diffkit.errors import InputError

__all__ = ["YAML_NAME", "StepRewards", "read_yaml_rewards"]

YAML_NAME = re.compile(r".*_s(\d+)\.ya?ml")
PROMPT, CANDIDATE = "p{:04d}", "id{:03d}"
_SafeLoader: type = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the same safe subset, ten times as fast


class _Loader(_SafeLoader):  # type: ignore[misc]
    """The safe loader, but a key that stands twice is refused, where PyYAML would keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[object, object]:
        """See the class."""
        mapping: dict[object, object] = super().construct_mapping(node, deep=deep)
        if len(mapping) < len(node.value):
            raise yaml.constructor.ConstructorError(None, None, "a key stands twice", node.start_mark)
        return mapping


class StepRewards(NamedTuple):
    """Scores (P, N, T) float64 with NaN where a file, a prompt or a candidate is missing.

    The names of prompts and candidates rise by the numbers in them.
    """

    scores: NDArray[np.float64]
    prompts: tuple[str, ...]
    candidates: tuple[str, ...]


def read_yaml_rewards(folder: Path, *, like: StepRewards | None = None) -> StepRewards:
    """Read every ``*_sNN.yaml`` of a folder; NN is the step index and T one more than the largest.

    Args:
        like: take the prompts, candidates and T of these instead.

    Raises:
        InputError: no such file, not the expected content, a score that is not a number, a name that stands twice, or
            a prompt, a candidate or a step that ``like`` does not have.
    """
    files = sorted((int(match[1]), file) for file in folder.iterdir() if (match := YAML_NAME.fullmatch(file.name)))
    if not files:
        raise InputError(f"There is no file like p200_i200_s00.yaml in {str(folder)!r}.")
    steps = [step for step, _ in files]
    if len(set(steps)) < len(steps):
        raise InputError(f"{str(folder)!r} holds two files of one step; keep one set of rewards in a folder.")
    contents = {step: _read(file) for step, file in files}
    prompts = _rising(prompt for content in contents.values() for prompt in content)
    candidates = _rising(candidate for content in contents.values() for row in content.values() for candidate in row)
    calls = max(steps) + 1
    if like is not None:
        _within(folder, "the prompt", prompts, like.prompts)
        _within(folder, "the candidate", candidates, like.candidates)
        _within(folder, "the step", steps, range(like.scores.shape[2]))
        prompts, candidates, calls = like.prompts, like.candidates, like.scores.shape[2]
    scores = np.full((len(prompts), len(candidates), calls), np.nan)
    for step in steps:
        rows = [contents[step].get(prompt, {}) for prompt in prompts]
        scores[:, :, step] = [[row.get(candidate, math.nan) for candidate in candidates] for row in rows]
    return StepRewards(scores, prompts, candidates)


def _rising(names: Iterable[str]) -> tuple[str, ...]:
    """Each name once, ordered by the numbers in it: p2 before p10."""
    return tuple(sorted(set(names), key=lambda name: [
        int(part) if place % 2 else part for place, part in enumerate(re.split("([0-9]+)", name))
    ]))  # fmt: skip


def _within(folder: Path, what: str, names: Iterable[object], allowed: Container[object]) -> None:
    unknown = [str(name) for name in names if name not in allowed]
    if unknown:
        more = f" and {len(unknown) - 1} more" if unknown[1:] else ""
        raise InputError(f"{str(folder)!r} has {what} {unknown[0]}{more}, of which there is no final reward; complete "
                         "the plain rewards or take it out.")  # fmt: skip


def _read(file: Path) -> dict[str, dict[str, float]]:
    try:
        content = yaml.load(file.read_bytes(), Loader=_Loader)  # safe: see _Loader
        table = {_name(prompt, PROMPT): _scores(row) for prompt, row in content.items()}
        if len(table) < len(content):
            raise ValueError("a prompt stands twice, by its number and by its name")
    except (OSError, yaml.YAMLError, AttributeError, TypeError, ValueError) as error:
        raise InputError(
            f"Cannot read rewards from {str(file)!r}; expected {{0: [score, ...]}} or {{p0000: {{id000: score}}}}: "
            f"{type(error).__name__}: {error}."
        ) from error
    if not any(table.values()):
        raise InputError(f"There are no rewards in {str(file)!r}.")
    return table


def _scores(row: Mapping[object, float] | list[float]) -> dict[str, float]:
    """Scores of one prompt by the names of its candidates."""
    pairs: list[tuple[object, float]] = list(enumerate(row)) if isinstance(row, list) else list(row.items())
    if any(isinstance(score, bool) for _, score in pairs):
        raise TypeError("true or false is no score")
    scores = {_name(candidate, CANDIDATE): float(score) for candidate, score in pairs}
    if len(scores) < len(pairs):
        raise ValueError("a candidate stands twice, by its number and by its name")
    return scores


def _name(key: object, pattern: str) -> str:
    """A number as the published folders are called, anything else as it stands."""
    return pattern.format(key) if isinstance(key, int) else str(key)
