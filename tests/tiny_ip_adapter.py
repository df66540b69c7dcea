"""A tiny IP-Adapter with random weights, and the image encoder that goes before it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

WIDTH = 16  # of an encoded image


def adapter_weights(unet: Any, seed: int) -> dict[str, dict[str, Tensor]]:
    """As the original files hold them: a projection to four tokens, keys and values for each cross-attention."""
    generator, text = torch.Generator().manual_seed(seed), unet.config.cross_attention_dim

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    projection = {
        "proj.weight": draw(4 * text, WIDTH),
        "proj.bias": draw(4 * text),
        "norm.weight": draw(text),
        "norm.bias": draw(text),
    }
    layers: dict[str, Tensor] = {}
    for index, name in enumerate(unet.attn_processors):
        if "attn2" in name:
            inner = unet.get_submodule(name.removesuffix(".processor")).inner_dim
            layers |= {f"{index}.to_{part}_ip.weight": draw(inner, text) for part in ("k", "v")}
    return {"image_proj": projection, "ip_adapter": layers}


def with_ip_adapter(pipe: Any, adapters: int = 1) -> Any:
    """The pipeline with so many adapters and an image encoder."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = CLIPVisionModelWithProjection(
            CLIPVisionConfig(
                hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=32,
                patch_size=16, projection_dim=WIDTH,
            )
        ).eval()  # fmt: skip
    eyes = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    pipe.register_modules(image_encoder=encoder, feature_extractor=eyes)
    weights = [adapter_weights(pipe.unet, seed) for seed in range(adapters)]
    pipe.load_ip_adapter(weights, subfolder=[""] * adapters, weight_name=[""] * adapters, image_encoder_folder=None)
    return pipe
