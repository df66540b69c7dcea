"""Find a LoRA, check it, and fuse it into a pipeline's weights. Safetensors only."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from diffkit.errors import InputError

if TYPE_CHECKING:
    from diffkit.families import Pipeline

__all__ = ["find_lora", "fuse_lora", "lora_checksum"]

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
    if isinstance(source, Path) or str(source).startswith((".", "/", "~")) or str(source).count("/") != 1:
        raise InputError(f"There is no LoRA {str(source)!r}; give a .safetensors file, a folder with one or a hub id.")
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


def fuse_lora(pipe: Pipeline, source: str | Path) -> None:
    """Add a LoRA at full strength to the pipeline's weights, in place; no adapter layers remain.

    Raises:
        InputError: as :func:`find_lora`; the pipeline takes none, the file holds nothing for it, or does not fit it.
    """
    path = find_lora(source)
    if not hasattr(pipe, "load_lora_weights"):
        raise InputError(f"{type(pipe).__name__} takes no LoRA.")
    try:
        pipe.load_lora_weights(str(path.parent), weight_name=path.name, local_files_only=True)
        parts = [part for part in pipe.components.values() if isinstance(part, nn.Module)]
        if not any(getattr(part, "peft_config", None) for part in parts):
            raise InputError(
                f"The LoRA {str(source)!r} holds nothing for {type(pipe).__name__}; save it with the pipeline's own "
                "save_lora_weights."
            )
        pipe.fuse_lora(safe_fusing=True)
        pipe.unload_lora_weights()
    except (RuntimeError, ValueError, KeyError, OSError) as error:
        if isinstance(error, InputError):
            raise
        reason = str(error).strip().split("\n")[0]
        raise InputError(f"The LoRA {str(source)!r} does not fit this model: {reason}") from error
