"""One call of the pipeline: everything the user asked for, checked before anything is computed, then carried out."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from torch.utils.flop_counter import FlopCounterMode

from diffkit import parallel
from diffkit.conditioning import Conditioning, encode_prompts, latent_shape
from diffkit.errors import InputError
from diffkit.families import Autoencoder, Pipeline, default_size, family_of, is_guided
from diffkit.flops import pipeline_flops
from diffkit.ledger import Budget, Cost, Ledger, Prices, parse_budget
from diffkit.micro_batch import auto_size
from diffkit.rewards.base import Reward
from diffkit.segments import Denoising, Plan, plan
from ttsnap.schedules.pruning_schedule import PruningSchedule
from ttsnap.search.budget import Probe, affordable, affordable_count, flop_limit, probe_reward, time_prices
from ttsnap.search.noise import Noise
from ttsnap.search.session import Engine, StageTrace, Winner
from ttsnap.search.strategies.base import Strategy
from ttsnap.search.strategies.pruning import prune

__all__ = ["DEFAULT_CANDIDATES", "Found", "Request"]

DEFAULT_CANDIDATES = 16
MICRO_BATCH = {"cpu": 8}  # fewer rows cost time by themselves, more save none
ACCELERATOR_MICRO_BATCH = 16


class Found(NamedTuple):
    """Winners of each prompt, best first; all looks; what it cost, in all and for each prompt; further facts."""

    winners: list[list[Winner]]
    trace: list[StageTrace]
    ledger: Ledger
    spent: list[Cost]
    notes: dict[str, object]


@dataclass(frozen=True)
class Request:
    """The arguments of ``TTSnapPipeline.__call__`` that decide what is computed; see there."""

    prompts: Sequence[str]
    reward: Reward
    schedule: PruningSchedule
    noise: Noise
    num_inference_steps: int
    guidance_scale: float | None
    negative_prompts: str | Sequence[str] | None = None
    winners: int = 1
    num_candidates: int | None = None
    budget: str | None = None
    height: int | None = None
    width: int | None = None
    eta: float = 0.0
    micro_batch: int | Literal["auto"] | None = None
    previews: bool = False
    clip_skip: int | None = None
    extra: Mapping[str, object] = field(default_factory=dict)
    encoding: Mapping[str, object] = field(default_factory=dict)
    preview_vae: Autoencoder | None = None
    search: Strategy | None = None
    share: bool = False

    def carry_out(self, pipe: Pipeline, call: Callable[..., Any], probed: Prices | None) -> Found:
        """Search.

        Args:
            call: runs the stock pipeline.
            probed: prices of an earlier call with the same reward and shapes, or None to try the reward first.

        Raises:
            InputError: bad input, before anything is computed.
            ScoringError: too few candidates could be scored.
        """
        began = time.perf_counter()
        engine = self._engine(pipe, call, probed)
        if self.share:
            engine.noise = self.noise.agreed()
        winners = self._by_name(engine) if self.search is not None else self._pruned(engine, self._count(), began)
        self._settle(engine.ledger, began)
        spent = [engine.spent[prompt] for prompt in range(len(self.prompts))]
        return Found(winners, engine.trace, engine.ledger, spent, engine.notes)

    def prices(self, pipe: Pipeline, call: Callable[..., Any]) -> Prices:
        """What a unit of work costs in FLOP, after everything that can be checked before a search.

        Raises:
            InputError: bad input, a strategy that cannot work here, or a budget that pays for nothing.
        """
        engine = self._engine(pipe, call, None)
        if self.search is not None and self.budget is not None:
            self.search.check(engine)
            limit = flop_limit(parse_budget(self.budget), engine, spent_flop=self._overhead(engine.ledger))
            affordable_count(engine, limit, PruningSchedule(), at_least=self.winners)
        return engine.ledger.flops

    def _engine(self, pipe: Pipeline, call: Callable[..., Any], probed: Prices | None) -> Engine:
        """Prompts encoded, prices counted, nothing denoised yet."""
        steps = self._check(pipe)
        fixed = self._count()
        ledger = Ledger(rows_per_call=2 if self._guided(pipe) else 1)
        size = self._size(pipe)
        probe = probe_reward(self.reward, self.prompts[0], size) if probed is None else Probe(probed.verify, 0)
        ledger.calibration_images += probe.images
        with ledger.clock("text_encoder"), FlopCounterMode(display=False) as counter:
            conditioning = self._encode(pipe, ledger)
        text = counter.get_total_flops() / ledger.encoded
        ledger.flops = self._prices(pipe, conditioning, ledger, Prices(None, None, probe.flop, text))
        denoising = Denoising(
            self.num_inference_steps,
            self.guidance_scale,
            *size,
            self.eta,
            self._micro_batch(pipe, fixed),
            "least",
            self.extra,
        )
        return Engine(
            pipe, self.reward, self.prompts, conditioning, denoising, steps, ledger, call, self.noise,
            winners=self.winners, previews=self.previews, preview_vae=self.preview_vae,
            share=self.share, adaptive=self.micro_batch == "auto",
        )  # fmt: skip

    def _pruned(self, engine: Engine, fixed: int, began: float) -> list[list[Winner]]:
        """Prune ``fixed`` candidates, or as many as the budget pays for, by the schedule."""
        if self.budget is None:
            n, schedule = fixed, self.schedule.resolve(engine.plan.calls, candidates=fixed)
        else:
            n, schedule = self._within(parse_budget(self.budget), engine, began)
        schedule.validate(engine.plan.calls)
        self._check_winners(n, schedule)
        engine.ledger.without_pruning = PruningSchedule().cost(n * len(self.prompts), engine.plan.calls)
        total = schedule.cost(n, engine.plan.calls).calls * len(self.prompts)
        with engine.pipe.progress_bar(total=total) as bar:
            engine.advance = bar.update
            return prune(engine, schedule, engine.noise.candidates(len(self.prompts), n))

    def _by_name(self, engine: Engine) -> list[list[Winner]]:
        """Spend the budget by the strategy."""
        if self.search is None or self.budget is None:
            raise InputError("A search by name spends a budget; give one, for example budget='16x'.")
        self.search.check(engine)
        share, ledger = len(self.prompts), engine.ledger
        limit = flop_limit(parse_budget(self.budget), engine, spent_flop=self._overhead(ledger))
        ledger.budget = {"asked": self.budget, "unit": "FLOP", "limit": limit * share}
        with engine.pipe.progress_bar(total=math.floor(limit * share / (ledger.flops.call or math.inf))) as bar:
            engine.advance = bar.update
            winners = self.search.run(engine, limit)
        tried = len({(look.prompt, index) for look in engine.trace for index in look.candidates})
        ledger.without_pruning = PruningSchedule().cost(tried, engine.plan.calls)
        return winners

    def _check(self, pipe: Pipeline) -> Plan:
        """Everything that can be found wrong without computing."""
        if not self.prompts or any(not isinstance(prompt, str) for prompt in self.prompts):
            raise InputError("Expected a prompt or a non-empty list of prompts, each a string.")
        if not isinstance(self.negative_prompts, str | None) and len(self.negative_prompts) != len(self.prompts):
            raise InputError(f"Got {len(self.negative_prompts)} negative prompts for {len(self.prompts)} prompts.")
        steps = plan(pipe, self.num_inference_steps, self._size(pipe), self.extra)
        self.schedule.resolve(steps.calls).validate(steps.calls)
        at_once = None if self.micro_batch == "auto" else self.micro_batch
        for name, value in (("num_images_per_prompt", self.winners), ("micro_batch", at_once)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise InputError(f"{name} must be a whole number of at least 1, got {value!r}.")
        cell = family_of(pipe).multiple(pipe)
        for name, pixels in (("height", self.height), ("width", self.width)):
            if pixels is not None and (pixels < cell or pixels % cell):
                raise InputError(f"{name} must be a positive multiple of {cell}, got {pixels}.")
        return steps

    def _count(self) -> int:
        """The number of candidates for each prompt; with a budget a lower bound of what it must pay for."""
        fixed = self.noise.fixed_count(len(self.prompts))
        if self.budget is not None:
            parse_budget(self.budget)
            if self.num_candidates is not None or fixed is not None:
                raise InputError(
                    "A budget chooses the number of candidates; give no num_candidates, seeds or generators."
                )
            return self.winners
        n = self.num_candidates if self.num_candidates is not None else fixed or max(DEFAULT_CANDIDATES, self.winners)
        if isinstance(n, bool) or not isinstance(n, int) or n < 1:
            raise InputError(f"num_candidates must be a whole number of at least 1, got {n!r}.")
        if fixed is not None and fixed != n:
            raise InputError(f"num_candidates is {n}, but there are seeds or generators for {fixed}.")
        return n

    def _check_winners(self, n: int, schedule: PruningSchedule) -> None:
        left = [n, *schedule.survivors(n)][-1]
        if left < self.winners:
            raise InputError(
                f"{n} candidates leave {left} survivors, fewer than the {self.winners} images asked for; try more "
                f"candidates, keep larger shares or ask for fewer images."
            )

    def _overhead(self, ledger: Ledger) -> float:
        """FLOP that each prompt has cost so far, on text and on trying the reward."""
        text = ledger.encoded * (ledger.flops.encode or 0.0) + ledger.calibration_images * (ledger.flops.verify or 0.0)
        return text / len(self.prompts)

    def _within(self, budget: Budget, engine: Engine, began: float) -> tuple[int, PruningSchedule]:
        ledger, share = engine.ledger, len(self.prompts)
        found = affordable(
            budget,
            engine,
            self.schedule,
            spent_flop=self._overhead(ledger),
            began=began,
            seconds=lambda: engine.batches.fit(lambda size: time_prices(engine, size)),
        )
        if self.share:  # each process has measured its own seconds
            found = parallel.broadcast(found)
        ledger.budget = {
            "asked": str(self.budget),
            "unit": "s" if budget.unit == "s" else "FLOP",
            "limit": found.limit * share,
            "planned": found.planned * share,
        }
        return found.candidates, found.schedule

    def _settle(self, ledger: Ledger, began: float) -> None:
        """Write what was spent of a budget, and what was not."""
        ledger.seconds["total"] = time.perf_counter() - began
        if ledger.budget is None:
            return
        limit = float(ledger.budget["limit"])
        spent = ledger.cost.at(ledger.flops) if ledger.budget["unit"] == "FLOP" else ledger.seconds["total"]
        if ledger.budget["unit"] == "s":
            limit = parse_budget(str(self.budget)).amount * len(self.prompts)
            ledger.budget["limit"] = limit
        if spent is not None:
            ledger.budget |= {"spent": spent, "unspent": limit - spent}

    def _guided(self, pipe: Pipeline) -> bool:
        return is_guided(pipe, self.guidance_scale, {**self.extra, "negative_prompt": self.negative_prompts})

    def _size(self, pipe: Pipeline) -> tuple[int, int]:
        """Height and width in pixels."""
        own = default_size(pipe)
        return self.height or own.height, self.width or own.width

    def _encode(self, pipe: Pipeline, ledger: Ledger) -> Conditioning:
        guided, negatives = self._guided(pipe), self.negative_prompts
        ledger.encoded = len(set(self.prompts))
        if guided:
            ledger.encoded += 1 if isinstance(negatives, str | None) else len(set(negatives))
        options = {**self.extra, **self.encoding}
        return encode_prompts(pipe, self.prompts, negatives, guidance=guided, clip_skip=self.clip_skip, options=options)

    def _prices(self, pipe: Pipeline, conditioning: Conditioning, ledger: Ledger, known: Prices) -> Prices:
        size = self._size(pipe)

        def tried() -> None:
            ledger.calibration_calls += 1

        return pipeline_flops(
            pipe,
            latent_shape(pipe, size),
            conditioning.positive,
            guidance=self._guided(pipe),
            verify=known.verify,
            preview=self.preview_vae,
            size=size,
            encode=known.encode,
            on_trial=tried,
        )

    def _micro_batch(self, pipe: Pipeline, n: int) -> int:
        if self.micro_batch == "auto":
            return auto_size(pipe._execution_device)
        if self.micro_batch is not None:
            return self.micro_batch
        most = MICRO_BATCH.get(pipe._execution_device.type, ACCELERATOR_MICRO_BATCH)
        return most if self.budget is not None else min(most, n * len(self.prompts))
