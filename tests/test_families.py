"""The contract of families, a row each, on tiny pipelines of the real classes; the stock pipeline is the reference."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler
from diffusers.hooks import FirstBlockCacheConfig, apply_group_offloading
from diffusers.utils import is_sentencepiece_available
from peft import LoraConfig, inject_adapter_in_model
from tiny_families import FAMILY_ROWS, family_pipeline
from tiny_search import brightness, pixels, shared_family

import diffkit.flops
from diffkit.conditioning import encode_prompts, initial_latents, latent_shape, predict_noise
from diffkit.errors import InputError
from diffkit.families import FAMILIES, family_of, is_guided, pipe_denoiser
from diffkit.families.base import FLOW_SHIFTED
from diffkit.gradient_checkpointing import gradient_checkpointing
from diffkit.latents import decode_latents, encode_images
from diffkit.lookahead import look_ahead
from diffkit.parameterization import is_flow
from diffkit.rewards.base import as_reward
from diffkit.seeds import candidate_seed, generators
from diffkit.segments import Candidate, Denoising, run_segment
from diffkit.step_noise import hands_generator, refuse_unseeded_noise
from diffkit.step_plan import plan
from memorization.generation import Sampling, call_arguments
from ttsnap import TTSnapPipeline
from ttsnap.search.pipeline_kwargs import sort_keywords
from ttsnap.trajectories.collect import collect
from ttsnap.trajectories.recorder import CollectSettings

STEPS, SEED, PROMPT = 4, 11, "a dog"
NAMES = list(FAMILY_ROWS)
# A UNet, two texts, three texts, packed latents, two passes, masks, a ControlNet: for what concerns the code of all.
DIFFERENT = ["sd1", "sdxl", "sd3", "flux", "qwen-image", "lumina2", "sdxl-controlnet"]
SPOKEN = {"guidance_scale", "negative_prompt", "height", "width"}


pytestmark = pytest.mark.usefixtures("one_thread")


def call_options(name: str, how: str = "guided") -> dict[str, Any]:
    row = FAMILY_ROWS[name]
    return {"num_inference_steps": STEPS, **row.options, **getattr(row, how)}


def stock(pipe: Any, name: str, seed: int = SEED, how: str = "guided", output: str = "latent", prompt: str = PROMPT):
    options = {**call_options(name, how), "generator": generators([seed])[0], "output_type": output}
    return pipe(prompt=prompt, **options)[0]


def ended(pipe: Any, name: str, how: str = "guided"):
    """The latents that the loop of the stock pipeline ends with, which some families do not hand out."""
    given = stock(pipe, name, how=how)
    if family_of(pipe).shown is None:
        return given
    own, results = pipe.scheduler.step, []
    pipe.scheduler.step = lambda *args, **kwargs: results.append(own(*args, **kwargs)) or results[-1]
    try:
        stock(pipe, name, how=how)
    finally:
        del pipe.scheduler.step
    return results[-1][0]


def parts(pipe: Any, name: str, how: str = "guided", micro_batch: int = 1):
    """The conditioning and denoising that a search would make of the call's options."""
    options = call_options(name, how)
    extra, encoding = sort_keywords(family_of(pipe), {k: v for k, v in options.items() if k not in SPOKEN})
    extra.pop("num_inference_steps")
    negative, scale = options.get("negative_prompt"), options.get("guidance_scale")
    guided = is_guided(pipe, scale, {**extra, "negative_prompt": negative})
    conditioning = encode_prompts(pipe, [PROMPT, "cat"], negative, guidance=guided, options=encoding)
    size = (options.get("height"), options.get("width"))
    return conditioning, Denoising(STEPS, scale, *size, micro_batch=micro_batch, extra=extra)


def search(pipe: Any, name: str, how: str = "guided", prompt: Any = PROMPT, **options: Any):
    wanted = {"num_candidates": 3, "schedule": "1:0.4", "seed": 5, "micro_batch": 1}
    options = {**call_options(name, how), **wanted, **options}
    return TTSnapPipeline.from_pipe(pipe, reward=brightness)(prompt=prompt, **options)


LOOKAHEAD = {"schedule": "1:0.4+1"}


