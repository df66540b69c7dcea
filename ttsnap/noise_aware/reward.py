"""A reward that takes the noise level into account when it scores estimates of unfinished images.

The method is TTSnap's noise-aware reward (arXiv 2511.22242), made by :mod:`ttsnap.noise_aware.distill`. Where we differ
from the authors' code: levels are keyed by log-SNR, not by step number, so a reward trained at 20 steps serves 12 or
50; one conditioned network or one adapter a level can stand in for a full copy a level; weights are saved, with a card.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from diffkit.errors import InputError
from diffkit.rewards import load_reward
from diffkit.rewards.base import TrainableReward
from diffkit.rewards.identity import weights_digest
from diffkit.runs.files import dump_json, write_bytes_atomically
from ttsnap.assets import NAMES, NOISE_AWARE, shipped
from ttsnap.noise_aware.backends import Backend, build, load_trainable

__all__ = ["LinearCalibration", "NoiseAwareReward", "load_lab", "load_lab_trio"]

SCHEMA_VERSION = 1
CLEAN_MARGIN = 1.0  # in log-SNR: an estimate this much cleaner than the cleanest trained level is scored plainly
SAME_LEVEL = 1e-3  # in log-SNR


class LinearCalibration(NamedTuple):
    """What brings a network's output back to the unit of the plain reward: ``scale * output + shift``; scale > 0."""

    scale: float = 1.0
    shift: float = 0.0


