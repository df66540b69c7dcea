"""How differently the denoiser works under different embeddings, layer by layer, on the same initial noise.

"Finding Dori", section 5: the activation discrepancy of a layer is the mean L2 distance between its outputs over all
pairs of a set of embeddings, from one and the same initial noise. A value projection (``to_v``) of cross-attention is
linear in the embedding, so that its discrepancy partly measures where the attack *began*; layers behind the attention,
such as the feed-forward outputs, say more. Hence the null of the same starts before any attack.

Unknown in the paper is the step; here it is the first one of the sampling, where all latents are still equal, so that
every difference comes from the embedding. Averaged over several initial noises.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from diffkit.conditioning import predict_noise
from diffkit.errors import InputError
from diffkit.families import Pipeline, family_of
from diffkit.seeds import generators
from diffkit.taps import activations

PATTERNS = ("*attn2.to_v", "*ff.net.2")


@torch.no_grad()
def discrepancies(
    pipe: Pipeline,
    embeddings: Tensor,
    *,
    patterns: Sequence[str] = PATTERNS,
    noise_seeds: Sequence[int] = (0,),
    steps: int = 20,
) -> dict[str, Tensor]:
    """L2 distances of each layer's outputs between all pairs of embeddings.

    Args:
        pipe: a pipeline of the Stable Diffusion 1/2 family.
        embeddings: (n, L, D).
        patterns: layers, shell-style; see :func:`diffkit.taps.activations`.
        noise_seeds: initial noises to average over; each is shared by all embeddings.
        steps: of the sampling whose first timestep is taken.

    Returns:
        Layer name -> (n, n) float64, >= 0, zero on the diagonal.

    Raises:
        InputError: no layer matches, or no noise was named.
    """
    if not noise_seeds:
        raise InputError("Expected at least one seed of an initial noise.")
    total: dict[str, Tensor] = {}
    for seed in noise_seeds:
        for pattern in patterns:
            for layer, outputs in _outputs(pipe, embeddings, pattern, seed, steps).items():
                total[layer] = total.get(layer, torch.zeros(())) + _distances(outputs) / len(noise_seeds)
    return total


def _outputs(pipe: Pipeline, embeddings: Tensor, pattern: str, seed: int, steps: int) -> dict[str, Tensor]:
    """Layer -> (n, numbers) float64 on the CPU; one embedding at a time, so that none depends on its neighbours."""
    denoiser = getattr(pipe, family_of(pipe).denoiser)
    pipe.scheduler.set_timesteps(steps, device=pipe.device)
    timestep = pipe.scheduler.timesteps[0]
    side = denoiser.config.sample_size
    shape = (1, denoiser.config.in_channels, *((side, side) if isinstance(side, int) else side))
    noise = torch.randn(shape, generator=generators([seed])[0]).to(pipe.device, denoiser.dtype)
    latents = pipe.scheduler.scale_model_input(noise * pipe.scheduler.init_noise_sigma, timestep)
    with activations(denoiser, pattern) as seen:
        for embedding in embeddings:
            predict_noise(pipe, latents, timestep, embedding[None].to(pipe.device, denoiser.dtype))
    return {layer: torch.cat(calls).flatten(1).cpu() for layer, calls in seen.items()}


def _distances(rows: Tensor) -> Tensor:
    """Row by row, since layers are wide."""
    return torch.stack([(rows - row).double().norm(dim=1) for row in rows])
