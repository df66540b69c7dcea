"""NeMo's and Wanda's mathematics against brute force and closed forms; each quirk of the published code by name."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import tiny_pipeline
from torch import Tensor
from torchmetrics.functional.image import multiscale_structural_similarity_index_measure as reference_ms_ssim

from diffkit.conditioning import encode_prompts, predict_noise
from diffkit.errors import InputError
from memorization.mitigation import nemo, wanda
from memorization.mitigation.latent_ssim import Scales, pairwise, scales_for, similarity, unit_range
from memorization.mitigation.layers import blocked, matching, size, union
from memorization.mitigation.nemo_method import calibrate_nemo_threshold

CAPTIONS = ["a dog", "the cat sat", "dog at cat", "a", "b c d e"]


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# MS-SSIM


@pytest.mark.parametrize(
    ("side", "expected"),
    [
        (64, Scales(11, 3)),
        (44, Scales(11, 3)),
        (40, Scales(9, 3)),
        (32, Scales(7, 3)),
        (16, Scales(7, 2)),
        (8, Scales(7, 1)),
    ],
)
def test_small_latents_get_a_smaller_window_then_fewer_scales(side: int, expected: Scales) -> None:
    assert scales_for(side) == expected
    assert torch.isfinite(similarity(noise(2, 4, side, side), noise(2, 4, side, side, seed=1))).all()


def test_latents_too_small_for_structure_are_refused() -> None:
    with pytest.raises(InputError, match="too small"):
        scales_for(6)


def test_at_64_pixels_the_similarity_is_the_papers_ms_ssim() -> None:
    a, b = noise(3, 4, 64, 64), noise(3, 4, 64, 64, seed=1) + noise(3, 4, 64, 64)
    theirs = reference_ms_ssim(unit_range(a), unit_range(b), data_range=1.0, betas=(1 / 3,) * 3, reduction="none")
    torch.testing.assert_close(similarity(a, b), theirs)


def test_similarity_is_one_for_the_same_map_and_blind_to_scale_and_offset_of_a_channel() -> None:
    maps = noise(2, 4, 16, 16)
    torch.testing.assert_close(similarity(maps, 3 * maps - 5), torch.ones(2))
    assert float(similarity(maps, noise(2, 4, 16, 16, seed=3)).max()) < 0.5


def test_pairwise_is_symmetric_without_a_diagonal() -> None:
    maps = noise(4, 4, 16, 16)
    table = pairwise(maps)
    assert table.diagonal().isnan().all()
    torch.testing.assert_close(table, table.T, equal_nan=True)
    torch.testing.assert_close(table[1, 3], similarity(maps[1:2], maps[3:4])[0])


# NeMo


def test_statistics_are_numpys_over_captions_of_means_over_tokens() -> None:
    pipe = tiny_pipeline()
    layers = matching(pipe, ["unet.*attn2.to_v"])
    known = nemo.statistics(pipe, layers, CAPTIONS)
    for name, layer in layers.items():
        rows = []
        for caption in CAPTIONS:
            embeds = encode_prompts(pipe, [caption], guidance=False).prompt_embeds[0].numpy()
            rows.append(np.abs(embeds @ layer.weight.detach().numpy().T).mean(0))
        np.testing.assert_allclose(known.mean[name], np.mean(rows, 0), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(known.std[name], np.std(rows, 0, ddof=1), rtol=2e-3, atol=1e-6)


def test_a_layer_that_does_not_take_the_text_embedding_is_refused() -> None:
    pipe = tiny_pipeline()
    with pytest.raises(InputError, match="project the text embedding"):
        nemo.activations(pipe, matching(pipe, ["unet.*ff.net.2"]), torch.zeros(1, 16, 32))
    with pytest.raises(InputError, match="matches"):
        matching(pipe, ["unet.*nothing"])
    with pytest.raises(InputError, match="expected linear"):
        matching(pipe, ["unet.conv_in"])


VALUES = st.lists(st.floats(0, 9, width=32), min_size=6, max_size=6)


@given(values=VALUES, mean=VALUES, std=VALUES, theta=st.floats(0.5, 5), top_k=st.integers(0, 6))
def test_selection_is_the_union_of_both_rules_as_a_set(
    values: list[float], mean: list[float], std: list[float], theta: float, top_k: int
) -> None:
    """Quirk: the published lists may name a neuron twice; here a neuron that both rules choose counts once."""
    known = nemo.Statistics({"v": torch.tensor(mean)}, {"v": torch.tensor(std)})
    mask = nemo.select({"v": torch.tensor(values)}, known, theta=theta, top_k=top_k)["v"]
    v, m, s = (np.array(x, dtype=np.float32) for x in (values, mean, std))
    with np.errstate(all="ignore"):
        far = np.where(np.abs(v - m) > 0, np.abs(v - m) / s, 0) > np.float32(theta)
    top = np.argsort(-v, kind="stable")[:top_k]
    expected = set(np.flatnonzero(far)) | set(top)
    assert set(mask.nonzero().flatten().tolist()) == expected
    assert size({"v": mask}) == len(expected)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_the_difference_is_taken_at_the_first_timestep_from_the_caption_alone(kind: str) -> None:
    """Quirks: the published code looks at the second timestep, and swaps the halves under guidance."""
    pipe = tiny_pipeline()
    pipe.scheduler.register_to_config(prediction_type=kind)
    embeds = encode_prompts(pipe, ["a dog"], guidance=False).prompt_embeds
    calls: list[tuple[int, float]] = []
    handle = pipe.unet.register_forward_pre_hook(lambda m, i: calls.append((len(i[0]), float(i[1]))))
    found = nemo.differences(pipe, embeds, [3, 4], steps=10)
    handle.remove()
    pipe.scheduler.set_timesteps(10)
    first = pipe.scheduler.timesteps[0]
    assert calls == [(2, float(first))]
    x = torch.stack([noise(4, 16, 16, seed=seed) for seed in (3, 4)])
    with torch.no_grad():
        output = predict_noise(pipe, x, first, embeds.expand(2, -1, -1))
    a = pipe.scheduler.alphas_cumprod[first]
    eps = {
        "epsilon": output,
        "v_prediction": a.sqrt() * output + (1 - a).sqrt() * x,
        "sample": (x - a.sqrt() * output) / (1 - a).sqrt(),
    }[kind]
    torch.testing.assert_close(found, eps - x)


def test_threshold_and_detection_use_the_same_score() -> None:
    """Quirk: the published threshold comes from guidance 7, its detection from guidance 0."""
    pipe = tiny_pipeline()
    scores = []
    for caption in CAPTIONS[:3]:
        embeds = encode_prompts(pipe, [caption], guidance=False).prompt_embeds
        scores.append(nemo.memorization_score(nemo.differences(pipe, embeds, [1, 2, 3], steps=10)))
    expected = float(torch.cat(scores).mean() + torch.cat(scores).std())
    assert calibrate_nemo_threshold(pipe, CAPTIONS[:3], [1, 2, 3], steps=10) == pytest.approx(min(expected, 0.99))


def test_a_seeds_score_is_its_best_match() -> None:
    maps = torch.cat([noise(2, 4, 16, 16), noise(1, 4, 16, 16) + 0.01])
    maps[2] = maps[0] * 2
    scores = nemo.memorization_score(maps)
    torch.testing.assert_close(scores[[0, 2]], torch.ones(2))
    assert scores[1] < 0.5
    with pytest.raises(InputError, match="two seeds"):
        nemo.memorization_score(maps[:1])


def search(threshold: float, remaining: dict[float, float], **options: Any) -> tuple[nemo.InitialSelection, list[Any]]:
    tried: list[Any] = []

    def candidates(theta: float, top_k: int) -> dict[str, Tensor]:
        tried.append((theta, top_k))
        return {"v": torch.tensor([True])}

    return nemo.initial_selection(
        candidates, lambda _: remaining.get(tried[-1][0], 1.0), threshold=threshold, **options
    ), tried


def test_the_search_stops_at_the_first_theta_that_breaks_the_memory() -> None:
    found, tried = search(0.4, {4.5: 0.3, 4.25: 0.1})
    assert (found.theta, found.top_k, found.similarity) == (4.5, 2, 0.3)
    assert tried == [(5.0, 0), (4.75, 1), (4.5, 2)]


def test_the_smallest_theta_is_tried_before_the_search_ends() -> None:
    """Quirk: the published loop lowers theta to 1 and leaves without looking."""
    found, tried = search(0.4, {1.0: 0.2})
    assert tried[-1] == (1.0, 16)
    assert (found.theta, found.similarity) == (1.0, 0.2)
    never, _ = search(0.4, {})
    assert (never.theta, never.similarity) == (1.0, 1.0)
    fixed, once = search(0.4, {}, theta=2.25, smallest_theta=2.25)
    assert once == [(2.25, 0)]
    assert fixed.theta == 2.25


@given(needed=st.sets(st.integers(0, 7), max_size=4), start=st.sets(st.integers(0, 7)))
def test_refinement_keeps_exactly_the_neurons_that_are_needed(needed: set[int], start: set[int]) -> None:
    start = start | needed
    mask = {"a": torch.zeros(4).bool(), "b": torch.zeros(4).bool()}
    for neuron in start:
        mask["ab"[neuron // 4]][neuron % 4] = True

    def remaining(trial: dict[str, Tensor]) -> float:
        off = {i for i in range(8) if trial["ab"[i // 4]][i % 4]}
        return 0.1 if needed <= off else 0.9

    refined = nemo.refine(mask, remaining, threshold=0.4)
    assert {i for i in range(8) if refined["ab"[i // 4]][i % 4]} == needed
    assert size(mask) == len(start)  # the argument is left alone


def test_blocking_multiplies_outputs_by_zero_and_ends() -> None:
    pipe = tiny_pipeline()
    layers = matching(pipe, ["unet.mid_block*attn2.to_v"])
    (name,) = layers
    x = noise(2, 5, 32)
    plain = layers[name](x)
    rows = torch.arange(plain.shape[-1]) % 3 == 0
    with blocked(layers, {name: rows}):
        torch.testing.assert_close(layers[name](x), plain * ~rows)
    assert torch.equal(layers[name](x), plain)


# Wanda


def brute_force(weight: np.ndarray, ours: np.ndarray, theirs: np.ndarray, columns: int, margin: float) -> np.ndarray:
    mask = np.zeros(weight.shape, bool)
    for t in range(len(ours)):
        for i in range(len(weight)):
            scores = np.abs(weight[i]) * ours[t]
            for j in np.argsort(-scores, kind="stable")[:columns]:
                mask[i, j] |= bool(ours[t, j] > np.float32(margin) * theirs[t, j]) and weight[i, j] != 0
    return mask


@given(st.integers(0, 10_000), st.sampled_from([0.01, 0.2, 0.5, 1.0]), st.sampled_from([0.5, 1.0, 1.5]))
def test_wandas_selection_is_the_loop_over_timesteps_rows_and_columns(
    seed: int, sparsity: float, margin: float
) -> None:
    rng = np.random.default_rng(seed)
    weight = rng.integers(-3, 4, (5, 10)).astype(np.float32)  # ties and zeros on purpose
    ours, theirs = rng.random((2, 3, 10)).astype(np.float32)
    found = wanda.select(
        {"f": torch.from_numpy(weight)},
        {"f": torch.from_numpy(ours)},
        {"f": torch.from_numpy(theirs)},
        sparsity=sparsity,
        margin=margin,
    )["f"]
    np.testing.assert_array_equal(
        found.numpy(), brute_force(weight, ours, theirs, max(1, round(sparsity * 10)), margin)
    )


def test_wanda_refuses_what_cannot_be_meant() -> None:
    one = {"f": torch.ones(1, 4)}
    for sparsity, margin in ((0.0, 1.0), (1.5, 1.0), (0.5, 0.0)):
        with pytest.raises(InputError, match="sparsity"):
            wanda.select({"f": torch.ones(2, 4)}, one, one, sparsity=sparsity, margin=margin)
    with pytest.raises(InputError, match="do not fit"):
        wanda.select({"f": torch.ones(2, 5)}, one, one, sparsity=0.5)


def test_column_norms_scale_every_token_to_length_one() -> None:
    inputs = torch.tensor([[[3.0, 4.0], [0.0, 2.0], [0.0, 0.0]]])
    torch.testing.assert_close(wanda.column_norms(inputs), torch.tensor([[0.6, (0.64 + 1) ** 0.5]]))


def test_norms_are_the_conditional_half_of_the_first_steps_and_do_not_depend_on_neighbours() -> None:
    pipe = tiny_pipeline()
    layers = matching(pipe, ["unet.*ff.net.2"])
    embeds = encode_prompts(pipe, CAPTIONS[:3], guidance=False).prompt_embeds
    calls: list[float] = []
    handle = pipe.unet.register_forward_pre_hook(lambda m, i: calls.append(float(i[1])))
    together = wanda.input_norms(pipe, layers, embeds, steps=6, timesteps=2)
    handle.remove()
    assert len(calls) == 2
    alone = wanda.input_norms(pipe, layers, embeds[1:2], steps=6, timesteps=2)
    for name, layer in layers.items():
        assert together[name].shape == (3, 2, layer.in_features)
        torch.testing.assert_close(together[name][1:2], alone[name], rtol=1e-4, atol=1e-5)
    x = noise(1, 4, 16, 16)
    heard: dict[str, Tensor] = {}
    hooks = [m.register_forward_pre_hook(lambda _, i, n=n: heard.update({n: i[0]})) for n, m in layers.items()]
    pipe.scheduler.set_timesteps(6)
    with torch.no_grad():
        predict_noise(pipe, x, pipe.scheduler.timesteps[0], embeds[1:2])
    for hook in hooks:
        hook.remove()
    for name, inputs in heard.items():
        torch.testing.assert_close(together[name][1, 0], wanda.column_norms(inputs)[0], rtol=1e-4, atol=1e-5)
    with pytest.raises(InputError, match="timesteps"):
        wanda.input_norms(pipe, layers, embeds, steps=6, timesteps=7)


def test_a_layer_outside_the_denoiser_is_refused_by_wanda() -> None:
    pipe = tiny_pipeline()
    embeds = encode_prompts(pipe, CAPTIONS[:1], guidance=False).prompt_embeds
    with pytest.raises(InputError, match="does not run in every"):
        wanda.input_norms(pipe, matching(pipe, ["text_encoder.*fc2"]), embeds, steps=2, timesteps=1)


def test_the_base_is_the_root_mean_square_over_captions() -> None:
    norms = {"f": torch.tensor([[[3.0]], [[4.0]]])}
    torch.testing.assert_close(wanda.root_mean_square(norms)["f"], torch.tensor([[12.5**0.5]]))


def test_union_leaves_its_parts_alone() -> None:
    a, b = {"f": torch.tensor([True, False])}, {"f": torch.tensor([False, True])}
    assert union([a, b])["f"].all()
    assert a["f"].tolist() == [True, False]
