"""Folders of tiny rewards: the real classes with seeded weights, written as the published ones are."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import open_clip
import torch
from PIL import Image
from safetensors.torch import save_file
from tiny import tiny_tokenizer
from torch import nn
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel

from diffkit.rewards.aesthetic import linear_head

DATA = Path(__file__).parent / "data" / "rewards"
sys.path.insert(0, str(DATA))
import recipe  # noqa: E402

SIDE, LENGTH = 28, 16
PROMPTS = ["a cat", "dog at dog", "a cat", "x", ""]
OPEN_CLIP = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": SIDE, "layers": 2, "width": 32, "head_width": 16, "patch_size": 7},
    "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}


def pictures() -> list[Image.Image]:
    """Five images of five shapes."""
    return [Image.fromarray(recipe.picture(index)) for index in range(len(recipe.SIZES))]


def smooth(side: int, count: int = 5) -> list[Image.Image]:
    """Square images without noise, as a generator makes them."""
    y, x = np.mgrid[0:side, 0:side] / side
    waves = [
        np.sin(6.3 * np.array([1 + i, 2, 1.5]) * x[..., None] + (3 + i) * y[..., None] ** 2 + i) for i in range(count)
    ]
    return [Image.fromarray((127.5 + 120 * wave).round().astype(np.uint8)) for wave in waves]


def as_tensor(image: Image.Image) -> torch.Tensor:
    """(1, 3, H, W) float in [0, 1]."""
    return torch.from_numpy(np.asarray(image.convert("RGB")).copy()).permute(2, 0, 1)[None].float() / 255


def fill(module: nn.Module) -> nn.Module:
    """Seeded weights that depend on names and shapes alone."""
    state = {
        name: torch.from_numpy(np.asarray(recipe.tensor(name, v.shape))) for name, v in module.state_dict().items()
    }
    module.load_state_dict(state)
    return module.eval()


def clip_folder(folder: Path) -> Path:
    """A transformers CLIP with tokenizer and image processor, as PickScore's and OpenAI's folders are."""
    words = tiny_tokenizer()
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {
        "vocab_size": len(words), "max_position_embeddings": LENGTH, "eos_token_id": words.eos_token_id,
        "bos_token_id": words.bos_token_id, "pad_token_id": words.pad_token_id, "projection_dim": 16,
    }  # fmt: skip
    vision = {"image_size": SIDE, "patch_size": 7, "projection_dim": 16}
    config = CLIPConfig(text_config={**tower, **text}, vision_config={**tower, **vision}, projection_dim=16)
    fill(CLIPModel(config)).save_pretrained(folder)
    words.save_pretrained(folder)
    size = {"height": SIDE, "width": SIDE}
    CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=size).save_pretrained(folder)
    return folder


def hps_folder(folder: Path, file: str = "HPS_v2.1_compressed.pt") -> Path:
    """An open_clip checkpoint as HPS publishes it: a dictionary with ``state_dict``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "open_clip_config.json").write_text(json.dumps(OPEN_CLIP))
    torch.save({"epoch": 1, "state_dict": fill(open_clip.CLIP(**OPEN_CLIP)).state_dict()}, folder / file)
    return folder


def open_clip_folder(folder: Path) -> Path:
    """An open_clip model as open_clip itself saves it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": OPEN_CLIP}))
    save_file(fill(open_clip.CLIP(**OPEN_CLIP)).state_dict(), folder / "open_clip_model.safetensors")
    return folder


def aesthetic_folder(folder: Path) -> Path:
    """A CLIP and LAION's head beside it."""
    clip_folder(folder)
    head = fill(linear_head([16, 32, 16, 8, 4, 1]))
    state = {f"layers.{name}": value for name, value in head.state_dict().items()}
    torch.save(state, folder / "sac+logos+ava1-l14-linearMSE.pth")
    return folder


def image_reward_folder(folder: Path) -> Path:
    """The small checkpoint that the published package wrote: its names, its shapes, the recipe's numbers."""
    folder.mkdir(parents=True, exist_ok=True)
    golden = json.loads((DATA / "image_reward_small.json").read_bytes())
    state = {name: torch.from_numpy(recipe.tensor(name, shape)) for name, shape in golden["shapes"].items()}
    torch.save(state, folder / "ImageReward.pt")
    (folder / "med_config.json").write_text(json.dumps(golden["med_config"]))
    (folder / "vocab.txt").write_text("\n".join(recipe.vocabulary()) + "\n")
    return folder


FOLDERS = {
    "pick-score": clip_folder,
    "clip-score": clip_folder,
    "hps-v2.1": hps_folder,
    "image-reward": image_reward_folder,
    "aesthetic": aesthetic_folder,
}
