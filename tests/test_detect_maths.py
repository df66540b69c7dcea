"""Each detector's formula against a closed form or an independent computation."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import entropy
from tiny import tiny_pipeline

from diffkit.conditioning import encode_prompts
from memorization.detection.anisotropy import anisotropy
from memorization.detection.attention_maps import attention_probabilities, record_attention, text_attention_layers
from memorization.detection.bright_ending import end_token_map, masked_magnitude
from memorization.detection.cross_attention import attention_entropy, token_entropy
from memorization.detection.curvature_difference import curvature_map, hutchinson_diagonal, mask_for
from memorization.detection.denoiser_queries import batches, epsilon, timesteps
from memorization.detection.noise_magnitude import NoiseMagnitude
from memorization.detection.score_captions import caption_score, end_tokens
from memorization.detection.seed_agreement import agreement
from memorization.detection.sharpness import Sharpness, sharpness
from memorization.generation import Sampling
from memorization.text_embeddings import as_embeds


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_anisotropy_by_hand() -> None:
    empty = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    late = empty + torch.tensor([[2.0, 0.0], [0.0, 5.0]])  # along the empty one, and across it
    early = empty + torch.tensor([[3.0, 4.0], [0.0, 0.5]])
    assert anisotropy(late, empty, early, empty).tolist() == [6.0, 0.5]
    assert anisotropy(late, empty, early, empty, gammas=(2.0, 0.1)).tolist() == pytest.approx([2.5, 0.05])


def test_sharpness_of_two_linear_scores() -> None:
    """s(x) = A x has Jacobian A: the sharpness is |(A - B)(A - B) x|, whatever A and B."""
    a, b, x = noise(5, 5, seed=1), noise(5, 5, seed=2), noise(3, 5, seed=3)
    found = sharpness(lambda y: y @ a.T, lambda y: y @ b.T, x)
    expected = (x @ (a - b).T @ (a - b).T).norm(dim=1)
    torch.testing.assert_close(found, expected)


def test_sharpness_of_the_denoiser_equals_finite_differences() -> None:
    pipe = tiny_pipeline()
    embeds = encode_prompts(pipe, ["a cat", "a dog"], guidance=False).prompt_embeds
    empty = encode_prompts(pipe, [""], guidance=False).prompt_embeds
    sampling = Sampling(4, 3.0, 2)
    found = Sharpness(at=0.5).scores(pipe, embeds, empty, [1, 2], sampling=sampling)
    pipe = pipe.to(torch.float64)
    batch = next(batches(pipe, embeds, empty, [1, 2], Sampling(micro_batch=2)))
    latents = torch.stack([noise(4, 16, 16, seed=s) for s in (1, 2)]).double()  # as in float32, not drawn anew
    step = int(timesteps(pipe, sampling)[2])
    scale = -1 / (1 - pipe.scheduler.alphas_cumprod[step].double()).sqrt()

    def difference(x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            args = {"return_dict": False}
            one = pipe.unet(x, step, encoder_hidden_states=batch.conditional.prompt_embeds, **args)[0]
            return (
                one - pipe.unet(x, step, encoder_hidden_states=batch.unconditional.prompt_embeds, **args)[0]
            ) * scale

    along = difference(latents)
    h = 1e-4
    expected = ((difference(latents + h * along) - difference(latents - h * along)) / (2 * h)).flatten(1).norm(dim=1)
    torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-9)


def test_hutchinson_is_exact_for_a_diagonal_jacobian_and_unbiased_for_any() -> None:
    d, x = noise(2, 6, seed=4), noise(2, 6, seed=5)
    sources = [torch.Generator().manual_seed(s) for s in (1, 2)]
    found = hutchinson_diagonal(lambda y: d * y**2, x, draws=1, sources=sources)
    torch.testing.assert_close(found, 2 * d * x)
    matrix = noise(6, 6, seed=6)
    many = hutchinson_diagonal(lambda y: y @ matrix.T, x, draws=4000, sources=sources)
    off = (matrix - torch.diag(matrix.diag())).square()
    error = ((off.sum(0) + off.sum(1)) / 4000).sqrt()  # generous: an upper bound of one standard deviation
    assert ((many - matrix.diag()).abs() < 4 * error).all()
    assert (many - matrix.diag()).abs().mean() < error.mean()


def test_curvature_of_two_gaussians() -> None:
    """The score of a Gaussian has Jacobian -1/variance: the map is their difference, summed over channels."""
    x, sigma, sources = noise(1, 3, 2, 2), 0.6, [torch.Generator().manual_seed(1)]
    sharp = torch.tensor([[0.5, 1.0], [2.0, 4.0]])

    def difference(y: torch.Tensor) -> torch.Tensor:
        return sigma * (y / sharp - y)  # eps = -sigma * s, s = -x / variance; the empty caption's variance is 1

    found = curvature_map(hutchinson_diagonal(difference, x, draws=1, sources=sources), sigma)
    torch.testing.assert_close(found[0], 3 * (1 / sharp - 1).clamp(min=0))


def test_entropy_of_known_distributions() -> None:
    p = torch.tensor([[0.25, 0.25, 0.25, 0.25], [1.0, 0.0, 0.0, 0.0], [0.5, 0.2, 0.2, 0.1]])
    found = token_entropy(p).sum(-1)
    assert found.tolist() == pytest.approx([math.log(4), 0.0, float(entropy([0.5, 0.2, 0.2, 0.1]))], abs=1e-6)


def test_the_trajectory_entropy_counts_the_rise_of_the_summary_tokens() -> None:
    first = torch.tensor([0.5, 0.5, 0.0, 0.0])  # nothing on the end token (2) and the padding (3)
    last = torch.tensor([0.25, 0.25, 0.25, 0.25])
    steps = torch.stack([first] * 4 + [last]).view(5, 1, 1, 4).expand(5, 3, 1, 4)
    found = attention_entropy(steps, torch.tensor([2]))
    assert found.item() == pytest.approx(math.log(4) + 0.5 * math.log(4))  # half of the entropy is theirs


@given(st.floats(0.1, 100.0), st.integers(1, 4))
def test_a_constant_mask_gives_the_plain_noise_magnitude(height: float, steps: int) -> None:
    differences = noise(steps, 2, 4, 3, 3)
    found = masked_magnitude(differences, torch.full((2, 3, 3), height))
    torch.testing.assert_close(found, differences.flatten(2).norm(dim=2).mean(0))


def test_a_mask_counts_only_what_it_covers() -> None:
    mask = torch.tensor([[[1.0, 0.0], [0.0, 0.0]]])
    differences = torch.zeros(1, 1, 1, 2, 2)
    differences[..., 0, 0], differences[..., 1, 1] = 3.0, 100.0
    assert masked_magnitude(differences, mask).item() == pytest.approx(3.0 / 0.25)


def test_the_end_tokens_map_picks_the_token_and_reaches_the_latents_size() -> None:
    fine, coarse = torch.zeros(2, 16, 5), torch.zeros(2, 4, 5)
    fine[0, 1, 2], coarse[0, :, 2] = 1.0, 0.5  # row 0 ends at token 2: pixel (0, 1), and a flat coarse layer
    fine[1, :, 4] = 0.25
    maps = end_token_map([fine, coarse], torch.tensor([2, 4]), (4, 4))
    expected = torch.full((4, 4), 0.25)
    expected[0, 1] += 0.5
    torch.testing.assert_close(maps[0], expected)
    torch.testing.assert_close(maps[1], torch.full((4, 4), 0.125))


def test_attention_probabilities_are_the_layers_own() -> None:
    """Against diffusers' own computation of scores, inside a real call of the denoiser."""
    pipe = tiny_pipeline()
    layers = text_attention_layers(pipe.unet)
    layer = layers[0]
    hidden, text = noise(2, 9, layer.to_q.in_features), noise(2, 16, layer.to_k.in_features, seed=1)
    query, key = (layer.head_to_batch_dim(x) for x in (layer.to_q(hidden), layer.to_k(text)))
    expected = layer.get_attention_scores(query, key).unflatten(0, (2, layer.heads)).mean(1)
    torch.testing.assert_close(attention_probabilities(layer, hidden, text), expected)


