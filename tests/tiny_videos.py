"""Tiny pipelines of videos of the real classes, random weights, nothing downloaded."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AutoencoderKLHunyuanVideo,
    AutoencoderKLLTXVideo,
    AutoencoderKLWan,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideoPipeline,
    HunyuanVideoTransformer3DModel,
    LTXPipeline,
    LTXVideoTransformer3DModel,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
)
from tiny import tiny_tokenizer
from tiny_families import DYNAMIC, Row, clip, fast_tokenizer, t5, t5_tokenizer, vivid
from transformers import LlamaConfig, LlamaModel, UMT5Config, UMT5EncoderModel


def wan_transformer() -> WanTransformer3DModel:
    return WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=16,
        freq_dim=16, ffn_dim=16, num_layers=1, cross_attn_norm=True, qk_norm="rms_norm_across_heads",
        rope_max_seq_len=32,
    )  # fmt: skip


def wan(second: bool = False) -> WanPipeline:
    """Wan 2.1, or with a second transformer Wan 2.2."""
    words = t5_tokenizer()
    vae = AutoencoderKLWan(
        base_dim=3, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True],
        latents_mean=[0.1, -0.2, 0.0, 0.3], latents_std=[1.0, 0.8, 1.2, 0.9],
    )  # fmt: skip
    config = UMT5Config(
        vocab_size=len(words), d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, pad_token_id=0, eos_token_id=1
    )
    return WanPipeline(
        vae=vivid(vae, vae.decoder.conv_out), transformer=wan_transformer(), tokenizer=words,
        text_encoder=UMT5EncoderModel(config), transformer_2=wan_transformer() if second else None,
        boundary_ratio=0.6 if second else None,
        scheduler=UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
    )  # fmt: skip


def ltx() -> LTXPipeline:
    """With a decoder that takes noise, as those of later versions."""
    words = t5_tokenizer()
    transformer = LTXVideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=8, cross_attention_dim=16,
        num_layers=1, caption_channels=16,
    )  # fmt: skip
    vae = AutoencoderKLLTXVideo(
        latent_channels=4, block_out_channels=(8, 8), decoder_block_out_channels=(8, 8),
        down_block_types=("LTXVideoDownBlock3D",) * 2, layers_per_block=(1, 1, 1), decoder_layers_per_block=(1, 1, 1),
        spatio_temporal_scaling=(True, True), decoder_spatio_temporal_scaling=(True, True),
        decoder_inject_noise=(False, False, False), upsample_residual=(False, False), upsample_factor=(1, 1),
        downsample_type=("conv", "conv"), timestep_conditioning=True, patch_size=1,
    )  # fmt: skip
    return LTXPipeline(
        vae=vivid(vae, vae.decoder.conv_out.conv), transformer=transformer, tokenizer=words, text_encoder=t5(words),
        scheduler=FlowMatchEulerDiscreteScheduler(**DYNAMIC),
    )  # fmt: skip


def hunyuan_video() -> HunyuanVideoPipeline:
    words, tokenizer = fast_tokenizer("<|begin_of_text|>"), tiny_tokenizer()
    tokenizer.model_max_length = 77
    transformer = HunyuanVideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=10, num_layers=1, num_single_layers=1,
        num_refiner_layers=1, patch_size=1, patch_size_t=1, guidance_embeds=True, text_embed_dim=16,
        pooled_projection_dim=16, rope_axes_dim=(2, 4, 4),
    )  # fmt: skip
    vae = AutoencoderKLHunyuanVideo(
        latent_channels=4, block_out_channels=(8,) * 4, layers_per_block=1, norm_num_groups=4,
        down_block_types=("HunyuanVideoDownBlock3D",) * 4, up_block_types=("HunyuanVideoUpBlock3D",) * 4,
    )  # fmt: skip
    config = LlamaConfig(
        vocab_size=len(words), hidden_size=16, intermediate_size=16, num_hidden_layers=3, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=512,
    )  # fmt: skip
    return HunyuanVideoPipeline(
        vae=vivid(vae, vae.decoder.conv_out.conv), transformer=transformer, tokenizer=words, tokenizer_2=tokenizer,
        text_encoder=LlamaModel(config), text_encoder_2=clip(tokenizer),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
    )  # fmt: skip


SMALL = {"height": 32, "width": 32, "num_frames": 5, "max_sequence_length": 8}
VIDEO_ROWS: dict[str, Row] = {
    "wan": Row(wan, SMALL),
    "wan2.2": Row(lambda: wan(second=True), {**SMALL, "guidance_scale_2": 2.0}),
    "hunyuan": Row(
        hunyuan_video,
        {**SMALL, "prompt_template": {"template": "{}", "crop_start": 0}},
        {"guidance_scale": 6.0, "true_cfg_scale": 2.0, "negative_prompt": "cat"},
    ),
    "ltx": Row(ltx, {**SMALL, "decode_timestep": 0.05, "decode_noise_scale": 0.3}),
}


def video_pipeline(name: str, seed: int = 0) -> Any:
    """The tiny pipeline of a row; its weights depend on ``seed`` alone."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        pipe = VIDEO_ROWS[name].build()
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval().requires_grad_(False)
    pipe.set_progress_bar_config(disable=True)
    return pipe