def test_every_family_has_a_row():
    unbuilt = set() if is_sentencepiece_available() else {"Kolors"}
    of_text = {family.name for family in FAMILIES if not family.edits}  # others: tests/test_picture_families.py
    assert of_text - unbuilt == {family_of(shared_family(name)).name for name in NAMES}


FLOW_SIGMAS = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}


KINDS = ("EulerAncestral", "Heun", "DPMSolverMulti", "UniPC", "PNDM", "LCM", "TCD")  # all with sd1, in test_segments


@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith("sd1")])
def test_schedulers_of_the_table_can_be_cut(name):
    pipe = family_pipeline(name)
    first, flow = pipe.scheduler, is_flow(pipe.scheduler)
    for scheduler in family_of(pipe).schedulers:
        if not flow and not scheduler.startswith(KINDS):
            continue
        own = getattr(diffusers, scheduler)
        if flow:
            pipe.scheduler = own(**({} if scheduler.startswith("FlowMatch") else FLOW_SIGMAS))
        else:
            skips = {"skip_prk_steps": True} if scheduler == "PNDMScheduler" else {}
            pipe.scheduler = own.from_config(first.config, **skips)
        conditioning, denoising = parts(pipe, name)
        calls = plan(pipe, STEPS, denoising.size, denoising.extra).calls
        alive = [Candidate(0, 0, generators([SEED])[0])]
        for start, stop in itertools.pairwise([0, 1, 3, calls]):
            alive = run_segment(pipe, alive, conditioning, denoising, start, stop)
        assert torch.equal(alive[0].latents, ended(pipe, name)), scheduler


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("how", "prompts"), [("guided", [PROMPT, "cat at dog"]), ("unguided", [PROMPT])])
def test_the_winner_is_the_stock_image_of_its_seed(name, how, prompts):
    """Of prompts of different lengths, with a look ahead; and without guidance, with a plain look."""
    pipe, look = shared_family(name), LOOKAHEAD if how == "guided" else {}
    strict = search(pipe, name, how, prompts, **look)
    padded = search(pipe, name, how, prompts, **look, micro_batch=4)
    for prompt, seed, image, other in zip(prompts, strict.seeds, strict.images, padded.images, strict=True):
        reference = pixels(stock(pipe, name, seed, how, "pil", prompt)[0])
        assert np.array_equal(pixels(image), reference)
        assert np.abs(pixels(other) - reference).max() <= 1
    assert padded.seeds == strict.seeds
    assert [each.lookahead for each in strict.trace] == len(prompts) * [len(look)] + len(prompts) * [0]
    assert strict.ledger.rows_per_call == (FAMILY_ROWS[name].passes if how == "guided" else 1)
    assert None not in (strict.ledger.flops.call, strict.ledger.flops.decode, strict.ledger.flops.encode)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("sd2-v", "sd1-controlnet", "kolors")])
def test_prices_are_the_same_counted_on_shapes_alone(name, monkeypatch):
    """As those of large models are; a mask that says how many tokens there are needs numbers all the same."""
    quick = search(shared_family(name), name, num_candidates=1, num_inference_steps=2, schedule="").ledger
    monkeypatch.setattr(diffkit.flops, "SMALL", 0)
    shapes = search(family_pipeline(name), name, num_candidates=1, num_inference_steps=2, schedule="").ledger
    assert shapes.flops == quick.flops
    assert None not in (shapes.flops.call, shapes.flops.decode, shapes.flops.encode)
    assert (shapes.calibration_calls, quick.calibration_calls) == (int(name in ("lumina2", "hidream")), 0)


@pytest.mark.parametrize("name", NAMES)
def test_suspended_and_resumed_at_every_step(name):
    pipe = shared_family(name)
    conditioning, denoising = parts(pipe, name)
    uncut = ended(pipe, name)
    for cuts in [[], [1, 3], [2], list(range(1, STEPS))]:
        alive = [Candidate(0, 0, generators([SEED])[0])]
        for start, stop in itertools.pairwise([0, *cuts, STEPS]):
            alive = run_segment(pipe, alive, conditioning, denoising, start, stop)
        assert torch.equal(alive[0].latents, uncut), cuts


