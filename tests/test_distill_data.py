"""What distillation learns from: batches, losses, the split; its figures; the command."""

from __future__ import annotations

import copy
import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tiny_trajectories import tiny_reward, tiny_trajectories
from typer.testing import CliRunner

from diffkit.errors import InputError
from ttsnap.cli.app import app
from ttsnap.cli.distill import parse_levels
from ttsnap.noise_aware.curriculum import DistillSettings, choose_steps
from ttsnap.noise_aware.data import draw, preference_loss, split_prompts, spread_within_prompts, standardised, stream
from ttsnap.noise_aware.distill import distill
from ttsnap.noise_aware.held_out import compare_level, fit_calibration, taus
from ttsnap.noise_aware.trainer import Trainer

PROMPTS, CANDIDATES = 24, 6
SHORT = DistillSettings(steps=(0, 1), stages=2, steps_per_stage=6, batch=12, learning_rate=3e-3, held_out=0.34)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_reward(tmp_path_factory.mktemp("reward"))


@pytest.fixture(scope="module")
def found(tmp_path_factory, base):
    return tiny_trajectories(tmp_path_factory.mktemp("runs") / "run", base, prompts=PROMPTS, candidates=CANDIDATES)


# ------------------------------------------------------------------------------------------------ the losses


def test_mistake_11_the_preference_loss_by_hand():
    scores = torch.tensor([0.3, 0.1, 0.9, 0.4], requires_grad=True)
    targets = torch.tensor([1.0, 0.2, 0.5, 0.5])
    units = torch.tensor([0, 0, 0, 1])
    pairs = [(0, 1), (0, 2), (1, 2)]  # the fourth row is alone in its unit

    def sigmoid(x):
        return 1 / (1 + math.exp(-x))

    def cross_entropy(i, j, label):
        p = sigmoid((scores[i].item() - scores[j].item()) / 0.5)
        return -(label * math.log(p) + (1 - label) * math.log(1 - p))

    soft = np.mean([cross_entropy(i, j, sigmoid((targets[i] - targets[j]).item() / 0.5)) for i, j in pairs])
    hard = np.mean([cross_entropy(i, j, float(targets[i] > targets[j])) for i, j in pairs])
    assert preference_loss(scores, targets, units, temperature=0.5).item() == pytest.approx(soft, rel=1e-5)
    loss = preference_loss(scores, targets, units, temperature=0.5, soft=False)
    assert loss.item() == pytest.approx(hard, rel=1e-5)
    loss.backward()
    assert scores.grad[3] == 0
    assert scores.grad[0] < 0 < scores.grad[2]  # the best one is pushed up, the overrated one down


def test_hard_preferences_leave_out_ties_and_lonely_rows_have_no_loss():
    scores = torch.tensor([0.3, 0.1], requires_grad=True)
    for targets, units in (([0.5, 0.5], [0, 0]), ([0.1, 0.5], [0, 1])):
        loss = preference_loss(scores, torch.tensor(targets), torch.tensor(units), temperature=1.0, soft=False)
        assert loss.item() == 0
        loss.backward()


# ------------------------------------------------------------------------------------------------ the data


def test_a_batch_is_a_function_of_seed_stage_and_step():
    units = [[(prompt, candidate)] for prompt in range(5) for candidate in range(4)]
    whole = draw(units, (0, 1, 2), size=6, seed=1, stage=2, step=3)
    assert whole == draw(units, (0, 1, 2), size=6, seed=1, stage=2, step=3)
    for change in ({"seed": 2}, {"stage": 1}, {"step": 4}):
        assert whole != draw(units, (0, 1, 2), **{"size": 6, "seed": 1, "stage": 2, "step": 3, **change})
    parts = [draw(units, (0, 1, 2), size=6, seed=1, stage=2, step=3, part=slice(k, k + 2)) for k in (0, 2, 4)]
    assert [row for part in parts for row in part.rows] == whole.rows
    assert sorted(level for _, _, level in whole.rows) == [0, 0, 1, 1, 2, 2]  # spread over the open levels


@given(count=st.integers(1, 30), take=st.integers(1, 12), seed=st.integers(0, 99))
def test_every_item_once_an_epoch(count, take, seed):
    drawn = [item for step in range(math.ceil(2 * count / take)) for item in stream(seed, 0, step, take, count)]
    assert sorted(drawn[:count]) == sorted(drawn[count : 2 * count]) == list(range(count))


def test_pairs_share_a_level(found, base, tmp_path):
    settings = dataclasses.replace(SHORT, loss="preference", batch=12)
    trainer = Trainer(found, base, settings, tmp_path / "checkpoint")
    assert trainer.units_a_step == 2
    batch = draw(trainer._units, (0, 1), size=2, seed=0, stage=1, step=0)
    for unit in set(batch.units):
        rows = [row for row, member in zip(batch.rows, batch.units, strict=True) if member == unit]
        assert len(rows) == CANDIDATES
        assert len({(prompt, level) for prompt, _, level in rows}) == 1


@given(st.lists(st.sampled_from("abcdefgh"), min_size=4, max_size=30), st.floats(0.05, 0.6), st.integers(0, 9))
def test_equal_texts_are_held_out_together(prompts, share, seed):
    texts = set(prompts)
    if max(1, round(share * len(texts))) >= len(texts):
        with pytest.raises(InputError, match="too few"):
            split_prompts(prompts, share, seed)
        return
    train, apart = split_prompts(prompts, share, seed)
    assert sorted(train + apart) == list(range(len(prompts)))
    assert not {prompts[i] for i in train} & {prompts[i] for i in apart}
    assert len({prompts[i] for i in apart}) == max(1, round(share * len(texts)))
    assert split_prompts(prompts, 0.0, seed) == (list(range(len(prompts))), [])


