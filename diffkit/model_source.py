"""What a model's name stands for: a shipped model, a folder, a file or a hub id; its class, its checksum."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline
from huggingface_hub import constants

from diffkit.errors import InputError
from diffkit.families import FAMILIES, SEARCH_FAMILIES, why_unknown
from diffkit.lab import assets
from diffkit.locations import is_hub_id, missing_file
from diffkit.model_folder import ModelFolder, pipeline_class

__all__ = ["first_line", "model_checksum", "model_class", "refuse_videos", "resolve_model", "why_not_loaded"]

FORMS = (
    "lab, lab-clean, lab-trio, gallery, gallery-clean, a folder in diffusers' format, a .safetensors file, or a hub id"
)


def why_not_loaded(model: str | Path, error: Exception) -> str:
    """One sentence; errors about caches and connections become advice what to do."""
    message = first_line(error)
    signs = ("not fully cached", "connect", "offline", *(["model_index.json"] if constants.HF_HUB_OFFLINE else []))
    if isinstance(error, OSError) and "/" in str(model) and any(sign in message for sign in signs):
        why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "the hub cannot be reached"
        return (
            f"The model {str(model)!r} is not complete in the hub's cache, and {why}; connect once, or give the folder "
            "of a download."
        )
    advice = ""
    if is_hub_id(model) and "no file named" in message:
        advice = " If its weights are of a variant only, such as fp16, name it by --variant."
    return f"Could not load the model {str(model)!r}: {message.rstrip('.')}.{advice}"


def first_line(error: BaseException) -> str:
    """First line of a library's error; its class name where it has no text."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def model_class(source: Path | str, options: Mapping[str, Any] | None = None) -> Any:
    """The stock pipeline class of a family that a folder or hub id names in its ``model_index.json``.

    Args:
        source: as :func:`resolve_model` returns it.
        options: keyword arguments of ``from_pretrained``, of which those that say where to look are taken.

    Raises:
        InputError: the index cannot be had, or names a pipeline that diffusers has not or of no known family.
    """
    if isinstance(source, Path) and source.is_file():
        raise InputError(f"{str(source)!r} is a single file; load it by diffkit.load_pipeline.")
    if isinstance(source, Path):
        name = ModelFolder(source).class_name
    else:
        where = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "token")
        try:
            index = DiffusionPipeline.load_config(
                source, **{name: value for name, value in (options or {}).items() if name in where}
            )
        except (OSError, ValueError) as error:
            raise InputError(why_not_loaded(source, error)) from error
        name = str(index.get("_class_name"))
    stock = pipeline_class(name, source)
    known = (*FAMILIES, *SEARCH_FAMILIES)
    if not any(family.pipeline in {base.__name__ for base in stock.__mro__} for family in known):
        names = ", ".join(family.pipeline for family in FAMILIES)
        why = why_unknown(stock, FAMILIES)
        raise InputError(f"The model {str(source)!r} is a {name}, of no known family: {why}. Known are {names}.")
    return stock


def refuse_videos(stock: Any) -> None:
    """Refuse a pipeline class that makes videos where a command makes or reads images.

    Raises:
        InputError: see there.
    """
    ancestors = {base.__name__ for base in stock.__mro__}
    if any(family.pipeline in ancestors and family.makes_videos for family in SEARCH_FAMILIES):
        raise InputError(
            f"A {stock.__name__} makes videos, and commands make and read images; search it in Python, by "
            f"ttsnap.TTSnapPipeline."
        )


def model_checksum(
    model: str | Path, lora: str | Path | None = None, *, config: str | Path | None = None
) -> str | None:
    """Checksum of all files of a shipped or local model; None for a hub id, whose revision names its content.

    With a LoRA the SHA-256 of ``<the model's> <the LoRA file's>``, both in hex; a hub id stands for itself. Likewise
    with the ``config`` of a single file.

    Raises:
        InputError: as :func:`resolve_model`.
    """
    from diffkit.runs import sha256_file, sha256_folder

    source = resolve_model(model)
    own = None
    if isinstance(source, Path):
        own = sha256_file(source) if source.is_file() else sha256_folder(source)
    if config is not None:
        folder = Path(config).expanduser()
        own = sha256(f"{own} {sha256_folder(folder) if folder.is_dir() else config}".encode()).hexdigest()
    if lora is None:
        return own
    from diffkit.lora import lora_checksum

    return sha256(f"{own or source} {lora_checksum(lora)}".encode()).hexdigest()


def resolve_model(model: str | Path) -> Path | str:
    """The folder of a shipped or local model, the file of a single-file checkpoint, or the hub id itself.

    Raises:
        InputError: it looks like a path and there is nothing, or is a folder without ``model_index.json``.
    """
    if isinstance(model, str) and model in assets.MODELS:
        folder = Path(assets.model_path(model))
        if not (folder / "model_index.json").is_file():
            raise InputError(f"The weights of {model!r} are not at {folder}; make them with `diffkit lab train`.")
        return folder
    path = Path(model).expanduser()
    if path.is_dir():
        ModelFolder(path).index  # noqa: B018  # refuses a folder that has none
        return path
    if path.is_file():
        return path
    if not is_hub_id(model):
        raise missing_file(model, "model", FORMS)
    return str(model)
