"""Does a pruned denoiser look ahead at a lower price? Structured pruning of the lab's network as a draft of lookahead.

    python scripts/measure_pruned_draft.py [--prompts 30] [--json docs/figures/pruned_draft.json]

On ``lab-trio``, 20 steps of DDIM, guidance 3. Candidates are denoised by the whole model; only the big steps ahead of a
look are calls of the draft, which cost its share of the whole model's FLOP. The draft is searched greedily: of all
heads, channels and groups half of one module goes, the one without which Kendall's tau (reward of the image ahead, by
the draft, with that of the finished image, by the whole model) is highest over that of the whole model at the same
number of counted calls, linear between its whole numbers of calls. Then the same difference on other captions, paired
by caption, of every second draft on the way and of one that lost half of every module. The search goes on where it was
cut.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from gallery_measures import denoiser_flops
from measure_lookahead import PACKAGE, Floats, Lab
from measures import Measures
from torch import Tensor

from diffkit.lab.trio import training_trios
from diffkit.latents import decode_latents
from diffkit.mitigation import Mitigation
from diffkit.mitigation.shrink import shrink
from diffkit.rewards import load_reward
from diffkit.stats import bootstrap_mean
from memorization.mitigation.pruning.structured import importances, mask_of_units, prunable_units
from memorization.mitigation.pruning.wanda import input_norms, saliency
from ttsnap.alignment import kendall

LOOK, CALLS = 1, (1, 2, 3, 4)
SEARCHED = 3  # calls of the search
SEARCH_SEED, HELD_OUT_SEED, SEARCH_PROMPTS = 311, 312, 6
CALIBRATED = 4  # candidates of two captions, on which units are ranked
PARTS, ROUNDS = 2, 4  # a module loses its units in so many steps; the search takes so many

Counts = dict[str, int]


class Candidates(NamedTuple):
    """One caption's candidates at the look: latents before the next step, the estimate; and the final rewards."""

    caption: str
    text: Tensor
    latents: Tensor
    estimate: Tensor
    final: Floats


