"""Recorded trajectories: the stock pipeline's images, the search's estimates, the same bytes however it was run."""

from __future__ import annotations

import functools
import json
import math
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from launch import server
from tiny import tiny_pipeline

from diffkit.conditioning import encode_prompts
from diffkit.errors import InputError
from diffkit.latents import decode_latents
from diffkit.parameterization import PURE_NOISE, log_snr
from diffkit.rewards.base import as_reward
from diffkit.runs import Run
from diffkit.seeds import candidate_seed, generators
from diffkit.segments import Candidate, Denoising, run_segment
from ttsnap.trajectories.collect import collect
from ttsnap.trajectories.dataset import Trajectories, shard_name, steps_near
from ttsnap.trajectories.recorder import CollectSettings, Recorder, preview_side, small

PROMPTS = ["a dog", "cat at dog", "dog", "at a cat"]
STEPS, GUIDANCE = 5, 3.0


def brightness(images, prompts):
    return images.mean(dim=(1, 2, 3))


def settings(**changes):
    return CollectSettings(**{"candidates": 2, "num_inference_steps": STEPS, "micro_batch": 2, "seed": 7, **changes})


pipeline = functools.cache(tiny_pipeline)  # its FLOP are counted once


def record(folder, prompts=PROMPTS[:2], *, scheduler="ddim", rewards=None, **changes):
    rewards = {"brightness": as_reward(brightness)} if rewards is None else rewards
    return collect(pipeline(scheduler), prompts, rewards, settings(**changes), out=folder)


def shards(folder):
    return {path.name: path.read_bytes() for path in sorted(Path(folder, "shards").iterdir())}


@functools.cache
def stock_image(scheduler, prompt, seed):
    """(3, H, W) float in [0, 1], as the stock pipeline makes it from the seed alone."""
    made = tiny_pipeline(scheduler)(
        prompt,
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        generator=torch.Generator().manual_seed(seed),
        output_type="pt",
    )
    return made.images[0]


@pytest.mark.parametrize(("scheduler", "micro_batch", "levels"), [("ddim", 1, 0), ("dpm++", 2, 1), ("pndm", 3, 1)])
def test_final_images_are_the_stock_pipelines(tmp_path, scheduler, micro_batch, levels):
    found = record(tmp_path / "run", scheduler=scheduler, micro_batch=micro_batch)
    for trajectory in found:
        for image, seed in zip(trajectory.final_images, trajectory.seeds, strict=True):
            expected = (stock_image(scheduler, trajectory.prompt, seed) * 255).round()
            assert (image.float() - expected).abs().max() <= levels


def test_published_mistake_14_seeds_are_stored_and_follow_from_the_runs_seed(tmp_path):
    found = record(tmp_path / "run")
    assert [one.seeds for one in found] == [[candidate_seed(7, p, i) for i in range(2)] for p in range(2)]


def test_published_mistake_14_scores_come_from_the_float_image_not_from_8_bits(tmp_path):
    found = record(tmp_path / "run", micro_batch=1)
    for trajectory in found:
        exact = torch.stack([stock_image("ddim", trajectory.prompt, seed).mean() for seed in trajectory.seeds])
        assert torch.equal(trajectory.finals["brightness"], exact)
        rounded = (trajectory.final_images.float() / 255).mean(dim=(1, 2, 3))
        assert not torch.equal(rounded, exact)
        torch.testing.assert_close(rounded, exact, atol=2e-3, rtol=0)


@pytest.mark.parametrize("scheduler", ["ddim", "euler-ancestral", "unipc", "pndm"])
def test_published_mistake_1_look_s_is_the_estimate_after_s_plus_1_calls(tmp_path, scheduler):
    """The reference is a denoising suspended after s + 1 calls, as a search suspends it."""
    found = record(tmp_path / "run", PROMPTS[:1], scheduler=scheduler)
    assert found.steps == tuple(range(6 if scheduler == "pndm" else 5))
    pipe = tiny_pipeline(scheduler)
    conditioning, denoising = encode_prompts(pipe, PROMPTS[:1]), Denoising(STEPS, GUIDANCE, micro_batch=2)
    for step in found.steps:
        seeds = found[0].seeds
        fresh = [Candidate(i, 0, source, seeds[i]) for i, source in enumerate(generators(seeds))]
        done = run_segment(pipe, fresh, conditioning, denoising, 0, step + 1)
        images = decode_latents(pipe, torch.cat([one.x0 for one in done]))
        assert torch.equal(found[0].rewards["brightness"][:, step], images.mean(dim=(1, 2, 3)))
        assert torch.equal(found[0].previews[:, step], (images.clamp(0, 1) * 255).round().to(torch.uint8))
        torch.testing.assert_close(found[0].estimates(step), images, atol=0.5 / 255 + 1e-6, rtol=0)


