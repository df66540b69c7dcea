"""The audit: from a model, suspects and controls to verdicts in a run folder. Interrupted anywhere, it goes on."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from diffkit import parallel
from diffkit.console import progress, say
from diffkit.runs import Run
from diffkit.runs.files import safe_name, write_bytes_atomically
from diffkit.runs.shared import open_shared
from memorization.auditing.measure import Measurement, Measurer, counted, effort
from memorization.auditing.report import write_page
from memorization.auditing.settings import AuditSettings
from memorization.auditing.summary import RECORD_SCHEMA, SUMMARY_SCHEMA, summarise
from memorization.copies import CopyDetector, load_copy_detector
from memorization.copies.operating_point import near_duplicates, operating_point
from memorization.detection.compatibility import refuse_misfits
from memorization.generation import image_size
from memorization.items import AuditItem, Gathered, data_digest, with_companions

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


@dataclass(frozen=True)
class AuditResult:
    """Where the audit is and what it found (the content of summary.json)."""

    folder: Path
    summary: dict[str, Any]


class Reference(NamedTuple):
    """A model that cannot have seen the suspects: what the user called it, its weights' checksum, how to load it."""

    model: str
    load: Callable[[], DiffusionPipeline]
    model_sha256: str | None = None


class Applied(NamedTuple):
    """The mitigation that the pipeline carries: its method and the checksum of its folder; for the record only."""

    method: str
    sha256: str
    folder: str


class Adapter(NamedTuple):
    """The LoRA in the pipeline's weights, which is what is audited: what the user called it, its file's checksum."""

    name: str
    sha256: str


def audit(
    pipe: DiffusionPipeline,
    gathered: Gathered,
    *,
    out: str | Path,
    model: str,
    settings: AuditSettings,
    model_sha256: str | None = None,
    mitigation: Applied | None = None,
    reference: Reference | None = None,
    lora: Adapter | None = None,
    save_triggers: bool = False,
) -> AuditResult:
    """Run an audit, or go on with the one in ``out``. Every process of a launch calls it alike; all get the summary.

    The safety checker is taken off the pipeline: a blackened image would read as "not replicated".

    Args:
        pipe: a pipeline of a known family, its mitigation applied.
        gathered: suspects and controls.
        out: the run's folder. Until an item is finished, ``checkpoints`` in it holds unfinished triggers.
        model: what the user called the model.
        settings: everything that changes results.
        model_sha256: checksum of the weights, if known.
        mitigation: what was applied to the pipeline.
        reference: attacked at the same suspects with the same starts and seeds; what it draws too proves nothing.
        lora: what was fused into the pipeline's weights; for the record only.
        save_triggers: keep the embeddings found. They bring training images back: treat the files as sensitive.

    Raises:
        InputError: a detector that does not fit the model's family, a size the family does not make, another audit is
            in the folder, or another process is writing to it.
    """
    refuse_misfits(pipe, settings.detectors)
    size = image_size(pipe, settings.size)
    items = with_companions(gathered.items, edits=settings.edits, reference=reference is not None)
    config = {
        "records": RECORD_SCHEMA,
        "model": model,
        "model_sha256": model_sha256,
        "mitigation": {"method": mitigation.method, "sha256": mitigation.sha256} if mitigation else None,
        "reference": {"model": reference.model, "sha256": reference.model_sha256} if reference else None,
        "data_sha256": data_digest(gathered.items),
        "items": len(items),
        "save_triggers": save_triggers,
        "settings": settings.to_json(),
    }
    config |= {"lora": lora._asdict()} if lora else {}
    provenance = {"device": str(pipe.device), "dtype": str(pipe.dtype), "threads": torch.get_num_threads()}
    provenance |= {"mitigation_folder": mitigation.folder} if mitigation else {}
    provenance["processes"] = parallel.processes()
    summary: dict[str, Any] = {}
    with open_shared(out, config=config, kind="audit", provenance=provenance) as run:
        _prepare(pipe)
        copies = load_copy_detector(settings.copies, pipe)
        point = operating_point(pipe, gathered.items, copies, settings, size)
        labels = near_duplicates(gathered.items, copies, size, point["threshold"])
        own = [item for item in items if item.role != "reference"]
        _measure_all(run, Path(out), pipe, own, settings, copies, save_triggers=save_triggers)
        there = [item for item in items if item.role == "reference"]
        if reference is not None and not _done(run).issuperset(item.key for item in there):
            other = reference.load()
            _prepare(other)
            _measure_all(run, Path(out), other, there, settings, copies, save_triggers=False)
        if run is not None:
            records = {item.key: run.done[item.key] for item in items}
            about = {name: config.get(name) for name in ("model", "model_sha256", "lora", "mitigation")}
            summary = {"schema_version": SUMMARY_SCHEMA, **about, "reference_model": config["reference"]}
            summary |= summarise(
                records,
                settings,
                operating_point=point,
                labels=labels,
                suspect_errors=gathered.suspect_errors,
                control_errors=gathered.control_errors,
            )
            summary = json.loads(run.write_json("summary.json", summary).read_text())  # as a later reader will have it
            write_page(run, records, summary)
    return AuditResult(Path(out), parallel.broadcast(summary))


