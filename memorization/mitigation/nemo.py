"""NeMo: find the value neurons of cross-attention that a memorized caption needs, and switch them off.

Hintersdorf et al., "Finding NeMo: Localizing Neurons Responsible For Memorization in Diffusion Models", NeurIPS 2024
(arXiv 2406.02366). A neuron is one output of a value projection ``attn2.to_v``, its activation the mean over tokens of
the absolute output, its score ``z = |a - mean| / std`` against ordinary captions (:func:`statistics`). The criterion
is the structural similarity of noise differences ``eps(x_T, T, y) - x_T`` between seeds (:func:`differences`): a
memorized caption gives the same one on every seed. The set of candidates grows (:func:`initial_selection`) until
blocking them lowers that similarity enough, then layers and neurons that are not needed are dropped (:func:`refine`).

Where we differ from the authors' code, and why:

- The difference is taken at the *first* timestep. Theirs takes the next timestep with latents that are still pure
  noise, so that timestep and latents do not match.
- Always without guidance, for detection and for the threshold's data alike. Theirs takes guidance 0 for one and 7 for
  the other, and with guidance it swaps the conditional and unconditional halves.
- The threshold is calibrated on the model at hand: mean plus one deviation over ordinary captions. Their 0.428 is
  Stable Diffusion 1.4's; give it as ``threshold=0.428`` to use it.
- Masks are sets: a neuron that both rules choose is one candidate. Theirs can list it twice.
- The smallest theta is tried before the search ends. Theirs ends without trying it.
- Latents below 44 pixels get a smaller MS-SSIM window (:mod:`.latent_ssim`). Theirs raises an error.
- All cross-attention layers by default, not those of the down and middle blocks only: set ``layers``.
- Joint-attention transformers, which are not in the paper: the neurons are the value projections of the text stream
  (``add_v_proj``), their activations those of one call of the denoiser.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from diffkit.conditioning import initial_latents, predict_noise
from diffkit.errors import InputError
from diffkit.families import family_of, pipe_denoiser
from diffkit.latents import spatial
from diffkit.parameterization import is_flow, is_silent, predicted_noise, predicted_x0
from diffkit.prompt_embeds import Embeds
from diffkit.sampling_steps import begin
from diffkit.seeds import generators
from memorization.mitigation.latent_ssim import pairwise, similarity
from memorization.mitigation.layers import Mask, blocked
from memorization.text_embeddings import Embedded, as_embeds, encoded

if TYPE_CHECKING:
    from diffkit.families import Pipeline

__all__ = [
    "InitialSelection",
    "Statistics",
    "activations",
    "differences",
    "initial_selection",
    "memorization_score",
    "refine",
    "select",
    "statistics",
    "text_outputs",
    "z_scores",
]

STEP = 0.25  # by which theta falls from round to round
BLOCK, NOISE, STEPS = 16, 0, 20  # of the call that records a transformer's activations: rows, noise seed, steps

Outputs = dict[str, Tensor]


class Statistics(NamedTuple):
    """Mean and standard deviation of each neuron's activation over ordinary captions: layer -> (out,) float32."""

    mean: dict[str, Tensor]
    std: dict[str, Tensor]


class InitialSelection(NamedTuple):
    """Neurons to switch off, theta and k of the search, and the similarity that remains (lower = less memorized)."""

    mask: Mask
    theta: float
    top_k: int
    similarity: float


@torch.no_grad()
def text_outputs(pipe: Pipeline, layers: Mapping[str, nn.Linear], prompt_embeds: Embedded) -> Iterator[Outputs]:
    """Outputs of value layers of the text for some captions: layer -> (n, L, out), block after block of rows.

    In a U-Net their input is the text embedding, and no denoiser call is needed. In a transformer it is the output of
    the previous blocks: the denoiser is called at the first step of a generation, on one fixed noise.

    Args:
        pipe: a pipeline of a known family.
        layers: e.g. by ``matching(pipe, value_layers(pipe))``.
        prompt_embeds: n rows.

    Raises:
        InputError: a layer of a U-Net whose input is not the embeddings, or a layer that does not run.
    """
    rows = as_embeds(prompt_embeds)
    if family_of(pipe).denoiser == "unet":
        sequence = rows.prompt_embeds
        for name, layer in layers.items():
            if layer.in_features != sequence.shape[-1]:
                raise InputError(
                    f"{name} takes {layer.in_features} numbers, the text embedding has {sequence.shape[-1]}; NeMo "
                    "needs layers that project the text embedding, such as unet.*attn2.to_v."
                )
        yield {name: layer(sequence.to(layer.weight)) for name, layer in layers.items()}
        return
    for first in range(0, len(rows), BLOCK):
        block = rows.rows(range(first, min(first + BLOCK, len(rows)))).to(pipe.device, pipe_denoiser(pipe).dtype)
        yield _recorded_outputs(pipe, layers, block)


