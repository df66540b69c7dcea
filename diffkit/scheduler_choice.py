"""Another scheduler than the model's own, by a short name or diffusers' own class name: ``unipc:solver_order=3``."""

from __future__ import annotations

import inspect
import json
from typing import Any, NamedTuple

from diffkit.errors import InputError, unknown_name
from diffkit.families import Pipeline, Scheduler
from diffkit.families.base import DIFFUSION, FLOW_NOISY
from diffkit.parameterization import is_flow

__all__ = ["SHORT_NAMES", "SchedulerChoice", "put_scheduler", "read_scheduler"]

#: The usual names of samplers -> diffusers' class, and the settings that make it that sampler.
SHORT_NAMES: dict[str, tuple[str, dict[str, object]]] = {
    "ddim": ("DDIMScheduler", {}),
    "ddpm": ("DDPMScheduler", {}),
    "deis": ("DEISMultistepScheduler", {}),
    "dpm2": ("KDPM2DiscreteScheduler", {}),
    "dpm2-a": ("KDPM2AncestralDiscreteScheduler", {}),
    "dpmpp-2m": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++", "solver_order": 2}),
    "dpmpp-2m-karras": (
        "DPMSolverMultistepScheduler",
        {"algorithm_type": "dpmsolver++", "solver_order": 2, "use_karras_sigmas": True},
    ),
    "dpmpp-2m-sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++", "solver_order": 2}),
    "dpmpp-2s": ("DPMSolverSinglestepScheduler", {"algorithm_type": "dpmsolver++", "solver_order": 2}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler-a": ("EulerAncestralDiscreteScheduler", {}),
    "flow-euler": ("FlowMatchEulerDiscreteScheduler", {}),
    "flow-heun": ("FlowMatchHeunDiscreteScheduler", {}),
    "flow-lcm": ("FlowMatchLCMScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "lcm": ("LCMScheduler", {}),
    "lms": ("LMSDiscreteScheduler", {}),
    "pndm": ("PNDMScheduler", {}),
    "tcd": ("TCDScheduler", {}),
    "unipc": ("UniPCMultistepScheduler", {}),
}


class SchedulerChoice(NamedTuple):
    """A scheduler's class, and the settings to give it beside the model's own."""

    kind: Any
    settings: dict[str, object]


def read_scheduler(text: str) -> SchedulerChoice:
    """Read ``NAME[:key=value,...]``.

    Args:
        text: a name of :data:`SHORT_NAMES` or a class of diffusers; values are numbers, true, false, none or words.

    Raises:
        InputError: no such scheduler, or it has no such setting; the message lists those that there are.

    Example:
        >>> choice = read_scheduler("dpmpp-2m:use_karras_sigmas=true")
        >>> choice.kind.__name__, choice.settings["use_karras_sigmas"]
        ('DPMSolverMultistepScheduler', True)
    """
    import diffusers

    name, _, given = text.strip().partition(":")
    class_name, settings = SHORT_NAMES.get(name.strip().lower(), (name.strip(), {}))
    kind = getattr(diffusers, class_name, None) if class_name.endswith("Scheduler") else None
    if not isinstance(kind, type) or not hasattr(kind, "set_timesteps"):
        raise unknown_name("scheduler", name, [*SHORT_NAMES, "or a class of diffusers such as DDIMScheduler"])
    own = [key for key in inspect.signature(kind).parameters if key != "kwargs"]
    values = dict(settings)
    for assignment in given.split(",") if given.strip() else []:
        key, equals, value = (part.strip() for part in assignment.partition("="))
        if not equals:
            raise InputError(f"Expected settings of --scheduler such as {class_name}:{own[0]}=1, got {assignment!r}.")
        if key not in own:
            raise unknown_name(f"setting of {class_name}", key, own)
        values[key] = _value(value)
    return SchedulerChoice(kind, values)


def _value(text: str) -> object:
    """A number, a truth value or None, else the word itself."""
    try:
        value: object = json.loads({"none": "null"}.get(text.lower(), text.lower()))
    except ValueError:
        return text
    return value


def _fitting(own: Scheduler) -> set[Any]:
    """Classes that take the settings of a model's scheduler: its own, those it names, and those of its kind.

    diffusers names none for the schedulers of LCM, of TCD and of flows.
    """
    import diffusers

    named = {type(own), *own.compatibles}
    names = {kind.__name__ for kind in named}
    if not is_flow(own) and names & set(DIFFUSION):
        names |= set(DIFFUSION)
    elif type(own).__name__.startswith("FlowMatch"):
        names |= {name for name in FLOW_NOISY if name.startswith("FlowMatch")}
    return named | {getattr(diffusers, name) for name in names if hasattr(diffusers, name)}


def put_scheduler(pipe: Pipeline, text: str) -> None:
    """Give a pipeline another scheduler, with the settings of its own where both have them, as in diffusers.

    Raises:
        InputError: see :func:`read_scheduler`; the scheduler does not fit the model, or refuses a setting.
    """
    choice, own = read_scheduler(text), pipe.scheduler
    fitting = _fitting(own)
    if choice.kind not in fitting:
        names = ", ".join(sorted(kind.__name__ for kind in fitting))
        raise InputError(
            f"{choice.kind.__name__} does not fit this {type(pipe).__name__}, whose scheduler is "
            f"{type(own).__name__}; choose one of: {names}."
        )
    try:
        scheduler = choice.kind.from_config(own.config, **choice.settings)
    except (NotImplementedError, TypeError, ValueError) as error:
        raise InputError(f"{choice.kind.__name__} refuses the settings of --scheduler {text!r}: {error}.") from error
    pipe.scheduler = scheduler
