"""Run a mitigation method in a run folder: interrupted anywhere, it goes on; at the end the folder is a mitigation."""

from __future__ import annotations

import typing
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffkit import parallel
from diffkit.errors import InputError, unknown_name
from diffkit.lab.assets import MODELS as LAB_MODELS
from diffkit.mitigation import Mitigation, load_mitigation, save_mitigation
from diffkit.runs.shared import open_shared
from memorization.items import AuditItem, data_digest
from memorization.mitigation import Method

if TYPE_CHECKING:
    from diffkit.families import Pipeline
    from diffkit.suspects import Suspect

__all__ = ["mitigate", "parse_settings"]


def mitigate(
    pipe: Pipeline,
    suspects: Sequence[Suspect],
    *,
    method: Method,
    out: str | Path,
    model: str,
    settings: Any = None,
    model_sha256: str | None = None,
) -> Mitigation:
    """Make a mitigation in the folder ``out``, or go on with the one that is there.

    Args:
        pipe: the pipeline; it comes back unchanged.
        suspects: against which memories.
        method: one of :data:`memorization.mitigation.methods`.
        out: the run's folder; afterwards ``load_pipeline(model, mitigation=out)`` applies it.
        model: what the user called the model.
        settings: an instance of ``method.settings``; its defaults where None.
        model_sha256: checksum of the model's folder, where it is one.

    Raises:
        InputError: no suspects, two with one id, one without an image where the method needs it, or another run in
            the folder.
    """
    settings = parse_settings(method, (), model=model) if settings is None else settings
    if parallel.processes() > 1 and not method.shared:
        raise InputError(f"{method.name} works in one process: start it without accelerate launch.")
    ids = [suspect.id for suspect in suspects]
    if not ids or len(set(ids)) < len(ids):
        raise InputError(f"Expected one or more suspects with different ids, got {len(ids)}.")
    bare = [suspect.id for suspect in suspects if not suspect.images]
    if method.needs_images and bare:
        raise InputError(f"{method.name} needs the image of every suspect, and {bare[0]!r} has none.")
    config = {
        "method": method.name,
        "model": model,
        "model_sha256": model_sha256,
        "suspects": len(ids),
        "data_sha256": data_digest([AuditItem("suspect", suspect) for suspect in suspects]),
        "settings": asdict(settings),
    }
    with open_shared(out, config=config, kind="mitigate", provenance={"device": str(pipe.device)}) as run:
        pipe.set_progress_bar_config(disable=True)
        made = method.mitigate(pipe, suspects, run, settings)
        if run is not None:
            made = load_mitigation(save_mitigation(run.folder, made))  # as a later reader will have it
    return made


def parse_settings(method: Method, assignments: Sequence[str], *, model: str) -> Any:
    """Settings of a method from ``name=value`` texts; lists are separated by commas, None is ``none``.

    The rest are the method's defaults, on a lab model those measured there.

    Raises:
        InputError: no such setting, or a value of another type.
    """
    types = typing.get_type_hints(method.settings)
    values: dict[str, object] = dict(method.lab) if model.partition("@")[0] in LAB_MODELS else {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        name = name.strip().replace("-", "_")
        if not equals:
            raise InputError(f"Expected a setting such as name=value, got {assignment!r}.")
        if name not in {field.name for field in fields(method.settings)}:
            raise unknown_name(f"setting of {method.name}", name, [field.name for field in fields(method.settings)])
        values[name] = _parse(name, text.strip(), types[name])
    return method.settings(**values)


def _parse(name: str, text: str, hint: Any) -> object:
    choices = typing.get_args(hint)
    if type(None) in choices:
        if text.lower() == "none":
            return None
        hint = next(choice for choice in choices if choice is not type(None))
    if typing.get_origin(hint) is tuple:
        (inner, *_) = typing.get_args(hint)
        return tuple(_parse(name, part.strip(), inner) for part in text.split(",") if part.strip())
    if hint is bool:
        if text.lower() not in ("true", "false"):
            raise InputError(f"Expected {name}=true or {name}=false, got {text!r}.")
        return text.lower() == "true"
    try:
        return hint(text) if hint in (int, float) else text
    except ValueError:
        raise InputError(f"Expected {name} to be {hint.__name__}, got {text!r}.") from None
