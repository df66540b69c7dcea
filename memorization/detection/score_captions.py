"""Score captions by detectors, with several seeds each; a score that is not finite is unknown, with the reason."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from diffkit.errors import InputError, ScoringError
from diffkit.families import family_of
from diffkit.families.base import stock_default
from memorization.detection.base import Detector
from memorization.detection.compatibility import incompatibility
from memorization.detection.generation_detector import GenerationDetector, score_shared_generation
from memorization.text_embeddings import empty_text, encoded

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from memorization.generation import Sampling

__all__ = ["CaptionScore", "caption_score", "end_tokens", "score_by_all", "score_captions"]


@dataclass(frozen=True)
class CaptionScore:
    """A detector's score of one caption.

    Attributes:
        value: mean over the seeds; None where a seed's score is unknown, since means over different seeds cannot be
            compared.
        scores: of every seed, None where not finite.
        reason: why the value is missing.
    """

    value: float | None
    scores: tuple[float | None, ...]
    reason: str | None = None


def caption_score(scores: Tensor | Sequence[float], *, half_precision: bool = False) -> CaptionScore:
    """Mean of one caption's scores over its seeds; not finite anywhere = unknown."""
    values = [float(score) for score in scores]
    finite = tuple(value if math.isfinite(value) else None for value in values)
    broken = sum(value is None for value in finite)
    if broken or not values:
        advice = ": add --dtype float32 and a new --out" if half_precision else ""
        return CaptionScore(None, finite, f"{broken} of {len(values)} seeds gave no finite score{advice}")
    return CaptionScore(sum(values) / len(values), finite)


def end_tokens(pipe: DiffusionPipeline, captions: Sequence[str]) -> list[int] | None:
    """Position of the end token of every caption, as the pipeline's own tokenizer pads and cuts it.

    None where the family's text has no single end (see :mod:`memorization.detection.compatibility`).
    """
    family = family_of(pipe)
    if family.end_token is None:
        return None
    tokenizer = getattr(pipe, family.end_token)
    longest = stock_default(family, "max_sequence_length") or tokenizer.model_max_length
    positions = []
    for caption in captions:
        ids = tokenizer(caption, padding="max_length", max_length=longest, truncation=True).input_ids
        positions.append(ids.index(tokenizer.eos_token_id))
    return positions


def score_captions(
    pipe: DiffusionPipeline,
    captions: Sequence[str],
    detector: Detector,
    seeds: Sequence[Sequence[int]],
    *,
    sampling: Sampling,
) -> list[CaptionScore]:
    """Score every caption with its own seeds by one detector; see :func:`score_by_all`."""
    return score_by_all(pipe, captions, {detector.name: detector}, seeds, sampling=sampling)[detector.name]


def score_by_all(
    pipe: DiffusionPipeline,
    captions: Sequence[str],
    detectors: Mapping[str, Detector],
    seeds: Sequence[Sequence[int]],
    *,
    sampling: Sampling,
) -> dict[str, list[CaptionScore]]:
    """Score every caption with its own seeds by several detectors; those that score a generation share one.

    A caption's result does not depend on the other captions (up to the arithmetic of a batch), nor on the other
    detectors.

    Args:
        detectors: by key.
        seeds: for every caption the seeds of its initial noise, one or more.
        sampling: of the generation that is judged; ``micro_batch`` rows go through the denoiser at once.

    Returns:
        Key -> one score a caption. Where a detector cannot score this model, all are None with the reason.

    Raises:
        InputError: captions and seeds are not equally many, or a caption has no seed.
    """
    if len(seeds) != len(captions) or any(not own for own in seeds):
        raise InputError(f"Expected at least one seed for each of {len(captions)} captions.")
    if not captions:
        return {key: [] for key in detectors}
    counts = [len(own) for own in seeds]
    rows = encoded(pipe, captions).rows([index for index, count in enumerate(counts) for _ in range(count)])
    empty = empty_text(pipe)
    positions = end_tokens(pipe, captions)
    ends = None if positions is None else [end for end, n in zip(positions, counts, strict=True) for _ in range(n)]
    flat = [seed for own in seeds for seed in own]
    reasons = {key: incompatibility(pipe, detector) for key, detector in detectors.items()}
    scores: dict[str, Tensor | str] = {key: reason for key, reason in reasons.items() if reason is not None}
    shared = {k: d for k, d in detectors.items() if k not in scores and isinstance(d, GenerationDetector)}
    if len(shared) > 1:
        scores |= score_shared_generation(pipe, shared, rows, empty, flat, sampling=sampling, ends=ends)
    for key in detectors.keys() - scores.keys():
        try:
            scores[key] = detectors[key].scores(pipe, rows, empty, flat, sampling=sampling, ends=ends)
        except ScoringError as error:
            scores[key] = str(error)
    half = pipe.dtype != torch.float32
    return {key: _by_caption(scores[key], counts, half) for key in detectors}


def _by_caption(scores: Tensor | str, counts: Sequence[int], half: bool) -> list[CaptionScore]:
    if isinstance(scores, str):
        return [CaptionScore(None, (None,) * count, scores) for count in counts]
    return [caption_score(part, half_precision=half) for part in scores.split(list(counts))]
