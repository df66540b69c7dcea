"""Inside the environment that ``reward_parity.py`` builds: weights and scores of the published package.

Everything that computes is the package's own. Replaced are: its tokenizer's vocabulary, since bert-base-uncased lies on
a hub; and, for the small model, the sizes that its constructor fixes (image encoder, head, input).
"""

from __future__ import annotations

import argparse
import json
import sys
from importlib import metadata
from pathlib import Path

import ImageReward as package
import torch
from ImageReward.models.BLIP import blip_pretrain
from ImageReward.models.BLIP.vit import VisionTransformer
from PIL import Image
from transformers import BertTokenizer

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "data" / "rewards"))
import recipe

module = sys.modules["ImageReward.ImageReward"]  # as an attribute of the package, the name is the class
PACKAGES = ("image-reward", "torch", "torchvision", "transformers", "timm", "fairscale", "pillow", "numpy")
SIDE, WIDTH, DEPTH, HEADS = 32, 128, 2, 2


def with_local_vocabulary(file: Path) -> None:
    """The package's ``init_tokenizer``, reading a local file."""

    def init_tokenizer() -> BertTokenizer:
        tokenizer = BertTokenizer(str(file))
        tokenizer.add_special_tokens({"bos_token": "[DEC]"})
        tokenizer.add_special_tokens({"additional_special_tokens": ["[ENC]"]})
        tokenizer.enc_token_id = tokenizer.additional_special_tokens_ids[0]
        return tokenizer

    blip_pretrain.init_tokenizer = init_tokenizer


def with_small_sizes(hidden: int) -> None:
    """The package's own classes at a reduced size."""
    head, transform = module.MLP, module._transform
    module.MLP = lambda _: head(hidden)
    module._transform = lambda _: transform(SIDE)
    blip_pretrain.create_vit = lambda *_: (
        VisionTransformer(img_size=SIDE, patch_size=16, embed_dim=WIDTH, depth=DEPTH, num_heads=HEADS),
        WIDTH,
    )


def main() -> None:
    """Write weights and scores."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="where ImageReward.pt and golden.json go")
    parser.add_argument("--full", action="store_true", help="the published sizes, 1.8 GB")
    arguments = parser.parse_args()
    folder: Path = arguments.folder
    config = recipe.med_config(full=arguments.full)
    (folder / "med_config.json").write_text(json.dumps(config, indent=2))
    (folder / "vocab.txt").write_text("\n".join(recipe.vocabulary()) + "\n")
    with_local_vocabulary(folder / "vocab.txt")
    if not arguments.full:
        with_small_sizes(int(config["hidden_size"]))

    fresh = module.ImageReward(med_config=str(folder / "med_config.json"))
    state = {name: torch.from_numpy(recipe.tensor(name, value.shape)) for name, value in fresh.state_dict().items()}
    torch.save(state, folder / "ImageReward.pt")
    shapes = {name: list(value.shape) for name, value in state.items()}
    del fresh, state

    model = package.load(str(folder / "ImageReward.pt"), device="cpu", med_config=str(folder / "med_config.json"))
    pictures = [Image.fromarray(recipe.picture(index)) for index in range(len(recipe.SIZES))]
    with torch.no_grad():
        scores = [[model.score(prompt, picture) for picture in pictures] for prompt in recipe.PROMPTS]
    versions = {name: metadata.version(name) for name in PACKAGES}
    golden = {"versions": versions, "med_config": config, "scores": scores, "shapes": shapes}
    (folder / "golden.json").write_text(json.dumps(golden) + "\n")


if __name__ == "__main__":
    main()
