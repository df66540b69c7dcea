"""Token pruning: a vision transformer goes on with those patches alone that the others attend to most.

FoPru (Jiang et al. 2024, "Focal Pruning for Efficient Large Vision-Language Models", arXiv 2411.14164): without
training, the attention that a patch receives in the vision encoder is its significance; the ``rank`` strategy keeps the
most significant patches, the ``row`` strategy whole rows of the image, and what is kept stays in its order.

Where we differ. The authors prune after the encoder, for the language model behind it. A CLIP has nothing behind it:
its score is the class token's, so the patches are dropped inside, after a layer that is an option, and the later layers
run on the rest, as in EViT (Liang et al. 2022, arXiv 2202.07800); the class token always stays. ImageReward's text
attends to the patches, so there the last layer is a possible choice too, which is the authors' own place. Positions are
added before the first layer, so a kept patch keeps its own. Fused attention gives no probabilities: queries and keys of
that one layer are computed again, which the counted FLOP include.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffkit.errors import InputError

__all__ = ["TokenPruning", "attention_received", "keep_ranked", "keep_rows", "prune_tokens", "token_pruning_of"]

Strategy = Literal["rank", "row"]


def attention_received(queries: Tensor, keys: Tensor) -> Tensor:
    """What each token receives of the attention of all: sum over queries, mean over heads, of softmax(q k / sqrt(D)).

    Args:
        queries, keys: (B, heads, N, D).

    Returns:
        (B, N) float32 in [0, N], 1 on average; higher is more significant.
    """
    logits = queries.float() @ keys.float().transpose(-1, -2) * queries.shape[-1] ** -0.5
    received: Tensor = logits.softmax(-1).sum(-2).mean(1)
    return received


def keep_ranked(received: Tensor, share: float) -> Tensor:
    """Places (B, K), rising, of the patches that receive most; K is ``share`` of P, rounded up. Ties: the first ones.

    Args:
        received: (B, P).
        share: in (0, 1].
    """
    order = received.argsort(dim=-1, descending=True, stable=True)
    return order[:, : _count(share, received.shape[1])].sort(dim=-1).values


def keep_rows(received: Tensor, share: float) -> Tensor:
    """Places (B, K), rising, of the patches in those rows of the square image that receive most in sum.

    Args:
        received: (B, P), row after row; P is a square.
        share: of the rows, in (0, 1], rounded up.
    """
    side = math.isqrt(received.shape[1])
    rows = keep_ranked(received.unflatten(1, (side, side)).sum(-1), share)
    return (rows[:, :, None] * side + torch.arange(side, device=rows.device)).flatten(1)


def _count(share: float, size: int) -> int:
    return math.ceil(Fraction(repr(share)) * size)  # exact: 0.1 of 30 is 3


@dataclass(frozen=True)
class TokenPruning:
    """How many patches are kept, by which strategy, and after which layer.

    Attributes:
        strategy: ``rank`` or ``row``.
        share: of the patches, or of their rows, that is kept, in (0, 1]; 1 changes nothing.
        layer: after which the others are dropped, counted from 1; None for a third of the layers, rounded up.

    Raises:
        InputError: an unknown strategy, a share outside (0, 1], or a layer below 1.

    Example:
        >>> TokenPruning.parse("rank-0.5-8")
        TokenPruning(strategy='rank', share=0.5, layer=8)
        >>> str(TokenPruning("row", 0.75))
        'row-0.75'
    """

    strategy: Strategy
    share: float
    layer: int | None = None

    def __post_init__(self) -> None:
        """Refuse what is out of range."""
        if self.strategy not in get_args(Strategy):
            raise InputError(f"Expected rank or row as the strategy of a token pruning, got {self.strategy!r}.")
        if not 0 < self.share <= 1:
            raise InputError(f"A token pruning keeps a share above 0 and at most 1 of the patches, got {self.share}.")
        if self.layer is not None and self.layer < 1:
            raise InputError(f"Layers of a token pruning are counted from 1, got {self.layer}.")

    @classmethod
    def parse(cls, text: str) -> TokenPruning:
        """From ``STRATEGY-SHARE`` or ``STRATEGY-SHARE-LAYER``.

        Raises:
            InputError: another form.
        """
        form = re.fullmatch(r"([a-z]+)-([0-9.]+(?:e-[0-9]+)?)(?:-([0-9]+))?", text)
        if form is None or form[2].count(".") > 1:
            raise InputError(f"Expected a token pruning such as rank-0.5 or row-0.75-8, got {text!r}.")
        return cls(form[1], float(form[2]), None if form[3] is None else int(form[3]))  # type: ignore[arg-type]

    def __str__(self) -> str:
        """As :meth:`parse` reads it."""
        return "-".join([self.strategy, repr(self.share), *([] if self.layer is None else [str(self.layer)])])

    def keep(self, received: Tensor) -> Tensor:
        """Places (B, K), rising, of the patches that stay, by the attention (B, P) that they receive."""
        return (keep_ranked if self.strategy == "rank" else keep_rows)(received, self.share)


@dataclass(frozen=True)
class _AfterLayer:
    """A forward hook of one layer, which keeps nothing from call to call; copies of a network copy it."""

    pruning: TokenPruning

    def __call__(self, layer: nn.Module, inputs: tuple[Tensor, ...], states: Tensor) -> Tensor:
        """The class token (first) and the patches that stay, of the layer's output (B, 1 + P, width)."""
        if self.pruning.share == 1:
            return states
        with torch.no_grad():
            received = attention_received(*_queries_and_keys(layer, inputs[0]))[:, 1:]
            kept = F.pad(self.pruning.keep(received) + 1, (1, 0))
        return states.gather(1, kept[:, :, None].expand(-1, -1, states.shape[-1]))


