"""Attacks, detectors, mitigations and the audit on tiny pipelines of the families' real classes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from PIL import Image
from safetensors.torch import load_file
from tiny import tiny_pipeline
from tiny_families import family_pipeline
from torch import Tensor
from typer.testing import CliRunner

from diffkit.conditioning import initial_latents
from diffkit.errors import InputError
from diffkit.families import default_size
from diffkit.latents import encode_images
from diffkit.loading import load_pipeline, model_checksum
from diffkit.mitigation import Mitigation, apply_mitigation
from diffkit.prompt_embeds import Embeds
from diffkit.seeds import generators
from diffkit.suspects import Suspect
from memorization.attack import attacks
from memorization.attack.base import Target, Triggers
from memorization.attack.checkpoint import Checkpoints
from memorization.attack.dori import Dori
from memorization.attack.objective import Objective, frozen, objective
from memorization.cli.audit import app
from memorization.detection import detectors, make_detector
from memorization.detection.compatibility import compatible_detectors, require_compatible
from memorization.detection.score_captions import score_by_all
from memorization.generation import Sampling, generate
from memorization.mitigation import methods
from memorization.mitigation.layers import feed_forward_layers, value_layers
from memorization.mitigation.pruning import wanda as pruning_wanda
from memorization.mitigation.pruning.calibration import Calibration, noised_rows
from memorization.mitigation.pruning.layers import prunable_layers
from memorization.mitigation.pruning.taylor import root_mean_square_gradients
from memorization.mitigation.pruning.wanda import input_norms
from memorization.mitigation.run import mitigate, parse_settings
from memorization.presets import NONE
from memorization.text_embeddings import empty_text, encoded

SIZES: dict[str, tuple[int, int] | None] = {"sdxl": (64, 64), "sd3": (64, 64), "flux": (32, 32)}
FAMILIES = list(SIZES)
OTHERS = ("sd2-v", "chroma", "pixart-sigma", "sana", "lumina2", "z-image", "qwen-image", "aura-flow", "flux2",
          "flux2-klein", "pixart-alpha", "cogview4")  # fmt: skip


def image_of(name: str, seed: int = 0) -> Tensor:
    return torch.rand(3, *(SIZES[name] or (64, 64)), generator=torch.Generator().manual_seed(seed))


def target(pipe: Any, name: str, seed: int = 0) -> Target:
    return Target(image_of(name, seed), encoded(pipe, ["a dog"]), seed=seed, text="a dog")


def losses(pipe: Any, image: Tensor, embeds: Embeds) -> list[float]:
    """The model's own loss of one image under each row, on draws no attack has seen."""
    loss = objective(pipe, image[None], rows=64)
    judges = loss.draw([torch.Generator().manual_seed(99)], 24, stratified=True)
    return loss.loss(embeds.to(pipe.device), judges)[0].tolist()


