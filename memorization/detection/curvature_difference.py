"""Curvature difference: the image is memorized where the caption makes the density sharper at the last step.

arXiv 2605.26756 (ICML 2026): per pixel ``diag(-H_c) - diag(-H_empty)``, with H the Jacobian of the score
``s = -eps / sqrt(1 - abar)`` at the last denoising step, summed over channels, negative values cut off. The diagonal
comes from Hutchinson's estimator, E[v * (J^T v)] with v of random signs: 16 vector-Jacobian products, no forward-mode
derivative. The map is high in a template's fixed layout and low in its varying region.

Where we differ: the signs of a row come from a generator seeded by that row's own seed; and as a detector the paper's
map is reduced to one number, its mean, which is our own choice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from diffkit.errors import InputError, ScoringError
from diffkit.families import Pipeline
from diffkit.parameterization import coefficients
from diffkit.sampling_steps import before_steps
from diffkit.seeds import generators
from memorization.detection.base import Need
from memorization.detection.compatibility import incompatibility
from memorization.detection.denoiser_queries import DenoiserBatch, batches, noise_or_output
from memorization.detection.generation_detector import Finish, GenerationDetector, denoise
from memorization.text_embeddings import empty_text, encoded

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from memorization.generation import Sampling

DRAWS = 16


def hutchinson_diagonal(
    function: Callable[[Tensor], Tensor], x: Tensor, *, draws: int, sources: Sequence[torch.Generator]
) -> Tensor:
    """Estimate the diagonal of the Jacobian of ``function`` at x by ``draws`` vector-Jacobian products.

    Unbiased; exact for a diagonal Jacobian. The variance of an element is the sum of squares of the other elements of
    its row, symmetrically counted, over ``draws``.

    Args:
        function: (B, ...) to (B, ...), each row on its own.
        x: (B, ...) point of evaluation.
        draws: sign vectors, at least 1.
        sources: B generators on the CPU.

    Returns:
        (B, ...) float32.
    """
    total = torch.zeros_like(x, dtype=torch.float32)
    point = x.detach().requires_grad_()
    with torch.enable_grad():
        value = function(point)
        for draw in range(draws):
            rows = [torch.randint(0, 2, x.shape[1:], generator=source) for source in sources]
            signs = (2 * torch.stack(rows) - 1).to(value)
            (product,) = torch.autograd.grad(value, point, signs, retain_graph=draw + 1 < draws)
            total += signs.float() * product.float()
    return total / draws


def curvature_map(noise_diagonal: Tensor, sigma: float) -> Tensor:
    """Per-pixel curvature difference from the diagonal of the noise difference's Jacobian.

    Args:
        noise_diagonal: (B, C, h, w) diagonal of the Jacobian of ``eps(x, c) - eps(x, empty)``.
        sigma: sqrt(1 - abar) of the timestep, or a flow model's sigma; s = -eps / sigma, so -H is the Jacobian of
            eps / sigma.

    Returns:
        (B, h, w), >= 0; higher = more likely memorized at this pixel.
    """
    return (noise_diagonal.float() / sigma).sum(1).clamp(min=0)


@contextmanager
def last_input(pipe: Pipeline) -> Iterator[list[tuple[Tensor, float]]]:
    """Keep the denoiser's input at the latest step: latents, not doubled for guidance, and timestep."""
    kept: list[tuple[Tensor, float]] = []

    def keep(timestep: Tensor, latents: Tensor) -> None:
        scale = getattr(pipe.scheduler, "scale_model_input", None)
        scaled = latents if scale is None else scale(latents, timestep)
        kept[:] = [(scaled.detach().clone(), float(timestep))]

    with before_steps(pipe, keep):
        yield kept


class CurvatureDifference(GenerationDetector):
    """Mean of the curvature-difference map at the last step of a generation.

    Args:
        draws: sign vectors of the estimator; the authors use 16 and find 1 nearly as good.

    Raises:
        InputError: fewer than one draw.
    """

    name = "curvature_difference"
    needs: frozenset[Need] = frozenset({"gradient", "map", "noise_level", "trajectory", "unconditional"})

    def __init__(self, draws: int = DRAWS) -> None:
        if draws < 1:
            raise InputError(f"The curvature difference needs at least 1 draw, got {draws}.")
        super().__init__()
        self.draws = draws

    def maps(self, pipe: DiffusionPipeline, batch: DenoiserBatch, latents: Tensor, step: float) -> Tensor:
        """(B, h, w) float32 maps, one for each row of a batch, at the denoiser's last input."""

        def difference(x: Tensor) -> Tensor:
            with_caption, without = (
                noise_or_output(pipe, x, step, rows) for rows in (batch.conditional, batch.unconditional)
            )
            return with_caption - without

        diagonal = hutchinson_diagonal(difference, latents, draws=self.draws, sources=generators(batch.seeds))
        return curvature_map(diagonal, float(coefficients(pipe.scheduler, step).noise))

    @contextmanager
    def observe(
        self, pipe: DiffusionPipeline, batch: DenoiserBatch, sampling: Sampling, ends: Sequence[int] | None
    ) -> Iterator[Finish]:
        """See :class:`memorization.detection.generation_detector.GenerationDetector`."""
        with last_input(pipe) as kept:
            yield lambda _latents: self.maps(pipe, batch, *kept[0]).mean((1, 2))

    def cost(self, sampling: Sampling) -> float:
        """A generation, one pair of passes, and a backward pass (two forwards) through the pair for every draw."""
        return super().cost(sampling) + 2.0 + 4.0 * self.draws


def mask_for(
    pipe: DiffusionPipeline, caption: str, seeds: Sequence[int], *, sampling: Sampling, draws: int = DRAWS
) -> Tensor:
    """Map of the memorized region of a caption's image, for the report.

    Args:
        seeds: of the generations; their maps are averaged, which shows a template's fixed part.
        sampling: of the generations.

    Returns:
        (H, W) float32 in [0, 1] at the size of the images, the brightest pixel 1; zero everywhere if the caption
        makes the density sharper at no pixel.

    Raises:
        ScoringError: the map is not finite (half precision), or the family has no such map.
    """
    detector = CurvatureDifference(draws)
    if (reason := incompatibility(pipe, detector)) is not None:
        raise ScoringError(reason)
    embeds, empty = encoded(pipe, [caption]).expand(len(seeds)), empty_text(pipe)
    parts = []
    for batch in batches(pipe, embeds, empty, seeds, sampling):
        with last_input(pipe) as kept:
            denoise(pipe, batch, sampling)
        parts.append(detector.maps(pipe, batch, *kept[0])[: batch.real])
    curvature = torch.cat(parts).mean(0)
    if not bool(curvature.isfinite().all()):
        raise ScoringError("the curvature map is not finite: add --dtype float32 and a new --out")
    scale = int(pipe.vae_scale_factor)
    large = torch.nn.functional.interpolate(curvature[None, None], scale_factor=scale, mode="bilinear")[0, 0]
    return (large / large.max().clamp(min=1e-12)).cpu()
