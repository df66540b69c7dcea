"""Feynman-Kac steering: weights by closed form on small discrete cases; refusals; copies with noise of their own."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_strategies import STEPS, Brightness, counted
from tiny import tiny_pipeline

from diffkit.conditioning import encode_prompts
from diffkit.errors import InputError
from diffkit.segments import Denoising
from ttsnap import TTSnapPipeline
from ttsnap.search.noise import replay
from ttsnap.search.strategies.fk_steering import FKSteering, Particles, effective_size, systematic

LOG_WEIGHTS = st.lists(st.floats(-30, 30), min_size=1, max_size=20)


@given(LOG_WEIGHTS)
def test_effective_size_by_its_definition(values):
    weights = np.exp(np.array(values))
    assert effective_size(torch.tensor(values, dtype=torch.float64)) == pytest.approx(
        weights.sum() ** 2 / (weights**2).sum(), rel=1e-9
    )


def test_effective_size_of_equal_single_dead_and_huge_weights():
    assert effective_size(torch.zeros(7, dtype=torch.float64)) == pytest.approx(7)
    assert effective_size(torch.tensor([0.0, -math.inf, -math.inf])) == pytest.approx(1)
    assert effective_size(torch.tensor([-math.inf, -math.inf])) == 0
    assert effective_size(torch.tensor([5000.0, 5000.0], dtype=torch.float64)) == pytest.approx(2)


@given(LOG_WEIGHTS, st.floats(0, 1, exclude_max=True))
def test_systematic_copies_are_the_expected_number_rounded_up_or_down(values, uniform):
    weights = np.exp(np.array(values) - max(values))
    expected = len(values) * weights / weights.sum()
    parents = systematic(torch.tensor(values, dtype=torch.float64), uniform)
    copies = np.bincount(parents, minlength=len(values))
    assert copies.sum() == len(values)
    assert (np.abs(copies - expected) < 1 + 1e-6).all()
    assert parents == sorted(parents)


@given(st.floats(0, 1, exclude_max=True))
def test_dead_particles_have_no_children(uniform):
    parents = systematic(torch.tensor([-math.inf, 0.0, -math.inf, 0.0, -math.inf]), uniform)
    assert set(parents) == {1, 3}


@pytest.mark.parametrize("potential", ["difference", "max"])
def test_weights_are_carried_when_nothing_is_resampled(potential):
    """The published code drops them while the effective size is high; then only the last reward counts."""
    looks = [[0.1, 0.5, 0.2], [0.4, 0.3, 0.2]]
    particles = Particles(3, strength=2.0, potential=potential)
    for rewards in looks:
        particles.weigh(rewards)
    first, second = np.array(looks)
    by_hand = 2 * second if potential == "difference" else 2 * first + 2 * np.maximum(first, second)
    assert particles.weights.numpy() == pytest.approx(by_hand)
    assert particles.product.numpy() == pytest.approx(by_hand)


@pytest.mark.parametrize("potential", ["difference", "max"])
def test_product_of_potentials_is_carried_through_resampling(potential):
    particles = Particles(2, strength=3.0, potential=potential)
    particles.weigh([0.0, 2.0])
    parents = particles.resample(0.5)
    assert parents == [1, 1]
    assert particles.weights.tolist() == [0, 0]
    assert particles.product.tolist() == [6, 6]
    particles.weigh([1.0, 2.5])
    step = [-3.0, 1.5] if potential == "difference" else [6.0, 7.5]
    assert particles.weights.tolist() == step
    particles.close([1.0, 4.0])
    assert particles.product.tolist() == [3, 12]


@pytest.mark.parametrize("adaptive", [True, False])
@pytest.mark.parametrize("potential", ["difference", "max"])
def test_weighted_particles_follow_the_tilted_law(potential, adaptive):
    """A chain of two fair coin tosses, reward by their outcome: the law tilted by exp(lambda r) in closed form.

    The final weights times the outcomes must reproduce it whether or not particles were resampled in between.
    """
    n, strength, reward = 20_000, 1.0, np.array([[0.0, 0.3], [1.0, 2.0]])
    early = np.array([0.2, 1.1])  # what a look between the tosses says
    exact = np.exp(strength * reward)
    exact /= exact.sum()
    rng = np.random.default_rng(0)
    first = rng.integers(0, 2, n)
    particles = Particles(n, strength, potential)
    particles.weigh(early[first])
    if not adaptive or effective_size(particles.weights) < 0.5 * n:
        first = first[particles.resample(rng.random())]
    second = rng.integers(0, 2, n)
    particles.close(reward[first, second])
    weights = torch.softmax(particles.weights, 0).numpy()
    shares = np.zeros((2, 2))
    np.add.at(shares, (first, second), weights)
    assert shares == pytest.approx(exact, abs=0.015)


def test_nan_is_weight_nothing_and_never_spreads():
    particles = Particles(3)
    particles.weigh([0.5, math.nan, 0.5])
    assert particles.weights.tolist() == [5, -math.inf, 5]
    assert set(particles.resample(0.3)) == {0, 2}
    particles.weigh([0.1, 0.2, 0.3])
    assert torch.isfinite(particles.weights).all()


@pytest.mark.parametrize(("scheduler", "options"), [("euler", {}), ("ddim", {}), ("dpm++", {})])
def test_deterministic_samplers_are_refused_before_anything_runs(scheduler, options):
    pipe, ran = TTSnapPipeline.from_pipe(tiny_pipeline(scheduler), reward=Brightness()), []
    pipe.unet.register_forward_hook(lambda module, args, output: ran.append(output[0].device.type))
    with pytest.raises(InputError, match="is deterministic: all copies would end as one image"):
        pipe("a dog", num_inference_steps=STEPS, search="fk", budget="4x", **options)
    assert set(ran) <= {"meta", "cpu"}
    assert not ran


def test_ddim_with_eta_is_steered():
    pipe = TTSnapPipeline.from_pipe(tiny_pipeline("ddim"), reward=Brightness())
    out = pipe("a dog", num_inference_steps=STEPS, search="fk", budget="4x", eta=1.0, seed=3)
    assert out.rewards[0] == max(out.trace[-1].scores)


def test_copies_part_and_say_where_their_noise_comes_from():
    result = counted().search(FKSteering(strength=200.0), "8x", prompts=["a dog"], winners=5)
    steering = result.notes["steering"]
    assert any(look["resampled"] for look in steering)
    looks = [look for look in result.trace if look.step < STEPS - 1]
    copied = next(look for look in looks if len(set(look.survivors)) < len(look.survivors))
    assert set(copied.survivors) <= set(copied.candidates)
    scores = [winner.score for winner in result.winners[0]]
    assert len(set(scores)) == len(scores)
    changed = [winner.recipe.reseeded for winner in result.winners[0] if winner.recipe is not None]
    assert changed
    assert len(set(changed)) == len(changed)
    stock = tiny_pipeline("euler-ancestral")
    given, denoising = encode_prompts(stock, ["a dog"]), Denoising(STEPS, 3.0, micro_batch=1)
    for winner in result.winners[0]:
        if winner.recipe is not None:
            again = replay(winner.recipe, stock, given, denoising, (1, 4, 16, 16), STEPS)
            assert (again.latents - winner.candidate.latents).abs().max() < 1e-3


def test_looks_are_spread_and_come_before_the_end():
    assert FKSteering().schedule(20).steps == (3, 7, 11, 15)
    assert FKSteering().schedule(1).steps == ()
    assert FKSteering().schedule(2).steps == (0,)