def test_attention_is_recorded_in_the_order_of_execution_for_the_captions_half_only() -> None:
    pipe = tiny_pipeline()
    embeds = encode_prompts(pipe, ["a cat", "a dog"], guidance=False).prompt_embeds
    with record_attention(pipe, lambda index, p: torch.cat([torch.full((len(p), 1), index), p.mean(1)], 1)) as calls:
        pipe(prompt_embeds=embeds, negative_prompt_embeds=embeds[:1].expand(2, -1, -1), num_inference_steps=2)
    assert [[int(layer[0, 0]) for layer in call] for call in calls] == [[0, 1, 2, 3]] * 2
    assert all(layer.shape == (2, 17) for call in calls for layer in call)
    torch.testing.assert_close(calls[0][0][:, 1:].sum(1), torch.ones(2))


def test_end_tokens_are_where_the_tokenizer_put_them() -> None:
    pipe = tiny_pipeline()
    long = " ".join("abcdefghijklmnopqrstuvwxyz")
    found = end_tokens(pipe, ["a cat", "", long])
    ids = [pipe.tokenizer(text, padding="max_length", truncation=True).input_ids for text in ("a cat", "", long)]
    assert found[1] == 1
    assert found[2] == 15  # cut: the last place
    for end, row in zip(found, ids, strict=True):
        assert row[end] == pipe.tokenizer.eos_token_id
        assert pipe.tokenizer.eos_token_id not in row[:end]