class TestAttack:
    @pytest.mark.parametrize("name", FAMILIES)
    @pytest.mark.parametrize("pooled", ["fixed", "attacked"])
    def test_dori_lowers_the_models_own_loss(self, name: str, pooled: Any) -> None:
        pipe = family_pipeline(name)
        attack = Dori(budgets=(0, 12), micro_batch=1, draws=4, pooled=pooled)
        (found,) = attack(pipe, [target(pipe, name)])
        before, after = losses(pipe, image_of(name), found.embeds)
        assert after < before
        began = found.embeds.companions["pooled_prompt_embeds"]
        assert torch.equal(began[0], began[1]) == (pooled == "fixed")
        assert not any(parameter.grad is not None for parameter in pipe.components["vae"].parameters())

    @pytest.mark.parametrize("name", OTHERS)
    def test_every_other_family_too(self, name: str) -> None:
        pipe = family_pipeline(name)
        size = (64, 64) if name == "sd2-v" else (32, 32)
        image = torch.rand(3, *size, generator=torch.Generator().manual_seed(0))
        (found,) = Dori(budgets=(0, 10), micro_batch=1, draws=4)(pipe, [Target(image, encoded(pipe, ["a dog"]), 0)])
        before, after = losses(pipe, image, found.embeds)
        assert after < before or name == "aura-flow"  # whose tiny random blocks hardly hear the text
        assert not torch.equal(found.embeddings[0], found.embeddings[1])
        sampling = Sampling(2 if name == "pixart-alpha" else 1, 3.0, 2, size)
        made = generate(pipe, found.embeds, empty_text(pipe), [1, 2], sampling=sampling).images
        assert made.shape == (2, 3, *size)

    def test_a_family_without_a_gradient_is_refused(self) -> None:
        pipe = family_pipeline("hidream")
        with pytest.raises(InputError, match=r"HiDream-I1 cannot be attacked .* hand no gradient"):
            Dori(budgets=(0, 1), micro_batch=1, draws=1)(pipe, [Target(torch.rand(3, 32, 32), encoded(pipe, ["a"]), 0)])

    @pytest.mark.parametrize("name", FAMILIES)
    def test_the_gradient_is_that_of_finite_differences(self, name: str) -> None:
        pipe = family_pipeline(name)
        with frozen(pipe):
            loss = objective(pipe, image_of(name)[None], rows=3)  # blocks smaller than the step
            drawn = loss.draw([torch.Generator().manual_seed(1)], 4)
            rows = encoded(pipe, ["a dog"])
            free = rows.replace(pooled_prompt_embeds=rows.companions["pooled_prompt_embeds"].requires_grad_(True))
            gradients = loss.gradient(free, drawn)
            for key, gradient in gradients.items():
                value = {"prompt_embeds": rows.prompt_embeds, **rows.companions}[key].detach()
                slope = float(gradient.norm())  # along itself, where the difference is far above float32's grain
                step = 0.02

                def at(shift: float, key: str = key, value: Tensor = value, way: Tensor = gradient / slope) -> float:
                    return float(loss.loss(rows.replace(**{key: value + shift * way}), drawn))

                assert slope == pytest.approx((at(step) - at(-step)) / (2 * step), rel=0.05, abs=1e-6), key

    @pytest.mark.parametrize("name", FAMILIES)
    def test_the_loss_is_the_textbooks(self, name: str) -> None:
        """One draw, with the pipeline's own scheduler and denoiser as its training script would have them."""
        pipe = family_pipeline(name)
        loss: Objective = objective(pipe, image_of(name)[None], rows=8)
        drawn = loss.draw([torch.Generator().manual_seed(1)], 1)
        t, noise, clean = drawn.timesteps[0], drawn.noise[0], loss.latents
        if name == "sdxl":
            abar = pipe.scheduler.alphas_cumprod[t]
            noisy, wanted = abar.sqrt() * clean + (1 - abar).sqrt() * noise, noise
        else:
            sigma = t / 1000
            assert 0 < float(sigma) < 1
            noisy, wanted = (1 - sigma) * clean + sigma * noise, noise - clean
        predicted = loss.denoiser(noisy, t, encoded(pipe, ["a dog"]))
        expected = (predicted - wanted).square().mean()
        assert float(loss.loss(encoded(pipe, ["a dog"]), drawn)) == pytest.approx(float(expected), rel=1e-4)

    @pytest.mark.parametrize("rung", ["norm-bounded", "low-rank", "soft-tokens-1", "hard-tokens", "words"])
    @pytest.mark.parametrize("name", FAMILIES)
    def test_the_rest_of_the_ladder(self, name: str, rung: str) -> None:
        pipe = family_pipeline(name)
        (found,) = attacks.get(rung)(budgets=(0, 2), micro_batch=1, draws=1)(pipe, [target(pipe, name)])
        assert set(found.embeds.companions) == set(encoded(pipe, ["a dog"]).companions)
        assert bool(found.embeddings.isfinite().all())
        if found.texts is not None:  # what stands there, typed, is the trigger
            torch.testing.assert_close(
                found.embeds.rows([1]).prompt_embeds, encoded(pipe, [found.texts[1]]).prompt_embeds
            )

    def test_nothing_pooled_to_attack_is_refused(self) -> None:
        pipe = tiny_pipeline()
        start = encoded(pipe, ["a dog"])
        with pytest.raises(InputError, match="no pooled embeddings"):
            Dori(budgets=(0, 1), pooled="attacked")(pipe, [Target(torch.rand(3, 64, 64), start, 0)])

    def test_a_killed_search_goes_on_with_its_companions(self, tmp_path: Path) -> None:
        pipe = family_pipeline("sd3")
        options: Any = {"budgets": (0, 1, 4), "micro_batch": 1, "draws": 1, "pooled": "attacked"}
        (whole,) = Dori(**options)(pipe, [target(pipe, "sd3")])
        count = [0]

        def die(*_: object) -> None:
            count[0] += 1
            if count[0] == 4:  # the question that names the search, and two steps
                raise KeyboardInterrupt

        handle = pipe.transformer.register_forward_hook(die)
        with pytest.raises(KeyboardInterrupt):
            Dori(**options)(pipe, [target(pipe, "sd3")], checkpoints=Checkpoints(tmp_path, every=1))
        handle.remove()
        (state,) = tmp_path.glob("*.safetensors")
        assert load_file(state)["kept.pooled_prompt_embeds"].shape == (2, 1, 32)
        (resumed,) = Dori(**options)(pipe, [target(pipe, "sd3")], checkpoints=Checkpoints(tmp_path, every=1))
        assert same(resumed, whole)


