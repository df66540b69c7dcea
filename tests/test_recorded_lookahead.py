"""Recorded lookahead: its scores by hand, the live search replayed, schedules fitted on it, what is refused."""

from __future__ import annotations

import functools
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import tiny_pipeline, tiny_vae
from tiny_search import brightness
from typer.testing import CliRunner

from diffkit.cli import app
from diffkit.conditioning import encode_prompts
from diffkit.errors import InputError
from diffkit.latents import decode_latents
from diffkit.ledger import Prices
from diffkit.lookahead import look_ahead
from diffkit.rewards import REWARDS
from diffkit.rewards.base import as_reward
from diffkit.seeds import generators
from diffkit.segments import Candidate, Denoising, run_segment
from ttsnap import PruningSchedule, TTSnapPipeline, fit, load_tensor, simulate
from ttsnap.evaluation.accounting import allot
from ttsnap.evaluation.replay import replay
from ttsnap.fitting.index_check import fit_guarded
from ttsnap.fitting.local_search import Bench, search_budget
from ttsnap.reward_tensor import RewardTensor, save_npz
from ttsnap.schedules.index_book import IndexBook
from ttsnap.trajectories.collect import collect
from ttsnap.trajectories.recorded_lookahead import read_lookahead
from ttsnap.trajectories.recorder import CollectSettings

STEPS, GUIDANCE, POOL = 6, 3.0, 5
PAIRS = ((1, 1), (1, 3), (3, 2))
PROMPTS = ["a dog", "cat at dog"]


@REWARDS.register("test-ahead-bright")
def bright():
    return as_reward(brightness)


pipeline = functools.cache(tiny_pipeline)


def record(folder, prompts=PROMPTS, *, scheduler="ddim", reward=None, **changes):
    given = {"candidates": POOL, "num_inference_steps": STEPS, "micro_batch": 2, "seed": 7, "lookahead": PAIRS}
    reward = as_reward(brightness) if reward is None else reward
    return collect(
        pipeline(scheduler), prompts, {"bright": reward}, CollectSettings(**{**given, **changes}), out=folder
    )


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    return record(tmp_path_factory.mktemp("recorded") / "run")