def test_published_mistake_15_pool_members_do_not_influence_each_other(tmp_path):
    """Three prompts share micro-batches of four; alone, padded, or with fewer mates each gives the same rows."""
    together = record(tmp_path / "together", PROMPTS[:3], candidates=3, micro_batch=4)
    alone = record(tmp_path / "alone", PROMPTS[:1], candidates=2, micro_batch=4)
    for name in ("previews", "final_images", "rewards.brightness", "finals.brightness", "seeds"):
        assert torch.equal(together[0].tensor(name)[:2], alone[0].tensor(name))


def test_noise_aware_rewards_hear_the_level_of_estimates_and_judge_finals_plainly(tmp_path):
    class Aware:
        name, higher_is_better, range, flops_per_image = "aware", True, (-99.0, 99.0), 1.0

        def score(self, images, prompts):
            return torch.full((len(images),), 77.0)

        def score_estimates(self, images, prompts, log_snr):
            return torch.full((len(images),), log_snr)

    found = record(tmp_path / "run", rewards={"aware": Aware()}, record=(1, 3))
    assert found.log_snrs == tuple(log_snr(found.all_sigmas[step]) for step in (1, 3))
    expected = torch.tensor(found.log_snrs).expand(2, 2)
    torch.testing.assert_close(found[1].rewards["aware"], expected)
    assert found[1].finals["aware"].tolist() == [77.0, 77.0]
    tensor = found.reward_tensor("aware")
    assert tensor.recorded == [1, 3]
    assert tensor.looks.shape == (2, 2, 5)
    assert np.isnan(tensor.looks[:, :, [0, 2, 4]]).all()


def test_a_missing_score_stays_nan_and_is_counted(tmp_path):
    def moody(images, prompts):
        return [math.inf if prompt == PROMPTS[1] else 0.5 for prompt in prompts]

    found = record(tmp_path / "run", rewards={"moody": as_reward(moody), "brightness": as_reward(brightness)})
    assert found[1].rewards["moody"].isnan().all()
    assert found[1].finals["moody"].isnan().all()
    assert [item["unscored"] for item in found.items()] == [
        {}, {"moody": {"count": 2 * (STEPS + 1), "reason": "the reward 'moody' returned inf"}}
    ]  # fmt: skip
    summary = json.loads((found.folder / "summary.json").read_text())
    assert summary["rewards"]["moody"] == {
        **summary["rewards"]["moody"], "tau": [None] * STEPS, "tau_prompts": [0] * STEPS, "unscored": 2 * (STEPS + 1)
    }  # fmt: skip
    assert summary["rewards"]["brightness"]["unscored"] == 0
    assert found.reward_tensor("moody").missing == 2 * (STEPS + 1)


def test_lower_is_better_is_turned_in_the_reward_tensor(tmp_path):
    def dark(images, prompts):
        return brightness(images, prompts)

    dark.higher_is_better = False
    found = record(tmp_path / "run", rewards={"dark": as_reward(dark)})
    np.testing.assert_allclose(found.reward_tensor("dark").final[0], -found[0].finals["dark"].numpy())


def test_previews_have_the_rewards_own_input_size_and_finals_are_scored_at_full_size(tmp_path):
    class Small:
        name, higher_is_better, range, flops_per_image, input_size = "small", True, (0.0, 99.0), 1.0, 16

        def score(self, images, prompts):
            return torch.full((len(images),), float(images.shape[-1]))

    found = record(tmp_path / "run", PROMPTS[:1], rewards={"small": Small()}, record=(4,))
    assert found[0].previews.shape == (2, 1, 3, 16, 16)
    assert found[0].final_images.shape == (2, 3, 16, 16)
    assert found[0].finals["small"].tolist() == [64.0, 64.0]
    assert preview_side({"a": Small(), "b": as_reward(brightness)}) is None
    image = torch.rand(1, 3, 64, 128)
    assert small(image, 16).shape == (1, 3, 16, 32)
    assert small(image, 99).shape == image.shape
    assert small(torch.full((1, 3, 4, 4), math.nan), None).sum() == 0


