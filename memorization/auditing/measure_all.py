"""Measure the items that are not in the journal yet, and write each item's files before its record."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from diffkit import parallel
from diffkit.console import progress, say
from diffkit.runs import Run, sha256_file
from diffkit.runs.files import safe_name, write_bytes_atomically
from memorization.auditing.effort import Effort
from memorization.auditing.measure import Measurement, Measurer
from memorization.auditing.result import AuditRecord
from memorization.auditing.settings import AuditSettings
from memorization.auditing.work import counted, planned_rows
from memorization.copies import CopyDetector
from memorization.generation import image_size
from memorization.items import AuditItem

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


def done_keys(run: Run | None) -> set[str]:
    """Keys of the finished items, on every process."""
    return parallel.broadcast(set() if run is None else set(run.done))


def measure_all(
    run: Run | None,
    folder: Path,
    pipe: DiffusionPipeline,
    items: Sequence[AuditItem],
    settings: AuditSettings,
    copies: CopyDetector,
    *,
    effort: Effort,
    what: str,
    save_triggers: bool,
) -> None:
    """Measure what is not in the journal yet; each process takes every n-th group.

    Groups are cut from the whole list, never from what is left: a resumed group, or one on another process, fills the
    same slots of the same batches, which makes its numbers the same to the last bit.

    Args:
        run: the journal and the files; None on all processes but the first.
        folder: the run's.
        pipe: the audited model, or the reference.
        items: of one role.
        settings: the audit's settings.
        copies: the copy detector.
        effort: how far the items are attacked.
        what: the items in messages, "suspects" for example.
        save_triggers: keep the embeddings.
    """
    done, size = done_keys(run), parallel.processes()
    n = settings.items_at_once
    groups = [items[first : first + n] for first in range(0, len(items), n)]
    left = [group for group in groups if any(item.key not in done for item in group)]
    finished = sum(item.key in done for item in items)
    if finished:
        say(f"{finished} of {len(items)} {what} are finished already; going on.")
    if not left:
        return
    measurer = Measurer(pipe, settings, copies, image_size(pipe, settings.size), folder / "checkpoints")
    total = sum(planned_rows(group, measurer, effort) for group in left[::size])  # what the first process does
    with progress(f"{what}, {finished} of {len(items)}", total=total) as bar, counted(pipe, bar) as counter:
        for first in range(0, len(left), size):
            turn = left[first : first + size]
            own = []
            for group in parallel.shard(turn):
                own.append(_measured(measurer, group, effort, save_triggers))
                counter.settle(planned_rows(group, measurer, effort))
            for group, measurements in zip(turn, parallel.gather(own), strict=True):
                for item, measurement in zip(group, measurements, strict=True):
                    if run is not None and item.key not in done:
                        _keep(run, item, measurement, save_triggers=save_triggers)
                finished += sum(item.key not in done for item in group)
            if run is not None:
                measurer.ladder.clear()
            parallel.broadcast(None)  # no search saves its state while the first process clears those that are done
            bar.describe(f"{what}, {finished} of {len(items)}")


def _measured(measurer: Measurer, group: Sequence[AuditItem], effort: Effort, save_triggers: bool) -> list[Measurement]:
    """A group's measurements; triggers travel to the process that writes only where they are kept."""
    measurements = measurer.measure(group, effort)
    return measurements if save_triggers else [item._replace(triggers={}) for item in measurements]


def _keep(run: Run, item: AuditItem, measured: Measurement, *, save_triggers: bool) -> None:
    """Write an item's files, then its record, so that every file the journal names exists."""
    stem = item.key.replace(":", "-", 1)
    pictures = {name: run.save_image(f"{stem}-{name}", picture) for name, picture in measured.pictures.items()}
    record = cast("AuditRecord", {**measured.record, "pictures": pictures})
    if save_triggers and measured.triggers:
        record["triggers"] = _save_triggers(run, item, measured)
    files = [*pictures.values(), *([record["triggers"]] if "triggers" in record else [])]
    record["sha256"] = {name: sha256_file(run.path(name)) for name in files}
    run.write(item.key, record)


def _save_triggers(run: Run, item: AuditItem, measured: Measurement) -> str:
    """All embeddings of one item in one safetensors file, keys ``<rung>.<start>.<budget>``; texts in its metadata.

    Further inputs of the denoiser have the keys ``<rung>.<start>.<budget>.<keyword of the pipeline>``.
    """
    from safetensors.torch import save

    tensors, texts = {}, {}
    for rung, variants in measured.triggers.items():
        for variant, triggers in variants.items():
            for index, budget in enumerate(triggers.budgets):
                name = f"{rung}.{variant}.{budget}"
                tensors[name] = triggers.embeddings[index].contiguous()
                companions = triggers.embeds.companions
                tensors |= {f"{name}.{keyword}": value[index].contiguous() for keyword, value in companions.items()}
                if triggers.texts is not None:
                    texts[name] = triggers.texts[index]
    name = f"triggers/{safe_name(item.key.replace(':', '-', 1))}.safetensors"
    write_bytes_atomically(run.path(name), save(tensors, metadata=texts))
    return name
