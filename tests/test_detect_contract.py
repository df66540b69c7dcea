"""Every registered detector keeps the contract, on a tiny real pipeline: one row each."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from diffusers import DDIMScheduler
from tiny import NOISE, tiny_pipeline

from diffkit.errors import InputError
from memorization.detection import detectors, make_detector
from memorization.detection.base import Detector, is_recording
from memorization.detection.score_captions import score_by_all, score_captions
from memorization.generation import Sampling, generate

SAMPLING = Sampling(num_inference_steps=3, guidance_scale=3.0, micro_batch=3)
CAPTIONS = ["a cat", "dog at a cat"]


@dataclass(frozen=True)
class Row:
    """What a detector promises."""

    needs: frozenset[str] = frozenset()
    listens: bool = False
    without_guidance: bool = True
    embeddings_alone: bool = True
    cost: float = 0.0


TABLE = {
    "noise_magnitude": Row(frozenset({"trajectory", "unconditional"}), listens=True, without_guidance=False, cost=6),
    "anisotropy": Row(frozenset({"unconditional"}), cost=4),
    "attention_entropy": Row(frozenset({"attention", "end_token", "trajectory"}), embeddings_alone=False, cost=6),
    "attention_entropy_one_step": Row(frozenset({"attention"}), listens=True, cost=2),
    "sharpness": Row(frozenset({"gradient", "noise_level", "unconditional"}), cost=6),
    "bright_ending": Row(
        frozenset({"attention", "end_token", "trajectory", "unconditional"}),
        without_guidance=False,
        embeddings_alone=False,
        cost=6,
    ),
    "seed_agreement": Row(frozenset({"trajectory"}), cost=12),
    "curvature_difference": Row(
        frozenset({"gradient", "map", "noise_level", "trajectory", "unconditional"}), cost=6 + 2 + 4 * 16
    ),
}


def detector_named(name: str) -> Detector:
    return detectors.get(name)()


def values(name: str, captions: list[str], seeds: list[list[int]], sampling: Sampling = SAMPLING) -> list[float | None]:
    pipe = tiny_pipeline()
    return [score.value for score in score_captions(pipe, captions, detector_named(name), seeds, sampling=sampling)]


def test_the_table_holds_every_detector() -> None:
    assert sorted(TABLE) == detectors.names()


def test_options_stand_behind_the_name() -> None:
    assert make_detector("noise_magnitude:steps=1").cost(SAMPLING) == 2
    assert make_detector("curvature_difference:draws=1").cost(SAMPLING) == 6 + 2 + 4
    assert make_detector("sharpness:at=0.5").name == "sharpness"
    with pytest.raises(InputError, match="has no option 'step'. Its options: steps"):
        make_detector("noise_magnitude:step=1")
    with pytest.raises(InputError, match="such as noise_magnitude:steps=1"):
        make_detector("noise_magnitude:steps")
    with pytest.raises(InputError, match="at least 1 step"):
        make_detector("noise_magnitude:steps=0")


@pytest.mark.parametrize("name", sorted(TABLE))
def test_flags(name: str) -> None:
    detector, row = detector_named(name), TABLE[name]
    assert detector.name == name
    assert detector.higher_is_memorized
    assert detector.needs == row.needs
    assert is_recording(detector) == row.listens
    assert detector.cost(SAMPLING) == row.cost


@pytest.mark.parametrize("name", sorted(TABLE))
def test_a_row_depends_on_its_own_caption_and_seeds_only_and_the_pipeline_is_left_as_it_was(name: str) -> None:
    pipe = tiny_pipeline()
    before = {key: value.clone() for key, value in pipe.unet.state_dict().items()}
    processors = dict(pipe.unet.attn_processors)
    timesteps = pipe.scheduler.timesteps.clone()
    detector = detector_named(name)
    both = score_captions(pipe, CAPTIONS, detector, [[1, 2], [3]], sampling=SAMPLING)
    assert all(score.value is not None and score.reason is None for score in both)
    assert [len(score.scores) for score in both] == [2, 1]
    second = score_captions(pipe, CAPTIONS[1:], detector, [[3]], sampling=SAMPLING)
    assert both[1].value == pytest.approx(second[0].value, rel=1e-3)
    assert both[0].value != both[1].value
    assert both[0].scores[0] != both[0].scores[1]
    assert pipe.unet.attn_processors == processors
    assert all(torch.equal(value, before[key]) for key, value in pipe.unet.state_dict().items())
    assert all(parameter.grad is None for parameter in pipe.unet.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in pipe.unet.modules())
    if "trajectory" not in detector.needs and not is_recording(detector):
        assert torch.equal(pipe.scheduler.timesteps, timesteps)


@pytest.mark.parametrize("name", sorted(TABLE))
def test_without_guidance_a_detector_measures_or_says_why_not(name: str) -> None:
    (score,) = score_captions(tiny_pipeline(), ["a cat"], detector_named(name), [[1]], sampling=Sampling(3, 1.0, 1))
    if TABLE[name].without_guidance:
        assert score.value is not None
    else:
        assert score.value is None
        assert "guidance" in str(score.reason)


@pytest.mark.parametrize("name", sorted(TABLE))
def test_what_is_broken_is_unknown_never_a_number(name: str) -> None:
    """Half precision overflows to infinity and NaN; a weight of the output layer stands in for that."""
    pipe = tiny_pipeline()
    target = pipe.unet.conv_out if "attention" not in detector_named(name).needs else pipe.unet.conv_in
    with torch.no_grad():
        target.weight[0] = float("nan")
    (score,) = score_captions(pipe, ["a cat"], detector_named(name), [[1, 2]], sampling=SAMPLING)
    assert score.value is None
    assert score.reason == "2 of 2 seeds gave no finite score"


def test_all_detectors_on_one_generation_score_as_each_does_alone() -> None:
    pipe = tiny_pipeline()
    chosen = {name: detector_named(name) for name in TABLE} | {"first": make_detector("noise_magnitude:steps=1")}
    calls = [0]
    handle = pipe.unet.register_forward_hook(lambda *_: calls.__setitem__(0, calls[0] + 1))
    shared = score_by_all(pipe, CAPTIONS, chosen, [[1, 2], [3]], sampling=SAMPLING)
    shared_calls, calls[0] = calls[0], 0
    for key, detector in chosen.items():
        assert shared[key] == score_captions(pipe, CAPTIONS, detector, [[1, 2], [3]], sampling=SAMPLING)
    assert calls[0] - shared_calls == 4 * 3 + 2 * 1  # five whole generations and two first steps became one
    handle.remove()
    unguided = score_by_all(pipe, CAPTIONS, chosen, [[1], [3]], sampling=Sampling(3, 1.0, 2))
    assert {key for key, scores in unguided.items() if scores[0].value is None} == {
        *(name for name, row in TABLE.items() if not row.without_guidance),
        "first",
    }


@pytest.mark.parametrize("name", sorted(TABLE))
def test_half_precision_gives_a_finite_float32_score_or_a_reason(name: str) -> None:
    pipe = tiny_pipeline().to(torch.bfloat16)
    (score,) = score_captions(pipe, ["a cat"], detector_named(name), [[1, 2]], sampling=SAMPLING)
    assert (score.value is None) == (score.reason is not None)
    if score.value is not None:
        assert all(own is not None and abs(own) < 1e6 for own in score.scores)
        (exact,) = score_captions(tiny_pipeline(), ["a cat"], detector_named(name), [[1, 2]], sampling=SAMPLING)
        if name != "curvature_difference":  # a mean of a few hundred differences of 16 noisy products
            assert score.value == pytest.approx(exact.value, rel=0.5)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("name", sorted(set(TABLE) - {"attention_entropy", "attention_entropy_one_step"}))
def test_the_score_is_the_same_function_of_the_noise_whatever_is_predicted(name: str, kind: str) -> None:
    """The same network read as noise or as velocity: the two agree once the velocity is made from the noise."""
    sampling = Sampling(num_inference_steps=2, guidance_scale=3.0, micro_batch=1)
    plain = tiny_pipeline()
    (expected,) = score_captions(plain, ["a cat"], detector_named(name), [[5]], sampling=sampling)
    other = tiny_pipeline()
    other.scheduler = DDIMScheduler(
        **NOISE, clip_sample=False, set_alpha_to_one=False, steps_offset=1, prediction_type=kind
    )
    if kind == "v_prediction":
        _predict_velocity(other)
    (found,) = score_captions(other, ["a cat"], detector_named(name), [[5]], sampling=sampling)
    assert found.value == pytest.approx(expected.value, rel=2e-3)


def _predict_velocity(pipe: object) -> None:
    """v = (eps - sqrt(1 - abar) x) / sqrt(abar), by replacing the denoiser's forward."""
    unet = pipe.unet
    inner = unet.forward

    def forward(sample: torch.Tensor, timestep: torch.Tensor, *rest: object, **named: object) -> tuple[torch.Tensor]:
        (noise,) = inner(sample, timestep, *rest, **{**named, "return_dict": False})
        signal = pipe.scheduler.alphas_cumprod[int(torch.as_tensor(timestep).flatten()[0])]
        return ((noise - (1 - signal).sqrt() * sample) / signal.sqrt(),)

    unet.forward = forward


