"""Transfer of triggers to other seeds, samplers, step counts and guidance, and to the model before or after mitigation.

A trigger is optimised on one model for the training loss, not for a sampler. One that brings the image back under every
condition depends on the image; one that works only under the condition of its evaluation may depend on that condition.
Between the original and a mitigated model the direction matters: a trigger of the original that works after a
mitigation shows that the image was not removed; one of the mitigated model that works on the original shows that both
have memorized the same image.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from diffkit.errors import InputError, unknown_name
from diffkit.parameterization import is_flow
from diffkit.stats import clopper_pearson
from memorization.copies import CopyDetector
from memorization.copies.finite import finite_similarity
from memorization.generation import Sampling, generate
from memorization.text_embeddings import Embedded, as_embeds, empty_text

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

#: Samplers by the names of the field; the pipeline's own is None.
SAMPLERS: dict[str, str] = {
    "ddim": "DDIMScheduler",
    "ddpm": "DDPMScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler-ancestral": "EulerAncestralDiscreteScheduler",
    "dpm++": "DPMSolverMultistepScheduler",
    "unipc": "UniPCMultistepScheduler",
    "pndm": "PNDMScheduler",
}


@dataclass(frozen=True)
class Condition:
    """How images are generated from a trigger.

    Attributes:
        name: for tables.
        sampler: a key of :data:`SAMPLERS`, or None for the pipeline's own scheduler.
        num_inference_steps: of the generation; ``guidance_scale`` likewise.
        seeds: one image each, the same for all triggers.
    """

    name: str
    sampler: str | None = None
    num_inference_steps: int = 20
    guidance_scale: float = 3.0
    seeds: tuple[int, ...] = (0, 1, 2)

    def __post_init__(self) -> None:
        """Check the values."""
        if self.sampler is not None and self.sampler not in SAMPLERS:
            raise unknown_name("sampler", self.sampler, list(SAMPLERS))
        if self.num_inference_steps < 1 or self.guidance_scale < 0 or not self.seeds:
            raise InputError(f"Condition {self.name!r}: expected steps of at least 1, guidance >= 0 and seeds.")


def varied_conditions(sampling: Sampling, seeds: Sequence[int], fresh: Sequence[int]) -> list[Condition]:
    """Conditions that differ from the evaluation in one setting each.

    Args:
        sampling: steps and guidance of the evaluation.
        seeds: of the evaluation.
        fresh: other seeds, used by every condition but the first.
    """
    steps, guidance, new = sampling.num_inference_steps, sampling.guidance_scale, tuple(fresh)
    changed = [Condition(name, name, steps, guidance, new) for name in ("euler", "dpm++", "unipc", "euler-ancestral")]
    return [
        Condition("as evaluated", None, steps, guidance, tuple(seeds)),
        Condition("fresh seeds", None, steps, guidance, new),
        *changed,
        Condition(f"{max(1, steps // 2)} steps", None, max(1, steps // 2), guidance, new),
        Condition(f"{steps * 5 // 2} steps", None, steps * 5 // 2, guidance, new),
        Condition("no guidance", None, steps, 1.0, new),
        Condition(f"guidance {guidance * 2.5:g}", None, steps, guidance * 2.5, new),
    ]


@dataclass(frozen=True, eq=False)
class TransferResult:
    """Similarities of N triggers on one model under one condition.

    Attributes:
        model: as named by the caller.
        condition: of the generation.
        similarity: (N, seeds) to the reference each resembles most, higher = more alike; NaN = a broken image.
    """

    model: str
    condition: Condition
    similarity: Tensor

    def succeeded(self, threshold: float) -> list[bool | None]:
        """Whether the median over seeds reaches the threshold; None where an image was broken."""
        broken = self.similarity.isnan().any(1).tolist()
        hits = (self.similarity.quantile(0.5, dim=1) >= threshold).tolist()
        return [None if bad else bool(hit) for hit, bad in zip(hits, broken, strict=True)]

    def rate(self, threshold: float, which: Sequence[int] | None = None) -> dict[str, Any]:
        """Share of the triggers at ``which`` that succeed, with its exact 95 % interval, as JSON values.

        Broken ones are counted in ``broken`` and left out of ``n``; with none left the share is None.
        """
        results = self.succeeded(threshold)
        chosen = [results[i] for i in (range(len(results)) if which is None else which)]
        scored = [hit for hit in chosen if hit is not None]
        k, n = sum(scored), len(scored)
        low, high = clopper_pearson(k, n)
        share = k / n if n else None
        return {"k": k, "n": n, "share": share, "low": low, "high": high, "broken": len(chosen) - n}


def transfer(
    pipes: Mapping[str, DiffusionPipeline],
    triggers: Embedded,
    references: Sequence[Tensor],
    copies: CopyDetector,
    conditions: Sequence[Condition],
    *,
    micro_batch: int = 16,
) -> list[TransferResult]:
    """Generate from every trigger on every model under every condition.

    Args:
        pipes: models by name, with the same text width; e.g. the original and a mitigated one.
        triggers: N rows of embeddings.
        references: N stacks (R, 3, H, W) in [0, 1] of the target images of each trigger.
        copies: the copy detector.
        conditions: see :func:`varied_conditions`.
        micro_batch: images generated at once.

    Raises:
        InputError: not one stack of references for each trigger.
    """
    if len(references) != len(triggers):
        raise InputError(f"Expected references for each of {len(triggers)} triggers, got {len(references)}.")
    results = []
    for model, pipe in pipes.items():
        negative = empty_text(pipe)
        for condition in conditions:
            n = len(condition.seeds)
            refuse_other_samplers(pipe, condition)
            sampling = Sampling(condition.num_inference_steps, condition.guidance_scale, micro_batch)
            rows, seeds = as_embeds(triggers).repeat(n), list(condition.seeds) * len(triggers)
            with sampler(pipe, condition.sampler):
                images = generate(pipe, rows, negative, seeds, sampling=sampling).images.split(n)
            pairs = zip(images, references, strict=True)
            similarity = torch.stack([finite_similarity(copies, image, stack).amax(1) for image, stack in pairs])
            results.append(TransferResult(model, condition, similarity.float().cpu()))
    return results


def refuse_other_samplers(pipe: DiffusionPipeline, condition: Condition) -> None:
    """Refuse to sample a flow model by a scheduler of diffusion.

    Raises:
        InputError: the condition names one.
    """
    if condition.sampler is not None and is_flow(pipe.scheduler):
        raise InputError(f"Condition {condition.name!r}: a flow model has its own sampler; leave the sampler out.")


@contextmanager
def sampler(pipe: DiffusionPipeline, name: str | None) -> Iterator[None]:
    """Sample by another scheduler, on the same noise schedule and prediction type, inside the ``with`` block."""
    own = pipe.scheduler
    if name is not None:
        import diffusers

        options = {"skip_prk_steps": True} if name == "pndm" else {}  # as Stable Diffusion uses it
        pipe.scheduler = getattr(diffusers, SAMPLERS[name]).from_config(own.config, **options)
    try:
        yield
    finally:
        pipe.scheduler = own
