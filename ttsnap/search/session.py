"""What every search is made of: denoise candidates, decode and score them, record the scores and the cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import isfinite, nan
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffkit.conditioning import Conditioning
from diffkit.copy_guard import is_guarded
from diffkit.errors import ScoringError
from diffkit.families import Pipeline, any_family_of, as_size
from diffkit.interruption import DenoisingInterrupted
from diffkit.ledger import NOTHING, Cost, Ledger, Prices
from diffkit.parameterization import log_snr
from diffkit.rewards.base import Reward
from diffkit.segments import Candidate, Denoising
from diffkit.step_plan import Plan
from ttsnap.search.config import SearchConfig
from ttsnap.search.diversity import POOL, chosen
from ttsnap.search.guarding import too_few
from ttsnap.search.interruption import Progress
from ttsnap.search.noise import Noise, Recipe
from ttsnap.search.runner import Runner
from ttsnap.search.scorer import Scorer
from ttsnap.search.shown import blacken, flagged_rows
from ttsnap.search.trace import Look, StageTrace, Winner, winner_of

__all__ = ["Engine", "Look", "StageTrace", "Winner"]


@dataclass
class Engine:
    """One or more prompts with everything that a search needs to denoise and judge candidates for them.

    Attributes:
        call: runs the stock pipeline.
        config: what the search computes.
        noise: where candidates come from.
        num_candidates: how many candidates each prompt starts with, where the user has fixed it; None where a budget
            decides.
        pace: seconds of a unit of work, for a budget in seconds; None for one in FLOP.
        advance: called with the number of denoiser calls done for candidates, after each step.
        expect: called with the number of denoiser calls that the search will do, where a strategy knows it.
        trace: every look so far.
        spent: what each prompt has cost so far.
        notes: what else a strategy reports, ready for JSON.
        progress: what there is when the search is stopped.
        as_stock: whether one candidate of each prompt is denoised without a look, which is the stock pipeline's call.
    """

    pipe: Pipeline
    reward: Reward
    prompts: Sequence[str]
    conditioning: Conditioning
    denoising: Denoising
    plan: Plan
    ledger: Ledger
    call: Callable[..., Any]
    config: SearchConfig
    noise: Noise = field(default_factory=Noise)
    num_candidates: int | None = None
    pace: Prices | None = None
    advance: Callable[[int], object] = int
    expect: Callable[[int], object] = int
    trace: list[StageTrace] = field(default_factory=list)
    spent: dict[int, Cost] = field(default_factory=dict)
    notes: dict[str, object] = field(default_factory=dict)
    progress: Progress = field(default_factory=Progress)
    as_stock: bool = False

    def __post_init__(self) -> None:
        """What runs candidates, and what looks at them."""
        self.runner = Runner(
            self.pipe,
            self.conditioning,
            self.denoising,
            self.call,
            self.ledger,
            self.progress,
            lambda calls: self.advance(calls),
            self._charge,
            adaptive=self.config.micro_batch == "auto",
            share=self.config.share,
            as_stock=self.as_stock,
        )
        self.scorer = Scorer(
            self.pipe,
            self.reward,
            self.prompts,
            self.conditioning,
            self.denoising,
            self.ledger,
            self.config,
            self._charge,
        )

    @property
    def winners(self) -> int:
        """How many images to keep for each prompt."""
        return self.config.winners

    @property
    def prices(self) -> Prices:
        """What a unit of work costs, in the unit of the search's limit."""
        return self.ledger.flops if self.pace is None else self.pace

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """(1, C, h, w) of one candidate's noise as the pipeline draws it, before any packing."""
        family, size = any_family_of(self.pipe), self.denoising.size
        return (1, *family.noise_shape(self.pipe, family.default_size(self.pipe) if size is None else as_size(size)))

    def draw(self, recipe: Recipe) -> tuple[Tensor, torch.Generator]:
        """A recipe's initial noise as the pipeline's loop carries it, and the generator that goes on from there."""
        family = any_family_of(self.pipe)
        dtype = family.noise_dtype or self.conditioning.prompt_embeds.dtype
        noise, generator = recipe.noise(self.latent_shape, dtype)
        return family.pack(self.pipe, noise), generator

    def denoise(self, alive: list[Candidate], start: int, stop: int) -> list[Candidate]:
        """Run candidates from call ``start`` to before call ``stop``; nothing is done where they are the same.

        Raises:
            DenoisingInterrupted: the pipeline was told to stop.
        """
        if start == stop:
            return alive
        if start == 0:
            self.progress.begin(alive)
        return self.runner.segment(alive, start, stop, last=stop == self.plan.calls)

    def best(self, finished: Sequence[Winner]) -> list[Winner]:
        """The winners among finished candidates, as many as are asked for, best first."""
        order = self.scorer.rank([winner.score for winner in finished], [winner.flagged for winner in finished])
        scores = {at: winner.score for at, winner in enumerate(finished)}
        images = {at: winner.image for at, winner in enumerate(finished)}
        flagged = [at for at, winner in enumerate(finished) if winner.flagged]
        return [finished[at] for at in self._chosen(order, scores, images, flagged)]

    def winning(self, look: Look, rows: Sequence[int]) -> list[int]:
        """Those of the rows of a last look that win, as many as are asked for, best first."""
        order = self.scorer.ranked(look, rows)
        flagged = [row for row in order if look.flagged[row]]
        return self._chosen(order, {row: look.scores[row] for row in order}, look.images, flagged)

    def _chosen(
        self, order: Sequence[int], scores: Mapping[int, float], images: Mapping[int, Tensor], flagged: Sequence[int]
    ) -> list[int]:
        return chosen(order[: self._kept], scores, images, flagged, count=self.winners, diversity=self.config.diversity)

    @property
    def _kept(self) -> int:
        """How many finished images of each prompt stay in memory."""
        return self.winners * (POOL if self.config.diversity else 1)

    def estimate(self, alive: Sequence[Candidate], *, lookahead: int = 0) -> Look:
        """Look at estimates of candidates in mid-denoising, all after the same step.

        Args:
            lookahead: calls more that lead to the estimates, which are then scored like finished images; with 0 they
                are the x0 that the step has left, scored with their noise level.
        """
        if lookahead:
            clean: Sequence[Tensor | None] = self.runner.look_ahead(alive, lookahead)
            level = None
        else:
            clean = [candidate.x0 for candidate in alive]
            level = self._level(alive[0].step - 1)
        estimates = [replace(candidate, latents=x0) for candidate, x0 in zip(alive, clean, strict=True)]
        return self.scorer.look(estimates, keep=0, final=False, log_snr=level)._replace(lookahead=lookahead)

    def _level(self, step: int) -> float | None:
        """The noise level of the estimate after a step; None where the scheduler's levels are not known."""
        return log_snr(self.plan.sigmas[step]) if isfinite(self.plan.sigmas[step]) else None

    def judge(self, alive: Sequence[Candidate]) -> Look:
        """Score finished candidates; the images of each prompt's best stay in memory.

        Where the denoising ends before the latents are clean, their estimates are scored.
        """
        shown, level = list(alive), None
        if self.plan.noisy:
            shown = [replace(candidate, latents=candidate.x0) for candidate in alive]
            level = self._level(self.plan.calls - 1)
        look = self.scorer.look(shown, keep=self._kept, final=True, log_snr=level)
        for prompt in {candidate.prompt for candidate in alive}:
            best = [
                winner_of(alive, look, row, self.progress.recipes.get((prompt, alive[row].index)))
                for row in self.winning(look, self.rows(alive, prompt))
            ]
            self.progress.finished[prompt] = self.best([*self.progress.finished.get(prompt, []), *best])
        return look

    def stopped(self) -> list[list[Winner]]:
        """What there is of each prompt when the search was told to stop: its finished images, the best first."""
        alive, self.progress.unjudged = self.progress.unjudged, []
        if alive:
            look = self.judge(alive)
            for prompt in sorted({candidate.prompt for candidate in alive}):
                best = self.winning(look, self.rows(alive, prompt))
                self.record(prompt, alive, look, [alive[row] for row in best], needed=0)
        for candidate in self.progress.half_denoised:
            self.progress.finished[candidate.prompt] = [self._as_left(candidate)]
        return [self.progress.finished.get(prompt, []) for prompt in range(len(self.prompts))]

    @torch.no_grad()
    def _as_left(self, candidate: Candidate) -> Winner:
        """What the stock pipeline returns of a denoising that was stopped, without a score."""
        if candidate.latents is None:
            raise DenoisingInterrupted(self.pipe)
        if any_family_of(self.pipe).makes_videos:  # whose decoder may draw what comes after the initial noise
            generator, dtype = candidate.generator.clone_state(), any_family_of(self.pipe).noise_dtype
            torch.randn(self.latent_shape, generator=generator, dtype=dtype, device=generator.device)
            candidate = replace(candidate, generator=generator)
        image = self.scorer.decode([candidate], final=True)
        [flagged] = flagged_rows(self.pipe, image, self.conditioning.prompt_embeds.dtype)
        return Winner(candidate, image[0].cpu(), nan, None, flagged)

    def finish(
        self, alive: Sequence[Candidate], look: Look | None = None, *, needed: int | None = None
    ) -> list[list[Winner]]:
        """Score finished candidates and return the winners of each prompt that has some, best first.

        Args:
            look: at them, where they were judged already.
            needed: how many of a prompt must have a score; None = as many as are asked for.

        Raises:
            ScoringError: too few candidates of a prompt could be scored.
        """
        look = self.judge(alive) if look is None else look
        winners = []
        for prompt in sorted({candidate.prompt for candidate in alive}):
            best = self.winning(look, self.rows(alive, prompt))
            needed = self.winners if needed is None else needed
            self.record(prompt, alive, look, [alive[row] for row in best], needed=needed)
            winners += [[winner_of(alive, look, row) for row in best]] if best else []
        return winners

    @staticmethod
    def rows(alive: Sequence[Candidate], prompt: int) -> list[int]:
        """Where the candidates of a prompt stand."""
        return [row for row, candidate in enumerate(alive) if candidate.prompt == prompt]

    def record(
        self, prompt: int, alive: Sequence[Candidate], look: Look, survivors: Sequence[Candidate], *, needed: int = 1
    ) -> None:
        """Write a look at one prompt's candidates into the trace, and show it to the user's callback.

        Raises:
            ScoringError: fewer than ``needed`` survived it.
        """
        rows = self.rows(alive, prompt)
        step = alive[rows[0]].step - 1
        reasons = {alive[row].index: reason for row in rows if (reason := look.reasons[row]) is not None}
        if len(survivors) < needed:
            scored = sum(isfinite(look.scores[row]) for row in rows)
            raise ScoringError(too_few(prompt, step, scored, len(rows), needed, reasons))
        scores, flags = [look.scores[row] for row in rows], [look.flagged[row] for row in rows]
        self.progress.look([alive[row] for row in rows], scores, flags)
        hidden = [row for row in rows if look.flagged[row] or is_guarded(look.reasons[row])]
        blacken(self.trace, prompt, [alive[row].index for row in hidden])
        self.trace.append(
            StageTrace(
                prompt=prompt,
                step=step,
                sigma=self.plan.sigmas[step] if isfinite(self.plan.sigmas[step]) else None,
                candidates=[alive[row].index for row in rows],
                seeds=[alive[row].seed for row in rows],
                scores=[look.scores[row] if isfinite(look.scores[row]) else None for row in rows],
                survivors=[candidate.index for candidate in survivors],
                reasons=reasons,
                previews=[look.previews[row] for row in rows] if self.config.previews else [],
                lookahead=look.lookahead,
                similarities=[look.similarities[row] if isfinite(look.similarities[row]) else None for row in rows]
                if look.similarities
                else [],
            )
        )
        answer = None if self.config.on_look is None else self.config.on_look(self.pipe, self.trace[-1])
        if isinstance(answer, bool | np.bool_) and not answer:
            self.pipe._interrupt = True

    def _charge(self, prompt: int, cost: Cost) -> None:
        self.spent[prompt] = self.spent.get(prompt, NOTHING).plus(cost)
