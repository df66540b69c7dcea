"""What every search is made of: denoise candidates, decode and score them, record the scores and the cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import isfinite, nan
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from diffkit.conditioning import Conditioning
from diffkit.copy_guard import is_guarded
from diffkit.errors import ScoringError
from diffkit.families import Pipeline, any_family_of, as_size
from diffkit.families.base import Decoding
from diffkit.image_filters import FLAGGED
from diffkit.interruption import DenoisingInterrupted, is_interrupted
from diffkit.latents import decode_latents, decode_videos
from diffkit.ledger import NOTHING, Cost, Ledger, Prices
from diffkit.lookahead import look_ahead
from diffkit.micro_batch import MicroBatch
from diffkit.parallel import everyone, interleave, processes, shard
from diffkit.parameterization import log_snr
from diffkit.rewards.base import Reward, score_checked
from diffkit.segments import Candidate, Denoising, run_segment
from diffkit.step_noise import global_generators
from diffkit.step_plan import Plan
from ttsnap.search.config import SearchConfig
from ttsnap.search.diversity import POOL, chosen
from ttsnap.search.guarding import Guarded, drop_copies, too_few
from ttsnap.search.interruption import Progress
from ttsnap.search.noise import Noise, Recipe
from ttsnap.search.selection import ranking
from ttsnap.search.shown import blacken, flagged_rows, pictures
from ttsnap.search.trace import Look, StageTrace, Winner, winner_of

__all__ = ["Engine", "Look", "StageTrace", "Winner"]

R = TypeVar("R")
OnStep = Callable[[int, int], None]  # takes the rows run for candidates and for padding, after each step
Work = Callable[[Sequence[Candidate], Denoising, OnStep], list[R]]  # a result for each candidate of a micro-batch


@dataclass
class _Share(Generic[R]):
    """What one process has done of a stretch of denoising: results, rows run, and calls by prompt."""

    done: list[R] = field(default_factory=list)
    calls: int = 0
    padding: int = 0
    charged: dict[int, int] = field(default_factory=dict)
    interrupted: bool = False


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
        """Micro-batches of their own for denoising and for looks, which need different amounts of memory."""
        size, adaptive = self.denoising.micro_batch, self.config.micro_batch == "auto"
        self.batches = MicroBatch(size, adaptive=adaptive, what="candidates to denoise")
        self.looks = MicroBatch(size, adaptive=adaptive, what="images to decode and score")

    @property
    def winners(self) -> int:
        """How many images to keep for each prompt."""
        return self.config.winners

    @property
    def cheap_looks(self) -> bool:
        """Whether estimates are decoded by a preview decoder."""
        return self.config.preview_vae is not None

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

        def segment(batch: Sequence[Candidate], denoising: Denoising, count: OnStep) -> list[Candidate]:
            before = global_generators(self.pipe._execution_device) if self.as_stock else []
            done = run_segment(
                self.pipe, batch, self.conditioning, denoising, start, stop, call=self.call, on_step=count
            )
            after = global_generators(self.pipe._execution_device) if self.as_stock else []
            seeded = all(map(torch.equal, before, after))
            return done if seeded else [replace(candidate, seed=None) for candidate in done]

        keep = self.progress.unjudged.extend if stop == self.plan.calls else None
        return self._run(alive, segment, keep)

    def look_ahead(self, alive: Sequence[Candidate], calls: int) -> list[Tensor]:
        """Estimates of candidates' clean latents after so many calls more; the candidates stay where they are."""

        def ahead(batch: Sequence[Candidate], denoising: Denoising, count: OnStep) -> list[Tensor]:
            return look_ahead(self.pipe, batch, self.conditioning, denoising, calls, call=self.call, on_step=count)

        return self._run(alive, ahead)

    def _run(
        self, alive: Sequence[Candidate], work: Work[R], keep: Callable[[list[R]], object] | None = None
    ) -> list[R]:
        """Denoise in micro-batches, each process its part, and charge to each prompt the calls that ran.

        Args:
            keep: takes what was done before the pipeline was told to stop.

        Raises:
            DenoisingInterrupted: see there; of every process when it was one of them.
        """
        mine = _Share[R]()
        with self.ledger.clock("denoiser"):
            try:
                self._check_running()
                for _, part in self.batches.each(
                    self._dealt(alive), lambda batch, size: self._counted(batch, size, work, mine)
                ):
                    mine.done += part
                    if len(mine.done) < len(self._dealt(alive)):
                        self._check_running()
            except DenoisingInterrupted:
                mine.interrupted = True
            shares = everyone(mine) if self.config.share else [mine]
        run = sum(share.calls for share in shares)
        self.ledger.calls += run
        self.ledger.padding_calls += sum(share.padding for share in shares)
        self.advance(run - mine.calls)
        for share in shares:
            for prompt, calls in share.charged.items():
                self._charge(prompt, Cost(calls, 0, 0))
        if any(share.interrupted for share in shares):
            if keep is not None:
                keep([result for share in shares for result in share.done])
            raise DenoisingInterrupted(self.pipe)
        return interleave([share.done for share in shares])

    def _check_running(self) -> None:
        if is_interrupted(self.pipe):
            raise DenoisingInterrupted(self.pipe)

    def _dealt(self, alive: Sequence[Candidate]) -> list[Candidate]:
        """This process's part of the candidates."""
        return shard(alive) if self.config.share else list(alive)

    def _counted(self, batch: Sequence[Candidate], size: int, work: Work[R], share: _Share[R]) -> list[R]:
        """Run one micro-batch; steps done in vain, before memory ran out, are counted as padding."""
        rows, steps = [0, 0], 0

        def count(real: int, padding: int) -> None:
            nonlocal steps
            steps += 1
            rows[0] += real
            rows[1] += padding
            self.advance(real)

        try:
            return work(batch, replace(self.denoising, micro_batch=size), count)
        except DenoisingInterrupted as stop:
            if self.as_stock and stop.latents is not None:
                rest = zip(batch, stop.latents.split(1), strict=False)
                self.progress.half_denoised += [replace(candidate, latents=latents) for candidate, latents in rest]
            raise
        except (RuntimeError, MemoryError):
            self.advance(-rows[0])
            rows, steps = [0, sum(rows)], 0
            raise
        finally:
            share.calls += rows[0]
            share.padding += rows[1]
            for candidate in batch:
                share.charged[candidate.prompt] = share.charged.get(candidate.prompt, 0) + steps

    def rank(self, scores: Sequence[float], flagged: Sequence[bool] | None = None) -> list[int]:
        """Positions of the finite scores, best first, those that the safety checker flags after all others."""
        return ranking(scores, higher_is_better=self.reward.higher_is_better, flagged=flagged)

    def best(self, finished: Sequence[Winner]) -> list[Winner]:
        """The winners among finished candidates, as many as are asked for, best first."""
        order = self.rank([winner.score for winner in finished], [winner.flagged for winner in finished])
        scores = {at: winner.score for at, winner in enumerate(finished)}
        images = {at: winner.image for at, winner in enumerate(finished)}
        flagged = [at for at, winner in enumerate(finished) if winner.flagged]
        return [finished[at] for at in self._chosen(order, scores, images, flagged)]

    def winning(self, look: Look, rows: Sequence[int]) -> list[int]:
        """Those of the rows of a last look that win, as many as are asked for, best first."""
        order = self.ranked(look, rows)
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

    def ranked(self, look: Look, rows: Sequence[int]) -> list[int]:
        """Those of the rows of a look that have a score, best first."""
        return [rows[at] for at in self.rank([look.scores[r] for r in rows], [look.flagged[r] for r in rows])]

    def estimate(self, alive: Sequence[Candidate], *, lookahead: int = 0) -> Look:
        """Look at estimates of candidates in mid-denoising, all after the same step.

        Args:
            lookahead: calls more that lead to the estimates, which are then scored like finished images; with 0 they
                are the x0 that the step has left, scored with their noise level.
        """
        if lookahead:
            clean: Sequence[Tensor | None] = self.look_ahead(alive, lookahead)
            level = None
        else:
            clean = [candidate.x0 for candidate in alive]
            level = self._level(alive[0].step - 1)
        estimates = [replace(candidate, latents=x0) for candidate, x0 in zip(alive, clean, strict=True)]
        return self._look(estimates, keep=0, final=False, log_snr=level)._replace(lookahead=lookahead)

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
        look = self._look(shown, keep=self._kept, final=True, log_snr=level)
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
        image = self.decode([candidate], final=True)
        [flagged] = flagged_rows(self.pipe, image, self.conditioning.prompt_embeds.dtype)
        return Winner(candidate, image[0].cpu(), nan, None, flagged)

    def finish(self, alive: Sequence[Candidate], look: Look | None = None) -> list[list[Winner]]:
        """Score finished candidates and return the winners of each prompt that has some, best first.

        Args:
            look: at them, where they were judged already.

        Raises:
            ScoringError: too few candidates of a prompt could be scored.
        """
        look = self.judge(alive) if look is None else look
        winners = []
        for prompt in sorted({candidate.prompt for candidate in alive}):
            best = self.winning(look, self.rows(alive, prompt))
            self.record(prompt, alive, look, [alive[row] for row in best], needed=self.winners)
            winners.append([winner_of(alive, look, row) for row in best])
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

    def decode(self, batch: Sequence[Candidate], *, final: bool) -> Tensor:
        """Images (B, 3, H, W) in [0, 1] of candidates' latents; estimates by the preview decoder where there is one.

        Of a pipeline of videos (B, frames, 3, H, W).
        """
        latents = torch.cat([candidate.latents for candidate in batch if candidate.latents is not None])
        size = self.denoising.size
        if size is not None and any_family_of(self.pipe).makes_videos:
            dtype = self.conditioning.prompt_embeds.dtype
            sources = [candidate.generator for candidate in batch]
            return decode_videos(self.pipe, latents, Decoding(size, sources, self.denoising.extra, dtype))
        return decode_latents(self.pipe, latents, None if final else self.config.preview_vae, size)

    def _look(self, alive: Sequence[Candidate], *, keep: int, final: bool, log_snr: float | None) -> Look:
        """Decode and score, each process its part; only the ``keep`` best images of each prompt stay in memory."""
        look = self._look_at(self._dealt(alive), keep=keep, final=final, log_snr=log_snr)
        self._count_look(alive, not final and self.cheap_looks)
        if not self.config.share or processes() == 1:
            return look
        look = Look.joined(everyone(look))
        self._forget(look, alive, keep)
        return look

    @torch.no_grad()
    def _look_at(self, alive: Sequence[Candidate], *, keep: int, final: bool, log_snr: float | None) -> Look:
        """Decode and score in micro-batches, in this process."""
        similarities: list[float] = []
        look = Look([], [], {}, [], [], similarities=similarities)

        def judged(batch: Sequence[Candidate], size: int) -> tuple[Tensor, Guarded, list[bool]]:
            with self.ledger.clock("decoder" if final or not self.cheap_looks else "preview"):
                images = self.decode(batch, final=final)
            with self.ledger.clock("verifier"):
                prompts = [self.prompts[candidate.prompt] for candidate in batch]
                scores, reasons = score_checked(self.reward, images, prompts, log_snr)
            verdicts = self._guarded(images, scores.tolist(), reasons)
            if not final:
                return images, verdicts, [False] * len(images)
            with self.ledger.clock("decoder"):
                flagged = flagged_rows(self.pipe, images, self.conditioning.prompt_embeds.dtype)
            return images, verdicts, flagged

        for _, (images, verdicts, flagged) in self.looks.each(alive, judged):
            first = len(look.scores)
            look.scores.extend(verdicts.scores)
            copies = [is_guarded(reason) for reason in verdicts.reasons]
            look.reasons.extend(
                FLAGGED if flag and not copy else reason
                for flag, copy, reason in zip(flagged, copies, verdicts.reasons, strict=True)
            )
            look.flagged.extend(flagged)
            similarities.extend(verdicts.similarities)
            if self.config.previews:
                hidden = [flag or copy for flag, copy in zip(flagged, copies, strict=True)]
                look.previews.extend(pictures(self.pipe, images, hidden))
            if keep:
                look.images.update({first + row: image.cpu().clone() for row, image in enumerate(images)})
                self._forget(look, alive, keep)
        return look

    def _guarded(self, images: Tensor, scores: Sequence[float], reasons: Sequence[str | None]) -> Guarded:
        """Scores and reasons as the copy guard leaves them."""
        if self.config.copy_guard is None:
            return drop_copies(None, images, scores, reasons)
        with self.ledger.clock("guard"):
            return drop_copies(self.config.copy_guard, images, scores, reasons)

    def _count_look(self, alive: Sequence[Candidate], cheap: bool) -> None:
        cost = Cost(0, 0, 1, 1) if cheap else Cost(0, 1, 1)
        for candidate in alive:
            self._charge(candidate.prompt, cost)
        self.ledger.decoded += len(alive) * cost.decoded
        self.ledger.previewed += len(alive) * cost.previewed
        self.ledger.verified += len(alive)
        if self.ledger.guard is not None:
            self.ledger.guard["checks"] += len(alive)

    def _forget(self, look: Look, alive: Sequence[Candidate], keep: int) -> None:
        """Drop the images that cannot win any more."""
        for prompt in {alive[row].prompt for row in look.images}:
            rows = [row for row in range(len(look.scores)) if alive[row].prompt == prompt]
            best = set(self.ranked(look, rows)[:keep])
            for row in set(rows) - best:
                look.images.pop(row, None)