def _recorded_outputs(pipe: Pipeline, layers: Mapping[str, nn.Linear], block: Embeds) -> Outputs:
    """Outputs of the layers in one call of the denoiser."""
    outputs: Outputs = {}

    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        return lambda _module, _inputs, output: outputs.__setitem__(name, output.detach())

    noise = initial_latents(pipe, generators([NOISE]), dtype=torch.float32)
    latents, timestep = begin(pipe, noise.to(pipe_denoiser(pipe).dtype), STEPS)
    handles = [layer.register_forward_hook(hook(name)) for name, layer in layers.items()]
    try:
        predict_noise(pipe, latents.expand(len(block), *latents.shape[1:]), timestep, block)
    finally:
        for handle in handles:
            handle.remove()
    if missing := [name for name in layers if name not in outputs]:
        raise InputError(f"The layer {missing[0]!r} does not run in the denoiser; NeMo needs one that does.")
    return outputs


def activations(pipe: Pipeline, layers: Mapping[str, nn.Linear], prompt_embeds: Embedded) -> dict[str, Tensor]:
    """Mean over tokens of each output's absolute value: layer -> (n, out) float32, >= 0.

    Args:
        layers: see :func:`text_outputs`, with what it raises.
        prompt_embeds: n rows.
    """
    blocks = [
        {name: output.float().abs().mean(1) for name, output in outputs.items()}
        for outputs in text_outputs(pipe, layers, prompt_embeds)
    ]
    return {name: torch.cat([block[name] for block in blocks]) for name in layers}


@torch.no_grad()
def statistics(pipe: Pipeline, layers: Mapping[str, nn.Linear], captions: Sequence[str]) -> Statistics:
    """Mean and deviation (n - 1) of :func:`activations` over ordinary captions, in float64, in blocks of 256.

    Raises:
        InputError: fewer than two captions.
    """
    if len(captions) < 2:
        raise InputError(f"NeMo needs many ordinary captions to compare with, got {len(captions)}.")
    total = {name: torch.zeros(layer.out_features, dtype=torch.float64) for name, layer in layers.items()}
    square = {name: value.clone() for name, value in total.items()}
    for first in range(0, len(captions), 256):
        embeds = encoded(pipe, captions[first : first + 256])
        for name, values in activations(pipe, layers, embeds).items():
            total[name] += values.double().sum(0).cpu()
            square[name] += values.double().square().sum(0).cpu()
    n = len(captions)
    mean = {name: value / n for name, value in total.items()}
    variance = {name: (square[name] - n * mean[name] ** 2).clamp(min=0) / (n - 1) for name in mean}
    return Statistics({k: v.float() for k, v in mean.items()}, {k: v.sqrt().float() for k, v in variance.items()})


def z_scores(values: Mapping[str, Tensor], ordinary: Statistics) -> dict[str, Tensor]:
    """``|a - mean| / std`` of activations (..., out): >= 0, higher = farther from ordinary captions.

    A neuron that is constant over ordinary captions has a deviation of 0: its score is infinity if it differs, else 0.
    """
    scores = {}
    for name, value in values.items():
        distance = (value.cpu() - ordinary.mean[name]).abs()
        scores[name] = torch.where(distance > 0, distance / ordinary.std[name], 0.0)
    return scores


def select(values: Mapping[str, Tensor], ordinary: Statistics, *, theta: float, top_k: int = 0) -> Mask:
    """Candidates: neurons with ``z > theta``, and each layer's ``top_k`` by activation (NeMo, section 3.2).

    Args:
        values: one caption's or trigger's activations, layer -> (out,).
        ordinary: statistics of ordinary captions.
        theta: in deviations.
        top_k: per layer; ties go to the first neuron.

    Returns:
        Layer -> bool (out,), True = candidate.
    """
    mask = {name: z > theta for name, z in z_scores(values, ordinary).items()}
    for name, value in values.items():
        mask[name][value.cpu().sort(descending=True, stable=True).indices[:top_k]] = True
    return mask


