"""Run :mod:`.nemo` over suspects: one journal line each, then a mask with a part per suspect and their union."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from diffkit.console import progress
from diffkit.errors import InputError
from diffkit.mitigation import Mitigation
from diffkit.seeds import candidate_seed
from memorization.mitigation import Method
from memorization.mitigation.layers import Mask, matching, size, value_layers
from memorization.mitigation.nemo import (
    Statistics,
    activations,
    differences,
    initial_selection,
    memorization_score,
    refine,
    remaining_similarity,
    select,
    statistics,
    text_outputs,
)
from memorization.mitigation.reference_captions import ordinary_captions, require_finite_predictions
from memorization.presets import recorded_preset
from memorization.text_embeddings import Embedded, encoded

if TYPE_CHECKING:
    from diffkit.families import Pipeline
    from diffkit.runs import Run
    from diffkit.suspects import Suspect

CALIBRATION = " calibration"  # key of the journal line of the threshold

__all__ = ["METHOD", "NemoSettings", "calibrate_nemo_threshold", "find_neurons", "shared_neurons"]


@dataclass(frozen=True)
class NemoSettings:
    """Settings of NeMo.

    Attributes:
        layers: patterns of the layers, from the pipeline; None = the text's value projections of the family.
        captions: text file of ordinary captions; None = those of the preset.
        statistics: number of them for the activations' mean and deviation (the paper: 50,000).
        threshold: similarity at or below which a caption is not memorized (the paper: 0.428); None = mean plus one
            deviation of the score over ``calibration`` ordinary captions.
        theta: where the search begins, in deviations; ``smallest_theta``: where it ends.
        check: skip a caption whose own score is not above the threshold, as published; false = search anyway.
        refine: drop layers and neurons that are not needed.
        fill: value of an output that is off: its "mean" over ordinary captions and tokens, which changes ordinary
            captions far less, or "zero" as published.
        seeds: noises per caption, derived from ``seed``.
        steps: denoising steps of a generation.
        most_shared: switch off only so many neurons, those that most suspects have, as one mask for all suspects (the
            paper's single pruned model); none = each suspect's own neurons. The union of many suspects' neurons can
            be nearly all there are.
    """

    layers: tuple[str, ...] | None = None
    captions: str | None = None
    statistics: int = 1000
    calibration: int = 100
    threshold: float | None = None
    theta: float = 5.0
    smallest_theta: float = 1.0
    check: bool = True
    refine: bool = True
    fill: Literal["mean", "zero"] = "mean"
    seeds: int = 10
    seed: int = 1
    steps: int = 20
    most_shared: int | None = None

    def __post_init__(self) -> None:
        """Check the values."""
        if not self.theta >= self.smallest_theta > 0:
            raise InputError(f"Expected theta >= smallest_theta > 0, got {self.theta} and {self.smallest_theta}.")
        if min(self.statistics, self.calibration, self.seeds) < 2 or self.steps < 1:
            raise InputError("Expected at least two statistics captions, calibration captions and seeds, and one step.")
        if self.threshold is not None and not 0 < self.threshold < 1:
            raise InputError(f"Expected a threshold between 0 and 1, got {self.threshold}.")
        if self.most_shared is not None and self.most_shared < 1:
            raise InputError(f"Expected most_shared of at least 1, got {self.most_shared}.")
        if self.fill not in ("mean", "zero"):
            raise InputError(f"Expected fill to be mean or zero, got {self.fill!r}.")


class CaptionNeurons(NamedTuple):
    """Neurons of one caption, and their record for the journal."""

    mask: Mask
    record: dict[str, Any]


class NeuronSearch(NamedTuple):
    """What all searches of a run share."""

    layers: dict[str, nn.Linear]
    ordinary: Statistics
    threshold: float
    seeds: list[int]


def calibrate_nemo_threshold(pipe: Pipeline, captions: Sequence[str], seeds: Sequence[int], *, steps: int) -> float:
    """Mean plus one deviation of ordinary captions' scores over all seeds; memorized captions score higher.

    At most 0.99, so that a mask that changes nothing never suffices.
    """
    scores = []
    for caption in captions:
        scores.append(memorization_score(differences(pipe, encoded(pipe, [caption]), seeds, steps=steps)))
    every = torch.cat(scores)
    require_finite_predictions(every)
    return min(float(every.mean() + every.std()), 0.99)


def find_neurons(
    pipe: Pipeline, prompt_embeds: Embedded, search: NeuronSearch, settings: NemoSettings
) -> CaptionNeurons:
    """The neurons of one caption (or of any trigger in its place), by initial selection and refinement.

    Args:
        prompt_embeds: one row.
    """
    nothing: Mask = {name: torch.zeros(layer.out_features).bool() for name, layer in search.layers.items()}
    maps = differences(pipe, prompt_embeds, search.seeds, steps=settings.steps)
    scores = memorization_score(maps)
    above = scores > search.threshold
    record: dict[str, Any] = {"score": float(scores.max()), "seeds_above": int(above.sum())}
    if settings.check and not above.any():
        return CaptionNeurons(nothing, record | {"memorized": False, "neurons": 0})
    kept = [seed for seed, high in zip(search.seeds, above.tolist(), strict=True) if high or not settings.check]
    original = differences(pipe, prompt_embeds, kept, steps=settings.steps)
    remaining = remaining_similarity(pipe, search.layers, prompt_embeds, kept, original, steps=settings.steps)
    values = {name: value[0] for name, value in activations(pipe, search.layers, prompt_embeds).items()}
    first = initial_selection(
        lambda theta, top_k: select(values, search.ordinary, theta=theta, top_k=top_k),
        remaining,
        threshold=search.threshold,
        theta=settings.theta,
        smallest_theta=settings.smallest_theta,
    )
    record |= {"memorized": True, "theta": first.theta, "top_k": first.top_k, "initial_neurons": size(first.mask)}
    record["initial_similarity"] = first.similarity
    mask = first.mask
    if settings.refine:
        mask = refine(mask, remaining, threshold=max(search.threshold, first.similarity))
    return CaptionNeurons(mask, record | {"similarity": remaining(mask), "neurons": size(mask)})


def ordinary_outputs(pipe: Pipeline, layers: dict[str, nn.Linear], captions: Sequence[str]) -> dict[str, Tensor]:
    """Mean over captions and tokens of each output, signed: layer -> (out,) float32 on the CPU."""
    blocks = [
        {name: output.float().flatten(0, 1) for name, output in outputs.items()}
        for outputs in text_outputs(pipe, layers, encoded(pipe, captions))
    ]
    return {name: torch.cat([block[name] for block in blocks]).mean(0).cpu() for name in layers}


def mitigate(pipe: Pipeline, suspects: Sequence[Suspect], run: Run, settings: NemoSettings) -> Mitigation:
    """A mask with each suspect's neurons as its own part; by default their union is applied."""
    config = run.record["config"]
    settings = replace(settings, layers=value_layers(pipe) if settings.layers is None else settings.layers)
    layers = matching(pipe, settings.layers or ())
    captions = ordinary_captions(settings.captions, preset=recorded_preset(run.record), n=settings.statistics)
    seeds = [candidate_seed(settings.seed, 0, index) for index in range(settings.seeds)]
    threshold = _threshold(pipe, captions, seeds, run, settings)
    search = NeuronSearch(layers, statistics(pipe, layers, captions), threshold, seeds)
    remaining = [suspect for suspect in suspects if suspect.id not in run.done]
    with progress("NeMo", total=len(remaining)) as bar:
        for suspect in remaining:
            neurons = find_neurons(pipe, encoded(pipe, [suspect.caption]), search, settings)
            rows = {name: part.nonzero().flatten().tolist() for name, part in neurons.mask.items() if part.any()}
            run.write(suspect.id, neurons.record | {"rows": rows})
            bar.advance()
    tensors = {
        f"{suspect.id}/{name}.rows": torch.tensor(rows, dtype=torch.int32)
        for suspect in suspects
        for name, rows in run.done[suspect.id]["rows"].items()
    }
    touched = {name.rpartition("/")[2].removesuffix(".rows") for name in tensors}
    if settings.fill == "mean":
        ordinary = ordinary_outputs(pipe, {name: layers[name] for name in layers if name in touched}, captions)
        tensors |= {f"{name}.outputs": values for name, values in ordinary.items()}
    mitigation = Mitigation(
        method="nemo",
        kind="mask",
        model=config["model"],
        tensors=tensors,
        model_sha256=config["model_sha256"],
        settings=asdict(settings),
        suspects=tuple(suspect.id for suspect in suspects),
        figures=_figures(run, suspects, layers, threshold),
    )
    if settings.most_shared is None or not mitigation.parts():
        return mitigation
    return shared_neurons(mitigation, settings.most_shared)


def shared_neurons(mitigation: Mitigation, n: int) -> Mitigation:
    """The n neurons that most suspects have, as one mask without parts; ties go by the layer's name and the neuron.

    Args:
        mitigation: of NeMo, with each suspect's neurons as its part.
        n: how many; all where there are fewer.

    Raises:
        InputError: a mitigation without parts.

    Example:
        >>> import torch
        >>> parts = {"a/unet.to_v.rows": torch.tensor([0, 2]), "b/unet.to_v.rows": torch.tensor([2, 3])}
        >>> mask = Mitigation("nemo", "mask", "lab", tensors=parts, suspects=("a", "b"))
        >>> shared_neurons(mask, 2).tensors
        {'unet.to_v.rows': tensor([0, 2], dtype=torch.int32)}
    """
    if not mitigation.parts():
        raise InputError(
            f"The mitigation {mitigation.method!r} has no neurons by suspect; make it without most_shared."
        )
    counts: Counter[tuple[str, int]] = Counter()
    for name, rows in sorted(mitigation.tensors.items()):
        suspect, _, rest = name.rpartition("/")
        if suspect and rest.endswith(".rows"):
            counts.update((rest, row) for row in sorted(rows.tolist()))
    chosen: dict[str, list[int]] = {}
    for (name, row), _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:n]:
        chosen.setdefault(name, []).append(row)
    ordinary = {f"{name.removesuffix('.rows')}.outputs" for name in chosen}
    tensors = {name: torch.tensor(sorted(rows), dtype=torch.int32) for name, rows in chosen.items()}
    tensors |= {name: mitigation.tensors[name] for name in sorted(ordinary) if name in mitigation.tensors}
    figures = {**mitigation.figures, "neurons off in all": sum(len(rows) for rows in chosen.values())}
    settings = {**mitigation.settings, "most_shared": n}
    return replace(mitigation, tensors=tensors, figures=figures, settings=settings)


