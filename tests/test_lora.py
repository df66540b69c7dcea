"""LoRAs: every tensor of the file is put on, by a formula of its own, or the file is refused."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tiny import tiny_pipeline
from tiny_families import family_pipeline
from torch import Tensor, nn

from diffkit.errors import InputError
from diffkit.lora import fuse_lora
from diffkit.lora_file import sort_names

Factors = dict[str, tuple[Tensor, Tensor]]
PEFT, KOHYA, OLD = ("lora_A", "lora_B"), ("lora_down", "lora_up"), ("lora.down", "lora.up")


def factors(model: nn.Module, words: tuple[str, ...], *, rank: int = 2, seed: int = 0) -> Factors:
    """Random factors for the linear and convolution layers whose names contain one of the words."""
    draw = torch.Generator().manual_seed(seed)
    made: Factors = {}
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear | nn.Conv2d) and any(word in name for word in words):
            out, *rest = layer.weight.shape
            up = (out, rank, 1, 1) if isinstance(layer, nn.Conv2d) else (out, rank)
            made[name] = (torch.randn(rank, *rest, generator=draw), 0.1 * torch.randn(up, generator=draw))
    return made


def named(made: Factors, prefix: str, halves: tuple[str, str], *, alpha: float | None = None, flat: bool = False):
    """Tensors under the names of a scheme; kohya's has no dots in a layer's name."""
    tensors: dict[str, Tensor] = {}
    for name, pair in made.items():
        stem = prefix + (name.replace(".", "_") if flat else name)
        tensors |= {f"{stem}.{half}.weight": factor for half, factor in zip(halves, pair, strict=True)}
        if alpha is not None:
            tensors[f"{stem}.alpha"] = torch.tensor(alpha)
    return tensors


def weights(model: nn.Module) -> dict[str, Tensor]:
    kinds = (nn.Linear, nn.Conv2d)
    return {name: layer.weight.detach().clone() for name, layer in model.named_modules() if isinstance(layer, kinds)}


def expected(plain: Mapping[str, Tensor], made: Factors, scale: float) -> dict[str, Tensor]:
    """W + scale * up @ down for the layers of the LoRA, W elsewhere."""
    changes = {name: (up.flatten(1) @ down.flatten(1)).reshape(plain[name].shape) for name, (down, up) in made.items()}
    return {name: weight + scale * changes.get(name, 0.0) for name, weight in plain.items()}


def check_weights(model: nn.Module, wanted: Mapping[str, Tensor]) -> None:
    for name, weight in weights(model).items():
        torch.testing.assert_close(weight, wanted[name], rtol=1e-4, atol=1e-5, msg=lambda text, name=name: name + text)


def written(tensors: dict[str, Tensor], folder: Path, **metadata: str) -> Path:
    path = folder / "lora.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata=metadata or None)
    return path


ATTENTION, EVERY = ("to_q", "to_k", "to_v", "to_out"), ("attentions.", "resnets.", "samplers.")
SCHEMES = {
    "peft": (ATTENTION, lambda u: named(u, "unet.", PEFT), 1.0),
    "peft, convolutions too": (EVERY, lambda u: named(u, "unet.", PEFT), 1.0),
    "kohya": (ATTENTION, lambda u: named(u, "lora_unet_", KOHYA, alpha=1.0, flat=True), 0.5),
    "kohya without alpha": (ATTENTION, lambda u: named(u, "lora_unet_", KOHYA, flat=True), 1.0),
    "LoCon": (EVERY, lambda u: named(u, "lora_unet_", KOHYA, alpha=1.0, flat=True), 0.5),
    "diffusers of 2023": (("to_q", "to_k"), lambda u: old_names(u), 1.0),
}


def old_names(made: Factors) -> dict[str, Tensor]:
    tensors = {}
    for name, pair in made.items():
        block, projection = name.rsplit(".", 1)
        for half, factor in zip(("down", "up"), pair, strict=True):
            tensors[f"unet.{block}.processor.{projection}_lora.{half}.weight"] = factor
    return tensors


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_layer_of_a_file_is_put_on_at_its_strength_and_in_silence(scheme, tmp_path, caplog, capfd):
    pipe = tiny_pipeline()
    words, names, scale = SCHEMES[scheme]
    made, plain, text = factors(pipe.unet, words), weights(pipe.unet), weights(pipe.text_encoder)
    with caplog.at_level(logging.WARNING):
        fuse_lora(pipe, written(names(made), tmp_path))
    check_weights(pipe.unet, expected(plain, made, scale))
    check_weights(pipe.text_encoder, text)
    assert caplog.text == ""
    assert capfd.readouterr().err == ""


ENCODER = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")


@pytest.mark.parametrize("prefix", ["lora_te_text_model_", "lora_te1_text_model_"])
def test_kohyas_text_encoder_too(prefix, tmp_path):
    pipe = tiny_pipeline()
    made, plain = factors(pipe.text_encoder, ENCODER), weights(pipe.text_encoder)
    file = written(named(made, prefix, KOHYA, alpha=4.0, flat=True), tmp_path)
    fuse_lora(pipe, file)
    check_weights(pipe.text_encoder, expected(plain, made, 2.0))


def test_the_scale_in_pefts_settings_counts(tmp_path):
    pipe = tiny_pipeline()
    made, plain = factors(pipe.unet, ("to_q",)), weights(pipe.unet)
    settings = json.dumps({"unet.r": 2, "unet.lora_alpha": 8, "unet.target_modules": ["to_q"]})
    fuse_lora(pipe, written(named(made, "unet.", PEFT), tmp_path, lora_adapter_metadata=settings))
    check_weights(pipe.unet, expected(plain, made, 4.0))


def test_dora_in_pefts_form_gives_the_weights_of_its_formula(tmp_path):
    """W' = m (W + BA) / |W + BA|, the norm of each row, equation 5 of the paper."""
    pipe = tiny_pipeline()
    made, plain = factors(pipe.unet, ("to_q",)), weights(pipe.unet)
    magnitudes = {name: torch.rand(len(up)) + 0.1 for name, (_, up) in made.items()}
    vectors = {f"unet.{name}.lora_magnitude_vector": magnitude for name, magnitude in magnitudes.items()}
    file = written(named(made, "unet.", PEFT) | vectors, tmp_path)
    fuse_lora(pipe, file)
    wanted = expected(plain, made, 1.0)
    for name, magnitude in magnitudes.items():
        wanted[name] = magnitude[:, None] * wanted[name] / wanted[name].norm(dim=1, keepdim=True)
    check_weights(pipe.unet, wanted)
    vectors.popitem()
    with pytest.raises(InputError, match="does not hold"):
        fuse_lora(tiny_pipeline(), written(named(made, "unet.", PEFT) | vectors, tmp_path))