def test_the_probe_starts_from_the_noise_and_the_timestep_of_the_pipeline_itself() -> None:
    pipe = tiny_pipeline()
    embeds = encode_prompts(pipe, ["a cat"], guidance=False).prompt_embeds
    seen: list[tuple[torch.Tensor, int]] = []
    handle = pipe.unet.register_forward_pre_hook(lambda _m, inputs: seen.append((inputs[0], int(inputs[1]))))
    sources = [torch.Generator().manual_seed(7)]
    pipe(prompt_embeds=embeds, generator=sources, num_inference_steps=3, guidance_scale=1.0, output_type="latent")
    handle.remove()
    assert [step for _, step in seen] == timesteps(pipe, Sampling(3))
    batch = next(batches(pipe, embeds, embeds, [7], Sampling(micro_batch=1)))
    torch.testing.assert_close(batch.latents, seen[0][0])
    assert epsilon(pipe, batch.latents, seen[0][1], as_embeds(embeds)).shape == (1, 4, 16, 16)


def test_noise_magnitude_of_one_step_costs_one_step() -> None:
    pipe = tiny_pipeline()
    embeds = encode_prompts(pipe, ["a cat"], guidance=False).prompt_embeds
    calls = [0]
    handle = pipe.unet.register_forward_hook(lambda *_: calls.__setitem__(0, calls[0] + 1))
    one = NoiseMagnitude(steps=1)
    one.scores(pipe, embeds, embeds * 0, [1], sampling=Sampling(4, 3.0, 1))
    handle.remove()
    assert calls[0] == 1
    assert one.cost(Sampling(4, 3.0, 1)) == 2


def test_the_mask_picture_is_of_the_images_size_and_its_brightest_pixel_is_one() -> None:
    pipe = tiny_pipeline()
    picture = mask_for(pipe, "a cat", [1, 2], sampling=Sampling(2, 3.0, 1), draws=2)
    assert picture.shape == (64, 64)
    assert picture.min() >= 0
    assert picture.max() == pytest.approx(1.0)


def test_agreement_is_minus_the_distance_between_generations() -> None:
    latents = torch.zeros(3, 2, 1, 2, 2)
    latents[1, 1], latents[2, 1] = 1.0, 3.0
    found = agreement(latents)
    assert found.tolist() == pytest.approx([0.0, -(1 + 3 + 2) / 3])
    far = agreement(torch.stack([noise(1, 4, 64, 64, seed=s) for s in (1, 2)]))
    assert far.item() == pytest.approx(-math.sqrt(2), rel=0.02)  # two unrelated latents of variance 1


def test_a_caption_with_one_broken_seed_has_no_score() -> None:
    good, bad = caption_score([1.0, 3.0]), caption_score([1.0, float("nan")], half_precision=True)
    assert (good.value, good.reason) == (2.0, None)
    assert bad.value is None
    assert bad.scores == (1.0, None)
    assert bad.reason == "1 of 2 seeds gave no finite score: add --dtype float32 and a new --out"