@torch.no_grad()
def differences(pipe: Pipeline, prompt_embeds: Embedded, seeds: Sequence[int], *, steps: int = 20) -> Tensor:
    """Noise difference ``eps(x_T, T, y) - x_T`` for each seed, without guidance: (S, C, h, w) float32.

    Whatever the model predicts, see :func:`diffkit.parameterization.predicted_noise`. Under flow matching, and at zero
    terminal SNR of a model that predicts v, x_T is the noise itself, so that this difference would be 0: there it is
    the predicted x0 of the first step, unpacked.

    Args:
        pipe: a pipeline of a known family.
        prompt_embeds: one caption, one row.
        seeds: one noise each.
        steps: denoising steps of a generation; they decide which timestep is the first.
    """
    denoiser, scheduler = pipe_denoiser(pipe), pipe.scheduler
    noise = initial_latents(pipe, generators(seeds), dtype=torch.float32)
    scaled, timestep = begin(pipe, noise, steps)
    rows = as_embeds(prompt_embeds).to(pipe.device, denoiser.dtype).expand(len(noise))
    output = predict_noise(pipe, scaled.to(denoiser.dtype), timestep, rows).float()
    if is_flow(scheduler) or is_silent(scheduler, timestep):
        return spatial(pipe, predicted_x0(scheduler, output, scaled, timestep))
    return predicted_noise(scheduler, output, scaled, timestep) - noise


def memorization_score(maps: Tensor) -> Tensor:
    """Largest MS-SSIM of each seed's noise difference with another seed's: (S, ...) to (S,); higher = more memorized.

    Raises:
        InputError: fewer than two seeds.
    """
    if len(maps) < 2:
        raise InputError("Structural similarity between seeds needs at least two seeds.")
    return pairwise(maps).nan_to_num(-math.inf).amax(1)


def initial_selection(
    candidates: Callable[[float, int], Mask],
    remaining: Callable[[Mask], float],
    *,
    threshold: float,
    theta: float = 5.0,
    smallest_theta: float = 1.0,
) -> InitialSelection:
    """Lower theta by 0.25 and raise k by 1 until blocking the candidates suffices (NeMo, section 3.2).

    Args:
        candidates: (theta, k) -> mask, growing as theta falls and k rises.
        remaining: mask -> similarity of the blocked noise differences to the unblocked ones.
        threshold: at or below it the caption no longer counts as memorized.
        theta: where the search begins; ``smallest_theta``: the last value tried.

    Returns:
        The first selection at or below the threshold; if there is none, the last one.
    """
    top_k = 0
    while True:
        mask = candidates(theta, top_k)
        similarity_left = remaining(mask)
        if similarity_left <= threshold or theta <= smallest_theta:
            return InitialSelection(mask, theta, top_k, similarity_left)
        theta, top_k = max(theta - STEP, smallest_theta), top_k + 1


def refine(mask: Mask, remaining: Callable[[Mask], float], *, threshold: float) -> Mask:
    """Drop what is not needed: whole layers from the deepest on, then single neurons (NeMo, section 3.2).

    A layer or neuron is dropped if the similarity stays at or below the threshold without it. One evaluation for each
    layer and for each remaining neuron: the dominant cost of the method.
    """
    kept = {name: part.clone() for name, part in mask.items()}
    for name in reversed(list(kept)):
        if kept[name].any():
            trial = {**kept, name: torch.zeros_like(kept[name])}
            if remaining(trial) <= threshold:
                kept = trial
    for name in kept:
        for neuron in kept[name].nonzero().flatten().tolist():
            kept[name][neuron] = False
            if remaining(kept) > threshold:
                kept[name][neuron] = True
    return kept


def remaining_similarity(
    pipe: Pipeline,
    layers: Mapping[str, nn.Linear],
    prompt_embeds: Embedded,
    seeds: Sequence[int],
    original: Tensor,
    *,
    steps: int = 20,
) -> Callable[[Mask], float]:
    """The criterion of :func:`initial_selection` and :func:`refine`: mask -> the largest similarity, over seeds, of the
    noise differences with the mask's neurons off to the ``original`` (S, C, h, w) ones at the same seeds."""

    def remaining(mask: Mask) -> float:
        with blocked(layers, mask):
            return float(similarity(original, differences(pipe, prompt_embeds, seeds, steps=steps)).max())

    return remaining
