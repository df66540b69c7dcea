"""A model by name: ``lab``, a folder, a file or a hub id becomes a stock diffusers pipeline.

Weights are safetensors, or PyTorch's ``.bin`` where there are none: diffusers and transformers read those by
``torch.load(weights_only=True)``, which refuses anything but tensors.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline

from diffkit.device_and_dtype import cpu_has_bfloat16, resolve_device, resolve_dtype, warn_of_slow_bfloat16
from diffkit.errors import InputError
from diffkit.families import Pipeline
from diffkit.library_logging import quietly
from diffkit.micro_batch import is_out_of_memory
from diffkit.model_folder import ModelFolder
from diffkit.model_source import first_line, model_checksum, model_class, refuse_videos, resolve_model, why_not_loaded
from diffkit.noted_options import note_lora, note_options
from diffkit.single_file import check_single_file, load_single_file

__all__ = [
    "LOADING_ERRORS",
    "check_model",
    "cpu_has_bfloat16",
    "first_line",
    "load_pipeline",
    "model_checksum",
    "model_class",
    "quietly",
    "resolve_device",
    "resolve_dtype",
    "resolve_model",
    "warn_of_slow_bfloat16",
]

#: What the libraries raise on files, settings and classes that do not fit; running out of memory is told apart.
LOADING_ERRORS: tuple[type[Exception], ...] = (
    *(ArithmeticError, AttributeError, ImportError, LookupError),
    *(OSError, RuntimeError, TypeError, ValueError),
)


def load_pipeline(
    model: str | Path,
    *,
    revision: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    cls: type[DiffusionPipeline] | None = None,
    mitigation: str | Path | None = None,
    lora: str | Path | None = None,
    variant: str | None = None,
    config: str | Path | None = None,
    scheduler: str | None = None,
) -> Pipeline:
    """Load a pipeline.

    Args:
        model: ``lab``, ``lab-clean``, ``lab-trio``, ``gallery`` or ``gallery-clean`` (shipped), a folder in diffusers'
            format, a checkpoint in one ``.safetensors`` file, or a hub id. Only a hub id may open a connection;
            ``HF_HUB_OFFLINE=1`` forbids even that.
        revision: commit, tag or branch of a hub id.
        dtype: ``float32``, ``float16``, ``bfloat16``, or ``auto``: float32 on a CPU, else the checkpoint's own.
        device: as torch names it, or ``auto``: cuda, else mps, else cpu.
        cls: the class to load as; the one the model names by default.
        mitigation: folder of a :mod:`diffkit.mitigation` to apply, or ``lab-nemo`` (shipped, for ``lab``); it must
            have been made for this very model.
        lora: a fine-tune of the model to add to its weights: a ``.safetensors`` file, a folder with one, or a hub id.
        variant: of the weights, such as ``fp16``; by default the plain ones, or the only variant that a folder has.
        config: for a single file: a folder or hub id with the settings and tokenizers of its family; by default the
            hub id that diffusers knows for it.
        scheduler: another one than the model's own, see :func:`diffkit.scheduler_choice.read_scheduler`.

    Raises:
        InputError: the model, LoRA, dtype or device does not exist, the weights could run a program, the LoRA does not
            fit or would be put on in part, or the mitigation was made for another model.

    Example:
        >>> pipe = load_pipeline("lab", device="cpu")
        >>> generator = torch.Generator().manual_seed(0)
        >>> out = pipe("a red circle left of a blue square on gray", num_inference_steps=4, generator=generator)
        >>> type(pipe).__name__, out.images[0].size
        ('StableDiffusionPipeline', (64, 64))
    """
    place = resolve_device(device)
    source = resolve_model(model)
    _refuse_idle_options(model, source, revision=revision, variant=variant, config=config)
    try:
        with quietly():
            loaded = _load(source, revision, dtype, place, cls, variant, config)
    except LOADING_ERRORS as error:
        if isinstance(error, InputError) or is_out_of_memory(error):
            raise
        raise InputError(why_not_loaded(model, error)) from error
    pipe = loaded.to(place)
    pipe.register_to_config(_name_or_path=str(model) if revision is None else f"{model}@{revision}")
    note_options(pipe, variant=variant, model_config=config, scheduler=scheduler)
    note_lora(pipe, None if lora is None else str(lora))
    if scheduler is not None:
        from diffkit.scheduler_choice import put_scheduler

        put_scheduler(pipe, scheduler)
    if lora is not None:
        from diffkit.lora import fuse_lora

        fuse_lora(pipe, lora)
    if mitigation is not None:
        from diffkit.mitigation import apply_mitigation

        apply_mitigation(pipe, mitigation, model_sha256=model_checksum(source, lora, config=config))
    return pipe


def _load(
    source: Path | str,
    revision: str | None,
    dtype: str,
    place: torch.device,
    cls: type[DiffusionPipeline] | None,
    variant: str | None,
    config: str | Path | None,
) -> Any:
    """The stock pipeline on the CPU."""
    if isinstance(source, Path) and source.is_file():
        return load_single_file(check_single_file(source, config), resolve_dtype(dtype, place, source))
    if isinstance(source, Path):
        variant = ModelFolder(source).check(variant, any_class=cls is not None)
    loaded = (cls or DiffusionPipeline).from_pretrained(
        str(source),
        revision=revision,
        dtype=resolve_dtype(dtype, place, source, variant),
        local_files_only=isinstance(source, Path),
        variant=variant,
    )
    if isinstance(source, Path):
        ModelFolder(source).check_filled(loaded, variant)
    return loaded


def check_model(
    model: str | Path,
    *,
    revision: str | None = None,
    variant: str | None = None,
    config: str | Path | None = None,
    scheduler: str | None = None,
    lora: str | Path | None = None,
    mitigation: str | Path | None = None,
) -> None:
    """Check that a model can be loaded, by names, files and their headers; no weights are read.

    Args:
        model, revision, variant, config, scheduler, lora, mitigation: see :func:`load_pipeline`. Of a hub id the
            index of the model, and the LoRA's file, are fetched where the cache has not got them.

    Raises:
        InputError: it cannot be loaded.

    Example:
        >>> check_model("lab")
    """
    source = resolve_model(model)
    _refuse_idle_options(model, source, revision=revision, variant=variant, config=config)
    if isinstance(source, Path) and source.is_file():
        check_single_file(source, config)
    else:
        if isinstance(source, Path):
            ModelFolder(source).check(variant)
        refuse_videos(model_class(source, {"revision": revision}))
    if scheduler is not None:
        from diffkit.scheduler_choice import read_scheduler

        read_scheduler(scheduler)
    if lora is not None:
        from diffkit.lora import find_lora
        from diffkit.lora_file import open_lora

        open_lora(find_lora(lora), lora)
    if mitigation is not None:
        from diffkit.mitigation import read_card

        read_card(mitigation)


def _refuse_idle_options(
    model: str | Path, source: Path | str, *, revision: str | None, variant: str | None, config: str | Path | None
) -> None:
    """Refuse options that would do nothing for this kind of model."""
    is_file = isinstance(source, Path) and source.is_file()
    if isinstance(source, Path) and revision is not None:
        raise InputError(f"--revision belongs to a hub id, but {str(model)!r} is {_form(source)}; leave it out.")
    if is_file and variant is not None:
        raise InputError(f"--variant belongs to a folder or a hub id, but {str(model)!r} is a file; leave it out.")
    if not is_file and config is not None:
        raise InputError(f"--config belongs to a single file, but {str(model)!r} is {_form(source)}; leave it out.")


def _form(source: Path | str) -> str:
    return "a hub id" if not isinstance(source, Path) else "a file" if source.is_file() else "a folder"
