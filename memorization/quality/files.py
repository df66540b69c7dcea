"""A snapshot as one safetensors file: images in 8 bits, their own precision, everything else unchanged."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from diffkit.errors import InputError
from diffkit.runs.files import dump_json, write_bytes_atomically
from memorization.quality.losses import Losses
from memorization.quality.settings import QualitySettings
from memorization.quality.snapshots import Snapshot, Validation

SCHEMA = 1


def save_snapshot(snapshot: Snapshot, path: str | Path) -> None:
    """Write a snapshot, whole or not at all."""
    tensors = {
        **_levels("images", snapshot.images),
        **_levels("validation", snapshot.validation.images),
        "latents": snapshot.latents,
        "similarity": snapshot.similarity,
        "loss": snapshot.losses.loss,
        "unconditional": snapshot.losses.unconditional,
        **{f"alignment/{name}": scores for name, scores in snapshot.alignment.items()},
    }
    described = {
        "schema_version": SCHEMA,
        "prompts": snapshot.prompts,
        "settings": asdict(snapshot.settings),
        "detector": snapshot.detector,
        "higher_is_better": snapshot.higher_is_better,
        "validation": {"captions": snapshot.validation.captions, "source": snapshot.validation.source},
        "bins": snapshot.losses.bins,
    }
    data = save({name: value.contiguous() for name, value in tensors.items()}, {"snapshot": dump_json(described)})
    write_bytes_atomically(Path(path), data)


def load_snapshot(path: str | Path) -> Snapshot:
    """Read what :func:`save_snapshot` wrote.

    Raises:
        InputError: there is no such file, it is no snapshot, or of a newer version.
    """
    try:
        with safe_open(path, "pt") as file:
            described: dict[str, Any] = json.loads((file.metadata() or {}).get("snapshot", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} is no quality snapshot: {error}.") from error
    if described.get("schema_version") != SCHEMA:
        raise InputError(f"{path} is no quality snapshot of version {SCHEMA}: got {described.get('schema_version')!r}.")
    validation = described["validation"]
    alignment = {name.split("/", 1)[1]: value for name, value in tensors.items() if name.startswith("alignment/")}
    return Snapshot(
        prompts=tuple(described["prompts"]),
        settings=QualitySettings(**described["settings"]),
        images=_pictures("images", tensors),
        latents=tensors["latents"],
        similarity=tensors["similarity"],
        detector=described["detector"],
        alignment={name: alignment[name] for name in described["higher_is_better"]},
        higher_is_better=described["higher_is_better"],
        validation=Validation(_pictures("validation", tensors), tuple(validation["captions"]), validation["source"]),
        losses=Losses(tensors["loss"], tensors["unconditional"], tuple((low, high) for low, high in described["bins"])),
    )


def _levels(name: str, images: Tensor) -> dict[str, Tensor]:
    """The 256 levels of (..., 3, H, W) images, and which images are broken (NaN): 8 bits cannot say it."""
    broken = ~images.isfinite().flatten(-3).all(-1)
    return {name: (images.nan_to_num() * 255).round().byte(), f"{name}/broken": broken}


def _pictures(name: str, tensors: Mapping[str, Tensor]) -> Tensor:
    images = tensors[name].float() / 255
    return images.masked_fill(tensors[f"{name}/broken"][..., None, None, None], float("nan"))
