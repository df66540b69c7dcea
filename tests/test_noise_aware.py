"""A distilled reward: which weights serve which noise level, and what it refuses."""

from __future__ import annotations

import itertools
import json
import math

import pytest
import torch
from safetensors.torch import load_file
from tiny_trajectories import SIDE, tiny_reward

from diffkit.errors import InputError
from diffkit.rewards import REWARDS
from diffkit.rewards.base import EstimateReward, TrainableReward, score_checked
from diffkit.rewards.identity import weights_digest
from ttsnap import assets
from ttsnap.noise_aware.backends import BACKENDS, adapter_targets, build, load_trainable, trainable
from ttsnap.noise_aware.reward import CLEAN_MARGIN, LinearCalibration, NoiseAwareReward, load_lab

LEVELS = (2.0, -1.0, -4.0)
PROMPTS = ["a dog", "cat at", "dog", "at at"]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_reward(tmp_path_factory.mktemp("reward"))


@pytest.fixture(scope="module")
def images():
    return torch.rand(len(PROMPTS), 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))


def disturbed(backend, base, seed):
    """Trained weights of a back-end, as if something had been learned; each seed learned something else."""
    network = build(backend, base, rank=2)
    generator = torch.Generator().manual_seed(seed)
    return {
        name: value.detach() + 0.05 * torch.randn(value.shape, generator=generator)
        for name, value in trainable(network).items()
    }


def distilled(backend, base, **options):
    count = 1 if backend == "conditioned" else len(LEVELS)
    states = [disturbed(backend, base, seed) for seed in range(count)]
    return NoiseAwareReward(base, backend=backend, levels=LEVELS, states=states, rank=2, **options)


def test_the_lab_reward_can_be_trained(base, images):
    assert isinstance(base, TrainableReward)
    scores = base.differentiable(images, PROMPTS)
    scores.sum().backward()
    assert base.model.head.weight.grad is not None
    base.model.zero_grad()
    assert torch.equal(scores.detach(), base.score(images, PROMPTS))


