"""ImageReward v1.0: human preference by BLIP, whose text tokens attend to the image in every layer.

Xu et al. 2023, "ImageReward" (arXiv 2304.05977): BLIP's ViT-L/16 at 224 pixels, BERT-base with cross-attention, and a
linear head on the first word's state, standardised over the authors' data: about -2 to 2. Here on transformers' own
BLIP modules; the published checkpoint is read by renaming its tensors. Preprocessing as published: bicubic shorter
edge 224, middle, CLIP's colours; text in 35 tokens. The first token stays [CLS]: the authors add [ENC] to the
vocabulary and never place it. The head runs in float32 in every precision, as theirs does.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import BertTokenizer, BlipTextConfig, BlipVisionConfig, PreTrainedTokenizerBase

from diffkit.errors import InputError
from diffkit.loading import quietly
from diffkit.rewards.aesthetic import linear_head, widths_of
from diffkit.rewards.cross_attention import CrossAttentionReward
from diffkit.rewards.network import NetworkReward
from diffkit.rewards.preprocessing import Preprocessing
from diffkit.rewards.token_pruning import TokenPruning, prune_tokens
from diffkit.rewards.weights import find_file, one_sentence, read_tensors

__all__ = ["ImageReward", "ImageRewardNetwork", "load", "renamed", "text_config", "vision_config"]

REPOSITORY, FILES = "THUDM/ImageReward", ("ImageReward.pt", "ImageReward.safetensors")
DOWNLOAD = f"{FILES[0]} from https://huggingface.co/{REPOSITORY}"
TOKENIZER, VOCABULARY = "bert-base-uncased", ("tokenizer.json", "vocab.txt")
MEAN, DEVIATION = 0.16717362830052426, 1.0333394966054072
TOKENS, HEAD_WIDTH = 35, 64
# What `med_config.json` of the published model says, where it differs from BlipTextConfig's defaults.
TEXT: Mapping[str, Any] = {"num_attention_heads": 12, "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
TEXT_KEYS = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "hidden_act",
    "max_position_embeddings", "layer_norm_eps", "hidden_dropout_prob", "attention_probs_dropout_prob", "pad_token_id",
)  # fmt: skip
# BLIP's own names of the image encoder -> transformers'; all others are the same in both.
RENAMED = (
    (r"^cls_token$", "embeddings.class_embedding"),
    (r"^pos_embed$", "embeddings.position_embedding"),
    (r"^patch_embed\.proj\.", "embeddings.patch_embedding."),
    (r"^norm\.", "post_layernorm."),
    (r"^blocks\.(\d+)\.norm(\d)\.", r"encoder.layers.\1.layer_norm\2."),
    (r"^blocks\.(\d+)\.attn\.qkv\.", r"encoder.layers.\1.self_attn.qkv."),
    (r"^blocks\.(\d+)\.attn\.proj\.", r"encoder.layers.\1.self_attn.projection."),
    (r"^blocks\.(\d+)\.mlp\.", r"encoder.layers.\1.mlp."),
)


class ImageRewardNetwork(CrossAttentionReward):
    """The published network.

    Args:
        vision, text: configurations of the two encoders.
        widths: of the head's layers, the input first.
    """

    def __init__(self, vision: BlipVisionConfig, text: BlipTextConfig, widths: list[int]) -> None:
        super().__init__(vision, text)
        self.head = linear_head(widths)  # type: ignore[assignment]

    def forward(self, images: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """Scores (B,) float32 of images (B, 3, side, side) in [0, 1] with token ids and mask (B, 35)."""
        patches = self.encode_images(images.to(self.vision.dtype))
        first = self.encode_texts(ids, mask, patches)[:, 0]
        scores: Tensor = self.head(first.to(next(self.head.parameters()).dtype)).squeeze(-1)
        return (scores - MEAN) / DEVIATION


def renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The published tensors under the names of :class:`ImageRewardNetwork`.

    What only BLIP's pre-training needs (projections, momentum copies, queues) and the buffer of positions are left out.
    """
    tensors = {}
    for name, value in state.items():
        if name.startswith("blip.visual_encoder."):
            new = name.removeprefix("blip.visual_encoder.")
            for pattern, replacement in RENAMED:
                new = re.sub(pattern, replacement, new)
            tensors[f"vision.{new}"] = value
        elif name.startswith("blip.text_encoder.") and not name.endswith("embeddings.position_ids"):
            tensors[f"text.{name.removeprefix('blip.text_encoder.')}"] = value
        elif name.startswith("mlp.layers."):
            tensors[f"head.{name.removeprefix('mlp.layers.')}"] = value
    return tensors


