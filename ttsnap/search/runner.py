"""Denoise candidates in micro-batches, each process its part, and charge to each prompt the calls that ran."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from diffkit.conditioning import Conditioning
from diffkit.families import Pipeline
from diffkit.interruption import DenoisingInterrupted, is_interrupted
from diffkit.ledger import Cost, Ledger
from diffkit.lookahead import look_ahead
from diffkit.micro_batch import MicroBatch
from diffkit.parallel import everyone, interleave, shard
from diffkit.segments import Candidate, Denoising, run_segment
from diffkit.step_noise import global_generators
from ttsnap.search.interruption import Progress

__all__ = ["Runner"]

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
class Runner:
    """Runs candidates through the stock pipeline's loop.

    Attributes:
        call: runs the stock pipeline.
        adaptive: whether micro-batches shrink where memory runs out.
        share: whether each process takes its part of the candidates.
        as_stock: whether this is the stock pipeline's own call, of which a stop leaves half-denoised latents.
        progress: what there is when the denoising is stopped.
        advance: called with the number of calls done for candidates, after each step.
        charge: called with a prompt and what it has cost.
    """

    pipe: Pipeline
    conditioning: Conditioning
    denoising: Denoising
    call: Callable[..., Any]
    ledger: Ledger
    progress: Progress
    advance: Callable[[int], object]
    charge: Callable[[int, Cost], None]
    adaptive: bool = False
    share: bool = False
    as_stock: bool = False

    def __post_init__(self) -> None:
        """Micro-batches of the denoising's size."""
        self.batches = MicroBatch(self.denoising.micro_batch, adaptive=self.adaptive, what="candidates to denoise")

    def segment(self, alive: Sequence[Candidate], start: int, stop: int, *, last: bool) -> list[Candidate]:
        """Run candidates from call ``start`` to before call ``stop``.

        Args:
            last: whether they are finished then, so that those that are done when the pipeline is told to stop are
                kept.

        Raises:
            DenoisingInterrupted: the pipeline was told to stop.
        """

        def segment(batch: Sequence[Candidate], denoising: Denoising, count: OnStep) -> list[Candidate]:
            before = global_generators(self.pipe._execution_device) if self.as_stock else []
            done = run_segment(
                self.pipe, batch, self.conditioning, denoising, start, stop, call=self.call, on_step=count
            )
            after = global_generators(self.pipe._execution_device) if self.as_stock else []
            seeded = all(map(torch.equal, before, after))
            return done if seeded else [replace(candidate, seed=None) for candidate in done]

        return self._run(alive, segment, self.progress.unjudged.extend if last else None)

    def look_ahead(self, alive: Sequence[Candidate], calls: int) -> list[Tensor]:
        """Estimates of candidates' clean latents after so many calls more; the candidates stay where they are."""

        def ahead(batch: Sequence[Candidate], denoising: Denoising, count: OnStep) -> list[Tensor]:
            return look_ahead(self.pipe, batch, self.conditioning, denoising, calls, call=self.call, on_step=count)

        return self._run(alive, ahead)

    def _run(
        self, alive: Sequence[Candidate], work: Work[R], keep: Callable[[list[R]], object] | None = None
    ) -> list[R]:
        """Work in micro-batches.

        Args:
            keep: takes what was done before the pipeline was told to stop.

        Raises:
            DenoisingInterrupted: see there; of every process when it was one of them.
        """
        own = shard(alive) if self.share else list(alive)
        mine = _Share[R]()
        with self.ledger.clock("denoiser"):
            try:
                self._check_running()
                for _, part in self.batches.each(own, lambda batch, size: self._counted(batch, size, work, mine)):
                    mine.done += part
                    if len(mine.done) < len(own):
                        self._check_running()
            except DenoisingInterrupted:
                mine.interrupted = True
            shares = everyone(mine) if self.share else [mine]
        self._charge(shares, mine)
        if any(share.interrupted for share in shares):
            if keep is not None:
                keep([result for share in shares for result in share.done])
            raise DenoisingInterrupted(self.pipe)
        return interleave([share.done for share in shares])

    def _charge(self, shares: Sequence[_Share[R]], mine: _Share[R]) -> None:
        """Write what all processes have run into the ledger, and onto the prompts' accounts."""
        run = sum(share.calls for share in shares)
        self.ledger.calls += run
        self.ledger.padding_calls += sum(share.padding for share in shares)
        self.advance(run - mine.calls)
        for share in shares:
            for prompt, calls in share.charged.items():
                self.charge(prompt, Cost(calls, 0, 0))

    def _check_running(self) -> None:
        if is_interrupted(self.pipe):
            raise DenoisingInterrupted(self.pipe)

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
