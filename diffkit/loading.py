"""A model by name: ``lab``, a folder, or a hub id becomes a stock diffusers pipeline. Safetensors only."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from huggingface_hub import constants
from transformers.utils import logging as transformers_logging

from diffkit.errors import InputError
from diffkit.families import FAMILIES, Pipeline
from diffkit.lab import assets

__all__ = [
    "first_line",
    "load_pipeline",
    "model_checksum",
    "model_class",
    "quietly",
    "resolve_device",
    "resolve_dtype",
    "resolve_model",
]

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def load_pipeline(
    model: str | Path,
    *,
    revision: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    cls: type[DiffusionPipeline] | None = None,
    mitigation: str | Path | None = None,
    lora: str | Path | None = None,
) -> Pipeline:
    """Load a pipeline.

    Args:
        model: ``lab``, ``lab-clean`` or ``lab-trio`` (shipped), a folder in diffusers' format, or a hub id. Only a
            hub id may open a connection; ``HF_HUB_OFFLINE=1`` forbids even that.
        revision: commit, tag or branch of a hub id.
        dtype: ``float32``, ``float16``, ``bfloat16``, or ``auto``: float32 on a CPU, else the checkpoint's own.
        device: as torch names it, or ``auto``: cuda, else mps, else cpu.
        cls: the class to load as; the one the model names by default.
        mitigation: folder of a :mod:`diffkit.mitigation` to apply; it must have been made for this very model.
        lora: a fine-tune of the model to add to its weights: a ``.safetensors`` file, a folder with one, or a hub id.

    Raises:
        InputError: the model, LoRA, dtype or device does not exist, the weights are no safetensors, the LoRA does not
            fit, or the mitigation was made for another model.

    Example:
        >>> pipe = load_pipeline("lab", device="cpu")
        >>> generator = torch.Generator().manual_seed(0)
        >>> out = pipe("a red circle left of a blue square on gray", num_inference_steps=4, generator=generator)
        >>> type(pipe).__name__, out.images[0].size
        ('StableDiffusionPipeline', (64, 64))
    """
    place = resolve_device(device)
    source = resolve_model(model)
    if isinstance(source, Path) and revision is not None:
        raise InputError(f"--revision belongs to a hub id, but {model!r} is a folder; leave it out.")
    precision = resolve_dtype(dtype, place, source)
    where = str(source)
    local = isinstance(source, Path)
    try:
        with quietly():
            loaded = (cls or DiffusionPipeline).from_pretrained(
                where, revision=revision, dtype=precision, use_safetensors=True, local_files_only=local
            )
    except (OSError, ValueError) as error:
        raise InputError(_not_loaded(model, error)) from error
    pipe = loaded.to(place)
    pipe.register_to_config(_name_or_path=str(model) if revision is None else f"{model}@{revision}")
    if lora is not None:
        from diffkit.lora import fuse_lora

        fuse_lora(pipe, lora)
    if mitigation is not None:
        from diffkit.mitigation import apply_mitigation

        apply_mitigation(pipe, mitigation, model_sha256=model_checksum(source, lora))
    return pipe


def _not_loaded(model: str | Path, error: Exception) -> str:
    """One sentence; errors about caches and connections become advice what to do."""
    message = first_line(error)
    signs = ("not fully cached", "connect", "offline", *(["model_index.json"] if constants.HF_HUB_OFFLINE else []))
    if isinstance(error, OSError) and "/" in str(model) and any(sign in message for sign in signs):
        why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "the hub cannot be reached"
        return (
            f"The model {str(model)!r} is not complete in the hub's cache, and {why}; connect once, or give the folder "
            "of a download."
        )
    return f"Could not load the model {str(model)!r}: {message}"


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
        InputError: the index cannot be had, or names a pipeline of no known family.
    """
    import diffusers

    where = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "token")
    try:
        index = DiffusionPipeline.load_config(
            str(source), **{name: value for name, value in (options or {}).items() if name in where}
        )
    except (OSError, ValueError) as error:
        raise InputError(_not_loaded(source, error)) from error
    name = index.get("_class_name")
    stock = getattr(diffusers, str(name), None)
    if stock is None or not any(family.pipeline in {base.__name__ for base in stock.__mro__} for family in FAMILIES):
        names = ", ".join(family.pipeline for family in FAMILIES)
        raise InputError(f"The model {str(source)!r} is a {name}, of no known family; the families are: {names}.")
    return stock


