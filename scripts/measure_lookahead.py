"""Which big steps look ahead best: solver, spacing and first step, by how well the plain reward then ranks seeds.

    python scripts/measure_lookahead.py [--prompts 20] [--candidates 24] [--json docs/figures/lookahead.json]

On ``lab-trio`` (20 steps of DDIM, guidance 3) and training captions. Candidates are denoised to the end, and after the
first and the second step looked ahead of in several ways, each by the same number of calls. Rank correlation (Kendall's
tau) of the reward of the image ahead with that of the finished image, mean over captions, with an interval over
captions, paired with the way that the package takes: that goes from the estimate that is there to the first big step,
at steps spaced equally in index with twice the space behind the last, by DPM-Solver++(2M).
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffkit.conditioning import encode_prompts
from diffkit.lab.trio import training_trios
from diffkit.latents import decode_latents
from diffkit.loading import load_pipeline
from diffkit.lookahead import ddim_step, extrapolated
from diffkit.noise_levels import latent_coefficients
from diffkit.parameterization import Coefficients, x0_of_output
from diffkit.rewards import load_reward
from diffkit.seeds import candidate_seed, generators
from diffkit.stats import bootstrap_mean
from ttsnap.alignment import kendall

Floats = NDArray[np.float64]
STEPS, GUIDANCE, SEED = 20, 3.0, 5
LOOKS = ((0, 3), (1, 2), (1, 3))


class Way(NamedTuple):
    """How to look ahead."""

    second_order: bool
    spacing: str
    free_start: bool  # the estimate that is there leads to the first big step, without a call


TWICE, EQUAL, LOG_SNR = "index, twice behind the last", "index", "log-SNR"
PACKAGE = Way(True, TWICE, True)
WAYS = [Way(*way) for way in itertools.product((True, False), (TWICE, EQUAL, LOG_SNR), (True, False))]


class Lab:
    """A pipeline of the lab, and candidates of one caption at a time."""

    def __init__(self, model: str = "lab-trio", device: str = "cpu") -> None:
        self.pipe = load_pipeline(model, dtype="float32", device=device)
        self.pipe.scheduler.set_timesteps(STEPS)
        self.levels = [latent_coefficients(self.pipe.scheduler, step) for step in range(STEPS)]
        self.log_snr = [float((level.signal / level.noise).log()) for level in self.levels]

    def text(self, caption: str) -> Tensor:
        """(2, L, D) embeddings of the empty text and of the caption, as :meth:`estimate` takes them."""
        encoded = encode_prompts(self.pipe, [caption], guidance=True)
        assert encoded.negative is not None
        return torch.cat([encoded.negative.prompt_embeds, encoded.positive.prompt_embeds])

    def noise(self, prompt: int, candidates: int, seed: int = SEED) -> Tensor:
        """Initial noise of each candidate, as a search draws it."""
        config = self.pipe.unet.config
        shape = (1, config.in_channels, config.sample_size, config.sample_size)
        seeds = [candidate_seed(seed, prompt, index) for index in range(candidates)]
        drawn = [torch.randn(shape, generator=generator) for generator in generators(seeds)]
        return torch.cat(drawn).to(self.pipe.device)

    def estimate(self, latents: Tensor, step: int, text: Tensor) -> Tensor:
        """x0 by one call with guidance."""
        timestep = self.pipe.scheduler.timesteps[step]
        given = text.repeat_interleave(len(latents), 0)
        output = self.pipe.unet(latents.repeat(2, 1, 1, 1), timestep, encoder_hidden_states=given).sample
        without, with_text = output.chunk(2)
        guided = without + GUIDANCE * (with_text - without)
        return x0_of_output(self.pipe.scheduler, guided, latents, self.levels[step])

    def denoising(self, latents: Tensor, text: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Each step from the initial noise on, the latents that the next one gets (of the last its own), and its x0."""
        for step in range(STEPS):
            x0 = self.estimate(latents, step, text)
            if step + 1 < STEPS:
                latents = ddim_step(latents, x0, self.levels[step], self.levels[step + 1])
            yield step, latents, x0

    def big_steps(self, start: int, calls: int, way: Way) -> list[int]:
        """Where the denoiser is called, after ``start`` where that costs no call, else from there on."""
        parts = calls + way.free_start
        if way.spacing != LOG_SNR:
            whole = parts + (way.spacing == TWICE)
            steps = [start + part * (STEPS - start) // whole for part in range(parts)]
        else:
            end = 2 * self.log_snr[-1] - self.log_snr[-2]
            steps = []
            for target in np.linspace(self.log_snr[start], end, parts, endpoint=False):
                nearest = min(range(STEPS), key=lambda step: abs(self.log_snr[step] - target))
                steps.append(max(nearest, steps[-1] + 1) if steps else nearest)
        return steps[way.free_start :]

    def ahead(self, latents: Tensor, before: Tensor, start: int, calls: int, way: Way, text: Tensor) -> Tensor:
        """The estimate of the last of the calls."""
        steps = self.big_steps(start, calls, way)
        if way.free_start:
            latents = ddim_step(latents, before, self.levels[start], self.levels[steps[0]])
        level: Coefficients = self.levels[start - 1]
        for step, then in itertools.pairwise(steps):
            x0 = self.estimate(latents, step, text)
            levels = (level, self.levels[step], self.levels[then])
            lead = extrapolated(x0, before, levels) if way.second_order else x0
            latents = ddim_step(latents, lead, self.levels[step], self.levels[then])
            before, level = x0, self.levels[step]
        return self.estimate(latents, steps[-1], text)


@torch.no_grad()
def taus(lab: Lab, reward: Any, caption: str, prompt: int, candidates: int) -> dict[tuple[tuple[int, int], Way], float]:
    """Rank correlation of each look and way on one caption."""
    text = lab.text(caption)
    estimates: dict[tuple[tuple[int, int], Way], Tensor] = {}
    for step, latents, x0 in lab.denoising(lab.noise(prompt, candidates), text):
        for look, way in itertools.product([look for look in LOOKS if look[0] == step], WAYS):
            estimates[look, way] = lab.ahead(latents, x0, step + 1, look[1], way, text)

    def scores(clean: Tensor) -> Floats:
        return np.asarray(reward.score(decode_latents(lab.pipe, clean), [caption] * candidates), dtype=np.float64)

    final = scores(x0)
    return {key: float(kendall(scores(clean), final)) for key, clean in estimates.items()}


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=20)
    parser.add_argument("--candidates", type=int, default=24)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    lab, reward = Lab(), load_reward("lab-trio")
    captions = [scene.caption for scene in training_trios(given.prompts, seed=SEED)]
    measured = [taus(lab, reward, caption, index, given.candidates) for index, caption in enumerate(captions)]
    rows = []
    for look, way in itertools.product(LOOKS, WAYS):
        values = [row[look, way] for row in measured]
        gains = [row[look, way] - row[look, PACKAGE] for row in measured]
        rows.append({"step": look[0], "calls": look[1], **way._asdict(), "tau": float(np.mean(values)),
                     "interval": list(bootstrap_mean(values)), "over the package's way": float(np.mean(gains)),
                     "interval of that": list(bootstrap_mean(gains))})  # fmt: skip
    text = json.dumps({"n": given.prompts, "candidates": given.candidates, "rows": rows}, indent=1)
    print(text)
    if given.json:
        given.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
