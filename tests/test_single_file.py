"""Checkpoints in one file: loaded with the settings of a folder, without a connection, or refused in one sentence."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import tiny_pipeline
from torch import Tensor
from typer.testing import CliRunner

from diffkit.cli import app
from diffkit.errors import InputError
from diffkit.loading import check_model, load_pipeline, model_checksum
from ttsnap import TTSnapPipeline

#: Names in diffusers -> in the checkpoints of the latent-diffusion repository, for one layer a block.
UNET = [
    (r"^time_embedding\.linear_(\d)", lambda m: f"time_embed.{2 * int(m[1]) - 2}"),
    (r"^conv_in", "input_blocks.0.0"),
    (r"^conv_norm_out", "out.0"),
    (r"^conv_out", "out.2"),
    (r"^down_blocks\.(\d)\.resnets\.0", lambda m: f"input_blocks.{2 * int(m[1]) + 1}.0"),
    (r"^down_blocks\.(\d)\.attentions\.0", lambda m: f"input_blocks.{2 * int(m[1]) + 1}.1"),
    (r"^down_blocks\.(\d)\.downsamplers\.0\.conv", lambda m: f"input_blocks.{2 * int(m[1]) + 2}.0.op"),
    (r"^mid_block\.attentions\.0", "middle_block.1"),
    (r"^mid_block\.resnets\.(\d)", lambda m: f"middle_block.{2 * int(m[1])}"),
    (r"^up_blocks\.(\d)\.resnets\.(\d)", lambda m: f"output_blocks.{2 * int(m[1]) + int(m[2])}.0"),
    (r"^up_blocks\.(\d)\.attentions\.(\d)", lambda m: f"output_blocks.{2 * int(m[1]) + int(m[2])}.1"),
    (r"^up_blocks\.(\d)\.upsamplers\.0", lambda m: f"output_blocks.{2 * int(m[1]) + 1}.2"),
]
RESNET = {"norm1": "in_layers.0", "conv1": "in_layers.2", "norm2": "out_layers.0", "conv2": "out_layers.3",
          "time_emb_proj": "emb_layers.1", "conv_shortcut": "skip_connection"}  # fmt: skip
VAE = [
    (r"down_blocks\.(\d)\.resnets\.(\d)", r"down.\1.block.\2"),
    (r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample"),
    (r"up_blocks\.(\d)\.resnets\.(\d)", lambda m: f"up.{2 - int(m[1])}.block.{m[2]}"),
    (r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{2 - int(m[1])}.upsample"),
    (r"mid_block\.attentions\.0\.group_norm", "mid.attn_1.norm"),
    (r"mid_block\.attentions\.0\.to_([qkv])", r"mid.attn_1.\1"),
    (r"mid_block\.attentions\.0\.to_out\.0", "mid.attn_1.proj_out"),
    (r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}"),
    (r"conv_shortcut", "nin_shortcut"),
    (r"conv_norm_out", "norm_out"),
]


def renamed(name: str, rules: list) -> str:
    for pattern, new in rules:
        name = re.sub(pattern, new, name)
    return name


def original(pipe) -> dict[str, Tensor]:
    """The state of a Stable Diffusion 1 pipeline in the layout of its original repository."""
    state: dict[str, Tensor] = {}
    for name, value in pipe.unet.state_dict().items():
        new = renamed(name, UNET)
        if ".resnets." in name:
            new = renamed(new, [(rf"\.{old}\.", f".{layer}.") for old, layer in RESNET.items()])
        state[f"model.diffusion_model.{new}"] = value
    for name, value in pipe.vae.state_dict().items():
        attention = "attentions.0.to_" in name and value.ndim == 2
        state[f"first_stage_model.{renamed(name, VAE)}"] = value[..., None, None] if attention else value
    for name, value in pipe.text_encoder.state_dict().items():
        state[f"cond_stage_model.transformer.text_model.{name.removeprefix('text_model.')}"] = value
    return {name: value.contiguous().clone() for name, value in state.items()}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> tuple[Path, Path]:
    """A single file, and a folder with the settings of its family and other weights."""
    folder = tmp_path_factory.mktemp("checkpoint")
    save_file(original(tiny_pipeline(vae="kl")), folder / "dream.safetensors")
    tiny_pipeline(vae="kl", seed=1).save_pretrained(folder / "family")
    return folder / "dream.safetensors", folder / "family"


def test_it_is_loaded_with_the_settings_of_a_folder_and_its_own_weights(checkpoint):
    file, family = checkpoint
    check_model(file, config=family)
    pipe, wanted = load_pipeline(file, config=family, device="cpu"), tiny_pipeline(vae="kl")
    for part in ("unet", "vae", "text_encoder"):
        loaded = getattr(pipe, part).state_dict()
        for name, value in getattr(wanted, part).state_dict().items():
            torch.testing.assert_close(loaded[name], value, msg=f"{part}.{name} differs")
    assert type(pipe.scheduler) is type(wanted.scheduler)
    assert model_checksum(file, config=family) not in (None, model_checksum(file))


def test_a_search_pipeline_loads_it_too(checkpoint):
    pipe = TTSnapPipeline.from_single_file(checkpoint[0], config=checkpoint[1], reward=lambda images, prompts: [0.0])
    stock = load_pipeline(checkpoint[0], config=checkpoint[1], device="cpu", dtype="float32")
    for name, weight in stock.unet.state_dict().items():
        assert torch.equal(pipe.unet.state_dict()[name], weight)
    assert isinstance(pipe, TTSnapPipeline)
    with pytest.raises(InputError, match="holds no settings and tokenizers"):
        TTSnapPipeline.from_single_file(checkpoint[0])


def test_without_settings_it_says_what_to_give(checkpoint):
    with pytest.raises(
        InputError, match=r"holds no settings .* stable-diffusion-v1-5.*HF_HUB_OFFLINE.*--config FOLDER"
    ):
        load_pipeline(checkpoint[0], device="cpu")


def refused(path: Path, words: str, **options: object) -> None:
    with pytest.raises(InputError, match=words):
        check_model(path, **options)


def test_files_that_are_no_checkpoint(checkpoint, tmp_path):
    file, family = checkpoint
    for name, words in (("a.ckpt", "is a .ckpt file. Only .safetensors is read.*from_single_file.*save_pretrained"),
                        ("a.pt", "is a .pt file"), ("a.gguf", "quantized")):  # fmt: skip
        (tmp_path / name).write_bytes(b"text")
        refused(tmp_path / name, words)
    save_file({"a.lora_down.weight": torch.ones(2, 2)}, tmp_path / "lora.safetensors")
    refused(tmp_path / "lora.safetensors", "is a LoRA; give it as --lora")
    odd = {f"model.diffusion_model.{name}": value for name, value in tiny_pipeline().unet.state_dict().items()}
    save_file(odd, tmp_path / "odd.safetensors")
    refused(tmp_path / "odd.safetensors", "no layout that diffusers reads", config=family)
    (tmp_path / "short.safetensors").write_bytes(file.read_bytes()[:-9])
    refused(tmp_path / "short.safetensors", "cut short")
    refused(file, "There is no folder with a model's settings './nowhere'", config="./nowhere")
    refused(file, "--variant belongs to a folder", variant="fp16")
    refused(family, "--config belongs to a single file", config=family)


def test_a_checkpoint_of_another_size_than_the_settings_or_without_a_part(checkpoint, tmp_path):
    file, family = checkpoint
    state = load_file(file)
    more = state | {"model.diffusion_model.input_blocks.9.0.op.weight": torch.ones(4)}
    save_file(more, tmp_path / "more.safetensors")
    with pytest.raises(InputError, match="weights in its denoiser, and the settings of"):
        load_pipeline(tmp_path / "more.safetensors", config=family, device="cpu")
    for prefix in ("first_stage_model.", "model.diffusion_model.middle_block"):
        left = {name: value for name, value in state.items() if not name.startswith(prefix)}
        save_file(left, tmp_path / "less.safetensors")
        with pytest.raises(InputError, match="not a whole model|Could not load"):
            load_pipeline(tmp_path / "less.safetensors", config=family, device="cpu")


def test_a_dry_run_finds_out_too(checkpoint, tmp_path):
    line = ["audit", "--suspects", "lab:planted", "--controls", "none", "--limit", "1", "--dry-run", "--model"]
    for model in (checkpoint[0], tmp_path / "typo.safetensors"):
        assert CliRunner().invoke(app, [*line, str(model)]).exit_code == 2
    assert CliRunner().invoke(app, [*line, str(checkpoint[0]), "--config", str(checkpoint[1])]).exit_code == 0
