"""Recorded rewards of many candidates at every step: what simulations replay and schedules are fitted on.

Three sources are read: ``.npz`` files, the folders of YAML files that the TTSnap authors published, and the folders
that ``diffkit ttsnap collect`` writes. Nothing is unpickled and no YAML tag is executed.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from diffkit.errors import InputError
from diffkit.ledger import Prices
from diffkit.runs.files import write_bytes_atomically

__all__ = ["RewardTensor", "places", "save_npz", "written_pairs"]

Floats = NDArray[np.float64]
PLAIN, AWARE, LOOKS, FINAL = "_base", "_noise_aware", "_looks", "_final"  # endings of arrays in an .npz
AHEAD = ".lookahead."  # in an .npz between the name and step+calls
PUBLISHED_AWARE = "_naft"  # ending of the published folders of noise-aware rewards


@dataclass(frozen=True, eq=False)
class RewardTensor:
    """Rewards of P prompts, N candidates each, over a denoising of T calls. Higher is better.

    Attributes:
        looks: (P, N, T) float64; ``[:, :, s]`` are the pruning reward's scores of the x0 estimates after s + 1
            denoiser calls; NaN where nothing was recorded.
        final: (P, N) float64, the plain reward of the finished image; NaN where it could not be scored.
        name: of the reward.
        sigmas: (T,) noise over signal of the latents that went into each call, falling; None when unknown.
        prompts: (P,) texts; None when unknown.
        prices: what a call, a decoding and a score cost: counted in FLOP, or the published ones in the authors' unit;
            None when unknown.
        lookahead: (step, calls) -> (P, N) float64, the plain reward of the images that lie so many calls ahead of the
            candidates after that step, see :mod:`diffkit.lookahead`; empty where none were recorded.

    Raises:
        InputError: shapes do not agree, nothing is in it, a value is infinite, or a lookahead leads beyond the end.
    """

    looks: Floats
    final: Floats
    name: str = ""
    sigmas: tuple[float, ...] | None = None
    prompts: tuple[str, ...] | None = None
    prices: Prices | None = None
    lookahead: Mapping[tuple[int, int], Floats] = field(default_factory=dict)

    def __post_init__(self) -> None:
        looks, final = (np.array(values, dtype=np.float64, order="C") for values in (self.looks, self.final))
        if looks.ndim != 3 or final.shape != looks.shape[:2] or looks.size == 0:
            raise InputError(
                f"A reward tensor needs looks of (prompts, candidates, steps) and finals of (prompts, candidates), got "
                f"{looks.shape} and {final.shape}."
            )
        if np.isinf(looks).any() or np.isinf(final).any():
            raise InputError(f"The rewards {self.name!r} hold infinite values; write NaN where a score is not known.")
        for name, values in (("looks", looks), ("final", final)):
            values.setflags(write=False)  # `places` is cached
            object.__setattr__(self, name, values)
        for name, length in (("sigmas", looks.shape[2]), ("prompts", looks.shape[0])):
            given = getattr(self, name)
            if given is not None:
                object.__setattr__(self, name, tuple(given))
                if len(given) != length:
                    raise InputError(f"The reward tensor needs {length} {name}, got {len(given)}.")
        ahead = {pair: np.array(values, dtype=np.float64) for pair, values in sorted(self.lookahead.items())}
        for (step, calls), values in ahead.items():
            _check_lookahead(step, calls, values, looks.shape)
            values.setflags(write=False)
        object.__setattr__(self, "lookahead", ahead)

    def __repr__(self) -> str:
        """The name and the sizes."""
        prompts, pool, calls = self.looks.shape
        size = f"{prompts} prompts, {pool} candidates, {len(self.recorded)} of {calls} steps recorded"
        ahead = f", lookahead {written_pairs(self.lookahead)}" if self.lookahead else ""
        return f"RewardTensor({self.name!r}: {size}{ahead})"

    @property
    def calls(self) -> int:
        """T, the denoiser calls of one finished candidate."""
        return int(self.looks.shape[2])

    @cached_property
    def recorded(self) -> list[int]:
        """The step indices at which at least one look was recorded."""
        return [int(step) for step in np.flatnonzero(np.isfinite(self.looks).any(axis=(0, 1)))]

    @cached_property
    def recorded_looks(self) -> list[tuple[int, int]]:
        """(step, calls ahead) of every look with at least one score, rising; 0 calls for the estimate x0."""
        ahead = [pair for pair, scores in self.lookahead.items() if np.isfinite(scores).any()]
        return sorted([(step, 0) for step in self.recorded] + ahead)

    def look(self, step: int, calls: int = 0) -> Floats:
        """(P, N) scores of a look after a step, of x0 or of what lies so many calls ahead."""
        return self.lookahead[step, calls] if calls else self.looks[:, :, step]

    def look_places(self, step: int, calls: int = 0) -> NDArray[np.int32]:
        """(P, N) places of the candidates at a look; see `places`."""
        row = self.calls + list(self.lookahead).index((step, calls)) if calls else step
        table: NDArray[np.int32] = self.places[row]
        return table

    @cached_property
    def missing(self) -> int:
        """Scores that are NaN although their look was recorded for others, and NaN finals."""
        return sum(
            int(np.isnan(scores).sum()) for scores in (*(self.look(*at) for at in self.recorded_looks), self.final)
        )

    @cached_property
    def repeated(self) -> int:
        """The most candidates of one prompt that have every score in common with an earlier one: the same image again.

        The published SDXL rewards hold 56 images a prompt, most of them four times.
        """
        rows = np.concatenate([self.looks, self.final[..., None]], axis=-1)
        scored = [row[np.isfinite(row).any(axis=-1)] for row in rows]
        return max(len(row) - len(np.unique(np.nan_to_num(row, nan=np.inf), axis=0)) for row in scored)

    @cached_property
    def places(self) -> NDArray[np.int32]:
        """(T + L + 1, P, N): the place of each candidate at each step's look, at each of L lookaheads and, last, by its
        final reward; see `places`."""
        return places(np.stack([*np.moveaxis(self.looks, -1, 0), *self.lookahead.values(), self.final]))

    def select(self, prompts: Sequence[int] | NDArray[np.integer[Any]] | NDArray[np.bool_] | slice) -> RewardTensor:
        """The same for some prompts: their indices in the wanted order, a mask of (P,) or a slice.

        Raises:
            InputError: an index outside, or no prompt left.
        """
        try:
            rows = np.arange(len(self.looks))[prompts if isinstance(prompts, slice) else np.asarray(prompts)]
        except IndexError as error:
            raise InputError(f"Cannot select these of {len(self.looks)} prompts: {error}.") from error
        texts = None if self.prompts is None else tuple(self.prompts[row] for row in rows)
        ahead = {pair: scores[rows] for pair, scores in self.lookahead.items()}
        return RewardTensor(self.looks[rows], self.final[rows], self.name, self.sigmas, texts, self.prices, ahead)


def _check_lookahead(step: int, calls: int, scores: Floats, shape: tuple[int, ...]) -> None:
    if scores.shape != shape[:2] or np.isinf(scores).any():
        raise InputError(
            f"The rewards after a lookahead must be finite or NaN and of (prompts, candidates) {shape[:2]}, got "
            f"{scores.shape} for {step}+{calls}."
        )
    if not (step >= 0 and 1 <= calls < shape[2] - step):
        raise InputError(f"A denoising of {shape[2]} calls cannot be looked ahead of by {calls} after step {step}.")


def written_pairs(pairs: Iterable[tuple[int, int]]) -> str:
    """Lookaheads as ``--lookahead`` takes them: ``1+3, 3+2``."""
    return ", ".join(f"{step}+{calls}" for step, calls in pairs)


def places(scores: Floats) -> NDArray[np.int32]:
    """The place of each candidate along the last axis: 0 is the best, ties go to the lower index, NaN comes last."""
    order = np.argsort(-scores, axis=-1, kind="stable")
    ranks = np.empty(scores.shape, dtype=np.int32)
    np.put_along_axis(ranks, order, np.arange(scores.shape[-1], dtype=np.int32), axis=-1)
    return ranks


def save_npz(path: str | Path, *tensors: RewardTensor) -> None:
    """Write tensors to one compressed ``.npz``, each under its name; :func:`load_tensor` gives back the same.

    Raises:
        InputError: a name is missing or stands twice.
    """
    names = [tensor.name for tensor in tensors]
    if not names or not all(names) or len(set(names)) < len(names):
        raise InputError(f"Each reward tensor in a file needs a name of its own, got {names}.")
    arrays: dict[str, ArrayLike] = {}
    for tensor in tensors:
        arrays[tensor.name + LOOKS], arrays[tensor.name + FINAL] = tensor.looks, tensor.final
        for (step, calls), scores in tensor.lookahead.items():
            arrays[f"{tensor.name}{AHEAD}{step}+{calls}"] = scores
        if tensor.sigmas is not None:
            arrays[tensor.name + ".sigmas"] = np.array(tensor.sigmas, dtype=np.float64)
        if tensor.prompts is not None:
            arrays[tensor.name + ".prompts"] = np.array([text.encode() for text in tensor.prompts])
        if tensor.prices is not None:
            arrays[tensor.name + ".prices"] = np.array(astuple(tensor.prices), dtype=np.float64)  # NaN for None
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    write_bytes_atomically(Path(path), buffer.getvalue())