def test_without_previews_only_scores_are_kept(tmp_path):
    found = record(tmp_path / "run", PROMPTS[:1], previews=False)
    assert not found[0].has_previews
    with pytest.raises(InputError, match="without --no-previews"):
        found[0].estimates(0)
    assert found[0].rewards["brightness"].shape == (2, STEPS)


def test_memory_is_bounded_each_prompt_is_handed_out_before_the_next_is_denoised():
    pipe, calls = tiny_pipeline(), []
    pipe.unet.register_forward_hook(lambda module, args, output: calls.append(len(args[0])))
    from diffkit.step_plan import plan

    steps = plan(pipe, STEPS)
    recorder = Recorder(pipe, {"brightness": as_reward(brightness)}, settings().resolved(steps), steps)
    for number, _ in enumerate(recorder.run(dict(enumerate(PROMPTS))), start=1):
        assert calls == [4] * STEPS * number


class Dying:
    """Brightness, until the process is killed."""

    name, higher_is_better, range, flops_per_image = "brightness", True, (0.0, 1.0), 1.0

    def __init__(self, left: float = math.inf) -> None:
        self.left = left

    def score(self, images, prompts):
        self.left -= 1
        if self.left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return brightness(images, prompts)


def collect_and_die(folder):
    left = 1 + 2 * (STEPS + 2) + 2  # the trial, two prompts with a lookahead, and two looks at the third
    record(folder, PROMPTS, rewards={"brightness": Dying(left)}, lookahead=((1, 2),))


def test_resumed_after_a_kill_it_gives_the_same_bytes(tmp_path):
    worker = server().Process(target=collect_and_die, args=(tmp_path / "killed",))
    worker.start()
    worker.join(120)
    assert worker.exitcode == -signal.SIGKILL
    assert [one.prompt for one in Trajectories.open(tmp_path / "killed")] == PROMPTS[:2]  # readable while unfinished
    rewards, ahead = {"brightness": Dying()}, ((1, 2),)
    resumed, whole = (
        record(tmp_path / name, PROMPTS, rewards=rewards, lookahead=ahead) for name in ("killed", "whole")
    )
    assert len(resumed) == len(PROMPTS)
    assert shards(resumed.folder) == shards(whole.folder)
    assert [item["sha256"] for item in resumed.items()] == [item["sha256"] for item in whole.items()]


def collect_together(rank, folder):
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT="0",
                      ACCELERATE_USE_CPU="true")  # fmt: skip
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.set_num_threads(1)
    found = record(Path(folder, "run"), PROMPTS[:3])
    Path(folder, f"{rank}.txt").write_text(f"{len(found)}")
    try:
        record(Path(folder, "run"), PROMPTS[:2])
    except InputError as error:
        Path(folder, f"{rank}.txt").write_text(f"{len(found)} {error}")
    dist.barrier()
    dist.destroy_process_group()


def test_two_processes_write_what_one_writes(tmp_path):
    context = server()
    workers = [context.Process(target=collect_together, args=(rank, str(tmp_path))) for rank in range(2)]
    for worker in workers:
        worker.start()
    alone = record(tmp_path / "alone", PROMPTS[:3])
    for worker in workers:
        worker.join(120)
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert shards(tmp_path / "run") == shards(alone.folder)
    assert [i["sha256"] for i in Trajectories.open(tmp_path / "run").items()] == [i["sha256"] for i in alone.items()]
    said = [(tmp_path / f"{rank}.txt").read_text() for rank in range(2)]
    assert said[0] == said[1]  # a refusal reaches the process that does not open the folder
    assert said[0].startswith("3 ")
    assert "holds another run: prompts is" in said[0]


def test_prices_are_counted_and_measured(tmp_path):
    found = record(tmp_path / "run", record=(2,))
    flop, seconds = found.prices("brightness"), found.prices("brightness", "s")
    assert flop.call > flop.decode > 0
    assert flop.verify == 0  # a mean has no matrix product
    assert min(seconds.call, seconds.decode, seconds.verify) > 0
    total = sum(item["seconds"]["denoiser"] for item in found.items())
    assert seconds.call == pytest.approx(total / (2 * 2 * STEPS))


