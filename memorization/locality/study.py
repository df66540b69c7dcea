"""A locality study: from a model, memorized images and controls to figures in a run folder. It can be resumed.

The journal has a line for each image, one for the lines between images, and one for each group. Triggers bring
training images back; they are deleted from the run's folder ``work/`` at the end, unless ``save_triggers`` is set.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from diffkit.console import progress, say
from diffkit.lora import lora_digest
from diffkit.mitigation.record import recorded_checksum
from diffkit.named_pipeline import dtype_name
from diffkit.noted_options import options_of
from diffkit.runs import Run
from diffkit.runs.files import safe_name, write_bytes_atomically
from diffkit.truncation import say_truncated
from memorization.attack.checkpoint import Checkpoints
from memorization.attack.initialization import OTHER_CAPTIONS
from memorization.copies import CopyDetector, load_copy_detector
from memorization.copies.operating_point import operating_point
from memorization.copies.references import in_error, load_references
from memorization.generation import image_size
from memorization.items import AuditItem, Gathered, captions_of, data_digest, write_row_errors
from memorization.locality import embeddings as space
from memorization.locality.explore import Explorer
from memorization.locality.groups import compare_members, make_groups
from memorization.locality.report import write_page
from memorization.locality.settings import LocalitySettings
from memorization.locality.summary import memorized, summarise_locality
from memorization.locality.weight_selection import Selector, selector
from memorization.mitigation.layers import feed_forward_layers, matching, value_layers
from memorization.text_embeddings import encoded

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

SUMMARY_SCHEMA = 1


class LocalityResult(NamedTuple):
    """The study's folder and the content of summary.json."""

    folder: Path
    summary: dict[str, Any]


def study(
    pipe: DiffusionPipeline,
    gathered: Gathered,
    *,
    out: str | Path,
    model: str,
    settings: LocalitySettings,
    model_sha256: str | None = None,
    mitigation: str | None = None,
    save_triggers: bool = False,
) -> LocalityResult:
    """Run a study, or go on with the one in ``out``.

    Args:
        pipe: a pipeline of a known family; its safety checker is off while images are generated.
        gathered: suspects and controls, all with images.
        out: the run's folder.
        model: what the user called the model.
        settings: everything that changes figures.
        model_sha256: checksum of the weights, if known.
        mitigation: checksum of the mitigation that is applied; None = of those by :func:`diffkit.apply_mitigation`.
        save_triggers: keep the embeddings found. They bring training images back: treat the files as sensitive.

    Raises:
        InputError: another study is in the folder, or another process is writing to it.
    """
    mitigation = recorded_checksum(pipe) if mitigation is None else mitigation
    added = {"dtype": dtype_name(pipe), **lora_digest(pipe)}
    config = {
        "model": model,
        "model_sha256": model_sha256,
        "mitigation": mitigation,
        "data_sha256": data_digest(gathered.items),
        "items": len(gathered.items),
        "save_triggers": save_triggers,
        "settings": settings.to_json(),
        **options_of(pipe),
        **added,
    }
    provenance = {"device": str(pipe.device), "dtype": str(pipe.dtype), "threads": torch.get_num_threads()}
    truncated = say_truncated(pipe, captions_of(gathered.items))
    copies = load_copy_detector(settings.copies, pipe)  # before a folder is made; so are the layers looked up
    for method in settings.methods:
        matching(pipe, value_layers(pipe) if method == "nemo" else feed_forward_layers(pipe))
    with Run.open(out, config=config, kind="locality", provenance=provenance, added=added) as run:
        pipe.set_progress_bar_config(disable=True)
        write_row_errors(run, gathered)
        threshold = _threshold(pipe, gathered.items, settings, copies)
        work = _Work(run, pipe, gathered.items, settings, copies, threshold)
        work.explore_all()
        work.cross()
        work.compare_groups()
        records = {key: run.done[key] for key in run.done}
        summary: dict[str, Any] = {"schema_version": SUMMARY_SCHEMA, "model": model, "model_sha256": model_sha256}
        (start,) = work.explorer.starts(1)
        apart = space.gaussian_distance(start.numel(), float(start.std()))
        summary |= summarise_locality(
            records, gathered.items, settings, threshold=threshold["threshold"], starts_apart=apart
        )
        summary["operating_point"] = threshold
        if truncated:
            summary["truncated"] = truncated
        summary = json.loads(run.write_json("summary.json", summary).read_text())
        write_page(run, summary)
        if not save_triggers:
            work.delete_triggers()
    return LocalityResult(Path(out), summary)


def _threshold(
    pipe: DiffusionPipeline, items: Sequence[AuditItem], settings: LocalitySettings, copies: CopyDetector
) -> dict[str, Any]:
    """The operating point as in the audit, or the given threshold."""
    if settings.threshold is not None:
        return {"detector": copies.name, "threshold": settings.threshold, "source": "given"}
    return dict(operating_point(pipe, items, copies, image_size(pipe)))