class Drafts:
    """The lab's pipeline, and its units ranked by Wanda on the calls of a generation."""

    def __init__(self, candidates: int) -> None:
        self.lab, self.reward, self.number = Lab(), load_reward("lab-trio"), candidates
        self.units, self.layers = prunable_units(self.lab.pipe)
        norms = input_norms(self.layers, lambda: list(self.denoised(SEARCH_SEED, 2, CALIBRATED)))
        by_weight = {name: saliency(layer.weight, norms[name]) for name, layer in self.layers.items()}
        self.scores = {name: importances(of, by_weight) for name, of in self.units.items()}
        self.whole = denoiser_flops(self.lab.pipe)

    def denoised(self, seed: int, prompts: int, number: int | None = None) -> Iterator[Candidates]:
        """Candidates of captions, by the whole model."""
        for index, scene in enumerate(training_trios(prompts, seed=seed)):
            text = self.lab.text(scene.caption)
            noise = self.lab.noise(index, number or self.number, seed)
            steps = list(self.lab.denoising(noise, text))
            yield Candidates(scene.caption, text, *steps[LOOK][1:], self.rewards(steps[-1][2], scene.caption))

    def rewards(self, clean: Tensor, caption: str) -> Floats:
        """Of clean latents, (n,)."""
        images = decode_latents(self.lab.pipe, clean)
        return np.asarray(self.reward.score(images, [caption] * len(images)), dtype=np.float64)

    def draft(self, counts: Mapping[str, int]) -> AbstractContextManager[object]:
        """In it the pipeline's denoiser is without so many units of each module."""
        if not any(counts.values()):
            return nullcontext()
        full = dict.fromkeys(self.units, 0) | dict(counts)
        tensors = mask_of_units(self.units, self.layers, self.scores, full)
        return shrink(self.lab.pipe, Mitigation("prune", "mask", "lab-trio", tensors=tensors))

    def taus(self, candidates: Candidates, calls: Sequence[int]) -> list[float]:
        """Tau of the rewards so many calls ahead, by the denoiser as it is now, with the final ones."""
        start = (candidates.latents, candidates.estimate, LOOK + 1)
        ahead = [self.lab.ahead(*start, n, PACKAGE, candidates.text) for n in calls]
        return [float(kendall(self.rewards(clean, candidates.caption), candidates.final)) for clean in ahead]

    def curve(self, candidates: Candidates) -> list[float]:
        """Tau of the estimate at the look, and 1, 2, ... calls ahead, by the denoiser as it is now."""
        estimate = self.rewards(candidates.estimate, candidates.caption)
        return [float(kendall(estimate, candidates.final)), *self.taus(candidates, CALLS)]

    def next_step(self, before: Counts, prompts: Sequence[tuple[Candidates, list[float]]]) -> dict[str, Any]:
        """Of the drafts with a part of one module less, the one that gains most at its price.

        Args:
            before: what is off already.
            prompts: with the whole model's :meth:`curve`.
        """
        trials = []
        for name, of in self.units.items():
            counts = before | {name: before.get(name, 0) + max(1, of.number // PARTS)}
            if counts[name] >= of.number:
                continue
            with self.draft(counts):
                price = denoiser_flops(self.lab.pipe) / self.whole
                taus = [self.taus(candidates, [SEARCHED])[0] for candidates, _ in prompts]
            gains = [tau - at_price(curve, SEARCHED * price) for tau, (_, curve) in zip(taus, prompts, strict=True)]
            trials.append(
                {"counts": counts, "price": price, "tau": float(np.mean(taus)), "gain": float(np.mean(gains))}
            )
        return max(trials, key=lambda trial: trial["gain"])

    def thinned(self) -> dict[str, Any]:
        """The draft without that part of every module."""
        counts = {name: of.number // PARTS for name, of in self.units.items()}
        with self.draft(counts):
            return {"counts": counts, "price": denoiser_flops(self.lab.pipe) / self.whole}

    def search(self, measures: Measures) -> list[dict[str, Any]]:
        """The drafts of all steps, each from the one before."""
        prompts: list[tuple[Candidates, list[float]]] = []
        path: list[dict[str, Any]] = []
        for step in range(1, ROUNDS + 1):
            if f"step {step}" not in measures.rows() and not prompts:
                denoised = list(self.denoised(SEARCH_SEED, SEARCH_PROMPTS))
                prompts = [(candidates, self.curve(candidates)) for candidates in denoised]
            before: Counts = path[-1]["counts"] if path else {}
            path.append(measures.add(f"step {step}", partial(self.next_step, before, prompts)))
        return path


def at_price(curve: Sequence[float], calls: float) -> float:
    """The whole model's tau at so many calls, linear between whole numbers."""
    return float(np.interp(calls, range(len(curve)), curve))


def held_out(drafts: Drafts, path: Sequence[Mapping[str, Any]], prompts: int) -> list[dict[str, Any]]:
    """Tau of the whole model and of every draft by calls, and over the whole model's at as many counted calls."""
    prices = [1.0, *(draft["price"] for draft in path)]
    rows: dict[tuple[int, int], list[tuple[float, float]]] = {}
    for candidates in drafts.denoised(HELD_OUT_SEED, prompts):
        curve = drafts.curve(candidates)
        every = [curve[1:]]
        for draft in path:
            with drafts.draft(draft["counts"]):
                every.append(drafts.taus(candidates, CALLS))
        for (place, taus), (column, calls) in product(enumerate(every), enumerate(CALLS)):
            gain = taus[column] - at_price(curve, calls * prices[place])
            rows.setdefault((place, calls), []).append((taus[column], gain))
    return [
        {
            "price": prices[place], "calls": calls, "n": len(values),
            "tau": float(np.mean([tau for tau, _ in values])),
            "over the whole model": float(np.mean([gain for _, gain in values])),
            "interval": list(bootstrap_mean([gain for _, gain in values])),
        }
        for (place, calls), values in rows.items()
    ]  # fmt: skip


@torch.no_grad()
def main() -> None:
    """Search, compare on other captions, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=30)
    parser.add_argument("--candidates", type=int, default=24)
    parser.add_argument("--json", type=Path, default=Path("docs/figures/pruned_draft.json"))
    given = parser.parse_args()
    drafts = Drafts(given.candidates)
    measures = Measures(
        given.json, {"candidates": given.candidates, "prompts": given.prompts, "look": LOOK, "searched": SEARCHED}
    )
    path = drafts.search(measures)
    measures.add("held out", lambda: held_out(drafts, [*path[1::2], drafts.thinned()], given.prompts))


if __name__ == "__main__":
    main()