@pytest.mark.parametrize("name", NAMES)
def test_a_lookahead_by_all_calls_that_are_left_is_the_denoising(name):
    """Before the last step; after the first too where the solver is lookahead's own."""
    pipe = shared_family(name)
    conditioning, denoising = parts(pipe, name)
    for start in (1, STEPS - 1):
        fresh = [Candidate(0, 0, generators([SEED])[0])]
        alive = run_segment(pipe, fresh, conditioning, denoising, 0, start)
        [estimate] = look_ahead(pipe, alive, conditioning, denoising, STEPS - start)
        assert estimate.isfinite().all()
        [expected] = run_segment(pipe, alive, conditioning, denoising, start, STEPS)
        if start == STEPS - 1 or type(pipe.scheduler).__name__ == "DPMSolverMultistepScheduler":
            scale = float(expected.x0.abs().max())
            torch.testing.assert_close(estimate, expected.x0, rtol=1e-3, atol=1e-4 * scale)
        assert look_ahead(pipe, alive, conditioning, denoising, 1)[0].isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_x0_is_right_and_so_are_the_denoisers_call_and_the_noise_levels(name):
    """By hand from the stock pipeline's calls of its scheduler: x0 = (x - sigma noise) / signal, or x - sigma v."""
    pipe = shared_family(name)
    conditioning, denoising = parts(pipe, name, "unguided")
    seen: list[tuple[Any, ...]] = []
    own = pipe.scheduler.step

    @functools.wraps(own)  # pipelines look at the signature to see what they may hand over
    def step(output, timestep, sample, *args, **kwargs):
        seen.append((output.float(), timestep, sample.float()))
        assert (kwargs.get("generator") is not None) == hands_generator(type(pipe))
        return own(output, timestep, sample, *args, **kwargs)

    pipe.scheduler.step = step
    try:
        stock(pipe, name, how="unguided")
    finally:
        del pipe.scheduler.step
    estimates: list[torch.Tensor] = []
    alive = [Candidate(0, 0, generators([SEED])[0])]
    run_segment(pipe, alive, conditioning, denoising, 0, STEPS, on_estimate=lambda _, x0: estimates.append(x0.float()))
    levels = plan(pipe, STEPS, denoising.size, denoising.extra).sigmas
    for index, (output, timestep, sample) in enumerate(seen):
        level = levels[index]
        if is_flow(pipe.scheduler):
            sigma = float(timestep) / 1000 if "FlowMatch" in type(pipe.scheduler).__name__ else level / (1 + level)
            if name == "cogview4":  # whose timesteps are not shifted, its noise levels are, for 16 tokens of 256
                sigma = 0.4375 / (0.4375 + 1 / sigma - 1)
            expected = sample - sigma * output
            assert level == pytest.approx(min(sigma / (1 - sigma), 1000) if sigma < 1 else 1000, rel=1e-2)
        else:
            abar = float(pipe.scheduler.alphas_cumprod[int(timestep)])
            scaled = "Euler" in type(pipe.scheduler).__name__
            signal, spread = (1.0, level) if scaled else (abar**0.5, (1 - abar) ** 0.5)
            v = pipe.scheduler.config.prediction_type == "v_prediction"
            expected = signal * sample - spread * output if v else (sample - spread * output) / signal
            assert level == pytest.approx(((1 - abar) / abar) ** 0.5, rel=1e-2)
        scale = expected.abs().max()
        assert (estimates[index] - expected).abs().max() < 2e-3 * scale, index
    output, timestep, sample = seen[1]
    given = sample / (levels[1] ** 2 + 1) ** 0.5 if name in ("sdxl", "kolors") else sample
    with torch.no_grad():
        again = predict_noise(
            pipe, given, timestep, conditioning.rows([0]).positive, guidance_scale=denoising.guidance_scale,
            size=denoising.size,
        )  # fmt: skip
    if family_of(pipe).control is None:  # a tap sees the denoiser alone
        torch.testing.assert_close(again.float(), output, rtol=1e-4, atol=1e-5)


def test_a_gradient_that_leaves_experts_out_is_refused():
    pipe = shared_family("hidream")
    text = parts(pipe, "hidream")[0].rows([0]).positive
    latents = initial_latents(pipe, generators([SEED]), (32, 32))
    with pytest.raises(InputError, match="its experts hand no gradient"):
        predict_noise(pipe, latents, torch.tensor(500.0), text.replace(text.prompt_embeds.clone().requires_grad_()))


