"""Where a model is put and in what precision it is loaded."""

from __future__ import annotations

import logging
from pathlib import Path

import torch

from diffkit.errors import InputError
from diffkit.model_folder import ModelFolder
from diffkit.weight_files import first_dtype

__all__ = ["cpu_has_bfloat16", "resolve_device", "resolve_dtype", "warn_of_slow_bfloat16"]

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
log = logging.getLogger(__name__)


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


def resolve_dtype(dtype: str, device: torch.device, source: Path | str, variant: str | None = None) -> torch.dtype:
    """The precision to load in; see :func:`diffkit.load_pipeline`.

    Args:
        source: as :func:`diffkit.loading.resolve_model` returns it.
        variant: the variant of the weights that is loaded from a folder; None is the plain one.

    Raises:
        InputError: an unknown name.
    """
    if dtype in DTYPES:
        return DTYPES[dtype]
    if dtype != "auto":
        raise InputError(f"Unknown dtype {dtype!r}; use auto, {', '.join(DTYPES)}.")
    if device.type == "cpu":
        return torch.float32
    if not isinstance(source, Path):
        return torch.float16
    return first_dtype(source) if source.is_file() else ModelFolder(source).dtype(variant)


def cpu_has_bfloat16() -> bool:
    """Whether this machine's processor has instructions for bfloat16."""
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("bf16"))


def warn_of_slow_bfloat16(precision: str, device: torch.device) -> None:
    """Log a warning before training in mixed precision ``bf16`` on a processor that only imitates it."""
    if precision == "bf16" and device.type == "cpu" and not cpu_has_bfloat16():
        log.warning("This processor has no bfloat16 instructions, so training in bf16 is far slower; choose no.")
