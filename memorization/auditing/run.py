"""The audit: from a model, suspects and controls to verdicts in a run folder. It can be resumed."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from diffkit import parallel
from diffkit.console import say
from diffkit.named_pipeline import dtype_name
from diffkit.noted_options import options_of
from diffkit.runs.shared import open_shared
from diffkit.truncation import say_truncated
from memorization.auditing.attack_suite import build_attacks
from memorization.auditing.kept import kept_near_duplicates, kept_operating_point
from memorization.auditing.models import AuditedModel
from memorization.auditing.order import Bench, measure_controls, measure_in_order
from memorization.auditing.report import write_page
from memorization.auditing.result import AuditSummary, ModelUsed
from memorization.auditing.settings import AUTO, AuditSettings, Triage
from memorization.auditing.summary import RECORD_SCHEMA, SUMMARY_SCHEMA, summarise_audit
from memorization.auditing.triage import not_attacked
from memorization.copies import CopyDetector, load_copy_detector
from memorization.copies.operating_point import repeated_controls
from memorization.copies.references import in_error, load_references
from memorization.detection import make_detector
from memorization.detection.compatibility import compatible_detectors, require_compatible
from memorization.generation import image_size, require_finite, round_trip
from memorization.items import (
    KINDS,
    AuditItem,
    Gathered,
    Source,
    captions_of,
    data_digest,
    gather,
    kinds_digest,
    stated_count,
    with_companions,
    without_repeated,
    write_row_errors,
)
from memorization.presets import Preset, PresetName, choose_preset

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

#: The detectors that ``auto`` chooses from, the first that fits the family. The first records a generation that is
#: made anyway; the second needs nothing but generations.
DEFAULT_DETECTORS = ("noise_magnitude", "seed_agreement")


@dataclass(frozen=True)
class AuditResult:
    """The audit's folder and the content of its summary.json."""

    folder: Path
    summary: AuditSummary


def audit(
    model: str | DiffusionPipeline | AuditedModel,
    suspects: Source | Gathered,
    controls: Source | None = None,
    *,
    out: str | Path,
    settings: AuditSettings | None = None,
    preset: PresetName = "auto",
    name: str | None = None,
    save_triggers: bool = False,
) -> AuditResult:
    """Audit a model for images it has memorized, or resume the audit in ``out``.

    The attacks run first on the controls, images the model was not trained on, which set up to which budget the
    suspects are attacked. Each suspect is generated from its caption, and attacked unless that gives the image, until
    its verdict is certain; see :mod:`memorization.auditing.effort`. With fewer than 19 controls no attack verdict is
    given. Every process of a launch calls this alike and gets the summary. The pipeline's safety checker is off: a
    blackened image would read as "not replicated".

    Args:
        model: a name that :func:`diffkit.load_pipeline` takes, a pipeline of a known family, or an
            :class:`~memorization.auditing.models.AuditedModel` with a mitigation, a LoRA or a reference model.
        suspects: a source that :func:`diffkit.read_suspects` takes, suspects already read, or the suspects and controls
            of :func:`memorization.items.gather`.
        controls: the same for the controls; without them no attack verdict is given.
        out: the run's folder. Until an item is finished, ``checkpoints`` in it holds unfinished triggers.
        settings: everything that changes results; by default with the first detector that fits the model's family.
        preset: replaces defaults for the lab's models, see :mod:`memorization.presets`.
        name: the model's name in the record; by default the one by which it was loaded.
        save_triggers: keep the embeddings found. They reproduce training images: treat the files as sensitive.

    Raises:
        InputError: an unknown attack or detector, before a model is loaded or a folder made; a detector that does not
            fit the model's family, a size the family does not make, another audit in the folder, or another process
            that writes to it.

    Example:
        >>> import tempfile
        >>> from diffkit import read_suspects
        >>> from memorization import AuditSettings, audit
        >>> small = AuditSettings(budgets=(0, 1), starts=("other",), generations=1, attack_generations=1,
        ...                       num_inference_steps=2, draws=1, micro_batch=4)
        >>> suspects, controls = read_suspects("lab:planted")[0][:1], read_suspects("lab:controls")[0][:2]
        >>> result = audit("lab", suspects, controls, out=tempfile.mkdtemp(), settings=small)
        >>> result.summary["suspects"], result.summary["controls"]["failure"]
        (1, '2 controls were scored under the attack; at least 19 are needed')
        >>> [(result.folder / name).is_file() for name in ("report.html", "results.csv", "summary.json")]
        [True, True, True]
    """
    gathered = gather(suspects, controls)
    settings = settings or AuditSettings(detectors=AUTO)
    _refuse_unknown(settings)
    audited = AuditedModel.of(model, name)
    chosen = choose_preset(preset, audited.name)
    parallel.processes()  # before the model: it gives each process its device
    pipe = audited.load()
    settings = _completed(settings, chosen, pipe)
    require_compatible(pipe, settings.detectors)
    if settings.triage is not None:
        require_compatible(pipe, (Triage.read(settings.triage).detector,))
    size = image_size(pipe, settings.size)
    items = with_companions(gathered.items, edits=settings.edits, reference=audited.reference is not None)
    stated = stated_count(item.role for item in items)
    config = _config(audited, gathered, settings, items=stated, save_triggers=save_triggers)
    config |= {"dtype": dtype_name(pipe), **options_of(pipe)}
    added = {key: config[key] for key in ("dtype", KINDS)}
    provenance = _provenance(audited, chosen, pipe)
    copies = load_copy_detector(settings.copies, pipe)  # before a folder is made
    truncated = say_truncated(pipe, captions_of(gathered.items))
    summary: AuditSummary | None = None
    with open_shared(out, config=config, kind="audit", provenance=provenance, added=added) as run:
        if run is not None:
            write_row_errors(run, gathered)
            run.retry(in_error(items, run.done, size))
        pipe.set_progress_bar_config(disable=True)
        _refuse_broken_autoencoder(pipe, gathered.items, size)
        repeated = _repeated_controls(gathered.items, copies, size)
        items = without_repeated(items, repeated)
        left_out = not_attacked(audited, pipe, gathered, settings, Path(out))
        bench = Bench(run, Path(out), settings, copies, save_triggers)
        measure_controls(bench, pipe, items)  # takes no operating point, so that work begins without waiting for it
        point = kept_operating_point(run, pipe, gathered.items, copies, size, settings.threshold)
        threshold = point["threshold"]
        measure_in_order(bench, pipe, items, threshold=threshold, reference=audited.reference, left_out=left_out)
        if run is not None:
            records = bench.records(items)
            errors = {"suspect_errors": gathered.suspect_errors, "control_errors": gathered.control_errors}
            own = [item for item in items if item.role in ("suspect", "control")]
            labels = kept_near_duplicates(run, own, copies, size, threshold)
            figures = summarise_audit(
                records, settings, operating_point=point, labels=labels, repeated_controls=repeated, **errors
            )
            cut = {"truncated": truncated} if truncated else {}
            written = run.write_json("summary.json", {**_model_used(audited), **figures, **cut})
            summary = json.loads(written.read_text())  # as a later reader will have it
            write_page(run, records, summary)
    return AuditResult(Path(out), cast("AuditSummary", parallel.broadcast(summary)))