@pytest.mark.parametrize("backend", BACKENDS)
def test_untrained_it_scores_like_the_plain_reward(backend, base, images):
    network = build(backend, base, rank=2)
    scores = base.differentiable(
        images, PROMPTS, module=lambda *inputs: network(*inputs, log_snr=torch.linspace(-9, 3, len(images)))
    )
    torch.testing.assert_close(scores.detach(), base.score(images, PROMPTS), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_its_copy_leaves_the_plain_reward_alone(backend, base, images):
    before = weights_digest(base.module)
    reward = distilled(backend, base)
    assert isinstance(reward, EstimateReward)
    assert torch.equal(reward.score(images, PROMPTS), base.score(images, PROMPTS))
    assert not torch.allclose(reward.score_estimates(images, PROMPTS, -4.0), base.score(images, PROMPTS))
    assert weights_digest(base.module) == before
    assert all(parameter.requires_grad for parameter in base.module.parameters())


@pytest.mark.parametrize("backend", BACKENDS)
def test_round_trip_is_exact_to_half_precision(backend, base, images, tmp_path):
    reward = distilled(backend, base, calibrations=[LinearCalibration(2.0, 1.0)] * 3, card={"tau": None})
    reward.save_pretrained(tmp_path / "first")
    first = NoiseAwareReward.from_pretrained(tmp_path / "first", base)
    for mine, theirs in zip(reward.states, first.states, strict=True):
        assert all(torch.equal(mine[name].half().float(), theirs[name]) for name in mine)
    first.save_pretrained(tmp_path / "second")
    second = NoiseAwareReward.from_pretrained(tmp_path / "second", base)
    for log_snr in (*LEVELS, 0.3):
        old, new = (one.score_estimates(images, PROMPTS, log_snr) for one in (first, second))
        assert torch.equal(old, new)
        torch.testing.assert_close(old, reward.score_estimates(images, PROMPTS, log_snr), rtol=0.02, atol=0.02)
    assert second.card == {"tau": None}
    assert (second.backend, second.levels, second.rank) == (backend, LEVELS, 2)
    assert second.flops_per_image == reward.flops_per_image > 0


@pytest.mark.parametrize("backend", ["full", "lora"])
def test_between_two_levels_their_scores_are_mixed(backend, base, images):
    reward = distilled(backend, base)
    at = [reward.score_estimates(images, PROMPTS, level) for level in LEVELS]
    assert not any(torch.allclose(one, other) for one, other in itertools.combinations(at, 2))
    assert torch.equal(reward.score_estimates(images, PROMPTS, -1.0 + 1e-6), at[1])
    for log_snr, cleaner, share in ((0.5, 0, 0.5), (1.7, 0, 0.1), (-1.3, 1, 0.1), (-3.9, 1, 2.9 / 3)):
        expected = (1 - share) * at[cleaner] + share * at[cleaner + 1]
        torch.testing.assert_close(reward.score_estimates(images, PROMPTS, log_snr), expected)
    for beyond, level in {2.9: 0, -40.0: 2, -math.inf: 2}.items():
        assert torch.equal(reward.score_estimates(images, PROMPTS, beyond), at[level])
    assert reward.flops_per_image >= 1.9 * base.flops_per_image


def test_a_conditioned_reward_takes_any_level(base, images):
    reward = distilled("conditioned", base)
    ends = [reward.score_estimates(images, PROMPTS, log_snr) for log_snr in (2.0, -4.0)]
    between = reward.score_estimates(images, PROMPTS, -1.7)
    assert not any(torch.allclose(between, end) for end in ends)
    assert torch.allclose(between, reward.score_estimates(images, PROMPTS, -1.7 + 1e-4), atol=1e-3)
    assert torch.equal(ends[1], reward.score_estimates(images, PROMPTS, -30.0))  # noisier than the noisiest: as there
    assert torch.equal(ends[0], reward.score_estimates(images, PROMPTS, 2.0 + CLEAN_MARGIN))


@pytest.mark.parametrize("backend", BACKENDS)
def test_far_cleaner_than_trained_is_scored_plainly(backend, base, images):
    reward = distilled(backend, base)
    plain = base.score(images, PROMPTS)
    for log_snr in (2.0 + CLEAN_MARGIN + 1e-6, math.inf):
        assert torch.equal(reward.score_estimates(images, PROMPTS, log_snr), plain)
    assert not torch.equal(reward.score_estimates(images, PROMPTS, 2.0 + CLEAN_MARGIN), plain)
    assert torch.equal(score_checked(reward, images, PROMPTS).values, plain)  # a finished image has no noise level


def test_calibrations_bring_scores_to_the_plain_rewards_unit(base, images):
    lines = [LinearCalibration(1.0, 0.0), LinearCalibration(2.0, 1.0), LinearCalibration(4.0, -1.0)]
    plain, conditioned = distilled("conditioned", base), distilled("conditioned", base, calibrations=lines)
    for log_snr, (scale, shift) in {2.0: lines[0], -1.0: lines[1], -4.0: lines[2], 0.5: (1.5, 0.5)}.items():
        expected = scale * plain.score_estimates(images, PROMPTS, log_snr) + shift
        torch.testing.assert_close(conditioned.score_estimates(images, PROMPTS, log_snr), expected)
    raw, levelled = distilled("full", base), distilled("full", base, calibrations=lines)
    for log_snr, (scale, shift) in zip(LEVELS, lines, strict=True):
        expected = scale * raw.score_estimates(images, PROMPTS, log_snr) + shift
        torch.testing.assert_close(levelled.score_estimates(images, PROMPTS, log_snr), expected)


def test_one_level_serves_all(base, images):
    reward = NoiseAwareReward(base, backend="conditioned", levels=[0.0], states=[disturbed("conditioned", base, 0)])
    assert torch.equal(reward.score_estimates(images, PROMPTS, -5), reward.score_estimates(images, PROMPTS, 0.9))


def test_rows_do_not_depend_on_their_neighbours(base, images):
    reward = distilled("conditioned", base)
    whole = reward.score_estimates(images, PROMPTS, -2.0)
    alone = torch.cat([reward.score_estimates(images[i : i + 1], PROMPTS[i : i + 1], -2.0) for i in range(4)])
    torch.testing.assert_close(whole, alone, rtol=1e-5, atol=1e-5)


def test_an_adapter_is_small_and_sits_on_attention(base, tmp_path):
    for backend in ("full", "lora"):
        distilled(backend, base).save_pretrained(tmp_path / backend)
    sizes = [(tmp_path / backend / "levels" / "00.safetensors").stat().st_size for backend in ("full", "lora")]
    assert sizes[1] < sizes[0] / 2
    targets = adapter_targets(base)
    assert "text.encoder.layer.0.crossattention.self.query" in targets
    assert "head" not in targets
    assert all("lora" in name for name in load_file(tmp_path / "lora" / "levels" / "00.safetensors"))
    base.lora_targets = ["head"]
    assert [name for name in trainable(build("lora", base)) if "head" not in name] == []
    del base.lora_targets


def test_another_base_reward_is_refused(base, tmp_path):
    distilled("full", base).save_pretrained(tmp_path / "model")
    other = tiny_reward(tmp_path / "other", seed=1)
    with pytest.raises(InputError, match="distilled from the reward 'lab' with other weights"):
        NoiseAwareReward.from_pretrained(tmp_path / "model", other)
    with pytest.raises(InputError, match="other weights"):  # the registered reward of that name is the shipped one
        NoiseAwareReward.from_pretrained(tmp_path / "model")


def test_damaged_and_foreign_folders_are_refused(base, tmp_path):
    folder = tmp_path / "model"
    with pytest.raises(InputError, match="holds no distilled reward"):
        NoiseAwareReward.from_pretrained(folder, base)
    distilled("lora", base).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "levels" / "01.safetensors").write_bytes(b"no tensor")
    with pytest.raises(InputError, match="damaged"):
        NoiseAwareReward.from_pretrained(folder, base)
    (folder / "config.json").write_text(json.dumps({**config, "schema_version": 99}))
    with pytest.raises(InputError, match="newer diffkit"):
        NoiseAwareReward.from_pretrained(folder, base)


