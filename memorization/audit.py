"""The audit: from a model, suspects and controls to verdicts in a run folder. Interrupted anywhere, it goes on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from diffkit.console import progress, say
from diffkit.runs import Run
from diffkit.runs.files import safe_name, write_bytes_atomically
from memorization.copies import CopyDetector, load_copy_detector
from memorization.copies.calibrate import calibrate
from memorization.effort import counted, effort
from memorization.generate import round_trip
from memorization.items import AuditItem, Gathered, data_digest, load_references
from memorization.measure import Measurement, Measurer
from memorization.page import write_page
from memorization.settings import AuditSettings
from memorization.summary import summarise

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

SUMMARY_SCHEMA = 1
CALIBRATION_IMAGES = 64  # their pairs are thousands; more would only cost time


@dataclass(frozen=True)
class AuditResult:
    """Where the audit is and what it found (the content of summary.json)."""

    folder: Path
    summary: dict[str, Any]


def audit(
    pipe: DiffusionPipeline,
    gathered: Gathered,
    *,
    out: str | Path,
    model: str,
    settings: AuditSettings,
    model_sha256: str | None = None,
    save_triggers: bool = False,
) -> AuditResult:
    """Run an audit, or go on with the one in ``out``.

    The safety checker is taken off the pipeline: a blackened image would read as "not replicated".

    Args:
        pipe: a pipeline of the Stable Diffusion 1/2 family.
        gathered: suspects and controls.
        out: the run's folder.
        model: what the user called the model.
        settings: everything that changes results.
        model_sha256: checksum of the weights, if known.
        save_triggers: keep the embeddings found. They bring training images back: treat the files as sensitive.

    Raises:
        InputError: another audit is in the folder, or another process is writing to it.
    """
    config = {
        "model": model,
        "model_sha256": model_sha256,
        "data_sha256": data_digest(gathered.items),
        "items": len(gathered.items),
        "save_triggers": save_triggers,
        "settings": settings.to_json(),
    }
    provenance = {"device": str(pipe.device), "dtype": str(pipe.dtype), "threads": torch.get_num_threads()}
    with Run.open(out, config=config, kind="audit", provenance=provenance) as run:
        pipe.set_progress_bar_config(disable=True)
        pipe.safety_checker = None
        copies = load_copy_detector(settings.copies)
        size = image_size(pipe)
        point = operating_point(pipe, gathered.items, copies, settings, size)
        measurer = Measurer(pipe, settings, copies, size)
        _measure_all(run, measurer, gathered.items, settings, save_triggers=save_triggers)
        records = {item.key: run.done[item.key] for item in gathered.items}
        summary: dict[str, Any] = {"schema_version": SUMMARY_SCHEMA, "model": model, "model_sha256": model_sha256}
        summary |= summarise(
            records,
            settings,
            operating_point=point,
            suspect_errors=gathered.suspect_errors,
            control_errors=gathered.control_errors,
        )
        summary = json.loads(run.write_json("summary.json", summary).read_text())  # as a later reader will have it
        write_page(run, records, summary)
    return AuditResult(Path(out), summary)


def image_size(pipe: DiffusionPipeline) -> tuple[int, int]:
    """(height, width) in pixels of what the pipeline makes by default."""
    side = pipe.unet.config.sample_size
    height, width = (side, side) if isinstance(side, int) else side
    return int(height * pipe.vae_scale_factor), int(width * pipe.vae_scale_factor)


def operating_point(
    pipe: DiffusionPipeline,
    items: Sequence[AuditItem],
    copies: CopyDetector,
    settings: AuditSettings,
    size: tuple[int, int],
) -> dict[str, Any]:
    """The copy detector's threshold, and its rates on pairs made from the audit's own images where there are two."""
    with_image = [item for item in items if item.suspect.images]
    stride = -(-len(with_image) // CALIBRATION_IMAGES) or 1  # spread over suspects and controls
    known = [load_references(item, size).images for item in with_image[::stride]]
    images = [stack[0] for stack in known if stack is not None]
    if len(images) >= 2:
        point = calibrate(
            copies, torch.stack(images), round_trip=lambda x: round_trip(pipe, x), threshold=settings.threshold
        )
        return point.to_json()
    return {
        "detector": copies.name,
        "preprocessing": copies.preprocessing,
        "threshold": copies.threshold if settings.threshold is None else settings.threshold,
        "source": "not calibrated: fewer than two images",
    }


def _measure_all(
    run: Run, measurer: Measurer, items: Sequence[AuditItem], settings: AuditSettings, *, save_triggers: bool
) -> None:
    """Measure what is not in the journal yet.

    Groups are cut from the whole list, never from what is left: a resumed group fills the same slots of the same
    batches, which makes its numbers the same to the last bit.
    """
    n = settings.items_at_once
    groups = [items[first : first + n] for first in range(0, len(items), n)]
    left = [group for group in groups if any(item.key not in run.done for item in group)]
    finished = sum(item.key in run.done for item in items)
    if finished:
        say(f"{finished} of {len(items)} items are finished already; going on.")
    total = sum(effort(group, settings) for group in left)
    with progress(f"auditing, {finished} of {len(items)} items", total=total) as bar, counted(measurer.pipe, bar):
        for group in left:
            for item, measured in zip(group, measurer.measure(group), strict=True):
                if item.key not in run.done:
                    _keep(run, item, measured, save_triggers=save_triggers)
            bar.describe(f"auditing, {len(run.done)} of {len(items)} items")


def _keep(run: Run, item: AuditItem, measured: Measurement, *, save_triggers: bool) -> None:
    """Write an item's files, then its line: what the journal names is there."""
    stem = item.key.replace(":", "-", 1)
    pictures = {name: run.save_image(f"{stem}-{name}", picture) for name, picture in measured.pictures.items()}
    record: Mapping[str, Any] = {**measured.record, "pictures": pictures}
    if save_triggers and measured.triggers:
        record = {**record, "triggers": _save_triggers(run, item, measured)}
    run.write(item.key, record)


def _save_triggers(run: Run, item: AuditItem, measured: Measurement) -> str:
    """All starts' embeddings of one item in one safetensors file, keys ``<start>.<budget>``."""
    from safetensors.torch import save

    tensors = {
        f"{start}.{budget}": embedding.contiguous()
        for start, triggers in measured.triggers.items()
        for budget, embedding in zip(triggers.budgets, triggers.embeddings, strict=True)
    }
    name = f"triggers/{safe_name(item.key.replace(':', '-', 1))}.safetensors"
    write_bytes_atomically(run.path(name), save(tensors))
    return name