def test_scores_are_of_the_images_ahead_and_everything_else_is_as_without(tmp_path, recorded):
    plain = record(tmp_path / "plain", lookahead=())
    pipe = tiny_pipeline()
    conditioning, denoising = encode_prompts(pipe, PROMPTS), Denoising(STEPS, GUIDANCE, micro_batch=2)
    for number, (ahead, without) in enumerate(zip(recorded, plain, strict=True)):
        for name in ("previews", "final_images", "rewards.bright", "finals.bright", "seeds"):
            assert torch.equal(ahead.tensor(name), without.tensor(name))
        fresh = [Candidate(i, number, source) for i, source in enumerate(generators(ahead.seeds))]
        for column, (step, calls) in enumerate(PAIRS):
            alive = run_segment(pipe, fresh, conditioning, denoising, 0, step + 1)
            images = decode_latents(pipe, torch.cat(look_ahead(pipe, alive, conditioning, denoising, calls)))
            expected = brightness(images, None)
            torch.testing.assert_close(ahead.tensor("lookahead.bright")[:, column], expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(InputError, match="no 'lookahead.bright'"):
        plain[0].tensor("lookahead.bright")
    assert "lookahead" not in plain.record["config"]
    assert (plain.lookahead, recorded.lookahead) == ((), PAIRS)
    tensor = recorded.reward_tensor("bright")
    assert tensor.recorded_looks == sorted([(step, 0) for step in range(STEPS)] + list(PAIRS))
    np.testing.assert_array_equal(tensor.look(3, 2)[1], recorded[1].tensor("lookahead.bright")[:, 2].double().numpy())
    with pytest.raises(InputError, match="holds another run: lookahead"):
        record(tmp_path / "plain")


def test_every_call_is_counted_and_priced(tmp_path):
    rows, pipe = [], pipeline("ddim")
    record(tmp_path / "run", PROMPTS[:1])  # counts FLOP on a trial call too
    hook = pipe.unet.register_forward_hook(lambda module, args, output: rows.append(len(args[0]) // 2))
    try:
        found = record(tmp_path / "again", PROMPTS[:1])
    finally:
        hook.remove()
    assert sum(rows) - 6 * (STEPS + 6) in range(3)  # 5 candidates padded to 6, and what is left of trials
    seconds = found.prices("bright", "s")
    [item] = found.items()
    assert seconds.call == pytest.approx(item["seconds"]["denoiser"] / (POOL * (STEPS + 6)))
    assert seconds.verify == pytest.approx(item["seconds"]["verifier.bright"] / (POOL * (STEPS + 3 + 1)))


@pytest.mark.parametrize(
    ("scheduler", "schedule"), [("ddim", "1:0.6+3"), ("dpm++", "1:0.8+1,3:0.5+2"), ("euler-ancestral", "1:0.8+3,4:0.5")]
)
def test_a_replayed_schedule_is_the_live_search(tmp_path, scheduler, schedule):
    """Same seeds: the same scores, survivors and winner, and the same cost, for a number of candidates and a budget."""
    found = record(tmp_path / "run", PROMPTS[:1], scheduler=scheduler, previews=False)
    tensor = found.reward_tensor("bright")
    search = TTSnapPipeline.from_pipe(pipeline(scheduler), reward=brightness)
    options = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE, "seed": 7, "micro_batch": 2}
    pruning, orders = PruningSchedule.parse(schedule), np.arange(POOL)[None, None]
    unit = STEPS * tensor.prices.call + tensor.prices.decode + tensor.prices.verify
    for given in ({"num_candidates": POOL}, {"budget": "2.5x"}):
        out = search(PROMPTS[0], schedule=schedule, **options, **given)
        bought = allot(2.5 * unit, pruning, STEPS, tensor.prices, pool=POOL)
        n = bought.candidates if "budget" in given else POOL
        assert len(out.trace[0].candidates) == n
        replayed = replay(tensor, pruning, n, orders=orders)
        assert found[0].seeds[int(replayed.winners[0, 0])] == out.seeds[0]
        assert [stage[0, 0].tolist() for stage in replayed.stages] == [sorted(look.candidates) for look in out.trace]
        for look in out.trace:
            expected = tensor.final if look.step == STEPS - 1 else tensor.look(look.step, look.lookahead)
            np.testing.assert_allclose(look.scores, expected[0, look.candidates], rtol=1e-5)
        assert out.ledger.cost == pruning.cost(n, STEPS)
        if "budget" in given:
            assert out.ledger.to_dict()["flop"] == pytest.approx(bought.spent)
            simulated = simulate(tensor, schedule, [2.5 * unit], resamples=1).curves[0]
            assert simulated.allotments == (bought,)


def test_a_preview_decoder_decodes_what_lies_ahead(tmp_path, recorded):
    torch.manual_seed(5)
    settings = CollectSettings(POOL, STEPS, micro_batch=2, seed=7, lookahead=PAIRS, record=(1,))
    reward = {"bright": as_reward(brightness)}
    found = collect(pipeline("ddim"), PROMPTS[:1], reward, settings, out=tmp_path / "run", preview_vae=tiny_vae())
    assert torch.equal(found[0].finals["bright"], recorded[0].finals["bright"])
    assert not torch.allclose(found[0].tensor("lookahead.bright"), recorded[0].tensor("lookahead.bright"))
    assert found[0].previews.shape[1] == 1


def test_a_missing_score_ahead_is_counted_and_never_wins(tmp_path):
    seen = []

    def moody(images, prompts):
        seen.append(len(images))
        values = brightness(images, prompts)
        if len(seen) == 1 + STEPS + 1:  # after the trial and the estimates
            values[0] = torch.nan
        return values

    found = record(tmp_path / "run", PROMPTS[:1], reward=as_reward(moody), candidates=2)
    assert found.items()[0]["unscored"]["bright"]["count"] == 1
    tensor = found.reward_tensor("bright")
    assert (tensor.missing, np.isnan(tensor.look(1, 1)).tolist()) == (1, [[True, False]])
    assert replay(tensor, PruningSchedule.parse("1:1.0+1"), 2, resamples=1).winners.tolist() == [[1]]


def ahead_tells(prompts=24, pool=40, calls=8, pairs=((1, 2), (1, 4), (3, 2))):
    """Estimates say nothing; what lies 2 calls ahead of step 1 does."""
    rng = np.random.default_rng(1)
    final = rng.standard_normal((prompts, pool))
    ahead = {pair: rng.standard_normal((prompts, pool)) for pair in pairs}
    ahead[1, 2] = final + 0.1 * ahead[1, 2]
    looks = rng.standard_normal((prompts, pool, calls))
    return RewardTensor(looks, final, "ahead", prices=Prices(1.0, 0.2, 0.1), lookahead=ahead)


def quick(tensor, budgets=(20.0, 40.0)):
    return fit(tensor, budgets, folds=2, tries=25, resamples=6)


def test_fit_finds_the_step_and_the_calls_that_tell(tmp_path):
    tensor = ahead_tells()
    fitted = quick(tensor)
    assert fitted.low > 0
    assert [entry.schedule.looks for entry in fitted.entries] == [((1, 2),)] * 2
    (tmp_path / "f.json").write_text(fitted.to_json())
    curve = simulate(tensor, tmp_path / "f.json", [20.0, 40.0], resamples=10).curves[0]
    assert (curve.values.mean(0) > curve.best_of_n.mean(0)).all()
    for bought, budget, entry in zip(curve.allotments, curve.budgets, fitted.entries, strict=True):
        n = bought.candidates
        # 2 calls to step 1 and 2 ahead, with a look, for all; 6 to the end, with a look, for the others
        assert bought.spent == pytest.approx(n * (4 + 0.3) + entry.schedule.survivors(n)[0] * (6 + 0.3))
        assert bought.spent <= budget


def test_fit_keeps_best_of_n_where_nothing_ahead_tells():
    tensor = ahead_tells()
    noise = np.random.default_rng(3).standard_normal(tensor.final.shape)
    assert quick(replace(tensor, lookahead={(1, 2): noise})).entries == ()


def test_fit_begins_with_an_estimate_before_a_look_ahead_too():
    """The estimate at step 0 tells half, what lies ahead of step 3 everything."""
    tensor = ahead_tells()
    rng = np.random.default_rng(5)
    looks = tensor.looks.copy()
    looks[:, :, 0] = tensor.final + 0.7 * rng.standard_normal(tensor.final.shape)
    tensor = replace(tensor, looks=looks, lookahead={(3, 2): tensor.final})
    bench = Bench.of(tensor, tensor.prices, resamples=6, seed=0)
    assert search_budget(bench, 40.0, rng, tries=0).looks == ((0, 0), (3, 2))


def test_the_schedule_in_an_index_rules_place_may_look_ahead(tmp_path):
    tensor = ahead_tells(prompts=12)
    book, held_out = fit_guarded(tensor, tensor.prices, [40.0], folds=2, tries=5, resamples=3)
    assert held_out.kept() == ["schedule"]
    (tmp_path / "i.json").write_text(book.to_json())
    again = IndexBook.from_json(tmp_path / "i.json")
    assert [plan.looks for plan in again.fallbacks] == [((1, 2),)]
    curve = simulate(tensor, again, [40.0], resamples=3).curves[0]
    assert curve.rules == tuple(map(str, book.fallbacks))


def test_several_rewards_prune_together_ahead():
    tensor = ahead_tells(prompts=4)
    joint = replay([tensor, tensor], PruningSchedule.parse("1:0.2+2"), 20, resamples=3)
    alone = replay(tensor, PruningSchedule.parse("1:0.2+2"), 20, resamples=3)
    np.testing.assert_array_equal(joint.winners, alone.winners)


def test_what_was_saved_comes_back_the_same(tmp_path):
    tensor = ahead_tells(prompts=3, pool=4)
    save_npz(tmp_path / "t.npz", tensor, replace(tensor, name="other", lookahead={}))
    back = load_tensor(tmp_path / "t.npz", "ahead")
    assert list(back.lookahead) == list(tensor.lookahead)
    assert all(np.array_equal(back.lookahead[pair], scores) for pair, scores in tensor.lookahead.items())
    assert load_tensor(tmp_path / "t.npz", "other").lookahead == {}
    np.testing.assert_array_equal(back.select([2, 0]).look(1, 4), tensor.look(1, 4)[[2, 0]])
    assert "lookahead 1+2, 1+4, 3+2" in repr(back)


def test_a_lookahead_that_was_not_recorded_is_refused_with_those_that_were():
    tensor = ahead_tells(prompts=2)
    with pytest.raises(InputError, match=r"by 3 calls after step 1, but ahead was .* with lookahead 1\+2, 1\+4, 3\+2"):
        simulate(tensor, "1:0.5+3", [20.0])
    with pytest.raises(InputError, match=r"recorded without lookahead; `ttsnap collect --lookahead 1\+2` records it"):
        simulate(replace(tensor, lookahead={}), "1:0.5+2", [20.0])
    for pair, message in (((6, 2), "by 2 after step 6"), ((1, 0), "by 0 after step 1")):
        with pytest.raises(InputError, match=message):
            replace(tensor, lookahead={pair: tensor.final})
    with pytest.raises(InputError, match="must be finite or NaN and of"):
        replace(tensor, lookahead={(1, 2): tensor.final[:1]})


@pytest.mark.parametrize(
    ("pairs", "sentence"),
    [
        ("1+3", "pairs of step and calls, as in .*, got '1\\+3'"),
        (((1, True),), "pairs of step and calls"),
        (((3, 2), (1, 3)), "must rise, got 3\\+2, 1\\+3"),
        (((1, 1), (1, 1)), "must rise"),
        (((4, 2),), "after step 4 it cannot look ahead by 2"),
        (((1, 0),), "cannot look ahead by 0"),
        (((-1, 2),), "after step -1"),
    ],
)
def test_wrong_lookaheads_write_nothing(tmp_path, pairs, sentence):
    with pytest.raises(InputError, match=sentence):
        record(tmp_path / "run", lookahead=pairs)
    assert not (tmp_path / "run").exists()


def test_lookaheads_are_read():
    assert read_lookahead("") == ()
    assert read_lookahead(" 3+2,1+3 , 1+1,3+2") == ((1, 1), (1, 3), (3, 2))
    for text in ("3", "1:3", "a+1", "1+2+3"):
        with pytest.raises(InputError, match="write step\\+calls"):
            read_lookahead(text)


def test_the_command_records_simulates_and_shows_them(tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFKIT_QUIET", "0")
    tiny_pipeline().save_pretrained(tmp_path / "model")
    (tmp_path / "prompts.txt").write_text("a dog\ncat\n")
    files = ["--prompts", str(tmp_path / "prompts.txt"), "--model", str(tmp_path / "model"), "--device", "cpu"]
    line = ["collect", *files, "--rewards", "test-ahead-bright", "--steps", "4", "--candidates", "3",
            "--micro-batch", "3", "--record", "1", "--lookahead", "0+2,1+1",
            "--out", str(tmp_path / "run")]  # fmt: skip

    def command(*words):
        return CliRunner().invoke(app, ["ttsnap", *words])

    dry = command(*line, "--dry-run")
    # 6 images: 4 calls and 3 ahead; one estimate, two lookaheads and the finished image
    assert "42 denoiser calls, 24 pictures" in " ".join(dry.output.split())
    done = command(*line)
    assert done.exit_code == 0, done.output
    assert "0+2" in done.stdout
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["lookahead"] == [[0, 2], [1, 1]]
    assert len(summary["rewards"]["test-ahead-bright"]["lookahead_tau"]) == 2
    played = command("simulate", str(tmp_path / "run"), "--schedule", "0:0.5+2", "--budgets", "2x:3x:1x")
    assert played.exit_code == 0, played.output
    refused = command("simulate", str(tmp_path / "run"), "--schedule", "0:0.5+1", "--budgets", "2x:3x:1x")
    assert refused.exit_code == 2
    assert "with lookahead 0+2, 1+1 only" in " ".join(refused.stderr.split())
