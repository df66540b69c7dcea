"""A detection in a run folder: every caption scored by every detector. Interrupted anywhere, it goes on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from diffkit import parallel
from diffkit.console import progress, say
from diffkit.micro_batch import MicroBatch
from diffkit.runs import Run
from diffkit.runs.shared import open_shared
from diffkit.seeds import item_seed
from memorization.detection import make_detector
from memorization.detection.base import Detector
from memorization.detection.compatibility import require_compatible
from memorization.detection.score_captions import CaptionScore, score_by_all
from memorization.detection.settings import DetectSettings
from memorization.detection.summary import summarise_detection
from memorization.generation import Sampling
from memorization.items import AuditItem, Gathered, data_digest

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

SUMMARY_SCHEMA = 1


def detect(
    pipe: DiffusionPipeline,
    gathered: Gathered,
    *,
    out: str | Path,
    model: str,
    settings: DetectSettings,
    model_sha256: str | None = None,
    mitigation: str | None = None,
) -> dict[str, Any]:
    """Score captions, or go on with the run in ``out``; returns the content of summary.json.

    Every process of a launch calls it alike; all get the summary.

    Args:
        pipe: a pipeline of a known family.
        gathered: suspects and controls; their images are not read.
        out: the run's folder.
        model: what the user called the model.
        settings: everything that changes results.
        model_sha256: checksum of the weights, if known.
        mitigation: checksum or name of what was put on the model, if anything.

    Raises:
        InputError: a detector that does not fit the model's family, another run is in the folder, or another process
            is writing to it.
    """
    config = {
        "model": model,
        "model_sha256": model_sha256,
        "mitigation": mitigation,
        "data_sha256": data_digest(gathered.items),
        "items": len(gathered.items),
        "settings": settings.to_json(),
    }
    provenance = {"device": str(pipe.device), "dtype": str(pipe.dtype), "threads": torch.get_num_threads()}
    provenance["processes"] = parallel.processes()
    chosen = {spec: make_detector(spec) for spec in settings.detectors}  # a wrong option is refused before anything
    require_compatible(pipe, settings.detectors)
    summary: dict[str, Any] = {}
    with open_shared(out, config=config, kind="detect", provenance=provenance) as run:
        pipe.set_progress_bar_config(disable=True)
        _score_all(run, pipe, gathered.items, chosen, settings)
        if run is not None:
            records = {item.key: run.done[item.key] for item in gathered.items}
            summary = {"schema_version": SUMMARY_SCHEMA, "model": model, "model_sha256": model_sha256}
            summary |= {"mitigation": mitigation, "settings": settings.to_json()}
            summary |= summarise_detection(records, settings)
            errors = [*gathered.suspect_errors, *gathered.control_errors]
            summary["rows_in_error"] = [error._asdict() for error in errors]
            run.write_json("summary.json", summary)
    return parallel.broadcast(summary)


def _score_all(
    run: Run | None,
    pipe: DiffusionPipeline,
    items: Sequence[AuditItem],
    chosen: Mapping[str, Detector],
    settings: DetectSettings,
) -> None:
    """Score what is not in the journal yet; groups are cut from the whole list, so that resuming changes nothing."""
    batches = MicroBatch.of(settings.micro_batch, pipe.device, what="rows to score")
    done = parallel.broadcast(set() if run is None else set(run.done))
    n = max(1, batches.size // settings.seeds)
    groups = [items[first : first + n] for first in range(0, len(items), n)]
    left = [group for group in groups if any(item.key not in done for item in group)]
    finished = sum(item.key in done for item in items)
    if finished:
        say(f"{finished} of {len(items)} captions are finished already; going on.")
    size = parallel.processes()
    with progress("scoring captions", total=sum(len(group) for group in left)) as bar:
        for first in range(0, len(left), size):
            turn = left[first : first + size]
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
) -> list[dict[str, Any]]:
    """The records of a group of captions that share their batches."""
    seeds = [[item_seed(settings.seed, item.key, "detect", i) for i in range(settings.seeds)] for item in group]
    captions = [item.suspect.caption for item in group]

    def score(size: int) -> dict[str, list[CaptionScore]]:
        sampling = Sampling(settings.num_inference_steps, settings.guidance_scale, size)
        return score_by_all(pipe, captions, chosen, seeds, sampling=sampling)

    found = batches.fit(score)
    return [
        _record(item, seeds[row], {name: scores[row] for name, scores in found.items()})
        for row, item in enumerate(group)
    ]


def _record(item: AuditItem, seeds: Sequence[int], scores: Mapping[str, CaptionScore]) -> dict[str, Any]:
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
