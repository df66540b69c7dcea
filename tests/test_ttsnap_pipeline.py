"""The winner is the stock pipeline's own image of its seed; what is counted is what ran; bad input gets a sentence."""

from __future__ import annotations

import functools
import itertools
import json
import math
import time

import numpy as np
import pytest
import torch
from diffusers import DDIMParallelScheduler, DiffusionPipeline, StableDiffusionPipeline
from tiny import NOISE, tiny_pipeline
from tiny_search import brightness, shared_tiny

from diffkit.conditioning import encode_prompts
from diffkit.errors import InputError, ScoringError
from diffkit.ledger import Budget, Ledger, Prices
from diffkit.rewards.base import as_reward
from diffkit.seeds import candidate_seed, generators
from diffkit.segments import Denoising
from diffkit.step_plan import plan
from ttsnap import PruningSchedule, TTSnapPipeline
from ttsnap.schedules.fitted_schedule import Entry, FittedSchedule
from ttsnap.search.budget import affordable, planned_cost, spending_limit
from ttsnap.search.config import SearchConfig
from ttsnap.search.prices import time_prices
from ttsnap.search.session import Engine

PROMPT, STEPS, SEED = "a dog", 6, 7
OPTIONS = {"num_inference_steps": STEPS, "guidance_scale": 3.0}
PROMISED = ["ddim", "euler", "euler-ancestral", "dpm++", "unipc", "pndm"]


@functools.cache
def stock_image(scheduler: str, seed: int) -> np.ndarray:
    """(64, 64, 3) uint8 as the stock pipeline makes it, with no toolkit in the way."""
    pipe = shared_tiny(scheduler)
    return np.asarray(pipe(PROMPT, **OPTIONS, generator=generators([seed])[0]).images[0])


@functools.cache
def search_pipe(scheduler: str) -> TTSnapPipeline:
    return TTSnapPipeline.from_pipe(shared_tiny(scheduler), reward=brightness)


def difference(image, scheduler: str, seed: int) -> int:
    return int(np.abs(np.asarray(image).astype(int) - stock_image(scheduler, seed).astype(int)).max())


SIZES = [(1, 1), (7, 4), (12, 8), (7, 1), (7, 16)]  # candidates and micro-batch: strict, padded, whole
COVERING = [
    (scheduler, f"{step}:0.2", *SIZES[(place + step) % len(SIZES)])
    for place, scheduler in enumerate(PROMISED)
    for step in range(STEPS - 1)
] + [
    (scheduler, schedule, *SIZES[place % 2])
    for place, (scheduler, schedule) in enumerate(
        zip(PROMISED, ["0:0.2+3", "1:0.3+1", "1:0.2+4", "0:0.5+2,3:0.5", "2:0.2+3", "4:0.2+1"], strict=True)
    )
]


@pytest.mark.parametrize(("scheduler", "schedule", "n", "micro_batch"), COVERING)
def test_winner_is_the_stock_image_of_its_seed(scheduler, schedule, n, micro_batch):
    out = search_pipe(scheduler)(
        PROMPT, **OPTIONS, num_candidates=n, schedule=schedule, seed=SEED, micro_batch=micro_batch
    )
    assert out.seeds[0] in {candidate_seed(SEED, 0, index) for index in range(n)}
    assert difference(out.images[0], scheduler, out.seeds[0]) <= (0 if micro_batch == 1 else 1)


@pytest.mark.parametrize("scheduler", PROMISED)
def test_winner_after_many_cuts_is_the_stock_image_of_its_seed(scheduler):
    out = search_pipe(scheduler)(
        PROMPT, **OPTIONS, num_candidates=16, schedule="0:0.5,1:0.5,2:0.5,3:0.6,4:0.5", seed=SEED, micro_batch=4
    )
    assert difference(out.images[0], scheduler, out.seeds[0]) <= 1


def test_best_of_n_finds_what_trying_every_seed_finds():
    out = search_pipe("ddim")(PROMPT, **OPTIONS, num_candidates=7, seed=SEED, micro_batch=1, num_images_per_prompt=7)
    seeds = [candidate_seed(SEED, 0, index) for index in range(7)]
    means = {seed: stock_image("ddim", seed).mean() for seed in seeds}
    assert out.seeds == sorted(seeds, key=means.__getitem__, reverse=True)
    assert out.rewards == sorted(out.rewards, reverse=True)
    assert out.rewards == pytest.approx([means[seed] / 25.5 for seed in out.seeds], abs=0.02)


