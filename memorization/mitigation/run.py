"""Run a mitigation method in a run folder, which can be resumed; at the end the folder is a mitigation."""

from __future__ import annotations

import math
import typing
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffkit import parallel
from diffkit.errors import InputError, unknown_name
from diffkit.lora import lora_digest
from diffkit.mitigation import Mitigation, load_mitigation, save_mitigation
from diffkit.mitigation.record import record_of, recorded
from diffkit.named_pipeline import dtype_name, named_pipeline
from diffkit.noted_options import NotedMitigation, options_of
from diffkit.runs import sha256_path
from diffkit.runs.shared import open_shared
from diffkit.truncation import say_truncated
from memorization.items import Gathered, Source, captions_of, data_digest, gather, write_row_errors
from memorization.mitigation import Method, methods
from memorization.presets import Preset, PresetName, choose_preset

if TYPE_CHECKING:
    from diffkit.families import Pipeline

__all__ = ["make_settings", "mitigate", "parse_settings"]


def mitigate(
    model: str | Pipeline,
    suspects: Source | Gathered,
    method: str | Method = "nemo",
    *,
    out: str | Path,
    settings: Any = None,
    preset: PresetName = "auto",
    name: str | None = None,
    model_sha256: str | None = None,
) -> Mitigation:
    """Make a mitigation of a model against suspects, or resume the run in ``out``.

    The model itself is not changed: :func:`diffkit.apply_mitigation` applies the mitigation to a pipeline, and
    ``load_pipeline(model, mitigation=out)`` loads the model with it.

    Args:
        model: a name that :func:`diffkit.load_pipeline` takes, or a pipeline of a known family.
        suspects: the captions and images to mitigate: a source that :func:`diffkit.read_suspects` takes, suspects
            already read, or the result of :func:`memorization.items.gather`. Rows that could not be read are in the
            run's ``rows_in_error.csv``.
        method: a registered name ("nemo", "wanda", "prune", "adversarial", "prompt-guard", "attention-guard"), or a
            method.
        out: the run's folder, which is the mitigation's folder in the end.
        settings: settings of the method by name, the rest as by default; or an instance of ``method.settings``.
        preset: replaces defaults for the lab's models, see :mod:`memorization.presets`.
        name: the model's name in the record; by default the one by which it was loaded.
        model_sha256: checksum of the model's folder, if known.

    Raises:
        InputError: no such method or setting, no suspects, two with one id, one without an image where the method
            needs it, a pipeline that carries a mitigation, or another run in the folder.

    Example:
        >>> import tempfile
        >>> from diffkit import load_pipeline, read_suspects
        >>> from memorization import mitigate
        >>> suspects, folder = read_suspects("lab:planted")[0][:2], tempfile.mkdtemp()
        >>> mitigation = mitigate("lab", suspects, "nemo", out=folder, settings={"statistics": 8, "seeds": 2})
        >>> mitigation.kind, mitigation.settings["statistics"], len(mitigation.suspects)
        ('mask', 8, 2)
        >>> mitigated = load_pipeline("lab", mitigation=folder)
    """
    method = methods.get(method) if isinstance(method, str) else method
    if parallel.processes() > 1 and not method.shared:
        raise InputError(f"{method.name} works in one process: start it without accelerate launch.")
    gathered = gather(suspects, None)
    chosen = [item.suspect for item in gathered.items]
    bare = [suspect.id for suspect in chosen if not suspect.images]
    if method.needs_images and bare:
        raise InputError(f"{method.name} needs the image of every suspect, and {bare[0]!r} has none.")
    pipe, name, model_sha256 = named_pipeline(model, name, model_sha256)
    carried = recorded(pipe)
    if carried is not None:
        raise InputError(f"The pipeline carries the mitigation {carried.method} already: load the model without it.")
    used = choose_preset(preset, name)
    if settings is None or isinstance(settings, Mapping):
        settings = make_settings(method, settings or {}, used)
    lora = lora_digest(pipe)
    config = {
        "method": method.name,
        "model": name,
        "model_sha256": model_sha256,
        "suspects": len(chosen),
        "data_sha256": data_digest(gathered.items),
        "settings": asdict(settings),
        "dtype": dtype_name(pipe),
        **options_of(pipe),
        **lora,
        "preset": used.name,
    }
    # Version 0.1.0 recorded no dtype, LoRA and contents, and always chose the preset by the model's name.
    added = {"dtype": config["dtype"], **lora, "preset": choose_preset("auto", name).name}
    if method.name == "nemo":
        added["settings.most_shared"] = None
    if contents := contents_of(settings):
        config["contents"] = added["contents"] = contents
        added |= {f"contents.{name}": checksum for name, checksum in contents.items()}
    provenance = {"device": str(pipe.device), "preset": used.name}
    say_truncated(pipe, captions_of(gathered.items))
    with open_shared(out, config=config, kind="mitigate", provenance=provenance, added=added) as run:
        pipe.set_progress_bar_config(disable=True)
        if run is not None:
            write_row_errors(run, gathered)
        mitigation = method.mitigate(pipe, chosen, run, settings)
        if run is not None:
            mitigation = load_mitigation(save_mitigation(run.folder, mitigation))  # as a later reader will have it
    return mitigation


def contents_of(settings: object) -> dict[str, str]:
    """Checksums of what the settings ``captions``, ``retention`` and ``mask`` name, by setting."""
    sums = {}
    for name in ("captions", "retention"):
        source = getattr(settings, name, None)
        checksum = sha256_path(Path(source).expanduser()) if isinstance(source, str) and source != "auto" else None
        if checksum is not None:
            sums[name] = checksum
    mask = getattr(settings, "mask", None)
    return sums if mask is None else sums | {"mask": record_of(NotedMitigation(mask, None)).sha256}


def make_settings(method: Method, values: Mapping[str, object], preset: Preset) -> Any:
    """Settings of a method: these values, else those of the preset, else the method's defaults.

    Raises:
        InputError: no such setting, or a value out of its range.
    """
    names = [field.name for field in fields(method.settings)]
    for name in values:
        if name not in names:
            raise unknown_name(f"setting of {method.name}", name, names)
    settings = method.settings(**{**preset.methods.get(method.name, {}), **values})
    for name in names:
        if isinstance(value := getattr(settings, name), float) and not math.isfinite(value):
            raise InputError(f"The setting {name} of {method.name} must be a finite number, got {value}.")
    return settings


def parse_settings(method: Method, assignments: Sequence[str], preset: Preset) -> Any:
    """Settings of a method from ``name=value`` texts; lists are separated by commas, None is ``none``.

    Raises:
        InputError: no such setting, or a value of another type or out of its range.
    """
    types = typing.get_type_hints(method.settings)
    values: dict[str, object] = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        name = name.strip().replace("-", "_")
        if not equals:
            raise InputError(f"Expected a setting such as name=value, got {assignment!r}.")
        values[name] = _parse(name, text.strip(), types[name]) if name in types else text
    return make_settings(method, values, preset)


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
