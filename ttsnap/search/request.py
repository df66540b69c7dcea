"""One call of the pipeline: everything the user asked for, checked before anything is computed, then carried out."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from diffkit import parallel
from diffkit.conditioning import Conditioning, encode_prompts, latent_shape
from diffkit.errors import InputError
from diffkit.families import Pipeline, any_family_of
from diffkit.flops import pipeline_flops
from diffkit.given_embeds import given_count, has_embeds
from diffkit.image_filters import check_safety_checker
from diffkit.interruption import DenoisingInterrupted
from diffkit.ledger import NOTHING, Cost, Ledger
from diffkit.prepared_again import DenoiserCall
from diffkit.recorded_calls import first_step_calls
from diffkit.rewards.base import Reward
from diffkit.step_plan import Plan
from ttsnap.schedules.pruning_schedule import PruningSchedule
from ttsnap.search.budget import affordable, spending_limit
from ttsnap.search.config import SearchConfig
from ttsnap.search.held_out import score_held_out, with_held_out
from ttsnap.search.image_inputs import IP_IMAGE, image_prompts, with_image_prompts
from ttsnap.search.noise import Noise
from ttsnap.search.pipeline_kwargs import check_step_callback
from ttsnap.search.prices import Trials, time_prices, with_guard
from ttsnap.search.progress_lines import search_bar
from ttsnap.search.session import Engine, StageTrace, Winner
from ttsnap.search.strategies.base import Strategy
from ttsnap.search.strategies.pruning import Pruning

__all__ = ["DEFAULT_CANDIDATES", "Request", "SearchResult"]

DEFAULT_CANDIDATES = 16


class SearchResult(NamedTuple):
    """Winners of each prompt, best first; all looks; what it cost, in all and for each prompt; further facts.

    The latents of a ``noisy`` one are not clean, and its images are those of their estimates. An ``interrupted`` search
    has the images that were finished; ``leading`` are each prompt's seeds, the best so far first, which the stock
    pipeline draws.
    """

    winners: list[list[Winner]]
    trace: list[StageTrace]
    ledger: Ledger
    spent: list[Cost]
    notes: dict[str, object]
    interrupted: bool = False
    noisy: bool = False
    leading: Sequence[list[int]] = ()


@dataclass(frozen=True)
class Request:
    """Prompts with what to search their images by.

    Attributes:
        negative_prompts: one for all, or one for each prompt.
        search: a strategy, which needs a budget, in ``x`` or FLOP unless it is ``timed``; None prunes by
            ``config.schedule``.
        held_out: rewards that score the winners and select nothing; their seconds are in no budget.
        embeds: prompts, negative prompts or both that are encoded already, under the pipeline's own keywords.
        own: further keyword arguments of each prompt's own; nothing where all have the same.
        words: what rewards read, one for each prompt; the prompts themselves when None.
    """

    prompts: Sequence[str]
    reward: Reward
    noise: Noise
    config: SearchConfig
    negative_prompts: str | Sequence[str] | None = None
    search: Strategy | None = None
    held_out: Sequence[Reward] = ()
    embeds: Mapping[str, object] = field(default_factory=dict)
    words: Sequence[str] | None = None
    own: Sequence[Mapping[str, object]] = ()

    @property
    def reward_prompts(self) -> Sequence[str]:
        """What rewards read."""
        return self.prompts if self.words is None else self.words

    @property
    def strategy(self) -> Strategy:
        """What searches."""
        return Pruning("pruning", self.config.schedule, "either") if self.search is None else self.search

    def carry_out(self, pipe: Pipeline, call: Callable[..., Any], trials: Trials | None = None) -> SearchResult:
        """Search.

        Args:
            call: runs the stock pipeline.
            trials: of the rewards of earlier calls, which are not tried again.

        Raises:
            InputError: bad input, before anything is denoised.
            ScoringError: too few candidates could be scored.
        """
        began = time.perf_counter()
        engine = self._engine(pipe, call, trials)
        self.strategy.check(engine)
        if self.config.share:
            engine.noise = engine.noise.agreed()
        interrupted = False
        try:
            winners = self._run(engine, began)
        except DenoisingInterrupted:
            interrupted, winners = True, engine.stopped()
        tried = len({(look.prompt, index) for look in engine.trace for index in look.candidates})
        engine.ledger.without_pruning = PruningSchedule().cost(tried, engine.plan.calls)
        if tried == len(self.prompts) and not interrupted:
            engine.noise.advance([best[0].candidate for best in winners])
        self._settle(engine.ledger, began)
        spent = [engine.spent.get(prompt, NOTHING) for prompt in range(len(self.prompts))]
        trace = engine.trace
        if self.held_out:
            winners = score_held_out(self.held_out, winners, self.reward_prompts, engine.ledger, pipe._execution_device)
            trace = with_held_out(trace, winners)
        leading = [
            engine.progress.seeds(prompt, higher_is_better=self.reward.higher_is_better) if interrupted else []
            for prompt in range(len(self.prompts))
        ]
        return SearchResult(winners, trace, engine.ledger, spent, engine.notes, interrupted, engine.plan.noisy, leading)

    def _run(self, engine: Engine, began: float) -> list[list[Winner]]:
        """The strategy's winners, with a progress bar."""
        limit = self._limit(engine, began)
        with search_bar(engine.pipe, self._most_calls(engine, limit)) as bar:
            engine.advance, engine.expect = bar.advance, bar.expect
            return self.strategy.run(engine, limit)

    def prepare(self, pipe: Pipeline, call: Callable[..., Any], trials: Trials | None = None) -> None:
        """Everything that can be checked before a search, and its reward tried; nothing is denoised.

        Raises:
            InputError: bad input, a strategy that cannot work here, or a budget that pays for nothing.
        """
        engine = self._engine(pipe, call, trials)
        self.strategy.check(engine)
        budget = self.config.parsed_budget
        if budget is not None and budget.unit != "s":
            limit = spending_limit(budget, engine, spent_flop=self._overhead(engine.ledger), began=0.0)
            affordable(engine, limit, PruningSchedule(), at_least=self.config.winners)

    def _engine(self, pipe: Pipeline, call: Callable[..., Any], trials: Trials | None) -> Engine:
        """Prompts encoded, prices counted, nothing denoised yet."""
        steps = self._plan(pipe)
        check_safety_checker(pipe)
        n = self._num_candidates()
        self._calls_back_at_steps(n)
        ledger = Ledger(rows_per_call=2 if self._guided(pipe) else 1)
        trials, tried = trials or Trials(), (self.reward_prompts[0], self.config.size(pipe), pipe._execution_device)
        probe = trials.probe(self.reward, *tried)
        ledger.calibration_images += probe.images
        for reward in self.held_out:
            trials.probe(reward, *tried)
        conditioning, images = self._encode(pipe, ledger)
        if (guard := self.config.copy_guard) is not None:
            ledger.guard = {"checks": 0, "flop_per_check": guard.flops_per_image}
        denoising = self.config.denoising(pipe, None if n is None else n * len(self.prompts))
        if self.noise.draws_together(len(self.prompts), n):
            denoising = replace(denoising, micro_batch=len(self.prompts))
            self._refuse_apart(pipe, conditioning, images)
        elif self._calls_back_at_steps(n) and self.config.micro_batch is None and not any_family_of(pipe).one_row:
            denoising = replace(denoising, micro_batch=len(self.prompts))
        conditioning, denoising = with_image_prompts(conditioning, denoising, images)
        calls = first_step_calls(pipe, conditioning, denoising, call=call) if self._has_pictures(pipe) else ()
        verify = with_guard(probe.flop, self.config.copy_guard)
        self._price(pipe, conditioning, (images[0] if images else (), calls), ledger, verify)
        words = self.reward_prompts
        noise = self.noise if n is not None else replace(self.noise, together=False)
        return Engine(
            pipe, self.reward, words, conditioning, denoising, steps, ledger, call, self.config, noise, n,
            as_stock=self._is_uncut(n),
        )  # fmt: skip

    def _has_pictures(self, pipe: Pipeline) -> bool:
        """Whether the denoiser gets more than a text family's, by a picture of the call's or of each prompt's own."""
        given = {*self.config.extra, *(self.own[0] if self.own else ())}
        return not given.isdisjoint(any_family_of(pipe).pictures)

    def _plan(self, pipe: Pipeline) -> Plan:
        """The denoiser calls, after everything was checked that can be wrong."""
        if not self.prompts or any(not isinstance(prompt, str) for prompt in self.prompts):
            raise InputError("Expected a prompt or a non-empty list of prompts, each a string.")
        if not isinstance(self.negative_prompts, str | None) and len(self.negative_prompts) != len(self.prompts):
            raise InputError(f"Got {len(self.negative_prompts)} negative prompts for {len(self.prompts)} prompts.")
        family = any_family_of(pipe)
        for prefix in ("", "negative_"):
            if has_embeds(self.embeds, prefix):
                given_count(family, self.embeds, prefix)
        steps = self.config.plan(pipe, as_stock=self._is_uncut(self._num_candidates()))
        budget = self.config.parsed_budget
        if self.search is not None and budget is None:
            raise InputError("A search by name spends a budget; give one, for example budget='16x'.")
        timed = self.search is None or getattr(self.search, "timed", False)
        if budget is not None and budget.unit == "s" and not timed:
            raise InputError(
                f"The search {self.strategy.name!r} is planned in counted cost; give its budget as 16x or 3.2TFLOP, or "
                f"use search='lookahead' or none, which keep seconds too."
            )
        return steps

    def _num_candidates(self) -> int | None:
        """The number of candidates for each prompt; None where a budget decides."""
        fixed, asked = self.noise.fixed_count(len(self.prompts)), self.config.num_candidates
        if self.config.budget is not None:
            if asked is not None or fixed is not None:
                raise InputError(
                    "A budget chooses the number of candidates; give no num_candidates, seeds or generators."
                )
            return None
        n = asked if asked is not None else fixed or max(DEFAULT_CANDIDATES, self.config.winners)
        if isinstance(n, bool) or not isinstance(n, int) or n < 1:
            raise InputError(f"num_candidates must be a whole number of at least 1, got {n!r}.")
        if fixed is not None and fixed != n:
            raise InputError(f"num_candidates is {n}, but there are seeds or generators for {fixed}.")
        if self.noise.draws_together(len(self.prompts), n) and (self.config.micro_batch or self.config.share):
            raise InputError(
                f"One generator draws the noise of {len(self.prompts)} prompts in one batch, as in the stock pipeline: "
                f"leave out micro_batch and share, or give a list with one generator for each prompt."
            )
        return n

    def _calls_back_at_steps(self, n: int | None) -> bool:
        """Whether a callback of the stock pipeline is called at every step.

        Raises:
            InputError: it would be called in a search.
        """
        return check_step_callback(self.config.extra, uncut=self._is_uncut(n))

    def _is_uncut(self, n: int | None) -> bool:
        """Whether one candidate of each prompt is denoised without a look."""
        return n == 1 and self.search is None and not self.config.schedule.steps

    def _refuse_apart(self, pipe: Pipeline, conditioning: Conditioning, images: Sequence[object]) -> None:
        """Refuse to draw together what is denoised or decoded apart.

        Raises:
            InputError: prompts have images of their own or are encoded to different lengths, the pipeline makes one
                image at a time, or its decoder draws noise too.
        """
        apart = self.own or len(images) > 1 or any_family_of(pipe).one_row
        widths = {conditioning.width(row) for row in range(len(self.prompts))}
        if apart or len(widths) > 1 or bool(getattr(pipe.vae.config, "timestep_conditioning", False)):
            raise InputError(
                "One generator draws the noise of all prompts in one batch. Prompts with images of their own, of "
                "different encoded lengths, or of a pipeline that makes one image at a time or whose decoder draws "
                "noise too, are denoised or decoded apart; give a list with one generator for each prompt."
            )

    def _limit(self, engine: Engine, began: float) -> float:
        """What each prompt may cost, in the unit of ``engine.prices``; infinite for a fixed number of candidates."""
        budget = self.config.parsed_budget
        if budget is None:
            return math.inf
        if budget.unit == "s":
            engine.pace = engine.runner.batches.fit(lambda size: time_prices(engine, size))
        limit = spending_limit(budget, engine, spent_flop=self._overhead(engine.ledger), began=began)
        if self.config.share:  # each process has measured its own seconds
            engine.pace, limit = parallel.broadcast((engine.pace, limit))
        unit = "s" if budget.unit == "s" else "FLOP"
        asked, total = str(self.config.budget), limit * len(self.prompts)
        engine.ledger.budget = {"asked": asked, "unit": unit, "limit": total}
        return limit

    def _most_calls(self, engine: Engine, limit: float) -> int:
        """The denoiser calls that a limit pays for at most, for the progress bar; 0 where only the strategy knows."""
        if math.isinf(limit) or not engine.prices.call:
            return 0
        return math.floor(limit * len(self.prompts) / engine.prices.call)

    def _overhead(self, ledger: Ledger) -> float:
        """FLOP that each prompt has cost so far, on text and on trying the reward."""
        text = ledger.encoded * (ledger.flops.encode or 0.0) + ledger.calibration_images * (ledger.flops.verify or 0.0)
        return text / len(self.prompts)

    def _settle(self, ledger: Ledger, began: float) -> None:
        """Write what was spent of a budget, and what was not."""
        ledger.seconds["total"] = time.perf_counter() - began
        budget = self.config.parsed_budget
        if ledger.budget is None or budget is None:
            return
        limit, spent = float(ledger.budget["limit"]), ledger.cost.at(ledger.flops)
        if budget.unit == "s":
            limit, spent = budget.amount * len(self.prompts), ledger.seconds["total"]
            ledger.budget["limit"] = limit
        if spent is not None:
            ledger.budget |= {"spent": spent, "unspent": limit - spent}

    def _guided(self, pipe: Pipeline) -> bool:
        """Whether a denoiser call carries two rows; some families guide only where there is a negative prompt."""
        given = self.embeds if has_embeds(self.embeds, "negative_") else self.negative_prompts
        return self.config.is_guided(pipe, given)

    def _encode(self, pipe: Pipeline, ledger: Ledger) -> tuple[Conditioning, list[list[Tensor]]]:
        """Texts and image prompts, each encoded once."""
        guided, negatives = self._guided(pipe), self.negative_prompts
        if not has_embeds(self.embeds):
            ledger.encoded = len(set(self.prompts))
        if guided and not has_embeds(self.embeds, "negative_"):
            ledger.encoded += 1 if isinstance(negatives, str | None) else len(set(negatives))
        options = {**self.config.extra, **self.config.encoding}
        with ledger.clock("text_encoder"), FlopCounterMode(display=False) as counter:
            conditioning = encode_prompts(
                pipe, self.prompts, negatives, guidance=guided, options=options, embeds=self.embeds
            )
            images = image_prompts(pipe, self.config.extra, len(self.prompts), guided=guided)
            ledger.encoded += len(images) if IP_IMAGE in self.config.extra else 0
        ledger.flops = replace(ledger.flops, encode=counter.get_total_flops() / max(ledger.encoded, 1))
        return replace(conditioning, own=self.own), images

    def _price(
        self,
        pipe: Pipeline,
        conditioning: Conditioning,
        told: tuple[Sequence[Tensor], Sequence[DenoiserCall]],
        ledger: Ledger,
        verify: float | None,
    ) -> None:
        """Write the prices of a unit of work into the ledger.

        Args:
            told: encoded image prompts of a candidate, and the calls of one step where these were recorded.
        """
        size, (images, calls) = self.config.size(pipe), told

        def count_trial() -> None:
            ledger.calibration_calls += 1

        ledger.flops = pipeline_flops(
            pipe,
            latent_shape(pipe, size),
            conditioning.positive,
            guidance=self._guided(pipe),
            verify=verify,
            preview=self.config.preview_vae,
            size=size,
            encode=ledger.flops.encode,
            images=images,
            calls=calls,
            on_trial=count_trial,
        )
