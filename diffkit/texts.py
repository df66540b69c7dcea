"""Prompts to generate from: files, and scenes of the lab."""

from __future__ import annotations

import json
from pathlib import Path

from diffkit.errors import InputError
from diffkit.prompts import read_suspects

__all__ = ["LAB_SCENES", "read_prompts"]

LAB_SCENES = 300  # how many scenes a lab source has without a limit
SEED = 2026  # of the scenes that the sources below draw; a longer list begins with the shorter one


def read_prompts(source: str | Path, limit: int | None = None) -> list[str]:
    """Prompts of ``lab:train``, ``lab:held-out``, or a .txt, .csv, .tsv, .jsonl or .json file, at most ``limit``.

    A .txt has one prompt a line and a .json a list of strings; the others as :func:`diffkit.prompts.read_suspects`
    reads them. The lab's held-out scenes are in no training set of the lab, nor among ``lab:train``.

    Raises:
        InputError: no such source, a row without a prompt (the message says which), or nothing in it.
    """
    if limit is not None and limit < 1:
        raise InputError(f"The limit must be at least 1, got {limit}.")
    if source in ("lab:train", "lab:held-out"):
        return _scenes(str(source), LAB_SCENES if limit is None else limit)
    if str(source).endswith(".json"):
        return _listed(Path(source))[:limit]
    suspects, errors = read_suspects(source)
    if errors:
        raise InputError(f"{errors[0].source}, row {errors[0].row}: {errors[0].reason}; correct or remove it.")
    return [suspect.caption for suspect in suspects][:limit]


def _scenes(source: str, n: int) -> list[str]:
    from diffkit.lab.world import held_out_scenes, training_scenes

    if source == "lab:held-out":
        captions = [scene.caption for scene in held_out_scenes(n, seed=SEED)]
    else:  # scenes come back among many; their captions must not
        captions = list(dict.fromkeys(scene.caption for scene in training_scenes(2 * n + 40, seed=SEED)))[:n]
    if len(captions) < n:
        raise InputError(f"{source} has only {len(captions)} different scenes, not {n}; lower --limit.")
    return captions


def _listed(path: Path) -> list[str]:
    try:
        prompts = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"Cannot read prompts from {path}: {error}.") from error
    if not isinstance(prompts, list) or not prompts or any(not isinstance(p, str) or not p.strip() for p in prompts):
        raise InputError(f"{path} must be a non-empty JSON list of prompts, each a string with words.")
    return prompts
