"""Where the candidates' noise comes from: a run's seed, seeds, or generators of the user's."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from diffkit import parallel
from diffkit.conditioning import Conditioning
from diffkit.errors import InputError
from diffkit.families import Pipeline, any_family_of
from diffkit.seeds import MAX_SEED, candidate_seed, check_seed, check_seeds, generators
from diffkit.segments import Candidate, Denoising, run_segment

__all__ = ["Noise", "Recipe", "mix", "replay"]


@dataclass(frozen=True)
class Noise:
    """At most one of its attributes is given; a run's seed is drawn from torch's global generator when none is.

    With one candidate for each prompt, generators are used as the stock pipeline uses them; see :meth:`candidates`.

    Attributes:
        generator: one that draws the seeds of all candidates; a list with one for each prompt, which draws the seeds
            of its candidates; or a list with one for each candidate, prompt by prompt.
        seed: of the run; see :func:`diffkit.seeds.candidate_seed`.
        seeds: of the candidates, the same for every prompt.
        first_prompt: the first prompt's number in the run, when a long list of prompts is searched in parts.
        together: whether one generator draws the noise of several prompts' only candidates, as in a batch of the stock
            pipeline; else it draws their seeds.
    """

    generator: torch.Generator | Sequence[torch.Generator] | None = None
    seed: int | None = None
    seeds: Sequence[int] | None = None
    first_prompt: int = 0
    together: bool = True

    def __post_init__(self) -> None:
        """Seeds as plain integers, also from numpy.

        Raises:
            InputError: more than one source of noise, or no valid or distinct seeds.
        """
        if sum(given is not None for given in (self.generator, self.seed, self.seeds)) > 1:
            raise InputError("Give only one of generator, seed and seeds.")
        if self.seed is not None:
            object.__setattr__(self, "seed", check_seed(self.seed))
        if self.seeds is not None:
            object.__setattr__(self, "seeds", check_seeds(self.seeds))

    def fixed_count(self, prompts: int) -> int | None:
        """How many candidates for each prompt the seeds or generators stand for; None for any number.

        Raises:
            InputError: generators that do not divide, or one of them twice.
        """
        if self.seeds is not None:
            return len(self.seeds)
        listed = self._listed
        if listed is None:
            return None
        if not listed or len(listed) % prompts or any(not isinstance(item, torch.Generator) for item in listed):
            raise InputError(
                f"generator must be a torch.Generator, or a list with one for each of the {prompts} prompts or for "
                f"each candidate of each prompt."
            )
        if len({id(generator) for generator in listed}) < len(listed):
            raise InputError("generator lists the same torch.Generator twice; give each candidate one of its own.")
        return None if len(listed) == prompts else len(listed) // prompts

    @property
    def _listed(self) -> list[torch.Generator] | None:
        """The user's list of generators; None where there is none."""
        if self.generator is None or isinstance(self.generator, torch.Generator):
            return None
        try:
            return list(self.generator)
        except TypeError:
            return []

    def draws_together(self, prompts: int, n: int | None) -> bool:
        """Whether the noise of several prompts comes from one generator as in a batch of the stock pipeline."""
        return n == 1 and prompts > 1 and self.together and isinstance(self.generator, torch.Generator)

    def agreed(self) -> Noise:
        """The same for all processes of a launch, which call it alike: a run's seed is the first one's draw.

        Generators of the user's must stand in the same state on all of them.
        """
        if self.generator is None and self.seed is None and self.seeds is None:
            return replace(self, seed=parallel.broadcast(_drawn_seed()))
        return self

    def candidates(self, prompts: int, n: int) -> list[Candidate]:
        """``n`` fresh candidates for each prompt, prompt by prompt.

        One candidate draws from the user's generator itself, and all prompts' from the same one where there is only
        one, so that the images are the stock pipeline's. Several candidates draw from seeds that it has drawn.
        """
        listed = self._listed
        if n == 1 and isinstance(self.generator, torch.Generator) and (prompts == 1 or self.together):
            together = self.generator.clone_state()
            seed = _seed_of(together) if prompts == 1 else None
            return [Candidate(0, prompt, together, seed) for prompt in range(prompts)]
        if listed is not None and len(listed) == prompts * n:
            return [
                Candidate(index % n, index // n, generator.clone_state(), _seed_of(generator))
                for index, generator in enumerate(listed)
            ]
        seeds = self._seeds(prompts, n)
        return [
            Candidate(index % n, index // n, generator, seed)
            for index, (seed, generator) in enumerate(zip(seeds, generators(seeds), strict=True))
        ]

    def advance(self, finished: Sequence[Candidate]) -> None:
        """Leave the user's generators where the stock pipeline would, where one candidate of each prompt drew from it.

        Args:
            finished: one of each prompt.
        """
        if isinstance(self.generator, torch.Generator) and len(finished) > 1 and not self.together:
            return  # it drew seeds
        own = [self.generator] if isinstance(self.generator, torch.Generator) else self._listed or []
        for generator, candidate in zip(own, finished, strict=False):
            generator.set_state(candidate.generator.get_state())

    def _seeds(self, prompts: int, n: int) -> list[int]:
        if self.seeds is not None:
            return [*self.seeds] * prompts
        if isinstance(self.generator, torch.Generator):
            return _drawn_seeds(self.generator, prompts * n)
        if self._listed is not None:
            return [seed for generator in self._listed for seed in _drawn_seeds(generator, n)]
        run_seed = _drawn_seed() if self.seed is None else self.seed
        numbers = range(self.first_prompt, self.first_prompt + prompts)
        return [candidate_seed(run_seed, prompt, index) for prompt in numbers for index in range(n)]


def _drawn_seed() -> int:
    return int(torch.randint(2**31, ()))


def _drawn_seeds(generator: torch.Generator, n: int) -> list[int]:
    """Seeds that a generator draws, all exact in a float64."""
    drawn = torch.randint(2**53, (n,), generator=generator, device=generator.device)
    return [int(seed) for seed in drawn]


def _seed_of(generator: torch.Generator) -> int | None:
    """The seed that reproduces a generator, None when it has been used already or draws on another device."""
    if generator.device.type != "cpu":
        return None
    seed = generator.initial_seed()
    fresh = torch.Generator().manual_seed(seed)
    return seed if 0 <= seed <= MAX_SEED and torch.equal(fresh.get_state(), generator.get_state()) else None


@dataclass(frozen=True)
class Recipe:
    """Where the initial noise and the noise of a stochastic sampler come from.

    Attributes:
        seeds: the first draws the initial noise; each later one draws fresh noise that is mixed in, see :func:`mix`.
            The generator of the last seed goes on to serve the sampler.
        distance: how far each mixing goes, in (0, 1].
        reseeded: pairs (call, seed): from that denoiser call on the sampler's noise comes from that seed.
    """

    seeds: tuple[int, ...]
    distance: float = 0.0
    reseeded: tuple[tuple[int, int], ...] = ()

    def noise(self, shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, torch.Generator]:
        """The initial noise (1, C, h, w), standard normal, and the generator that goes on from there."""
        sources = generators(self.seeds)
        drawn = [torch.randn(shape, generator=source, dtype=dtype) for source in sources]
        noise = drawn[0]
        for fresh in drawn[1:]:
            noise = mix(noise, fresh, self.distance)
        return noise, sources[-1]

    def to_dict(self) -> dict[str, object]:
        """Everything, ready for JSON."""
        return {
            "seeds": list(self.seeds),
            "distance": self.distance,
            "reseeded": [list(change) for change in self.reseeded],
        }


def mix(noise: Tensor, fresh: Tensor, distance: float) -> Tensor:
    """A neighbour of standard normal ``noise``, itself standard normal: sqrt(1 - d^2) noise + d fresh.

    Its correlation with ``noise`` is sqrt(1 - d^2): distance 0 is the noise itself, 1 is all fresh.
    """
    return noise * math.sqrt(1 - distance**2) + fresh * distance


def replay(
    recipe: Recipe,
    pipe: Pipeline,
    conditioning: Conditioning,
    denoising: Denoising,
    shape: tuple[int, ...],
    calls: int,
    call: Callable[..., Any] | None = None,
) -> Candidate:
    """The finished candidate of a recipe, for the first prompt of ``conditioning``.

    Args:
        shape: of one candidate's noise before any packing, (1, C, h, w).
        calls: denoiser calls of the whole denoising.
        call: runs the stock pipeline, ``pipe`` itself by default.
    """
    family = any_family_of(pipe)
    if family.prepared_again:  # the pipeline draws all noise from the seed's generator itself
        [drawn] = generators(recipe.seeds)
        candidate = Candidate(0, 0, drawn, recipe.seeds[0])
    else:
        noise, generator = recipe.noise(shape, family.noise_dtype or conditioning.prompt_embeds.dtype)
        candidate = Candidate(0, 0, generator, recipe.seeds[0], latents=family.pack(pipe, noise))
    bounds = [0, *(step for step, _ in recipe.reseeded), calls]
    sources = [None, *generators(seed for _, seed in recipe.reseeded)]
    for start, stop, source in zip(bounds, bounds[1:], sources, strict=False):
        if source is not None:
            candidate = replace(candidate, generator=source)
        [candidate] = run_segment(pipe, [candidate], conditioning, denoising, start, stop, call=call)
    return candidate
