"""Reward tensors from a file or folder: ours, collected runs, and what the TTSnap authors published.

Nothing is unpickled and no YAML tag is executed.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from diffkit.console import say
from diffkit.errors import InputError
from diffkit.ledger import Prices
from ttsnap.assets import NAMES, REWARDS, shipped
from ttsnap.reward_tensor import AHEAD, AWARE, FINAL, LOOKS, PLAIN, PUBLISHED_AWARE, RewardTensor

if TYPE_CHECKING:
    from ttsnap.trajectories.published_rewards import StepRewards


def load_tensor(path: str | Path, key: str | None = None, *, plain: bool = False) -> RewardTensor:
    """Read a reward tensor from a file or folder.

    Args:
        path: an ``.npz`` (written by :func:`save_npz`, or with ``{key}_base`` and ``{key}_noise_aware``); a published
            folder of ``..._s00.yaml`` files, or the folder above with ``{key}_base`` and ``{key}_naft``, which get
            the published prices; a folder of ``diffkit ttsnap collect``. The string ``lab`` means the rewards that
            ship with the package: ``lab`` (plain looks) and ``lab-noise-aware``, of held-out prompts of the lab.
        key: which reward, when there are several.
        plain: prune on the plain reward instead of the noise-aware one (TTSp). Without it the plain reward stands in
            where the noise-aware one was not recorded.

    Raises:
        InputError: nothing readable there, or no such key (the message lists the known ones).

    Example:
        >>> rewards = load_tensor("lab", "lab-noise-aware")
        >>> rewards.name, rewards.looks.shape[1:] == (*rewards.final.shape[1:], rewards.calls)
        ('lab-noise-aware', True)
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


def _located(path: str | Path) -> Path:
    """The shipped rewards by their name, everything else as a path; a folder called so is ``./lab``."""
    return shipped(path, REWARDS) if isinstance(path, str) and path in NAMES else Path(path)


def _is_collected(path: Path) -> bool:
    return path.is_dir() and (path / "run.json").is_file()


def _choose(path: Path, key: str | None, keys: list[str]) -> str:
    if key is None and len(keys) == 1:
        return keys[0]
    if key not in keys:
        what = "Which reward is meant?" if key is None else f"There are no rewards {key!r}."
        raise InputError(f"{what} {str(path)!r} holds {', '.join(keys) or 'none'}; choose with --key.")
    return key


def _arrays(path: Path) -> Mapping[str, NDArray[Any]]:
    """The arrays of an .npz, each read when it is used."""
    try:
        arrays = np.load(path, allow_pickle=False)
        if isinstance(arrays, np.lib.npyio.NpzFile):
            return arrays
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
                _lookahead(arrays, key),
            )
        base = np.asarray(arrays[key + PLAIN], dtype=np.float64)
        aware = None if plain else arrays.get(key + AWARE)
    except (KeyError, ValueError, zipfile.BadZipFile) as error:
        raise InputError(f"Cannot read the rewards {key!r}: {type(error).__name__}: {error}.") from error
    return _with_fallback(base, aware, key)


def _lookahead(arrays: Mapping[str, NDArray[Any]], key: str) -> dict[tuple[int, int], NDArray[Any]]:
    """The rewards after a lookahead by step and calls."""
    pairs = {name: name.removeprefix(key + AHEAD).split("+") for name in arrays if name.startswith(key + AHEAD)}
    return {(int(step), int(calls)): arrays[name] for name, (step, calls) in pairs.items()}


def _with_fallback(
    base: NDArray[Any], aware: NDArray[Any] | None, name: str, prices: Prices | None = None
) -> RewardTensor:
    """Looks of ``aware``, and of ``base`` where it has none; the last step of ``base`` is the final reward."""
    if base.ndim != 3 or (aware is not None and aware.shape != base.shape):
        raise InputError(
            f"The plain and noise-aware rewards {name!r} need one shape (prompts, candidates, steps), got "
            f"{base.shape} and {None if aware is None else aware.shape}."
        )
    looks = base if aware is None else np.where(np.isnan(aware), base, aware)
    return RewardTensor(looks, base[:, :, -1], name, prices=prices)


def _from_yaml(path: Path, key: str | None, plain: bool) -> RewardTensor:
    """Published folders; a folder of noise-aware rewards finds its plain one beside it."""
    from ttsnap.evaluation.accounting import PUBLISHED_PRICES
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
    taught = None if plain or aware == base or not aware.is_dir() else read_yaml_rewards(aware, like=plainly)
    say(_read_aloud(stem, plainly, taught))
    return _with_fallback(plainly.scores, None if taught is None else taught.scores, stem, PUBLISHED_PRICES)


def _read_aloud(name: str, plain: StepRewards, taught: StepRewards | None) -> str:
    """What a published folder held: a step whose file is missing shows."""
    prompts, pool, calls = plain.scores.shape
    text = f"{name}: {prompts} prompts, {pool} candidates, {calls} calls; plain rewards at steps {_spans(plain.steps)}"
    if taught is None:
        return f"{text}."
    return f"{text}, noise-aware ones at {_spans(taught.steps)}; elsewhere the plain ones stand in."


def _spans(steps: Sequence[int]) -> str:
    """``0-6, 8-14`` for the rising steps 0 to 14 without 7."""
    starts = [step for step in steps if step - 1 not in steps]
    ends = [step for step in steps if step + 1 not in steps]
    return ", ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in zip(starts, ends, strict=True))