class _Work:
    """The stages of a study on one open run."""

    def __init__(
        self,
        run: Run,
        pipe: DiffusionPipeline,
        items: Sequence[AuditItem],
        settings: LocalitySettings,
        copies: CopyDetector,
        point: Mapping[str, Any],
    ) -> None:
        self.run, self.pipe, self.items, self.settings = run, pipe, items, settings
        self.explorer = Explorer(pipe, settings, copies, image_size(pipe), point["threshold"])
        self.checkpoints = Checkpoints(run.path("checkpoints"))

    def explore_all(self) -> None:
        """Attack every image that is not in the journal yet, and those in error while nothing was compared."""
        again = in_error(self.items, self.run.done, self.explorer.size)
        if "crossing" not in self.run.done:
            self.run.retry(again, "images")
        elif again:
            say(f"{len(again)} images in error stay so, since the others were compared: try them with a new --out.")
        remaining = [item for item in self.items if item.key not in self.run.done]
        if remaining and len(remaining) < len(self.items):
            say(f"{len(self.items) - len(remaining)} of {len(self.items)} images are finished already; going on.")
        with progress("looking for triggers", total=len(remaining)) as bar:
            for item in remaining:
                record, triggers = self.explorer.explore(item, self.checkpoints)
                if triggers is not None:
                    self._save(item.key, triggers)
                self.run.write(item.key, record)
                self.checkpoints.clear()
                bar.advance()

    def cross(self) -> None:
        """Lines from each memorized image's trigger to one of the next memorized image: a null of the lines."""
        items = memorized(self.run.done, self.items, self.settings)
        if "crossing" in self.run.done:
            return
        rows: list[dict[str, Any]] = []
        for item, other in zip(items, items[1:] + items[:1], strict=True) if len(items) > 1 else ():
            own, others = self._load(item.key), self._load(other.key)
            successful = [[k for k, hit in enumerate(self.run.done[i.key]["success"]) if hit] for i in (item, other)]
            pairs = list(zip(*successful, strict=False))[: self.settings.lines]
            references = load_references(item, self.explorer.size).images
            if not pairs or references is None:
                continue
            along = [space.between(own[a], others[b], self.settings.shares) for a, b in pairs]
            values = iter(self.explorer.similarity(item, torch.cat(along), references))
            rows += [
                {"key": item.key, "kind": "others", "from": a, "to": b, "share": share, "similarity": next(values)}
                for a, b in pairs
                for share in self.settings.shares
            ]
        self.run.write("crossing", {"lines": rows})

    def compare_groups(self) -> None:
        """Compare the members of every group that is not in the journal yet."""
        items = memorized(self.run.done, self.items, self.settings)
        controls = [i for i in self.items if i.role == "control" and self.run.done[i.key]["reason"] is None]
        members = min(self.settings.group, self.settings.starts, max(len(items), 2))
        names = [f"same:{item.key}" for item in items] + [f"control:{item.key}" for item in controls]
        names += ["others", "starts", "captions", "ordinary"]
        if all(f"group:{name}" in self.run.done for name in names) or "compared" in self.run.done:
            return
        captions = list(self.settings.ordinary or OTHER_CAPTIONS)
        ordinary = encoded(self.pipe, captions[:members]).prompt_embeds.float().cpu()
        groups = make_groups(
            {item.key: self._load(item.key) for item in items},
            {item.key: self._load(item.key) for item in controls},
            self.explorer.starts(members),
            [self.explorer.caption(item) for item in items],
            list(ordinary),
            members=members,
        )
        selectors: dict[str, Selector] = {
            method: selector(self.pipe, method, captions, self.settings) for method in self.settings.methods
        }
        with progress("comparing activations and weights", total=len(groups)) as bar:
            for name, group in groups.items():
                if f"group:{name}" not in self.run.done:
                    comparison = compare_members(self.pipe, group, selectors, self.settings)
                    self.run.write(f"group:{name}", comparison)
                bar.advance()
        self.run.write("compared", {"groups": list(groups)})

    def delete_triggers(self) -> None:
        """Delete the triggers."""
        for path in self.run.path("work").glob("*.safetensors"):
            path.unlink()

    def _path(self, key: str) -> Path:
        return self.run.path(f"work/{safe_name(key.replace(':', '-', 1))}.safetensors")

    def _save(self, key: str, triggers: Tensor) -> None:
        from safetensors.torch import save

        write_bytes_atomically(self._path(key), save({"triggers": triggers.contiguous()}))

    def _load(self, key: str) -> Tensor:
        from safetensors.torch import load

        return load(self._path(key).read_bytes())["triggers"]