def same(one: Triggers, other: Triggers) -> bool:
    pairs = [(one.embeddings, other.embeddings)]
    pairs += [(one.embeds.companions[name], other.embeds.companions[name]) for name in other.embeds.companions]
    return all(torch.equal(a, b) for a, b in pairs)


#: family -> detectors that fit it.
FIT = {
    "sdxl": set(detectors.names()),
    "sd3": set(detectors.names()) - {"attention_entropy", "bright_ending"},
    "flux": {"seed_agreement", "attention_entropy", "attention_entropy_one_step"},
    "flux2": {"seed_agreement"},
    "hidream": {"seed_agreement", "noise_magnitude", "anisotropy"},
    "chroma": {"seed_agreement", "noise_magnitude", "anisotropy", "sharpness"},
    "aura-flow": {"seed_agreement", "noise_magnitude", "anisotropy", "sharpness", "curvature_difference"},
}


class TestDetectors:
    @pytest.mark.parametrize("name", list(FIT))
    def test_what_fits_scores_and_the_rest_says_why_not(self, name: str) -> None:
        pipe = family_pipeline(name)
        assert set(compatible_detectors(pipe, detectors.names())) == FIT[name]
        for misfit in set(detectors.names()) - FIT[name]:
            with pytest.raises(InputError, match=f"{misfit} does not fit .* These fit: .*seed_agreement"):
                require_compatible(pipe, [misfit])
        if name not in SIZES:
            return
        chosen = {one: make_detector(one) for one in detectors.names() if one != "attention_entropy_one_step"}
        chosen["attention_entropy_one_step"] = make_detector("attention_entropy_one_step:layer=0")
        chosen["curvature_difference"] = make_detector("curvature_difference:draws=1")
        sampling = Sampling(2, 3.0, 2, SIZES[name])
        found = score_by_all(pipe, ["a dog", "a"], chosen, [[1], [2]], sampling=sampling)
        for one, scores in found.items():
            for score in scores:
                assert (score.value is not None) == (one in FIT[name]), (one, score.reason)
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in pipe.components[part(pipe)].modules())
        assert "step" not in vars(pipe.scheduler)

    def test_noise_magnitude_of_a_flow_model_is_the_velocitys(self) -> None:
        pipe = family_pipeline("sd3")
        rows, negative = encoded(pipe, ["a dog"]), encoded(pipe, [""])
        found = make_detector("noise_magnitude:steps=1").scores(pipe, rows, negative, [5], sampling=Sampling(3, 3.0, 1))
        x = initial_latents(pipe, generators([5]))
        said, unsaid = (
            pipe.transformer(
                x, one.prompt_embeds, one.companions["pooled_prompt_embeds"], torch.tensor([1000.0])
            ).sample
            for one in (rows, negative)
        )
        torch.testing.assert_close(found[0], (said - unsaid).norm(), rtol=1e-3, atol=1e-6)

    def test_joint_attention_is_the_blocks_own(self) -> None:
        """Over text keys alone: softmax of the joint logits, given that a query looks at the text."""
        from memorization.detection.attention_maps import joint_probabilities

        layer = family_pipeline("sd3").transformer.transformer_blocks[0].attn
        hidden, text = torch.randn(1, 6, 16), torch.randn(1, 4, 16)
        found = joint_probabilities(layer, hidden, text, None)
        heads = [
            part.unflatten(-1, (2, 8)).transpose(1, 2)
            for part in (layer.to_q(hidden), layer.to_k(hidden), layer.add_k_proj(text))
        ]
        joint = (heads[0] @ torch.cat(heads[1:], 2).transpose(2, 3) / 8**0.5).softmax(-1)[..., 6:]
        torch.testing.assert_close(found, (joint / joint.sum(-1, keepdim=True)).mean(1))


