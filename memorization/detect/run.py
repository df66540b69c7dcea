"""A detection in a run folder: every caption scored by every detector. Interrupted anywhere, it goes on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from diffkit.console import progress, say
from diffkit.runs import Run
from memorization.detect import Detector, make_detector
from memorization.detect.captions import CaptionScore, score_by_all
from memorization.detect.settings import DetectSettings
from memorization.detect.verdicts import summarise
from memorization.generate import Sampling, item_seed
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

    Args:
        pipe: a pipeline of the Stable Diffusion 1/2 family.
        gathered: suspects and controls; their images are not read.
        out: the run's folder.
        model: what the user called the model.
        settings: everything that changes results.
        model_sha256: checksum of the weights, if known.
        mitigation: checksum or name of what was put on the model, if anything.

    Raises:
        InputError: another run is in the folder, or another process is writing to it.
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
    chosen = {spec: make_detector(spec) for spec in settings.detectors}  # a wrong option is refused before anything
    with Run.open(out, config=config, kind="detect", provenance=provenance) as run:
        pipe.set_progress_bar_config(disable=True)
        _score_all(run, pipe, gathered.items, chosen, settings)
        records = {item.key: run.done[item.key] for item in gathered.items}
        summary: dict[str, Any] = {"schema_version": SUMMARY_SCHEMA, "model": model, "model_sha256": model_sha256}
        summary |= {"mitigation": mitigation, "settings": settings.to_json()}
        summary |= summarise(records, settings)
        errors = [*gathered.suspect_errors, *gathered.control_errors]
        summary["rows_in_error"] = [error._asdict() for error in errors]
        run.write_json("summary.json", summary)
    return summary


def _score_all(
    run: Run,
    pipe: DiffusionPipeline,
    items: Sequence[AuditItem],
    chosen: Mapping[str, Detector],
    settings: DetectSettings,
) -> None:
    """Score what is not in the journal yet; groups are cut from the whole list, so that resuming changes nothing."""
    sampling = Sampling(settings.num_inference_steps, settings.guidance_scale, settings.micro_batch)
    n = max(1, settings.micro_batch // settings.seeds)
    groups = [items[first : first + n] for first in range(0, len(items), n)]
    left = [group for group in groups if any(item.key not in run.done for item in group)]
    finished = sum(item.key in run.done for item in items)
    if finished:
        say(f"{finished} of {len(items)} captions are finished already; going on.")
    with progress("scoring captions", total=sum(len(group) for group in left)) as bar:
        for group in left:
            seeds = [[item_seed(settings.seed, item.key, "detect", i) for i in range(settings.seeds)] for item in group]
            captions = [item.suspect.caption for item in group]
            found = score_by_all(pipe, captions, chosen, seeds, sampling=sampling)
            for row, item in enumerate(group):
                if item.key not in run.done:
                    run.write(
                        item.key, _record(item, seeds[row], {name: scores[row] for name, scores in found.items()})
                    )
            bar.advance(len(group))


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
