"""Wanda for memorization: zero the weights with the largest scores under a memorized caption.

Chavhan et al., "Memorized Images in Diffusion Models share a Subspace that can be Located and Deleted", 2024
(arXiv 2406.18566), after Sun et al., "A Simple and Effective Pruning Approach for Large Language Models" (Wanda). The
score of a weight is ``S = |W_ij| * ||x_j||``, with the norm of column j of the layer's input over tokens
(:func:`input_norms`). In each output row the share of columns with the largest S under the target caption is taken, of
these the columns that score higher than under base captions, and the union over the first timesteps (:func:`select`).
Layers: the second linear of the feed-forward blocks, ``ff.net.2``, and ``ff_context.net.2`` of joint-attention
transformers.

Where we differ from the authors' code, and why:

- Base captions are ordinary ones by default (the root mean square over them), not "". Since ``|W|`` is the same on both
  sides, "scores higher" only compares the column norms, and against "" nearly every column passes.
- Only the conditional half of a guided batch is counted; the unconditional half is the same for every caption. A
  pipeline that does not make both halves in one batch is run without guidance.
- Generation stops after the timesteps that are used, and everything is in memory: no files of masks.
- The share is of columns and at least one. A ``margin`` above 1 asks for more than "higher than the base".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from diffkit.errors import InputError
from diffkit.families import family_of
from diffkit.prompt_embeds import Embeds
from memorization.generation import Sampling, call_arguments, generated_latents, is_guided
from memorization.mitigation.layers import Mask
from memorization.text_embeddings import Embedded, as_embeds, empty_text

if TYPE_CHECKING:
    from diffkit.families import Pipeline

__all__ = ["column_norms", "input_norms", "mean_inputs", "on_inputs", "root_mean_square", "scores", "select"]

Norms = dict[str, Tensor]  # layer -> (T, in) or, of several captions, (n, T, in); >= 0


def column_norms(inputs: Tensor) -> Tensor:
    """Norm of each column over the tokens of each sample, every token scaled to length 1 first: (B, L, in) -> (B, in).

    The scaling is the authors', "to avoid inf" in half precision; a token of zeros stays zero.
    """
    rows = inputs.float().reshape(len(inputs), -1, inputs.shape[-1])
    norms: Tensor = nn.functional.normalize(rows, dim=-1).square().sum(1).sqrt()
    return norms


@torch.no_grad()
def input_norms(
    pipe: Pipeline,
    layers: Mapping[str, nn.Linear],
    prompt_embeds: Embedded,
    *,
    seed: int = 0,
    steps: int = 20,
    guidance: float = 3.0,
    timesteps: int = 10,
    micro_batch: int = 8,
) -> Norms:
    """:func:`column_norms` of the denoiser layers' inputs at each of the first ``timesteps`` of a guided generation.

    Args:
        pipe: a pipeline of a known family.
        layers: linear layers of the denoiser, named from the pipeline.
        prompt_embeds: n rows; all start at the same noise.
        seed: of that noise.
        steps: denoising steps of a whole generation; it stops after ``timesteps`` of them.
        guidance: guidance scale.

    Returns:
        Layer -> (n, timesteps, in) float32 on the CPU.

    Raises:
        InputError: more timesteps than steps, or a layer that does not run.
    """
    if not 1 <= timesteps <= steps:
        raise InputError(f"Expected 1 to {steps} timesteps of {steps} steps, got {timesteps}.")
    negative = empty_text(pipe)  # before the hooks
    parts: list[Norms] = []
    for rows in _blocks(prompt_embeds, micro_batch):
        calls_by_layer: dict[str, list[Tensor]] = {name: [] for name in layers}
        with on_inputs(layers, partial(_keep_norms, calls_by_layer)):
            _denoise(pipe, rows, negative, seed, steps, guidance, timesteps)
        if missing := [name for name, calls in calls_by_layer.items() if len(calls) < timesteps]:
            raise InputError(
                f"The layer {missing[0]!r} does not run in every denoising step; Wanda needs one that does."
            )
        parts.append(
            {
                name: torch.stack([c[-len(rows) :] for c in calls[:timesteps]], 1)
                for name, calls in calls_by_layer.items()
            }
        )
    return {name: torch.cat([part[name] for part in parts]) for name in layers}


def _keep_norms(norms: dict[str, list[Tensor]], name: str, inputs: Tensor) -> None:
    norms[name].append(column_norms(inputs).cpu())


@torch.no_grad()
def mean_inputs(
    pipe: Pipeline,
    layers: Mapping[str, nn.Linear],
    prompt_embeds: Embedded,
    *,
    seed: int = 0,
    steps: int = 20,
    guidance: float = 3.0,
    micro_batch: int = 8,
) -> dict[str, Tensor]:
    """Mean of each input column over captions, tokens, all timesteps and both halves of guidance: layer -> (in,)."""
    negative = empty_text(pipe)
    total = {name: torch.zeros(layer.in_features, dtype=torch.float64) for name, layer in layers.items()}
    counts = dict.fromkeys(layers, 0)

    def add(name: str, inputs: Tensor) -> None:
        rows = inputs.flatten(0, -2)
        total[name] += rows.float().sum(0).double().cpu()
        counts[name] += len(rows)

    for index, rows in enumerate(_blocks(prompt_embeds, micro_batch)):
        with on_inputs(layers, add):
            _denoise(pipe, rows, negative, seed + index, steps, guidance, steps)
    return {name: (value / counts[name]).float() for name, value in total.items()}


@contextmanager
def on_inputs(layers: Mapping[str, nn.Module], callback: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Call ``callback(name, input)`` whenever one of the layers runs."""

    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda _module, inputs: callback(name, inputs[0])

    handles = [layer.register_forward_pre_hook(hook(name)) for name, layer in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _blocks(prompt_embeds: Embedded, size: int) -> Iterator[Embeds]:
    rows = as_embeds(prompt_embeds)
    for first in range(0, len(rows), size):
        yield rows.rows(range(first, min(first + size, len(rows))))


def _denoise(
    pipe: Pipeline, rows: Embeds, negative: Embeds, seed: int, steps: int, guidance: float, timesteps: int
) -> None:
    """A generation that stops after the first ``timesteps``; the conditional half comes last in its batches."""
    sampling = Sampling(steps, guidance, len(rows))
    if is_guided(pipe, sampling) and not family_of(pipe).guidance_batched:
        sampling = sampling._replace(guidance_scale=min(guidance, 1.0))
    unconditional = negative.to(pipe.device, pipe.dtype).expand(len(rows))
    arguments = call_arguments(pipe, rows.to(pipe.device, pipe.dtype), unconditional, [seed] * len(rows), sampling)
    generated_latents(pipe, arguments, timesteps)


def root_mean_square(norms: Norms) -> Norms:
    """Over captions: (n, T, in) to (T, in)."""
    return {name: value.square().mean(0).sqrt() for name, value in norms.items()}


def scores(weight: Tensor, norms: Tensor) -> Tensor:
    """``|W_ij| * ||x_j||``: (out, in) and (..., in) to (..., out, in), >= 0, higher = used more."""
    return weight.detach().float().abs() * norms[..., None, :]


def select(
    weights: Mapping[str, Tensor],
    target: Mapping[str, Tensor],
    base: Mapping[str, Tensor],
    *,
    sparsity: float,
    margin: float = 1.0,
) -> Mask:
    """Weights to zero: in each output row the share ``sparsity`` of columns with the largest score under the target
    that also score more than ``margin`` times the base's; the union over timesteps.

    Args:
        weights: layer -> (out, in).
        target: layer -> (T, in) column norms under one memorized caption (or trigger).
        base: the same under ordinary captions.
        sparsity: in (0, 1]; at least one column per row is considered. Ties go to the first column.
        margin: 1 as published.

    Returns:
        Layer -> bool (out, in), True = zero.

    Raises:
        InputError: a sparsity or margin out of range, or norms of another shape.
    """
    if not 0 < sparsity <= 1 or margin <= 0:
        raise InputError(f"Expected a sparsity in (0, 1] and a positive margin, got {sparsity} and {margin}.")
    mask = {}
    for name, weight in weights.items():
        if target[name].shape != base[name].shape or target[name].shape[-1] != weight.shape[1]:
            raise InputError(
                f"{name}: norms of shape {tuple(target[name].shape)} and {tuple(base[name].shape)} do not fit a weight "
                f"of shape {tuple(weight.shape)}."
            )
        selected = torch.zeros(weight.shape, dtype=torch.bool)
        columns = max(1, round(sparsity * weight.shape[1]))
        for target_norms, base_norms in zip(target[name], base[name], strict=True):
            order = scores(weight.cpu(), target_norms).sort(dim=1, descending=True, stable=True).indices[:, :columns]
            largest = torch.zeros_like(selected).scatter_(1, order, True)
            selected |= largest & (target_norms > margin * base_norms)
        mask[name] = selected & (weight.cpu() != 0)
    return mask
