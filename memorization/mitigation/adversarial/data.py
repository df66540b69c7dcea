"""Training data of adversarial fine-tuning: memorized images, their surrogates and captions, and retention data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from diffkit.console import progress, say
from diffkit.errors import InputError
from diffkit.images import load_image
from diffkit.latents import encode_images
from diffkit.mitigation import apply_mitigation, load_mitigation
from diffkit.parallel import broadcast
from diffkit.prompt_embeds import Embeds
from diffkit.rewards import load_reward
from diffkit.rewards.base import score_checked
from memorization.copies import load_copy_detector
from memorization.generation import Sampling
from memorization.mitigation.adversarial.retention import Retention, read_retention
from memorization.mitigation.adversarial.settings import AdversarialSettings
from memorization.mitigation.adversarial.surrogates import (
    Acceptance,
    Pruning,
    load_surrogates,
    make_surrogates,
    nemo_masks,
    save_surrogates,
)
from memorization.presets import recorded_preset
from memorization.text_embeddings import empty_text, encoded

if TYPE_CHECKING:
    from diffkit.families import Pipeline
    from diffkit.runs import Run
    from diffkit.suspects import Suspect

__all__ = ["TrainingData", "prepare"]


@dataclass(frozen=True, eq=False)
class TrainingData:
    """Training data, all on the CPU, float32.

    Attributes:
        memorized: (M, ...) latents of every image of every suspect, as the denoiser takes them.
        surrogates: M tensors (n, ...), n >= 1.
        captions: each image's caption, M rows.
        empty: the empty caption, one row.
        retention: data whose loss is to stay.
        figures: of the surrogates, for the mitigation's figures.
    """

    memorized: Tensor
    surrogates: list[Tensor]
    captions: Embeds
    empty: Embeds
    retention: Retention
    figures: dict[str, object]


def prepare(
    pipe: Pipeline, suspects: Sequence[Suspect], run: Run | None, settings: AdversarialSettings, size: tuple[int, int]
) -> TrainingData:
    """Read or make the data on the first process, which has the run, and send it to the others.

    Generated images are kept in the run and are not generated twice.

    Raises:
        InputError: see :func:`read_retention`; or an image that cannot be read; on every process.
    """
    data, error = None, None
    if run is not None:
        try:
            data = _prepare(pipe, suspects, run, settings, size)
        except InputError as refused:
            error = str(refused)
    data, error = broadcast((data, error))
    if data is None:
        raise InputError(error or "The first process prepared no data.")
    return data


def _prepare(
    pipe: Pipeline, suspects: Sequence[Suspect], run: Run, settings: AdversarialSettings, size: tuple[int, int]
) -> TrainingData:
    sampling = Sampling(settings.num_inference_steps, settings.guidance_scale, 16)
    retention = read_retention(
        pipe,
        suspects,
        run,
        source=settings.retention,
        preset=recorded_preset(run.record),
        size=size,
        limit=settings.retention_examples,
        validation=settings.validation,
        sampling=sampling,
        seed=settings.seed,
    )
    owners = [i for i, suspect in enumerate(suspects) for _ in suspect.images]
    images = torch.stack([load_image(path, size) for suspect in suspects for path in suspect.images])
    _make_missing(pipe, suspects, run, settings, images, retention)
    surrogates = load_surrogates(run, suspects)
    substitutes = retention.latents[: settings.surrogates]
    latents = [_latents(pipe, part) if part is not None else substitutes for part in surrogates]
    captions = encoded(pipe, [suspect.caption for suspect in suspects]).to("cpu", torch.float32)
    without = [suspect.id for suspect, part in zip(suspects, surrogates, strict=True) if part is None]
    if without:
        say(f"No surrogate was accepted for {', '.join(without)}: retention images are used instead.")
    return TrainingData(
        memorized=_latents(pipe, images),
        surrogates=[latents[i] for i in owners],
        captions=captions.rows(owners),
        empty=empty_text(pipe).to("cpu", torch.float32),
        retention=retention,
        figures=_figures(run, suspects, without),
    )


def _make_missing(
    pipe: Pipeline,
    suspects: Sequence[Suspect],
    run: Run,
    settings: AdversarialSettings,
    references: Tensor,
    retention: Retention,
) -> None:
    """Generate the surrogates of every suspect without a journal line."""
    missing = [suspect for suspect in suspects if f"surrogates:{suspect.id}" not in run.done]
    if not missing:
        return
    accept = Acceptance(
        load_copy_detector(settings.copies),
        references,
        settings.surrogate_similarity,
        _alignment(settings.reward) if settings.reward is not None else None,
        settings.reward_drop,
    )
    ordinary = retention.all_captions[:512]
    pruned = nemo_masks(pipe, suspects, ordinary) if settings.mask is None else _given(pipe, settings.mask)
    sampling = Sampling(settings.num_inference_steps, settings.guidance_scale, min(16, settings.surrogates))
    with progress("surrogates", total=len(missing)) as bar:
        for suspect, accepted in make_surrogates(
            pipe, missing, pruned, accept, n=settings.surrogates, sampling=sampling, seed=settings.seed
        ):
            save_surrogates(run, suspect, accepted)
            bar.advance()


def _alignment(name: str) -> Callable[[Tensor, Sequence[str]], Tensor]:
    reward = load_reward(name)
    sign = 1.0 if reward.higher_is_better else -1.0

    def score(images: Tensor, captions: Sequence[str]) -> Tensor:
        return sign * score_checked(reward, images, captions).values

    return score


def _given(pipe: Pipeline, folder: str) -> Pruning:
    """The user's own pruning, the same for every suspect, applied whole."""
    mitigation = load_mitigation(folder)

    def pruned(strength: int) -> AbstractContextManager[object] | None:
        return apply_mitigation(pipe, mitigation) if strength == 0 else None

    return pruned


def _latents(pipe: Pipeline, images: Tensor) -> Tensor:
    return torch.cat([encode_images(pipe, part).float().cpu() for part in images.split(16)])


def _figures(run: Run, suspects: Sequence[Suspect], without: Sequence[str]) -> dict[str, object]:
    rows = [run.done[f"surrogates:{suspect.id}"] for suspect in suspects]
    return {
        "accepted": sum(len(row["files"]) for row in rows),
        "refused copies": sum(row["refused copies"] for row in rows),
        "off topic": sum(row["off topic"] for row in rows),
        "highest similarity": max((value for row in rows for value in row["similarity"]), default=None),
        "without any": list(without),
    }
