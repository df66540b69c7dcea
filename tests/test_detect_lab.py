"""On the lab, whose memories are known: who was planted stands out, and the twin that never saw them shows nothing."""

from __future__ import annotations

import pytest

from diffkit.lab import planted, world
from diffkit.loading import load_pipeline
from diffkit.stats import auc
from memorization.detection import make_detector
from memorization.detection.score_captions import score_captions
from memorization.generation import Sampling

SAMPLING = Sampling(num_inference_steps=10, guidance_scale=3.0, micro_batch=9)


def separation(model: str) -> float:
    """How often a full-strength verbatim caption beats a scene or a never-trained photograph's caption."""
    pipe = load_pipeline(model)
    pipe.set_progress_bar_config(disable=True)
    known = [p.text for p in planted.planted() if (p.kind, p.strength) == ("verbatim", "full")][:3]
    others = [scene.caption for scene in world.held_out_scenes(3, seed=404)] + planted.control_captions()[:3]
    captions = [*known, *others]
    found = score_captions(pipe, captions, make_detector("seed_agreement"), [[1]] * len(captions), sampling=SAMPLING)
    values = [score.value for score in found if score.value is not None]
    assert len(values) == len(captions)
    return auc(values[:3], values[3:])


@pytest.mark.parametrize(("model", "at_least", "at_most"), [("lab", 1.0, 1.0), ("lab-clean", 0.0, 0.9)])
def test_seed_agreement_finds_what_was_planted_and_only_where_it_was(
    model: str, at_least: float, at_most: float
) -> None:
    assert at_least <= separation(model) <= at_most
