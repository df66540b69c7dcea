"""What people's models look like: each form is loaded, or refused in one sentence, before any weight is read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from tiny import tiny_pipeline

from diffkit.errors import InputError
from diffkit.loading import check_model, load_pipeline, resolve_dtype, resolve_model
from ttsnap.pipeline import TTSnapPipeline

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"
UNET = "unet/diffusion_pytorch_model.safetensors"
PICKLED = "unet/diffusion_pytorch_model.bin"


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("saved")
    tiny_pipeline().save_pretrained(path)
    return path


@pytest.fixture
def folder(saved, tmp_path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "model"))


@pytest.fixture(scope="module")
def halves(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("halves")
    tiny_pipeline().to(dtype=torch.float16).save_pretrained(path, variant="fp16")
    return path


def edit(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def rewrite(path: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    save_file(change(load_file(path)), path)


class TestVariants:
    def test_a_folder_with_one_variant_only_is_loaded(self, halves):
        pipe = load_pipeline(halves, device="cpu")
        torch.testing.assert_close(pipe.unet.conv_in.weight, tiny_pipeline().unet.conv_in.weight, rtol=1e-3, atol=1e-4)
        assert pipe.text_encoder.dtype == torch.float32
        assert TTSnapPipeline.from_pretrained(halves).unet.dtype == torch.float32

    def test_parts_with_the_only_variant_stand_beside_parts_with_plain_weights(self, halves, folder):
        (folder / UNET).unlink()
        name = "diffusion_pytorch_model.fp16.safetensors"
        shutil.copy(halves / "unet" / name, folder / "unet" / name)
        pipe = load_pipeline(folder, device="cpu")
        whole = tiny_pipeline()
        assert torch.equal(pipe.text_encoder.final_layer_norm.weight, whole.text_encoder.final_layer_norm.weight)
        assert torch.equal(pipe.unet.conv_in.weight, whole.unet.conv_in.weight.half().float())

    def test_the_precision_is_that_of_the_file_that_is_loaded(self, halves, folder):
        """Beside the plain weights lie others, whose name sorts first."""
        name = "diffusion_pytorch_model.fp16.safetensors"
        shutil.copy(halves / "unet" / name, folder / "unet" / name)
        cuda = torch.device("cuda")
        assert resolve_dtype("auto", cuda, folder) == torch.float32
        assert resolve_dtype("auto", cuda, folder, "fp16") == torch.float16
        rounded = load_pipeline(folder, device="cpu", variant="fp16").unet.conv_in.weight
        assert torch.equal(rounded, rounded.half().float())
        assert not torch.equal(rounded, load_pipeline(folder, device="cpu").unet.conv_in.weight)

    def test_one_must_be_chosen_of_several_and_be_there(self, halves, folder):
        with pytest.raises(InputError, match="no weights of the variant 'bf16'; it has .*the plain ones"):
            check_model(folder, variant="bf16")
        copy = shutil.copytree(halves, folder.parent / "several")
        for name in ("vae", "unet"):
            for file in list((copy / name).glob("*.safetensors")):
                shutil.copy(file, file.with_name(file.name.replace("fp16", "ema")))
        check_model(copy)  # all parts have fp16, two have another
        shutil.copy(copy / "text_encoder/model.fp16.safetensors", copy / "text_encoder/model.ema.safetensors")
        with pytest.raises(InputError, match="several variants, ema, fp16; choose by --variant"):
            check_model(copy)
        check_model(copy, variant="ema")


def shards(folder: Path) -> None:
    (folder / UNET).unlink()
    tiny_pipeline().unet.save_pretrained(folder / "unet", max_shard_size="100KB")


def pickled(folder: Path, **options: object) -> None:
    (folder / UNET).unlink()
    tiny_pipeline().unet.save_pretrained(folder / "unet", safe_serialization=False, **options)


class Program:
    """What runs when it is unpickled."""

    def __reduce__(self):
        return pytest.fail, ("a program was run",)


BROKEN = {
    "a class that diffusers has not": (
        lambda f: edit(f / "model_index.json", _class_name="NextYearsImagePipeline"),
        "is a NextYearsImagePipeline, which diffusers .* does not have",
    ),
    "no class": (lambda f: edit(f / "model_index.json", _class_name=None), "names no pipeline"),
    "a class of its own": (
        lambda f: edit(f / "model_index.json", _class_name=["my_pipeline", "MyPipeline"]),
        "class of its own, MyPipeline; code from a model is not run",
    ),
    "an index that is no JSON": (lambda f: (f / "model_index.json").write_text("{"), "is no JSON"),
    "an index of git-lfs": (lambda f: (f / "model_index.json").write_text(POINTER), "git lfs pull"),
    "a part by code of its own": (
        lambda f: edit(f / "model_index.json", unet=["diffusers_modules.local.unet", "MyUNet"]),
        "unet .* is a MyUNet of 'diffusers_modules.local.unet'.* not run",
    ),
    "a part that transformers has not": (
        lambda f: edit(f / "model_index.json", text_encoder=["transformers", "NextModel"]),
        "text_encoder .* is a NextModel, which transformers .* does not have",
    ),
    "a missing part": (lambda f: shutil.rmtree(f / "vae"), "lacks its vae: .* there is no folder"),
    "missing weights": (lambda f: (f / UNET).unlink(), "its unet has no weights"),
    "missing settings": (lambda f: (f / "unet/config.json").unlink(), "unet .* has no config.json"),
    "settings that are no JSON": (lambda f: (f / "vae/config.json").write_text("nothing"), "is no JSON"),
    "weights of git-lfs": (lambda f: (f / UNET).write_text(POINTER), "git lfs pull"),
    "a tokenizer of git-lfs": (lambda f: (f / "tokenizer/tokenizer.json").write_text(POINTER), "git lfs pull"),
    "weights cut short": (lambda f: (f / UNET).write_bytes((f / UNET).read_bytes()[:-100]), "unet .* cut short"),
    "empty weights": (lambda f: (f / UNET).write_bytes(b""), "is empty"),
    "weights of another library": (
        lambda f: (f / UNET).rename(f / "unet/diffusion_pytorch_model.ckpt"),
        "diffusion_pytorch_model.ckpt and neither .safetensors nor a .bin in one piece",
    ),
    "pickled weights that are a program": (
        lambda f: (pickled(f), torch.save({"a": Program()}, f / "unet/diffusion_pytorch_model.bin")),
        "diffusion_pytorch_model.bin: it holds more than tensors, which could be a program and is not run",
    ),
    "pickled weights cut short": (
        lambda f: (pickled(f), (f / PICKLED).write_bytes((f / PICKLED).read_bytes()[:-100])),
        "unet .*.bin: .* cut short",
    ),
    "a missing shard": (
        lambda f: (shards(f), sorted((f / "unet").glob("*-00002-of-*"))[0].unlink()),
        "unet .* lacks .*-00002-of-",
    ),
}  # fmt: skip


@pytest.mark.parametrize("form", BROKEN)
def test_what_cannot_be_loaded_is_told_alike_by_the_check_and_by_loading(form, folder):
    spoil, words = BROKEN[form]
    spoil(folder)
    with pytest.raises(InputError, match=words) as checked:
        check_model(folder)
    with pytest.raises(InputError) as loaded:
        load_pipeline(folder, device="cpu")
    with pytest.raises(InputError) as searched:
        TTSnapPipeline.from_pretrained(folder)
    assert str(checked.value) == str(loaded.value) == str(searched.value)


def test_bin_weights_are_loaded_as_tensors_alone(folder):
    """By torch's ``weights_only``: a program in such a file is not run, see `BROKEN`."""
    pickled(folder)
    weights = tiny_pipeline().unet.conv_in.weight
    check_model(folder)
    for pipe in (load_pipeline(folder, device="cpu"), TTSnapPipeline.from_pretrained(folder)):
        assert torch.equal(pipe.unet.conv_in.weight, weights)
    assert resolve_dtype("auto", torch.device("cuda"), folder) == torch.float32
    (folder / PICKLED).unlink()
    tiny_pipeline().unet.half().save_pretrained(folder / "unet", safe_serialization=False, variant="fp16")
    assert resolve_dtype("auto", torch.device("cuda"), folder, "fp16") == torch.float16
    assert torch.equal(load_pipeline(folder, device="cpu", variant="fp16").unet.conv_in.weight, weights.half().float())
    (folder / PICKLED.replace(".bin", ".fp16.bin")).unlink()
    tiny_pipeline().unet.save_pretrained(folder / "unet", safe_serialization=False, max_shard_size="100KB")
    with pytest.raises(InputError, match="neither .safetensors nor a .bin in one piece"):
        load_pipeline(folder, device="cpu")


