"""The inner loop of recording: micro-batches through the stock pipeline, estimates decoded, scored and made small."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from diffkit.conditioning import Conditioning, encode_prompts
from diffkit.errors import InputError
from diffkit.families import Autoencoder, Pipeline, default_size, is_guided
from diffkit.latents import decode_latents
from diffkit.micro_batch import MicroBatch
from diffkit.parameterization import log_snr
from diffkit.rewards.base import Reward, score_checked
from diffkit.seeds import candidate_seed, check_seed, generators, plain_integers
from diffkit.segments import Candidate, Denoising
from diffkit.step_plan import Plan
from ttsnap.trajectories.recorded_lookahead import check_lookahead, denoise_looking_ahead

__all__ = ["Recorded", "Recorder", "CollectSettings", "guided", "image_size", "preview_side"]


@dataclass(frozen=True)
class CollectSettings:
    """How trajectories are recorded.

    Attributes:
        candidates: seeds for each prompt; candidate i of prompt p takes ``candidate_seed(seed, p, i)``.
        record: indices of the steps to keep; None for all that have an estimate.
        lookahead: pairs (step, calls), rising: after these steps the images that lie so many calls ahead are scored
            too, by the plain rewards, see :mod:`diffkit.lookahead`.
        micro_batch: candidates run at once, of several prompts where one has fewer; the last batch is padded. ``auto``
            begins with many and halves them when memory runs out.
        previews: whether the estimates' and final pictures are kept, or only their scores.
        seed: of the run.

    Example:
        >>> CollectSettings(4, 20, 3.0, record=(2, 6)).record
        (2, 6)
    """

    candidates: int = 8
    num_inference_steps: int = 20
    guidance_scale: float = 3.0
    negative_prompt: str | None = None
    height: int | None = None
    width: int | None = None
    record: tuple[int, ...] | None = None
    micro_batch: int | Literal["auto"] = 8
    previews: bool = True
    seed: int = 0
    lookahead: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        """Integers of numpy are as good as Python's."""
        plain_integers(self, "num_inference_steps", "candidates", "height", "width", "micro_batch", "seed")

    def resolved(self, steps: Plan) -> CollectSettings:
        """The same with the recorded steps written out.

        Raises:
            InputError: a number is out of its range, or the denoising has no such step.
        """
        check_seed(self.seed)
        for name in ("candidates", "micro_batch"):
            value = getattr(self, name)
            if name == "micro_batch" and value == "auto":
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InputError(f"{name} must be a whole number of at least 1, got {value!r}.")
        sighted = tuple(step for step in range(steps.calls) if step not in steps.blind)
        record = sighted if self.record is None else self.record
        if not record or any(b <= a for a, b in itertools.pairwise(record)):
            raise InputError(f"The steps to record must rise, at least one of them, got {record}.")
        if record[0] < 0 or record[-1] >= steps.calls:
            raise InputError(f"The denoising has steps 0 to {steps.calls - 1}; cannot record {record}.")
        steps.check_looks(record)
        return replace(self, record=record, lookahead=check_lookahead(self.lookahead, steps))


def image_size(pipe: Pipeline, settings: CollectSettings) -> tuple[int, int]:
    """Height and width in pixels of what the pipeline makes."""
    own = default_size(pipe)
    return settings.height or own.height, settings.width or own.width


def guided(pipe: Pipeline, settings: CollectSettings) -> bool:
    """Whether a denoiser call carries two rows for a candidate."""
    return is_guided(pipe, settings.guidance_scale, {"negative_prompt": settings.negative_prompt})


def preview_side(rewards: Mapping[str, Reward]) -> int | None:
    """The largest ``input_size`` that the rewards declare; None, for the image's own size, when one declares none."""
    sizes = [getattr(reward, "input_size", None) for reward in rewards.values()]
    declared = [size for size in sizes if isinstance(size, int)]
    return max(declared) if len(declared) == len(sizes) else None


class Recorded(NamedTuple):
    """One prompt's shard, what could not be scored (reward -> count and first reason), seconds by component."""

    number: int
    prompt: str
    tensors: dict[str, Tensor]
    unscored: dict[str, dict[str, int | str]]
    seconds: dict[str, float]


