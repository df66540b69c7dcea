"""Search among the neighbours of a noise: inference-time scaling of Ma et al. 2025 (arXiv 2501.09732), section 3.

``zero-order``: the best of a first handful of seeds is the pivot; each round tries some neighbours of it, and the best
of them is the next pivot if it is better. ``random``: half of the budget goes to fresh seeds, the other half to
neighbours of the best of them, which does not move any more. Every candidate is denoised to the end. A prompt without
a pivot yet, because none of its candidates could be scored, goes on with fresh seeds.

The paper adds noise of a fixed distance; here neighbours are mixed so that they stay standard normal noise
(:func:`ttsnap.search.noise.mix`), else they would leave the law that the denoiser was trained on.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from diffkit.errors import InputError
from diffkit.families import any_family_of
from diffkit.segments import Candidate
from ttsnap.schedules.pruning_schedule import PruningSchedule
from ttsnap.search.budget import affordable
from ttsnap.search.noise import Recipe, mix
from ttsnap.search.session import Engine, Winner
from ttsnap.search.strategies.base import Strategy, check_winners
from ttsnap.search.trace import winner_of

__all__ = ["Neighbours", "random_neighbours", "zero_order"]


@dataclass(frozen=True)
class _Pivot:
    """The best candidate of a prompt so far."""

    noise: Tensor
    recipe: Recipe
    score: float
    flagged: bool


@dataclass(frozen=True)
class Neighbours:
    """Search among neighbours.

    Attributes:
        moving: whether the pivot moves from round to round (zero-order) or stays the best of the first half (random).
        per_round: candidates of a round when it moves.
        distance: of a neighbour, in (0, 1]; 0.3 is a correlation of 0.95 with the pivot.
    """

    name: str
    moving: bool
    per_round: int = 4
    distance: float = 0.3

    def __post_init__(self) -> None:
        if not 0 < self.distance <= 1:
            raise InputError(f"The distance of neighbours must lie in (0, 1], got {self.distance}.")
        if self.per_round < 1:
            raise InputError(f"A round needs at least one candidate, got {self.per_round}.")

    def check(self, engine: Engine) -> None:
        """Any reward will do, and any pipeline to which the initial noise can be given.

        Raises:
            InputError: the pipeline draws it itself.
        """
        family = any_family_of(engine.pipe)
        if family.prepared_again:
            raise InputError(
                f"The search {self.name!r} mixes initial noise, and a {family.pipeline} draws its own beside a "
                f"picture; prune, look ahead or use best-of-N."
            )

    def rounds(self, n: int) -> list[range]:
        """Which candidates, of ``n`` in all, are tried together."""
        if not self.moving:
            first = (n + 1) // 2
            return [part for part in (range(first), range(first, n)) if part]
        return [range(start, min(start + self.per_round, n)) for start in range(0, n, self.per_round)]

    def run(self, engine: Engine, limit: float) -> list[list[Winner]]:
        """Try as many candidates as best-of-N would.

        Raises:
            InputError: the limit does not pay for one candidate.
            ScoringError: a prompt has fewer scored images than asked for.
        """
        prompts = len(engine.prompts)
        n = affordable(engine, limit, PruningSchedule(), at_least=engine.winners)
        fresh = engine.noise.candidates(prompts, n)
        pivots: list[_Pivot | None] = [None] * prompts
        winners: list[list[Winner]] = [[] for _ in range(prompts)]
        for number, part in enumerate(self.rounds(n)):
            started = [
                self._start(engine, fresh[prompt * n + index], pivots[prompt])
                for prompt in range(prompts)
                for index in part
            ]
            done = engine.denoise([candidate for candidate, _ in started], 0, engine.plan.calls)
            look = engine.judge(done)
            for prompt in range(prompts):
                ranked = engine.scorer.ranked(look, engine.rows(done, prompt))
                winning = engine.winning(look, engine.rows(done, prompt))
                finalists = [winner_of(done, look, row, started[row][1]) for row in winning]
                engine.record(prompt, done, look, [winner.candidate for winner in finalists], needed=0)
                winners[prompt] = engine.best([*winners[prompt], *finalists])
                if ranked and (self.moving or not number):
                    noise = started[ranked[0]][0].latents
                    pivots[prompt] = _better(engine, pivots[prompt], noise, finalists[0])
        check_winners(engine, winners)
        return winners

    def _start(self, engine: Engine, fresh: Candidate, pivot: _Pivot | None) -> tuple[Candidate, Recipe]:
        """A candidate with its initial noise, fresh or near the pivot, and how that came about."""
        if fresh.seed is None:
            raise InputError(f"{self.name} must be able to name the seeds of its noise; give seed= for the run.")
        recipe = Recipe((fresh.seed,), self.distance)
        noise, generator = engine.draw(recipe)
        if pivot is not None:
            noise = mix(pivot.noise, noise, self.distance)
            recipe = replace(recipe, seeds=(*pivot.recipe.seeds, fresh.seed))
            engine.progress.recipes[fresh.prompt, fresh.index] = recipe
        return replace(fresh, generator=generator, latents=noise), recipe


def _better(engine: Engine, pivot: _Pivot | None, noise: Tensor | None, challenger: Winner) -> _Pivot | None:
    """The better of the pivot and the round's best; the pivot where they are equal."""
    if noise is None or challenger.recipe is None:
        return pivot
    if pivot is not None:
        order = engine.scorer.rank([pivot.score, challenger.score], [pivot.flagged, challenger.flagged])
        if order[0] == 0:
            return pivot
    return _Pivot(noise, challenger.recipe, challenger.score, challenger.flagged)


def random_neighbours(schedule: PruningSchedule | None = None) -> Strategy:
    """Half fresh seeds, half neighbours of the best of them."""
    return Neighbours("random", moving=False)


def zero_order(schedule: PruningSchedule | None = None) -> Strategy:
    """A pivot that moves to its best neighbour."""
    return Neighbours("zero-order", moving=True)