class NoiseAwareReward:
    """A distilled reward: ``score`` is the plain reward, ``score_estimates`` scores estimates at a noise level.

    Which weights score an estimate at log-SNR v: ``full`` and ``lora`` take the straight line in v between the scores
    of the two trained levels around it, which costs two passes and ranked better than the nearest level's weights where
    it was measured, and one level's alone where it was trained; ``conditioned`` takes v itself. An estimate noisier
    than every trained level is scored as at the noisiest, one a little cleaner as at the cleanest; one cleaner than
    ``plain_above`` is scored by the plain reward, which ranks better there.

    Args:
        base: the reward that was distilled.
        backend: conditioned, full or lora.
        levels: (L,) log-SNR of the trained levels, falling: from clean to noisy.
        states: trained weights by name; one set for ``conditioned``, else one a level.
        calibrations: (L,) one a level, or none at all.
        rank: of the adapters.
        plain_above: log-SNR above which the plain reward scores estimates; by default 1.0 above the cleanest level.
        card: its documentation: prompts, settings, tau before and after on held-out prompts.

    Attributes:
        name: the base reward's with ``-noise-aware`` behind it.
        higher_is_better: as the base reward.
        range: as the base reward; a prediction may lie a little outside.
        flops_per_image: of one score of an estimate, counted; between two levels where there are several.

    Example:
        >>> import torch
        >>> from ttsnap import NoiseAwareReward
        >>> reward = NoiseAwareReward.from_pretrained("lab")
        >>> reward
        NoiseAwareReward('lab-noise-aware', conditioned, ... levels of log-SNR ... to ...)
        >>> prompts = ["a red circle left of a blue square on gray"] * 2
        >>> reward.score_estimates(torch.rand(2, 3, 64, 64), prompts, log_snr=-4.0).shape
        torch.Size([2])
    """

    def __init__(
        self,
        base: TrainableReward,
        *,
        backend: Backend,
        levels: Sequence[float],
        states: Sequence[Mapping[str, Tensor]],
        calibrations: Sequence[LinearCalibration] = (),
        rank: int = 8,
        plain_above: float | None = None,
        card: Mapping[str, Any] | None = None,
    ) -> None:
        self.levels = _check_levels(levels)
        self.plain_above = self.levels[0] + CLEAN_MARGIN if plain_above is None else float(plain_above)
        if len(states) != (1 if backend == "conditioned" else len(self.levels)):
            raise InputError(f"Got {len(states)} sets of weights for {len(self.levels)} levels of a {backend} reward.")
        self.base, self.backend, self.rank = base, backend, rank
        self.states = [{name: value.detach().float().cpu() for name, value in state.items()} for state in states]
        self.calibrations = list(calibrations) or [LinearCalibration()] * len(self.levels)
        self.card = dict(card or {})
        self.network: nn.Module = build(backend, base, rank=rank)
        for state in reversed(self.states):  # all are checked, the first stays
            load_trainable(self.network, state)
        self.network.requires_grad_(False)
        self.name = f"{base.name}-noise-aware"
        self.higher_is_better, self.range = base.higher_is_better, base.range
        self.reads_prompts = bool(getattr(base, "reads_prompts", False))
        self.flops_per_image: float | None = self._count_flops()

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """The plain reward (B,) float32 of finished images (B, 3, H, W) in [0, 1]."""
        return self.base.score(images, prompts)

    @torch.no_grad()
    def score_estimates(self, images: Tensor, prompts: Sequence[str], log_snr: float) -> Tensor:
        """What the finished images will be worth (B,) float32, from their estimates (B, 3, H, W) in [0, 1].

        Args:
            log_snr: -2 ln(sigma) of the latents that went into the step; one for all rows, as in a search's look.

        Raises:
            InputError: not as many prompts as images, or no noise level.
        """
        if len(images) != len(prompts):
            raise InputError(f"Got {len(prompts)} prompts for {len(images)} images; give one each.")
        if math.isnan(log_snr):
            raise InputError("The noise level of the estimates is not a number; give log_snr = -2 ln(sigma).")
        if log_snr > self.plain_above:
            return self.base.score(images, prompts)
        log_snr = min(max(log_snr, self.levels[-1]), self.levels[0])
        return self._predict(images, prompts, log_snr).float()

    def _predict(self, images: Tensor, prompts: Sequence[str], log_snr: float) -> Tensor:
        """Calibrated scores (B,) at a level within the trained range."""
        after, share = self._place(log_snr)
        first, second = self.calibrations[after - 1], self.calibrations[after]
        if self.backend == "conditioned":
            scale, shift = (a + share * (b - a) for a, b in zip(first, second, strict=True))
            return scale * self._run(images, prompts, log_snr, 0) + shift
        near = after if share > 0.5 else after - 1
        if abs(self.levels[near] - log_snr) < SAME_LEVEL:
            scale, shift = self.calibrations[near]
            return scale * self._run(images, prompts, log_snr, near) + shift
        cleaner = first.scale * self._run(images, prompts, log_snr, after - 1) + first.shift
        noisier = second.scale * self._run(images, prompts, log_snr, after) + second.shift
        return (1 - share) * cleaner + share * noisier

    def _place(self, log_snr: float) -> tuple[int, float]:
        """The noisier neighbour of a log-SNR and how far, in [0, 1], it lies from the cleaner one before that."""
        if len(self.levels) == 1:
            return 0, 1.0
        after = next(level for level in range(1, len(self.levels)) if self.levels[level] <= log_snr)
        high, low = self.levels[after - 1], self.levels[after]
        return after, (high - log_snr) / (high - low)

    def _run(self, images: Tensor, prompts: Sequence[str], log_snr: float, weights: int) -> Tensor:
        """The output (B,) of the network with one set of weights."""
        device = next(self.base.module.parameters()).device
        self.network.to(device)
        rows = torch.full((len(images),), log_snr, device=device)
        state = {name: value.to(device) for name, value in self.states[weights].items()}

        def call(*inputs: Any) -> Tensor:
            scores: Tensor = functional_call(self.network, state, inputs, {"log_snr": rows})
            return scores

        return self.base.differentiable(images, prompts, module=call)

    def _count_flops(self) -> float:
        side = self.base.input_size
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            between = sum(self.levels[:2]) / len(self.levels[:2])
            self._predict(torch.zeros(1, 3, side, side), [""], between)
        return float(counter.get_total_flops())

    def save_pretrained(self, folder: str | Path) -> None:
        """Write ``config.json``, ``card.json`` and the weights in half precision, one safetensors file a set.

        Raises:
            InputError: a weight is too large for half precision.
        """
        folder = Path(folder)
        for file, state in zip(_weight_files(self.backend, len(self.levels)), self.states, strict=True):
            halved = {name: value.half().contiguous() for name, value in state.items()}
            if not all(bool(torch.isfinite(value).all()) for value in halved.values()):
                raise InputError("A trained weight does not fit half precision; train with a lower learning rate.")
            write_bytes_atomically(folder / file, save(halved, metadata={"format": "pt"}))
        config = {
            "schema_version": SCHEMA_VERSION,
            "backend": self.backend,
            "rank": self.rank,
            "levels": list(self.levels),
            "plain_above": self.plain_above,
            "calibrations": [list(calibration) for calibration in self.calibrations],
            "base": {"name": self.base.name, "sha256": weights_digest(self.base.module)},
        }
        write_bytes_atomically(folder / "card.json", (dump_json(self.card, indent=2) + "\n").encode())
        write_bytes_atomically(folder / "config.json", (dump_json(config, indent=2) + "\n").encode())

    def __repr__(self) -> str:
        """The name, the back-end and the trained levels."""
        levels = f"{len(self.levels)} levels of log-SNR {self.levels[0]:.1f} to {self.levels[-1]:.1f}"
        return f"NoiseAwareReward({self.name!r}, {self.backend}, {levels})"

    @classmethod
    def from_pretrained(cls, folder: str | Path, base: TrainableReward | None = None) -> NoiseAwareReward:
        """Read what :meth:`save_pretrained` wrote.

        Args:
            folder: the folder ``model`` of a distillation, or the name of a shipped one: ``lab``, ``lab-trio``.
            base: the plain reward; by default the registered one that the folder names.

        Raises:
            InputError: the folder holds no such reward or a newer one, is damaged, or was distilled from another
                reward or other weights than ``base``.
        """
        folder = shipped(folder, NOISE_AWARE) if isinstance(folder, str) and folder in NAMES else Path(folder)
        config = _read_config(folder)
        plain = base if base is not None else load_reward(config["base"]["name"])
        if not isinstance(plain, TrainableReward):
            raise InputError(f"The reward {config['base']['name']!r} has no network that {folder} could stand beside.")
        if weights_digest(plain.module) != config["base"]["sha256"]:
            raise InputError(
                f"{folder} was distilled from the reward {config['base']['name']!r} with other weights, another token "
                f"pruning or in another precision than the reward {plain.name!r} given here; load that one in float32, "
                f"or distil again from this one."
            )
        try:
            files = _weight_files(config["backend"], len(config["levels"]))
            states = [load_file(folder / file) for file in files]
            card = json.loads((folder / "card.json").read_bytes())
        except (OSError, ValueError, SafetensorError) as error:
            raise InputError(f"The distilled reward in {folder} is damaged: {error}. Distil it again.") from error
        return cls(
            plain,
            backend=config["backend"],
            levels=config["levels"],
            states=states,
            calibrations=[LinearCalibration(*pair) for pair in config["calibrations"]],
            rank=config["rank"],
            plain_above=config["plain_above"],
            card=card,
        )


