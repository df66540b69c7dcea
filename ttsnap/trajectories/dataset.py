"""Recorded denoisings: previews and rewards of every candidate at every step, read from disk as they are needed.

A folder that :func:`ttsnap.trajectories.collect.collect` wrote holds ``run.json``, ``journal.jsonl`` (one item a
prompt) and one shard a prompt, ``shards/p000012.safetensors``, for N candidates and S recorded steps:

- ``previews`` uint8 (N, S, 3, h, w): decoded x0 estimates, at the rewards' own input size; absent when not kept;
- ``final_images`` uint8 (N, 3, h, w): finished images at the same size;
- ``rewards.<name>`` float32 (N, S) and ``finals.<name>`` float32 (N,): scores, NaN where there is none;
- ``lookahead.<name>`` float32 (N, L): plain scores of the images that lie some calls ahead; absent when not recorded;
- ``seeds`` int64 (N,): the stock pipeline makes the same image from ``torch.Generator().manual_seed(seed)``.

Noise levels are sigma, noise over signal of the latents that went into the step; log-SNR is -2 ln(sigma).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from diffkit.errors import InputError
from diffkit.ledger import Prices
from diffkit.parameterization import PURE_NOISE, log_snr
from diffkit.runs.journal import read_journal

if TYPE_CHECKING:
    from ttsnap.reward_tensor import RewardTensor

__all__ = ["KIND", "Trajectories", "Trajectory", "shard_name", "steps_near"]

KIND = "trajectories"  # of the run


def shard_name(prompt: int) -> str:
    """Path of a prompt's shard, relative to the run's folder."""
    return f"shards/p{prompt:06d}.safetensors"


def steps_near(sigmas: Sequence[float], levels: Sequence[float]) -> tuple[int, ...]:
    """The steps, rising and each once, whose log-SNR lies nearest to each of ``levels``; the earlier one on a tie."""
    log_snrs = [log_snr(sigma) for sigma in sigmas]
    return tuple(sorted({min(range(len(log_snrs)), key=lambda step: abs(log_snrs[step] - level)) for level in levels}))


@dataclass(frozen=True)
class Trajectory:
    """The candidates of one prompt; every property reads from disk only what it returns.

    Attributes:
        index: the prompt's number in the run.
        prompt: its text.
        steps: indices of the recorded steps, (S,).
        sigmas: their noise levels, (S,).
        names: the rewards.
        path: the shard.
    """

    index: int
    prompt: str
    steps: tuple[int, ...]
    sigmas: tuple[float, ...]
    names: tuple[str, ...]
    path: Path

    def tensor(self, key: str) -> Tensor:
        """One tensor of the shard.

        Raises:
            InputError: the shard is missing or damaged, or has no such tensor.
        """
        with _opened(self.path) as shard:
            if key not in shard.keys():  # noqa: SIM118 - a shard is no mapping
                raise InputError(f"{self.path} has no {key!r}; it holds {', '.join(sorted(shard.keys()))}.")
            tensor: Tensor = shard.get_tensor(key)
            return tensor

    @property
    def has_previews(self) -> bool:
        """Whether the estimates' pictures were kept."""
        with _opened(self.path) as shard:
            return "previews" in shard.keys()  # noqa: SIM118

    @property
    def previews(self) -> Tensor:
        """(N, S, 3, h, w) uint8."""
        return self.tensor("previews")

    @property
    def final_images(self) -> Tensor:
        """(N, 3, h, w) uint8."""
        return self.tensor("final_images")

    @property
    def seeds(self) -> list[int]:
        """The candidates' seeds."""
        return [int(seed) for seed in self.tensor("seeds")]

    @property
    def rewards(self) -> dict[str, Tensor]:
        """Reward -> (N, S) float32, NaN where an estimate could not be scored."""
        return {name: self.tensor(f"rewards.{name}") for name in self.names}

    @property
    def unseen(self) -> Tensor:
        """(N, S) bool, the estimates that no recorded reward could score, as those that were not finite; their previews
        are black."""
        unscored: Tensor = torch.stack([scores.isnan() for scores in self.rewards.values()]).all(0)
        return unscored

    @property
    def finals(self) -> dict[str, Tensor]:
        """Reward -> (N,) float32 of the finished images."""
        return {name: self.tensor(f"finals.{name}") for name in self.names}

    def estimates(self, step: int) -> Tensor:
        """(N, 3, h, w) float32 in [0, 1]: the previews after one recorded step; nothing else is read.

        Raises:
            InputError: the step or the previews were not recorded.
        """
        if step not in self.steps:
            raise InputError(f"Step {step} was not recorded; recorded are {', '.join(map(str, self.steps))}.")
        with _opened(self.path) as shard:
            if "previews" not in shard.keys():  # noqa: SIM118
                raise InputError(f"{self.path} holds no previews; collect again without --no-previews.")
            pixels: Tensor = shard.get_slice("previews")[:, self.steps.index(step)]
        return pixels.float() / 255