def part(pipe: Any) -> str:
    return "unet" if hasattr(pipe, "unet") else "transformer"


def outputs(pipe: Any, name: str) -> Tensor:
    """The denoiser's answer to one caption at one noise."""
    from diffkit.conditioning import predict_noise

    x = initial_latents(pipe, generators([3]), SIZES[name])
    with torch.no_grad():
        return predict_noise(pipe, x, torch.tensor(500), encoded(pipe, ["a dog"]), size=SIZES[name])


def suspects(folder: Path, name: str, n: int = 2) -> list[Suspect]:
    height, width = SIZES[name] or (64, 64)
    found = []
    for i in range(n):
        path = folder / f"{i}.png"
        Image.frombytes(
            "RGB",
            (width, height),
            torch.randint(256, (height * width * 3,), generator=generators([i])[0]).byte().numpy().tobytes(),
        ).save(path)
        found.append(Suspect(id=str(i), caption=("a dog", "a")[i % 2], images=(path,)))
    return found


def captions(folder: Path) -> Path:
    path = folder / "captions.txt"
    path.write_text("\n".join(["a a dog", "dog a", "dog dog", "a a a", "dog", "a dog a", "dog a a", "a a dog a"] * 2))
    return path


class TestMitigations:
    def check(self, pipe: Any, name: str, made: Mitigation) -> None:
        before = {key: value.clone() for key, value in pipe.components[part(pipe)].state_dict().items()}
        plain = outputs(pipe, name)
        with apply_mitigation(pipe, made):
            assert not torch.equal(outputs(pipe, name), plain)
        assert torch.equal(outputs(pipe, name), plain)
        now = pipe.components[part(pipe)].state_dict()
        assert all(torch.equal(value, before[key]) for key, value in now.items())

    @pytest.mark.parametrize("name", FAMILIES)
    def test_nemo(self, name: str, tmp_path: Path) -> None:
        pipe = family_pipeline(name)
        ending = "attn2.to_v" if name == "sdxl" else "add_v_proj"
        assert value_layers(pipe) == (f"{part(pipe)}.*{ending}",)
        if SIZES[name] != tuple(default_size(pipe)):
            pipe.default_sample_size = 32 // pipe.vae_scale_factor
        options = [f"captions={captions(tmp_path)}", "statistics=8", "calibration=2", "seeds=2", "steps=2"]
        method = methods.get("nemo")
        settings = parse_settings(
            method, [*options, "check=false", "refine=false", "theta=0.5", "smallest_theta=0.5"], NONE
        )
        made = mitigate(
            pipe, suspects(tmp_path, name), method=method, out=tmp_path / "out", name="m", settings=settings
        )
        self.check(pipe, name, made)

    @pytest.mark.parametrize("name", FAMILIES)
    def test_wanda(self, name: str, tmp_path: Path) -> None:
        pipe = family_pipeline(name)
        assert feed_forward_layers(pipe)[0] == f"{part(pipe)}.*.ff.net.2"
        assert len(feed_forward_layers(pipe)) == (1 if name == "sdxl" else 2)
        if SIZES[name] != tuple(default_size(pipe)):
            pipe.default_sample_size = 32 // pipe.vae_scale_factor
        options = [f"captions={captions(tmp_path)}", "base_captions=2", "steps=2", "timesteps=1", "sparsity=0.2"]
        method = methods.get("wanda")
        settings = parse_settings(method, options, NONE)
        made = mitigate(
            pipe, suspects(tmp_path, name), method=method, out=tmp_path / "out", name="m", settings=settings
        )
        self.check(pipe, name, made)

    @pytest.mark.parametrize(
        ("name", "options"),
        [
            ("sdxl", ("saliency=wanda", "allocation=module")),
            ("sd3", ("saliency=taylor", "allocation=global")),
            ("flux", ("saliency=wanda", "allocation=tyr", "objective=dori", "grain=0.1", "generations=1")),
            ("sd3", ("saliency=distortion", "allocation=ecoflap", "objective=forget", "perturbations=1")),
            ("sdxl", ("structure=channels", "saliency=taylor", "allocation=uniform")),
            ("flux", ("structure=channels", "saliency=distortion", "allocation=module")),
        ],
    )
    def test_prune(self, name: str, options: tuple[str, ...], tmp_path: Path) -> None:
        pipe = family_pipeline(name)
        if SIZES[name] != tuple(default_size(pipe)):
            pipe.default_sample_size = 32 // pipe.vae_scale_factor
        few = (f"retention={captions(tmp_path)}", "examples=8", "draws=1", "num_inference_steps=2", "population=2")
        method = methods.get("prune")
        settings = parse_settings(method, [*options, *few, "attack_steps=1", "attack_images=1"], NONE)
        made = mitigate(
            pipe, suspects(tmp_path, name), method=method, out=tmp_path / "out", name="m", settings=settings
        )
        structured = "structure=channels" in options  # a whole number of units
        assert made.figures["share off in all"] == pytest.approx(0.3, abs=0.05 if structured else 1e-4)
        self.check(pipe, name, made)

    @pytest.mark.parametrize("name", OTHERS)
    def test_saliencies_of_every_other_family(self, name: str) -> None:
        pipe = family_pipeline(name)
        size = (64, 64) if name == "sd2-v" else (32, 32)
        images = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0))
        embeds = encoded(pipe, ["a dog", "a"]).to("cpu", torch.float32)
        rows = noised_rows(pipe, encode_images(pipe, images).float(), embeds, draws=1, seed=0, name="images")
        calibration, layers = Calibration(pipe, rows, rows, images, size, 2), prunable_layers(pipe)
        norms = input_norms(layers, lambda: calibration.loss(rows))
        gradients = root_mean_square_gradients(calibration, layers, rows)
        for layer, found in gradients.items():
            scores = pruning_wanda.saliency(layers[layer].weight, norms[layer])
            assert scores.shape == found.shape == layers[layer].weight.shape
            assert bool(scores.isfinite().all() and found.isfinite().all())
            assert bool(scores.any()) or not bool(found.any())  # what a layer never sees, its weights cannot matter to
        assert sum(bool(found.any()) for found in gradients.values()) > len(gradients) / 2

    @pytest.mark.parametrize("name", FAMILIES)
    def test_adversarial(self, name: str, tmp_path: Path) -> None:
        pipe = family_pipeline(name)
        if SIZES[name] != tuple(default_size(pipe)):
            pipe.default_sample_size = 32 // pipe.vae_scale_factor
        options = [f"retention={captions(tmp_path)}", "validation=2", "retention_examples=10", "updates=2"]
        options += [
            "num_inference_steps=2",
            "surrogates=1",
            "adversarial_batch=2",
            "retention_batch=2",
            "search_batch=1",
        ]
        options += ["surrogate_similarity=1.1", "search_draws=1"]
        method = methods.get("adversarial")
        settings = parse_settings(method, options, NONE)
        made = mitigate(
            pipe, suspects(tmp_path, name), method=method, out=tmp_path / "out", name="m", settings=settings
        )
        assert made.figures["updates"] == 2
        self.check(pipe, name, made)

    def test_guards_refuse_what_they_cannot_change(self, tmp_path: Path) -> None:
        for name, method, words in (("flux", "prompt-guard", "one batch"), ("sd3", "attention-guard", "U-Net")):
            with pytest.raises(InputError, match=words):
                mitigate(
                    family_pipeline(name),
                    suspects(tmp_path, name),
                    method=methods.get(method),
                    out=tmp_path / name,
                    name="m",
                )

    @pytest.mark.parametrize("name", ["sdxl", "sd3"])
    def test_the_prompt_guard_softens_a_guided_generation(self, name: str, tmp_path: Path) -> None:
        pipe = family_pipeline(name)
        method = methods.get("prompt-guard")
        settings = parse_settings(method, ["target=1e-4", "steps=2"], NONE)
        made = mitigate(
            pipe, suspects(tmp_path, name), method=method, out=tmp_path / "out", name="m", settings=settings
        )

        def draw() -> Tensor:
            made = pipe("a dog", num_inference_steps=2, guidance_scale=3.0, generator=generators([1]), output_type="pt")
            return made.images

        plain = draw()
        with apply_mitigation(pipe, made):
            assert not torch.equal(draw(), plain)
        assert torch.equal(draw(), plain)


