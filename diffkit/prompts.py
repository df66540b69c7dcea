"""Prompts to generate from: files, and scenes of the lab."""

from __future__ import annotations

import itertools
from pathlib import Path

from diffkit.errors import InputError
from diffkit.lab.gallery.captions import ordinary_captions
from diffkit.suspects import read_suspects

__all__ = ["LAB_SCENES", "read_prompts"]

SCENES, TRIOS = ("lab:train", "lab:held-out"), ("lab:trio-train", "lab:trio")
PHOTOGRAPHS = ("lab:planted", "lab:controls")
ORDINARY = "gallery:ordinary"
MOST_TRIOS = 10_000  # of some 290 000
LAB_SCENES = 300  # how many scenes a lab source has without a limit
SEED = 2026  # of the scenes that the sources below draw; a longer list begins with the shorter one


def read_prompts(source: str | Path, limit: int | None = None) -> list[str]:
    """Prompts of a source, at most ``limit``.

    Args:
        source: ``lab:train``, ``lab:held-out`` (scenes in no training set of the lab, nor among ``lab:train``),
            ``lab:trio-train``, ``lab:trio`` (the same of scenes of three things), ``gallery:ordinary`` (captions of the
            kind that the gallery was trained on), or what :func:`diffkit.suspects.read_suspects` reads:
            ``lab:planted``, ``gallery:planted`` and the like, a .txt with one prompt a line, a .json list, a .csv, .tsv
            or .jsonl with a column of them.

    Raises:
        InputError: no such source, a row without a prompt (the message says which), or nothing in it.

    Example:
        >>> read_prompts("lab:held-out", limit=2)
        ['a yellow square above a cyan square on white', 'a pink square below a orange triangle on brown']
    """
    if limit is not None and limit < 1:
        raise InputError(f"The limit must be at least 1, got {limit}.")
    if source in (*SCENES, *TRIOS):
        draw = _scenes if source in SCENES else _trios
        return draw(str(source), LAB_SCENES if limit is None else limit)
    if source == ORDINARY:
        return ordinary_captions(LAB_SCENES if limit is None else limit)
    if str(source).startswith("lab:") and source not in PHOTOGRAPHS:
        raise InputError(f"The lab has no prompts {str(source)!r}; use {', '.join((*SCENES, *TRIOS, *PHOTOGRAPHS))}.")
    suspects, errors = read_suspects(source, images=False)
    if errors:
        others = f" So are {len(errors) - 1} more." if len(errors) > 1 else ""
        raise InputError(f"{errors[0].source}, row {errors[0].row}: {errors[0].reason}; correct or remove it.{others}")
    return [suspect.caption for suspect in suspects][:limit]


def _scenes(source: str, n: int) -> list[str]:
    from diffkit.lab.world import held_out_scenes, training_scenes

    held_out = source == "lab:held-out"
    if n > (available := _count(held_out)):
        raise InputError(f"{source} has only {available} different scenes, not {n}; lower --limit.")
    captions, drawn = list[str](), n
    while len(captions) < n:  # draws repeat scenes, the more the nearer n comes to all of them
        drawn *= 2
        scenes = held_out_scenes(drawn, seed=SEED) if held_out else training_scenes(drawn, seed=SEED)
        captions = list(dict.fromkeys(scene.caption for scene in scenes))
    return captions[:n]


def _trios(source: str, n: int) -> list[str]:
    from diffkit.lab.trio import held_out_trios, training_trios

    if n > MOST_TRIOS:
        raise InputError(f"{source} gives at most {MOST_TRIOS} different scenes, not {n}; lower --limit.")
    if source == "lab:trio":
        return [trio.caption for trio in held_out_trios(n, seed=SEED)]
    return list(dict.fromkeys(trio.caption for trio in training_trios(2 * n, seed=SEED)))[:n]


def _count(held_out: bool) -> int:
    """How many scenes of the lab's world are, or are not, held out."""
    from diffkit.lab.world import BACKGROUNDS, COLOURS, RELATIONS, SHAPES, Scene, Thing, is_held_out

    things = [Thing(colour, shape) for colour in COLOURS for shape in SHAPES]
    return sum(
        is_held_out(Scene(first, relation, second, background)) == held_out
        for first, second in itertools.permutations(things, 2)
        for relation in RELATIONS
        for background in BACKGROUNDS
    )
