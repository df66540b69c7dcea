"""The keyword arguments of a family's own call: what a search carries, what shapes the text, what it must refuse."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from diffusers.utils import logging as diffusers_logging

from diffkit.custom_steps import ANGLES
from diffkit.errors import InputError
from diffkit.families import Family, Pipeline, any_family_of, stock_class
from diffkit.families.base import keywords_of

__all__ = ["Keywords", "check_sides", "check_step_callback", "rounded_sides", "sort_keywords"]

REFUSED = {
    "latents": "the noise comes from seeds or generators",
}
REFUSED_PARTS = {
    "prompt_embeds": "give the prompts as text, they are encoded once",
    "callback": "a search calls the pipeline several times, in parts; callback_on_look is called at each of its looks",
}
NONE_IS_A_VALUE = (*ANGLES, "complex_human_instruction")  # of Sana: no instruction instead of its own
STEP_CALLBACKS = ("callback_on_step_end", "callback_on_step_end_tensor_inputs")


class Keywords(NamedTuple):
    """Further keyword arguments of every call of the stock pipeline, and those that only shape the encoding."""

    extra: dict[str, object]
    encoding: dict[str, object]


def check_sides(family: Family, height: int | None, width: int | None) -> None:
    """Refuse one side of the image alone where the stock pipeline would ignore it, and both where it takes none.

    Raises:
        InputError: see there.
    """
    if "height" not in keywords_of(stock_class(family)) and (height, width) != (None, None):
        raise InputError(f"{family.pipeline} takes no height or width: its images are as large as the picture.")
    if family.sides_together and (height is None) != (width is None):
        raise InputError(f"{family.pipeline} ignores a height or width that stands alone; give both.")


def rounded_sides(pipe: Pipeline, height: int | None, width: int | None) -> tuple[int | None, int | None]:
    """Height and width as the stock pipeline rounds them, with its warning; as they are where it rounds none."""
    family, cell = any_family_of(pipe), any_family_of(pipe).multiple(pipe)
    if (
        not family.rounds
        or family.pictures
        or family.control
        or not any(side is not None and side >= cell and side % cell for side in (height, width))
    ):
        return height, width
    diffusers_logging.get_logger(stock_class(family).__module__).warning(
        f"`height` and `width` have to be divisible by {cell} but are {height} and {width}. Dimensions will be resized "
        f"accordingly"
    )
    rounded = [side if side is None or side < cell else side - side % cell for side in (height, width)]
    return rounded[0], rounded[1]


def check_step_callback(extra: Mapping[str, object], *, uncut: bool) -> bool:
    """Whether a callback of the stock pipeline is called at every step.

    Args:
        uncut: whether one candidate of each prompt is denoised without a look.

    Raises:
        InputError: it would be called in a search.
    """
    if not any(name in extra for name in STEP_CALLBACKS):
        return False
    if not uncut:
        raise InputError(
            "callback_on_step_end is called at the steps of one candidate: give num_candidates=1 and schedule='', or "
            "callback_on_look, which is called at each look of a search."
        )
    return True


def sort_keywords(
    family: Family, given: Mapping[str, object], accepted: Mapping[str, object] | None = None
) -> Keywords:
    """Sort the further keyword arguments of a search; what is None counts as not given, where that is no value.

    Args:
        accepted: the keywords of the pipeline's call; the family's own when None.

    Raises:
        InputError: the family's pipeline knows no such keyword, or a search cannot carry it.
    """
    accepted = keywords_of(stock_class(family)) if accepted is None else accepted
    sorted_ = Keywords({}, {})
    for name, value in given.items():
        if name not in accepted and name not in family.encoding:
            raise InputError(f"{family.pipeline} takes no {name}; its own keywords are: {', '.join(accepted)}.")
        if value is None and name not in NONE_IS_A_VALUE:
            continue
        if "ip_adapter" in name and not family.image_prompts:
            raise InputError(f"A search takes no {name}: image prompts of {family.name} are not carried.")
        reason = REFUSED.get(name) or next((why for part, why in REFUSED_PARTS.items() if part in name), None)
        if reason is not None and name not in STEP_CALLBACKS:
            raise InputError(f"A search takes no {name}: {reason}.")
        (sorted_.encoding if name in family.encoding else sorted_.extra)[name] = value
    return sorted_
