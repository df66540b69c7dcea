"""Recorded rewards of many candidates at every step: what simulations replay and schedules are fitted on.

Three sources are read: ``.npz`` files, the folders of YAML files that the TTSnap authors published, and the folders
that ``diffkit ttsnap collect`` writes. Nothing is unpickled and no YAML tag is executed.
"""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from diffkit.errors import InputError
from diffkit.flops import Prices
from diffkit.runs.files import write_bytes_atomically
from ttsnap.assets import NAMES, REWARDS, shipped

__all__ = ["RewardTensor", "load_tensor", "places", "save_npz", "tensor_keys"]

Floats = NDArray[np.float64]
PLAIN, AWARE, LOOKS, FINAL = "_base", "_noise_aware", "_looks", "_final"  # endings of arrays in an .npz
PUBLISHED_AWARE = "_naft"  # ending of the published folders of noise-aware rewards


@dataclass(frozen=True, eq=False)
class RewardTensor:
    """Rewards of P prompts, N candidates each, over a denoising of T calls. Higher is better.

    Attributes:
        looks: (P, N, T) float64; ``[:, :, s]`` is what the pruning reward says of the x0 estimate after s + 1
            denoiser calls; NaN where nothing was recorded.
        final: (P, N) float64, the plain reward of the finished image; NaN where it could not be scored.
        name: of the reward.
        sigmas: (T,) noise over signal of the latents that went into each call, falling; None when unknown.
        prompts: (P,) texts; None when unknown.
        prices: what a call, a decoding and a score cost, in FLOP; None when unknown.

    Raises:
        InputError: shapes do not agree, nothing is in it, or a value is infinite.
    """

    looks: Floats
    final: Floats
    name: str = ""
    sigmas: tuple[float, ...] | None = None
    prompts: tuple[str, ...] | None = None
    prices: Prices | None = None

    def __post_init__(self) -> None:
        looks, final = (np.array(values, dtype=np.float64, order="C") for values in (self.looks, self.final))
        if looks.ndim != 3 or final.shape != looks.shape[:2] or looks.size == 0:
            raise InputError(
                f"A reward tensor needs looks of (prompts, candidates, steps) and finals of (prompts, candidates), got "
                f"{looks.shape} and {final.shape}."
            )
        if np.isinf(looks).any() or np.isinf(final).any():
            raise InputError(f"The rewards {self.name!r} hold infinite values; write NaN where a score is not known.")
        for field, values in (("looks", looks), ("final", final)):
            values.setflags(write=False)  # `places` must not grow old
            object.__setattr__(self, field, values)
        for name, length in (("sigmas", looks.shape[2]), ("prompts", looks.shape[0])):
            given = getattr(self, name)
            if given is not None:
                object.__setattr__(self, name, tuple(given))
                if len(given) != length:
                    raise InputError(f"The reward tensor needs {length} {name}, got {len(given)}.")

    @property
    def calls(self) -> int:
        """T, the denoiser calls of one finished candidate."""
        return int(self.looks.shape[2])

    @cached_property
    def recorded(self) -> list[int]:
        """The step indices at which at least one look was recorded."""
        return [int(step) for step in np.flatnonzero(np.isfinite(self.looks).any(axis=(0, 1)))]

    @cached_property
    def missing(self) -> int:
        """Scores that are NaN although their step was recorded for others, and NaN finals."""
        return int(np.isnan(self.looks[:, :, self.recorded]).sum() + np.isnan(self.final).sum())

    @cached_property
    def places(self) -> NDArray[np.int32]:
        """(T + 1, P, N): the place of each candidate at each look and, last, by its final reward; see `places`."""
        return places(np.concatenate([np.moveaxis(self.looks, -1, 0), self.final[None]]))

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
        return RewardTensor(self.looks[rows], self.final[rows], self.name, self.sigmas, texts, self.prices)


def places(scores: Floats) -> NDArray[np.int32]:
    """The place of each candidate along the last axis: 0 is the best, ties go to the lower index, NaN comes last."""
    order = np.argsort(-scores, axis=-1, kind="stable")
    found = np.empty(scores.shape, dtype=np.int32)
    np.put_along_axis(found, order, np.arange(scores.shape[-1], dtype=np.int32), axis=-1)
    return found


def load_tensor(path: str | Path, key: str | None = None, *, plain: bool = False) -> RewardTensor:
    """Read a reward tensor from a file or folder.

    Args:
        path: an ``.npz`` (written by :func:`save_npz`, or with ``{key}_base`` and ``{key}_noise_aware``); a published
            folder of ``..._s00.yaml`` files, or the folder above with ``{key}_base`` and ``{key}_naft``; a folder of
            ``diffkit ttsnap collect``. The string ``lab`` means the rewards that ship with the package: ``lab`` (plain
            looks) and ``lab-noise-aware``, of held-out prompts of the lab.
        key: which reward, when there are several.
        plain: prune on the plain reward instead of the noise-aware one (TTSp). Without it the plain reward stands in
            where the noise-aware one was not recorded.

    Raises:
        InputError: nothing readable there, or no such key (the message lists the known ones).
    """
    path = _located(path)
    if not path.exists():
        raise InputError(f"There is no file or folder {str(path)!r} with rewards.")
    if path.is_dir() and not _is_collected(path):
        return _from_yaml(path, key, plain)
    key = _choose(path, key, tensor_keys(path))
    if _is_collected(path):
        if plain:
            raise InputError("A collected folder names each reward: choose the plain one by its key, without plain.")
        from ttsnap.trajectories.dataset import Trajectories

        tensor: RewardTensor = Trajectories.open(path).reward_tensor(key)
        return tensor
    return _from_npz(_arrays(path), key, plain)


