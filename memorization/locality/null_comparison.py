"""Each figure of the same image's triggers compared with its nulls: distances, activations, weights.

``same`` and ``control`` groups give one value an image; ``others``, ``starts``, ``captions`` and ``ordinary`` are one
matrix each. Sizes are compared as ratios, cosines and agreements as differences.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from memorization.locality.bootstrap import Estimate, across, against, off_diagonal_mean, within

Record = Mapping[str, Any]
Groups = Mapping[str, Record]
Matrix = NDArray[np.float64]
Pick = Callable[[Record], "Matrix | None"]  # (m, m) of one group, NaN where missing

NULLS = ("others", "control", "starts", "captions", "ordinary")
DIRECTION = {"ratio": 1.0, "difference": 0.0}


def compared_groups(groups: Groups, methods: Sequence[str]) -> dict[str, Any]:
    """The parts of the summary that come from groups: embeddings, activations, weights, and their reading."""
    if not any(name.startswith("same:") for name in groups):
        return {"embeddings": {}, "activations": {}, "weights": {}, "reading": {}}
    embeddings: dict[str, Any] = {
        "distance": with_nulls(groups, lambda group: _matrix(group["distance"]), "ratio"),
        "cosine": with_nulls(groups, lambda group: _matrix(group.get("cosine")), "difference"),
        "rank": {
            name: {
                part: to_json(within(_ranks(groups, name, part))) for part in ("numerical", "effective", "first_share")
            }
            for name in ("same", "control", "others")
        },
    }
    activations = _by_layer(groups, lambda group: group["activations"], "ratio")
    weights = {method: _agreements(groups, method) for method in methods}
    reading = {
        "distance": read(embeddings["distance"], closer="below"),
        "cosine": read(embeddings["cosine"], closer="above"),
        "activations": read(activations["all"], closer="below"),
    }
    reading |= {f"weights, {method}": read(table["all"], closer="above") for method, table in weights.items()}
    return {"embeddings": embeddings, "activations": activations, "weights": weights, "reading": reading}


def with_nulls(groups: Groups, pick: Pick, how: Literal["ratio", "difference"]) -> dict[str, Any]:
    """One figure for the same image's triggers, for each null, and the comparison with each null.

    Returns:
        ``same`` and each null as {value, low, high, n}, and ``against``: null -> {value, low, high, n}.
    """
    same = per_image(groups, "same", pick)
    table: dict[str, Any] = {"same": to_json(within(same)), "against": {}, "how": how}
    for null in NULLS:
        if null == "control":
            values = per_image(groups, "control", pick)
            table[null], difference = within(values), against(same, null=values, how=how)
        else:
            matrix = pick(groups[null]) if null in groups else None
            matrix = np.empty((0, 0)) if matrix is None else matrix
            table[null], difference = across(matrix), against(same, matrix=matrix, how=how)
        table[null] = to_json(table[null])
        table["against"][null] = to_json(difference)
    return table


def per_image(groups: Groups, prefix: str, pick: Pick) -> list[float | None]:
    """Mean over the pairs of each group ``prefix:<key>``."""
    matrices = [pick(group) for name, group in groups.items() if name.startswith(f"{prefix}:")]
    return [None if matrix is None else off_diagonal_mean(matrix) for matrix in matrices]


def read(table: Mapping[str, Any], *, closer: Literal["below", "above"]) -> dict[str, str]:
    """Per null: whether triggers of one image are "more alike", "less alike", "not told apart", or unknown.

    Args:
        table: from :func:`with_nulls`.
        closer: on which side of the null a figure means more alike.
    """
    neutral = DIRECTION[table["how"]]
    words = {}
    for null, estimate in table["against"].items():
        low, high = estimate["low"], estimate["high"]
        if low is None or high is None:
            words[null] = "unknown"
        elif low <= neutral <= high:
            words[null] = "not told apart"
        else:
            words[null] = "more alike" if (high < neutral) == (closer == "below") else "less alike"
    return words


def to_json(estimate: Estimate) -> dict[str, float | int | None]:
    """An estimate as JSON, six significant digits."""
    numbers = {name: getattr(estimate, name) for name in ("value", "low", "high")}
    return {k: None if v is None else float(f"{v:.6g}") for k, v in numbers.items()} | {"n": estimate.n}


def _by_layer(
    groups: Groups, layers: Callable[[Record], Record], how: Literal["ratio", "difference"]
) -> dict[str, Any]:
    """:func:`with_nulls` for every layer, and for ``all``: the mean over layers, each by its own scale for ratios."""
    names = list(layers(next(iter(groups.values()))))
    reference = [layers(group) for name, group in groups.items() if name.startswith("same:")]

    def scale(layer: str) -> float:
        means = [off_diagonal_mean(_matrix(row[layer])) for row in reference] if how == "ratio" else [1.0]
        nonzero = [mean for mean in means if mean]
        return float(np.mean(nonzero)) if nonzero else 1.0

    scales = {layer: scale(layer) for layer in names}

    def pooled(group: Record) -> Matrix | None:
        stack = np.stack([_matrix(layers(group)[layer]) / scales[layer] for layer in names])
        count = (~np.isnan(stack)).sum(0)
        return np.where(count > 0, np.nansum(stack, 0) / np.maximum(count, 1), np.nan)

    def of_layer(layer: str) -> Pick:
        return lambda group: _matrix(layers(group)[layer])

    return {
        "all": with_nulls(groups, pooled, how),
        **{layer: with_nulls(groups, of_layer(layer), how) for layer in names},
    }


def _agreements(groups: Groups, method: str) -> dict[str, Any]:
    """Intersections over union by layer and over all layers, with chance and the numbers selected."""
    table = _by_layer(groups, lambda group: {k: v["iou"] for k, v in group["weights"][method].items()}, "difference")
    chance = _by_layer(groups, lambda g: {k: v["chance"] for k, v in g["weights"][method].items()}, "difference")
    for layer, row in table.items():
        row["chance"] = chance[layer]["same"]
        gained = [_gain(iou, expected) for iou, expected in _pairs(groups, method, layer)]
        row["against"]["chance"] = to_json(within(gained))
        sizes = [
            size
            for name, group in groups.items()
            if name.startswith("same:")
            for inside, part in group["weights"][method].items()
            if layer in ("all", inside)
            for size in part["sizes"]
        ]
        row["selected"] = round(float(np.mean(sizes)), 2) if sizes else None
    return table


def _pairs(groups: Groups, method: str, layer: str) -> list[tuple[float | None, float | None]]:
    """Per image: mean agreement and mean chance over the layer, or over all layers."""
    rows = []
    for name, group in groups.items():
        if name.startswith("same:"):
            parts = [part for inside, part in group["weights"][method].items() if layer in ("all", inside)]
            both = [[off_diagonal_mean(_matrix(part[kind])) for part in parts] for kind in ("iou", "chance")]
            present = [[value for value in values if value is not None] for values in both]
            rows.append(tuple(float(np.mean(values)) if values else None for values in present))
    return [(row[0], row[1]) for row in rows]


def _gain(agreement: float | None, chance: float | None) -> float | None:
    return None if agreement is None or chance is None else agreement - chance


def _ranks(groups: Groups, name: str, part: str) -> list[float | None]:
    ranks = [group.get("rank") for key, group in groups.items() if key == name or key.startswith(f"{name}:")]
    return [rank[part] if rank else None for rank in ranks]


def _matrix(rows: Any) -> Any:
    """JSON rows as an array, None as NaN; None stays None."""
    return None if rows is None else np.array(rows, dtype=np.float64)