@pytest.mark.parametrize("name", sorted(name for name, row in TABLE.items() if row.listens))
def test_riding_along_gives_the_same_score_and_the_same_images(name: str) -> None:
    from diffkit.conditioning import encode_prompts

    pipe = tiny_pipeline()
    embeds = encode_prompts(pipe, CAPTIONS, guidance=False).prompt_embeds
    empty = encode_prompts(pipe, [""], guidance=False).prompt_embeds
    sampling = Sampling(3, 3.0, 2)
    detector = detector_named(name)
    assert is_recording(detector)
    heard = generate(pipe, embeds, empty, [1, 2], sampling=sampling, detector=detector)
    assert heard.scores is not None
    alone = detector.scores(pipe, embeds, empty, [1, 2], sampling=sampling)
    torch.testing.assert_close(heard.scores, alone, rtol=1e-4, atol=1e-5)
    assert torch.equal(heard.images, generate(pipe, embeds, empty, [1, 2], sampling=sampling).images)


@pytest.mark.parametrize("name", sorted(name for name, row in TABLE.items() if not row.embeddings_alone))
def test_who_needs_the_end_token_says_so_on_bare_embeddings(name: str) -> None:
    from diffkit.conditioning import encode_prompts
    from diffkit.errors import ScoringError

    pipe = tiny_pipeline()
    embeds = encode_prompts(pipe, CAPTIONS[:1], guidance=False).prompt_embeds
    with pytest.raises(ScoringError, match="where the caption ends"):
        detector_named(name).scores(pipe, embeds, embeds, [1], sampling=SAMPLING)
