"""LAION's aesthetic predictor v2: how much people like to look at an image, whatever was asked for.

Schuhmann 2022 (improved-aesthetic-predictor, the weights "sac+logos+ava1-l14-linearMSE"): a linear head on the unit
image vector of OpenAI's CLIP ViT-L/14, trained on ratings from 1 to 10. The prompt is not looked at. Where we differ
from the authors' code: CLIP is transformers' and runs in float32 unless asked otherwise, theirs in half precision.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPVisionModelWithProjection

from diffkit.errors import InputError
from diffkit.rewards.linear_head import linear_head, widths_of
from diffkit.rewards.network import NetworkReward
from diffkit.rewards.preprocessing import Preprocessing, normalised
from diffkit.rewards.weights import find_file, model_files, read_model, read_tensors

__all__ = ["Aesthetic", "AestheticNetwork", "load"]

REPOSITORY = "trl-lib/ddpo-aesthetic-predictor"
CLIP = "openai/clip-vit-large-patch14"
FILES = ("sac+logos+ava1-l14-linearMSE.pth", "aesthetic-model.pth", "aesthetic-model.safetensors")
WANTED = (
    f"{FILES[0]} from https://github.com/christophschuhmann/improved-aesthetic-predictor, or {FILES[1]} from "
    f"https://huggingface.co/{REPOSITORY}"
)


class AestheticNetwork(nn.Module):
    """CLIP's image encoder and the head on its unit vectors, which is float32 in every precision."""

    def __init__(self, clip: nn.Module, head: nn.Sequential) -> None:
        super().__init__()
        self.clip, self.head = clip, head

    def forward(self, images: Tensor) -> Tensor:
        """Scores (B,) of images (B, 3, side, side) in [0, 1]; higher is better."""
        pixels = normalised(images.float()).to(next(self.clip.parameters()).dtype)
        vectors = F.normalize(self.clip(pixel_values=pixels).image_embeds.float(), dim=-1)
        scores: Tensor = self.head(vectors).squeeze(-1)
        return scores


class Aesthetic(NetworkReward):
    """See the module. Higher is better, about 1 to 10, unbounded."""

    name = "aesthetic"
    licence = "head Apache-2.0 (its repository); CLIP's code MIT, for its weights see their card"
    network: AestheticNetwork

    def __init__(self, network: AestheticNetwork, *rest: Any, **options: Any) -> None:
        super().__init__(network, *rest, **options)
        network.head.float()

    def tokenize(self, prompts: list[str]) -> tuple[Tensor, ...]:
        """Nothing: the prompt is not looked at."""
        return ()

    def _rows(self, prompts: Sequence[str]) -> tuple[Tensor, ...]:
        return ()

    @classmethod
    def from_pretrained(
        cls,
        location: str | Path = REPOSITORY,
        *,
        clip: str | Path | None = None,
        device: str = "auto",
        dtype: str = "float32",
    ) -> Aesthetic:
        """Load the head and its CLIP.

        Args:
            location: the head's file, a folder with it, or a hub id.
            clip: folder or hub id of CLIP ViT-L/14; by default the head's own folder if it holds a ``config.json``,
                else OpenAI's on the hub.
            device, dtype: see :class:`~diffkit.rewards.network.NetworkReward`.

        Raises:
            InputError: nothing usable is there; the message says what to download.
        """
        names = FILES[1:] if str(location) == REPOSITORY else FILES
        file = find_file(location, names, reward=cls.name, wanted=WANTED)
        state = read_tensors(file)
        head = linear_head(widths_of(state, "layers."))
        head.load_state_dict({name.removeprefix("layers."): value for name, value in state.items()})
        beside = (file.parent / "config.json").is_file() and str(location) != REPOSITORY
        source = clip if clip is not None else file.parent if beside else CLIP
        needs = f"https://huggingface.co/{CLIP}"
        model: Any = read_model(CLIPVisionModelWithProjection, source, reward=cls.name, wanted=needs)
        wanted, made = head[0].in_features, model.config.projection_dim
        if made != wanted:
            raise InputError(f"The head reads vectors of {wanted} numbers, but the CLIP in {source} makes {made}.")
        fit = Preprocessing(model.config.image_size, "crop")
        files = [file, *model_files(source)]
        reward = cls(AestheticNetwork(model, head), fit, files, device=device, dtype=dtype)
        if str(location) != REPOSITORY:
            reward.name = f"{cls.name}:{location}"
        return reward


load = Aesthetic.from_pretrained