@dataclass
class _Parts:
    """The candidates of one prompt that are recorded so far: rows of the shard's tensors."""

    tensors: list[dict[str, Tensor]] = field(default_factory=list)
    reasons: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    rows: int = 0


@dataclass
class Recorder:
    """Records groups of prompts, one micro-batch at a time.

    Attributes:
        settings: resolved.
        plan: the steps that they mean.
        preview_vae: decodes estimates; the pipeline's own VAE when None. Finished images are always its own.
    """

    pipe: Pipeline
    rewards: Mapping[str, Reward]
    settings: CollectSettings
    plan: Plan
    preview_vae: Autoencoder | None = None

    def __post_init__(self) -> None:
        """Where the size of the micro-batches is kept."""
        device = self.pipe._execution_device
        self.batches = MicroBatch.of(self.settings.micro_batch, device, what="candidates to record")

    @torch.no_grad()
    def run(self, prompts: Mapping[int, str]) -> Iterator[Recorded]:
        """The prompts' shards in order, each as soon as its candidates are finished.

        Args:
            prompts: number in the run -> text.
        """
        n = self.settings.candidates
        texts, numbers = list(prompts.values()), list(prompts)
        guidance = guided(self.pipe, self.settings)
        conditioning = encode_prompts(self.pipe, texts, self.settings.negative_prompt, guidance=guidance)
        seeds = [candidate_seed(self.settings.seed, number, index) for number in numbers for index in range(n)]
        everyone = [Candidate(row % n, row // n, source, seeds[row]) for row, source in enumerate(generators(seeds))]
        unfinished = {position: _Parts() for position in range(len(numbers))}
        for batch, scored in self.batches.each(
            everyone, lambda batch, size: self._batch(batch, size, conditioning, texts)
        ):
            self._deal(batch, scored, unfinished)
            for position in [p for p, parts in unfinished.items() if parts.rows == n]:
                yield _recorded(numbers[position], texts[position], unfinished.pop(position))

    def _batch(
        self, batch: Sequence[Candidate], size: int, conditioning: Conditioning, texts: Sequence[str]
    ) -> _ScoredBatch:
        """Denoise one micro-batch to the end and look at its estimates, one recorded step after the other, then at
        what lies ahead, then at the finished images."""
        settings, estimates = self.settings, dict[int, Tensor]()
        record = settings.record or ()

        def keep(step: int, x0: Tensor) -> None:
            if step in record:
                estimates[step] = x0.cpu().clone()

        denoising = Denoising(
            settings.num_inference_steps,
            settings.guidance_scale,
            *image_size(self.pipe, settings),
            micro_batch=size,
        )
        scored = _ScoredBatch(len(batch), size, [texts[candidate.prompt] for candidate in batch], len(record))
        with scored.clock("denoiser"):
            done, ahead = denoise_looking_ahead(
                self.pipe, batch, conditioning, denoising, self.plan, settings.lookahead, keep
            )
        for step in record:
            self._look(scored, estimates.pop(step), log_snr(self.plan.sigmas[step]))
        for latents in ahead:
            self._look(scored, latents, None)
        finished = torch.cat([candidate.latents for candidate in done if candidate.latents is not None])
        self._look(scored, finished, None, final=True)
        return scored

    def _look(self, scored: _ScoredBatch, latents: Tensor, level: float | None, *, final: bool = False) -> None:
        """Decode, score by every reward, keep small pictures of estimates and finished images; the batch is padded to
        its full size."""
        padded = torch.cat([latents, latents[-1:].expand(scored.size - scored.real, *latents.shape[1:])])
        prompts = [*scored.prompts, *scored.prompts[-1:] * (scored.size - scored.real)]
        vae = None if final else self.preview_vae
        with scored.clock("decoder" if vae is None else "preview"):
            images = decode_latents(self.pipe, padded, vae, image_size(self.pipe, self.settings))
        for name, reward in self.rewards.items():
            with scored.clock(f"verifier.{name}"):
                values, reasons = score_checked(reward, images, prompts, level)
            scored.scores.setdefault(name, []).append(values[: scored.real])
            scored.reasons.setdefault(name, []).append(reasons[: scored.real])
        if self.settings.previews and (final or level is not None):
            scored.pictures.append(small(images[: scored.real], preview_side(self.rewards)))

    def _deal(self, batch: Sequence[Candidate], scored: _ScoredBatch, unfinished: dict[int, _Parts]) -> None:
        """Give each prompt its rows of the micro-batch, its reasons and its share of the time."""
        tensors = scored.tensors([candidate.seed or 0 for candidate in batch])
        for position in dict.fromkeys(candidate.prompt for candidate in batch):
            rows = [row for row, candidate in enumerate(batch) if candidate.prompt == position]
            parts = unfinished[position]
            parts.rows += len(rows)
            parts.tensors.append({name: tensor[rows] for name, tensor in tensors.items()})
            for name, looks in scored.reasons.items():
                for reason in (look[row] for row in rows for look in looks):
                    if reason is not None:
                        parts.reasons.setdefault(name, reason)
            for component, took in scored.seconds.items():
                share = took * len(rows) / scored.size
                parts.seconds[component] = parts.seconds.get(component, 0.0) + share


@dataclass
class _ScoredBatch:
    """Scores and pictures of one micro-batch, look by look: at ``steps`` estimates, at what lies ahead, and last at
    the finished images."""

    real: int
    size: int
    prompts: list[str]
    steps: int
    scores: dict[str, list[Tensor]] = field(default_factory=dict)
    reasons: dict[str, list[list[str | None]]] = field(default_factory=dict)
    pictures: list[Tensor] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def clock(self, component: str) -> Iterator[None]:
        """Add the block's wall-clock time to a component, on an accelerator with the work it has queued."""
        began = time.perf_counter()
        yield
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()
        self.seconds[component] = self.seconds.get(component, 0.0) + time.perf_counter() - began

    def tensors(self, seeds: Sequence[int]) -> dict[str, Tensor]:
        """The micro-batch as rows of shards; see :mod:`ttsnap.trajectories.dataset`."""
        tensors = {"seeds": torch.tensor(seeds, dtype=torch.int64)}
        for name, looks in self.scores.items():
            tensors[f"rewards.{name}"] = torch.stack(looks[: self.steps], dim=1)
            if ahead := looks[self.steps : -1]:
                tensors[f"lookahead.{name}"] = torch.stack(ahead, dim=1)
            tensors[f"finals.{name}"] = looks[-1]
        if self.pictures:
            tensors["previews"] = torch.stack(self.pictures[:-1], dim=1)
            tensors["final_images"] = self.pictures[-1]
        return tensors


def small(images: Tensor, side: int | None) -> Tensor:
    """Images (B, 3, H, W) in [0, 1] as uint8 on the host, their shorter side at most ``side`` (bicubic, antialiased).

    Rounded to the nearest level as diffusers does; what is NaN becomes black.
    """
    height, width = images.shape[-2:]
    if side is not None and min(height, width) > side:
        shape = tuple(round(pixels * side / min(height, width)) for pixels in (height, width))
        images = F.interpolate(images, size=shape, mode="bicubic", antialias=True)
    levels: Tensor = (images.clamp(0, 1).nan_to_num(0.0) * 255).round().to(torch.uint8).cpu()
    return levels


def _recorded(number: int, prompt: str, parts: _Parts) -> Recorded:
    tensors = {name: torch.cat([part[name] for part in parts.tensors]) for name in parts.tensors[0]}
    unscored: dict[str, dict[str, int | str]] = {}
    for name, reason in parts.reasons.items():
        scores = [tensors.get(f"{kind}.{name}") for kind in ("rewards", "lookahead", "finals")]
        missing = sum(int(values.isnan().sum()) for values in scores if values is not None)
        unscored[name] = {"count": missing, "reason": reason}
    return Recorded(number, prompt, tensors, unscored, parts.seconds)
