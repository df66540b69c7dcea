"""The search itself: denoise to the next look, decode, score, keep the best, go on with them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from PIL.Image import Image
from torch import Tensor

from diffkit.compute import Ledger
from diffkit.conditioning import Conditioning
from diffkit.errors import ScoringError
from diffkit.families import Pipeline
from diffkit.latents import decode_latents
from diffkit.rewards.base import Reward, score_checked
from diffkit.segments import Candidate, Denoising, Plan, run_segment
from ttsnap.schedule import PruningSchedule
from ttsnap.search import ranking, top_k

__all__ = ["Search", "StageTrace", "Winner"]


@dataclass(frozen=True)
class StageTrace:
    """What one look at the candidates of one prompt saw and decided.

    Attributes:
        prompt: index of the prompt.
        step: index of the step after which the look came; the last step for the final scores.
        sigma: noise level, noise over signal, of the latents that went into that step.
        candidates: indices of the candidates looked at.
        seeds: their seeds, None for a generator of the user's that was not fresh.
        scores: their scores, None where the image could not be scored.
        reasons: candidate -> why it could not be scored; it is dropped.
        survivors: indices of the candidates that went on; of the winners, best first, in the final look.
        previews: the decoded estimates, one for each candidate, when asked for.
    """

    prompt: int
    step: int
    sigma: float
    candidates: list[int]
    seeds: list[int | None]
    scores: list[float | None]
    survivors: list[int]
    reasons: dict[int, str] = field(default_factory=dict)
    previews: list[Image] = field(default_factory=list)

    def to_dict(self) -> dict[str, object]:
        """Everything but the previews, ready for JSON."""
        plain = {name: value for name, value in vars(self).items() if name != "previews"}
        return {**plain, "reasons": {str(index): reason for index, reason in self.reasons.items()}}


class Winner(NamedTuple):
    """A finished candidate: its image (3, H, W) float32 in [0, 1] on the host, and its score."""

    candidate: Candidate
    image: Tensor
    score: float


class _Look(NamedTuple):
    """Scores of candidates, NaN where there is none; images and previews of those that are kept."""

    scores: list[float]
    reasons: list[str | None]
    images: dict[int, Tensor]
    previews: list[Image]


@dataclass
class Search:
    """One search over the candidates of one or more prompts.

    Attributes:
        call: runs the stock pipeline.
        advance: told the number of denoiser calls done for candidates, after each step.
        winners: how many images to keep for each prompt.
        previews: whether the trace keeps the decoded estimates.
    """

    pipe: Pipeline
    reward: Reward
    prompts: Sequence[str]
    conditioning: Conditioning
    denoising: Denoising
    schedule: PruningSchedule
    plan: Plan
    ledger: Ledger
    call: Callable[..., Any]
    advance: Callable[[int], object] = int
    winners: int = 1
    previews: bool = False

    def run(self, candidates: Sequence[Candidate]) -> tuple[list[list[Winner]], list[StageTrace]]:
        """Winners of each prompt, best first, and the trace; every prompt has the same number of ``candidates``.

        Raises:
            ScoringError: too few candidates of a prompt could be scored.
        """
        n = len(candidates) // len(self.prompts)
        stages = self.schedule.stages(n, self.plan.calls)
        alive, trace = list(candidates), list[StageTrace]()
        for stage, target in zip(stages[:-1], self.schedule.survivors(n), strict=True):
            alive = self._denoise(alive, stage.start, stage.stop)
            estimates = [replace(one, latents=one.x0) for one in alive]
            look = self._look(estimates, keep=0, sigma=self.plan.sigmas[stage.stop - 1])
            passed: list[Candidate] = []
            for prompt in range(len(self.prompts)):
                rows = [row for row, one in enumerate(alive) if one.prompt == prompt]
                kept = top_k([look.scores[row] for row in rows], target, higher_is_better=self.reward.higher_is_better)
                survivors = [alive[rows[position]] for position in kept]
                trace.append(self._trace(prompt, stage.stop - 1, alive, rows, look, survivors))
                passed += survivors
            alive = passed
        return self._finish(self._denoise(alive, stages[-1].start, stages[-1].stop), trace)

    def _finish(self, alive: list[Candidate], trace: list[StageTrace]) -> tuple[list[list[Winner]], list[StageTrace]]:
        look = self._look(alive, keep=self.winners)
        winners = []
        for prompt in range(len(self.prompts)):
            rows = [row for row, one in enumerate(alive) if one.prompt == prompt]
            ranked = self._rank([look.scores[row] for row in rows])[: self.winners]
            best = [rows[position] for position in ranked]
            trace.append(self._trace(prompt, self.plan.calls - 1, alive, rows, look, [alive[row] for row in best]))
            winners.append([Winner(alive[row], look.images[row], look.scores[row]) for row in best])
        return winners, trace

    def _denoise(self, alive: list[Candidate], start: int, stop: int) -> list[Candidate]:
        def count(rows: int, padding: int) -> None:
            self.ledger.calls += rows
            self.ledger.padding_calls += padding
            self.advance(rows)

        with self.ledger.clock("denoiser"):
            return run_segment(
                self.pipe, alive, self.conditioning, self.denoising, start, stop, call=self.call, on_step=count
            )

    def _rank(self, scores: Sequence[float]) -> list[int]:
        return ranking(scores, higher_is_better=self.reward.higher_is_better)

    @torch.no_grad()
    def _look(self, alive: Sequence[Candidate], *, keep: int, sigma: float | None = None) -> _Look:
        """Decode and score in micro-batches; only the ``keep`` best images of each prompt stay in memory.

        ``sigma`` is the noise level of the latents that estimates come from, None for finished images.
        """
        look = _Look([], [], {}, [])
        log_snr = None if sigma is None else -2 * math.log(sigma)
        for first in range(0, len(alive), self.denoising.micro_batch):
            batch = alive[first : first + self.denoising.micro_batch]
            with self.ledger.clock("decoder"):
                images = decode_latents(self.pipe, torch.cat([one.latents for one in batch if one.latents is not None]))
            with self.ledger.clock("verifier"):
                scores, reasons = score_checked(
                    self.reward, images, [self.prompts[one.prompt] for one in batch], log_snr
                )
            self.ledger.decoded += len(batch)
            self.ledger.verified += len(batch)
            look.scores.extend(scores.tolist())
            look.reasons.extend(reasons)
            if self.previews:
                shown = self.pipe.image_processor.pt_to_numpy(images)
                look.previews.extend(self.pipe.image_processor.numpy_to_pil(shown))
            if keep:
                look.images.update({first + row: image.cpu().clone() for row, image in enumerate(images)})
                self._forget(look, alive, keep)
        return look

    def _forget(self, look: _Look, alive: Sequence[Candidate], keep: int) -> None:
        """Drop the images that cannot win any more."""
        for prompt in {alive[row].prompt for row in look.images}:
            rows = [row for row in range(len(look.scores)) if alive[row].prompt == prompt]
            best = {rows[position] for position in self._rank([look.scores[row] for row in rows])[:keep]}
            for row in set(rows) - best:
                look.images.pop(row, None)

    def _trace(
        self,
        prompt: int,
        step: int,
        alive: Sequence[Candidate],
        rows: Sequence[int],
        look: _Look,
        survivors: Sequence[Candidate],
    ) -> StageTrace:
        reasons = {alive[row].index: reason for row in rows if (reason := look.reasons[row]) is not None}
        if len(survivors) < self.winners:
            first = next(iter(reasons.values()), "none was left")
            raise ScoringError(
                f"Only {len(rows) - len(reasons)} of {len(rows)} candidates of prompt {prompt} could be scored after "
                f"step {step}, {self.winners} needed: {first}."
            )
        return StageTrace(
            prompt=prompt,
            step=step,
            sigma=self.plan.sigmas[step],
            candidates=[alive[row].index for row in rows],
            seeds=[alive[row].seed for row in rows],
            scores=[None if look.reasons[row] else look.scores[row] for row in rows],
            survivors=[one.index for one in survivors],
            reasons=reasons,
            previews=[look.previews[row] for row in rows] if self.previews else [],
        )