def test_trace_tells_who_survived_and_why():
    out = search_pipe("ddim")(PROMPT, **OPTIONS, num_candidates=7, schedule="1:0.4,3:0.5", seed=SEED, previews=True)
    sizes = [len(look.candidates) for look in out.trace]
    assert sizes == [7, *PruningSchedule.parse("1:0.4,3:0.5").survivors(7)] == [7, 3, 2]
    assert [look.step for look in out.trace] == [1, 3, STEPS - 1]
    assert [len(look.previews) for look in out.trace] == sizes
    for look, following in itertools.pairwise(out.trace):
        assert look.survivors == following.candidates
        dropped = [s for i, s in zip(look.candidates, look.scores, strict=True) if i not in look.survivors]
        kept = [s for i, s in zip(look.candidates, look.scores, strict=True) if i in look.survivors]
        assert min(kept) >= max(dropped)
        assert look.sigma > following.sigma
    json.dumps([look.to_dict() for look in out.trace], allow_nan=False)


@pytest.mark.parametrize(
    ("scheduler", "guidance", "ahead"), [("ddim", 3.0, 0), ("pndm", 3.0, 0), ("euler", 1.0, 0), ("pndm", 3.0, 3)]
)
def test_ledger_counts_what_ran(scheduler, guidance, ahead):
    pipe, rows, images, scored = tiny_pipeline(scheduler), [], [], []

    def reward(batch, prompts):
        scored.append(len(batch))
        return brightness(batch, prompts)

    pipe.unet.register_forward_hook(lambda module, args, output: rows.append(len(args[0])))
    pipe.vae.decoder.register_forward_hook(lambda module, args, output: images.append(len(args[0])))
    search = TTSnapPipeline.from_pipe(pipe, reward=reward)
    options = {"num_inference_steps": STEPS, "guidance_scale": guidance}
    schedule = f"1:0.4+{ahead},3:0.5" if ahead else "1:0.4,3:0.5"
    out = search(["a", "cat"], **options, num_candidates=7, schedule=schedule, micro_batch=4, seed=1)
    ledger, calls = out.ledger, plan(pipe, STEPS).calls
    assert [look.lookahead for look in out.trace] == [ahead, ahead, 0, 0, 0, 0]
    assert [look.to_dict().get("lookahead", 0) for look in out.trace] == [ahead, ahead, 0, 0, 0, 0]
    assert ledger.denoiser_rows == sum(rows)
    assert ledger.cost == PruningSchedule.parse(schedule).cost(7, calls)._replace(
        calls=2 * (7 * (2 + ahead) + 3 * 2 + 2 * (calls - 4)), decoded=2 * 12, verified=2 * 12
    )
    assert sum(scored) == ledger.verified + ledger.calibration_images
    assert sum(images) == ledger.decoded
    assert ledger.without_pruning == (2 * 7 * calls, 14, 14, 0)
    json.dumps(ledger.to_dict(), allow_nan=False)


@pytest.mark.parametrize(
    ("budget", "schedule"),
    [
        ("3x", ""),
        ("8x", ""),
        ("3x", "1:0.4,3:0.5"),
        ("8x", "1:0.4,3:0.5"),
        ("8x", "1:0.2+3"),
        ("1.5GFLOP", "1:0.4"),
        ("0.02TFLOP", "0:0.2"),
    ],
)
def test_budget_is_used_up_and_never_overrun(budget, schedule):
    pipe = search_pipe("ddim")
    out = pipe(PROMPT, **OPTIONS, budget=budget, schedule=schedule, seed=SEED)
    n, told = len(out.trace[0].candidates), out.ledger.budget
    parsed = PruningSchedule.parse(schedule)
    assert out.ledger.cost == parsed.cost(n, STEPS)
    assert told["spent"] <= told["limit"] < parsed.cost(n + 1, STEPS).at(out.ledger.flops)
    assert told["spent"] + told["unspent"] == pytest.approx(told["limit"])
    if budget.endswith("x"):
        assert told["limit"] == pytest.approx(
            PruningSchedule().cost(1, STEPS).at(out.ledger.flops) * float(budget[:-1])
        )
        assert n == int(budget[:-1]) or schedule