def _queries_and_keys(layer: Any, states: Tensor) -> tuple[Tensor, Tensor]:
    """Queries and keys (B, heads, N, D) of a layer of BLIP, of transformers' CLIP or of open_clip, from its input."""
    if hasattr(layer, "attn"):
        attention, width = layer.attn, states.shape[-1]
        bias = None if attention.in_proj_bias is None else attention.in_proj_bias[: 2 * width]
        projected = F.linear(layer.ln_1(states), attention.in_proj_weight[: 2 * width], bias)
        both: Sequence[Tensor] = projected.chunk(2, dim=-1)
    else:
        attention, normed = layer.self_attn, layer.layer_norm1(states)
        if hasattr(attention, "qkv"):
            both = attention.qkv(normed).chunk(3, dim=-1)[:2]
        else:
            both = attention.q_proj(normed), attention.k_proj(normed)
    queries, keys = (part.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2) for part in both)
    return queries, keys


def _layers(network: nn.Module) -> tuple[Sequence[nn.Module], int]:
    """The layers of a network's vision transformer, and the last one after which dropping patches changes anything.

    Raises:
        InputError: it has none whose layers are known.
    """
    parts: list[Any] = list(network.modules())
    for part in parts:
        if hasattr(getattr(part, "embeddings", None), "patch_embedding") and hasattr(part, "encoder"):
            layers = part.encoder.layers
            return layers, len(layers) - (0 if hasattr(layers[0].self_attn, "qkv") else 1)
        blocks = _open_clip_blocks(getattr(part, "visual", None))
        if blocks:
            return blocks, len(blocks) - 1
    raise InputError(
        "Token pruning needs a vision transformer with a class token, of BLIP, of transformers' CLIP or of open_clip; "
        "leave token_pruning out."
    )


def _open_clip_blocks(tower: Any) -> Sequence[nn.Module]:
    """The layers of open_clip's vision transformer; none of a tower that pools its patches or is built otherwise."""
    if getattr(tower, "pool_type", "") != "tok" or tower.attn_pool is not None or not tower.transformer.batch_first:
        return ()
    blocks: Sequence[Any] = tower.transformer.resblocks
    return blocks if isinstance(getattr(blocks[0], "attn", None), nn.MultiheadAttention) else ()


def prune_tokens(network: nn.Module, pruning: TokenPruning | str | None) -> TokenPruning | None:
    """Make a network drop patches inside its vision transformer from now on.

    Args:
        network: of a reward; it is changed in place, its weights are not.
        pruning: also as text, see :meth:`TokenPruning.parse`; None leaves the network as it is.

    Returns:
        The pruning with its layer, for the reward's name; None where nothing was asked for.

    Raises:
        InputError: no such vision transformer, a layer that it does not have or after which nothing would change, or
            it drops patches already.
    """
    if pruning is None:
        return None
    if token_pruning_of(network) is not None:
        raise InputError(f"This network prunes its tokens already, by {token_pruning_of(network)}; load it without.")
    asked = TokenPruning.parse(pruning) if isinstance(pruning, str) else pruning
    layers, last = _layers(network)
    layer = asked.layer or min(math.ceil(len(layers) / 3), last)
    if layer > last:
        raise InputError(f"Expected a layer from 1 to {last} for the token pruning {asked}, got {layer}.")
    placed = replace(asked, layer=layer)
    layers[layer - 1].register_forward_hook(_AfterLayer(placed))
    return placed


def token_pruning_of(network: nn.Module) -> TokenPruning | None:
    """How a network prunes its tokens, None where it keeps all."""
    hooks = (hook for part in network.modules() for hook in part._forward_hooks.values())
    return next((hook.pruning for hook in hooks if isinstance(hook, _AfterLayer)), None)


def name_options(pruning: TokenPruning | None) -> list[str]:
    """What a pruning adds to a reward's name, as ``load_reward`` reads it."""
    return [] if pruning is None else [f"token_pruning={pruning}"]
