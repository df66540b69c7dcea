"""What all attacks minimise: the model's own training loss on the target image, under an embedding to be found.

The rows of a step, one for each draw of each image, go through the denoiser in blocks of constant size. The gradients
of the blocks add up to the gradient of the whole, so memory is bounded by the block and not by images or draws.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from diffkit.conditioning import predict_noise
from diffkit.latents import encode_images
from diffkit.training_law import noised

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from diffkit.families import Scheduler

Denoiser = Callable[[Tensor, Tensor, Tensor], Tensor]
HALF_SCALE = 2.0**14  # a power of two: exact, and keeps float16 gradients above the smallest float16 number


class Draws(NamedTuple):
    """(B, n) timesteps and (B, n, C, h, w) noise, each image's from its own generator."""

    timesteps: Tensor
    noise: Tensor


class Objective:
    """The plain diffusion loss ``E || target - model(x_t, t, y) ||^2`` of B images, each under its own embedding.

    Args:
        denoiser: (noisy latents (R, C, h, w), timesteps (R,), embeddings (R, L, D)) -> (R, C, h, w), differentiable
            in the embeddings.
        latents: (B, C, h, w) images as the denoiser sees them.
        scheduler: knows alpha-bar and what the model predicts.
        rows: rows through the denoiser at once.
        scale: factor on the loss while it is differentiated, taken out again; for half precision.
    """

    def __init__(
        self, denoiser: Denoiser, latents: Tensor, scheduler: Scheduler, *, rows: int = 64, scale: float = 1.0
    ) -> None:
        self.denoiser, self.latents, self.scheduler = denoiser, latents.float(), scheduler
        self.rows, self.scale = rows, scale

    def draw(self, sources: Sequence[torch.Generator], n: int, *, stratified: bool = False) -> Draws:
        """``n`` draws for each image: timesteps uniform on [0, T), noise standard normal, both drawn on the CPU.

        Args:
            stratified: one timestep in each of n equal parts of [0, T), which makes the loss vary less.
        """
        total, shape = len(self.scheduler.alphas_cumprod), (n, *self.latents.shape[1:])
        timesteps, noise = [], []
        for source in sources:
            if stratified:
                parts = (torch.arange(n) + torch.rand(n, generator=source)) / n
                timesteps.append((parts * total).long().clamp(max=total - 1))
            else:
                timesteps.append(torch.randint(total, (n,), generator=source))
            noise.append(torch.randn(shape, generator=source))
        device = self.latents.device
        return Draws(torch.stack(timesteps).to(device), torch.stack(noise).to(device))

    def gradient(self, embeddings: Tensor, draws: Draws) -> Tensor:
        """Gradient (B, L, D) float32 of each image's mean loss over its draws, at (B, L, D) embeddings."""
        leaf = embeddings.detach().requires_grad_(True)
        n = draws.timesteps.shape[1]
        total = torch.zeros_like(leaf)
        for first in range(0, len(leaf) * n, self.rows):
            owner = torch.arange(first, min(first + self.rows, len(leaf) * n), device=leaf.device) // n
            with torch.enable_grad():
                losses = self._losses(leaf[owner], owner, draws, slice(first, first + self.rows))
                (part,) = torch.autograd.grad(losses.sum() * (self.scale / n), [leaf])
            total += part
        return total / self.scale

    @torch.no_grad()
    def loss(self, embeddings: Tensor, draws: Draws) -> Tensor:
        """(B, P) float32 mean loss over the draws of each image under each of its P candidates (B, P, L, D)."""
        count, candidates = embeddings.shape[:2]
        n = draws.timesteps.shape[1]
        flat = embeddings.flatten(0, 1)
        found = []
        for first in range(0, count * candidates * n, self.rows):
            row = torch.arange(first, min(first + self.rows, count * candidates * n), device=flat.device)
            owner = row // (candidates * n)
            found.append(self._losses(flat[row // n], owner, draws, owner * n + row % n))
        return torch.cat(found).view(count, candidates, n).mean(-1)

    def _losses(self, embeddings: Tensor, owner: Tensor, draws: Draws, which: slice | Tensor) -> Tensor:
        """(R,) mean squared error of each row; ``which`` picks the draws, ``owner`` the images."""
        timesteps, noise = draws.timesteps.flatten()[which], draws.noise.flatten(0, 1)[which]
        noisy, target = noised(self.scheduler, self.latents[owner], noise, timesteps)
        predicted = self.denoiser(noisy, timesteps, embeddings).float()
        return (predicted - target).square().flatten(1).mean(1)


def objective(pipe: DiffusionPipeline, images: Tensor, *, rows: int) -> Objective:
    """The objective of a pipeline's own denoiser for (B, 3, H, W) images in [0, 1]; embeddings stay float32.

    The autoencoder's posterior mode stands for the image, so the target is the same at every step.
    """
    dtype = pipe.unet.dtype

    def denoiser(noisy: Tensor, timesteps: Tensor, embeddings: Tensor) -> Tensor:
        return predict_noise(pipe, noisy.to(dtype), timesteps, embeddings.to(dtype))

    scale = HALF_SCALE if dtype == torch.float16 else 1.0
    return Objective(denoiser, encode_images(pipe, images.to(pipe.device)), pipe.scheduler, rows=rows, scale=scale)


@contextmanager
def frozen(*modules: nn.Module) -> Iterator[None]:
    """No gradients for the weights inside the ``with`` block: they would cost as much again."""
    learning = [parameter for module in modules for parameter in module.parameters() if parameter.requires_grad]
    for parameter in learning:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)
