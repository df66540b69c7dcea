"""Weights, images and words that two environments can make alike, bit by bit, with numpy alone.

``scripts/reward_parity.py`` gives them to the published `image-reward` package, the tests to our own module.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np

PROMPTS = (
    "a cat on a red mat",
    "A painting, in oil, of 7 dogs!",
    "",
    "zebra crossing [ENC] at night",
    "a very long prompt " * 12,
)
SIZES = ((32, 32), (64, 64), (50, 81), (97, 40), (301, 224))  # height, width
WORDS = ("a", "cat", "on", "red", "mat", "painting", "in", "oil", "of", "dog", "##s", "very", "long", "prompt", "night")


def tensor(name: str, shape: Sequence[int]) -> np.ndarray:
    """The tensor of that name: float32 noise that keeps a network lively, from numpy's frozen generator.

    Matrices have variance 1/fan-in; weights of normalisations are near 1; biases and embeddings are small.
    """
    if name.endswith("position_ids"):
        return np.arange(shape[-1], dtype=np.int64).reshape(shape)
    noise = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(tuple(shape)).astype(np.float32)
    if name.endswith("bias"):
        return np.float32(0.1) * noise
    if len(shape) == 1:
        return 1 + np.float32(0.2) * noise
    if "embed" in name and "patch_embed" not in name:
        return np.float32(0.3) * noise
    if len(shape) == 0:
        return noise
    return noise / np.float32(np.sqrt(np.prod(shape[1:])))


def picture(index: int) -> np.ndarray:
    """Image (H, W, 3) uint8 number ``index``: waves and noise."""
    height, width = SIZES[index]
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    rates = np.array([3.0, 5.0, 7.0]) + index
    waves = np.sin(rates * x[..., None] / width + y[..., None] * (index + 2) / height + np.arange(3))
    noise = np.random.RandomState(index).uniform(-1, 1, (height, width, 3))
    return np.clip(127.5 + 90 * waves + 37 * noise, 0, 255).round().astype(np.uint8)


def vocabulary() -> list[str]:
    """Lines of a small ``vocab.txt`` for BERT's tokenizer."""
    characters = [chr(code) for code in range(33, 127) if not chr(code).isupper()]
    letters = [one for one in characters if one.isalnum()]
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    return list(dict.fromkeys([*special, *characters, *(f"##{one}" for one in letters), *WORDS]))


def med_config(*, full: bool) -> dict[str, object]:
    """The text encoder's configuration: as published, or two layers of 64 with the small vocabulary."""
    size = (768, 3072, 12, 12, 512, 30524) if full else (64, 128, 2, 4, 48, len(vocabulary()) + 2)
    keys = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings")
    return {
        **dict(zip((*keys, "vocab_size"), size, strict=True)),
        "architectures": ["BertModel"],
        "attention_probs_dropout_prob": 0.1,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "initializer_range": 0.02,
        "layer_norm_eps": 1e-12,
        "model_type": "bert",
        "pad_token_id": 0,
        "type_vocab_size": 2,
        "encoder_width": 1024 if full else 128,
        "add_cross_attention": True,
    }