def tensor_keys(path: str | Path) -> list[str]:
    """The keys that :func:`load_tensor` knows in this file or folder, sorted.

    Raises:
        InputError: it is not readable.
    """
    path = _located(path)
    if _is_collected(path):
        from ttsnap.trajectories.dataset import Trajectories

        return sorted(Trajectories.open(path).names)
    if path.is_dir():
        names = [folder.name for folder in path.iterdir() if folder.is_dir()]
        return sorted(name.removesuffix(PLAIN) for name in names if name.endswith(PLAIN))
    names = list(_arrays(path))
    return sorted({name.removesuffix(end) for name in names for end in (PLAIN, LOOKS) if name.endswith(end)})


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
        if tensor.sigmas is not None:
            arrays[tensor.name + ".sigmas"] = np.array(tensor.sigmas, dtype=np.float64)
        if tensor.prompts is not None:
            arrays[tensor.name + ".prompts"] = np.array([text.encode() for text in tensor.prompts])
        if tensor.prices is not None:
            arrays[tensor.name + ".prices"] = np.array(astuple(tensor.prices), dtype=np.float64)  # NaN for None
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    write_bytes_atomically(Path(path), buffer.getvalue())


def _located(path: str | Path) -> Path:
    """The shipped rewards by their name, everything else as a path; a folder called so is ``./lab``."""
    return shipped(path, REWARDS) if isinstance(path, str) and path in NAMES else Path(path)


def _is_collected(path: Path) -> bool:
    return path.is_dir() and (path / "run.json").is_file()


def _choose(path: Path, key: str | None, known: list[str]) -> str:
    if key is None and len(known) == 1:
        return known[0]
    if key not in known:
        what = "Which reward is meant?" if key is None else f"There are no rewards {key!r}."
        raise InputError(f"{what} {str(path)!r} holds {', '.join(known) or 'none'}; choose with --key.")
    return key


def _arrays(path: Path) -> Mapping[str, NDArray[Any]]:
    """The arrays of an .npz, each read when it is used."""
    try:
        found = np.load(path, allow_pickle=False)
        if isinstance(found, np.lib.npyio.NpzFile):
            return found
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"Cannot read {str(path)!r} as .npz: {type(error).__name__}: {error}.") from error
    raise InputError(f"{str(path)!r} holds one array; rewards are read from an .npz with named arrays.")


def _from_npz(arrays: Mapping[str, NDArray[Any]], key: str, plain: bool) -> RewardTensor:
    try:
        if key + LOOKS in arrays:
            if plain:
                raise InputError(f"{key!r} holds one kind of looks only, so there is no plain reward to choose.")
            sigmas, texts, prices = (arrays.get(f"{key}.{field}") for field in ("sigmas", "prompts", "prices"))
            return RewardTensor(
                arrays[key + LOOKS],
                arrays[key + FINAL],
                key,
                None if sigmas is None else tuple(float(sigma) for sigma in sigmas),
                None if texts is None else tuple(bytes(text).decode() for text in texts),
                None if prices is None else Prices(*(None if math.isnan(price) else float(price) for price in prices)),
            )
        base = np.asarray(arrays[key + PLAIN], dtype=np.float64)
        aware = None if plain else arrays.get(key + AWARE)
    except (KeyError, ValueError, zipfile.BadZipFile) as error:
        raise InputError(f"Cannot read the rewards {key!r}: {type(error).__name__}: {error}.") from error
    return _with_fallback(base, aware, key)


def _with_fallback(base: NDArray[Any], aware: NDArray[Any] | None, name: str) -> RewardTensor:
    """Looks of ``aware``, and of ``base`` where it has none; the last step of ``base`` is the final reward."""
    if base.ndim != 3 or (aware is not None and aware.shape != base.shape):
        raise InputError(
            f"The plain and noise-aware rewards {name!r} need one shape (prompts, candidates, steps), got "
            f"{base.shape} and {None if aware is None else aware.shape}."
        )
    looks = base if aware is None else np.where(np.isnan(aware), base, aware)
    return RewardTensor(looks, base[:, :, -1], name)


def _from_yaml(path: Path, key: str | None, plain: bool) -> RewardTensor:
    """Published folders; a folder of noise-aware rewards finds its plain one beside it."""
    from ttsnap.trajectories.published_rewards import YAML_NAME, read_yaml_rewards

    if any(YAML_NAME.fullmatch(file.name) for file in path.iterdir()):
        stem = path.name.removesuffix(PLAIN).removesuffix(PUBLISHED_AWARE)
        alone = not path.name.endswith((PLAIN, PUBLISHED_AWARE))
        base, aware = (path, path) if alone else (path.with_name(stem + end) for end in (PLAIN, PUBLISHED_AWARE))
        plain = plain or path.name.endswith(PLAIN)
    else:
        stem = _choose(path, key, tensor_keys(path))
        base, aware = path / (stem + PLAIN), path / (stem + PUBLISHED_AWARE)
    if not base.is_dir():
        raise InputError(f"The final rewards are missing: there is no folder {str(base)!r}.")
    plainly = read_yaml_rewards(base)
    if plain or aware == base or not aware.is_dir():
        return _with_fallback(plainly.scores, None, stem)
    return _with_fallback(plainly.scores, read_yaml_rewards(aware, like=plainly).scores, stem)