def saved(pipe: Any, folder: Path) -> Path:
    pipe.save_pretrained(folder, safe_serialization=True)
    return folder


def folder_of_images(folder: Path, name: str, seed: int) -> Path:
    folder.mkdir()
    for one in suspects(folder, name, 2):
        (folder / f"{one.id}.txt").write_text(one.caption)
    return folder


def run_audit(*arguments: object) -> dict[str, Any]:
    result = CliRunner().invoke(app, [*map(str, arguments), "--format", "json"], catch_exceptions=False)
    assert result.exit_code in (0, 3), result.output
    summary: dict[str, Any] = json.loads(result.stdout)
    return summary


TINY = ("--budgets", "0,1", "--starts", "other", "--generations", 1, "--attack-generations", 1, "--steps", 2,
        "--draws", 1, "--batch", 2, "--micro-batch", 2, "--save-triggers")  # fmt: skip


class TestCommandLine:
    @pytest.mark.parametrize("name", FAMILIES)
    def test_an_audit_of_a_folder_ends_in_a_report(self, name: str, tmp_path: Path) -> None:
        model = saved(family_pipeline(name), tmp_path / "model")
        known, never = (folder_of_images(tmp_path / role, name, i) for i, role in enumerate(("suspects", "controls")))
        size = [] if SIZES[name] is None else ["--size", "x".join(map(str, SIZES[name] or ()))]
        out = tmp_path / "run"
        summary = run_audit("--model", model, "--suspects", known, "--controls", never, "--out", out, *TINY, *size)
        assert summary["suspects"] == 2
        assert (out / "report.html").is_file()
        told = json.loads((out / "run.json").read_text())["config"]["settings"]
        assert told["detectors"] == (["seed_agreement"] if name == "flux" else ["noise_magnitude"])
        (first, *_) = (out / "triggers").glob("*.safetensors")
        assert {key.split(".", 3)[-1] for key in load_file(first)} == {"0", "1", "pooled_prompt_embeds"} or any(
            key.endswith(".1.pooled_prompt_embeds") for key in load_file(first)
        )

    def test_a_detector_that_does_not_fit_is_refused_before_a_folder_is_made(self, tmp_path: Path) -> None:
        model = saved(family_pipeline("flux"), tmp_path / "model")
        known = folder_of_images(tmp_path / "suspects", "flux", 0)
        result = CliRunner().invoke(
            app,
            ["--model", str(model), "--suspects", str(known), "--controls", "none", "--out", str(tmp_path / "run"),
             "--detector", "noise_magnitude"],
        )  # fmt: skip
        assert isinstance(result.exception, InputError)
        assert "does not fit FLUX.1" in str(result.exception)
        assert not (tmp_path / "run").exists()


