"""A guard at generation time: increase cross-attention to the first token and mask the padding.

Ren et al., "Unveiling and Mitigating Memorization in Text-to-image Diffusion Models through Cross Attention", ECCV
2024: in the conditional branch the attention logit of token 0 is multiplied by C = 1.25, and the padding after the
prompt is masked, so that fewer tokens of a memorized caption can act as triggers.

The length of a prompt cannot be read from its embedding: the guard wraps the pipeline's ``encode_prompt`` and records
the lengths of the prompts. An embedding that encodes no caption (an attack's trigger) only gets the first change. The
end token stays visible. The guard changes no weight, and anyone who holds the weights can remove it.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from diffkit.errors import InputError
from diffkit.families import family_of
from diffkit.mitigation import Mitigation, Undo
from memorization.mitigation import Method
from memorization.text_embeddings import empty_text

if TYPE_CHECKING:
    from diffkit.families import Pipeline
    from diffkit.runs import Run
    from diffkit.suspects import Suspect

__all__ = ["METHOD", "AttentionGuardSettings", "apply_guard", "rescale"]


@dataclass(frozen=True)
class AttentionGuardSettings:
    """Settings of the guard.

    Attributes:
        factor: by which the first token's logit is multiplied, at least 1 (published: 1.25; sweep 1.1 to 1.5).
        mask_padding: mask the tokens after a caption's end token.
    """

    factor: float = 1.25
    mask_padding: bool = True

    def __post_init__(self) -> None:
        """Check the values."""
        if self.factor < 1:
            raise InputError(f"Expected a factor of at least 1, got {self.factor}.")


def rescale(logits: Tensor, rows: Tensor, hidden: Tensor, factor: float) -> Tensor:
    """Attention logits with the first token's multiplied and hidden tokens at minus infinity.

    Args:
        logits: (B, heads, queries, L).
        rows: bool (B,), True = conditional; the others stay as they are.
        hidden: bool (B, L), True = masked; never the first token.
    """
    scaled = logits.clone()
    scaled[rows, ..., 0] *= factor
    return scaled.masked_fill((rows[:, None] & hidden)[:, None, None], -torch.inf)


class _CaptionLengths:
    """Which rows of a batch of embeddings are conditional, and which of their tokens are padding."""

    def __init__(self, empty: Tensor, *, mask_padding: bool) -> None:
        self.empty, self.mask_padding = empty, mask_padding
        self.lengths: dict[bytes, int] = {}
        self._last: tuple[Tensor, Tensor, Tensor] | None = None

    def read(self, embeds: Tensor) -> tuple[Tensor, Tensor]:
        """bool (B,) conditional (not the empty caption) and bool (B, L) padding; all layers of a call share it."""
        if self._last is None or self._last[0] is not embeds:
            rows = (embeds.detach() != self.empty.to(embeds)).flatten(1).any(1)
            hidden = torch.zeros(embeds.shape[:2], dtype=torch.bool, device=embeds.device)
            for index, row in enumerate(embeds if self.mask_padding else ()):
                length = self.lengths.get(_key(row))
                if length is not None:
                    hidden[index, length:] = True
            self._last = embeds, rows, hidden
        return self._last[1:]


class _Processor:
    """diffusers' attention without fused kernels, its logits changed by :func:`rescale`."""

    def __init__(self, lengths: _CaptionLengths, factor: float) -> None:
        self.lengths, self.factor = lengths, factor

    def __call__(self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor, **_ignored: Any) -> Tensor:
        heads = attn.heads
        query, key, value = (
            part.unflatten(-1, (heads, -1)).transpose(1, 2)
            for part in (
                attn.to_q(hidden_states),
                attn.to_k(encoder_hidden_states),
                attn.to_v(encoder_hidden_states),
            )
        )
        logits = (query @ key.transpose(-1, -2)).float() * attn.scale
        changed = rescale(logits, *self.lengths.read(encoder_hidden_states), self.factor)
        mixed = F.softmax(changed, dim=-1).to(value) @ value
        output: Tensor = attn.to_out[1](attn.to_out[0](mixed.transpose(1, 2).flatten(2)))
        return output


def _key(row: Tensor) -> bytes:
    return row.detach().half().cpu().numpy().tobytes()


def apply_guard(pipe: Pipeline, mitigation: Mitigation, only: str | None) -> Undo:
    """Change the cross-attention of the denoiser, and record the lengths of prompts when they are encoded.

    Raises:
        InputError: the family is not one with a U-Net.
    """
    require_unet(pipe)
    settings = mitigation.settings
    denoiser = getattr(pipe, family_of(pipe).denoiser)
    empty = empty_text(pipe).prompt_embeds
    lengths = _CaptionLengths(empty, mask_padding=settings["mask_padding"])
    before, encode = dict(denoiser.attn_processors), pipe.encode_prompt
    own = vars(pipe).get("encode_prompt")  # another guard's
    cross = {name for name in before if ".attn2." in name}
    denoiser.set_attn_processor(
        {n: _Processor(lengths, settings["factor"]) if n in cross else p for n, p in before.items()}
    )

    @functools.wraps(encode)
    def recorded(prompt: str | list[str] | None = None, *rest: Any, **named: Any) -> Any:
        encoded = encode(prompt, *rest, **named)
        for text, row in zip([prompt] if isinstance(prompt, str) else prompt or [], encoded[0], strict=False):
            lengths.lengths[_key(row)] = len(pipe.tokenizer(text, truncation=True).input_ids)
        return encoded

    pipe.encode_prompt = recorded

    def undo() -> None:
        denoiser.set_attn_processor(before)
        del pipe.encode_prompt  # which restores the class's own method
        if own is not None:
            pipe.encode_prompt = own

    return undo


def require_unet(pipe: Pipeline) -> None:
    """Refuse a family without the cross-attention of Stable Diffusion and SDXL.

    Raises:
        InputError: it is another family.
    """
    family = family_of(pipe)
    if family.denoiser != "unet":
        raise InputError(f"The attention guard changes the cross-attention of a U-Net; {family.name} has none.")


def mitigate(pipe: Pipeline, suspects: Sequence[Suspect], run: Run, settings: AttentionGuardSettings) -> Mitigation:
    """A mitigation without tensors; the guard works for every caption, the suspects are only listed."""
    require_unet(pipe)
    config = run.record["config"]
    return Mitigation(
        method="attention-guard",
        kind="attention-guard",
        model=config["model"],
        tensors={},
        model_sha256=config["model_sha256"],
        settings=asdict(settings),
        suspects=tuple(suspect.id for suspect in suspects),
    )


METHOD = Method(name="attention-guard", kind="attention-guard", settings=AttentionGuardSettings, mitigate=mitigate)
