"""Record the rewards of many seeds on a model of the lab: at early estimates, at images ahead, and in the end.

    python scripts/record_lookahead.py lab-trio --out runs/lookahead-trio.npz [--prompts 100] [--candidates 96]
    diffkit ttsnap fit runs/lookahead-trio.npz --budgets 2x,4x,8x,16x,24x --cuts 3 --out ttsnap/lab-trio/lookahead.json

So ``lab-trio-lookahead`` and ``lab-lookahead`` were made: training captions, 20 steps of DDIM, guidance 3,
and the noise-aware reward that ships on the estimates after each of the first steps, the plain one on the images 1 to 3
calls ahead of them, and the finished images. ``diffkit ttsnap collect --lookahead`` records the same for any pipeline;
this is for an accelerator, where all seeds of a caption run as one batch: 100 captions of 96 seeds take some three
minutes there, and some three hours on a core.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from measure_lookahead import GUIDANCE, PACKAGE, STEPS, Lab
from numpy.typing import NDArray
from torch import Tensor

from diffkit.console import progress
from diffkit.lab.trio import training_trios
from diffkit.lab.world import training_scenes
from diffkit.latents import decode_latents
from diffkit.ledger import Prices
from diffkit.rewards import load_reward
from diffkit.rewards.base import EstimateReward
from ttsnap.reward_tensor import RewardTensor, save_npz

CAPTIONS = {"lab": training_scenes, "lab-trio": training_trios}
#: FLOP as ``collect`` counts them; lab-trio decodes estimates by the preview decoder ``lab``.
PRICES = {
    "lab": Prices(call=1655308288.0, decode=1051951104.0, verify=87925568.0),
    "lab-trio": Prices(call=1217003520.0, decode=1051951104.0, verify=108492672.0, preview=101744640.0),
}
CAPTION_SEED, NOISE_SEED = 177, 79
LOOKS, AHEAD = range(9), tuple(itertools.product(range(7), (1, 2, 3)))  # steps, and (step, calls)


class Recorder:
    """Scores of all seeds of a caption."""

    def __init__(self, model: str, device: str) -> None:
        self.lab, self.reward = Lab(model, device), load_reward(f"{model}-noise-aware")
        assert isinstance(self.reward, EstimateReward)

    @torch.no_grad()
    def scores(self, caption: str, prompt: int, candidates: int) -> Iterator[tuple[str, NDArray[np.float64]]]:
        """("final", "x0.STEP" or "ahead.STEP+CALLS", (candidates,))."""
        lab, captions = self.lab, [caption] * candidates
        text = lab.text(caption)
        for step, latents, x0 in lab.denoising(lab.noise(prompt, candidates, NOISE_SEED), text):
            if step in LOOKS:
                level = 2 * lab.log_snr[step]
                yield f"x0.{step}", _array(self.reward.score_estimates(self._images(x0), captions, level))
            for calls in [calls for at, calls in AHEAD if at == step]:
                clean = lab.ahead(latents, x0, step + 1, calls, PACKAGE, text)
                yield f"ahead.{step}+{calls}", _array(self.reward.score(self._images(clean), captions))
        yield "final", _array(self.reward.score(self._images(x0), captions))

    def _images(self, clean: Tensor) -> Tensor:
        return decode_latents(self.lab.pipe, clean)


def _array(scores: Tensor) -> NDArray[np.float64]:
    return np.asarray(scores.double().cpu())


def tensor(model: str, captions: list[str], scores: dict[str, list[NDArray[np.float64]]], lab: Lab) -> RewardTensor:
    """What was recorded of (P, N) seeds, under the name of the noise-aware reward."""
    stacked = {name: np.stack(rows) for name, rows in scores.items()}
    looks = np.full((*stacked["final"].shape, STEPS), np.nan)
    for step in LOOKS:
        looks[:, :, step] = stacked[f"x0.{step}"]
    return RewardTensor(
        looks, stacked["final"], f"{model}-noise-aware", tuple(np.exp(-np.array(lab.log_snr))), tuple(captions),
        PRICES[model], {(step, calls): stacked[f"ahead.{step}+{calls}"] for step, calls in AHEAD},
    )  # fmt: skip


def main() -> None:
    """Parse, record, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=CAPTIONS)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--candidates", type=int, default=96)
    given = parser.parse_args()
    recorder = Recorder(given.model, "cuda" if torch.cuda.is_available() else "cpu")
    captions = [scene.caption for scene in CAPTIONS[given.model](given.prompts, seed=CAPTION_SEED)]
    scores: dict[str, list[NDArray[np.float64]]] = {}
    with progress("recording", total=len(captions)) as bar:
        for prompt, caption in enumerate(captions):
            for name, row in recorder.scores(caption, prompt, given.candidates):
                scores.setdefault(name, []).append(row)
            bar.advance(1)
    save_npz(given.out, tensor(given.model, captions, scores, recorder.lab))
    print(json.dumps({"prompts": given.prompts, "candidates": given.candidates, "guidance": GUIDANCE}))


if __name__ == "__main__":
    main()
