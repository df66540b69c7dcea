"""A checkpoint in one file, as the original repositories and the model sites share them. Safetensors only."""

from __future__ import annotations

import logging
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import DiffusionPipeline
from diffusers.loaders.single_file_utils import SingleFileComponentError, fetch_diffusers_config
from huggingface_hub import constants

from diffkit.errors import InputError
from diffkit.library_logging import silenced
from diffkit.locations import is_hub_id, missing_file
from diffkit.model_folder import ModelFolder, pipeline_class
from diffkit.weight_files import read_header, refuse_unreadable

__all__ = ["SingleFile", "check_single_file", "load_single_file"]

log = logging.getLogger(__name__)

UNET = "model.diffusion_model."
UNET_START = f"{UNET}input_blocks.0.0.weight"


class SingleFile(NamedTuple):
    """A checkpoint's file, the pipeline class it makes, and where the settings and tokenizers of its family are."""

    path: Path
    pipeline: Any
    config: str


def check_single_file(path: Path, config: str | Path | None = None) -> SingleFile:
    """Check a checkpoint in one file without reading its tensors.

    Args:
        config: a folder in diffusers' format, or a hub id, with the settings and tokenizers of the same family; by
            default the hub id that diffusers knows for it, from the cache where there is no connection.

    Raises:
        InputError: no whole safetensors file, no checkpoint of a whole model, or the settings cannot be had.
    """
    if path.suffix.lower() not in (".safetensors", ".sft"):
        raise InputError(_how_to_convert(path))
    refuse_unreadable(path, f"The model {str(path)!r}")
    shapes = {name: tuple(entry["shape"]) for name, entry in read_header(path).items()}
    family = _family(path, shapes)
    if config is None:
        return SingleFile(path, _class_of_hub(path, family), family)
    if not is_hub_id(config):
        folder = Path(config).expanduser()
        if not folder.is_dir():
            raise missing_file(config, "folder with a model's settings", "a folder in diffusers' format, or a hub id")
        return SingleFile(path, _with_single_file(ModelFolder(folder).class_name, folder), str(folder))
    return SingleFile(path, _class_of_hub(path, str(config)), str(config))


def _how_to_convert(path: Path) -> str:
    kind = f"a {path.suffix} file" if path.suffix else "a file without an ending"
    if path.suffix.lower() == ".gguf":
        return f"The model {str(path)!r} is {kind}, whose weights are quantized; give the model in diffusers' format."
    return (
        f"The model {str(path)!r} is {kind}. Only .safetensors is read, as other formats can hold programs; where "
        f"you trust it, convert it by StableDiffusionPipeline.from_single_file({path.name!r}).save_pretrained('FOLDER')"
        f", or the class of its family, and give FOLDER."
    )


def _family(path: Path, shapes: dict[str, tuple[int, ...]]) -> str:
    """The hub id with the settings of the checkpoint's family, by the names and shapes of its tensors."""
    if any("lora_" in name for name in shapes):
        raise InputError(f"{str(path)!r} is a LoRA; give it as --lora, and the model it was made for as --model.")
    tensors = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    family = str(fetch_diffusers_config(tensors)["pretrained_model_name_or_path"])
    unknown = "stable-diffusion-v1-5" in family and UNET_START not in shapes  # diffusers' answer to any other file
    if unknown:
        first = next(iter(sorted(shapes)), "none")
        raise InputError(
            f"The single-file checkpoint {str(path)!r} is of no layout that diffusers reads (version "
            f"{version('diffusers')}): its tensors have other names than those of the original repositories, the "
            f"first: {first}. Save the whole pipeline by save_pretrained, and give that folder."
        )
    return family


def _class_of_hub(path: Path, repository: str) -> Any:
    try:
        index = DiffusionPipeline.load_config(repository)
    except (OSError, ValueError) as error:
        why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "it cannot be reached"
        raise InputError(
            f"The single-file checkpoint {str(path)!r} holds no settings and tokenizers; those of {repository} are not "
            f"in the hub's cache, and {why}. Give --config FOLDER, a model of the same family in diffusers' format."
        ) from error
    return _with_single_file(str(index.get("_class_name")), repository)


def _with_single_file(name: str, source: str | Path) -> Any:
    pipeline = pipeline_class(name, source)
    if not hasattr(pipeline, "from_single_file"):
        raise InputError(f"A {name} is not read from a single file; give its folder in diffusers' format.")
    return pipeline


def load_single_file(file: SingleFile, dtype: torch.dtype) -> Any:
    """The pipeline of a checkpoint in one file.

    Raises:
        InputError: the file does not hold the model that the settings describe.
    """
    local = Path(file.config).is_dir()
    offline = local or constants.HF_HUB_OFFLINE
    try:
        with silenced("diffusers.models.modeling_utils"):  # what it warns of is an error below
            pipe = file.pipeline.from_single_file(
                str(file.path), config=file.config, dtype=dtype, local_files_only=offline
            )
    except SingleFileComponentError as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"The single-file checkpoint {str(file.path)!r} is not a whole model: {reason}") from error
    networks = {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}
    for name, network in networks.items():
        if any(tensor.is_meta for tensor in network.state_dict().values()):
            raise InputError(f"The single-file checkpoint {str(file.path)!r} lacks weights of the {name}.")
    _compare_sizes(file, networks)
    return pipe


def _compare_sizes(file: SingleFile, networks: dict[str, torch.nn.Module]) -> None:
    """A U-Net must have as many numbers as its part of the file: neither fewer blocks nor more."""
    sizes = {name: torch.Size(entry["shape"]).numel() for name, entry in read_header(file.path).items()}
    theirs = sum(size for name, size in sizes.items() if name.startswith(UNET))
    own = sum(parameter.numel() for parameter in networks["unet"].parameters()) if "unet" in networks else theirs
    if own != theirs:
        raise InputError(
            f"The single-file checkpoint {str(file.path)!r} has {theirs} weights in its denoiser, and the settings of "
            f"{file.config} are those of one with {own}; give --config of a model of the same family."
        )
    if len(sizes) and not any(name.startswith(("cond_stage_model", "conditioner", "text_encoders")) for name in sizes):
        log.warning("%s has no text encoder; it is taken from %s.", file.path, file.config)
