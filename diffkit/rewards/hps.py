"""HPS v2 and v2.1: human preference by a fine-tuned ViT-H-14 of open_clip.

Wu et al. 2023, "Human Preference Score v2" (arXiv 2306.09341): the cosine of image and text, without the logit scale,
about 0.2 to 0.35; papers often print 100 times it. The image's *longer* edge becomes 224 and the rest is black, unlike
CLIP's own crop. Where we differ from the authors' code: it leaves an image whose longer edge is 224 already unpadded,
and so fails on such an image unless it is square; here it is padded like any other.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

from diffkit.errors import InputError
from diffkit.rewards.dual_encoder import DualEncoderReward, OpenClip
from diffkit.rewards.preprocessing import Preprocessing
from diffkit.rewards.token_pruning import TokenPruning, prune_tokens
from diffkit.rewards.weights import find_file, one_sentence, read_tensors

__all__ = ["HPS", "load_v2", "load_v21"]

REPOSITORY = "xswu/HPSv2"
ARCHITECTURE = "ViT-H-14"
FILES = {"v2": "HPS_v2_compressed.pt", "v2.1": "HPS_v2.1_compressed.pt"}
Version = Literal["v2", "v2.1"]


class HPS(DualEncoderReward):
    """See the module. Higher is better; a cosine in [-1, 1]."""

    licence = "code Apache-2.0; for the weights see their card"
    lora_targets = ["c_fc", "c_proj"]  # noqa: RUF012 - open_clip's attention reads its weights past any adapter

    @classmethod
    def from_pretrained(
        cls,
        location: str | Path = REPOSITORY,
        *,
        version: Version = "v2.1",
        device: str = "auto",
        dtype: str = "float32",
        token_pruning: TokenPruning | str | None = None,
    ) -> HPS:
        """Load published weights: a dictionary with ``state_dict``, or safetensors of its tensors.

        Args:
            location: the file, a folder with it, or a hub id. An ``open_clip_config.json`` beside the file states the
                architecture; without one it is ViT-H-14.
            version: which of the two files is looked for.
            device, dtype: see :class:`~diffkit.rewards.network.NetworkReward`.
            token_pruning: which patches the image encoder drops on the way, see :mod:`diffkit.rewards.token_pruning`.

        Raises:
            InputError: an unknown version, or nothing usable is there; the message says what to download.
        """
        from open_clip.tokenizer import SimpleTokenizer

        if version not in FILES:
            raise InputError(f"Expected the version v2 or v2.1 of HPS, got {version!r}.")
        name, published = f"hps-{version}", FILES[version]
        download = f"{published} from https://huggingface.co/{REPOSITORY}"
        names = [published, published.replace(".pt", ".safetensors")]
        file = find_file(location, names, reward=name, download=download)
        with one_sentence(name, file, download):
            config = _architecture(file.parent / "open_clip_config.json")
            model = _build(config, file)
        words = SimpleTokenizer(context_length=config["text_cfg"].get("context_length", 77))
        side = int(config["vision_cfg"]["image_size"])
        fit = Preprocessing(side, "pad")
        network = OpenClip(model, "cosine")
        prune_tokens(network, token_pruning)
        reward = cls(network, lambda prompts: (words(prompts),), fit, [file], device=device, dtype=dtype)
        reward.name = name
        reward.set_name(location, REPOSITORY)
        return reward


def _architecture(file: Path) -> dict[str, Any]:
    """An open_clip architecture: from the file if it is there, else ViT-H-14."""
    import open_clip

    if file.is_file():
        given = json.loads(file.read_bytes())
        config: dict[str, Any] = given.get("model_cfg", given)
    else:
        config = open_clip.get_model_config(ARCHITECTURE)
    return config


def _build(config: dict[str, Any], file: Path) -> Any:
    import open_clip

    model = open_clip.CLIP(**config)
    model.load_state_dict(read_tensors(file))
    return model


load_v2: Callable[..., HPS] = partial(HPS.from_pretrained, version="v2")
load_v21: Callable[..., HPS] = partial(HPS.from_pretrained, version="v2.1")
