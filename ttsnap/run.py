"""What every search is made of: denoise candidates, decode and score them, write down what was seen and spent."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from PIL.Image import Image
from torch import Tensor

from diffkit.compute import NOTHING, Cost, Ledger
from diffkit.conditioning import Conditioning
from diffkit.errors import ScoringError
from diffkit.families import Autoencoder, Pipeline
from diffkit.latents import decode_latents
from diffkit.rewards.base import Reward, score_checked
from diffkit.segments import Candidate, Denoising, Plan, run_segment
from diffkit.solvers import log_snr
from ttsnap.candidates import Noise
from ttsnap.recipe import Recipe
from ttsnap.search import ranking

__all__ = ["Engine", "Look", "StageTrace", "Winner"]


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
    """A finished candidate: its image (3, H, W) float32 in [0, 1] on the host, its score, and how to make it again.

    ``recipe`` is None when the seed alone, given to the stock pipeline, does.
    """

    candidate: Candidate
    image: Tensor
    score: float
    recipe: Recipe | None = None


class Look(NamedTuple):
    """Scores of candidates, NaN where there is none and why; previews and images, by row, of those that are kept."""

    scores: list[float]
    reasons: list[str | None]
    images: dict[int, Tensor]
    previews: list[Image]


@dataclass
class Engine:
    """One or more prompts with everything that a search needs to denoise and judge candidates for them.

    Attributes:
        call: runs the stock pipeline.
        noise: where candidates come from.
        advance: told the number of denoiser calls done for candidates, after each step.
        winners: how many images to keep for each prompt.
        previews: whether the trace keeps the decoded estimates.
        preview_vae: decodes estimates; the pipeline's own VAE when None. Finished images are always its own.
        trace: every look so far.
        spent: what each prompt has cost so far.
        notes: what else a strategy reports, ready for JSON.
    """

    pipe: Pipeline
    reward: Reward
    prompts: Sequence[str]
    conditioning: Conditioning
    denoising: Denoising
    plan: Plan
    ledger: Ledger
    call: Callable[..., Any]
    noise: Noise = field(default_factory=Noise)
    advance: Callable[[int], object] = int
    winners: int = 1
    previews: bool = False
    preview_vae: Autoencoder | None = None
    trace: list[StageTrace] = field(default_factory=list)
    spent: dict[int, Cost] = field(default_factory=dict)
    notes: dict[str, object] = field(default_factory=dict)

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """(1, C, h, w) of one candidate."""
        unet, factor = self.pipe.unet.config, self.pipe.vae_scale_factor
        side = unet.sample_size
        own = (side, side) if isinstance(side, int) else tuple(side)
        height, width = self.denoising.height, self.denoising.width
        cells = (height // factor, width // factor) if height and width else own
        return (1, unet.in_channels, *cells)

    def denoise(self, alive: list[Candidate], start: int, stop: int) -> list[Candidate]:
        """Run candidates from call ``start`` to before call ``stop``; nothing is done where they are the same."""
        if start == stop:
            return alive

        def count(rows: int, padding: int) -> None:
            self.ledger.calls += rows
            self.ledger.padding_calls += padding
            self.advance(rows)

        with self.ledger.clock("denoiser"):
            done = run_segment(
                self.pipe, alive, self.conditioning, self.denoising, start, stop, call=self.call, on_step=count
            )
        for one in done:
            self._charge(one.prompt, Cost(stop - start, 0, 0))
        return done

    def rank(self, scores: Sequence[float]) -> list[int]:
        """Positions of the finite scores, best first."""
        return ranking(scores, higher_is_better=self.reward.higher_is_better)

    def estimate(self, alive: Sequence[Candidate]) -> Look:
        """Look at the x0 estimates of candidates in mid-denoising, all after the same step."""
        level = log_snr(self.plan.sigmas[alive[0].step - 1])
        return self._look([replace(one, latents=one.x0) for one in alive], keep=0, log_snr=level)

    def judge(self, alive: Sequence[Candidate]) -> Look:
        """Score finished candidates; the images of each prompt's best stay in memory."""
        return self._look(alive, keep=self.winners, log_snr=None)

    def finish(self, alive: Sequence[Candidate]) -> list[list[Winner]]:
        """Score finished candidates and return the winners of each prompt, best first.

        Raises:
            ScoringError: too few candidates of a prompt could be scored.
        """
        look = self.judge(alive)
        winners = []
        for prompt in range(len(self.prompts)):
            rows = self.rows(alive, prompt)
            best = [rows[position] for position in self.rank([look.scores[row] for row in rows])[: self.winners]]
            self.record(prompt, alive, look, [alive[row] for row in best], needed=self.winners)
            winners.append([Winner(alive[row], look.images[row], look.scores[row]) for row in best])
        return winners

    @staticmethod
    def rows(alive: Sequence[Candidate], prompt: int) -> list[int]:
        """Where the candidates of a prompt stand."""
        return [row for row, one in enumerate(alive) if one.prompt == prompt]

    def record(
        self, prompt: int, alive: Sequence[Candidate], look: Look, survivors: Sequence[Candidate], *, needed: int = 1
    ) -> None:
        """Write a look at one prompt's candidates into the trace.

        Raises:
            ScoringError: fewer than ``needed`` survived it.
        """
        rows = self.rows(alive, prompt)
        step = alive[rows[0]].step - 1
        reasons = {alive[row].index: reason for row in rows if (reason := look.reasons[row]) is not None}
        if len(survivors) < needed:
            first = next(iter(reasons.values()), "none was left")
            raise ScoringError(
                f"Only {len(rows) - len(reasons)} of {len(rows)} candidates of prompt {prompt} could be scored after "
                f"step {step}, {needed} needed: {first}."
            )
        self.trace.append(
            StageTrace(
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
        )

    def _charge(self, prompt: int, cost: Cost) -> None:
        self.spent[prompt] = self.spent.get(prompt, NOTHING).plus(cost)

    def decode(self, latents: Tensor, *, final: bool) -> Tensor:
        """Images (B, 3, H, W) in [0, 1] of latents; estimates by the preview decoder where there is one."""
        return decode_latents(self.pipe, latents, None if final else self.preview_vae)

    @torch.no_grad()
    def _look(self, alive: Sequence[Candidate], *, keep: int, log_snr: float | None) -> Look:
        """Decode and score in micro-batches; only the ``keep`` best images of each prompt stay in memory."""
        look = Look([], [], {}, [])
        cheap = log_snr is not None and self.preview_vae is not None
        for first in range(0, len(alive), self.denoising.micro_batch):
            batch = alive[first : first + self.denoising.micro_batch]
            with self.ledger.clock("preview" if cheap else "decoder"):
                latents = torch.cat([one.latents for one in batch if one.latents is not None])
                images = self.decode(latents, final=log_snr is None)
            with self.ledger.clock("verifier"):
                prompts = [self.prompts[one.prompt] for one in batch]
                scores, reasons = score_checked(self.reward, images, prompts, log_snr)
            self._count_look(batch, cheap)
            look.scores.extend(scores.tolist())
            look.reasons.extend(reasons)
            if self.previews:
                shown = self.pipe.image_processor.pt_to_numpy(images)
                look.previews.extend(self.pipe.image_processor.numpy_to_pil(shown))
            if keep:
                look.images.update({first + row: image.cpu().clone() for row, image in enumerate(images)})
                self._forget(look, alive, keep)
        return look

    def _count_look(self, batch: Sequence[Candidate], cheap: bool) -> None:
        one = Cost(0, 0, 1, 1) if cheap else Cost(0, 1, 1)
        for candidate in batch:
            self._charge(candidate.prompt, one)
        self.ledger.decoded += len(batch) * one.decoded
        self.ledger.previewed += len(batch) * one.previewed
        self.ledger.verified += len(batch)

    def _forget(self, look: Look, alive: Sequence[Candidate], keep: int) -> None:
        """Drop the images that cannot win any more."""
        for prompt in {alive[row].prompt for row in look.images}:
            rows = [row for row in range(len(look.scores)) if alive[row].prompt == prompt]
            best = {rows[position] for position in self.rank([look.scores[row] for row in rows])[:keep]}
            for row in set(rows) - best:
                look.images.pop(row, None)
