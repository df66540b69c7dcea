"""The mathematics of pruning against elementwise formulas, autograd and brute force."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny_pipeline
from tiny_families import family_pipeline
from torch import Tensor, nn

from diffkit.conditioning import predict_noise
from diffkit.errors import InputError
from memorization.mitigation.pruning import distortion, taylor, tyr, wanda
from memorization.mitigation.pruning.allocation import exact_counts, module_counts, threshold_counts, uniform_counts
from memorization.mitigation.pruning.calibration import Calibration, float32_denoiser, noised_rows
from memorization.mitigation.pruning.ecoflap import ecoflap_counts, sensitivity, squared_gradient_norm
from memorization.mitigation.pruning.layers import by_module, prunable_layers, smallest
from memorization.mitigation.pruning.settings import PruneSettings
from memorization.mitigation.pruning.structured import allocate_units, importances, prunable_units, unit_weights
from memorization.text_embeddings import encoded


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def source(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# Layers


@pytest.mark.parametrize("name", ["sd1", "sdxl", "sd3", "flux", "pixart-sigma", "sana", "z-image", "qwen-image"])
def test_only_layers_of_the_blocks_are_pruned(name: str) -> None:
    pipe = family_pipeline(name)
    part = "unet" if hasattr(pipe, "unet") else "transformer"
    chosen = prunable_layers(pipe)
    every = [
        f"{part}.{path}" for path, layer in getattr(pipe, part).named_modules()
        if isinstance(layer, (nn.Linear, nn.Conv2d))
    ]  # fmt: skip
    left_out = {path.split(".")[1] for path in every if path not in chosen}
    assert (
        left_out
        == {
            "sd1": {"conv_in", "conv_out", "time_embedding"},
            "sdxl": {"conv_in", "conv_out", "time_embedding", "add_embedding"},
            "sd3": {"pos_embed", "time_text_embed", "context_embedder", "norm_out", "proj_out"},
            "flux": {"x_embedder", "time_text_embed", "context_embedder", "norm_out", "proj_out"},
            "pixart-sigma": {"pos_embed", "adaln_single", "caption_projection", "proj_out"},
            "sana": {"patch_embed", "time_embed", "caption_projection", "proj_out"},
            "z-image": {"all_x_embedder", "all_final_layer", "t_embedder", "cap_embedder"},
            "qwen-image": {"img_in", "txt_in", "time_text_embed", "norm_out", "proj_out"},
        }[name]
    )
    assert chosen
    assert sorted(path for names in by_module(pipe, chosen).values() for path in names) == sorted(chosen)


def test_modules_are_attentions_feed_forwards_and_resnets() -> None:
    pipe = tiny_pipeline()
    modules = by_module(pipe, prunable_layers(pipe))
    block = "unet.mid_block.attentions.0.transformer_blocks.0"
    assert modules[f"{block}.attn1"] == [f"{block}.attn1.{leaf}" for leaf in ("to_q", "to_k", "to_v", "to_out.0")]
    assert modules[f"{block}.ff"] == [f"{block}.ff.net.0.proj", f"{block}.ff.net.2"]
    resnet = "unet.mid_block.resnets.1"
    assert modules[resnet] == [f"{resnet}.{leaf}" for leaf in ("conv1", "time_emb_proj", "conv2")]


def test_patterns_name_layers_anywhere_in_the_denoiser() -> None:
    pipe = tiny_pipeline()
    assert list(prunable_layers(pipe, ("unet.conv_*",))) == ["unet.conv_in", "unet.conv_out"]
    with pytest.raises(InputError, match="matches 'vae"):
        prunable_layers(pipe, ("vae.*",))


@settings(max_examples=30)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=12), st.data())
def test_the_smallest_are_the_first_of_a_stable_order(values: list[int], data: Any) -> None:
    n = data.draw(st.integers(0, len(values)))
    expected = set(np.argsort(np.array(values), kind="stable")[:n].tolist())
    scores = torch.tensor(values, dtype=torch.float32)
    assert set(smallest(scores, n).nonzero().flatten().tolist()) == expected
    assert torch.equal(tyr.ranks(scores) < n, smallest(scores, n))  # a version of the supernet


# Saliencies


LAYERS = {
    "linear": (nn.Linear(5, 4), (3, 7, 5)),
    "conv": (nn.Conv2d(4, 6, 3, padding=1, stride=2), (2, 4, 6, 6)),
    "depthwise": (nn.Conv2d(4, 8, 3, padding=1, groups=4), (2, 4, 5, 5)),
}


@pytest.mark.parametrize("name", list(LAYERS))
def test_wanda_is_the_elementwise_product_of_weight_and_input_norm(name: str) -> None:
    """Reference: the root mean square over positions of what the layer gives with one weight alone."""
    layer, shape = LAYERS[name]
    x = noise(*shape)
    norms = wanda.input_norms({"l": layer}, lambda: layer(x))["l"]
    scores = wanda.saliency(layer.weight, norms)
    assert scores.shape == layer.weight.shape
    bias, weight = layer.bias, layer.weight
    with torch.no_grad():
        for place in range(0, weight.numel(), 7):
            alone = torch.zeros_like(weight)
            alone.view(-1)[place] = weight.view(-1)[place]
            output = torch.func.functional_call(layer, {"weight": alone, "bias": torch.zeros_like(bias)}, x)
            channel = place // weight[0].numel()
            values = output[..., channel] if name == "linear" else output[:, channel]
            torch.testing.assert_close(scores.view(-1)[place], values.square().mean().sqrt())


@settings(max_examples=20)
@given(st.integers(0, 10_000))
def test_distortion_is_the_share_of_what_is_left_of_the_module(seed: int) -> None:
    rng = np.random.default_rng(seed)
    weights = {"q": rng.permutation(np.arange(1, 7)) * rng.choice([-1, 1], 6), "k": np.arange(7, 12) / 3 + 0.1}
    scores = distortion.saliency({name: torch.tensor(value).float() for name, value in weights.items()})
    every = np.concatenate(list(weights.values())).astype(float)
    for name, value in weights.items():
        expected = [w**2 / sum(v**2 for v in every if abs(v) >= abs(w)) for w in value]
        np.testing.assert_allclose(scores[name].numpy(), expected, rtol=1e-5)
    merged = torch.cat([scores["q"], scores["k"]]).numpy()
    np.testing.assert_array_equal(np.argsort(merged), np.argsort(np.abs(every)))


@pytest.fixture(scope="module")
def calibration() -> Calibration:
    pipe = tiny_pipeline()
    latents = noise(6, 4, 16, 16)
    common: dict[str, Any] = {"draws": 2, "seed": 0}
    ordinary = noised_rows(pipe, latents[:4], encoded(pipe, ["a dog", "a", "dog", "cat"]), name="o", **common)
    memorized = noised_rows(pipe, latents[4:], encoded(pipe, ["cat sat", "at"]), name="m", **common)
    return Calibration(pipe, ordinary, memorized, torch.rand(2, 3, 64, 64), (64, 64), 4)


def test_rows_are_the_models_own_training_pairs(calibration: Calibration) -> None:
    rows, pipe = calibration.ordinary, calibration.pipe
    assert rows.noisy.shape == (8, 4, 16, 16)
    first, second = rows.timesteps[::2], rows.timesteps[1::2]
    assert (first < 500).all()
    assert (second >= 500).all()
    abar = pipe.scheduler.alphas_cumprod[rows.timesteps].view(-1, 1, 1, 1)
    clean = noise(6, 4, 16, 16)[:4].repeat_interleave(2, 0)
    torch.testing.assert_close(rows.noisy, abar.sqrt() * clean + (1 - abar).sqrt() * rows.target)
    embeds = encoded(pipe, ["a dog", "a", "dog", "cat"]).prompt_embeds.repeat_interleave(2, 0)
    with torch.no_grad():
        expected = (predict_noise(pipe, rows.noisy, rows.timesteps, embeds) - rows.target).square().mean()
    assert calibration.loss(rows) == pytest.approx(float(expected), rel=1e-4)


def test_taylor_removes_first_what_only_the_memorized_images_need(calibration: Calibration) -> None:
    layers = prunable_layers(calibration.pipe, ("unet.mid_block*to_v", "unet.mid_block*conv1"))
    for rows in (calibration.ordinary, calibration.memorized):
        assert rows is not None
        found = taylor.root_mean_square_gradients(calibration, layers, rows)
        name, layer = next(iter(layers.items()))
        squares = []
        for which in (slice(0, 4), slice(4, 8))[: len(rows.noisy) // 4]:
            layer.weight.requires_grad_(True)
            calibration.losses(rows, which).mean().backward()
            assert layer.weight.grad is not None
            squares.append(layer.weight.grad.square())
            layer.weight.grad = None
            calibration.pipe.unet.zero_grad()
        torch.testing.assert_close(found[name], torch.stack(squares).mean(0).sqrt())
    scores = taylor.saliency(
        torch.tensor([0.0, 4.0, 0.0, 4.0]), torch.tensor([9.0, 9.0, 0.0, 0.0]), means=(2.0, 3.0), damping=0.5
    )
    torch.testing.assert_close(scores, torch.tensor([0.5 / 3.5, 2.5 / 3.5, 1.0, 2.5 / 0.5]))


# Allocations

SIZES = st.lists(st.integers(1, 400), min_size=1, max_size=8)


@settings(max_examples=30, deadline=None)
@given(SIZES, st.floats(0.01, 0.99), st.integers(0, 1000), st.floats(0.01, 0.5))
def test_every_allocation_sums_exactly_to_the_sparsity(
    numbers: list[int], sparsity: float, seed: int, band: float
) -> None:
    weights = {str(place): n for place, n in enumerate(numbers)}
    total = round(sparsity * sum(numbers))
    scores = {name: noise(n, seed=seed).abs().round(decimals=1) for name, n in weights.items()}  # with ties
    modules = {"a": list(weights)[::2], "b": list(weights)[1::2]} if len(weights) > 1 else {"a": list(weights)}
    sensitivities = {name: float(noise(1, seed=seed + int(name)).exp()) for name in weights}
    for counts in (
        uniform_counts(weights, sparsity),
        threshold_counts(scores, total),
        module_counts(scores, modules, sparsity),
        ecoflap_counts(sensitivities, weights, sparsity=sparsity, band=band),
    ):
        assert sum(counts.values()) == total
        assert all(0 <= counts[name] <= weights[name] for name in weights)
    assert all(abs(n - sparsity * weights[name]) <= 1 for name, n in uniform_counts(weights, sparsity).items())
    limits = ecoflap_counts(sensitivities, weights, sparsity=sparsity, band=band)
    for name, n in limits.items():
        assert sparsity - band - 2 / weights[name] < n / weights[name] < sparsity + band + 2 / weights[name]


def test_one_threshold_switches_off_the_smallest_of_all() -> None:
    scores = {name: noise(n, seed=n).abs() for name, n in (("a", 30), ("b", 50), ("c", 20))}
    counts = threshold_counts(scores, 40)
    off = torch.cat([smallest(scores[name], counts[name]) for name in scores])
    torch.testing.assert_close(off, smallest(torch.cat(list(scores.values())), 40))
    per_module = module_counts(scores, {"x": ["a", "b"], "y": ["c"]}, 0.25)
    assert per_module["a"] + per_module["b"] == 20
    assert per_module["c"] == 5
    assert exact_counts({"a": 0.5, "b": 0.5}, {"a": 1, "b": 1}, 1) == {"a": 1, "b": 0}


def test_the_gradient_norm_is_autograds_on_a_quadratic() -> None:
    """On a quadratic the central difference is exactly the directional derivative, whose mean square is ||g||^2."""
    a, weight = noise(6, 6), nn.Parameter(noise(3, 2, seed=1).double())
    quadratic = a.double() @ a.double().T

    def loss(value: Tensor) -> Tensor:
        return value.flatten() @ quadratic @ value.flatten()

    before = weight.detach().clone()
    found = squared_gradient_norm(lambda: float(loss(weight)), weight, epsilon=0.1, perturbations=2000, source=source())
    assert torch.equal(weight.detach(), before)
    loss(weight).backward()
    assert weight.grad is not None
    draws = source()
    along = [float((weight.grad * torch.randn(3, 2, generator=draws).double()).sum()) for _ in range(2000)]
    assert found == pytest.approx(np.mean(np.square(along)), rel=1e-6)
    assert found == pytest.approx(float(weight.grad.square().sum()), rel=0.1)
    rms = float(before.square().mean().sqrt())
    assert sensitivity(weight, found) == pytest.approx(rms * np.sqrt(found / 6), rel=1e-5)


def test_ecoflap_keeps_in_proportion_to_the_sensitivity_within_the_band() -> None:
    weights = {"a": 1000, "b": 1000, "c": 1000, "d": 1000}
    counts = ecoflap_counts({"a": 1.0, "b": 1.1, "c": 1.2, "d": 50.0}, weights, sparsity=0.5, band=0.2)
    kept = {name: 1000 - n for name, n in counts.items()}
    assert kept["d"] == 700
    assert kept["b"] / kept["a"] == pytest.approx(1.1, abs=0.01)
    assert kept["c"] / kept["a"] == pytest.approx(1.2, abs=0.01)
    assert uniform_counts(weights, 0.5) == ecoflap_counts(dict.fromkeys("abcd", 0.0), weights, sparsity=0.5, band=0.2)


# Týr


@settings(max_examples=30)
@given(st.lists(st.integers(1, 60), min_size=2, max_size=9), st.integers(0, 1000), st.floats(0.05, 0.95))
def test_moves_keep_the_total_and_the_bounds(numbers: list[int], seed: int, sparsity: float) -> None:
    weights = {str(place): n for place, n in enumerate(numbers)}
    start = uniform_counts(weights, sparsity)
    bounds = tyr.bounds_around(start, weights, 0.1)
    counts, draws = start, source(seed)
    for _ in range(20):
        counts = tyr.moved(counts, weights, bounds, 0.1, draws)
        assert sum(counts.values()) == sum(start.values())
        assert all(bounds[name][0] <= counts[name] <= bounds[name][1] for name in weights)


def test_evolution_improves_the_fitness_and_keeps_the_overall_sparsity() -> None:
    """The best allocation is known: the two layers that do not matter take all they may."""
    weights = {"a": 100, "b": 200, "c": 50, "d": 150}
    start = uniform_counts(weights, 0.4)

    def fitness(counts: dict[str, int]) -> float:
        return float(counts["b"] + counts["c"])

    survivors, best = [tyr.Candidate(start, fitness(start))], []
    for generation in range(25):
        survivors = tyr.next_generation(
            survivors, weights, tyr.bounds_around(start, weights, 0.1), step=0.1, population=8, fitness=fitness,
            source=source(generation),
        )  # fmt: skip
        best.append(survivors[0].fitness)
        assert all(sum(one.counts.values()) == sum(start.values()) for one in survivors)
    assert best == sorted(best, reverse=True)
    assert survivors[0].counts == {"a": 60, "b": 40, "c": 10, "d": 90}  # a, d at their bounds of two steps


def test_the_expected_weight_is_the_mean_of_the_versions() -> None:
    weight, scores = noise(4, 5), noise(4, 5, seed=2)
    versions = [weight.masked_fill(smallest(scores, n), 0) for n in (0, 3, 5, 7, 9)]  # 5 off, +- 0.1, cut off below
    found = tyr.expected_weight(weight, tyr.ranks(scores), 5, 0.1)
    versions[0], versions[1] = (weight.masked_fill(smallest(scores, n), 0) for n in (1, 3))
    torch.testing.assert_close(found, torch.stack(versions).mean(0))


# Units


def test_a_units_importance_is_the_mean_over_its_own_weights() -> None:
    """Reference: the scores of a head of one attention and of a group of one resnet, taken out by hand."""
    pipe = tiny_pipeline()
    units, layers = prunable_units(pipe, ("unet.mid_block.*.attn2.head", "unet.mid_block.resnets.1.group"))
    scores = {name: noise(*layer.weight.shape, seed=place).abs() for place, (name, layer) in enumerate(layers.items())}
    block, resnet = "unet.mid_block.attentions.0.transformer_blocks.0.attn2", "unet.mid_block.resnets.1"
    parts = [scores[f"{block}.{leaf}"][16:] for leaf in ("to_q", "to_k", "to_v")] + [
        scores[f"{block}.to_out.0"][:, 16:]
    ]
    found = importances(units[f"{block}.head"], scores)
    torch.testing.assert_close(found[1], torch.cat([part.flatten() for part in parts]).mean())
    group = slice(12, 16)  # the fourth of eight groups of 32 channels
    parts = [scores[f"{resnet}.{leaf}"][group] for leaf in ("conv1", "time_emb_proj")]
    parts.append(scores[f"{resnet}.conv2"][:, group])
    found = importances(units[f"{resnet}.group"], scores)
    torch.testing.assert_close(found[3], torch.cat([part.flatten() for part in parts]).mean())
    assert unit_weights(units[f"{resnet}.group"], layers) == sum(part.numel() for part in parts)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 90), min_size=1, max_size=6), st.floats(0.02, 0.98), st.integers(0, 1000))
def test_allocations_of_units_are_near_the_sparsity_and_leave_one(
    numbers: list[int], sparsity: float, seed: int
) -> None:
    scores = {f"m{place // 2}.{place}": noise(n, seed=seed + place) for place, n in enumerate(numbers)}
    weights = {name: 1 + (seed + place) % 7 for place, name in enumerate(scores)}
    for allocation in ("uniform", "global", "module"):
        counts = allocate_units(scores, weights, sparsity, allocation)
        assert all(0 <= counts[name] < len(of) for name, of in scores.items())
    counts = allocate_units(scores, weights, sparsity, "global")
    off = sorted(float(v) for name, of in scores.items() for v in of.sort().values[: counts[name]])
    candidates = sorted(float(v) for of in scores.values() for v in of.sort().values[:-1])
    assert off == candidates[: len(off)]  # under one threshold, but for the last of each
    total = sparsity * sum(weights[name] * len(of) for name, of in scores.items())
    masked = sum(weights[name] * n for name, n in counts.items())
    assert abs(masked - total) <= max(weights.values()) or len(off) == len(candidates)
    uniform = allocate_units(scores, weights, sparsity, "uniform")
    for name, of in scores.items():
        step = 8 if len(of) >= 64 else 1
        assert uniform[name] % step == 0 or uniform[name] == len(of) - 1
        assert abs(uniform[name] - sparsity * len(of)) <= max(1, step / 2)


def test_patterns_name_units() -> None:
    units, layers = prunable_units(tiny_pipeline(), ("*.channel",))
    assert {of.kind for of in units.values()} == {"channel"}
    assert {name.partition(".ff.")[2] for name in layers} == {"net.0.proj", "net.2"}


# Precision, settings


def test_the_denoiser_is_float32_inside_and_its_own_bits_after() -> None:
    pipe = tiny_pipeline().to(dtype=torch.float16)
    before = {name: value.clone() for name, value in pipe.unet.state_dict().items()}
    with float32_denoiser(pipe):
        assert pipe.unet.conv_in.weight.dtype == torch.float32
    after = pipe.unet.state_dict()
    assert all(torch.equal(value, after[name]) and value.dtype == after[name].dtype for name, value in before.items())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"saliency": "random"}, "saliency magnitude"), ({"allocation": "even"}, "allocation uniform"),
        ({"objective": "x"}, "objective loss"), ({"sparsity": 1.0}, "share of the weights"),
        ({"grain": (0.1, 0.2)}, "falling"), ({"grain": ()}, "falling"), ({"population": 1}, "population"),
        ({"structure": "blocks"}, "structure weights"),
        ({"structure": "channels", "allocation": "tyr"}, "takes allocation uniform, global or module, got 'tyr'"),
        ({"epsilon": 0.0}, "epsilon"), ({"examples": 0}, "examples"), ({"forget": -1.0}, "forget"),
    ],
)  # fmt: skip
def test_settings_out_of_their_range_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        PruneSettings(**values)
