"""How differently the denoiser works under different embeddings, layer by layer, on the same initial noise.

"Finding Dori", section 5: the activation discrepancy of a layer is the mean L2 distance between its outputs over all
pairs of a set of embeddings, from one and the same initial noise. A value projection (``to_v``) of cross-attention is
linear in the embedding, so that its discrepancy partly measures the *start* of the attack; layers after the attention,
such as the feed-forward outputs, depend on it less. Hence the null of the same starts before any attack.

The paper does not state the step; here it is the first one of the sampling, where all latents are still equal, so that
every difference comes from the embedding. Averaged over several initial noises.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from diffkit.activations import record_activations
from diffkit.conditioning import initial_latents, predict_noise
from diffkit.errors import InputError
from diffkit.families import Pipeline, family_of, pipe_denoiser
from diffkit.prompt_embeds import Embeds
from diffkit.sampling_steps import begin
from diffkit.seeds import generators
from memorization.mitigation.layers import feed_forward_layers, value_layers
from memorization.text_embeddings import Embedded, as_embeds


@torch.no_grad()
def discrepancies(
    pipe: Pipeline,
    embeddings: Embedded,
    *,
    patterns: Sequence[str] | None = None,
    noise_seeds: Sequence[int] = (0,),
    steps: int = 20,
) -> dict[str, Tensor]:
    """L2 distances of each layer's outputs between all pairs of embeddings.

    Args:
        pipe: a pipeline of a known family.
        embeddings: n rows.
        patterns: layers, shell-style, see :func:`diffkit.activations.record_activations`; None = the text's value
            projections and the second feed-forward linears of the family.
        noise_seeds: initial noises to average over; each is shared by all embeddings.
        steps: of the sampling whose first timestep is taken.

    Returns:
        Layer name -> (n, n) float64, >= 0, zero on the diagonal.

    Raises:
        InputError: no layer matches, or no noise seed.
    """
    if not noise_seeds:
        raise InputError("Expected at least one seed of an initial noise.")
    part = f"{family_of(pipe).denoiser}."
    own = [name.removeprefix(part) for name in (*value_layers(pipe), *feed_forward_layers(pipe))]
    rows = as_embeds(embeddings)
    total: dict[str, Tensor] = {}
    for seed in noise_seeds:
        for pattern in own if patterns is None else patterns:
            for layer, outputs in _outputs(pipe, rows, pattern, seed, steps).items():
                total[layer] = total.get(layer, torch.zeros(())) + _distances(outputs) / len(noise_seeds)
    return total


def _outputs(pipe: Pipeline, embeddings: Embeds, pattern: str, seed: int, steps: int) -> dict[str, Tensor]:
    """Layer -> (n, numbers) float64 on the CPU; one embedding at a time, so that none depends on its neighbours."""
    denoiser = pipe_denoiser(pipe)
    noise = initial_latents(pipe, generators([seed]), dtype=torch.float32).to(pipe.device, denoiser.dtype)
    latents, timestep = begin(pipe, noise, steps)
    with record_activations(denoiser, pattern) as outputs:
        for index in range(len(embeddings)):
            predict_noise(pipe, latents, timestep, embeddings.rows([index]).to(pipe.device, denoiser.dtype))
    return {layer: torch.cat(calls).flatten(1).cpu() for layer, calls in outputs.items()}


def _distances(rows: Tensor) -> Tensor:
    """Row by row, since layers are wide."""
    return torch.stack([(rows - row).double().norm(dim=1) for row in rows])