def test_a_fitted_schedule_follows_the_budget_the_candidates_and_the_steps():
    entries = (
        Entry(budget=40.0, equivalent=2.0, candidates=4, schedule=PruningSchedule.parse("2:0.5")),
        Entry(budget=160.0, equivalent=8.0, candidates=20, schedule=PruningSchedule.parse("1:0.4,3:0.5")),
    )
    fitted = FittedSchedule((2,), (0.5,), entries, calls=STEPS)
    pipe = search_pipe("ddim")
    asked = [({"budget": "2x"}, [2, 5]), ({"budget": "9x"}, [1, 3, 5]), ({"num_candidates": 19}, [1, 3, 5])]
    for options, steps in asked:
        out = pipe(PROMPT, **OPTIONS, schedule=fitted, seed=SEED, **options)
        assert [look.step for look in out.trace] == steps
    out = pipe(PROMPT, **{**OPTIONS, "num_inference_steps": 3}, schedule=fitted, seed=SEED, num_candidates=4)
    assert [look.step for look in out.trace] == [1, 2]


def engine_of(micro_batch: int, preview_vae=None) -> Engine:
    pipe = tiny_pipeline()
    return Engine(
        pipe=pipe,
        reward=as_reward(brightness),
        prompts=[PROMPT],
        conditioning=encode_prompts(pipe, [PROMPT]),
        denoising=Denoising(STEPS, 3.0, micro_batch=micro_batch),
        plan=plan(pipe, STEPS),
        ledger=Ledger(rows_per_call=2),
        call=pipe,
        config=SearchConfig(STEPS, 3.0, preview_vae=preview_vae),
    )


