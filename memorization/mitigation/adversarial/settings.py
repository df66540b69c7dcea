"""Settings of adversarial fine-tuning, checked before anything is computed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from diffkit.errors import InputError

Precision = Literal["no", "bf16"]


@dataclass(frozen=True)
class AdversarialSettings:
    """Settings of adversarial fine-tuning.

    Attributes:
        updates: of the weights.
        learning_rate: AdamW's; warmed up over 20 updates, a tenth of it at the end (cosine).
        weight_decay: AdamW's.
        adversarial_batch: adversarial samples per update and process.
        retention_batch: retention samples per update and process.
        adversarial_weight: of the adversarial loss; the retention loss has weight 1.
        redirect: share of the adversarial samples that begin at the memorized image.
        redirect_low: smallest signal-to-noise ratio (alpha^2 / sigma^2) of these: below it the input does not
            identify the image, and training would affect every image.
        redirect_high: the largest; above it every denoiser must keep its input.
        searches: unfinished trigger searches per image.
        search_batch: searches that take a step between two updates, per process, each image once before any image
            twice; 0 = no search takes a step, and triggers are captions and fresh starts only.
        search_draws: noise draws per step of a search.
        search_length: steps of the longest search before it restarts.
        search_rate: Adam's learning rate in the searches.
        starts: where searches begin: prompt, other, gaussian.
        surrogates: per suspect.
        surrogate_similarity: a surrogate as similar to any suspect's image, or more, is refused.
        copies: the copy detector for this similarity.
        reward: a reward's name that refuses off-topic surrogates; none by default.
        reward_drop: how far a surrogate may score below the unpruned model's images.
        mask: folder of a pruning mitigation for the surrogates; by default the union of NeMo's neurons.
        retention: lab:scenes, gallery:ordinary, images with captions, captions alone, or auto; see :mod:`.retention`.
        retention_examples: number of pairs used.
        validation: further pairs for the validation loss.
        loss_budget: stop when the validation loss has risen by this share; none = never.
        checkpoint_every: updates between two checkpoints, at most lost by a killed run.
        precision: of the forward passes, "no" (float32) or "bf16"; weights and optimiser stay float32.
        lora_rank: train a LoRA of this rank instead of all weights; 0 = all weights.
        num_inference_steps: of surrogates and generated retention images.
        guidance_scale: of the same.
        seed: of all randomness.
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
        """Check the values.

        Raises:
            InputError: a value is out of its range.
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
