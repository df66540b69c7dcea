"""The interface of rewards: images and prompts in, one number for each image out."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol, TypeAlias, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from diffkit.errors import InputError
from diffkit.finite import NOT_FINITE, finite_rows

__all__ = [
    "EstimateReward",
    "Reward",
    "RewardFunction",
    "RewardLike",
    "Scores",
    "TrainableReward",
    "as_reward",
    "describe",
    "score_checked",
]

RewardFunction: TypeAlias = Callable[[Tensor, Sequence[str]], object]  # returns (B,) numbers: a tensor, array or list


@runtime_checkable
class Reward(Protocol):
    """A scorer of images.

    Attributes:
        name: how records call it.
        higher_is_better: direction of the score.
        range: lowest and highest possible score, infinite where there is none.
        flops_per_image: floating-point operations of one score, or None when unknown.

    One that says ``reads_prompts = True`` is never asked without words. One that says ``scores_videos = True`` scores
    videos (B, frames, 3, H, W) instead; see :mod:`diffkit.rewards.frames`.
    """

    name: str
    higher_is_better: bool
    range: tuple[float, float]
    flops_per_image: float | None

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores (B,) float32 of images (B, 3, H, W) float in [0, 1]; NaN where an image cannot be scored."""
        ...


@runtime_checkable
class EstimateReward(Reward, Protocol):
    """A reward that can also predict the final score from an unfinished image; ``score`` is for finished ones.

    The noise level is a log signal-to-noise ratio, not a step number, so that one reward serves any number of steps.
    """

    def score_estimates(self, images: Tensor, prompts: Sequence[str], log_snr: float) -> Tensor:
        """Scores (B,) float32, in the unit of ``score``, of decoded x0 estimates (B, 3, H, W) float in [0, 1].

        Args:
            log_snr: -2 ln(sigma), sigma being noise over signal of the latents that went into the step; higher is
                cleaner.
        """
        ...


@runtime_checkable
class TrainableReward(Reward, Protocol):
    """A reward whose network can be fine-tuned. One that has ``lora_targets`` says which linear layers adapters sit on.

    Attributes:
        input_size: height and width of the square images that its network sees.
    """

    input_size: int

    @property
    def module(self) -> nn.Module:
        """The network, in evaluation mode; train a copy of it."""
        ...

    def differentiable(
        self, images: Tensor, prompts: Sequence[str], module: Callable[..., Tensor] | None = None
    ) -> Tensor:
        """Scores (B,) with gradient of images (B, 3, H, W) float in [0, 1], on the network's device.

        Args:
            module: called in place of ``self.module``, with its arguments, one row an image in each of them.
        """
        ...


RewardLike: TypeAlias = str | Reward | RewardFunction


