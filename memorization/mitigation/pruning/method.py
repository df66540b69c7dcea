"""Run a pruning on a pipeline: the weights or units that a saliency and an allocation choose, as one mask."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from torch import Tensor

from diffkit.errors import InputError
from diffkit.mitigation import Mitigation
from diffkit.mitigation.packed_mask import mask_tensor
from memorization.mitigation import Method
from memorization.mitigation.pruning.settings import PruneSettings

if TYPE_CHECKING:
    from diffkit.families import Pipeline
    from diffkit.mitigation.units import Units
    from diffkit.runs import Run
    from diffkit.suspects import Suspect
    from memorization.mitigation.pruning.calibration import Calibration
    from memorization.mitigation.pruning.saliencies import Saliencies
    from memorization.mitigation.pruning.search import Allocated

__all__ = ["METHOD", "allocate", "mitigate"]


def mitigate(pipe: Pipeline, suspects: Sequence[Suspect], run: Run, settings: PruneSettings) -> Mitigation:
    """A mask of ``sparsity`` of the denoiser's weights, the same for all suspects.

    The run keeps what is measured of each layer and each generation of a search, so that a killed run goes on.

    Raises:
        InputError: a suspect without an image, or no retention data, where the settings need them; no such layer.
    """
    from memorization.mitigation.pruning.calibration import float32_denoiser, prepare
    from memorization.mitigation.pruning.layers import by_module, prunable_layers
    from memorization.mitigation.pruning.saliencies import Saliencies
    from memorization.mitigation.pruning.structured import prunable_units

    bare = [suspect.id for suspect in suspects if not suspect.images]
    if settings.needs_images and bare:
        raise InputError(
            f"taylor, and the objectives forget and dori, need the image of every suspect, and {bare[0]!r} has none."
        )
    units: dict[str, Units] = {}
    if settings.structure == "channels":
        units, layers = prunable_units(pipe, settings.layers)
    else:
        layers = prunable_layers(pipe, settings.layers)
    calibration = prepare(pipe, suspects, run, settings) if settings.needs_data else None
    with float32_denoiser(pipe):
        saliencies = Saliencies(layers, by_module(pipe, layers), calibration, settings, run)
        tensors, figures = _units_off(saliencies, units) if units else _weights_off(saliencies, calibration, run)
    config = run.record["config"]
    return Mitigation(
        method="prune",
        kind="mask",
        model=config["model"],
        tensors=tensors,
        model_sha256=config["model_sha256"],
        settings=asdict(settings),
        suspects=tuple(suspect.id for suspect in suspects),
        figures=figures,
    )


def allocate(saliencies: Saliencies, calibration: Calibration | None, run: Run) -> Allocated:
    """How many weights each layer loses, and the scores that say which."""
    from memorization.mitigation.pruning.allocation import module_counts, threshold_counts, uniform_counts
    from memorization.mitigation.pruning.layers import sizes
    from memorization.mitigation.pruning.objectives import make_objective
    from memorization.mitigation.pruning.search import Allocated, by_ecoflap, by_tyr

    settings, weights = saliencies.settings, sizes(saliencies.layers)
    if settings.allocation in ("ecoflap", "tyr"):
        assert calibration is not None  # by PruneSettings.needs_data
        objective = make_objective(calibration, settings)
        if settings.allocation == "ecoflap":
            return by_ecoflap(saliencies, objective, run)
        return by_tyr(saliencies, calibration, objective, run)
    scores = saliencies.scores(list(weights))
    match settings.allocation:
        case "uniform":
            counts = uniform_counts(weights, settings.sparsity)
        case "global":
            counts = threshold_counts(scores, round(settings.sparsity * sum(weights.values())))
        case _:
            counts = module_counts(scores, saliencies.modules, settings.sparsity)
    return Allocated(counts, scores, {})


def _weights_off(
    saliencies: Saliencies, calibration: Calibration | None, run: Run
) -> tuple[dict[str, Tensor], dict[str, object]]:
    """Tensors and figures of a mask of single weights."""
    from memorization.mitigation.pruning.layers import sizes, smallest

    chosen, weights = allocate(saliencies, calibration, run), sizes(saliencies.layers)
    tensors: dict[str, Tensor] = {}
    for name, count in chosen.counts.items():
        tensors |= mask_tensor(name, smallest(chosen.scores[name], count))
    shares = {"share off by layer": {name: chosen.counts[name] / n for name, n in weights.items()}}
    return tensors, _totals(sum(weights.values()), sum(chosen.counts.values())) | shares | chosen.figures


def _units_off(saliencies: Saliencies, units: Mapping[str, Units]) -> tuple[dict[str, Tensor], dict[str, object]]:
    """Tensors and figures of a mask of whole units."""
    from memorization.mitigation.pruning.structured import allocate_units, importances, mask_of_units, unit_weights

    settings, layers = saliencies.settings, saliencies.layers
    by_weight = saliencies.scores(list(layers))
    scores = {name: importances(of, by_weight) for name, of in units.items()}
    weights = {name: unit_weights(of, layers) for name, of in units.items()}
    counts = allocate_units(scores, weights, settings.sparsity, settings.allocation)
    total = sum(weights[name] * of.number for name, of in units.items())
    return mask_of_units(units, layers, scores, counts), {
        **_totals(total, sum(weights[name] * count for name, count in counts.items())),
        "units": sum(of.number for of in units.values()),
        "units off": sum(counts.values()),
        "share off by unit": {name: counts[name] / of.number for name, of in units.items()},
    }


def _totals(weights: int, off: int) -> dict[str, object]:
    return {"weights": weights, "weights off in all": off, "share off in all": off / weights}


METHOD = Method(name="prune", kind="mask", settings=PruneSettings, mitigate=mitigate)
