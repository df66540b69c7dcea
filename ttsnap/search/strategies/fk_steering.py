"""Feynman-Kac steering: particles that a reward finds promising are copied in mid-denoising, others die.

Singhal et al. 2025 (arXiv 2501.06848). At each look a particle's weight is multiplied by a potential made of its
reward; when the effective sample size has fallen below a share of the particles, they are resampled by weight and all
weights become equal. Where we differ from the authors' code: weights and the product of potentials are carried on when
no resampling happens (there they are dropped, which biases the adaptive scheme), everything is in logarithms (there
``exp(lambda r)`` is clamped at 1e10), and copies get fresh noise of their own, from seeds that are reported.

Copies only part where the sampler adds noise, so a deterministic sampler is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from diffkit.errors import InputError
from diffkit.seeds import candidate_seed, generators
from diffkit.segments import Candidate
from diffkit.solvers import draws_noise
from ttsnap.schedules.pruning_schedule import PruningSchedule
from ttsnap.search.budget import affordable
from ttsnap.search.noise import Recipe
from ttsnap.search.session import Engine, Look, Winner
from ttsnap.search.strategies.base import Strategy

__all__ = ["FKSteering", "Particles", "effective_size", "fk_steering", "is_stochastic", "systematic"]

Potential = Literal["difference", "max"]


def effective_size(log_weights: Tensor) -> float:
    """Effective sample size (sum w)^2 / sum w^2 of (n,) log-weights, in [1, n]; 0 when all weights are 0."""
    if not torch.isfinite(log_weights).any():
        return 0.0
    return float((2 * log_weights.logsumexp(0) - (2 * log_weights).logsumexp(0)).exp())


def systematic(log_weights: Tensor, uniform: float) -> list[int]:
    """Parents of n new particles by systematic resampling: expected number of copies n w_i / sum w.

    Args:
        log_weights: (n,), -inf for a dead particle, at least one finite.
        uniform: one number in [0, 1).
    """
    n = len(log_weights)
    share = torch.softmax(log_weights.double(), 0).cumsum(0)
    share[-1] = 1.0  # whatever the rounding
    places = (torch.arange(n, dtype=torch.float64) + uniform) / n
    parents = torch.searchsorted(share, places, right=True).clamp(max=n - 1)
    alive = torch.isfinite(log_weights).nonzero().flatten()
    return [int(parent) if torch.isfinite(log_weights[parent]) else int(alive[-1]) for parent in parents]


@dataclass
class Particles:
    """Weights of the particles of one prompt; all figures are logarithms, (n,) float64.

    Attributes:
        n: number of particles.
        strength: lambda, how much one unit of reward counts; potentials are exp(lambda r).
        potential: ``difference``: exp(lambda (r_t - r_before)); ``max``: exp(lambda max of all rewards so far).
        weights: since the last resampling.
        product: of all potentials along each particle's path.
    """

    n: int
    strength: float = 10.0
    potential: Potential = "difference"
    weights: Tensor = field(init=False)
    product: Tensor = field(init=False)
    _rewards: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.weights = torch.zeros(self.n, dtype=torch.float64)
        self.product = torch.zeros(self.n, dtype=torch.float64)
        start = 0.0 if self.potential == "difference" else -torch.inf
        self._rewards = torch.full((self.n,), start, dtype=torch.float64)

    def weigh(self, rewards: Sequence[float]) -> None:
        """Multiply the weights by the potentials of these rewards (higher is better); NaN is weight 0."""
        scaled = self.strength * torch.tensor(rewards, dtype=torch.float64)
        if self.potential == "difference":
            step, self._rewards = scaled - self._rewards, scaled
        else:
            step = self._rewards = torch.maximum(scaled, self._rewards)
        self._multiply(step)

    def close(self, rewards: Sequence[float]) -> None:
        """The last potential, which makes the product of all of them exp(lambda r) of the finished image."""
        self._multiply(self.strength * torch.tensor(rewards, dtype=torch.float64) - self.product)

    def _multiply(self, step: Tensor) -> None:
        step = torch.nan_to_num(step, nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
        self.weights = self.weights + step
        self.product = self.product + step

    def resample(self, uniform: float) -> list[int]:
        """Parents of the new particles; weights become equal, products and rewards go along."""
        parents = systematic(self.weights, uniform)
        self.product, self._rewards = self.product[parents], self._rewards[parents]
        self.weights = torch.zeros(self.n, dtype=torch.float64)
        return parents


def is_stochastic(engine: Engine) -> bool:
    """Whether the sampler adds noise while it denoises."""
    return draws_noise(engine.pipe.scheduler, engine.denoising.eta)


@dataclass(frozen=True)
class FKSteering:
    """Steer particles.

    Attributes:
        strength: lambda, per unit of reward.
        potential: see :class:`Particles`.
        threshold: resample when the effective size falls below this share of the particles.
        looks: number of looks, evenly spread.
    """

    name: str = "fk"
    strength: float = 10.0
    potential: Potential = "difference"
    threshold: float = 0.5
    looks: int = 4

    def check(self, engine: Engine) -> None:
        """Refuse a deterministic sampler, and looks where there is nothing to see.

        Raises:
            InputError: the sampler adds no noise or cannot be cut, or a look comes after a blind step.
        """
        if not is_stochastic(engine):
            raise InputError(
                f"{self.name} copies particles in mid-denoising, and {type(engine.pipe.scheduler).__name__} at eta "
                f"{engine.denoising.eta:g} is deterministic: all copies would end as one image; use DDIM with eta "
                f"above 0, or EulerAncestralDiscreteScheduler."
            )
        engine.plan.check_looks(self.schedule(engine.plan.calls).steps)

    def schedule(self, calls: int) -> PruningSchedule:
        """Looks at all particles; none is dropped."""
        steps = sorted({round(calls * part / (self.looks + 1)) - 1 for part in range(1, self.looks + 1)})
        steps = [step for step in steps if 0 <= step < calls - 1]
        return PruningSchedule(tuple(steps), (1.0,) * len(steps))

    def run(self, engine: Engine, limit: float) -> list[list[Winner]]:
        """Steer as many particles as ``limit`` pays for; the winners are the best finished images."""
        self.check(engine)
        schedule = self.schedule(engine.plan.calls)
        n = affordable(engine, limit, schedule, at_least=engine.winners)
        alive = engine.noise.candidates(len(engine.prompts), n)
        flock = Flock(self, engine, alive, n)
        stages = schedule.stages(n, engine.plan.calls)
        for stage in stages[:-1]:
            alive = engine.denoise(alive, stage.start, stage.stop)
            alive = flock.steer(alive, engine.estimate(alive))
        winners = engine.finish(engine.denoise(alive, stages[-1].start, stages[-1].stop))
        engine.notes["steering"] = flock.notes
        return [[winner._replace(recipe=flock.recipe(winner.candidate)) for winner in best] for best in winners]


class Flock:
    """The particles of all prompts, with where their noise comes from."""

    def __init__(self, steering: FKSteering, engine: Engine, alive: Sequence[Candidate], n: int) -> None:
        self.steering, self.engine, self.n = steering, engine, n
        seeds = [candidate.seed for candidate in alive if candidate.seed is not None]
        if len(seeds) < len(alive):
            raise InputError(f"{steering.name} must be able to name the seeds of its noise; give seed= for the run.")
        self.slots = {(candidate.prompt, candidate.index): seed for candidate, seed in zip(alive, seeds, strict=True)}
        self.recipes = {slot: Recipe((seed,)) for slot, seed in self.slots.items()}
        self.particles = [Particles(n, steering.strength, steering.potential) for _ in engine.prompts]
        self.notes: list[dict[str, object]] = []

    def recipe(self, particle: Candidate) -> Recipe | None:
        """How a particle's noise came about; None when its seed alone says it."""
        recipe = self.recipes[particle.prompt, particle.index]
        return recipe if recipe.reseeded else None

    def steer(self, alive: Sequence[Candidate], look: Look) -> list[Candidate]:
        """Weigh the particles of each prompt and resample them where the weights have become too uneven."""
        sign = 1.0 if self.engine.reward.higher_is_better else -1.0
        following, recipes = [], {}
        for prompt, particles in enumerate(self.particles):
            rows = self.engine.rows(alive, prompt)
            particles.weigh([sign * look.scores[row] for row in rows])
            size = effective_size(particles.weights)
            resampled = 0 < size < self.steering.threshold * self.n or not torch.isfinite(particles.weights).all()
            self.notes.append({"prompt": prompt, "effective_size": size, "resampled": bool(size and resampled)})
            step = alive[rows[0]].step
            parents = list(range(self.n)) if not (size and resampled) else particles.resample(self._draw(prompt, step))
            chosen = [alive[rows[parent]] for parent in parents]
            self.engine.record(prompt, alive, look, chosen if size else [])
            for slot, parent in enumerate(parents):
                copy, recipe = self._copy(chosen[slot], slot, first=parents.index(parent) == slot)
                following.append(copy)
                recipes[prompt, slot] = recipe
        self.recipes = recipes
        self.engine.progress.recipes = {slot: recipe for slot, recipe in recipes.items() if recipe.reseeded}
        return following

    def _draw(self, prompt: int, step: int) -> float:
        """The random number of a resampling: from the first particle's seed and the step."""
        [source] = generators([candidate_seed(self.slots[prompt, 0], step, 1)])
        return float(torch.rand((), generator=source, dtype=torch.float64))

    def _copy(self, parent: Candidate, slot: int, *, first: bool) -> tuple[Candidate, Recipe]:
        """The particle of a slot: the parent itself, or a copy with fresh noise from the slot's seed and the step."""
        recipe = self.recipes[parent.prompt, parent.index]
        if first:
            return replace(parent, index=slot), recipe
        seed = candidate_seed(self.slots[parent.prompt, slot], parent.step, 0)
        reseeded = replace(recipe, reseeded=(*recipe.reseeded, (parent.step, seed)))
        return replace(parent, index=slot, generator=generators([seed])[0]), reseeded


def fk_steering(schedule: PruningSchedule | None = None) -> Strategy:
    """Feynman-Kac steering with the authors' difference potential."""
    return FKSteering()