def test_standardised_targets_have_one_mean_and_spread():
    scores = np.random.default_rng(0).normal(3, 2, (6, 8)) + np.arange(6)[:, None]
    scores[2] = 1.5
    scores[4, 3] = np.nan
    done = standardised(scores)
    assert np.allclose(np.nanmean(done, 1), np.nanmean(scores))
    assert np.allclose(np.nanstd(done, 1)[[0, 1, 3, 4, 5]], spread_within_prompts(scores))
    assert (done[2] == np.nanmean(scores)).all()
    assert np.argwhere(np.isnan(done)).tolist() == [[4, 3]]
    assert (np.argsort(done[0]) == np.argsort(scores[0])).all()
    rows = scores[[0, 1, 3, 5]]
    assert spread_within_prompts(rows) == pytest.approx(np.sqrt(rows.var(1, ddof=1).mean()))


def test_calibration_is_the_line_within_prompts():
    final = np.random.default_rng(1).normal(0, 1, (5, 7))
    scale, shift = fit_calibration((final - 2) / 3, final)
    assert (scale, shift) == pytest.approx((3, 2))
    assert fit_calibration(-final, final).scale == 1.0  # never turned round
    assert fit_calibration(np.ones((5, 7)), final).scale == 1.0


def test_tau_leaves_out_what_has_none():
    final = np.array([[1.0, 2, 3], [1, 1, 1], [3, 1, np.nan]])
    assert taus(final, final).tolist() == pytest.approx([1.0, math.nan, 1.0], nan_ok=True)
    level = compare_level(step=2, log_snr=-1.0, before=-final, after=final, final=final)
    assert (level.prompts, level.before, level.after, level.gain) == (2, -1.0, 1.0, 2.0)
    empty = compare_level(step=2, log_snr=-1.0, before=final[1:2], after=final[1:2], final=final[1:2])
    assert (empty.prompts, empty.before, empty.gain_interval) == (0, None, None)
    alone = compare_level(step=0, log_snr=0.0, before=final[:1], after=final[:1], final=final[:1])
    assert (alone.prompts, alone.before, alone.before_interval) == (1, 1.0, None)


def test_images_without_a_final_score_are_never_targets(found, base, tmp_path):
    path = tmp_path / "run"
    other = tiny_trajectories(path, base, prompts=8, candidates=4)
    for index in range(8):
        shard = path / "shards" / f"p{index:06d}.safetensors"
        tensors = load_file(shard)
        tensors["finals.lab"][1] = math.nan
        save_file(tensors, shard)
    for loss in ("mse", "preference"):
        settings = dataclasses.replace(SHORT, loss=loss, batch=4, steps_per_stage=2)
        trainer = Trainer(other, base, settings, tmp_path / loss)
        assert all(candidate != 1 for unit in trainer._units for _, candidate in unit)
    reward, levels = distill(other, base, settings, out=tmp_path / "out")
    assert reward.card["images_without_a_final_score"] == 8
    assert all(level.prompts == 3 for level in levels)


# ------------------------------------------------------------------------------------------------ the command


def test_levels_of_the_command():
    assert parse_levels("all") is None
    assert parse_levels("0,2, 4-6,5") == (0, 2, 4, 5, 6)
    for text in ("", "some", "3-", "-3", "6-4"):
        with pytest.raises(InputError, match="--levels"):
            parse_levels(text)


def test_refusals(found, base, tmp_path):
    for bad in ({"backend": "x"}, {"loss": "x"}, {"batch": 0}, {"learning_rate": math.nan}, {"steps_per_stage": 0}):
        with pytest.raises(InputError):
            dataclasses.replace(SHORT, **bad)
    with pytest.raises(InputError, match=r"Steps \[9\] were not recorded"):
        choose_steps(found, [0, 9])
    with pytest.raises(InputError, match="cannot be dealt to 5 equal parts"):
        Trainer(found, base, dataclasses.replace(SHORT, accumulate=5), tmp_path / "checkpoint")
    with pytest.raises(InputError, match="share of held-out"):
        split_prompts(["a", "b"], 1.0, 0)
    halved = copy.deepcopy(base)
    halved.module.bfloat16()
    with pytest.raises(InputError, match="is in half precision; load it without dtype="):
        distill(found, halved, SHORT, out=tmp_path / "halved")


def test_the_command_prints_the_table(found, tmp_path):
    words = ["distill", str(found.folder), "--steps-per-stage", "2", "--levels", "0,1", "--batch", "8", "--out",
             str(tmp_path / "out")]  # fmt: skip
    assert CliRunner().invoke(app, [*words, "--dry-run"]).exit_code == 0
    assert not (tmp_path / "out").exists()
    done = CliRunner().invoke(app, [*words, "--format", "json"])
    assert done.exit_code == 0, done.output
    rows = json.loads(done.stdout)
    assert [row["step"] for row in rows] == [1, 0]
    assert rows == json.loads((tmp_path / "out" / "summary.json").read_text())["tau"]
    assert (tmp_path / "out" / "tau.png").stat().st_size > 1000
    table = CliRunner().invoke(app, words)
    assert "tau before" in table.stdout
