"""Adversarial fine-tuning: train the model against its own triggers until no embedding brings the image back.

"Finding Dori: Memorization in Text-to-Image Diffusion Models Is Not Local" (arXiv 2507.16880): pruning hides a memory
from its caption, text embeddings still find it, so all weights of the denoiser are trained on

    L = E || target - model(x_t, t, y_keep) ||^2  +  E || target - model(s_t, t, y_adv) ||^2,

x and y_keep from data to keep, y_adv triggers found by DoRI on the model as it is, s surrogates
(:mod:`.surrogates`). The authors' code was not public when this was written. Chosen by us, by measurement on the lab:

- Triggers come from a pool of searches that goes on between updates (:mod:`.trigger_pool`), not from full searches
  once an epoch; the plain caption and fresh starts always are among them.
- A share of the adversarial samples begins at the *memorized* image: its noisy latents with the surrogate as the
  target, which is the same loss with shifted noise, see :func:`redirected`. It takes away the basin that triggers
  lead into, whatever the embedding; without it the search soon finds the next one. Only at medium noise: at low
  noise every denoiser must keep what it sees, at high noise it cannot know which image it sees. Their target is the
  mean of the image's surrogates, since one drawn at random would only be noise, and they weigh 1 - abar (sigma^2 of a
  flow model), which is the error of x0 for a model of velocity.
- Retention holds the unconditional branch: a tenth of its captions are empty.

The published run says that LoRA failed; ``lora_rank`` lets one see.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor

from diffkit.errors import InputError
from memorization.mitigation import Method

if TYPE_CHECKING:
    from diffkit.families import Pipeline
    from diffkit.mitigation import Mitigation
    from diffkit.runs import Run
    from diffkit.suspects import Suspect

__all__ = ["METHOD", "AdversarialSettings", "mitigate", "rate_factor", "redirected"]

Precision = Literal["no", "bf16"]


@dataclass(frozen=True)
class AdversarialSettings:
    """What the method can be told.

    Attributes:
        updates: of the weights.
        learning_rate: AdamW's; warmed up over 20 updates, a tenth of it at the end (cosine).
        weight_decay: AdamW's.
        adversarial_batch: adversarial samples per update and process.
        retention_batch: retention samples per update and process.
        adversarial_weight: of the adversarial loss; the retention loss has weight 1.
        redirect: share of the adversarial samples that begin at the memorized image.
        redirect_low: smallest signal-to-noise ratio (alpha^2 / sigma^2) of these: below it the image is not to be
            seen, and what is learned there would hold for every image.
        redirect_high: the largest; above it every denoiser must keep what it sees.
        searches: half-done trigger searches per image.
        search_batch: searches that take a step between two updates, per process, every image served before one is
            served twice; 0 = none ever moves, and triggers are captions and fresh starts only.
        search_draws: noise draws per step of a search.
        search_length: steps of the longest search before it begins anew.
        search_rate: Adam's learning rate in the searches.
        starts: where searches begin: prompt, other, gaussian.
        surrogates: per suspect.
        surrogate_similarity: a surrogate as similar to any suspect's image, or more, is refused.
        copies: the copy detector that says so.
        reward: a reward's name that refuses off-topic surrogates; none by default.
        reward_drop: how far a surrogate may score under the model's own drawing.
        mask: folder of a pruning mitigation that makes the surrogates; by default the union of NeMo's neurons.
        retention: lab:scenes, images with captions, captions alone, or auto; see :mod:`.retention`.
        retention_examples: pairs of it that are used.
        validation: further pairs whose loss is watched.
        loss_budget: stop when the validation loss has risen by this share; none = never.
        checkpoint_every: updates between two checkpoints, which is what a killed run can lose.
        precision: of the forward passes, "no" (float32) or "bf16"; weights and optimiser stay float32.
        lora_rank: train a LoRA of this rank instead of all weights; 0 = all weights.
        num_inference_steps: of surrogates and drawn retention images.
        guidance_scale: of the same.
        seed: of everything random.
    """

    updates: int = 2000
    learning_rate: float = 1e-5
    weight_decay: float = 1e-2
    adversarial_batch: int = 4
    retention_batch: int = 4
    adversarial_weight: float = 1.0
    redirect: float = 0.5
    redirect_low: float = 0.02
    redirect_high: float = 2.0
    searches: int = 3
    search_batch: int = 4
    search_draws: int = 4
    search_length: int = 100
    search_rate: float = 0.1
    starts: tuple[str, ...] = ("prompt", "other", "gaussian")
    surrogates: int = 4
    surrogate_similarity: float = 0.5
    copies: str = "tiled"
    reward: str | None = None
    reward_drop: float = 0.02
    mask: str | None = None
    retention: str = "auto"
    retention_examples: int = 2000
    validation: int = 32
    loss_budget: float | None = None
    checkpoint_every: int = 50
    precision: str = "no"
    lora_rank: int = 0
    num_inference_steps: int = 50
    guidance_scale: float = 7.5
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be meant.

        Raises:
            InputError: the first such setting.
        """
        from memorization.attack.initialization import read_starts

        read_starts(self.starts)
        counts = ("updates", "adversarial_batch", "retention_batch", "searches", "search_draws")
        for name in (*counts, "search_length", "surrogates", "validation", "checkpoint_every", "retention_examples"):
            if getattr(self, name) < 1:
                raise InputError(f"Expected {name} of at least 1, got {getattr(self, name)}.")
        for name in ("learning_rate", "search_rate", "redirect_low"):
            if not getattr(self, name) > 0:
                raise InputError(f"Expected a positive {name}, got {getattr(self, name)}.")
        if not 0 <= self.redirect <= 1:
            raise InputError(f"Expected redirect, a share, in [0, 1], got {self.redirect}.")
        if not self.redirect_low < self.redirect_high:
            raise InputError(f"Expected redirect_low under redirect_high, got {self.redirect_low}.")
        if self.precision not in get_args(Precision):
            raise InputError(f"Expected precision no or bf16, got {self.precision!r}.")
        for name in ("lora_rank", "search_batch"):
            if getattr(self, name) < 0:
                raise InputError(f"Expected {name} of 0 or more, got {getattr(self, name)}.")


