"""PickScore v1: what people chose, by a CLIP fine-tuned on their choices.

Kirstain et al. 2023, "Pick-a-Pic" (arXiv 2305.01569), section 4: score = exp(logit_scale) cos(image, text), of the
order of 20; the difference of two scores is the log-odds that people prefer one to the other. Preprocessing as in the
authors' code: transformers' CLIP processor, that is bicubic shorter edge 224, middle, 77 tokens.
"""

from __future__ import annotations

from pathlib import Path

from diffkit.rewards.dual_encoder import DualEncoderReward, TransformersClip, load_transformers
from diffkit.rewards.preprocessing import Preprocessing
from diffkit.rewards.token_pruning import TokenPruning, prune_tokens
from diffkit.rewards.weights import model_files

__all__ = ["PickScore", "load"]

MODEL = "yuvalkirstain/PickScore_v1"
PROCESSOR = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
DOWNLOAD = f"https://huggingface.co/{MODEL} (config.json, model.safetensors) with the tokenizer of {PROCESSOR}"


class PickScore(DualEncoderReward):
    """See the module. Higher is better; range plus and minus exp(logit_scale), 100 in the published weights."""

    name = "pick-score"
    licence = "code MIT; for the weights see their card"

    @classmethod
    def from_pretrained(
        cls,
        location: str | Path = MODEL,
        *,
        device: str = "auto",
        dtype: str = "float32",
        token_pruning: TokenPruning | str | None = None,
    ) -> PickScore:
        """Load the published weights, or any transformers CLIP folder or hub id.

        Args:
            location: where model and tokenizer are; the published model takes the tokenizer of the CLIP it came from.
            device, dtype: see :class:`~diffkit.rewards.network.NetworkReward`.
            token_pruning: which patches the image encoder drops on the way, see :mod:`diffkit.rewards.token_pruning`.

        Raises:
            InputError: nothing usable is there; the message says what to download.
        """
        words = PROCESSOR if str(location) == MODEL else location
        model, tokenizer = load_transformers(location, words, reward=cls.name, download=DOWNLOAD)
        side = model.config.vision_config.image_size
        network = TransformersClip(model, "logit")
        prune_tokens(network, token_pruning)
        fit = Preprocessing(side, "crop-floor")
        reward = cls(network, tokenizer, fit, model_files(location), device=device, dtype=dtype)
        reward.set_name(location, MODEL)
        return reward


load = PickScore.from_pretrained
