"""Three ways to train a copy of a reward's network on noise levels.

Every network here is called like the reward's own, with one more argument: ``network(*inputs, log_snr=...)``, a log
signal-to-noise ratio for each row. What is trained is what requires a gradient.

- ``full``: all weights, one set for each level, as published with TTSnap (arXiv 2511.22242, section 1.3 of its code).
- ``lora``: one low-rank adapter for each level (Hu et al. 2021, arXiv 2106.09685), by peft.
- ``conditioned``: all weights, one set for all levels; every layer normalisation gets a scale and a shift that depend
  on the level and start at zero (adaLN-Zero, Peebles and Xie 2022, arXiv 2212.09748).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from diffkit.errors import InputError
from diffkit.rewards.base import TrainableReward

__all__ = ["BACKENDS", "Backend", "Conditioned", "PerLevel", "build", "load_trainable", "trainable"]

Backend = Literal["conditioned", "full", "lora"]
BACKENDS: tuple[Backend, ...] = ("conditioned", "full", "lora")
FREQUENCIES = (0.125, 0.25, 0.5, 1.0)  # radians per unit of log-SNR: smooth from one level to the next
WIDTH = 64


class LevelEmbedding(nn.Module):
    """An embedding (B, 64) of log-SNR (B,): sines and cosines of low frequency, then two linear layers."""

    frequencies: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.tensor(FREQUENCIES), persistent=False)
        self.layers = nn.Sequential(nn.Linear(2 * len(FREQUENCIES) + 1, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH))

    def forward(self, log_snr: Tensor) -> Tensor:
        angles = log_snr[:, None] * self.frequencies
        embedding: Tensor = self.layers(torch.cat([log_snr[:, None] / 8, angles.sin(), angles.cos()], dim=1))
        return nn.functional.silu(embedding)


class NoiseNorm(nn.Module):
    """A layer normalisation whose output is scaled and shifted depending on the level; both start at zero."""

    def __init__(self, norm: nn.LayerNorm) -> None:
        super().__init__()
        self.norm = norm
        self.modulation = nn.Linear(WIDTH, 2 * norm.normalized_shape[-1])
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)
        self.embedding: Tensor | None = None  # (B, 64), set while the network runs; several rows may share a level

    def forward(self, states: Tensor) -> Tensor:
        normed: Tensor = self.norm(states)
        if self.embedding is None:
            return normed
        of_rows = self.modulation(self.embedding).repeat_interleave(len(states) // len(self.embedding), dim=0)
        scale, shift = of_rows.chunk(2, dim=-1)
        shape = (len(states), *[1] * (states.dim() - 2), states.shape[-1])
        modulated: Tensor = normed * (1 + scale.view(shape)) + shift.view(shape)
        return modulated


class Conditioned(nn.Module):
    """A copy of a network that is conditioned on the level of every row.

    Raises:
        InputError: the network has no layer normalisation.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = copy.deepcopy(network).requires_grad_(True)
        names = [name for name, module in self.network.named_modules() if isinstance(module, nn.LayerNorm)]
        if not names:
            raise InputError("This reward's network has no nn.LayerNorm to condition; take the back-end full or lora.")
        for name in names:
            parent = self.network.get_submodule(name.rpartition(".")[0])
            setattr(parent, name.rpartition(".")[2], NoiseNorm(getattr(parent, name.rpartition(".")[2])))
        self.embed = LevelEmbedding()

    def forward(self, *inputs: Any, log_snr: Tensor) -> Tensor:
        norms = [module for module in self.network.modules() if isinstance(module, NoiseNorm)]
        embedding = self.embed(log_snr)
        try:
            for norm in norms:
                norm.embedding = embedding
            scores: Tensor = self.network(*inputs)
        finally:
            for norm in norms:
                norm.embedding = None
        return scores


class PerLevel(nn.Module):
    """A network whose weights, or adapters, belong to one level; the level itself is not an input."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, *inputs: Any, log_snr: Tensor) -> Tensor:
        scores: Tensor = self.network(*inputs)
        return scores


def build(backend: Backend, reward: TrainableReward, *, rank: int = 8, seed: int = 0) -> Conditioned | PerLevel:
    """A network that scores like the reward until it is trained, in evaluation mode: dropout stays off.

    Args:
        rank: of the adapters of ``lora``; the others ignore it.
        seed: of the new weights.

    Raises:
        InputError: an unknown back-end, or a network that it does not suit.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if backend == "conditioned":
            return Conditioned(reward.module).eval()
        if backend == "full":
            return PerLevel(copy.deepcopy(reward.module).requires_grad_(True)).eval()
        if backend == "lora":
            return PerLevel(_with_adapter(reward, rank)).eval()
    raise InputError(f"Expected one of {', '.join(BACKENDS)} for the back-end, got {backend!r}.")


def _with_adapter(reward: TrainableReward, rank: int) -> nn.Module:
    from peft import LoraConfig, inject_adapter_in_model

    if rank < 1:
        raise InputError(f"The rank of an adapter is at least 1, got {rank}.")
    network = copy.deepcopy(reward.module).requires_grad_(False)
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=adapter_targets(reward))
    adapted: nn.Module = inject_adapter_in_model(config, network, adapter_name="level")
    return adapted


def adapter_targets(reward: TrainableReward) -> list[str]:
    """Names of the layers that get an adapter: the reward's ``lora_targets``, or every linear layer of attention.

    Raises:
        InputError: it has neither.
    """
    named = getattr(reward, "lora_targets", None)
    if named is not None:
        return list(named)
    linear = [name for name, module in reward.module.named_modules() if isinstance(module, nn.Linear)]
    attention = [name for name in linear if "attn" in name or "attention" in name]
    if not attention:
        raise InputError(f"The reward {reward.name!r} has no attention to adapt; give it lora_targets.")
    return attention


def trainable(network: nn.Module) -> dict[str, nn.Parameter]:
    """What is trained, by name."""
    return {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}


@torch.no_grad()
def load_trainable(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Put back what :func:`trainable` gave, in whatever precision it was kept.

    Raises:
        InputError: it belongs to another network.
    """
    parameters = trainable(network)
    if parameters.keys() != state.keys() or any(p.shape != state[name].shape for name, p in parameters.items()):
        raise InputError("These weights belong to another network, back-end or rank than the one they are read into.")
    for name, parameter in parameters.items():
        parameter.copy_(state[name])