def redirected(begin: Tensor, end: Tensor, noise: Tensor, ratio: Tensor) -> Tensor:
    """The noise that makes the noisy picture of ``begin`` a noisy picture of ``end``.

    With s the ratio of signal to noise, ``s^2 = abar / (1 - abar)`` or ``s = (1 - sigma) / sigma`` of a flow model:
    ``sqrt(abar) end + sqrt(1 - abar) noise'`` equals ``sqrt(abar) begin + sqrt(1 - abar) noise`` for
    ``noise' = noise + s (begin - end)``, and likewise under flow matching. Training on (end, noise') by the model's
    own law teaches it to go from the surroundings of ``begin`` to ``end``; for ``begin = end`` it is the plain
    diffusion loss. The shift grows with s: keep the signal-to-noise ratio s^2 bounded.

    Args:
        begin: (B, ...) latents whose noisy version the model sees.
        end: (B, ...) latents it shall predict.
        noise: (B, ...) standard normal.
        ratio: (B,) s, > 0.
    """
    return noise + ratio.view(-1, *[1] * (noise.ndim - 1)) * (begin - end)


def rate_factor(update: int, updates: int, *, warmup: int = 20, floor: float = 0.1) -> float:
    """Learning-rate factor in (0, 1]: linear warm-up, then half a cosine down to ``floor``."""
    if update < warmup:
        return (update + 1) / warmup
    along = torch.tensor((update - warmup) / max(1, updates - warmup)).double()
    return floor + (1 - floor) * float((1 + (along * torch.pi).cos()) / 2)


def mitigate(pipe: Pipeline, suspects: Sequence[Suspect], run: Run | None, settings: AdversarialSettings) -> Mitigation:
    """Train a copy of the denoiser's weights against the suspects and give the difference; the pipeline stays.

    The run keeps surrogates, drawn retention images and a checkpoint: a killed run loses at most
    ``settings.checkpoint_every`` updates and ends on the same numbers as one that was left alone.

    Raises:
        InputError: no retention data, an image that cannot be read, or a mask made for another model.
    """
    from memorization.mitigation.adversarial.trainer import train

    return train(pipe, suspects, run, settings)


#: Measured on the lab (scripts/measure_adversarial.py); the plain defaults are the usual ones for Stable Diffusion 1,
#: not measured.
LAB = {
    "updates": 500,
    "learning_rate": 2e-4,
    "adversarial_batch": 16,
    "retention_batch": 32,
    "adversarial_weight": 0.5,
    "search_batch": 8,
    "num_inference_steps": 20,
    "guidance_scale": 3.0,
}

METHOD = Method("adversarial", "delta", AdversarialSettings, mitigate, needs_images=True, shared=True, lab=LAB)
