"""Quality before and after a mitigation: drift, diversity, text alignment, validation loss, all paired.

Every figure is a mean over prompts (or validation images) with a bootstrap interval over them; differences are taken
pair by pair, same prompt and same seed, before they are averaged. What could not be computed is missing, never 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from diffkit.errors import InputError
from diffkit.rewards.base import RewardLike
from diffkit.stats import bootstrap_mean
from memorization.copies import CopyDetector
from memorization.quality.fidelity import fidelity, load_features
from memorization.quality.losses import unconditional_drift
from memorization.quality.result import Change, Drift, Estimate, FidelityChange, QualityReport, SettingsUsed
from memorization.quality.settings import QualitySettings
from memorization.quality.snapshots import Snapshot, Validation, snapshot

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

SCHEMA = 1


def quality_report(
    before: DiffusionPipeline,
    after: DiffusionPipeline,
    prompts: Sequence[str],
    settings: QualitySettings | None = None,
    *,
    rewards: Sequence[RewardLike] = (),
    copies: str | CopyDetector = "tiled",
    validation: Validation | None = None,
    features: nn.Module | str | Path | None = None,
) -> QualityReport:
    """Compare the quality of two models on the same prompts and seeds: drift, diversity, text alignment, loss.

    Args:
        before: the unchanged pipeline; ``after``: the changed one.
        prompts: different, held out from whatever the change was fitted on.
        settings: of the generations.
        rewards: text alignment, by registered name or as objects; none gives no alignment.
        copies: the copy detector that measures similarity within a prompt.
        validation: images with captions for the loss; by default the first image of each prompt by ``before``.
        features: a feature extractor for KID and FID, see :func:`~memorization.quality.fidelity.load_features`.

    Returns:
        See :func:`compare_snapshots`.

    Example:
        >>> from diffkit import load_pipeline
        >>> from memorization import quality_report
        >>> from memorization.quality import QualitySettings
        >>> pipe = load_pipeline("lab")
        >>> small = QualitySettings(seeds_per_prompt=2, num_inference_steps=2, bins=1, draws=1)
        >>> report = quality_report(pipe, pipe, ["a red circle on gray"], small)
        >>> report["drift"]["relative"]["mean"], report["unconditional"]["all"]["mean"]
        (0.0, 0.0)
    """
    first = snapshot(before, prompts, settings, rewards=rewards, copies=copies, validation=validation)
    second = snapshot(after, prompts, settings, rewards=rewards, copies=copies, validation=first.validation)
    return compare_snapshots(first, second, features=features)


def compare_snapshots(
    before: Snapshot, after: Snapshot, *, features: nn.Module | str | Path | None = None
) -> QualityReport:
    """What changed, as JSON values; each estimate is ``{mean, low, high, n, missing}`` with a 95 % interval.

    ``drift``: root mean square distance to the first model's image of the same prompt and seed: ``latent`` (in the
    first one's units), ``pixel`` (of [0, 1]), and ``relative``, the latent distance over that between two seeds of one
    prompt: 0 = the same picture, 1 = as different as another seed's. ``diversity``: pairwise similarity within a
    prompt, higher = less diverse. ``alignment``: by reward. ``loss``: by bin of timesteps, and over all of them.
    ``unconditional``: by bin, squared distance of the empty prompt's predictions over their mean square.
    ``fidelity``: with ``features`` (see :func:`~memorization.quality.fidelity.load_features`), KID and FID of the first
    model's first half of the seeds against the second model's other half (``change``) and against its own (``null``).

    Raises:
        InputError: the snapshots are of different prompts, settings or validation images.
    """
    _check_pair(before, after)
    losses, blank = (before.losses.loss, after.losses.loss), unconditional_drift(before.losses, after.losses)
    bins = before.losses.bins
    return {
        "schema_version": SCHEMA,
        "prompts": len(before.prompts),
        "settings": cast("SettingsUsed", asdict(before.settings)),
        "drift": _drift(before, after),
        "diversity": {"detector": before.detector, **_change(before.similarity, after.similarity)},
        "alignment": {
            name: {
                "higher_is_better": before.higher_is_better[name],
                **_change(scores.mean(1), after.alignment[name].mean(1)),
            }
            for name, scores in before.alignment.items()
        },
        "validation": {"n": len(before.validation.captions), "source": before.validation.source},
        "loss": {
            "all": _change(*(loss.mean(1) for loss in losses)),
            "bins": [
                {"timesteps": list(bins[b]), **_change(losses[0][:, b], losses[1][:, b])} for b in range(len(bins))
            ],
        },
        "unconditional": {
            "all": estimate(blank.mean(1)),
            "bins": [{"timesteps": list(bins[b]), **estimate(blank[:, b])} for b in range(len(bins))],
        },
        "fidelity": _fidelity(before, after, features),
    }


def _fidelity(before: Snapshot, after: Snapshot, features: nn.Module | str | Path | None) -> FidelityChange | None:
    """Distances of the distributions, by seeds that the two sides do not share; None without features."""
    half = before.settings.seeds_per_prompt // 2
    if features is None:
        return None
    if half == 0:
        raise InputError("KID and FID compare different seeds: give at least 2 seeds per prompt.")
    extractor = load_features(features)
    first, own, other = before.images[:, :half], before.images[:, half : 2 * half], after.images[:, half : 2 * half]
    first, own, other = (images.flatten(0, 1) for images in (first, own, other))
    return {"change": fidelity(first, other, extractor), "null": fidelity(first, own, extractor)}


def _check_pair(before: Snapshot, after: Snapshot) -> None:
    if (before.prompts, before.settings) != (after.prompts, after.settings):
        raise InputError("The two snapshots are of different prompts or settings; take both with the same.")
    if before.alignment.keys() != after.alignment.keys() or before.detector != after.detector:
        raise InputError("The two snapshots have other rewards or another copy detector; take both with the same.")
    first, second = before.validation, after.validation
    if first is not second and (first.captions != second.captions or not torch.equal(first.images, second.images)):
        raise InputError("The two snapshots have other validation images; pass the first one's `validation`.")


def estimate(values: Tensor) -> Estimate:
    """Mean of the finite values with its bootstrap interval; ``missing`` counts the others."""
    finite = [float(value) for value in values.flatten() if math.isfinite(float(value))]
    n, missing = len(finite), values.numel() - len(finite)
    if not finite:
        return {"mean": None, "low": None, "high": None, "n": n, "missing": missing}
    low, high = bootstrap_mean(finite)
    return {"mean": sum(finite) / n, "low": low, "high": high, "n": n, "missing": missing}


def _change(before: Tensor, after: Tensor) -> Change:
    """Both means and the mean of the paired differences."""
    return {"before": estimate(before), "after": estimate(after), "change": estimate(after - before)}


def _drift(before: Snapshot, after: Snapshot) -> Drift:
    latent = _distance(before.latents, after.latents)
    n = before.settings.seeds_per_prompt
    between_seeds = torch.full((len(before.prompts),), float("nan"))
    if n > 1:
        pairs = [(i, j) for i in range(n) for j in range(i)]
        apart = [_rms(before.latents[:, i] - before.latents[:, j], 1) for i, j in pairs]
        between_seeds = torch.stack(apart).mean(0).clamp(min=1e-12)
    return {
        "latent": estimate(latent),
        "pixel": estimate(_distance(before.images, after.images)),
        "relative": estimate(latent / between_seeds),
    }


def _distance(before: Tensor, after: Tensor) -> Tensor:
    """(P,) root mean square distance of pairs, averaged over the seeds; NaN where the shapes differ."""
    if before.shape != after.shape:
        return torch.full((len(before),), float("nan"))
    return _rms(before - after, 2).mean(1)


def _rms(values: Tensor, keep: int) -> Tensor:
    rms: Tensor = values.flatten(keep).square().mean(-1).sqrt()
    return rms