@pytest.mark.parametrize(("text", "ahead", "most"), [("1:0.5", 0, 40), ("1:0.5+3", 3, 24)])
def test_budget_in_seconds_pays_for_padding(text, ahead, most):
    """By hand: 4 a batch; a call 10 s, decoding and scoring 1 s; looks after step 1, half go on."""
    engine, schedule, prices = engine_of(4), PruningSchedule.parse(text), Prices(10.0, 0.5, 0.5)

    def seconds(n: int) -> float:
        half = max(1, (n + 1) // 2)
        return 10.0 * ((2 + ahead) * -(-n // 4) * 4 + 4 * -(-half // 4) * 4) + n + half

    engine.pace = prices
    limit = spending_limit(Budget(2000.0, "s"), engine, spent_flop=0, began=time.perf_counter())
    assert limit == pytest.approx(0.9 * 2000, abs=1)
    assert affordable(engine, limit, schedule) == max(n for n in range(1, 200) if seconds(n) <= 0.9 * 2000) == most
    assert planned_cost(engine, schedule, most) == seconds(most)


def test_time_prices_are_measured_on_real_calls():
    engine, rows = engine_of(3), []
    engine.pipe.unet.register_forward_hook(lambda module, args, output: rows.append(len(args[0])))
    prices = time_prices(engine)
    assert min(prices.call, prices.decode, prices.verify) > 0
    assert engine.ledger.denoiser_rows == sum(rows) == 2 * 2 * 3
    assert engine.ledger.calibration_images == 6


def test_nan_is_dropped_reported_and_never_wins():
    def sometimes(images, prompts):
        scores = brightness(images, prompts)
        scores[scores == scores.max()] = float("nan")
        return scores

    pipe = TTSnapPipeline.from_pipe(shared_tiny(), reward=sometimes)
    out = pipe(PROMPT, **OPTIONS, num_candidates=8, schedule="2:0.5", seed=SEED, micro_batch=4)
    first, last = out.trace
    assert first.scores.count(None) == len(first.reasons) == 2
    assert not set(first.reasons) & set(first.survivors)
    assert last.scores[last.candidates.index(last.survivors[0])] == out.rewards[0]
    assert np.isfinite(out.rewards[0])
    with pytest.raises(ScoringError, match="Only 0 of 3 candidates .* returned nan"):
        pipe(PROMPT, **OPTIONS, num_candidates=3, reward=lambda images, prompts: [float("nan")] * len(images))


def test_estimates_are_scored_with_their_noise_level_and_winners_without():
    asked = []

    class Aware:
        name, higher_is_better, range, flops_per_image = "aware", True, (0.0, 10.0), None

        def score(self, images, prompts):
            asked.append((None, len(images)))
            return brightness(images, prompts)

        def score_estimates(self, images, prompts, log_snr):
            asked.append((log_snr, len(images)))
            return -brightness(images, prompts)

    pipe = TTSnapPipeline.from_pipe(shared_tiny("euler"), reward=Aware())
    out = pipe(PROMPT, **OPTIONS, num_candidates=4, schedule="1:0.5,3:0.5", seed=SEED, micro_batch=4)
    levels = [-2 * math.log(look.sigma) for look in out.trace[:-1]]
    assert asked == [(None, 2), (0.0, 2), (levels[0], 4), (levels[1], 2), (None, 1)]
    assert levels[0] < levels[1]
    assert out.ledger.calibration_images == 4
    assert max(out.trace[0].scores) < 0 < out.rewards[0]
    assert out.rewards[0] == pytest.approx(stock_image("euler", out.seeds[0]).mean() / 25.5, abs=0.02)


def test_lower_may_be_better():
    def dark(images, prompts):
        return brightness(images, prompts)

    dark.higher_is_better = False
    out = search_pipe("ddim")(PROMPT, **OPTIONS, num_candidates=5, reward=dark, seed=SEED)
    assert out.rewards[0] == min(out.trace[0].scores)


def test_lists_of_prompts_winners_and_outputs():
    pipe = search_pipe("ddim")
    options = {**OPTIONS, "seed": SEED, "num_candidates": 4, "num_images_per_prompt": 2}
    both = pipe([PROMPT, "cat"], **options)
    assert len(both.images) == len(both.seeds) == len(both.rewards) == 4
    assert both.seeds[:2] == pipe(PROMPT, **options).seeds
    assert set(both.seeds[2:]) <= {candidate_seed(SEED, 1, index) for index in range(4)}
    images, flagged = pipe(PROMPT, **options, return_dict=False, output_type="np")
    assert flagged is None
    assert images.shape == (2, 64, 64, 3)
    assert pipe(PROMPT, **options, output_type="pt").images.shape == (2, 3, 64, 64)
    latents = pipe(PROMPT, **options, output_type="latent").images
    stock = shared_tiny()(PROMPT, **OPTIONS, generator=generators(both.seeds[:1])[0], output_type="latent").images
    torch.testing.assert_close(latents[:1], stock, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("output_type", ["pt", "latent"])
def test_tensors_lie_on_the_device_that_the_pipeline_runs_on(output_type, monkeypatch):
    """Any device but the host, on which winners wait: here ``meta``, from the end of the search on."""
    pipe = TTSnapPipeline.from_pipe(shared_tiny(), reward=brightness)
    carry_out = pipe.carry_out

    def then_move(request):
        result = carry_out(request)
        monkeypatch.setattr(type(pipe), "_execution_device", torch.device("meta"))
        return result

    monkeypatch.setattr(pipe, "carry_out", then_move)
    images = pipe(PROMPT, **OPTIONS, seeds=[3], output_type=output_type).images
    assert (images.device.type, len(images)) == ("meta", 1)


def test_noise_may_come_from_seeds_or_generators():
    pipe, seeds = search_pipe("ddim"), [5, 6, 9]
    options = {**OPTIONS, "num_images_per_prompt": 3}
    expected = pipe(PROMPT, **options, seeds=seeds)
    assert sorted(expected.seeds) == seeds
    listed = generators(seeds)
    assert pipe(PROMPT, **options, generator=listed).seeds == expected.seeds
    assert torch.equal(listed[0].get_state(), generators(seeds)[0].get_state())
    torch.randn(3, generator=listed[0])
    assert pipe(PROMPT, **options, generator=listed).seeds.count(None) == 1
    one = [pipe(PROMPT, **options, num_candidates=3, generator=generators([3])[0]).seeds for _ in range(2)]
    assert one[0] == one[1]


@pytest.mark.parametrize("height", [64, 96])
def test_size_eta_and_negative_prompt_reach_the_stock_pipeline(height):
    options = {**OPTIONS, "height": height, "width": 64, "eta": 0.5, "negative_prompt": "cat"}
    options["guidance_rescale"] = 0.3
    out = search_pipe("ddim")(PROMPT, **options, seeds=[3, 4], schedule="2:0.5", micro_batch=1)
    stock = shared_tiny()(PROMPT, **options, generator=generators(out.seeds)[0]).images[0]
    assert np.array_equal(np.asarray(out.images[0]), np.asarray(stock))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_from_pipe_shares_modules_and_casts_nothing(dtype):
    stock = tiny_pipeline().to(dtype=dtype)
    pipe = TTSnapPipeline.from_pipe(stock, reward=brightness)
    assert all(pipe.components[name] is module for name, module in stock.components.items())
    assert pipe.dtype == stock.unet.dtype == dtype
    assert pipe._progress_bar_config == stock._progress_bar_config
    out = pipe(PROMPT, **OPTIONS, num_candidates=2, schedule="2:0.5", seed=SEED, micro_batch=1)
    again = stock(PROMPT, **OPTIONS, generator=generators(out.seeds)[0]).images[0]
    assert np.array_equal(np.asarray(out.images[0]), np.asarray(again))


def test_saved_folder_is_stock_and_comes_back(tmp_path):
    search_pipe("euler").save_pretrained(tmp_path)
    assert type(DiffusionPipeline.from_pretrained(tmp_path)) is StableDiffusionPipeline
    pipe = TTSnapPipeline.from_pretrained(tmp_path, reward=brightness)
    pipe.set_progress_bar_config(disable=True)
    out = pipe(PROMPT, **OPTIONS, num_candidates=2, seed=SEED, micro_batch=1)
    assert difference(out.images[0], "euler", out.seeds[0]) == 0
    assert isinstance(pipe.to("cpu"), TTSnapPipeline)


def test_one_progress_bar_which_obeys(capsys):
    pipe = TTSnapPipeline.from_pipe(tiny_pipeline(), reward=brightness)
    pipe(PROMPT, **OPTIONS, num_candidates=3, schedule="1:0.4")
    assert capsys.readouterr().err == ""
    pipe.set_progress_bar_config(disable=False, mininterval=0)
    pipe(PROMPT, **OPTIONS, num_candidates=3, schedule="1:0.4")
    shown = capsys.readouterr().err
    total = PruningSchedule.parse("1:0.4").cost(3, STEPS).calls
    assert f"{total}/{total}" in shown
    assert f"{STEPS}/{STEPS}" not in shown


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"schedule": "5:0.5"}, "must come before its last one"),
        ({"schedule": "3:0.5,2:0.5"}, "must rise"),
        ({"schedule": "2:1.5"}, r"must lie in \(0, 1\]"),
        ({"schedule": "2:0"}, r"must lie in \(0, 1\]"),
        ({"schedule": "two"}, "Unknown schedule 'two'"),
        ({"schedule": "2;0.4"}, "step:share"),
        ({"schedule": 3}, "Expected a PruningSchedule"),
        ({"num_candidates": 0}, "num_candidates must be"),
        ({"num_candidates": 4, "num_images_per_prompt": 3, "schedule": "2:0.5"}, "leave 2 survivors, fewer than the 3"),
        ({"num_images_per_prompt": 0}, "num_images_per_prompt must be"),
        ({"micro_batch": 0}, "micro_batch must be"),
        ({"budget": "0.5x"}, "too small for one candidate"),
        ({"budget": "lots"}, "Cannot read the budget"),
        ({"budget": "4x", "num_candidates": 3}, "A budget chooses"),
        ({"seed": 1, "seeds": [1]}, "only one of"),
        ({"seed": -1}, "seed must be"),
        ({"seeds": [1, 1]}, "without repetitions"),
        ({"seeds": [1, 2], "num_candidates": 3}, "for 2"),
        ({"num_inference_steps": 0}, "num_inference_steps must be"),
        ({"num_inference_steps": 2000}, "refuses 2000 steps"),
        ({"height": 63, "width": 64}, "multiple of 8"),
        ({"output_type": "gif"}, "output_type"),
        ({"reward": lambda images, prompts: images.mean()}, "one score for each of 2 images"),
        ({"reward": lambda images, prompts: "good"}, "no numbers"),
        ({"reward": 5}, "Expected the name of a reward"),
        ({"reward": "nobody"}, "Unknown reward 'nobody'"),
        ({"prompt": []}, "non-empty list of prompts"),
        ({"negative_prompt": ["a", "b"]}, "2 negative prompts"),
    ],
)
def test_bad_input_gets_a_sentence_before_anything_runs(options, sentence):
    pipe, ran = search_pipe("ddim"), []
    hook = pipe.unet.register_forward_hook(lambda module, args, output: ran.append(output[0].device.type))
    arguments = {"prompt": PROMPT, **OPTIONS, **options}
    with pytest.raises(InputError, match=sentence):
        pipe(**arguments)
    hook.remove()
    assert not ran


def test_refuses_other_schedulers_and_pipelines():
    pipe = TTSnapPipeline.from_pipe(tiny_pipeline(), reward=brightness)
    pipe.scheduler = DDIMParallelScheduler(**NOISE)
    with pytest.raises(InputError, match=r"DDIMParallelScheduler cannot be suspended.*schedule='' to try whole images"):
        pipe(PROMPT, **OPTIONS, schedule="1:0.5")
    with pytest.raises(InputError, match="give reward="):
        TTSnapPipeline.from_pipe(tiny_pipeline())(PROMPT, **OPTIONS)

    class Guided(StableDiffusionPipeline):
        @property
        def components(self):
            return {**super().components, "controlnet": object()}

    with pytest.raises(InputError, match="differ in controlnet"):
        TTSnapPipeline.from_pipe(Guided(**tiny_pipeline().components, requires_safety_checker=False))
