"""Suspending and resuming changes nothing, for every scheduler; the pipeline is as before afterwards."""

from __future__ import annotations

import functools
import itertools

import pytest
import torch
from diffusers import StableDiffusionInstructPix2PixPipeline, UniPCMultistepScheduler
from tiny import NOISE, SCHEDULERS, tiny_pipeline
from tiny_search import shared_tiny

from diffkit.conditioning import encode_prompts
from diffkit.errors import InputError
from diffkit.seeds import generators
from diffkit.segments import Candidate, Denoising, run_segment
from diffkit.step_plan import plan

PROMPTS = ["a dog", "cat at dog"]
STEPS, SEEDS = 6, (11, 12, 13)


@functools.cache
def stock(scheduler: str, eta: float = 0.0, seed: int = SEEDS[0]) -> torch.Tensor:
    """Latents that the stock pipeline makes from one seed alone."""
    return shared_tiny(scheduler)(
        PROMPTS[0],
        num_inference_steps=STEPS,
        guidance_scale=3.0,
        eta=eta,
        generator=generators([seed])[0],
        output_type="latent",
    ).images


def fresh(seeds=SEEDS, prompt=0):
    return [
        Candidate(i, prompt, generator, seed)
        for i, (seed, generator) in enumerate(zip(seeds, generators(seeds), strict=True))
    ]


def resumed(pipe, cuts, *, micro_batch=1, eta=0.0, seeds=SEEDS[:1], **options):
    candidates, conditioning = fresh(seeds), encode_prompts(pipe, PROMPTS)
    denoising = Denoising(STEPS, 3.0, eta=eta, micro_batch=micro_batch)
    stops = [*cuts, plan(pipe, STEPS).calls]
    for start, stop in itertools.pairwise([0, *stops]):
        candidates = run_segment(pipe, candidates, conditioning, denoising, start, stop, **options)
    return candidates


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_cut_anywhere_is_bit_equal(scheduler):
    pipe = shared_tiny(scheduler)
    calls = plan(pipe, STEPS).calls
    cuts = [[1], [2, 4], [3, 5], list(range(1, calls))]  # everywhere once behind a longer segment, and everywhere
    if scheduler == "pndm-prk":  # its Runge-Kutta start needs 12 calls: cut inside, at its end and after
        cuts = [[5], [12], [13], cuts[-1]]
    elif calls > STEPS + 1:  # two calls a step: cut inside of a step, behind one, and everywhere
        assert calls == 2 * STEPS - 1
        cuts = [[3], [4], cuts[-1]]
    for places in cuts:
        (candidate,) = resumed(pipe, places)
        assert torch.equal(candidate.latents, stock(scheduler)), places


@pytest.mark.parametrize("scheduler", ["ddim", "tcd"])
def test_noise_by_eta_comes_from_the_candidates_generator(scheduler):
    assert not torch.equal(stock(scheduler, 0.7), stock(scheduler))
    (candidate,) = resumed(tiny_pipeline(scheduler), [2, 3], eta=0.7)
    assert torch.equal(candidate.latents, stock(scheduler, 0.7))


@pytest.mark.parametrize("scheduler", ["euler-ancestral", "unipc", "dpm-sde", "pndm"])
@pytest.mark.parametrize("micro_batch", [2, 4])
def test_batch_mates_do_not_matter(scheduler, micro_batch):
    pipe = shared_tiny(scheduler)
    together = resumed(pipe, [1, 4], micro_batch=micro_batch, seeds=SEEDS)
    for position, seed in enumerate(SEEDS):
        torch.testing.assert_close(together[position].latents, stock(scheduler, seed=seed), rtol=1e-4, atol=1e-3)
        (alone,) = resumed(pipe, [3], micro_batch=micro_batch, seeds=(seed,))
        assert torch.equal(together[position].latents, alone.latents)


@pytest.mark.parametrize("scheduler", ["ddim", "euler", "dpm++", "unipc", "pndm"])
def test_x0_of_the_last_step_is_the_image(scheduler):
    """Independent reference: where the last step goes to sigma 0 its result is x0 itself."""
    pipe = tiny_pipeline(scheduler)
    if scheduler == "ddim":
        pipe.scheduler.final_alpha_cumprod = torch.tensor(1.0)
    (candidate,) = resumed(pipe, [3])
    tolerance = 0.08 if scheduler == "pndm" else 1e-4  # PNDM's last step mixes four predictions
    assert (candidate.x0 - candidate.latents).abs().max() < tolerance * candidate.latents.abs().max()


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_pipeline_is_as_before(scheduler):
    pipe = tiny_pipeline(scheduler)
    own, bar = type(pipe.scheduler), dict(pipe._progress_bar_config)
    attributes = set(pipe.scheduler.__dict__)
    resumed(pipe, [2])
    assert type(pipe.scheduler) is own
    assert set(pipe.scheduler.__dict__) == attributes
    assert pipe._progress_bar_config == bar
    after = pipe(PROMPTS[0], num_inference_steps=STEPS, guidance_scale=3.0, generator=generators(SEEDS[:1])[0],
                 output_type="latent").images  # fmt: skip
    assert torch.equal(after, stock(scheduler))


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_pipeline_is_as_before_when_interrupted(error):
    pipe = tiny_pipeline("unipc")

    def stop(real, padding):
        raise error

    with pytest.raises(error):
        resumed(pipe, [2], on_step=stop)
    assert type(pipe.scheduler) is UniPCMultistepScheduler
    assert isinstance(pipe.scheduler.timestep_list, list)
    assert pipe._progress_bar_config == {"disable": True}


