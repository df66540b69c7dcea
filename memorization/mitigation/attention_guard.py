"""A guard at generation time: increase cross-attention to the first token and mask the padding.

Ren et al., "Unveiling and Mitigating Memorization in Text-to-image Diffusion Models through Cross Attention", ECCV
2024: in the conditional branch the attention logit of token 0 is multiplied by C = 1.25, and the padding after the
prompt is masked, so that fewer tokens of a memorized caption can act as triggers.

The length of a prompt cannot be read from its embedding: the guard wraps the pipeline's ``encode_prompt`` and records
the lengths of the prompts. An embedding that encodes no caption (an attack's trigger) only gets the first change. The
end token stays visible. In a detector's query, which has no branches, every row but the empty caption is conditional.

The guard changes no weight, and anyone who holds the weights can remove it. It works by hooks on the layers, so that
another attention processor (attention slicing, xFormers) has no effect on cross-attention until the guard is undone.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from diffkit.errors import InputError
from diffkit.families import family_of
from diffkit.mitigation import Mitigation, Undo
from memorization.mitigation import Method
from memorization.mitigation.pipeline_loop import running_loop
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
        """bool (B,) conditional and bool (B, L) padding; all layers of a call share it.

        Conditional is what does not encode the empty caption, under guidance of the second half only.
        """
        if self._last is None or self._last[0] is not embeds:
            rows = (embeds.detach() != self.empty.to(embeds)).flatten(1).any(1)
            loop = running_loop()
            if loop is not None and loop.is_guided(len(embeds)):
                rows[: len(embeds) // 2] = False
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


def _attach(layer: Any, processor: _Processor) -> list[RemovableHandle]:
    """Hooks by which a layer has the processor during its calls, and its own before and after them."""
    own: list[Any] = []

    def begin(layer: Any, _inputs: object) -> None:
        require_plain(layer)
        own.append(layer.processor)
        layer.processor = processor

    def end(layer: Any, _inputs: object, _output: object) -> None:
        if own:  # an error in `begin` comes here too
            layer.processor = own.pop()

    # the guard that was applied last ends first
    return [
        layer.register_forward_pre_hook(begin),
        layer.register_forward_hook(end, prepend=True, always_call=True),
    ]


def require_plain(layer: Any) -> None:
    """Refuse a cross-attention whose processor has weights of its own, as an IP-Adapter's: it computes something else.

    Raises:
        InputError: see there.
    """
    if isinstance(layer.processor, torch.nn.Module):
        raise InputError(
            f"The attention guard knows the plain attention only, and {type(layer.processor).__name__} has weights of "
            f"its own; take it off (of an IP-Adapter: pipe.unload_ip_adapter()), or undo the guard."
        )


def _key(row: Tensor) -> bytes:
    return row.detach().half().cpu().numpy().tobytes()


def apply_guard(pipe: Pipeline, mitigation: Mitigation, only: str | None) -> Undo:
    """Change the cross-attention of the denoiser, and record the lengths of prompts when they are encoded.

    Raises:
        InputError: the family is not one with a U-Net, or the U-Net has an IP-Adapter.
    """
    require_unet(pipe)
    settings = mitigation.settings
    layers = [layer for name, layer in pipe.unet.named_modules() if name.endswith(".attn2")]
    for layer in layers:
        require_plain(layer)
    lengths = _CaptionLengths(empty_text(pipe).prompt_embeds, mask_padding=settings["mask_padding"])
    processor = _Processor(lengths, settings["factor"])
    handles = [handle for layer in layers for handle in _attach(layer, processor)]
    forget = _record_lengths(pipe, lengths)

    def undo() -> None:
        for handle in handles:
            handle.remove()
        forget()

    return undo


def _record_lengths(pipe: Pipeline, lengths: _CaptionLengths) -> Undo:
    """Wrap ``encode_prompt``, which repeats each prompt's row for each of its images."""
    encode, own = pipe.encode_prompt, vars(pipe).get("encode_prompt")  # own: another guard's

    @functools.wraps(encode)
    def recorded(prompt: str | list[str] | None = None, *rest: Any, **named: Any) -> Any:
        encoded = encode(prompt, *rest, **named)
        texts = [prompt] if isinstance(prompt, str) else prompt or []
        for index, text in enumerate(texts):
            row = encoded[0][index * (len(encoded[0]) // len(texts))]
            lengths.lengths[_key(row)] = _tokens(pipe, text)
        return encoded

    pipe.encode_prompt = recorded

    def forget() -> None:
        del pipe.encode_prompt  # which restores the class's own method
        if own is not None:
            pipe.encode_prompt = own

    return forget


def _tokens(pipe: Pipeline, text: str) -> int:
    """How many tokens a prompt has, with both ends; a textual inversion's word may be several."""
    if hasattr(pipe, "maybe_convert_prompt"):
        text = pipe.maybe_convert_prompt(text, pipe.tokenizer)
    return len(pipe.tokenizer(text, truncation=True).input_ids)


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