def _check_levels(levels: Sequence[float]) -> tuple[float, ...]:
    values = tuple(float(level) for level in levels)
    falling = all(first > second for first, second in itertools.pairwise(values))
    if not values or not falling or not all(math.isfinite(value) for value in values):
        raise InputError(f"Levels are finite log-SNR that fall from clean to noisy, each once, got {list(values)}.")
    return values


def _weight_files(backend: Backend, levels: int) -> list[str]:
    if backend == "conditioned":
        return ["weights.safetensors"]
    return [f"levels/{level:02d}.safetensors" for level in range(levels)]


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / "config.json").read_bytes())
        version = config["schema_version"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder} holds no distilled reward ({error}); give a folder that distill wrote.") from error
    if version > SCHEMA_VERSION:
        raise InputError(f"{folder} was written by a newer diffkit (schema {version}); upgrade diffkit to read it.")
    return dict(config)


def load_lab() -> NoiseAwareReward:
    """What was distilled on ``lab``: the registered reward ``lab-noise-aware``.

    Raises:
        InputError: this installation lacks it.
    """
    return NoiseAwareReward.from_pretrained("lab")


def load_lab_trio() -> NoiseAwareReward:
    """What was distilled on ``lab-trio``: the registered reward ``lab-trio-noise-aware``.

    Raises:
        InputError: this installation lacks it.
    """
    return NoiseAwareReward.from_pretrained("lab-trio")