@pytest.mark.parametrize("name", [name for name in NAMES if name != "hidream"])
def test_prediction_is_differentiable_in_the_text(name):
    pipe = shared_family(name)
    conditioning, denoising = parts(pipe, name)
    text = conditioning.rows([0]).positive
    embeds = text.prompt_embeds.clone().requires_grad_()
    latents = initial_latents(pipe, generators([SEED]), denoising.size)
    assert tuple(latents.shape) == (1, *latent_shape(pipe, denoising.size))
    predicted = predict_noise(pipe, latents, torch.tensor(500.0), text.replace(embeds), size=denoising.size)
    assert predicted.shape == latents.shape
    predicted.square().sum().backward()
    assert embeds.grad.abs().sum() > 0
    plain, embeds.grad = embeds.grad, None
    denoiser = pipe_denoiser(pipe)
    with gradient_checkpointing(denoiser):
        assert not denoiser.is_gradient_checkpointing  # the CPU has memory enough
    with gradient_checkpointing(denoiser, on_cpu=True):
        assert denoiser.is_gradient_checkpointing == (name != "chroma")  # whose mask diffusers would leave out
        again = predict_noise(pipe, latents, torch.tensor(500.0), text.replace(embeds), size=denoising.size)
        again.square().sum().backward()
    assert not denoiser.is_gradient_checkpointing
    torch.testing.assert_close(embeds.grad, plain)


@pytest.mark.parametrize("name", NAMES)
def test_images_are_decoded_as_by_the_pipeline_and_encoded_back(name):
    pipe = shared_family(name)
    _, denoising = parts(pipe, name)
    latents = ended(pipe, name)
    with torch.no_grad():
        decoded = decode_latents(pipe, latents, size=denoising.size)
    assert torch.equal(decoded.clamp(0, 1), stock(pipe, name, output="pt").float())
    assert encode_images(pipe, decoded).shape == latents.shape


@pytest.mark.parametrize(
    ("name", "dtype"), [*((name, torch.bfloat16) for name in NAMES), ("sdxl", torch.float16), ("flux", torch.float16)]
)
def test_half_precision_gives_numbers(name, dtype):
    half = family_pipeline(name).to(dtype=dtype)
    out = search(half, name, num_candidates=2)
    reference = pixels(stock(half, name, out.seeds[0], output="pil")[0])
    assert np.array_equal(pixels(out.images[0]), reference)
    assert np.isfinite(out.rewards[0])
    assert all(np.isfinite(score) for look in out.trace for score in look.scores)
    assert reference.std() > 1


@pytest.mark.parametrize("name", DIFFERENT)
def test_lora_counts(name):
    pipe = family_pipeline(name)
    without = stock(pipe, name)
    denoiser = pipe_denoiser(pipe)
    targets = sorted({n for n, m in denoiser.named_modules() if isinstance(m, torch.nn.Linear) and "to_q" in n})
    assert targets
    with torch.random.fork_rng():
        torch.manual_seed(1)
        config = LoraConfig(r=2, lora_alpha=8, target_modules=targets, init_lora_weights=False)
        inject_adapter_in_model(config, denoiser).eval()
    out = search(pipe, name)
    assert np.array_equal(pixels(out.images[0]), pixels(stock(pipe, name, out.seeds[0], output="pil")[0]))
    assert not torch.equal(stock(pipe, name), without)


@pytest.mark.parametrize("name", DIFFERENT)
def test_group_offload(name):
    """Weights are brought in leaf by leaf; on a CPU from and to the CPU, which exercises the hooks."""
    pipe, before = family_pipeline(name), search(shared_family(name), name)
    apply_group_offloading(
        pipe_denoiser(pipe),
        onload_device=torch.device("cpu"),
        offload_device=torch.device("cpu"),
        offload_type="leaf_level",
    )
    after = search(pipe, name)
    assert after.seeds == before.seeds
    assert np.array_equal(pixels(after.images[0]), pixels(before.images[0]))


