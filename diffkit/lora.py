"""Find a LoRA, check it, and fuse it into a pipeline's weights. Safetensors only."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from diffkit.errors import InputError
from diffkit.library_logging import quietly, silenced
from diffkit.locations import is_hub_id, missing_file
from diffkit.lora_accounting import check_whole
from diffkit.lora_file import open_lora
from diffkit.micro_batch import is_out_of_memory
from diffkit.noted_options import lora_of

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from diffkit.families import Pipeline

__all__ = ["find_lora", "fuse_lora", "lora_checksum", "lora_digest"]

LOADERS = (  # their log lines are on parts without an adapter, and on errors, which are told in one sentence
    "diffusers.loaders",
    "diffusers.utils.peft_utils",
    "transformers.integrations.peft",
)
USUAL = "pytorch_lora_weights.safetensors"  # what diffusers writes


def find_lora(source: str | Path) -> Path:
    """The weights file of a LoRA: a file, a folder with one, or a hub id, which alone may open a connection.

    Raises:
        InputError: there is none, it is no safetensors file, or a folder holds several.
    """
    path = Path(source).expanduser()
    if path.is_file():
        if path.suffix != ".safetensors":
            raise InputError(f"The LoRA {str(source)!r} is no .safetensors file; other formats can hold programs.")
        return path
    if path.is_dir():
        return path / _one_of([file.name for file in sorted(path.glob("*.safetensors"))], source)
    if not is_hub_id(source):
        raise missing_file(source, "LoRA", "a .safetensors file, a folder with one, or a hub id")
    return _from_hub(str(source))


def _one_of(names: list[str], source: str | Path) -> str:
    if USUAL in names:
        return USUAL
    if len(names) != 1:
        listing = ", ".join(names) or "none"
        raise InputError(f"Expected one .safetensors file in the LoRA {str(source)!r}, found {listing}; name the file.")
    return names[0]


def _from_hub(repository: str) -> Path:
    from huggingface_hub import hf_hub_download, list_repo_files
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

    try:
        try:
            return Path(hf_hub_download(repository, USUAL))
        except LocalEntryNotFoundError:
            raise
        except EntryNotFoundError:
            names = [name for name in list_repo_files(repository) if name.endswith(".safetensors") and "/" not in name]
            return Path(hf_hub_download(repository, _one_of(names, repository)))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"Could not get the LoRA {repository!r}: {reason}") from error


def lora_checksum(source: str | Path) -> str:
    """Hex SHA-256 of the LoRA's weights file.

    Raises:
        InputError: as :func:`find_lora`.
    """
    from diffkit.runs import sha256_file

    return sha256_file(find_lora(source))


def lora_digest(pipe: DiffusionPipeline) -> dict[str, str]:
    """For a run's configuration: ``lora``, the checksum of the LoRA that a pipeline was loaded with, if it was."""
    lora = lora_of(pipe)
    return {} if lora is None else {"lora": lora_checksum(lora)}


def fuse_lora(pipe: Pipeline, source: str | Path) -> None:
    """Add a LoRA at full strength to the pipeline's weights, in place; no adapter layers remain.

    Raises:
        InputError: as :func:`find_lora`; the pipeline takes none, the file holds nothing for it or does not fit it, or
            a part of the file would be left out.
    """
    path = find_lora(source)
    file = open_lora(path, source)
    name = type(pipe).__name__
    if not hasattr(pipe, "load_lora_weights"):
        raise InputError(f"{name} takes no LoRA.")
    try:
        with quietly(), silenced(*LOADERS):
            pipe.load_lora_weights(str(path.parent), weight_name=path.name, local_files_only=True)
        parts = {
            part: model for part, model in pipe.components.items() if isinstance(model, nn.Module) and _adapted(model)
        }
        if not parts:
            raise InputError(
                f"The LoRA {str(source)!r} holds nothing for {name}; save it with the pipeline's own save_lora_weights."
            )
        check_whole(file, parts, source, name)
        pipe.fuse_lora(components=list(parts), safe_fusing=True)
        pipe.unload_lora_weights()
    except InputError:
        raise
    except (ArithmeticError, AttributeError, LookupError, OSError, RuntimeError, TypeError, ValueError) as error:
        if is_out_of_memory(error):
            raise
        reason = str(error).strip().split("\n")[0]
        raise InputError(f"The LoRA {str(source)!r} does not fit this model: {reason}") from error


def _adapted(model: nn.Module) -> bool:
    return bool(getattr(model, "peft_config", None))