def test_refusals(base, images):
    state = disturbed("full", base, 0)
    with pytest.raises(InputError, match="fall from clean to noisy"):
        NoiseAwareReward(base, backend="full", levels=[-1.0, 2.0], states=[state, state])
    with pytest.raises(InputError, match="fall from clean to noisy"):
        NoiseAwareReward(base, backend="full", levels=[math.inf], states=[state])
    with pytest.raises(InputError, match="1 sets of weights for 2 levels"):
        NoiseAwareReward(base, backend="full", levels=[2.0, -1.0], states=[state])
    with pytest.raises(InputError, match="another network, back-end or rank"):
        load_trainable(build("lora", base), state)
    with pytest.raises(InputError, match="not a number"):
        distilled("full", base).score_estimates(images, PROMPTS, math.nan)
    with pytest.raises(InputError, match="3 prompts for 4 images"):
        distilled("full", base).score_estimates(images, PROMPTS[:3], 0.0)
    with pytest.raises(InputError, match="Expected one of conditioned, full, lora"):
        build("sparse", base)
    with pytest.raises(InputError, match="rank"):
        build("lora", base, rank=0)


def test_the_lab_names_it_and_says_when_it_is_missing(monkeypatch, tmp_path):
    assert {"lab-noise-aware", "lab-trio-noise-aware"} <= set(REWARDS.names())
    monkeypatch.setattr(assets, "FOLDER", tmp_path)
    with pytest.raises(InputError, match="missing from this installation"):
        load_lab()