def test_kohyas_sdxl_names_blocks_as_the_original_and_has_two_encoders(tmp_path):
    pipe = family_pipeline("sdxl")
    parts = {part: getattr(pipe, part) for part in ("unet", "text_encoder", "text_encoder_2")}
    plain = {part: weights(model) for part, model in parts.items()}
    made = {part: factors(model, ENCODER) for part, model in parts.items()}
    made["unet"] = factors(pipe.unet, ("down_blocks.1.attentions.0",))
    original = {name.replace("down_blocks.1.attentions.0", "input_blocks.3.1"): f for name, f in made["unet"].items()}
    tensors = named(original, "lora_unet_", KOHYA, alpha=1.0, flat=True)
    for prefix, part in (("lora_te1_", "text_encoder"), ("lora_te2_", "text_encoder_2")):
        layers = {f"text_model.{name.removeprefix('text_model.')}": pair for name, pair in made[part].items()}
        tensors |= named(layers, prefix, KOHYA, alpha=1.0, flat=True)
    fuse_lora(pipe, written(tensors, tmp_path))
    for part, model in parts.items():
        check_weights(model, expected(plain[part], made[part], 0.5))


class TestFlux:
    def test_names_of_xlabs(self, tmp_path):
        pipe = family_pipeline("flux")
        width, plain = pipe.transformer.transformer_blocks[0].attn.to_q.in_features, weights(pipe.transformer)
        pairs = {
            name: (torch.randn(2, width), torch.randn(rows * width, 2)) for name, rows in (("qkv", 3), ("proj", 1))
        }
        tensors = {
            f"double_blocks.0.processor.{name}_lora1.{half}.weight": factor
            for name, pair in pairs.items()
            for half, factor in zip(("down", "up"), pair, strict=True)
        }
        fuse_lora(pipe, written(tensors, tmp_path))
        down, up = pairs["qkv"]
        made = {f"transformer_blocks.0.attn.to_{n}": (down, rows) for n, rows in zip("qkv", up.chunk(3), strict=True)}
        made["transformer_blocks.0.attn.to_out.0"] = pairs["proj"]
        check_weights(pipe.transformer, expected(plain, made, 1.0))

    def test_a_joint_query_key_and_value_is_split(self, tmp_path):
        pipe = family_pipeline("flux")
        block = pipe.transformer.transformer_blocks[0].attn
        names = [f"transformer_blocks.0.attn.{part}" for part in ("to_q", "to_k", "to_v")]
        plain = weights(pipe.transformer)
        down, up = torch.randn(2, block.to_q.in_features), 0.1 * torch.randn(3 * block.to_q.out_features, 2)
        proj = torch.randn(2, block.to_q.in_features), torch.randn(len(up) // 3, 2)
        joined = {"double_blocks.0.img_attn.qkv": (down, up), "double_blocks.0.img_attn.proj": proj}
        fuse_lora(pipe, written(named(joined, "lora_unet_", KOHYA, alpha=1.0, flat=True), tmp_path))
        made = {name: (down, part) for name, part in zip(names, up.chunk(3), strict=True)}
        made["transformer_blocks.0.attn.to_out.0"] = proj
        check_weights(pipe.transformer, expected(plain, made, 0.5))

    def test_the_text_encoders_part_stays(self, tmp_path):
        """Diffusers' own fuse_lora of FLUX.1 leaves it out by default."""
        pipe = family_pipeline("flux")
        made, text = factors(pipe.transformer, ("to_q",)), factors(pipe.text_encoder, ("q_proj",))
        plain = weights(pipe.text_encoder)
        fuse_lora(pipe, written(named(made, "transformer.", PEFT) | named(text, "text_encoder.", PEFT), tmp_path))
        check_weights(pipe.text_encoder, expected(plain, text, 1.0))


def test_a_half_precision_model_takes_a_float32_file(tmp_path):
    pipe = tiny_pipeline().to(dtype=torch.bfloat16)
    made, plain = factors(pipe.unet, ATTENTION), weights(pipe.unet)
    fuse_lora(pipe, written(named(made, "lora_unet_", KOHYA, alpha=1.0, flat=True), tmp_path))
    wanted = expected({name: weight.float() for name, weight in plain.items()}, made, 0.5)
    for name, weight in weights(pipe.unet).items():
        torch.testing.assert_close(weight.float(), wanted[name], rtol=0.02, atol=0.02)


def moved(made: Factors, there: str, here: str) -> Factors:
    """The layers whose names contain ``there``, as copies under names that contain ``here``."""
    return {name.replace(there, here): (down.clone(), up.clone()) for name, (down, up) in made.items() if there in name}


def other(made: Factors, ending: str, shape: tuple[int, ...] = (2, 2)) -> dict[str, Tensor]:
    return {f"lora_unet_{name.replace('.', '_')}.{ending}": torch.ones(shape) for name in made}


REFUSED = {
    "LoHa": (lambda u, t: other(u, "hada_w1_a"), "32 of the 32 tensors .* of a LoHa"),
    "LoKr": (lambda u, t: other(u, "lokr_w1"), "of a LoKr"),
    "OFT": (lambda u, t: other(u, "oft_blocks"), "of an OFT"),
    "whole weights": (lambda u, t: other(u, "diff"), "difference of whole weights"),
    "DoRA of kohya": (
        lambda u, t: named(u, "lora_unet_", KOHYA, flat=True) | other(u, "dora_scale"),
        "32 of the 96 tensors .* of a DoRA",
    ),
    "Tucker": (
        lambda u, t: named(u, "lora_unet_", KOHYA, flat=True) | other(u, "lora_mid.weight", (2, 2, 3, 3)),
        "Tucker",
    ),
    "embeddings beside it": (
        lambda u, t: named(u, "unet.", PEFT) | {"bundle_emb.token.string_to_param.*": torch.ones(1, 4)},
        "1 of the 65 tensors .* textual inversion",
    ),
    "biases": (lambda u, t: named(u, "unet.", PEFT) | {"unet.conv_out.bias": torch.ones(4)}, "biases or norms"),
    "an alpha alone": (
        lambda u, t: named(u, "lora_unet_", KOHYA, flat=True) | {"lora_unet_conv_in.alpha": torch.tensor(1.0)},
        "1 of the 65 tensors",
    ),
    "torn": (
        lambda u, t: {name: v for name, v in named(u, "unet.", PEFT).items() if "to_k.lora_B" not in name},
        "8 of the 32 layers .* one of their two factors",
    ),
    "a prefix that is not read": (
        lambda u, t: named(u, "unet.", PEFT) | named(t, "te.", PEFT),
        r"1 of the 33 layers .* left out .* te\.encoder",
    ),
    "a second text encoder": (
        lambda u, t: named(u, "lora_unet_", KOHYA, flat=True) | named(t, "lora_te2_text_model_", KOHYA, flat=True),
        "1 of the 33 layers .* left out .* lora_te2",
    ),
    "more blocks than the model": (
        lambda u, t: named(u | moved(u, "down_blocks.1", "down_blocks.7"), "unet.", PEFT),
        "8 of the 40 layers|does not fit",
    ),
    "a wider model's": (
        lambda u, t: named({name: (torch.ones(2, 9), up) for name, (_, up) in u.items()}, "unet.", PEFT),
        "does not fit",
    ),
    "not a number": (
        lambda u, t: named({name: (down * torch.nan, up) for name, (down, up) in u.items()}, "unet.", PEFT),
        "NaN",
    ),
    "no prefix": (lambda u, t: named(u, "", PEFT), "holds nothing"),
    "one network saved by peft": (lambda u, t: named(u, "base_model.model.", PEFT), "holds nothing"),
    "half ranks": (
        lambda u, t: named({name: (down, up[:, :1]) for name, (down, up) in u.items()}, "unet.", PEFT),
        "no rank in common",
    ),
}  # fmt: skip


@pytest.mark.parametrize("form", REFUSED)
def test_what_would_be_put_on_in_part_is_refused_with_a_count_and_a_name(form, tmp_path):
    pipe = tiny_pipeline()
    made, text = factors(pipe.unet, ATTENTION), factors(pipe.text_encoder, ("k_proj",))
    tensors, words = REFUSED[form]
    with pytest.raises(InputError, match=words):
        fuse_lora(pipe, written(tensors(made, text), tmp_path))


def test_files_that_cannot_be_read(tmp_path):
    file = written(named(factors(tiny_pipeline().unet, ("to_q",)), "unet.", PEFT), tmp_path)
    whole = file.read_bytes()
    for content, words in (
        (whole[:-10], "cut short"),
        (b"", "empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "git lfs pull"),
    ):
        file.write_bytes(content)
        with pytest.raises(InputError, match=words):
            fuse_lora(tiny_pipeline(), file)


def test_layers_are_named_by_their_pairs():
    names = sort_names(["a.lora.down.weight", "a.lora.up.weight", "a.alpha"], "file")
    assert names.factors == {"a.lora": ("a.lora.down.weight", "a.lora.up.weight", "a.alpha")}