def test_a_text_encoder_saved_with_its_lora_is_loaded_by_a_search(tmp_path, monkeypatch):
    """transformers writes the adapter alone, and the name of its model; whose content no checksum of the folder has."""
    monkeypatch.setattr("transformers.integrations.peft.MIN_PEFT_VERSION", "0.17.0")
    pipe = tiny_pipeline()
    pipe.text_encoder.save_pretrained(tmp_path / "base")
    pipe.text_encoder.name_or_path = str(tmp_path / "base")
    pipe.text_encoder.add_adapter(LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    pipe.save_pretrained(tmp_path / "saved")
    loaded = TTSnapPipeline.from_pretrained(tmp_path / "saved").text_encoder.state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in pipe.text_encoder.state_dict().items())
    with pytest.raises(InputError, match="text_encoder .* has no config.json"):
        load_pipeline(tmp_path / "saved", device="cpu")


def test_shards_are_loaded(folder):
    shards(folder)
    assert torch.equal(load_pipeline(folder, device="cpu").unet.conv_in.weight, tiny_pipeline().unet.conv_in.weight)


UNFILLED = {
    "unet": (UNET, "conv_out.weight", "its files hold .* would be random"),
    "text_encoder": ("text_encoder/model.safetensors", "mlp.fc1.weight", "its files hold .* would be random"),
}


