"""Which detectors a model's family supports: others are refused before anything runs, with the reason.

A detector lists its requirements in ``needs``. What every family meets (a trajectory) is not checked here;
the rest are:

- "gradient": HiDream's experts hand none on.
- "unconditional": a prediction without the caption, as in classifier-free guidance. FLUX.1 was distilled from a model
  that had one; it takes the guidance scale as input and has no such prediction.
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

__all__ = ["compatible_detectors", "incompatibility", "require_compatible"]


class HasNeeds(Protocol):
    """The attributes of a detector that are checked."""

    @property
    def name(self) -> str:
        """As registered."""
        ...

    @property
    def needs(self) -> frozenset[Need]:
        """Its requirements."""
        ...


def _predicts_unconditionally(pipe: Pipeline, family: Family) -> bool:
    return bool(family.guided(pipe, 2.0, {"negative_prompt": "", "true_cfg_scale": _true_scale(family)}))


def _true_scale(family: Family) -> float:
    """The default scale of pipelines that have a keyword of their own for classifier-free guidance, else 1."""
    from diffkit.families.base import stock_default

    return float(stock_default(family, "true_cfg_scale") or 1.0)


#: Requirement -> (whether the family meets it, what the family has instead, in words).
CAPABILITIES: Mapping[Need, tuple[Callable[[Pipeline, Family], bool], str]] = {
    "unconditional": (_predicts_unconditionally, "no prediction without the caption (its guidance is distilled)"),
    "attention": (lambda pipe, family: family.text_attention, "no attention over the text that is read here"),
    "end_token": (lambda pipe, family: family.end_token is not None, "no single end token in its text"),
    "noise_level": (
        lambda pipe, family: is_flow(pipe.scheduler) or hasattr(pipe.scheduler, "alphas_cumprod"),
        "no alphas_cumprod in its scheduler",
    ),
    "gradient": (lambda pipe, family: family.no_gradient is None, "experts that hand no gradient on"),
    "map": (lambda pipe, family: family.latents_are_map, "packed latents, which are no map"),
}


def incompatibility(pipe: Pipeline, detector: HasNeeds) -> str | None:
    """Why the detector cannot score this pipeline's captions, as a sentence without its full stop, or None."""
    family = family_of(pipe)
    for need, (has, words) in CAPABILITIES.items():
        if need in detector.needs and not has(pipe, family):
            return f"the detector {detector.name} does not fit {family.name}, which has {words}"
    return None


def compatible_detectors(pipe: Pipeline, specs: Sequence[str]) -> tuple[str, ...]:
    """Those of the detectors that can score the pipeline's captions, in their order."""
    return tuple(spec for spec in specs if incompatibility(pipe, make_detector(spec)) is None)


def require_compatible(pipe: Pipeline, specs: Sequence[str]) -> None:
    """Refuse detectors that cannot score the pipeline's captions.

    Raises:
        InputError: names the first such detector and the registered ones that can.
    """
    from memorization.detection import detectors

    for spec in specs:
        reason = incompatibility(pipe, make_detector(spec))
        if reason is not None:
            compatible = ", ".join(compatible_detectors(pipe, detectors.names()))
            raise InputError(f"{reason[0].upper()}{reason[1:]}. These fit: {compatible}.")