def save_lora(pipe: Any, folder: Path, *, scale: float = 0.5) -> Path:
    """A LoRA on the attention of the denoiser, made by peft, random where peft begins at zero."""
    denoiser = pipe.components[part(pipe)]
    denoiser.add_adapter(LoraConfig(r=2, lora_alpha=4, target_modules=["to_q", "to_v"]))
    state = get_peft_model_state_dict(denoiser)
    drawn = {
        key: scale * torch.randn(value.shape, generator=generators([i])[0])
        for i, (key, value) in enumerate(state.items())
    }
    pipe.save_lora_weights(folder, **{f"{part(pipe)}_lora_layers": drawn})
    return folder


class TestLora:
    @pytest.mark.parametrize("build", [tiny_pipeline, lambda: family_pipeline("sd3")])
    def test_it_is_what_diffusers_makes_of_it_and_leaves_no_layers(
        self, build: Callable[[], Any], tmp_path: Path
    ) -> None:
        model, lora = saved(build(), tmp_path / "model"), save_lora(build(), tmp_path / "lora")
        stock = load_pipeline(model)
        plain = outputs(stock, "sd3")
        stock.load_lora_weights(lora)
        wanted = outputs(stock, "sd3")
        pipe = load_pipeline(model, lora=lora)
        torch.testing.assert_close(outputs(pipe, "sd3"), wanted, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(wanted, plain, atol=1e-3)
        assert not any("lora" in name for name, _ in pipe.components[part(pipe)].named_modules())
        assert model_checksum(model, lora) not in (None, model_checksum(model))

    def test_what_is_no_lora_of_this_model_is_refused(self, tmp_path: Path) -> None:
        model = saved(tiny_pipeline(), tmp_path / "model")
        other = save_lora(family_pipeline("sd3"), tmp_path / "other")
        with pytest.raises(InputError, match="holds nothing for|does not fit"):
            load_pipeline(model, lora=other)
        (tmp_path / "weights.bin").write_bytes(b"")
        for wrong, words in (("weights.bin", "safetensors"), ("nothing", "no LoRA"), ("model", "found none")):
            with pytest.raises(InputError, match=words):
                load_pipeline(model, lora=tmp_path / wrong)

    def test_did_my_fine_tune_copy(self, tmp_path: Path) -> None:
        """The model without the LoRA is the reference, by itself."""
        model, lora = saved(tiny_pipeline(), tmp_path / "model"), save_lora(tiny_pipeline(), tmp_path / "lora")
        known, never = (folder_of_images(tmp_path / role, "sd3", i) for i, role in enumerate(("suspects", "controls")))
        out = tmp_path / "run"
        summary = run_audit(
            "--model",
            model,
            "--lora",
            lora,
            "--suspects",
            known,
            "--controls",
            never,
            "--out",
            out,
            "--attack-all",
            *TINY,
        )
        config = json.loads((out / "run.json").read_text())["config"]
        assert config["lora"]["name"] == str(lora)
        assert len(config["lora"]["sha256"]) == 64
        assert config["reference"] == {"model": str(model), "sha256": model_checksum(model)}
        assert summary["lora"] == config["lora"]
        journal = [json.loads(line) for line in (out / "journal.jsonl").read_text().splitlines()]
        rows = {row["key"]: row for row in journal if "key" in row}
        mine, base = (rows[f"{role}:0"] for role in ("suspect", "reference"))
        assert mine != base
        assert "with the LoRA" in (out / "report.html").read_text()