def test_rows_are_reported_with_their_padding():
    pipe, seen, real = tiny_pipeline(), [], []
    pipe.unet.register_forward_hook(lambda module, args, output: real.append(len(args[0])))
    resumed(pipe, [2], micro_batch=2, seeds=SEEDS, on_step=lambda rows, padding: seen.append((rows, padding)))
    assert sum(rows for rows, _ in seen) == len(SEEDS) * STEPS
    assert [2 * (rows + padding) for rows, padding in seen] == real


def test_candidates_are_not_changed_in_place():
    pipe = tiny_pipeline("euler-ancestral")
    (candidate,) = fresh(SEEDS[:1])
    conditioning, denoising = encode_prompts(pipe, PROMPTS), Denoising(STEPS, 3.0, micro_batch=1)
    first = run_segment(pipe, [candidate], conditioning, denoising, 0, 3)
    again = run_segment(pipe, [candidate], conditioning, denoising, 0, 3)
    later = [run_segment(pipe, part, conditioning, denoising, 3, STEPS)[0].latents for part in (first, first, again)]
    assert candidate.latents is None
    assert torch.equal(later[0], later[1])
    assert torch.equal(later[0], later[2])


def test_prompts_may_share_a_micro_batch():
    pipe = tiny_pipeline()
    conditioning, denoising = encode_prompts(pipe, PROMPTS), Denoising(STEPS, 3.0, micro_batch=2)
    mixed = [*fresh(SEEDS[:1], prompt=0), *fresh(SEEDS[:1], prompt=1)]
    done = run_segment(pipe, mixed, conditioning, denoising, 0, STEPS)
    torch.testing.assert_close(done[0].latents, stock("ddim"), rtol=1e-4, atol=1e-3)
    assert (done[1].latents - stock("ddim")).abs().max() > 0.01


def test_plan_counts_the_calls_and_the_noise():
    assert plan(tiny_pipeline("ddim"), 6).calls == 6
    assert plan(tiny_pipeline("pndm"), 6).calls == 7
    for scheduler in ("ddim", "euler", "dpm++", "unipc"):
        sigmas = plan(tiny_pipeline(scheduler), 6).sigmas
        assert sorted(sigmas, reverse=True) == list(sigmas)
        assert 0 < sigmas[-1] < sigmas[0] < 20


def test_refusals_name_the_way_out():
    pipe = tiny_pipeline()
    pipe.scheduler = UniPCMultistepScheduler(**NOISE, solver_p=SCHEDULERS["ddim"]())
    with pytest.raises(InputError, match="solver_p=None"):
        plan(pipe, 6).check_looks([1])
    other = StableDiffusionInstructPix2PixPipeline(**tiny_pipeline().components, requires_safety_checker=False)
    with pytest.raises(InputError, match="no known family"):
        plan(other, 6)
    with pytest.raises(InputError, match="at least 1"):
        plan(tiny_pipeline(), 0)
    with pytest.raises(InputError, match="at step 0, not 2"):
        run_segment(tiny_pipeline(), fresh(), encode_prompts(tiny_pipeline(), PROMPTS), Denoising(6), 2, 3)


def test_rows_of_a_padded_micro_batch():
    full, least = Denoising(6, micro_batch=8), Denoising(6, micro_batch=8, padding="least")
    assert [full.rows(n) for n in (0, 1, 7, 8, 9)] == [0, 8, 8, 8, 16]
    assert [least.rows(n) for n in (0, 1, 2, 3, 5, 8, 9, 11, 13)] == [0, 1, 2, 4, 8, 8, 9, 12, 16]
    assert [Denoising(6, micro_batch=6, padding="least").rows(n) for n in (5, 7, 11)] == [6, 7, 12]
    assert all(least.rows(n) == n for n in (1, 2, 4, 8, 16, 24)), "powers of two and whole batches waste nothing"


def test_least_padding_runs_just_those_rows_and_changes_last_bits_only():
    pipe, results, rows = tiny_pipeline(), {}, []
    handle = pipe.unet.register_forward_hook(lambda module, args, output: rows.append(len(args[0])))
    conditioning = encode_prompts(pipe, PROMPTS[:1])
    for padding in ("full", "least"):
        candidates = [Candidate(i, 0, generator, seed=i) for i, generator in enumerate(generators(range(3)))]
        denoising = Denoising(4, 3.0, micro_batch=8, padding=padding)
        results[padding] = torch.cat(
            [one.latents for one in run_segment(pipe, candidates, conditioning, denoising, 0, 4)]
        )
    handle.remove()
    assert rows == [2 * 8] * 4 + [2 * 4] * 4
    torch.testing.assert_close(results["least"], results["full"], rtol=1e-4, atol=1e-5)
