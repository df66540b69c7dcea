"""CLIPScore: the cosine between an image and its caption, in the unit that is asked for.

Hessel et al. 2021, "CLIPScore" (arXiv 2104.08718), equation 1 is 2.5 max(cos, 0) with captions prefixed by "A photo
depicts"; most later work reports the plain cosine or 100 times it, without prefix. All three are called CLIPScore, so
the convention is an option here and part of the reward's name; no prefix is added. The published networks are OpenAI's
ViT-L/14 (ImageReward's, FK steering's choice) and B/32; any CLIP of transformers or open_clip serves.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, get_args

from diffkit.errors import InputError
from diffkit.loading import quietly
from diffkit.rewards.dual_encoder import DualEncoder, DualEncoderReward, OpenClip, Tokenizer, TransformersClip
from diffkit.rewards.dual_encoder import load_transformers as _load_transformers
from diffkit.rewards.preprocessing import CLIP_MEAN, CLIP_STD, Preprocessing
from diffkit.rewards.token_pruning import TokenPruning, prune_tokens
from diffkit.rewards.weights import model_files, one_sentence

__all__ = ["ClipScore", "load"]

MODEL = "openai/clip-vit-large-patch14"
DOWNLOAD = f"https://huggingface.co/{MODEL} (config.json, model.safetensors and the tokenizer's files)"
Convention = Literal["cosine", "clipscore", "percent"]


class ClipScore(DualEncoderReward):
    """See the module. Higher is better."""

    name = "clip-score"
    licence = "OpenAI's code MIT; for the weights see their card"

    @classmethod
    def from_pretrained(
        cls,
        location: str | Path = MODEL,
        *,
        convention: Convention = "cosine",
        device: str = "auto",
        dtype: str = "float32",
        token_pruning: TokenPruning | str | None = None,
    ) -> ClipScore:
        """Load a CLIP.

        Args:
            location: a folder or hub id of a transformers CLIP; a folder with ``open_clip_config.json``; or a hub id
                of an open_clip checkpoint behind ``hf-hub:``, as open_clip writes it.
            convention: ``cosine`` in [-1, 1]; ``clipscore`` 2.5 max(cos, 0) in [0, 2.5]; ``percent`` 100 cos.
            device, dtype: see :class:`~diffkit.rewards.network.NetworkReward`.
            token_pruning: which patches the image encoder drops on the way, see :mod:`diffkit.rewards.token_pruning`.

        Raises:
            InputError: an unknown convention, or nothing usable is there; the message says what to download.
        """
        if convention not in get_args(Convention):
            raise InputError(f"Expected a convention among {', '.join(get_args(Convention))}, got {convention!r}.")
        network: DualEncoder
        folder = Path(location).expanduser()
        if str(location).startswith("hf-hub:") or (folder / "open_clip_config.json").is_file():
            model, tokenizer, side = load_open_clip(location, reward=cls.name)
            network, fit = OpenClip(model, convention), Preprocessing(side, "crop")
        else:
            model, tokenizer = _load_transformers(location, location, reward=cls.name, download=DOWNLOAD)
            network = TransformersClip(model, convention)
            fit = Preprocessing(model.config.vision_config.image_size, "crop-floor")
        prune_tokens(network, token_pruning)
        files = model_files(str(location).removeprefix("hf-hub:"))
        reward = cls(network, tokenizer, fit, files, device=device, dtype=dtype)
        if isinstance(network, OpenClip):
            reward.lora_targets = ["c_fc", "c_proj"]  # its attention reads its weights past any adapter
        reward.set_name(location, MODEL, *([] if convention == "cosine" else [f"convention={convention}"]))
        return reward


def load_open_clip(location: str | Path, *, reward: str) -> tuple[Any, Tokenizer, int]:
    """Model, tokenizer and input size of an open_clip checkpoint in a folder or behind ``hf-hub:``.

    Raises:
        InputError: nothing usable is there, or its preprocessing is not CLIP's own.
    """
    import open_clip

    hub = str(location).startswith("hf-hub:")
    where = str(location) if hub else f"local-dir:{Path(location).expanduser()}"
    download = "open_clip_config.json and open_clip_model.safetensors of an open_clip checkpoint"
    plain = str(location).removeprefix("hf-hub:") if hub else Path(location)
    with one_sentence(reward, plain, download), quietly():
        model: Any = open_clip.create_model(where, require_pretrained=True)
        words: Any = open_clip.get_tokenizer(where)
    asked = model.visual.preprocess_cfg
    shape = model.visual.image_size
    side = int(shape if isinstance(shape, int) else shape[0])
    own = {"mean": CLIP_MEAN, "std": CLIP_STD, "interpolation": "bicubic", "resize_mode": "shortest"}
    if any(_plain(asked[key]) != _plain(value) for key, value in own.items()) or shape not in (side, (side, side)):
        raise InputError(f"{location} asks for another preprocessing than CLIP's own, which is not supported: {asked}.")
    return model, lambda prompts: (words(prompts),), side


def _plain(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


load = ClipScore.from_pretrained
