"""KID and FID between two sets of images, with a feature extractor that lies on this machine.

FID (Heusel et al. 2017) is biased in the number of images, and differently for each model: it is refused below 10,000
images a side and at unequal numbers. KID (Binkowski et al. 2018) is unbiased: the squared maximum mean discrepancy
under the kernel (x.y / d + 1)^3, here over all images at once, with a bootstrap interval in which a resampled image is
never paired with itself, so that the resamples stay unbiased. Both are distances: 0 = the same distribution, higher =
further apart; KID may fall a little below 0. The two sides must be drawn with different seeds: images of one prompt and
seed resemble each other pair by pair, which makes both distances too small. Features and arithmetic are float64.
Nothing is downloaded.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from diffkit.errors import InputError
from memorization.quality.result import Fidelity

ENOUGH = 10_000  # images a side from which FID is given


class Features(nn.Module):
    """A feature extractor with its name.

    Args:
        module: (B, 3, H, W) float images in [0, 1] to (B, d) features, or (B, N, d) of which the mean is taken.
        name: goes into the result, since distances of other features are not comparable.
    """

    def __init__(self, module: nn.Module, name: str) -> None:
        super().__init__()
        self.module, self.name = module.eval(), name

    def forward(self, images: Tensor) -> Tensor:
        """(B, d) float64 features."""
        features: Tensor = self.module(images)
        return (features.mean(1) if features.ndim == 3 else features).double()


def load_features(extractor: nn.Module | str | Path) -> Features:
    """A module as it is; a file or folder of SSCD weights; or the Inception weights that torch-fidelity names.

    Raises:
        InputError: no such file, or torch-fidelity, which Inception's file needs, is not installed.
    """
    if isinstance(extractor, Features):
        return extractor
    if isinstance(extractor, nn.Module):
        return Features(extractor, type(extractor).__name__)
    file = Path(extractor).expanduser()
    if file.is_file() and "inception" in file.name:
        return Features(_Inception(file), f"Inception-v3 (2048), {file.name}")
    if file.exists():
        from memorization.copies.sscd import SSCDSimilarity

        detector = SSCDSimilarity(file)
        return Features(_Prepared(detector), f"SSCD; {detector.preprocessing}")
    raise InputError(
        f"There is no feature extractor at {file}: give SSCD's folder, or pt_inception-2015-12-05-6726825d.pth with "
        "torch-fidelity installed."
    )


class _Inception(nn.Module):
    """Inception's pooled features by torchmetrics, from a local file; images become 8-bit as its authors have them."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        from torchmetrics.image.fid import FrechetInceptionDistance

        try:
            metric = FrechetInceptionDistance(feature=2048, feature_extractor_weights_path=str(file))
        except ModuleNotFoundError as error:
            raise InputError(f"Reading {file.name} takes torch-fidelity: pip install torch-fidelity.") from error
        self.inception = metric.inception

    def forward(self, images: Tensor) -> Tensor:
        """(B, 2048)."""
        features: Tensor = self.inception((images * 255).round().byte())
        return features


class _Prepared(nn.Module):
    """SSCD with its own preparation."""

    def __init__(self, detector: Any) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, images: Tensor) -> Tensor:
        """(B, dims)."""
        described: Tensor = self.detector.describe(images)
        return described


@torch.no_grad()
def fidelity(
    before: Tensor,
    after: Tensor,
    extractor: nn.Module | str | Path,
    *,
    micro_batch: int = 32,
    resamples: int = 500,
    seed: int = 0,
) -> Fidelity:
    """KID with its interval, and FID where there are enough images, as JSON values.

    Args:
        before: (n, 3, H, W) in [0, 1]; ``after`` as many.
        extractor: see :func:`load_features`.
        micro_batch: images through the extractor at once.
        resamples: of the bootstrap over images.
        seed: of the bootstrap.

    Raises:
        InputError: unequal numbers of images, fewer than two, or features that are not numbers.
    """
    if len(before) != len(after) or len(before) < 2:
        raise InputError(
            f"KID and FID compare equal numbers of images, at least 2 a side, since both depend on the number: got "
            f"{len(before)} and {len(after)}; draw as many on both sides."
        )
    features = load_features(extractor)
    first, second = (torch.cat([features(part).cpu() for part in side.split(micro_batch)]) for side in (before, after))
    if not (first.isfinite().all() and second.isfinite().all()):
        raise InputError(f"The feature extractor {features.name!r} returned values that are not numbers.")
    resampled = bootstrap_kid(first, second, resamples=resamples, seed=seed)
    low, high = np.quantile(resampled, [0.025, 0.975]) if resampled else (None, None)
    enough = len(first) >= ENOUGH
    return {
        "n": len(first),
        "features": features.name,
        "kid": {"mean": kid(first, second), "low": _number(low), "high": _number(high)},
        "fid": fid(first, second) if enough else None,
        "fid_reason": None if enough else f"fewer than {ENOUGH} images a side; FID would mostly measure their number",
    }


def _number(value: float | None) -> float | None:
    return None if value is None else float(value)


def kid(before: Tensor, after: Tensor) -> float:
    """Unbiased squared maximum mean discrepancy of (n, d) features, over all of them, by torchmetrics."""
    from torchmetrics.image.kid import KernelInceptionDistance

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*save all extracted features.*")
        metric = KernelInceptionDistance(feature=_given(before), subsets=1, subset_size=len(before)).set_dtype(
            torch.float64
        )
    metric.update(before, real=True)
    metric.update(after, real=False)
    return float(metric.compute()[0])


def fid(before: Tensor, after: Tensor) -> float:
    """Fréchet distance of the Gaussians fitted to (n, d) features, by torchmetrics, float64."""
    from torchmetrics.image.fid import FrechetInceptionDistance

    metric = FrechetInceptionDistance(feature=_given(before)).set_dtype(torch.float64)
    metric.update(before, real=True)
    metric.update(after, real=False)
    return float(metric.compute())


def _given(features: Tensor) -> nn.Module:
    """An extractor for torchmetrics that passes on features computed already."""
    identity = nn.Identity()
    identity.num_features = features.shape[1]  # type: ignore[assignment]
    return identity


def bootstrap_kid(before: Tensor, after: Tensor, *, resamples: int, seed: int) -> Sequence[float]:
    """KID of so many resamples of the images of both sides, without the pairs of an image with itself.

    A resample that is one image all over has no pair and is left out; only with a handful of images does it happen.
    """
    from torchmetrics.image.kid import poly_kernel

    n = len(before)
    generator = np.random.default_rng(seed)
    draws = [torch.from_numpy(generator.multinomial(n, [1 / n] * n, size=resamples)).double() for _ in range(2)]
    within = [_within(features, weights) for features, weights in zip((before, after), draws, strict=True)]
    across = ((draws[0] @ poly_kernel(before, after)) * draws[1]).sum(1) / n**2
    distances = within[0] + within[1] - 2 * across
    finite: list[float] = distances[distances.isfinite()].tolist()
    return finite


def _within(features: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean kernel over pairs of different images, for each row of (resamples, n) weights."""
    from torchmetrics.image.kid import poly_kernel

    kernel = poly_kernel(features, features).fill_diagonal_(0)
    pairs = weights.sum(1).square() - weights.square().sum(1)
    return ((weights @ kernel) * weights).sum(1) / pairs