@pytest.mark.skipif(
    not torch.cuda.is_available(), reason="accelerate offers model CPU offload with an accelerator only"
)
@pytest.mark.parametrize("name", NAMES)
def test_model_cpu_offload(name):
    plain = family_pipeline(name).to("cuda")
    pipe = family_pipeline(name)
    pipe.enable_model_cpu_offload()
    out = search(pipe, name)
    reference = pixels(stock(plain, name, out.seeds[0], output="pil")[0])
    assert np.abs(pixels(out.images[0]) - reference).max() <= 1
    assert search(pipe, name).seeds == out.seeds


@pytest.mark.parametrize("name", ["flux", "flux2-klein"])
def test_latents_of_winners_are_those_that_the_stock_pipeline_hands_out(name):
    pipe = shared_family(name)
    winner = search(pipe, name, num_candidates=2, output_type="latent")
    assert torch.equal(winner.images, stock(pipe, name, winner.seeds[0]))


def test_a_winner_is_of_both_classes_and_saves_as_stock(tmp_path):
    pipe = shared_family("flux")
    found = TTSnapPipeline.from_pipe(pipe, reward=brightness)
    assert isinstance(found, type(pipe))
    assert isinstance(found, TTSnapPipeline)
    assert all(found.components[name] is part for name, part in pipe.components.items())
    found.save_pretrained(tmp_path)
    assert DiffusionPipeline.load_config(tmp_path)["_class_name"] == "FluxPipeline"


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        ("sd3", {"mu": 1.0}, "leave out mu"),
        ("sd1-controlnet", {"control_guidance_end": 0.5}, "cannot be cut: a ControlNet that works for a part"),
        ("sdxl-controlnet", {"image": None}, "A ControlNet follows an image; give it as image="),
        ("lumina2", {"cfg_trunc_ratio": 0.5}, "cannot be cut: truncated guidance"),
        ("pixart-sigma", {"use_resolution_binning": True}, "no size bins for a sample_size of 8"),
        ("pixart-alpha", {"num_inference_steps": 1, "schedule": ""}, "takes x0 from a single step"),
        ("sana", {"use_resolution_binning": True}, "would denoise at 1024x1024"),
        ("flux", {"ip_adapter_image": object()}, "takes no ip_adapter_image: image prompts of FLUX.1 are not"),
        ("flux2", {"image": object()}, "needs image= as PIL images"),
        ("flux2", {"caption_upsample_temperature": 0.1}, "rewrite the prompt anew"),
        ("flux2-klein", {"negative_prompt": "cat"}, "Flux2KleinPipeline takes no negative_prompt"),
        ("hidream", {"height": 64}, "would denoise at 40x16"),
        ("hidream", {"prompt_embeds_t5": object()}, "takes no prompt_embeds_t5: give the prompts as text"),
        ("flux", {"eta": 0.5}, "takes no eta"),
        ("flux", {"sigmas": 0.5}, "sigmas must be a list of numbers"),
        ("sd1", {"height": 36, "width": 32}, "multiple of 8"),
        ("qwen-image", {"prompt_2": "cat"}, "QwenImagePipeline takes no prompt_2; its own keywords are"),
        ("sd1", {"prompt_embeds": object()}, "Give prompt or prompt_embeds, not both"),
        ("sdxl", {"callback_on_step_end": print}, "give num_candidates=1 and schedule='', or callback_on_look"),
    ],
)
def test_what_cannot_be_carried_is_refused(name, options, sentence):
    with pytest.raises(InputError, match=sentence):
        search(shared_family(name), name, **options)


def test_pipelines_and_schedulers_that_draw_noise_of_their_own_are_refused():
    class StableDiffusion3ControlNetPipeline:
        pass

    with pytest.raises(InputError, match="draws noise when it encodes the control image"):
        family_of(StableDiffusion3ControlNetPipeline())
    with pytest.raises(InputError, match="its loop is not known here; use WanPipeline"):
        family_of(diffusers.CogVideoXPipeline.__new__(diffusers.CogVideoXPipeline))
    with pytest.raises(InputError, match="only: its timesteps are angles, which audits do not know"):
        family_of(diffusers.SanaSprintPipeline.__new__(diffusers.SanaSprintPipeline))
    pipe = family_pipeline("flux")
    pipe.scheduler = FlowMatchEulerDiscreteScheduler.from_config(pipe.scheduler.config, stochastic_sampling=True)
    with pytest.raises(InputError, match="without its sde, ancestral or stochastic sampling"):
        search(pipe, "flux")


