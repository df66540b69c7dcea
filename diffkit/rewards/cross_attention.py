"""A reward of ImageReward's architecture: text tokens attend to image patches, a linear head scores the first token.

ImageReward (Xu et al. 2023, arXiv 2304.05977) encodes the image by a BLIP vision transformer, lets BLIP's text
encoder attend to the patches in every layer, and maps the first token's state to one number. Here in transformers'
own BLIP modules, at any size; the lab's reward is a tiny one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoTokenizer, BlipTextConfig, BlipVisionConfig, BlipVisionModel, PreTrainedTokenizerBase
from transformers.models.blip.modeling_blip_text import BlipTextModel

from diffkit.rewards.preprocessing import normalised


class CrossAttentionReward(nn.Module):
    """Vision transformer, text encoder with cross-attention, linear head.

    Args:
        vision: configuration of the image encoder.
        text: configuration of the text encoder; ``encoder_hidden_size`` must be the vision width.
    """

    def __init__(self, vision: BlipVisionConfig, text: BlipTextConfig) -> None:
        super().__init__()
        self.vision = BlipVisionModel(vision)
        self.text = BlipTextModel(text, add_pooling_layer=False)
        self.head = nn.Linear(text.hidden_size, 1)

    def encode_images(self, images: Tensor) -> Tensor:
        """Patch states (B, 1 + patches, width) of (B, 3, H, W) images in [0, 1], resized to the model's input."""
        side = self.vision.config.image_size
        if images.shape[-2:] != (side, side):
            images = F.interpolate(images, size=(side, side), mode="bicubic", antialias=True).clamp(0, 1)
        states: Tensor = self.vision(normalised(images)).last_hidden_state
        return states

    def encode_texts(self, ids: Tensor, mask: Tensor, patches: Tensor) -> Tensor:
        """Token states (B, L, width) after attending to the patches; ``mask`` (B, L) is 1 on real tokens."""
        states: Tensor = self.text(input_ids=ids, attention_mask=mask, encoder_hidden_states=patches).last_hidden_state
        return states

    def forward(self, images: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """Scores (B,) of images (B, 3, H, W) in [0, 1] with token ids (B, L); higher is better.

        With K texts an image, ids and mask (B, K, L), the mean of their K scores; the image is encoded once.
        """
        texts = ids.shape[1] if ids.dim() == 3 else 1
        patches = self.encode_images(images).repeat_interleave(texts, dim=0)
        states = self.encode_texts(ids.flatten(0, -2), mask.flatten(0, -2), patches)
        scores: Tensor = self.head(states[:, 0]).view(len(images), texts).mean(1)
        return scores

    def save_pretrained(self, folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
        """Write configurations, half-precision weights (safetensors) and tokenizer to ``folder``."""
        folder.mkdir(parents=True, exist_ok=True)
        self.vision.config.save_pretrained(folder / "vision")
        self.text.config.save_pretrained(folder / "text")
        tokenizer.save_pretrained(folder / "tokenizer")
        weights = {name: value.half().contiguous() for name, value in self.state_dict().items()}
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    @classmethod
    def from_pretrained(cls, folder: Path) -> tuple[CrossAttentionReward, PreTrainedTokenizerBase]:
        """Read what :meth:`save_pretrained` wrote; weights come back as float32, in evaluation mode."""
        vision: Any = BlipVisionConfig.from_pretrained(folder / "vision")
        text: Any = BlipTextConfig.from_pretrained(folder / "text")
        model = cls(vision, text)
        model.load_state_dict({name: value.float() for name, value in load_file(folder / "model.safetensors").items()})
        return model.eval(), AutoTokenizer.from_pretrained(folder / "tokenizer")


def tokenize(tokenizer: PreTrainedTokenizerBase, prompts: list[str]) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask, both (len(prompts), the tokenizer's own maximum length)."""
    batch = tokenizer(prompts, padding="max_length", truncation=True, return_tensors="pt")
    return batch.input_ids, batch.attention_mask