def model_checksum(model: str | Path, lora: str | Path | None = None) -> str | None:
    """Checksum of all files of a shipped or local model; None for a hub id, whose revision names its content.

    With a LoRA the SHA-256 of ``<the model's> <the LoRA file's>``, both in hex; a hub id stands for itself.

    Raises:
        InputError: as :func:`resolve_model`.
    """
    from diffkit.runs import sha256_folder

    source = resolve_model(model)
    own = sha256_folder(source) if isinstance(source, Path) else None
    if lora is None:
        return own
    from diffkit.lora import lora_checksum

    return sha256(f"{own or source} {lora_checksum(lora)}".encode()).hexdigest()


def _is_news(record: logging.LogRecord) -> bool:
    """False for two warnings of diffusers: a tiny autoencoder as VAE, and a missing connection (an error follows)."""
    text = record.getMessage()
    return not ("Expected types for vae" in text and "AutoencoderTiny" in text) and "connect to the Hub" not in text


@contextmanager
def quietly() -> Iterator[None]:
    """Load without the libraries' progress bars and without warnings that need no action."""
    logger = logging.getLogger("diffusers.pipelines.pipeline_utils")
    bars = [library for library in (diffusers_logging, transformers_logging) if library.is_progress_bar_enabled()]
    logger.addFilter(_is_news)
    for library in bars:
        library.disable_progress_bar()
    try:
        yield
    finally:
        logger.removeFilter(_is_news)
        for library in bars:
            library.enable_progress_bar()


def resolve_model(model: str | Path) -> Path | str:
    """The folder of a shipped or local model, or the hub id itself.

    Raises:
        InputError: it looks like a path that is not there, or is a folder without ``model_index.json``.
    """
    if isinstance(model, str) and model in assets.MODELS:
        folder = Path(assets.model_path(model))
        if not (folder / "model_index.json").is_file():
            raise InputError(f"The weights of {model!r} are not at {folder}; make them with `diffkit lab train`.")
        return folder
    path = Path(model).expanduser()
    if path.is_dir():
        if not (path / "model_index.json").is_file():
            raise InputError(f"{str(path)!r} is no diffusers model: it has no model_index.json.")
        return path
    if isinstance(model, Path) or path.is_absolute() or str(model).startswith((".", "~")) or str(model).count("/") != 1:
        raise InputError(
            f"There is no model {str(model)!r}; give lab, lab-clean, lab-trio, an existing folder or a hub id."
        )
    return str(model)


def resolve_device(device: str) -> torch.device:
    """The torch device of that name; ``auto`` takes cuda, else mps, else cpu.

    Raises:
        InputError: torch does not know the device, or it is not there.
    """
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise InputError(f"Unknown device {device!r}; use auto, cpu, cuda, cuda:1 or mps.") from error
    if place.type == "cuda" and (place.index or 0) >= torch.cuda.device_count():
        raise InputError(f"The device {device!r} is not there; use auto or cpu.")
    return place


def resolve_dtype(dtype: str, device: torch.device, source: Path | str) -> torch.dtype:
    """The precision to load in; see :func:`load_pipeline`.

    Raises:
        InputError: an unknown name.
    """
    if dtype in DTYPES:
        return DTYPES[dtype]
    if dtype != "auto":
        raise InputError(f"Unknown dtype {dtype!r}; use auto, {', '.join(DTYPES)}.")
    if device.type == "cpu":
        return torch.float32
    return _checkpoint_dtype(source) if isinstance(source, Path) else torch.float16


def _checkpoint_dtype(folder: Path) -> torch.dtype:
    """The precision of the denoiser's first weight, read from the header of its safetensors file."""
    names = {"F16": torch.float16, "BF16": torch.bfloat16}
    files = sorted([*folder.glob("unet/*.safetensors"), *folder.glob("transformer/*.safetensors")])
    if not files:
        return torch.float32
    with files[0].open("rb") as stream:
        header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
    first = next(entry for key, entry in header.items() if key != "__metadata__")
    return names.get(first["dtype"], torch.float32)


log = logging.getLogger(__name__)


def cpu_has_bfloat16() -> bool:
    """Whether this machine's processor has instructions for bfloat16."""
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("bf16"))


def warn_of_slow_bfloat16(precision: str, device: torch.device) -> None:
    """Log a warning before training in mixed precision ``bf16`` on a processor that only imitates it."""
    if precision == "bf16" and device.type == "cpu" and not cpu_has_bfloat16():
        log.warning("This processor has no bfloat16 instructions, so training in bf16 is far slower; choose no.")