@pytest.mark.parametrize("part", UNFILLED)
def test_weights_that_a_file_lacks_are_not_made_up(part, folder):
    file, ending, words = UNFILLED[part]
    rewrite(folder / file, lambda all_: {name: value for name, value in all_.items() if not name.endswith(ending)})
    with pytest.raises(InputError, match=words):
        load_pipeline(folder, device="cpu")


def test_weights_of_another_shape_are_refused(folder):
    edit(folder / "unet/config.json", block_out_channels=[32, 32])
    with pytest.raises(InputError, match="Could not load the model"):
        load_pipeline(folder, device="cpu")


class TestNoPipelineFolder:
    def test_it_is_told_what_it_is_instead(self, folder, tmp_path):
        with pytest.raises(
            InputError, match=f"no model_index.json, it is one part .* UNet2DConditionModel; give {folder}"
        ):
            resolve_model(folder / "unet")
        with pytest.raises(InputError, match="a model of transformers, a CLIPTextModel"):
            resolve_model(folder / "text_encoder")
        with pytest.raises(InputError, match=f"there is one in {folder}"):
            resolve_model(tmp_path)
        adapter = tmp_path / "adapter"
        adapter.mkdir()
        (adapter / "pytorch_lora_weights.safetensors").touch()
        with pytest.raises(InputError, match="is a LoRA, to give as --lora"):
            resolve_model(adapter)

    @pytest.mark.parametrize(
        "name", ["models/typo.safetensors", "models/dream.ckpt", "./models/dream", "models\\dream"]
    )
    def test_a_path_never_goes_to_the_hub(self, name):
        with pytest.raises(InputError, match="There is no model"):
            resolve_model(name)

    def test_names_near_a_misspelt_path_are_told(self, folder):
        with pytest.raises(InputError, match=f"near it: {folder}"):
            resolve_model(folder.with_name("modle"))
