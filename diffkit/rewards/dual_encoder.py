"""Two encoders and a cosine: CLIP from transformers or open_clip, behind one call.

CLIP (Radford et al. 2021, arXiv 2103.00020) puts an image and a text on the unit sphere; rewards built on it are
functions of the cosine between the two.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoTokenizer, CLIPModel, PreTrainedTokenizerBase

from diffkit.errors import InputError
from diffkit.loading import quietly
from diffkit.rewards.network import NetworkReward, Recent
from diffkit.rewards.preprocessing import CLIP_MEAN, CLIP_STD, Preprocessing, normalised
from diffkit.rewards.weights import one_sentence, read_model

__all__ = ["DualEncoder", "DualEncoderReward", "OpenClip", "Scale", "TransformersClip", "load_transformers", "rescaled"]

Scale = Literal["cosine", "clipscore", "percent", "logit"]
Tokenizer = Callable[[list[str]], tuple[Tensor, ...]]


def rescaled(cosine: Tensor, scale: Scale, logit_scale: Tensor | None = None) -> Tensor:
    """A cosine in the unit that a reward reports.

    Args:
        cosine: (B,) in [-1, 1].
        scale: ``cosine`` as it is; ``clipscore`` 2.5 max(cos, 0), in [0, 2.5] (Hessel et al. 2021, arXiv 2104.08718);
            ``percent`` 100 cos; ``logit`` exp(logit_scale) cos, the network's own learned temperature.
        logit_scale: the natural logarithm of that temperature, a number.
    """
    if scale == "clipscore":
        return 2.5 * cosine.clamp(min=0)
    if scale == "percent":
        return 100 * cosine
    if scale == "logit":
        if logit_scale is None:
            raise InputError("This network has no logit_scale; choose another scale.")
        return logit_scale.float().exp() * cosine
    return cosine


class DualEncoder(nn.Module):
    """Images and tokens to scores. Subclasses encode; features, cosine and scale are float32 in every precision."""

    def __init__(self, model: nn.Module, scale: Scale) -> None:
        super().__init__()
        self.model, self.scale = model, scale

    def image_features(self, pixels: Tensor) -> Tensor:
        """Features (B, D) of normalised images (B, 3, side, side) in the model's precision."""
        raise NotImplementedError

    def text_features(self, *tokens: Tensor) -> Tensor:
        """Features (B, D) of tokens, one row a text."""
        raise NotImplementedError

    def encode_images(self, images: Tensor) -> Tensor:
        """Unit vectors (B, D) float32 of images (B, 3, side, side) in [0, 1]."""
        dtype = next(self.model.parameters()).dtype
        return F.normalize(self.image_features(normalised(images.float()).to(dtype)).float(), dim=-1)

    def encode_texts(self, *tokens: Tensor) -> Tensor:
        """Unit vectors (B, D) float32."""
        return F.normalize(self.text_features(*tokens).float(), dim=-1)

    def compare(self, images: Tensor, texts: Tensor) -> Tensor:
        """Scores (B,) of unit vectors (B, D) and (B, D)."""
        scale = getattr(self.model, "logit_scale", None)
        return rescaled((images * texts).sum(-1), self.scale, scale if isinstance(scale, Tensor) else None)

    def forward(self, images: Tensor, *tokens: Tensor) -> Tensor:
        """Scores (B,) of images (B, 3, side, side) in [0, 1] with their tokens; higher is better."""
        return self.compare(self.encode_images(images), self.encode_texts(*tokens))


class TransformersClip(DualEncoder):
    """Around transformers' ``CLIPModel``, whose feature methods return an output object since release 5."""

    def image_features(self, pixels: Tensor) -> Tensor:
        """See :class:`DualEncoder`."""
        features: Tensor = self.model.get_image_features(pixel_values=pixels).pooler_output  # type: ignore[operator]
        return features

    def text_features(self, *tokens: Tensor) -> Tensor:
        """Of token ids and attention mask, both (B, L)."""
        ids, mask = tokens
        output = self.model.get_text_features(input_ids=ids, attention_mask=mask)  # type: ignore[operator]
        features: Tensor = output.pooler_output
        return features


class OpenClip(DualEncoder):
    """Around a CLIP of open_clip."""

    def image_features(self, pixels: Tensor) -> Tensor:
        """See :class:`DualEncoder`."""
        features: Tensor = self.model.encode_image(pixels)  # type: ignore[operator]
        return features

    def text_features(self, *tokens: Tensor) -> Tensor:
        """Of token ids (B, L)."""
        features: Tensor = self.model.encode_text(*tokens)  # type: ignore[operator]
        return features


