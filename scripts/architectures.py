"""Pipelines of the published architectures with random weights, for benches on an accelerator.

Denoisers and autoencoders have the published sizes; text encoders have the published widths and one layer, since a
prompt is encoded once. Networks are made on torch's default device, schedulers on the host.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from tiny import tiny_tokenizer
from tiny_families import DYNAMIC, clip, t5, t5_tokenizer

NOISE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


def long_clip_tokenizer() -> Any:
    """As many tokens as the published encoders take."""
    tokenizer = tiny_tokenizer()
    tokenizer.model_max_length = 77
    return tokenizer


def kl(channels: int, scale: float, shift: float | None = None) -> Any:
    """The autoencoder of the Stable Diffusion and FLUX families: factor 8."""
    return diffusers.AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=channels,
        scaling_factor=scale,
        shift_factor=shift,
        sample_size=1024,
    )


def scheduler(kind: str, **options: Any) -> Any:
    """A scheduler, whose tables live on the host whatever the device of the networks."""
    with torch.device("cpu"):
        return getattr(diffusers, kind)(**options)


def sd15() -> Any:
    """Stable Diffusion 1.5: 860 million parameters in the denoiser."""
    tokenizer = long_clip_tokenizer()
    unet = diffusers.UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
    return diffusers.StableDiffusionPipeline(
        vae=kl(4, 0.18215), unet=unet, text_encoder=clip(tokenizer, width=768), tokenizer=tokenizer,
        scheduler=scheduler("DDIMScheduler", **NOISE, clip_sample=False, steps_offset=1),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def sdxl() -> Any:
    """Stable Diffusion XL: 2.6 thousand million."""
    tokenizer = long_clip_tokenizer()
    unet = diffusers.UNet2DConditionModel(
        sample_size=128, block_out_channels=(320, 640, 1280), cross_attention_dim=2048, attention_head_dim=(5, 10, 20),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), use_linear_projection=True,
        transformer_layers_per_block=(1, 2, 10), addition_embed_type="text_time", addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
    )  # fmt: skip
    return diffusers.StableDiffusionXLPipeline(
        vae=kl(4, 0.13025), unet=unet, text_encoder=clip(tokenizer, width=768), tokenizer=tokenizer,
        text_encoder_2=clip(tokenizer, width=1280, projection=1280), tokenizer_2=tokenizer, add_watermarker=False,
        scheduler=scheduler("EulerDiscreteScheduler", **NOISE),
    )  # fmt: skip


def sd35_medium() -> Any:
    """Stable Diffusion 3.5 medium: 2.2 thousand million."""
    tokenizer, words = long_clip_tokenizer(), t5_tokenizer()
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=128, patch_size=2, in_channels=16, out_channels=16, num_layers=24, attention_head_dim=64,
        num_attention_heads=24, caption_projection_dim=1536, joint_attention_dim=4096, pooled_projection_dim=2048,
        pos_embed_max_size=384, qk_norm="rms_norm", dual_attention_layers=tuple(range(13)),
    )  # fmt: skip
    return diffusers.StableDiffusion3Pipeline(
        vae=kl(16, 1.5305, 0.0609), transformer=transformer, tokenizer=tokenizer, tokenizer_2=tokenizer,
        tokenizer_3=words, text_encoder=clip(tokenizer, width=768, projection=768),
        text_encoder_2=clip(tokenizer, width=1280, projection=1280), text_encoder_3=t5(words, 4096),
        scheduler=scheduler("FlowMatchEulerDiscreteScheduler", shift=3.0),
    )  # fmt: skip


def flux() -> Any:
    """FLUX.1-dev: 11.9 thousand million."""
    tokenizer, words = long_clip_tokenizer(), t5_tokenizer()
    return diffusers.FluxPipeline(
        vae=kl(16, 0.3611, 0.1159), transformer=diffusers.FluxTransformer2DModel(guidance_embeds=True),
        tokenizer=tokenizer, tokenizer_2=words, text_encoder=clip(tokenizer, width=768), text_encoder_2=t5(words, 4096),
        scheduler=scheduler("FlowMatchEulerDiscreteScheduler", shift=3.0, **DYNAMIC),
    )  # fmt: skip


REAL: dict[str, Callable[[], Any]] = {"sd15": sd15, "sdxl": sdxl, "sd35-medium": sd35_medium, "flux": flux}