def _done(run: Run | None) -> set[str]:
    """Keys of the finished items, on every process."""
    return parallel.broadcast(set() if run is None else set(run.done))


def _prepare(pipe: DiffusionPipeline) -> None:
    pipe.set_progress_bar_config(disable=True)
    pipe.safety_checker = None


def _measure_all(
    run: Run | None,
    folder: Path,
    pipe: DiffusionPipeline,
    items: Sequence[AuditItem],
    settings: AuditSettings,
    copies: CopyDetector,
    *,
    save_triggers: bool,
) -> None:
    """Measure what is not in the journal yet; each process takes every n-th group.

    Groups are cut from the whole list, never from what is left: a resumed group, or one on another process, fills the
    same slots of the same batches, which makes its numbers the same to the last bit.
    """
    done, size = _done(run), parallel.processes()
    n = settings.items_at_once
    groups = [items[first : first + n] for first in range(0, len(items), n)]
    left = [group for group in groups if any(item.key not in done for item in group)]
    finished = sum(item.key in done for item in items)
    if finished:
        say(f"{finished} of {len(items)} items are finished already; going on.")
    if not left:
        return
    measurer = Measurer(pipe, settings, copies, image_size(pipe, settings.size), folder / "checkpoints")
    total = sum(effort(group, measurer) for group in left[::size])  # what the first process does
    with progress(f"auditing, {finished} of {len(items)} items", total=total) as bar, counted(pipe, bar):
        for first in range(0, len(left), size):
            turn = left[first : first + size]
            found = [_measured(measurer, group, save_triggers) for group in parallel.shard(turn)]
            for group, measured in zip(turn, parallel.gather(found), strict=True):
                for item, one in zip(group, measured, strict=True):
                    if run is not None and item.key not in done:
                        _keep(run, item, one, save_triggers=save_triggers)
                finished += sum(item.key not in done for item in group)
            if run is not None:
                measurer.ladder.clear()
            parallel.broadcast(None)  # no search saves its state while the first process clears those that are done
            bar.describe(f"auditing, {finished} of {len(items)} items")


def _measured(measurer: Measurer, group: Sequence[AuditItem], save_triggers: bool) -> list[Measurement]:
    """A group's measurements; triggers travel to the process that writes only where they are kept."""
    found = measurer.measure(group)
    return found if save_triggers else [one._replace(triggers={}) for one in found]


def _keep(run: Run, item: AuditItem, measured: Measurement, *, save_triggers: bool) -> None:
    """Write an item's files, then its line: what the journal names is there."""
    stem = item.key.replace(":", "-", 1)
    pictures = {name: run.save_image(f"{stem}-{name}", picture) for name, picture in measured.pictures.items()}
    record: Mapping[str, Any] = {**measured.record, "pictures": pictures}
    if save_triggers and measured.triggers:
        record = {**record, "triggers": _save_triggers(run, item, measured)}
    run.write(item.key, record)


def _save_triggers(run: Run, item: AuditItem, measured: Measurement) -> str:
    """All embeddings of one item in one safetensors file, keys ``<rung>.<start>.<budget>``; texts in its metadata.

    What the denoiser takes beside a sequence stands under ``<rung>.<start>.<budget>.<keyword of the pipeline>``.
    """
    from safetensors.torch import save

    tensors, texts = {}, {}
    for rung, variants in measured.triggers.items():
        for variant, triggers in variants.items():
            for index, budget in enumerate(triggers.budgets):
                name = f"{rung}.{variant}.{budget}"
                tensors[name] = triggers.embeddings[index].contiguous()
                beside = triggers.embeds.companions
                tensors |= {f"{name}.{companion}": value[index].contiguous() for companion, value in beside.items()}
                if triggers.texts is not None:
                    texts[name] = triggers.texts[index]
    name = f"triggers/{safe_name(item.key.replace(':', '-', 1))}.safetensors"
    write_bytes_atomically(run.path(name), save(tensors, metadata=texts))
    return name
