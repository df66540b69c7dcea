"""Load the weights of published rewards from a file, a folder or a hub id. No pickled code is run."""

from __future__ import annotations

import hashlib
import os
import pickle
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers.utils import logging

from diffkit.errors import InputError
from diffkit.library_logging import quietly
from diffkit.locations import looks_like_path
from diffkit.runs import sha256_file

__all__ = ["digest", "find_file", "is_hub_id", "model_files", "one_sentence", "read_model", "read_tensors"]

OWNERLESS = ("bert-base-uncased",)  # a hub id from before owners, under which caches still hold it
MODEL_FILES = ("model.safetensors", "pytorch_model.bin", "open_clip_model.safetensors", "open_clip_pytorch_model.bin")


def is_hub_id(location: str | Path) -> bool:
    """Whether a location means the hub: ``owner/name``, no path, and nothing of that name here."""
    return str(location) in OWNERLESS or not looks_like_path(location)


@contextmanager
def one_sentence(reward: str, location: str | Path, download: str) -> Iterator[None]:
    """Turn any error while weights are looked up or read into one sentence that says what to do.

    Args:
        reward: its registered name.
        location: what the user gave, or the published default.
        download: what to download, and from where.

    Raises:
        InputError: in place of whatever the libraries raise on missing or damaged files and missing connections.
    """
    try:
        yield
    except InputError:
        raise
    except (
        OSError,
        TypeError,
        ValueError,
        RuntimeError,
        KeyError,
        EntryNotFoundError,
        SafetensorError,
        pickle.UnpicklingError,
    ) as e:
        advice = f"download {download}, and give its place as {reward}:/its/place"
        if not is_hub_id(location):
            reason = " ".join(str(e).split())[:200].rstrip(".")
            raise InputError(f"{location} holds no usable weights of {reward} ({reason}); {advice}.") from e
        why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else f"{type(e).__name__}"
        raise InputError(
            f"The weights of {reward} could not be had from the hub id {str(location)!r} ({why}) and are not complete "
            f"in the hub's cache; connect once, or {advice}."
        ) from e


def find_file(location: str | Path, names: Sequence[str], *, reward: str, download: str) -> Path:
    """The first of these files at a location, which may be that very file, whatever its name.

    Args:
        names: candidates, the best first.
        reward, download: for the message, see :func:`one_sentence`.

    Raises:
        InputError: nothing is there.
    """
    path = Path(location).expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        for name in names:
            if (path / name).is_file():
                return path / name
    elif is_hub_id(location):
        with one_sentence(reward, location, download):
            return _from_hub(str(location), names)
    raise InputError(
        f"{location} holds no weights of {reward}: expected {' or '.join(names)}; "
        f"download {download}, and put it there."
    )


def _from_hub(repository: str, names: Sequence[str]) -> Path:
    """The first of the files that the repository, or the cache when there is no connection, has."""
    for name in names[:-1]:
        try:
            return Path(hf_hub_download(repository, name))
        except LocalEntryNotFoundError:
            if not constants.HF_HUB_OFFLINE:
                raise
        except EntryNotFoundError:
            continue
    return Path(hf_hub_download(repository, names[-1]))


def model_files(folder: str | Path) -> list[Path]:
    """The weight files of a model folder, or of a hub id in the cache: one, or all shards; none if there are none."""
    path = Path(folder).expanduser()
    if not path.is_dir():
        from huggingface_hub import try_to_load_from_cache

        config = try_to_load_from_cache(str(folder), "config.json")
        path = Path(config).parent if isinstance(config, (str, os.PathLike)) else path
    for name in MODEL_FILES:
        stem, dot, suffix = name.partition(".")
        shards = sorted(path.glob(f"{stem}-*-of-*{dot}{suffix}"))
        if (path / name).is_file() or shards:
            return [path / name] if (path / name).is_file() else shards
    return []


def read_model(kind: Any, source: str | Path, *, reward: str, download: str) -> Any:
    """A transformers model of that class, float32, by ``from_pretrained``; only a hub id opens a connection.

    Raises:
        InputError: nothing usable is there, or tensors are missing, which transformers would fill with random numbers.
    """
    local, verbosity = Path(source).expanduser().is_dir(), logging.get_verbosity()
    with one_sentence(reward, source, download), quietly():
        if not local and not is_hub_id(source):
            raise OSError("there is no such folder")
        logging.set_verbosity_error()  # it lists what a part of a CLIP leaves unused
        try:
            where = Path(source).expanduser() if local else source
            options = {"local_files_only": local, "dtype": torch.float32, "output_loading_info": True}
            model, report = kind.from_pretrained(where, **options)
        finally:
            logging.set_verbosity(verbosity)
        if missing := sorted(report["missing_keys"]):
            raise OSError(f"{len(missing)} tensors are missing, such as {missing[0]}")
    return model


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors by name, on the CPU, of a .safetensors file or of a PyTorch file that holds nothing but tensors.

    A dictionary under the key ``state_dict`` is taken out, a prefix ``module.`` is taken off.

    Raises:
        InputError: the file is damaged, or holds code to be executed.
    """
    try:
        if path.suffix == ".safetensors":
            content: object = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        reason = " ".join(str(error).split())[:160]
        raise InputError(f"{path} cannot be read as a file of tensors alone: {reason}.") from error
    content = content.get("state_dict", content) if isinstance(content, dict) else content
    if not isinstance(content, dict) or not content or not all(isinstance(value, Tensor) for value in content.values()):
        raise InputError(f"{path} holds no tensors by name; expected a published checkpoint.")
    return {str(name).removeprefix("module."): value for name, value in content.items()}


def digest(files: Sequence[Path]) -> str | None:
    """Hex SHA-256 of a weight file, as hubs show it; of several, of their digests in order; None of none."""
    digests = [sha256_file(path) for path in files]
    if len(digests) < 2:
        return digests[0] if digests else None
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()