def test_reading_refuses_with_a_sentence(tmp_path):
    found = record(tmp_path / "run")
    with pytest.raises(InputError, match="has no reward 'other'; it holds brightness"):
        found.reward_tensor("other")
    with pytest.raises(InputError, match="Step 9 was not recorded"):
        found[0].estimates(9)
    with pytest.raises(InputError, match="has no 'odd'"):
        found[-1].tensor("odd")
    with pytest.raises(IndexError):
        found[2]
    (found.folder / shard_name(1)).write_bytes(b"torn")
    with pytest.raises(InputError, match="Cannot read the shard"):
        found[1].previews  # noqa: B018
    with pytest.raises(InputError, match="holds no collected trajectories"):
        Trajectories.open(tmp_path)
    with Run.open(tmp_path / "other", config={}, kind="audit"), pytest.raises(InputError, match="another kind"):
        Trajectories.open(tmp_path / "other")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"candidates": 0}, "candidates must be"),
        ({"micro_batch": True}, "micro_batch must be"),
        ({"record": (2, 1)}, "must rise"),
        ({"record": ()}, "at least one"),
        ({"record": (0, STEPS)}, "has steps 0 to 4"),
        ({"seed": -1}, "seed must be"),
    ],
)
def test_wrong_settings_write_nothing(tmp_path, changes, sentence):
    with pytest.raises(InputError, match=sentence):
        record(tmp_path / "run", **changes)
    assert not (tmp_path / "run").exists()


def test_nothing_to_record_is_refused(tmp_path):
    with pytest.raises(InputError, match="non-empty list of prompts"):
        record(tmp_path / "run", [])
    with pytest.raises(InputError, match="no reward"):
        record(tmp_path / "run", rewards={})


@given(
    st.lists(st.floats(0.01, 100), min_size=1, max_size=12, unique=True),
    st.lists(st.floats(-12, 12), min_size=1, max_size=5),
)
def test_steps_near_are_the_nearest(sigmas, levels):
    sigmas = sorted(sigmas, reverse=True)
    found = steps_near(sigmas, levels)
    assert list(found) == sorted(set(found))
    distances = np.abs(-2 * np.log(np.array(sigmas))[:, None] - np.array(levels)[None])
    for column in distances.T:
        assert column[list(found)].min() == pytest.approx(column.min())
    assert len(found) <= len(levels)


def test_a_preview_decoder_decodes_estimates_and_never_finals(tmp_path):
    from tiny import tiny_vae

    torch.manual_seed(5)
    preview, pipe = tiny_vae(), tiny_pipeline()
    plain = record(tmp_path / "plain", PROMPTS[:1], record=(1, 3))
    found = collect(pipe, PROMPTS[:1], {"brightness": as_reward(brightness)}, settings(record=(1, 3)),
                    out=tmp_path / "preview", origin={"preview_vae": "other"}, preview_vae=preview)  # fmt: skip
    assert torch.equal(found[0].final_images, plain[0].final_images)
    assert not torch.equal(found[0].previews, plain[0].previews)
    seen = []
    steps = found.steps
    fresh = [Candidate(i, 0, source) for i, source in enumerate(generators(found[0].seeds))]
    run_segment(pipe, fresh, encode_prompts(pipe, PROMPTS[:1]), Denoising(STEPS, GUIDANCE, micro_batch=2), 0, STEPS,
                on_estimate=lambda step, x0: seen.append(decode_latents(pipe, x0, preview)))  # fmt: skip
    for step in steps:
        assert torch.equal(found[0].rewards["brightness"][:, steps.index(step)], seen[step].mean(dim=(1, 2, 3)))
    assert plain.prices("brightness").preview is None
    assert found.prices("brightness").preview == found.prices("brightness").decode > 0  # the same architecture
    assert found.prices("brightness", "s").preview > 0


def test_pure_noise_at_the_first_step_has_the_level_where_flow_models_begin(tmp_path):
    from diffusers import DDIMScheduler
    from tiny import NOISE

    pipe = tiny_pipeline()
    pipe.scheduler = DDIMScheduler(
        **NOISE,
        clip_sample=False,
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        prediction_type="v_prediction",
    )
    found = collect(pipe, PROMPTS[:1], {"brightness": as_reward(brightness)}, settings(), out=tmp_path / "run")
    assert found.sigmas[0] == PURE_NOISE == 1000
    assert found.log_snrs[0] == pytest.approx(-13.8, abs=0.1)
    assert found[0].rewards["brightness"].isfinite().all()
    assert json.loads((found.folder / "summary.json").read_text())["sigmas"][0] == PURE_NOISE
