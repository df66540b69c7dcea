"""LAION's aesthetic predictor v2: how much people like to look at an image, whatever was asked for.

Schuhmann 2022 (improved-aesthetic-predictor, the weights "sac+logos+ava1-l14-linearMSE"): a linear head on the unit
image vector of OpenAI's CLIP ViT-L/14, trained on ratings from 1 to 10. The prompt is not looked at. Where we differ
from the authors' code: CLIP is transformers' and runs in float32 unless asked otherwise, theirs in half precision.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPVisionModelWithProjection

from diffkit.errors import InputError
from diffkit.rewards.network import NetworkReward
from diffkit.rewards.preprocessing import Preprocessing, normalised
from diffkit.rewards.token_pruning import TokenPruning, prune_tokens
from diffkit.rewards.weights import find_file, model_files, read_model, read_tensors

__all__ = ["PLACES", "Aesthetic", "AestheticNetwork", "linear_head", "load", "widths_of"]

REPOSITORY = "trl-lib/ddpo-aesthetic-predictor"
CLIP = "openai/clip-vit-large-patch14"
FILES = ("sac+logos+ava1-l14-linearMSE.pth", "aesthetic-model.pth", "aesthetic-model.safetensors")
DOWNLOAD = (
    f"{FILES[0]} from https://github.com/christophschuhmann/improved-aesthetic-predictor, or {FILES[1]} from "
    f"https://huggingface.co/{REPOSITORY}"
)

PLACES = (0, 2, 4, 6, 7)  # of the linear layers in the published sequence
DROPOUT = (0.2, 0.2, 0.1)


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
    reads_prompts = False

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
        token_pruning: TokenPruning | str | None = None,
    ) -> Aesthetic:
        """Load the head and its CLIP.

        Args:
            location: the head's file, a folder with it, or a hub id.
            clip: folder or hub id of CLIP ViT-L/14; by default the head's own folder if it holds a ``config.json``,
                else OpenAI's on the hub.
            device, dtype: see :class:`~diffkit.rewards.network.NetworkReward`.
            token_pruning: which patches the image encoder drops on the way, see :mod:`diffkit.rewards.token_pruning`.

        Raises:
            InputError: nothing usable is there; the message says what to download.
        """
        names = FILES[1:] if str(location) == REPOSITORY else FILES
        file = find_file(location, names, reward=cls.name, download=DOWNLOAD)
        state = read_tensors(file)
        head = linear_head(widths_of(state, "layers."))
        head.load_state_dict({name.removeprefix("layers."): value for name, value in state.items()})
        beside = (file.parent / "config.json").is_file() and str(location) != REPOSITORY
        source = clip if clip is not None else file.parent if beside else CLIP
        needs = f"https://huggingface.co/{CLIP}"
        model: Any = read_model(CLIPVisionModelWithProjection, source, reward=cls.name, download=needs)
        width, clip_width = head[0].in_features, model.config.projection_dim
        if clip_width != width:
            raise InputError(f"The head reads vectors of {width} numbers, but the CLIP in {source} makes {clip_width}.")
        fit = Preprocessing(model.config.image_size, "crop")
        files = [file, *model_files(source)]
        network = AestheticNetwork(model, head)
        prune_tokens(network, token_pruning)
        reward = cls(network, fit, files, device=device, dtype=dtype)
        reward.set_name(location, REPOSITORY)
        return reward


load = Aesthetic.from_pretrained


def linear_head(widths: Sequence[int]) -> nn.Sequential:
    """Features (B, widths[0]) to (B, 1); published are 768, 1024, 128, 64, 16, 1."""
    linear_1, linear_2, linear_3, linear_4, linear_5 = (nn.Linear(i, o) for i, o in itertools.pairwise(widths))
    first, second, third = (nn.Dropout(share) for share in DROPOUT)
    return nn.Sequential(linear_1, first, linear_2, second, linear_3, third, linear_4, linear_5)


def widths_of(state: Mapping[str, Tensor], prefix: str) -> list[int]:
    """The widths of a published head, from its tensors ``{prefix}{place}.weight``.

    Raises:
        InputError: a layer is missing, or the layers do not fit one behind the other.
    """
    names = [f"{prefix}{place}.weight" for place in PLACES]
    missing = [name for name in names if name not in state]
    if missing:
        raise InputError(f"Expected the five linear layers of a published head, but {missing[0]} is missing.")
    shapes = [tuple(state[name].shape) for name in names]
    if any(a[0] != b[1] for a, b in itertools.pairwise(shapes)) or shapes[-1][0] != 1:
        raise InputError(f"The layers of the head do not fit: {shapes}.")
    return [shapes[0][1], *(shape[0] for shape in shapes)]