def vision_config(state: Mapping[str, Tensor]) -> BlipVisionConfig:
    """The image encoder that renamed tensors belong to; heads are 64 wide, as in every published BLIP."""
    width, _, patch, _ = state["vision.embeddings.patch_embedding.weight"].shape
    patches = state["vision.embeddings.position_embedding"].shape[1] - 1
    blocks = {name.split(".")[3] for name in state if name.startswith("vision.encoder.layers.")}
    return BlipVisionConfig(
        hidden_size=width,
        intermediate_size=state["vision.encoder.layers.0.mlp.fc1.weight"].shape[0],
        num_hidden_layers=len(blocks),
        num_attention_heads=width // HEAD_WIDTH,
        image_size=round(patches**0.5) * patch,
        patch_size=patch,
        hidden_act="gelu",
        layer_norm_eps=1e-6,
    )


def text_config(given: Mapping[str, Any], vision_width: int) -> BlipTextConfig:
    """The text encoder that a ``med_config.json`` describes; empty means the published one.

    The configuration says ``is_decoder`` so that layers have cross-attention; the forward pass is bidirectional.
    """
    values = {key: given[key] for key in TEXT_KEYS if key in given}
    return BlipTextConfig(**{**TEXT, **values}, encoder_hidden_size=vision_width, is_decoder=True, bos_token_id=None)


class ImageReward(NetworkReward):
    """See the module. Higher is better, unbounded, about -2 to 2."""

    name = "image-reward"
    licence = "code Apache-2.0; for the weights see their card"
    network: ImageRewardNetwork

    def __init__(
        self, network: ImageRewardNetwork, tokenizer: PreTrainedTokenizerBase, *rest: Any, **options: Any
    ) -> None:
        self._tokenizer = tokenizer
        super().__init__(network, *rest, **options)
        network.head.float()

    def tokenize(self, prompts: list[str]) -> tuple[Tensor, ...]:
        """Ids and attention mask, both (B, 35)."""
        batch = self._tokenizer(prompts, padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt")
        return batch.input_ids, batch.attention_mask

    @classmethod
    def from_pretrained(
        cls,
        location: str | Path = REPOSITORY,
        *,
        device: str = "auto",
        dtype: str = "float32",
        token_pruning: TokenPruning | str | None = None,
    ) -> ImageReward:
        """Load the published checkpoint.

        Args:
            location: ``ImageReward.pt``, a folder with it, or a hub id. Beside the file may lie ``med_config.json``,
                for a text encoder other than the published, and the tokenizer of bert-base-uncased (``vocab.txt`` or
                ``tokenizer.json``), which otherwise comes from the hub.
            device, dtype: see :class:`~diffkit.rewards.network.NetworkReward`.
            token_pruning: which patches the image encoder drops on the way, see :mod:`diffkit.rewards.token_pruning`.

        Raises:
            InputError: nothing usable is there; the message says what to download.
        """
        file = find_file(location, FILES, reward=cls.name, download=DOWNLOAD)
        config = file.parent / "med_config.json"
        state = renamed(read_tensors(file))
        if "vision.embeddings.patch_embedding.weight" not in state:
            raise InputError(f"{file} is no ImageReward: it has no tensors named blip.visual_encoder; {DOWNLOAD}.")
        with one_sentence(cls.name, file, DOWNLOAD):
            vision = vision_config(state)
            text = text_config(json.loads(config.read_bytes()) if config.is_file() else {}, vision.hidden_size)
            network = ImageRewardNetwork(vision, text, widths_of(state, "head."))
            network.load_state_dict(state)
        prune_tokens(network, token_pruning)
        fit = Preprocessing(int(vision.image_size), "crop")
        reward = cls(network, _tokenizer(file.parent), fit, [file], device=device, dtype=dtype)
        reward.set_name(location, REPOSITORY)
        return reward


def _tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """BERT's tokenizer from the folder, else from the hub, with BLIP's two extra words.

    The vocabulary is looked for first: where there is none, transformers 5 makes a tokenizer of five words of it.
    """
    local = any((folder / name).is_file() for name in VOCABULARY)
    source = folder if local else TOKENIZER
    download = f"vocab.txt from https://huggingface.co/{TOKENIZER} into the folder of {FILES[0]}"
    file = find_file(source, VOCABULARY, reward=ImageReward.name, download=download)
    with one_sentence(ImageReward.name, file, download), quietly():
        tokenizer: PreTrainedTokenizerBase = BertTokenizer.from_pretrained(file.parent, local_files_only=True)
    tokenizer.add_tokens(["[DEC]", "[ENC]"], special_tokens=True)
    return tokenizer


load = ImageReward.from_pretrained