def _opened(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (OSError, SafetensorError) as error:
        raise InputError(f"Cannot read the shard {path}: {error}. Collect again into another --out.") from error


@dataclass(frozen=True)
class Trajectories(Sequence[Trajectory]):
    """A collected folder as a lazy dataset of its finished prompts; a run that is still going on can be read too.

    Attributes:
        folder: the run's folder.
        prompts: texts of the finished prompts.
        indices: their numbers in the run.
        steps: indices of the recorded steps, (S,).
        sigmas: their noise levels, (S,).
        all_sigmas: noise levels of all denoiser calls, (T,).
        names: the rewards.
        candidates: N.
        record: the content of run.json.
        lookahead: the recorded pairs (step, calls), (L,).

    ``Trajectories.open(folder)`` reads a folder; ``trajectories[0].estimates(step)`` are the previews of the first
    prompt after a step, ``trajectories.reward_tensor("lab")`` all scores of a reward.
    """

    folder: Path
    prompts: tuple[str, ...]
    indices: tuple[int, ...]
    steps: tuple[int, ...]
    sigmas: tuple[float, ...]
    all_sigmas: tuple[float, ...]
    names: tuple[str, ...]
    candidates: int
    record: dict[str, Any]
    lookahead: tuple[tuple[int, int], ...] = ()

    @classmethod
    def open(cls, folder: str | Path) -> Trajectories:
        """Read what a folder holds, without its shards.

        Raises:
            InputError: it is no collected folder, or nothing in it is finished.
        """
        folder = Path(folder)
        try:
            record = json.loads((folder / "run.json").read_bytes())
        except (OSError, ValueError) as error:
            raise InputError(f"{folder} holds no collected trajectories: {error}.") from error
        if not isinstance(record, dict) or record.get("kind") != KIND:
            raise InputError(f"{folder} holds a run of another kind; give a folder of `diffkit ttsnap collect`.")
        done = sorted(int(key) for key in read_journal(folder / "journal.jsonl").items)
        if not done:
            raise InputError(f"No prompt in {folder} is finished yet; run `diffkit ttsnap collect` on.")
        config, provenance = record["config"], record["provenance"]
        levels = tuple(PURE_NOISE if sigma is None else float(sigma) for sigma in provenance["sigmas"])  # of 0.1.0
        steps = tuple(int(step) for step in config["record"])
        return cls(
            folder=folder,
            prompts=tuple(config["prompts"][index] for index in done),
            indices=tuple(done),
            steps=steps,
            sigmas=tuple(levels[step] for step in steps),
            all_sigmas=levels,
            names=tuple(config["rewards"]),
            candidates=int(config["candidates"]),
            record=record,
            lookahead=tuple((int(step), int(calls)) for step, calls in config.get("lookahead", ())),
        )

    def __repr__(self) -> str:
        """Where it lies and how much it holds."""
        size = f"{len(self)} prompts, {self.candidates} candidates, {len(self.steps)} steps"
        return f"Trajectories({str(self.folder)!r}: {size}, rewards {', '.join(self.names)})"

    @property
    def log_snrs(self) -> tuple[float, ...]:
        """(S,) log-SNR of the recorded steps, rising."""
        return tuple(log_snr(sigma) for sigma in self.sigmas)

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, position: int) -> Trajectory:  # type: ignore[override]
        """The finished prompt at a position, from 0; negative ones count from the end."""
        index = self.indices[position]
        path = self.folder / shard_name(index)
        return Trajectory(index, self.prompts[position], self.steps, self.sigmas, self.names, path)

    def __iter__(self) -> Iterator[Trajectory]:
        return (self[position] for position in range(len(self)))

    def reward_tensor(self, name: str) -> RewardTensor:
        """All prompts' scores of one reward, higher is better: the sign is turned where the reward counts downwards.

        Raises:
            InputError: no such reward.
        """
        import numpy as np

        from ttsnap.reward_tensor import RewardTensor

        self._check(name)
        looks = np.full((len(self), self.candidates, len(self.all_sigmas)), np.nan)
        final = np.full((len(self), self.candidates), np.nan)
        ahead = {pair: np.full_like(final, np.nan) for pair in self.lookahead}
        for row, trajectory in enumerate(self):
            looks[row][:, list(self.steps)] = trajectory.tensor(f"rewards.{name}").double().numpy()
            final[row] = trajectory.tensor(f"finals.{name}").double().numpy()
            if ahead:
                columns = trajectory.tensor(f"lookahead.{name}").double().numpy().T
                for scores, column in zip(ahead.values(), columns, strict=True):
                    scores[row] = column
        sign = 1.0 if self.record["config"]["rewards"][name]["higher_is_better"] else -1.0
        ahead = {pair: sign * scores for pair, scores in ahead.items()}
        return RewardTensor(sign * looks, sign * final, name, self.all_sigmas, self.prompts, self.prices(name), ahead)

    def prices(self, name: str, unit: Literal["FLOP", "s"] = "FLOP") -> Prices:
        """What a call, a decoding and one score of this reward cost: counted FLOP, or seconds measured while recording.

        The seconds are those of full micro-batches, one candidate's share; padding is not counted. The calls and looks
        of recorded lookaheads count like all others.

        Raises:
            InputError: no such reward.
        """
        self._check(name)
        if unit == "FLOP":
            flop = self.record["provenance"]["flop"]
            return Prices(flop["call"], flop["decode"], flop["verify"][name], flop["encode"], flop.get("preview"))
        items = self.items()
        images = len(items) * self.candidates
        looks = images * (len(self.steps) + len(self.lookahead))
        calls = images * (len(self.all_sigmas) + sum(calls for _, calls in self.lookahead))
        took = Counter[str]()
        for item in items:
            took.update(item["seconds"])
        previewed = "preview" in took
        return Prices(
            call=took["denoiser"] / calls,
            decode=took["decoder"] / (images if previewed else images + looks),
            verify=took[f"verifier.{name}"] / (images + looks),
            encode=None,
            preview=took["preview"] / looks if previewed else None,
        )

    def items(self) -> list[dict[str, Any]]:
        """The journal's items in the order in which the prompts were finished."""
        return list(read_journal(self.folder / "journal.jsonl").items.values())

    def _check(self, name: str) -> None:
        if name not in self.names:
            raise InputError(f"{self.folder} has no reward {name!r}; it holds {', '.join(self.names)}.")
