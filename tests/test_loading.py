"""Loading: folders and names, never a socket, safetensors only."""

from __future__ import annotations

import pytest
import torch
from diffusers import StableDiffusionPipeline
from tiny import tiny_pipeline

from diffkit.errors import InputError
from diffkit.loading import load_pipeline, resolve_device, resolve_dtype, resolve_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    tiny_pipeline().to(dtype=torch.float16).save_pretrained(path)
    return path


def test_a_folder_loads_as_stock_float32_on_the_cpu(folder):
    pipe = load_pipeline(folder, device="cpu")
    assert type(pipe) is StableDiffusionPipeline
    assert pipe.unet.dtype == torch.float32
    assert load_pipeline(str(folder), device="cpu", dtype="bfloat16").unet.dtype == torch.bfloat16


def test_elsewhere_the_checkpoints_own_precision_counts(folder):
    assert resolve_dtype("auto", torch.device("cuda"), folder) == torch.float16
    assert resolve_dtype("auto", torch.device("cpu"), folder) == torch.float32


@pytest.mark.parametrize("model", ["./nowhere", "/nowhere/at/all", "nowhere", "a/b/c"])
def test_what_is_not_there_is_refused(model):
    with pytest.raises(InputError, match="There is no model"):
        resolve_model(model)


def test_other_refusals(folder, tmp_path):
    with pytest.raises(InputError, match="no model_index.json"):
        resolve_model(tmp_path)
    with pytest.raises(InputError, match="belongs to a hub id"):
        load_pipeline(folder, revision="main", device="cpu")
    with pytest.raises(InputError, match="Unknown dtype"):
        load_pipeline(folder, dtype="int4", device="cpu")
    with pytest.raises(InputError, match="Unknown device"):
        resolve_device("abacus")
    with pytest.raises(InputError, match="not there"):
        resolve_device("cuda:99")
    assert resolve_model("owner/model") == "owner/model"
