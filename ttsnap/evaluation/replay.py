"""Replay a pruning schedule on recorded rewards: which candidate would have won, and what is its final reward?

Each prompt's candidates are a pool of N recorded seeds; a search over n draws n of them without replacement, many times
over. The authors' simulation (arXiv 2511.22242) draws one subset for all prompts from an unseeded generator, returns
wrong winners after two or more looks and breaks ties by chance; here every prompt draws its own subsets from its own
seeded generator, winners are indices into the pool, and ties go to the lower index. NaN never survives a finite score.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from diffkit.errors import InputError
from diffkit.rewards.combine import COMBINE, Combine
from ttsnap.reward_tensor import RewardTensor, places, written_pairs
from ttsnap.schedules.pruning_schedule import PruningSchedule

__all__ = ["Replay", "draw_orders", "replay"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
CHUNK = 1 << 18  # candidates handled at once; more do not fit into a processor's cache


class Replay(NamedTuple):
    """Results of the searches of P prompts, each repeated R times.

    Attributes:
        winners: (P, R) index of the winner in the whole pool; -1 where no survivor could be scored.
        values: (P, R) its final reward, NaN without a winner; (P, R, K) for several rewards.
        stages: for each stage the indices (P, R, k) of its candidates, rising: those drawn, then those left after
            each look.
    """

    winners: Ints
    values: Floats
    stages: tuple[Ints, ...]


def draw_orders(prompts: Sequence[int] | range, pool: int, resamples: int, *, seed: int = 0, stream: int = 0) -> Ints:
    """Random orders (P, R, pool) of the candidates: the first n of each are a subset of n.

    The generator of a prompt depends on the seed, the stream and the prompt's number only, so other prompts, chunks
    and further resamplings change nothing. One set of orders for several schedules or several n makes their difference
    less noisy (common random numbers).

    Args:
        prompts: the number of each prompt; its generator follows from it.
        stream: gives independent orders under the same seed.
    """
    orders = np.empty((len(prompts), resamples, pool), dtype=np.int64)
    for row, prompt in zip(orders, prompts, strict=True):
        generator = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(stream, prompt)))
        row[:] = generator.permuted(np.tile(np.arange(pool), (resamples, 1)), axis=1)
    return orders


def replay(
    tensors: RewardTensor | Sequence[RewardTensor],
    schedule: PruningSchedule,
    n: int,
    *,
    resamples: int = 50,
    seed: int = 0,
    stream: int = 0,
    orders: Ints | None = None,
    survivors: Sequence[int] | None = None,
    combine: Combine = "rank",
) -> Replay:
    """Search each prompt's pool ``resamples`` times with n candidates.

    Args:
        tensors: one reward, or several of the same candidates; several prune and choose by ``combine``.
        n: candidates to begin with.
        seed, stream: of the subsets, see :func:`draw_orders`.
        orders: (P, R, N) given orders instead, of which the first n are taken; ``resamples`` and ``seed`` are ignored.
        survivors: how many to keep at each look instead of ``schedule.survivors(n)``.

    Raises:
        InputError: n exceeds the pool, a look was not recorded or comes too late, or tensors do not belong together.
    """
    group = [tensors] if isinstance(tensors, RewardTensor) else list(tensors)
    kept = schedule.survivors(n) if survivors is None else list(survivors)
    _check(group, schedule, n, kept, orders)
    count, pool = group[0].final.shape
    resamples = resamples if orders is None else orders.shape[1]
    parts = []
    for chunk in _chunks(count, max(1, CHUNK // (resamples * n))):
        drawn = draw_orders(chunk, pool, resamples, seed=seed, stream=stream) if orders is None else orders[chunk]
        ids = np.sort(drawn[:, :, :n], axis=-1)
        if len(group) == 1:
            parts.append(_one(group[0], schedule.looks, kept, chunk, ids))
        else:
            parts.append(_several(group, schedule.looks, kept, chunk, ids, combine))
    winners = np.concatenate([part[0] for part in parts])
    stages = tuple(np.concatenate(stage) for stage in zip(*(part[1] for part in parts), strict=True))
    rows = np.arange(count)[:, None]
    finals = np.stack([np.where(winners < 0, np.nan, tensor.final[rows, winners]) for tensor in group], axis=-1)
    return Replay(winners, finals[..., 0] if isinstance(tensors, RewardTensor) else finals, stages)


def _chunks(count: int, size: int) -> Iterator[range]:
    for start in range(0, count, size):
        yield range(start, min(start + size, count))


def _check(
    group: list[RewardTensor], schedule: PruningSchedule, n: int, kept: Sequence[int], orders: Ints | None
) -> None:
    if not group:
        raise InputError("There is no reward to replay.")
    shape = group[0].looks.shape
    if any(tensor.looks.shape != shape for tensor in group):
        raise InputError("Several rewards must be of the same prompts, candidates and steps; their shapes differ.")
    schedule.validate(shape[2])
    if not 1 <= n <= shape[1]:
        raise InputError(f"Cannot draw {n} candidates from a pool of {shape[1]}.")
    if len(kept) != len(schedule.steps) or any(k < 1 for k in kept):
        raise InputError(f"Each of {len(schedule.steps)} looks needs a number of survivors from 1, got {list(kept)}.")
    for tensor in group:
        _check_looks(tensor, schedule)
    if orders is not None and (orders.ndim != 3 or orders.shape[0] != shape[0] or orders.shape[2] < n):
        raise InputError(f"The orders must be of (prompts {shape[0]}, resamples, at least {n}), got {orders.shape}.")


def _check_looks(tensor: RewardTensor, schedule: PruningSchedule) -> None:
    unknown = sorted(set(schedule.looks) - set(tensor.recorded_looks))
    if not unknown:
        return
    (step, calls), name = unknown[0], tensor.name or "the reward"
    if calls:
        ahead = written_pairs(look for look in tensor.recorded_looks if look[1])
        recorded = f"with lookahead {ahead} only" if ahead else "without lookahead"
        raise InputError(f"The schedule looks ahead by {calls} calls after step {step}, but {name} was recorded "
                         f"{recorded}; `ttsnap collect --lookahead {step}+{calls}` records it.")  # fmt: skip
    raise InputError(
        f"The schedule looks at step {step}, but {name} was recorded at "
        f"{', '.join(map(str, tensor.recorded)) or 'no step'} only."
    )


def _one(
    tensor: RewardTensor, looks: Sequence[tuple[int, int]], kept: Sequence[int], chunk: range, ids: Ints
) -> tuple[Ints, list[Ints]]:
    """Winners and stages for one reward. Places are whole numbers without ties, so that exactly k are at most the
    k-th smallest, and the mask that picks them keeps the candidates' order."""
    pool = tensor.final.shape[1]
    tables = _places(tensor, looks)
    rows = np.arange(chunk.start, chunk.stop)[:, None]
    flat = ids + (rows * pool)[..., None]
    stages = [flat]
    for table, k in zip(tables, kept, strict=False):
        if k < flat.shape[-1]:
            at = table.take(flat)
            bound = np.partition(at, k - 1, axis=-1)[..., k - 1 : k]
            flat = flat[at <= bound].reshape(*flat.shape[:2], k)
        stages.append(flat)
    best = np.argmin(tables[-1].take(flat), axis=-1)[..., None]
    winners = np.take_along_axis(flat, best, axis=-1)[..., 0] - rows * pool
    unscored = _unscored(tensor, looks)[rows, winners]
    return np.where(unscored, -1, winners), [stage - (rows * pool)[..., None] for stage in stages]