class _CallableReward:
    """A bare function as a reward; nothing is known about its range and cost."""

    def __init__(self, function: RewardFunction) -> None:
        self.function = function
        self.name = str(getattr(function, "__name__", type(function).__name__))
        self.higher_is_better = bool(getattr(function, "higher_is_better", True))
        self.range = (float("-inf"), float("inf"))
        self.scores_videos = bool(getattr(function, "scores_videos", False))
        flops = getattr(function, "flops_per_image", None)
        self.flops_per_image: float | None = None if flops is None else float(flops)

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Whatever the function returns; :func:`score_checked` makes a checked tensor of it."""
        return self.function(images, prompts)  # type: ignore[return-value]


def as_reward(reward: Reward | RewardFunction) -> Reward:
    """A reward as it is, or a callable ``(images, prompts) -> scores`` wrapped.

    Scores are a tensor, array or list of one number for each image; NaN, or None in a list, where there is none. The
    callable's attributes ``higher_is_better``, ``flops_per_image`` and ``scores_videos`` count where it has them.

    Raises:
        InputError: it is neither, or a class.
    """
    if isinstance(reward, type) and not isinstance(
        inspect.getattr_static(reward, "score", None), staticmethod | classmethod
    ):
        raise InputError(f"The reward is the class {reward.__name__}; give an instance, {reward.__name__}(...).")
    if hasattr(reward, "score"):
        missing = [n for n in ("name", "higher_is_better", "range", "flops_per_image") if not hasattr(reward, n)]
        if missing:
            raise InputError(
                f"The reward {type(reward).__name__} lacks {', '.join(missing)}; see diffkit.rewards.Reward."
            )
        return reward  # type: ignore[return-value]
    if not callable(reward):
        raise InputError(
            f"Expected the name of a reward, a Reward, or a callable (images, prompts) -> scores, got {reward!r}."
        )
    return _CallableReward(reward)


def describe(reward: Reward) -> dict[str, object]:
    """What a record says of a reward: its name, and its card (preprocessing, checksums, tau) where it has one."""
    card = getattr(reward, "card", None)
    details: Mapping[str, object] = card() if callable(card) else card or {}
    return {"name": reward.name, **details}


class Scores(NamedTuple):
    """Scores of a batch.

    Attributes:
        values: (B,) float32 on the CPU, NaN where the image could not be scored.
        reasons: for each image why not, or None.
    """

    values: Tensor
    reasons: list[str | None]


@torch.no_grad()
def score_checked(reward: Reward, images: Tensor, prompts: Sequence[str], log_snr: float | None = None) -> Scores:
    """Score images and check what comes back: an infinite or missing score is that image's error, never a score.

    An image that is not finite is not shown to the reward: one that works on 8-bit pictures would score it as black.

    Args:
        images: (B, 3, H, W) float in [0, 1], or not finite.
        prompts: B strings.
        log_snr: noise level that the images were estimated from, for rewards that know noise levels (others judge an
            estimate like any image); None for finished images.

    Raises:
        InputError: the reward does not return one number for each image.
    """
    if len(prompts) != len(images):
        raise InputError(f"Got {len(prompts)} prompts for {len(images)} images; give one each.")
    whole = finite_rows(images)
    if bool(whole.all()):
        return _scored(reward, images, prompts, log_snr)
    values, reasons = torch.full((len(images),), torch.nan), [NOT_FINITE if not row else None for row in whole.tolist()]
    rows = whole.nonzero().flatten().tolist()
    if rows:
        scored = _scored(reward, images[rows], [prompts[row] for row in rows], log_snr)
        values[rows] = scored.values
        for row, reason in zip(rows, scored.reasons, strict=True):
            reasons[row] = reason
    return Scores(values, reasons)


def _tensor(returned: object) -> Tensor:
    """What a reward returned as float32 on the CPU; NaN for None, the missing score of a list.

    Raises:
        TypeError, ValueError, RuntimeError: it holds anything but numbers.
    """
    if isinstance(returned, np.ndarray):
        returned = returned.tolist() if returned.dtype == object else returned.copy()  # torch takes no negative strides
    if isinstance(returned, list | tuple):
        returned = [torch.nan if score is None else score for score in returned]
    return torch.as_tensor(returned).detach().float().cpu()


def _scored(reward: Reward, images: Tensor, prompts: Sequence[str], log_snr: float | None) -> Scores:
    """Scores of finite images, of which the reward gets a copy: some normalize in place.

    Raises:
        InputError: the reward does not return one number for each image.
    """
    images = images.clone()
    if log_snr is not None and isinstance(reward, EstimateReward):
        returned = reward.score_estimates(images, list(prompts), log_snr)
    else:
        returned = reward.score(images, list(prompts))
    try:
        values = _tensor(returned)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"The reward {reward.name!r} returned no numbers: {error}.") from error
    if values.shape != (len(images),):
        raise InputError(
            f"The reward {reward.name!r} must return one score for each of {len(images)} images, shape "
            f"({len(images)},), got shape {tuple(values.shape)}."
        )
    reasons = [
        None if torch.isfinite(value) else f"the reward {reward.name!r} returned {value.item()}" for value in values
    ]
    return Scores(torch.where(torch.isfinite(values), values, torch.nan), reasons)