@pytest.mark.parametrize("name", ["sd3", "flux", "sana", "aura-flow"])  # whose loops can run such a scheduler
def test_noise_that_no_seed_draws_again_is_refused(name):
    """Where the family's loop hands the scheduler its generators, the winner is the stock image."""
    pipe = family_pipeline(name)
    shifted = family_of(pipe).schedulers == FLOW_SHIFTED
    flow = {**FLOW_SIGMAS, **({"use_dynamic_shifting": True, "time_shift_type": "exponential"} if shifted else {})}
    pipe.scheduler = diffusers.DPMSolverMultistepScheduler(**flow, algorithm_type="sde-dpmsolver++")
    if hands_generator(type(pipe)):
        out = search(pipe, name)
        assert np.array_equal(pixels(out.images[0]), pixels(stock(pipe, name, out.seeds[0], output="pil")[0]))
        return
    with pytest.raises(InputError, match="adds noise .* hands it no generator"):
        search(pipe, name)
    conditioning, _ = parts(pipe, name)
    with pytest.raises(InputError, match="adds noise"):
        call_arguments(pipe, conditioning.positive, conditioning.positive, [SEED], Sampling())
    before = torch.get_rng_state()
    pipe.scheduler = diffusers.DPMSolverMultistepScheduler(**flow)
    refuse_unseeded_noise(pipe)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_cache_of_the_denoiser_is_refused():
    pipe = family_pipeline("flux")
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.2))
    with pytest.raises(InputError, match=r"call pipe.transformer.disable_cache\(\) first"):
        search(pipe, "flux")
    pipe.transformer.disable_cache()
    assert search(pipe, "flux").images


def test_several_texts_and_scales_go_where_the_stock_pipeline_sends_them():
    for name, options in [
        ("sdxl", {"prompt_2": "cat", "negative_prompt_2": "a", "clip_skip": 1, "guidance_rescale": 0.4}),
        ("sdxl", {"negative_prompt": None, "crops_coords_top_left": (4, 8)}),
        ("sd3", {"prompt_3": "cat at", "negative_prompt_2": "dog"}),
        ("flux", {"prompt_2": "cat", "negative_prompt_2": "at", "guidance_scale": 5.0}),
        ("z-image", {"cfg_normalization": True, "cfg_truncation": 0.5}),
        ("lumina2", {"cfg_normalization": False}),
    ]:
        pipe = shared_family(name)
        given = {**call_options(name), **options}
        out = TTSnapPipeline.from_pipe(pipe, reward=brightness)(
            PROMPT, **given, num_candidates=2, schedule="1:0.5", seed=3, micro_batch=1
        )
        reference = pipe(PROMPT, **given, generator=generators(out.seeds)[0]).images[0]
        assert np.array_equal(pixels(out.images[0]), pixels(reference)), (name, options)


@pytest.mark.parametrize("name", ["flux", "z-image", "qwen-image"])
def test_neighbours_mix_noise_of_packed_latents(name):
    pipe = shared_family(name)
    out = search(pipe, name, num_candidates=None, schedule="", search="zero-order", budget="4x")
    assert np.isfinite(out.rewards[0])
    assert out.recipes[0] is not None or out.seeds[0] is not None


@pytest.mark.parametrize("name", ["sdxl", "flux"])
def test_trajectories_are_recorded(name, tmp_path):
    """The default texts of FLUX.1 have 512 tokens, so two seeds and two steps must do."""
    pipe = shared_family(name)
    settings = CollectSettings(2, 2, 1.0, height=32, width=32, micro_batch=1)
    found = collect(pipe, [PROMPT], {"brightness": as_reward(brightness)}, settings, out=tmp_path)
    plain = {"num_inference_steps": 2, "guidance_scale": 1.0, "height": 32, "width": 32, "output_type": "pt"}
    for index, score in enumerate(found[0].finals["brightness"].tolist()):
        alone = pipe(PROMPT, **plain, generator=generators([candidate_seed(0, 0, index)])[0])[0]
        assert float(score) == pytest.approx(float(brightness(alone.float(), [PROMPT])), abs=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_latents_are_a_map_where_the_family_says_so(name):
    pipe = shared_family(name)
    assert family_of(pipe).latents_are_map == (len(latent_shape(pipe)) == 3)