def _places(tensor: RewardTensor, looks: Sequence[tuple[int, int]]) -> list[NDArray[np.int32]]:
    """For each look and for the final reward the flat places (P * N,) of all candidates, 0 the best."""
    if not tensor.missing:
        return [table.ravel() for table in (*(tensor.look_places(*look) for look in looks), tensor.places[-1])]
    scores = [*(tensor.look(*look) for look in looks), tensor.final]
    failed = np.logical_or.accumulate([np.isnan(score) for score in scores])  # once out, a candidate stays out
    return [places(np.where(out, np.nan, score)).ravel() for out, score in zip(failed, scores, strict=True)]


def _unscored(tensor: RewardTensor, looks: Sequence[tuple[int, int]]) -> NDArray[np.bool_]:
    """(P, N): candidates that cannot win, because a look or their final reward is NaN."""
    scores = (*(tensor.look(*look) for look in looks), tensor.final)
    out: NDArray[np.bool_] = np.logical_or.reduce([np.isnan(at) for at in scores])
    return out


def _several(
    group: list[RewardTensor],
    looks: Sequence[tuple[int, int]],
    kept: Sequence[int],
    chunk: range,
    ids: Ints,
    combine: Combine,
) -> tuple[Ints, list[Ints]]:
    """The same for several rewards, whose utility depends on which candidates are still there."""
    rows = np.arange(chunk.start, chunk.stop)[:, None, None]
    out = np.logical_or.reduce([_unscored(tensor, ()) for tensor in group])
    utility = COMBINE[combine]
    stages = [ids]
    failed = np.zeros(group[0].final.shape, dtype=bool)
    for look, k in zip(looks, kept, strict=True):
        judged = [tensor.look(*look) for tensor in group]
        failed |= np.logical_or.reduce([np.isnan(scores) for scores in judged])
        if k < ids.shape[-1]:
            order = np.argsort(-utility(_gather(judged, failed, rows, ids)), axis=-1, kind="stable")[..., :k]
            ids = np.take_along_axis(ids, np.sort(order, axis=-1), axis=-1)
        stages.append(ids)
    finals = utility(_gather([tensor.final for tensor in group], failed | out, rows, ids))
    best = np.argmax(finals, axis=-1)[..., None]
    winners = np.take_along_axis(ids, best, axis=-1)[..., 0]
    nobody = np.take_along_axis(finals, best, axis=-1)[..., 0] == -np.inf
    return np.where(nobody, -1, winners), stages


def _gather(scores: list[NDArray[Any]], failed: NDArray[np.bool_], rows: NDArray[Any], ids: Ints) -> Floats:
    """(p, R, m, K) scores of the candidates, NaN for those that failed."""
    gathered = np.stack([score[rows, ids] for score in scores], axis=-1)
    gathered[failed[rows, ids]] = np.nan
    return gathered
