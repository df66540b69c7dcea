"""A detection in a run folder: every caption scored by every detector. It can be resumed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch

from diffkit import parallel
from diffkit.console import progress, say
from diffkit.lora import lora_digest
from diffkit.micro_batch import MicroBatch
from diffkit.mitigation.record import recorded_checksum
from diffkit.named_pipeline import dtype_name, named_pipeline
from diffkit.noted_options import options_of
from diffkit.runs import Run
from diffkit.runs.shared import open_shared
from diffkit.seeds import item_seed
from diffkit.truncation import say_truncated
from memorization.detection import make_detector
from memorization.detection.base import Detector
from memorization.detection.compatibility import compatible_detectors, require_compatible
from memorization.detection.result import DetectRecord, DetectSummary, read_records
from memorization.detection.score_captions import CaptionScore, score_by_all
from memorization.detection.settings import DetectSettings
from memorization.detection.summary import summarise_detection
from memorization.generation import Sampling
from memorization.items import AuditItem, Gathered, Source, captions_of, data_digest, gather, write_row_errors

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

SUMMARY_SCHEMA = 1


def detect(
    model: str | DiffusionPipeline,
    suspects: Source | Gathered,
    controls: Source | None = None,
    *,
    out: str | Path,
    settings: DetectSettings | None = None,
    name: str | None = None,
    model_sha256: str | None = None,
    mitigation: str | None = None,
) -> DetectSummary:
    """Score captions for signs of memorization, or resume the run in ``out``.

    Every process of a launch calls this alike and gets the summary.

    Args:
        model: a name that :func:`diffkit.load_pipeline` takes, or a pipeline of a known family.
        suspects: a source that :func:`diffkit.read_suspects` takes, suspects already read, or the suspects and controls
            of :func:`memorization.items.gather`. Only their captions are used.
        controls: captions that are not memorized, in the same forms; without them no threshold is chosen.
        out: the run's folder.
        settings: everything that changes results; by default with the default detectors that fit the model's family.
        name: the model's name in the record; by default the one by which it was loaded.
        model_sha256: checksum of the weights, if known.
        mitigation: checksum or name of the mitigation applied to the pipeline, for the record; None = the checksum of
            those that :func:`diffkit.apply_mitigation` applied. The LoRA that a pipeline was loaded with is recorded.

    Returns:
        The content of summary.json.

    Raises:
        InputError: a detector that does not fit the model's family, another run is in the folder, or another process
            is writing to it.

    Example:
        >>> import tempfile
        >>> from diffkit import read_suspects
        >>> from memorization import DetectSettings, detect
        >>> small = DetectSettings(detectors=("noise_magnitude", "anisotropy"), seeds=1, num_inference_steps=2)
        >>> suspects, controls = read_suspects("lab:planted")[0][:2], read_suspects("lab:controls")[0][:19]
        >>> summary = detect("lab", suspects, controls, out=tempfile.mkdtemp(), settings=small)
        >>> summary["suspects"], summary["controls"], list(summary["detectors"])
        (2, 19, ['noise_magnitude', 'anisotropy'])
        >>> summary["detectors"]["anisotropy"]["threshold"]["source"]
        'the controls, at most 1% of them above it'
    """
    gathered = gather(suspects, controls)
    parallel.processes()  # before the model: it gives each process its device
    pipe, model, model_sha256 = named_pipeline(model, name, model_sha256)
    if settings is None:
        settings = DetectSettings(detectors=compatible_detectors(pipe, DetectSettings().detectors))
    mitigation = recorded_checksum(pipe) if mitigation is None else mitigation
    added = {"dtype": dtype_name(pipe), **lora_digest(pipe)}
    config = {
        "model": model,
        "model_sha256": model_sha256,
        "mitigation": mitigation,
        "data_sha256": data_digest(gathered.items),
        "items": len(gathered.items),
        "settings": settings.to_json(),
        **options_of(pipe),
        **added,
    }
    provenance = {"device": str(pipe.device), "dtype": str(pipe.dtype), "threads": torch.get_num_threads()}
    provenance["processes"] = parallel.processes()
    chosen = {spec: make_detector(spec) for spec in settings.detectors}  # before a folder is made
    require_compatible(pipe, settings.detectors)
    truncated = say_truncated(pipe, captions_of(gathered.items))
    summary: DetectSummary | None = None
    with open_shared(out, config=config, kind="detect", provenance=provenance, added=added) as run:
        if run is not None:
            write_row_errors(run, gathered)
            scored = {key: record["scores"].values() for key, record in run.done.items()}
            run.retry([key for key, scores in scored.items() if any(s["value"] is None for s in scores)], "captions")
        pipe.set_progress_bar_config(disable=True)
        _score_all(run, pipe, gathered.items, chosen, settings)
        if run is not None:
            records = read_records({item.key: run.done[item.key] for item in gathered.items})
            errors = [*gathered.suspect_errors, *gathered.control_errors]
            summary = {
                "schema_version": SUMMARY_SCHEMA,
                "model": model,
                "model_sha256": model_sha256,
                "mitigation": mitigation,
                "settings": settings.to_json(),
                **summarise_detection(records, settings),
                "rows_in_error": [{"source": e.source, "row": e.row, "reason": e.reason} for e in errors],
            }
            if truncated:
                summary["truncated"] = truncated
            run.write_json("summary.json", summary)
    return cast("DetectSummary", parallel.broadcast(summary))


def _score_all(
    run: Run | None,
    pipe: DiffusionPipeline,
    items: Sequence[AuditItem],
    chosen: Mapping[str, Detector],
    settings: DetectSettings,
) -> None:
    """Score captions that are not in the journal yet; groups are cut from the whole list, also when resuming."""
    batches = MicroBatch.of(settings.micro_batch, pipe.device, what="rows to score")
    done = parallel.broadcast(set() if run is None else set(run.done))
    n = max(1, batches.size // settings.seeds)
    groups = [items[first : first + n] for first in range(0, len(items), n)]
    remaining = [group for group in groups if any(item.key not in done for item in group)]
    finished = sum(item.key in done for item in items)
    if finished:
        say(f"{finished} of {len(items)} captions are finished already; going on.")
    size = parallel.processes()
    with progress("scoring captions", total=sum(len(group) for group in remaining)) as bar:
        for first in range(0, len(remaining), size):
            turn = remaining[first : first + size]
            scored = [_score_group(pipe, group, chosen, settings, batches) for group in parallel.shard(turn)]
            for group, records in zip(turn, parallel.gather(scored), strict=True):
                for item, record in zip(group, records, strict=True):
                    if run is not None and item.key not in done:
                        run.write(item.key, record)
                bar.advance(len(group))


def _score_group(
    pipe: DiffusionPipeline,
    group: Sequence[AuditItem],
    chosen: Mapping[str, Detector],
    settings: DetectSettings,
    batches: MicroBatch,
) -> list[DetectRecord]:
    """The records of a group of captions that share their batches."""
    seeds = [[item_seed(settings.seed, item.key, "detect", i) for i in range(settings.seeds)] for item in group]
    captions = [item.suspect.caption for item in group]

    def score(size: int) -> dict[str, list[CaptionScore]]:
        sampling = Sampling(settings.num_inference_steps, settings.guidance_scale, size)
        return score_by_all(pipe, captions, chosen, seeds, sampling=sampling)

    by_detector = batches.fit(score)
    return [
        _record(item, seeds[row], {name: scores[row] for name, scores in by_detector.items()})
        for row, item in enumerate(group)
    ]


def _record(item: AuditItem, seeds: Sequence[int], scores: Mapping[str, CaptionScore]) -> DetectRecord:
    return {
        "id": item.suspect.id,
        "role": item.role,
        "prompt": item.suspect.caption,
        "kind": item.suspect.kind,
        "seeds": list(seeds),
        "scores": {
            name: {"value": score.value, "seeds": list(score.scores), "reason": score.reason}
            for name, score in scores.items()
        },
    }
