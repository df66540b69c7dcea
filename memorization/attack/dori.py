"""DoRI: a text embedding that brings a given image back, found by textual inversion on the text encoder's output.

"Finding Dori: Memorization in Text-to-Image Diffusion Models Is Not Local" (arXiv 2507.16880): with all weights
frozen, minimise over the embedding ``y`` the plain diffusion loss of the image,

    E || target - model(sqrt(abar_t) x + sqrt(1 - abar_t) noise, t, y) ||^2,    noise ~ N(0, I), t ~ U{0, .., T - 1}

by Adam at rate 0.1, 8 fresh draws of (noise, t) a step, 50 steps, without guidance.

The authors' code was not public when this was written. Chosen by us: the autoencoder's posterior mean as ``x``;
float32; no weight decay; all token positions move; the scheduler's own prediction target (noise or velocity).
Everything is per image: draws, Adam's moments and the loss, so many images run at once as if each ran alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from diffkit.conditioning import predict_noise
from diffkit.errors import InputError
from diffkit.latents import encode_images
from memorization.attack.base import Attack

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

Denoiser = Callable[[Tensor, Tensor, Tensor], Tensor]


def dori(
    denoiser: Denoiser,
    latents: Tensor,
    starts: Tensor,
    generators: Sequence[torch.Generator],
    *,
    alphas_cumprod: Tensor,
    prediction_type: str = "epsilon",
    budgets: Sequence[int] = (0, 1, 10, 25, 50),
    learning_rate: float = 0.1,
    draws: int = 8,
) -> Tensor:
    """Optimise one embedding per image and keep it at each budget.

    Args:
        denoiser: (noisy latents (R, C, h, w), timesteps (R,), embeddings (R, L, D)) -> (R, C, h, w), differentiable
            in the embeddings.
        latents: (B, C, h, w) images as the denoiser sees them.
        starts: (B, L, D) embeddings to begin at.
        generators: one CPU generator per image; it alone decides that image's draws.
        alphas_cumprod: (T,) cumulative product of 1 - beta.
        prediction_type: "epsilon", "v_prediction" or "sample".
        budgets: optimisation steps after which to keep the embedding, rising; the last one ends the search.
        learning_rate: Adam's.
        draws: pairs of (noise, timestep) per image and step.

    Returns:
        (len(budgets), B, L, D) float32.

    Raises:
        InputError: another prediction type.
    """
    latents, embeddings = latents.float(), starts.detach().float().clone().requires_grad_(True)
    optimizer = torch.optim.Adam([embeddings], lr=learning_rate)
    clean = latents.repeat_interleave(draws, 0)
    abar = alphas_cumprod.float().to(latents.device)
    kept = [] if budgets[0] > 0 else [starts.detach().float().clone()]
    for step in range(1, budgets[-1] + 1):
        timesteps, noise = _draw(latents, generators, draws, len(abar))
        signal = abar[timesteps].sqrt().view(-1, 1, 1, 1)
        spread = (1 - abar[timesteps]).sqrt().view(-1, 1, 1, 1)
        target = _target(prediction_type, clean, noise, signal, spread)
        with torch.enable_grad():
            predicted = denoiser(signal * clean + spread * noise, timesteps, embeddings.repeat_interleave(draws, 0))
            loss = (predicted.float() - target).square().flatten(1).mean(1).sum() / draws
            (embeddings.grad,) = torch.autograd.grad(loss, [embeddings])
        optimizer.step()
        if step in budgets:
            kept.append(embeddings.detach().clone())
    return torch.stack(kept)


def _draw(latents: Tensor, generators: Sequence[torch.Generator], draws: int, t: int) -> tuple[Tensor, Tensor]:
    """(B * draws,) timesteps and (B * draws, C, h, w) noise, each image's from its own generator."""
    shape = (draws, *latents.shape[1:])
    timesteps = [torch.randint(t, (draws,), generator=generator) for generator in generators]
    noise = [torch.randn(shape, generator=generator) for generator in generators]
    return torch.cat(timesteps).to(latents.device), torch.cat(noise).to(latents.device)


def _target(prediction_type: str, clean: Tensor, noise: Tensor, signal: Tensor, spread: Tensor) -> Tensor:
    """What the model was trained to predict."""
    if prediction_type == "epsilon":
        return noise
    if prediction_type == "v_prediction":
        return signal * noise - spread * clean
    if prediction_type == "sample":
        return clean
    raise InputError(f"Expected a scheduler that predicts epsilon, v_prediction or sample, got {prediction_type!r}.")


class Dori(Attack):
    """:func:`dori` on a pipeline of the Stable Diffusion 1/2 family.

    Args:
        learning_rate: Adam's.
        draws: pairs of (noise, timestep) per image and step.
    """

    name = "dori"

    def __init__(
        self,
        *,
        budgets: Sequence[int] = (0, 1, 10, 25, 50),
        micro_batch: int = 8,
        learning_rate: float = 0.1,
        draws: int = 8,
    ) -> None:
        super().__init__(budgets=budgets, micro_batch=micro_batch)
        self.learning_rate = learning_rate
        self.draws = draws

    def attack(
        self, pipe: DiffusionPipeline, images: Tensor, starts: Tensor, sources: Sequence[torch.Generator]
    ) -> Tensor:
        """One batch: (B, 3, H, W) images and (B, L, D) starts to (len(budgets), B, L, D) embeddings."""
        pipe.unet.requires_grad_(False)  # the weights' gradients would cost as much again

        def denoiser(noisy: Tensor, timesteps: Tensor, embeddings: Tensor) -> Tensor:
            dtype = pipe.unet.dtype
            return predict_noise(pipe, noisy.to(dtype), timesteps, embeddings.to(dtype))

        return dori(
            denoiser,
            encode_images(pipe, images.to(pipe.device)),
            starts.to(pipe.device),
            sources,
            alphas_cumprod=pipe.scheduler.alphas_cumprod,
            prediction_type=pipe.scheduler.config.prediction_type,
            budgets=self.budgets,
            learning_rate=self.learning_rate,
            draws=self.draws,
        )

    def cost(self) -> tuple[int, ...]:
        """Sample gradients spent on one target up to each budget."""
        return tuple(budget * self.draws for budget in self.budgets)
