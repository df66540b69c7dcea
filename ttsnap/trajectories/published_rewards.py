"""The rewards that the TTSnap authors published: one YAML file a step, in one of their two layouts.

``{0: [score, ...]}``
    Of their simulation (``simulation/values/flux_imr_val_base``): numbered prompts, scores in the candidates' order.
    A candidate is its place in the list, so all lists of a folder must be of one length and of the same prompts.
``{p0000: {id000: score}}``
    Of their training data, named as the folders of their pictures; what is missing is unknown. Numbers of the first
    layout get these names, so that both can stand together.
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
    """Scores (P, N, T) float64 with NaN where a file, a prompt or a candidate is missing; the steps that have a file.

    The names of prompts and candidates rise by the numbers in them.
    """

    scores: NDArray[np.float64]
    prompts: tuple[str, ...]
    candidates: tuple[str, ...]
    steps: tuple[int, ...]


class _Table(NamedTuple):
    """One file: scores by prompt and candidate, and those of its prompts whose scores are a list."""

    rows: dict[str, dict[str, float]]
    listed: frozenset[str]


def read_yaml_rewards(folder: Path, *, like: StepRewards | None = None) -> StepRewards:
    """Read every ``*_sNN.yaml`` of a folder; NN is the step index and T one more than the largest.

    Args:
        like: take the prompts, candidates and T of these instead.

    Raises:
        InputError: no such file, not the expected content, a score that is not a number, a name that stands twice,
            lists that are not all of the same prompts and of one length, or a prompt, a candidate or a step that
            ``like`` does not have.
    """
    files = sorted((int(match[1]), file) for file in folder.iterdir() if (match := YAML_NAME.fullmatch(file.name)))
    if not files:
        raise InputError(f"There is no file like p200_i200_s00.yaml in {str(folder)!r}.")
    steps = [step for step, _ in files]
    if len(set(steps)) < len(steps):
        raise InputError(f"{str(folder)!r} holds two files of one step; keep one set of rewards in a folder.")
    tables = {step: _read(file) for step, file in files}
    _check_lists({file: tables[step] for step, file in files})
    contents = {step: table.rows for step, table in tables.items()}
    prompts = _rising(prompt for content in contents.values() for prompt in content)
    candidates = _rising(candidate for content in contents.values() for row in content.values() for candidate in row)
    calls = max(steps) + 1
    if like is not None:
        _within(folder, "the prompt", prompts, like.prompts)
        _within(folder, "the candidate", candidates, like.candidates)
        _within(folder, "the step", steps, range(like.scores.shape[2]))
        if any(table.listed for table in tables.values()) and (prompts, candidates) != (like.prompts, like.candidates):
            raise InputError(
                f"{str(folder)!r} has lists of {len(prompts)} prompts with {len(candidates)} candidates, the plain "
                f"rewards have {len(like.prompts)} with {len(like.candidates)}; get the folder anew."
            )
        prompts, candidates, calls = like.prompts, like.candidates, like.scores.shape[2]
    scores = np.full((len(prompts), len(candidates), calls), np.nan)
    for step in steps:
        rows = [contents[step].get(prompt, {}) for prompt in prompts]
        scores[:, :, step] = [[row.get(candidate, math.nan) for candidate in candidates] for row in rows]
    return StepRewards(scores, prompts, candidates, tuple(steps))


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


def _check_lists(tables: Mapping[Path, _Table]) -> None:
    """A place in a list names a candidate only where all lists are whole.

    Raises:
        InputError: two lists differ in length, or a prompt with lists is missing in a file.
    """
    first: tuple[str, int, Path] | None = None
    listed = {prompt for table in tables.values() for prompt in table.listed}
    for file, (rows, lists) in tables.items():
        if missing := _rising(listed - rows.keys()):
            more = f" and {len(missing) - 1} more" if missing[1:] else ""
            raise InputError(f"{str(file)!r} lacks the prompt {missing[0]}{more}, which another step of the folder "
                             "has; get the file anew, or take the prompt out of all.")  # fmt: skip
        for prompt in _rising(lists):
            size = len(rows[prompt])
            first = first or (prompt, size, file)
            if size != first[1]:
                raise InputError(f"The prompt {prompt} in {str(file)!r} has {size} scores, the prompt {first[0]} in "
                                 f"{first[2].name!r} has {first[1]}; every list needs all candidates, .nan where a "
                                 "score is unknown.")  # fmt: skip


def _read(file: Path) -> _Table:
    try:
        content = yaml.load(file.read_bytes(), Loader=_Loader)  # safe: see _Loader
        rows = {_name(prompt, PROMPT): _scores(_name(prompt, PROMPT), row) for prompt, row in content.items()}
        if len(rows) < len(content):
            raise ValueError("a prompt stands twice, by its number and by its name")
    except (OSError, yaml.YAMLError, AttributeError, TypeError, ValueError) as error:
        raise InputError(
            f"Cannot read rewards from {str(file)!r}; expected {{0: [score, ...]}} or {{p0000: {{id000: score}}}}: "
            f"{type(error).__name__}: {error}."
        ) from error
    if not any(rows.values()):
        raise InputError(f"There are no rewards in {str(file)!r}.")
    return _Table(rows, frozenset(_name(prompt, PROMPT) for prompt, row in content.items() if isinstance(row, list)))


def _scores(prompt: str, row: Mapping[object, float] | list[float]) -> dict[str, float]:
    """Scores of one prompt by the names of its candidates."""
    pairs: list[tuple[object, float]] = list(enumerate(row)) if isinstance(row, list) else list(row.items())
    scores = {name: _score(f"{prompt} {name}", score) for key, score in pairs for name in (_name(key, CANDIDATE),)}
    if len(scores) < len(pairs):
        raise ValueError("a candidate stands twice, by its number and by its name")
    return scores


def _score(where: str, value: object) -> float:
    """A finite number, or NaN where it says so; ``1e-05`` is text to YAML 1.1."""
    try:
        score = math.inf if isinstance(value, bool) or not isinstance(value, int | float | str) else float(value)
    except ValueError:
        score = math.inf
    if math.isinf(score):
        raise ValueError(f"the score of {where} is {value!r}, expected a finite number, or .nan where it is unknown")
    return score


def _name(key: object, pattern: str) -> str:
    """A number as the published folders are called, anything else as it stands."""
    return pattern.format(key) if isinstance(key, int) else str(key)