def _repeated_controls(items: Sequence[AuditItem], copies: CopyDetector, size: tuple[int, int]) -> dict[str, str]:
    """:func:`~memorization.copies.operating_point.repeated_controls` of the first process, said there."""
    repeated = parallel.broadcast(repeated_controls(items, copies, size) if parallel.is_first() else {})
    if repeated:
        key, first = next(iter(repeated.items()))
        say(
            f"{len(repeated)} controls show pictures of other controls ({key} that of {first}). They are left out, "
            "since several captions of one picture prove no more than one."
        )
    return repeated


def _refuse_unknown(settings: AuditSettings) -> None:
    for attack in settings.attacks:
        build_attacks(attack, settings)
    for detector in settings.detectors if settings.detectors != AUTO else ():
        make_detector(detector)
    if settings.triage is not None:
        make_detector(Triage.read(settings.triage).detector)


def _refuse_broken_autoencoder(pipe: DiffusionPipeline, items: Iterable[AuditItem], size: tuple[int, int]) -> None:
    """Before anything is measured, by the first image that can be read."""
    stacks = (load_references(item, size).images for item in items)
    images = next((stack for stack in stacks if stack is not None), None)
    if images is not None:
        require_finite(round_trip(pipe, images[:1]), "decoded by the model's autoencoder")


def _completed(settings: AuditSettings, preset: Preset, pipe: DiffusionPipeline) -> AuditSettings:
    """The settings with ``auto`` detectors chosen and the preset's captions."""
    if settings.detectors == AUTO:
        settings = replace(settings, detectors=compatible_detectors(pipe, DEFAULT_DETECTORS)[:1])
    if settings.other_captions is None and preset.other_captions is not None:
        settings = replace(settings, other_captions=preset.other_captions())
    return settings


def _config(
    audited: AuditedModel, gathered: Gathered, settings: AuditSettings, *, items: int, save_triggers: bool
) -> dict[str, Any]:
    """Everything that identifies the audit."""
    used = _model_used(audited)
    config = {
        "records": RECORD_SCHEMA,
        "model": used["model"],
        "model_sha256": used["model_sha256"],
        "mitigation": used["mitigation"],
        "reference": used["reference_model"],
        "data_sha256": data_digest(gathered.items),
        KINDS: kinds_digest(gathered.items),
        "items": items,
        "save_triggers": save_triggers,
        "settings": settings.to_json(),
    }
    return config | ({"lora": used["lora"]} if used["lora"] else {})


def _model_used(audited: AuditedModel) -> ModelUsed:
    mitigation, reference, lora = audited.mitigation, audited.reference, audited.lora
    return {
        "schema_version": SUMMARY_SCHEMA,
        "model": audited.name,
        "model_sha256": audited.sha256,
        "lora": {"name": lora.name, "sha256": lora.sha256} if lora else None,
        "mitigation": {"method": mitigation.method, "sha256": mitigation.sha256} if mitigation else None,
        "reference_model": {"model": reference.model, "sha256": reference.model_sha256} if reference else None,
    }


def _provenance(audited: AuditedModel, preset: Preset, pipe: DiffusionPipeline) -> dict[str, Any]:
    """What is worth knowing but does not identify the audit."""
    provenance = {"device": str(pipe.device), "dtype": str(pipe.dtype), "threads": torch.get_num_threads()}
    folder = audited.mitigation.folder if audited.mitigation else None
    provenance |= {"mitigation_folder": folder} if folder else {}
    return provenance | {"processes": parallel.processes(), "preset": preset.name}