def _threshold(
    pipe: Pipeline, captions: Sequence[str], seeds: Sequence[int], run: Run, settings: NemoSettings
) -> float:
    """The given threshold, else the calibrated one, which the journal keeps."""
    if settings.threshold is not None:
        return settings.threshold
    if CALIBRATION not in run.done:
        threshold = calibrate_nemo_threshold(pipe, captions[: settings.calibration], seeds, steps=settings.steps)
        run.write(CALIBRATION, {"threshold": threshold, "captions": len(captions[: settings.calibration])})
    return float(run.done[CALIBRATION]["threshold"])


def _figures(run: Run, suspects: Sequence[Suspect], layers: dict[str, nn.Linear], threshold: float) -> dict[str, Any]:
    records = [run.done[suspect.id] for suspect in suspects]
    together: dict[str, set[int]] = {}
    for record in records:
        for name, rows in record["rows"].items():
            together.setdefault(name, set()).update(rows)
    return {
        "threshold": threshold,
        "neurons": sum(layer.out_features for layer in layers.values()),
        "neurons off in all": sum(len(rows) for rows in together.values()),
        "neurons off, median": median([record["neurons"] for record in records]),
        "suspects below the threshold": sum(not record["memorized"] for record in records),
        "by suspect": {
            suspect.id: {k: v for k, v in run.done[suspect.id].items() if k != "rows"} for suspect in suspects
        },
    }


METHOD = Method(name="nemo", kind="mask", settings=NemoSettings, mitigate=mitigate)
