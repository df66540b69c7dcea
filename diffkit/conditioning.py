"""Prompts become embeddings once; the denoiser is called with them as the pipeline itself would."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from diffkit.errors import InputError
from diffkit.families import Pipeline, family_of

__all__ = ["Conditioning", "encode_prompts", "predict_noise"]


@dataclass(frozen=True)
class Conditioning:
    """Encoded prompts.

    Attributes:
        prompt_embeds: (n, L, D).
        negative_prompt_embeds: (n, L, D), or None without guidance.
    """

    prompt_embeds: Tensor
    negative_prompt_embeds: Tensor | None = None

    def __len__(self) -> int:
        return len(self.prompt_embeds)

    def rows(self, indices: Sequence[int]) -> Conditioning:
        """The rows at ``indices``, in that order; an index may come back several times."""
        picked = torch.as_tensor(list(indices), dtype=torch.long, device=self.prompt_embeds.device)
        negative = self.negative_prompt_embeds
        return Conditioning(self.prompt_embeds[picked], None if negative is None else negative[picked])

    def repeat(self, n: int) -> Conditioning:
        """Every row ``n`` times, copies next to each other."""
        return self.rows([row for row in range(len(self)) for _ in range(n)])

    def kwargs(self) -> dict[str, Tensor]:
        """The keyword arguments that hand the embeddings to the pipeline."""
        named = {"prompt_embeds": self.prompt_embeds}
        if self.negative_prompt_embeds is not None:
            named["negative_prompt_embeds"] = self.negative_prompt_embeds
        return named


@torch.no_grad()
def encode_prompts(
    pipe: Pipeline,
    prompts: Sequence[str],
    negative_prompts: Sequence[str] | str | None = None,
    *,
    guidance: bool = True,
    clip_skip: int | None = None,
) -> Conditioning:
    """Embeddings of ``prompts`` by the pipeline's own ``encode_prompt``; each distinct prompt is encoded once, alone.

    Encoding alone keeps a prompt's embedding independent of the prompts beside it.

    Args:
        negative_prompts: one for all, or one for each prompt; "" where None.
        guidance: whether classifier-free guidance will need the negative embeddings.
        clip_skip: how many last layers of the text encoder to leave out; for prompts only, as in diffusers.

    Raises:
        InputError: no prompts, something that is no string, or lists of different lengths.
    """
    family_of(pipe)
    if isinstance(prompts, str) or not prompts or any(not isinstance(prompt, str) for prompt in prompts):
        raise InputError("Expected a non-empty list of prompts, each a string.")
    if isinstance(negative_prompts, str) or negative_prompts is None:
        negative_prompts = [negative_prompts or ""] * len(prompts)
    if len(negative_prompts) != len(prompts):
        raise InputError(f"Got {len(negative_prompts)} negative prompts for {len(prompts)} prompts; give one each.")
    positive = _encode(pipe, prompts, clip_skip)
    negative = _encode(pipe, negative_prompts, None) if guidance else None
    return Conditioning(positive, negative)


def _encode(pipe: Pipeline, texts: Sequence[str], clip_skip: int | None) -> Tensor:
    device = pipe._execution_device
    known: dict[str, Tensor] = {}
    for text in dict.fromkeys(texts):
        known[text] = pipe.encode_prompt([text], device, 1, False, clip_skip=clip_skip)[0]
    return torch.cat([known[text] for text in texts])


def predict_noise(pipe: Pipeline, latents: Tensor, timesteps: Tensor, prompt_embeds: Tensor) -> Tensor:
    """The denoiser's output (B, C, h, w) without guidance, as the pipeline itself calls it.

    Differentiable in ``prompt_embeds`` and ``latents``. For an epsilon model it is the predicted noise.

    Args:
        latents: (B, C, h, w), noisy, already scaled by ``scheduler.scale_model_input`` where the scheduler scales.
        timesteps: (B,) or a scalar tensor.
        prompt_embeds: (B, L, D).
    """
    denoiser = getattr(pipe, family_of(pipe).denoiser)
    prediction: Tensor = denoiser(latents, timesteps, encoder_hidden_states=prompt_embeds, return_dict=False)[0]
    return prediction
