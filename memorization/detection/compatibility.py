"""Which detectors fit a model's family: refused before anything runs, with the reason.

A detector says by ``needs`` what it must have. What every family can give (a gradient, a trajectory) is not looked at
here; the rest is:

- "unconditional": a prediction without the caption, as classifier-free guidance asks for. FLUX.1 is told its guidance
  and was distilled from a model that had one; it has none itself.
- "attention": probabilities of image queries over text tokens: the cross-attention of Stable Diffusion and SDXL, the
  joint attention of SD3 and FLUX.1. Other families mix text and image in ways that have not been described here.
- "end_token": one place in the sequence where the caption ends; SD3 has two sequences one behind the other.
- "noise_level": what share of noise a timestep stands for, by alpha-bar or by flow matching.
- "map": latents that are pictures, not packed into tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from diffkit.errors import InputError
from diffkit.families import Family, family_of
from diffkit.parameterization import is_flow
from memorization.detection import make_detector
from memorization.detection.base import Need

if TYPE_CHECKING:
    from diffkit.families import Pipeline

__all__ = ["fitting", "lacking", "refuse_misfits"]


class Needy(Protocol):
    """What of a detector is looked at."""

    @property
    def name(self) -> str:
        """As registered."""
        ...

    @property
    def needs(self) -> frozenset[Need]:
        """What it must have."""
        ...


def _asked_without(pipe: Pipeline, family: Family) -> bool:
    return bool(family.guided(pipe, 2.0, {"negative_prompt": "", "true_cfg_scale": _true_scale(family)}))


def _true_scale(family: Family) -> float:
    """What guides truly in the pipelines that have a keyword of their own for it, and do so by default."""
    from diffkit.families.base import stock_default

    return float(stock_default(family, "true_cfg_scale") or 1.0)


#: What may be missing -> (whether the family has it, what it lacks in words).
HAS: Mapping[Need, tuple[Callable[[Pipeline, Family], bool], str]] = {
    "unconditional": (_asked_without, "no prediction without the caption (its guidance is distilled)"),
    "attention": (lambda pipe, family: family.text_attention, "no attention over the text that is read here"),
    "end_token": (lambda pipe, family: family.end_token is not None, "no single end token in its text"),
    "noise_level": (
        lambda pipe, family: is_flow(pipe.scheduler) or hasattr(pipe.scheduler, "alphas_cumprod"),
        "no alphas_cumprod in its scheduler",
    ),
    "map": (lambda pipe, family: family.latents_are_map, "packed latents, which are no map"),
}


def lacking(pipe: Pipeline, detector: Needy) -> str | None:
    """Why the detector cannot score this pipeline's captions, as a sentence without its full stop, or None."""
    family = family_of(pipe)
    for need, (has, words) in HAS.items():
        if need in detector.needs and not has(pipe, family):
            return f"the detector {detector.name} does not fit {family.name}, which has {words}"
    return None


def fitting(pipe: Pipeline, specs: Sequence[str]) -> tuple[str, ...]:
    """Those of the detectors that fit the pipeline, in their order."""
    return tuple(spec for spec in specs if lacking(pipe, make_detector(spec)) is None)


def refuse_misfits(pipe: Pipeline, specs: Sequence[str]) -> None:
    """Refuse detectors that do not fit.

    Raises:
        InputError: the first that does not, and which of ours do.
    """
    from memorization.detection import detectors

    for spec in specs:
        reason = lacking(pipe, make_detector(spec))
        if reason is not None:
            known = ", ".join(fitting(pipe, detectors.names()))
            raise InputError(f"{reason[0].upper()}{reason[1:]}. These fit: {known}.")
