"""The objective of all attacks: the model's own training loss on the target image, as a function of the embedding.

The rows of a step, one for each draw of each image, go through the denoiser in blocks of constant size. The gradients
of the blocks add up to the gradient of the whole, so memory is bounded by the block and not by images or draws.

The target is the model's own (noise, velocity, flow velocity) and so is the law of its timesteps
(:mod:`diffkit.training_objective`). A denoiser that takes a guidance scale as input gets its pipeline's default one, as
in the usual scripts for its fine-tuning.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from diffkit.conditioning import predict_noise
from diffkit.families import pipe_denoiser
from diffkit.latents import encode_images
from diffkit.prompt_embeds import Embeds
from diffkit.training_objective import draw_timesteps, noised, timesteps_at
from memorization.text_embeddings import Embedded, as_embeds

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from diffkit.families import Scheduler

Denoiser = Callable[[Tensor, Tensor, Embeds], Tensor]
HALF_SCALE = 2.0**14  # a power of two: exact, and keeps float16 gradients above the smallest float16 number


class Draws(NamedTuple):
    """(B, n) timesteps and (B, n, ...) noise shaped as the latents, each image's from its own generator."""

    timesteps: Tensor
    noise: Tensor


class Objective:
    """The plain diffusion loss ``E || target - model(x_t, t, y) ||^2`` of B images, each under its own embedding.

    Args:
        denoiser: (noisy latents (R, ...), timesteps (R,), R rows of embeddings) -> (R, ...), differentiable in the
            embeddings.
        latents: (B, ...) of the images as the denoiser takes them: (B, C, h, w), or (B, tokens, C) packed.
        scheduler: has the noise levels and the prediction type.
        rows: rows through the denoiser at once.
        scale: factor on the loss while it is differentiated, taken out again; for half precision.
    """

    def __init__(
        self, denoiser: Denoiser, latents: Tensor, scheduler: Scheduler, *, rows: int = 64, scale: float = 1.0
    ) -> None:
        self.denoiser, self.latents, self.scheduler = denoiser, latents.float(), scheduler
        self.rows, self.scale = rows, scale

    def draw(self, sources: Sequence[torch.Generator], n: int, *, stratified: bool = False) -> Draws:
        """``n`` draws for each image: timesteps by the training law, noise standard normal, both drawn on the CPU.

        Packed latents get packed noise: independent numbers are the same in any order.

        Args:
            stratified: one timestep in each of n parts of equal probability, which makes the loss vary less.
        """
        shape = (n, *self.latents.shape[1:])
        timesteps, noise = [], []
        for source in sources:
            if stratified:
                shares = (torch.arange(n) + torch.rand(n, generator=source)) / n
                timesteps.append(timesteps_at(self.scheduler, shares))
            else:
                timesteps.append(draw_timesteps(self.scheduler, n, source))
            noise.append(torch.randn(shape, generator=source))
        device = self.latents.device
        return Draws(torch.stack(timesteps).to(device), torch.stack(noise).to(device))

    def gradient(self, embeddings: Embedded, draws: Draws) -> dict[str, Tensor]:
        """Gradients, float32, of each image's mean loss over its draws, at B rows of embeddings.

        Returns:
            ``prompt_embeds`` (B, L, D), and every companion that requires a gradient by its name.
        """
        whole = as_embeds(embeddings)
        free = {name: value.detach() for name, value in whole.companions.items() if value.requires_grad}
        leaves = {"prompt_embeds": whole.prompt_embeds.detach(), **free}
        for leaf in leaves.values():
            leaf.requires_grad_(True)
        rows = whole.replace(**leaves)
        n = draws.timesteps.shape[1]
        totals = [torch.zeros_like(leaf) for leaf in leaves.values()]
        for first in range(0, len(rows) * n, self.rows):
            owner = torch.arange(first, min(first + self.rows, len(rows) * n), device=self.latents.device) // n
            with torch.enable_grad():
                losses = self._losses(rows.rows(owner.tolist()), owner, draws, slice(first, first + self.rows))
                parts = torch.autograd.grad(losses.sum() * (self.scale / n), list(leaves.values()))
            for total, part in zip(totals, parts, strict=True):
                total += part
        return {name: total / self.scale for name, total in zip(leaves, totals, strict=True)}

    @torch.no_grad()
    def loss(self, embeddings: Embedded, draws: Draws) -> Tensor:
        """(B, P) float32 mean loss over the draws of each image under each of its P candidates.

        Args:
            embeddings: (B, P, L, D), or B * P rows, image by image.
            draws: of B images.
        """
        flat = embeddings if isinstance(embeddings, Embeds) else Embeds(embeddings.flatten(0, 1))
        count, n = draws.timesteps.shape
        candidates = len(flat) // count
        losses = []
        for first in range(0, len(flat) * n, self.rows):
            row = torch.arange(first, min(first + self.rows, len(flat) * n), device=self.latents.device)
            owner = row // (candidates * n)
            losses.append(self._losses(flat.rows((row // n).tolist()), owner, draws, owner * n + row % n))
        return torch.cat(losses).view(count, candidates, n).mean(-1)

    def _losses(self, embeddings: Embeds, owner: Tensor, draws: Draws, which: slice | Tensor) -> Tensor:
        """(R,) mean squared error of each row; ``which`` picks the draws, ``owner`` the images."""
        timesteps, noise = draws.timesteps.flatten()[which], draws.noise.flatten(0, 1)[which]
        noisy, target = noised(self.scheduler, self.latents[owner], noise, timesteps)
        predicted = self.denoiser(noisy, timesteps, embeddings).float()
        return (predicted - target).square().flatten(1).mean(1)


def objective(pipe: DiffusionPipeline, images: Tensor, *, rows: int) -> Objective:
    """The objective of a pipeline's own denoiser for (B, 3, H, W) images in [0, 1]; embeddings stay float32.

    The autoencoder's posterior mode stands for the image, so the target is the same at every step.
    """
    dtype = pipe_denoiser(pipe).dtype
    size = (int(images.shape[-2]), int(images.shape[-1]))

    def denoiser(noisy: Tensor, timesteps: Tensor, embeddings: Embeds) -> Tensor:
        return predict_noise(pipe, noisy.to(dtype), timesteps, embeddings.to(dtype=dtype), size=size)

    scale = HALF_SCALE if dtype == torch.float16 else 1.0
    return Objective(denoiser, encode_images(pipe, images.to(pipe.device)), pipe.scheduler, rows=rows, scale=scale)


@contextmanager
def frozen(pipe: DiffusionPipeline) -> Iterator[None]:
    """No gradients for the pipeline's weights inside the ``with`` block: they would double the cost."""
    modules = [module for module in pipe.components.values() if isinstance(module, nn.Module)]
    trainable = [parameter for module in modules for parameter in module.parameters() if parameter.requires_grad]
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)
