"""Distillation learns, forgets nothing when killed, and repeats no mistake of the published training."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.tracking import GeneralTracker
from launch import server
from safetensors.torch import load_file
from tiny_trajectories import SIGMAS, tiny_reward, tiny_trajectories

from diffkit.errors import DiffkitError, InputError
from diffkit.parameterization import log_snr
from ttsnap.noise_aware.curriculum import DistillSettings, Stage, choose_steps, curriculum
from ttsnap.noise_aware.distill import distill, plain_limit
from ttsnap.noise_aware.held_out import LevelTau, taus
from ttsnap.noise_aware.reward import NoiseAwareReward
from ttsnap.noise_aware.trainer import Trainer
from ttsnap.trajectories.dataset import Trajectories

PROMPTS, CANDIDATES = 24, 6
LEARN = DistillSettings(steps=(0, 1), stages=2, steps_per_stage=50, batch=24, learning_rate=3e-3, held_out=0.34, rank=4)
SHORT = dataclasses.replace(LEARN, steps_per_stage=6, checkpoint_every=4, batch=12)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_reward(tmp_path_factory.mktemp("reward"))


@pytest.fixture(scope="module")
def found(tmp_path_factory, base):
    return tiny_trajectories(tmp_path_factory.mktemp("runs") / "run", base, prompts=PROMPTS, candidates=CANDIDATES)


def nothing(*_):
    pass


def trained(found, base, settings, checkpoint):
    trainer = Trainer(found, base, settings, checkpoint)
    trainer.run(nothing, nothing)
    return trainer.state()


# ------------------------------------------------------------------------------------------------ learning


@pytest.mark.parametrize("loss", ["mse", "preference"])
@pytest.mark.parametrize("backend", ["conditioned", "full", "lora"])
def test_it_learns(backend, loss, found, base, tmp_path):
    settings = dataclasses.replace(LEARN, backend=backend, loss=loss, standardise=backend == "full")
    reward, levels = distill(found, base, settings, out=tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines[0]["loss_last_tenth"] < 0.9 * lines[0]["loss_first_tenth"]
    assert np.mean([level.after - level.before for level in levels]) > 0.25
    assert [level.step for level in levels] == [1, 0]
    assert reward.levels == (log_snr(SIGMAS[1]), log_snr(SIGMAS[0]))
    images, prompts = found[0].estimates(0), [found.prompts[0]] * CANDIDATES
    again = NoiseAwareReward.from_pretrained(tmp_path / "model", base)
    assert torch.equal(
        again.score_estimates(images, prompts, reward.levels[1]),
        reward.score_estimates(images, prompts, reward.levels[1]),
    )
    assert again.card["tau"] == [{**dataclasses.asdict(level), **intervals(level)} for level in levels]


@pytest.mark.parametrize("backend", ["conditioned", "full"])
def test_trained_at_some_levels_it_serves_others(backend, found, base, tmp_path):
    settings = dataclasses.replace(LEARN, backend=backend)
    reward, _ = distill(found, base, settings, out=tmp_path / "out")
    sigmas = (10.0, SIGMAS[0], 6.0, 5.0, SIGMAS[1], 3.5)  # as another number of steps would have them
    other = tiny_trajectories(tmp_path / "run", base, prompts=20, candidates=8, sigmas=sigmas, seed=9)
    final = other.reward_tensor("lab").final

    def tau(step):
        scored = [
            reward.score_estimates(one.estimates(step), [one.prompt] * 8, other.log_snrs[step]).numpy() for one in other
        ]
        return taus(np.stack(scored), final).mean()

    trained_at, elsewhere = np.mean([tau(1), tau(4)]), np.mean([tau(step) for step in (0, 2, 3, 5)])
    assert trained_at > 0.3
    assert elsewhere > 0.8 * trained_at


class Notebook(GeneralTracker):
    """A tracker that keeps what it is told."""

    name, requires_logging_directory, main_process_only = "notebook", False, False

    def __init__(self):
        super().__init__()
        self.told = []

    @property
    def tracker(self):
        return self.told

    def store_init_configuration(self, values):
        pass

    def log(self, values, step=None, **_):
        self.told.append((step, values["stage"], values["loss"]))


def test_a_tracker_hears_the_losses_only_when_asked(found, base, tmp_path):
    notebook = Notebook()
    trainer = Trainer(found, base, SHORT, tmp_path / "a", notebook)
    trainer.run(nothing, nothing)
    assert [(step, stage) for step, stage, _ in notebook.told] == [(step, step // 6) for step in range(12)]
    assert Trainer(found, base, SHORT, tmp_path / "b").accelerator.trackers == []


def intervals(level):
    return {name: list(getattr(level, name)) for name in ("before_interval", "after_interval", "gain_interval")}


def test_scores_stay_in_the_plain_rewards_unit(found, base, tmp_path):
    settings = dataclasses.replace(LEARN, loss="preference", steps=(0,))
    reward, _ = distill(found, base, settings, out=tmp_path)
    final = found.reward_tensor("lab").final
    scores = np.stack([
        reward.score_estimates(t.estimates(0), [t.prompt] * CANDIDATES, reward.levels[0]).numpy() for t in found
    ])  # fmt: skip
    assert abs(scores.mean() - final.mean()) < 0.2 * final.std()
    assert 0.3 < scores.std() / final.std() < 1.5


def test_mistake_7_weights_are_saved(found, base, tmp_path):
    reward, _ = distill(found, base, dataclasses.replace(SHORT, backend="full"), out=tmp_path)
    files = sorted(path.name for path in (tmp_path / "model" / "levels").iterdir())
    assert files == ["00.safetensors", "01.safetensors"]
    for file, state in zip(files, reward.states, strict=True):
        saved = load_file(tmp_path / "model" / "levels" / file)
        assert all(torch.equal(saved[name].float(), state[name]) for name in state)
        start = {f"network.{name}": value for name, value in base.module.named_parameters()}
        assert any(not torch.allclose(start[name].half(), saved[name]) for name in saved)


def test_mistake_8_every_stage_keeps_its_metrics(found, base, tmp_path):
    distill(found, base, dataclasses.replace(SHORT, backend="lora", steps=(0, 1, 2)), out=tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["stage"] for line in lines] == [0, 1, 2]
    assert [[level["step"] for level in line["held_out"]] for line in lines] == [[2], [1], [0]]
    assert len({line["loss_first_tenth"] for line in lines}) == 3


def test_mistake_9_validation_drops_nobody(found, base, tmp_path):
    trainer = Trainer(found, base, dataclasses.replace(SHORT, batch=7), tmp_path / "checkpoint")
    assert len(trainer.held_out) == 8  # 48 images, no multiple of the batch of 7
    seen = []

    def predict(images, prompts, level):
        seen.extend(prompts)
        return images.mean((1, 2, 3))

    from ttsnap.noise_aware.held_out import predictions

    scores = predictions(trainer.estimates, predict, trainer.held_out, 0, 0.0)
    assert scores.shape == (8, CANDIDATES)
    assert seen == [found.prompts[position] for position in trainer.held_out for _ in range(CANDIDATES)]
    expected = np.stack([found[p].estimates(1).mean((1, 2, 3)).numpy() for p in trainer.held_out])
    assert np.allclose(scores, expected, atol=1e-6)


# ------------------------------------------------------------------------------------------------ the loop


def test_the_curriculum_runs_from_clean_to_noisy(found):
    steps = choose_steps(found, None)
    assert steps == [3, 2, 1, 0]  # the last call's estimate is the finished image
    assert curriculum("full", 3, 9) == curriculum("lora", 3, 1) == [Stage((k,), (k,)) for k in range(3)]
    assert curriculum("conditioned", 5, 2) == [Stage((0, 1, 2), (0, 1, 2)), Stage((0, 1, 2, 3, 4), (3, 4))]
    assert curriculum("conditioned", 2, 4) == [Stage((0,), (0,)), Stage((0, 1), (1,))]


def test_each_stage_has_a_fresh_optimiser_and_falls_to_half(found, base, tmp_path):
    trainer = Trainer(found, base, SHORT, tmp_path / "checkpoint")
    rates, states, ends = [], [], []

    def tick(stage, steps):
        rates.append(trainer.optimizer.param_groups[0]["lr"] / SHORT.learning_rate)
        counts = [int(state["step"]) for state in trainer.optimizer.optimizer.state.values()]
        states.append(max(counts, default=0))

    trainer.run(lambda stage, place: ends.append(trainer.state()), tick)
    expected = [1 - 0.5 * step / 6 for step in range(6)]
    assert rates[1:] == pytest.approx(expected * 2)
    assert states[1:] == [*range(1, 7)] * 2
    assert len(ends) == 2


@pytest.mark.parametrize(
    ("backend", "loss", "stopped", "stage", "done_before"),
    [("conditioned", "mse", 11, 1, 10), ("lora", "preference", 7, 1, 6), ("full", "mse", 4, 0, 2)],
)
def test_a_killed_run_goes_on_inside_its_stage_as_if_undisturbed(
    backend, loss, stopped, stage, done_before, found, base, tmp_path
):
    settings = dataclasses.replace(SHORT, backend=backend, loss=loss, checkpoint_every=2)
    undisturbed = trained(found, base, settings, tmp_path / "a")
    done = 0

    def kill(stage, steps):
        nonlocal done
        done += steps
        if done == stopped:
            raise KeyboardInterrupt

    killed = Trainer(found, base, settings, tmp_path / "b")
    with pytest.raises(KeyboardInterrupt):
        killed.run(nothing, kill)
    resumed = Trainer(found, base, settings, tmp_path / "b")
    starts = []
    resumed.run(nothing, lambda stage, steps: starts.append((stage, steps)))
    assert starts[0] == (stage, done_before)
    assert all(torch.equal(value, undisturbed[name]) for name, value in resumed.state().items())


def test_the_same_folder_goes_on_and_another_recipe_is_refused(found, base, tmp_path):
    first, levels = distill(found, base, SHORT, out=tmp_path)
    lines = (tmp_path / "metrics.jsonl").read_text()
    second, again = distill(found, base, SHORT, out=tmp_path)
    assert levels == again
    assert (tmp_path / "metrics.jsonl").read_text() == lines
    assert all(torch.equal(value, second.states[0][name]) for name, value in first.states[0].items())
    with pytest.raises(InputError, match="learning_rate is 0.003 there and 0.1 here"):
        distill(found, base, dataclasses.replace(SHORT, learning_rate=0.1), out=tmp_path)


def test_accumulation_does_not_change_the_update(found, base, tmp_path):
    for loss in ("mse", "preference"):
        whole = trained(found, base, dataclasses.replace(SHORT, loss=loss, steps_per_stage=2), tmp_path / f"{loss}1")
        split = dataclasses.replace(SHORT, loss=loss, steps_per_stage=2, accumulate=2)
        parts = trained(found, base, split, tmp_path / f"{loss}2")
        assert_close(parts, whole)


def assert_close(mine, theirs):
    """Adam turns rounding into signs where a gradient is nearly 0, so nearly all weights are compared, not all."""
    far = torch.cat([(mine[name] - theirs[name]).abs().flatten() > 1e-4 for name in mine])
    assert far.float().mean() < 0.02


def test_a_diverging_loss_is_an_error_and_the_checkpoint_stays(found, base, tmp_path):
    checkpoint = tmp_path / "checkpoint.safetensors"
    settings = dataclasses.replace(SHORT, stages=1, checkpoint_every=2)
    trainer = Trainer(found, base, settings, checkpoint)
    kept = []

    def break_after(stage, steps):
        if checkpoint.exists() and not kept:
            kept.append(checkpoint.read_bytes())
            with torch.no_grad():
                next(iter(trainer.parameters.values())).fill_(math.inf)

    with pytest.raises(DiffkitError, match=r"is nan in stage 0, step 3: lower the learning rate"):
        trainer.run(nothing, break_after)
    assert [checkpoint.read_bytes()] == kept


def test_reduced_precision_trains(found, base, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    plain = trained(found, base, SHORT, tmp_path / "a")
    bf16 = trained(found, base, dataclasses.replace(SHORT, mixed_precision="bf16"), tmp_path / "b")
    moved = [(bf16[name] - plain[name]).abs().max().item() for name in plain]
    assert 0 < max(moved) < 0.2
    if not torch.cuda.is_available():
        assert ["no bfloat16" in record.message for record in caplog.records] == [True]
    assert all(value.dtype == torch.float32 for value in bf16.values())


def work(rank: int, folder: str) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT="0",
                      ACCELERATE_USE_CPU="true")  # fmt: skip
    import torch.distributed as dist

    from diffkit.rewards.lab import LabReward

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{Path(folder, 'store')}", rank=rank, world_size=2)
    found, base = Trajectories.open(Path(folder, "run")), LabReward(Path(folder, "reward"))
    distill(found, base, dataclasses.replace(SHORT, steps_per_stage=2), out=Path(folder, "two"))
    dist.barrier()
    dist.destroy_process_group()


def test_two_processes_train_what_one_trains(tmp_path):
    base = tiny_reward(tmp_path / "reward")
    found = tiny_trajectories(tmp_path / "run", base, prompts=PROMPTS, candidates=CANDIDATES)
    context = server()
    workers = [context.Process(target=work, args=(rank, str(tmp_path))) for rank in range(2)]
    for worker in workers:
        worker.start()
    reward, levels = distill(found, base, dataclasses.replace(SHORT, steps_per_stage=2), out=tmp_path / "one")
    for worker in workers:
        worker.join(240)
    assert [worker.exitcode for worker in workers] == [0, 0]
    two = NoiseAwareReward.from_pretrained(tmp_path / "two" / "model", base)
    assert_close(two.states[0], reward.states[0])
    assert [level["prompts"] for level in two.card["tau"]] == [level.prompts for level in levels]


@pytest.mark.parametrize(
    ("gains", "limit"),
    [
        ((-0.2, 0.1, 0.3), 1.0),  # only the cleanest level is worse: between it and the next
        ((-0.2, -0.1, 0.3), -1.0),
        ((0.1, -0.1, 0.3), None),  # the cleanest gains: the reward's own default
        ((-0.2, -0.1, -0.3), -3.0),  # none gains: all is plain
        ((None, None, None), None),
        ((0.0, 0.2, 0.3), 1.0),  # nothing gained is nothing lost: plain is cheaper
    ],
)
def test_clean_levels_that_lose_are_left_to_the_plain_reward(
    gains: tuple[float | None, ...], limit: float | None
) -> None:
    levels = [
        LevelTau(step=9 - i, log_snr=level, prompts=4, gain=gain)
        for i, (level, gain) in enumerate(zip((2.0, 0.0, -2.0), gains, strict=True))
    ]
    assert plain_limit(levels) == limit