class DualEncoderReward(NetworkReward):
    """A reward of a :class:`DualEncoder`; each prompt is encoded once and its vector kept.

    ``differentiable`` without ``module`` gives gradients to images only: the text's vector is a constant. With
    ``module`` the whole network is called, text included, so that it can be trained.
    """

    network: DualEncoder

    def __init__(
        self,
        network: DualEncoder,
        tokenizer: Tokenizer,
        preprocessing: Preprocessing,
        files: Sequence[Path] = (),
        *,
        device: str = "auto",
        dtype: str = "float32",
    ) -> None:
        self._tokenizer = tokenizer
        self._vectors: Recent[Tensor] = Recent()
        self._vectors_of: object = None
        super().__init__(network, preprocessing, files, device=device, dtype=dtype)
        ends: dict[Scale, tuple[float, float]] = {"cosine": (-1, 1), "clipscore": (0, 2.5), "percent": (-100, 100)}
        top = math.exp(float(network.model.logit_scale)) if network.scale == "logit" else 0.0  # type: ignore[arg-type]
        self.range = ends.get(network.scale, (-top, top))

    def tokenize(self, prompts: list[str]) -> tuple[Tensor, ...]:
        """See :class:`NetworkReward`."""
        return self._tokenizer(prompts)

    def text_vectors(self, prompts: Sequence[str]) -> Tensor:
        """Unit vectors (B, D) float32 on the network's device, without gradient."""
        weight = next(self.network.parameters())
        if self._vectors_of != (weight.device, weight.dtype):
            self._vectors.clear()
            self._vectors_of = (weight.device, weight.dtype)

        def make(new: list[str]) -> Sequence[Tensor]:
            with torch.inference_mode(False), torch.no_grad():
                tokens = tuple(token.to(weight.device) for token in self.tokenize(new))
                return list(self.network.encode_texts(*tokens))

        return torch.stack(self._vectors.get(prompts, make))

    def _judge(self, pixels: Tensor, prompts: Sequence[str], module: Callable[..., Tensor] | None = None) -> Tensor:
        if module is not None:
            return super()._judge(pixels, prompts, module)
        return self.network.compare(self.network.encode_images(pixels), self.text_vectors(prompts))


def load_transformers(
    location: str | Path, tokenizer_from: str | Path, *, reward: str, download: str
) -> tuple[CLIPModel, Tokenizer]:
    """A CLIP and its tokenizer by transformers' own ``from_pretrained``; only a hub id opens a connection.

    Raises:
        InputError: nothing usable is there, or the folder asks for another preprocessing than CLIP's.
    """
    model: Any = read_model(CLIPModel, location, reward=reward, download=download)
    local, beside = Path(location).expanduser(), Path(tokenizer_from).expanduser()
    with one_sentence(reward, tokenizer_from, f"the tokenizer's files of {download}"), quietly():
        words: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            beside if beside.is_dir() else tokenizer_from, local_files_only=beside.is_dir()
        )
    with one_sentence(reward, location, download):
        _check_preprocessor(local, model.config.vision_config.image_size)
    text = model.config.text_config
    length = text.max_position_embeddings
    if len(words) != text.vocab_size:  # where its files are missing, transformers 5 makes a tokenizer of a few words
        raise InputError(
            f"The tokenizer in {tokenizer_from} has {len(words)} words, the network {text.vocab_size}; download the "
            f"tokenizer's files of {download}."
        )

    def tokenize(prompts: list[str]) -> tuple[Tensor, ...]:
        batch = words(prompts, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
        return batch.input_ids, batch.attention_mask

    return model, tokenize


def _check_preprocessor(folder: Path, side: int) -> None:
    """Refuse a folder whose images are prepared otherwise than all published CLIPs' are."""
    import json

    file = folder / "preprocessor_config.json"
    if not file.is_file():
        return
    given = json.loads(file.read_bytes())
    crop, size = given.get("crop_size", side), given.get("size", side)
    sides = [crop.get("height") if isinstance(crop, dict) else crop]
    sides.append(size.get("shortest_edge", size.get("height")) if isinstance(size, dict) else size)
    near = all(
        math.isclose(mine, its, abs_tol=1e-4)
        for mine, its in zip(
            (*CLIP_MEAN, *CLIP_STD),
            (*given.get("image_mean", CLIP_MEAN), *given.get("image_std", CLIP_STD)),
            strict=True,
        )
    )
    if sides != [side, side] or not near or given.get("resample", 3) != 3:
        raise InputError(
            f"{file} asks for another preprocessing than CLIP's own at {side} pixels, which is not supported."
        )
