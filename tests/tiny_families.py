"""Tiny pipelines of the real classes of each family, random weights; tokenizers made here, nothing downloaded."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AuraFlowPipeline,
    AuraFlowTransformer2DModel,
    AutoencoderDC,
    AutoencoderKL,
    AutoencoderKLFlux2,
    AutoencoderKLQwenImage,
    ChromaPipeline,
    ChromaTransformer2DModel,
    CogView4Pipeline,
    CogView4Transformer2DModel,
    ControlNetModel,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Pipeline,
    Flux2Transformer2DModel,
    FluxPipeline,
    FluxTransformer2DModel,
    HiDreamImagePipeline,
    HiDreamImageTransformer2DModel,
    Lumina2Pipeline,
    Lumina2Transformer2DModel,
    PixArtAlphaPipeline,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    SanaPipeline,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionXLControlNetPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from diffusers.utils import is_sentencepiece_available
from PIL import Image
from tiny import NOISE, tiny_pipeline, tiny_tokenizer
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    Gemma2Config,
    Gemma2Model,
    GemmaTokenizer,
    GlmConfig,
    GlmModel,
    LlamaConfig,
    LlamaForCausalLM,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

LETTERS = [chr(code) for code in range(33, 127)]
DYNAMIC = {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15}


def t5_tokenizer() -> T5Tokenizer:
    """Single letters, no extra ids."""
    pieces = ["<pad>", "</s>", "<unk>", "▁", *LETTERS, "▁a", "▁dog"]
    return T5Tokenizer(vocab=[(piece, -1.0) for piece in pieces], extra_ids=0)


def gemma_tokenizer() -> GemmaTokenizer:
    """Single letters."""
    pieces = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", "\n", *LETTERS]
    return GemmaTokenizer(vocab={piece: index for index, piece in enumerate(pieces)}, merges=[])


def qwen_tokenizer() -> Qwen2Tokenizer:
    """Single bytes, with the marks of a chat."""
    from tokenizers.pre_tokenizers import ByteLevel

    pieces = [*sorted(ByteLevel.alphabet()), "<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer = Qwen2Tokenizer(
        vocab={piece: index for index, piece in enumerate(pieces)},
        merges=[],
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
    )
    turns = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    tokenizer.chat_template = turns + "<|im_start|>assistant\n"
    return tokenizer


def fast_tokenizer(*begin: str) -> PreTrainedTokenizerFast:
    """Single bytes, fill on the left, texts that begin with the given marks."""
    from tokenizers import Tokenizer, models
    from tokenizers.pre_tokenizers import ByteLevel
    from tokenizers.processors import TemplateProcessing

    pieces = [*sorted(ByteLevel.alphabet()), "<|endoftext|>", *begin]
    words = Tokenizer(models.BPE({piece: index for index, piece in enumerate(pieces)}, []))
    words.pre_tokenizer = ByteLevel(add_prefix_space=False)
    words.post_processor = TemplateProcessing(
        single=f"{' '.join(begin)} $A", special_tokens=[(mark, pieces.index(mark)) for mark in begin]
    )
    marks = {"pad_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}
    return PreTrainedTokenizerFast(tokenizer_object=words, padding_side="left", model_max_length=128, **marks)


def clip(tokenizer: Any, *, width: int = 16, projection: int | None = None) -> Any:
    config = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=2 * width, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=tokenizer.model_max_length,
        projection_dim=projection or width, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return (CLIPTextModel if projection is None else CLIPTextModelWithProjection)(config)


def t5(tokenizer: Any, width: int = 16) -> T5EncoderModel:
    config = T5Config(
        vocab_size=len(tokenizer), d_model=width, d_kv=8, d_ff=2 * width, num_layers=1, num_heads=2,
        feed_forward_proj="gated-gelu", pad_token_id=0, eos_token_id=1,
    )  # fmt: skip
    return T5EncoderModel(config)


def gemma(tokenizer: Any, width: int = 16) -> Gemma2Model:
    config = Gemma2Config(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=2 * width, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, head_dim=8, pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    return Gemma2Model(config)


def kl(channels: int = 4, *, scale: float = 0.9, shift: float | None = None, blocks: int = 3) -> AutoencoderKL:
    """Factor 4, or 2 to the number of blocks less one."""
    vae = AutoencoderKL(
        block_out_channels=(8,) * blocks,
        down_block_types=("DownEncoderBlock2D",) * blocks,
        up_block_types=("UpDecoderBlock2D",) * blocks,
        latent_channels=channels,
        norm_num_groups=4,
        scaling_factor=scale,
        shift_factor=shift,
        sample_size=64,
    )
    return vivid(vae, vae.decoder.conv_out)


def vivid(vae: Any, last: torch.nn.Module) -> Any:
    """Random weights decode to a nearly uniform picture, which would hide differences."""
    with torch.no_grad():
        last.weight.mul_(4)
    return vae


def sdxl() -> StableDiffusionXLPipeline:
    tokenizer = tiny_tokenizer()
    unet = UNet2DConditionModel(
        sample_size=16, layers_per_block=1, block_out_channels=(16, 32), norm_num_groups=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32, attention_head_dim=(2, 4), use_linear_projection=True,
        addition_embed_type="text_time", addition_time_embed_dim=8, transformer_layers_per_block=(1, 1),
        projection_class_embeddings_input_dim=6 * 8 + 16,
    )  # fmt: skip
    return StableDiffusionXLPipeline(
        vae=kl(), unet=unet, text_encoder=clip(tokenizer), tokenizer=tokenizer,
        text_encoder_2=clip(tokenizer, projection=16), tokenizer_2=tiny_tokenizer(), add_watermarker=False,
        scheduler=EulerDiscreteScheduler(**NOISE, timestep_spacing="leading", steps_offset=1),
    )  # fmt: skip


@functools.cache
def sentencepiece_model() -> Path:
    """The file of a model of single letters; Kolors reads no other tokenizer."""
    from sentencepiece import SentencePieceTrainer

    written = Path(tempfile.mkdtemp()) / "tokenizer"
    atexit.register(shutil.rmtree, written.parent, ignore_errors=True)
    SentencePieceTrainer.train(
        sentence_iterator=iter(["a dog", "abcdefghijklmnopqrstuvwxyz"]), model_prefix=str(written), vocab_size=100,
        hard_vocab_limit=False, num_threads=1, minloglevel=2,
    )  # fmt: skip
    return written.with_suffix(".model")


def kolors() -> Any:
    from diffusers import KolorsPipeline
    from diffusers.pipelines.kolors import ChatGLMModel, ChatGLMTokenizer
    from diffusers.pipelines.kolors.text_encoder import ChatGLMConfig

    words = ChatGLMTokenizer(str(sentencepiece_model()))
    config = ChatGLMConfig(
        num_layers=2, padded_vocab_size=words.vocab_size, hidden_size=16, ffn_hidden_size=16, kv_channels=8,
        num_attention_heads=2, seq_length=256, multi_query_attention=True, multi_query_group_num=1, add_qkv_bias=True,
        original_rope=True,
    )  # fmt: skip
    unet = UNet2DConditionModel(
        sample_size=16, layers_per_block=1, block_out_channels=(16, 32), norm_num_groups=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=8, encoder_hid_dim=16, encoder_hid_dim_type="text_proj", attention_head_dim=(2, 4),
        use_linear_projection=True, addition_embed_type="text_time", addition_time_embed_dim=8,
        transformer_layers_per_block=(1, 1), projection_class_embeddings_input_dim=6 * 8 + 16,
    )  # fmt: skip
    encoder = ChatGLMModel(config)  # which leaves its weights as memory has them
    with torch.no_grad():
        for name, weight in encoder.named_parameters():
            weight.fill_(1.0) if "norm" in name else weight.normal_(std=0.2)
    return KolorsPipeline(
        vae=kl(), unet=unet, text_encoder=encoder, tokenizer=words,
        scheduler=EulerDiscreteScheduler(**NOISE, timestep_spacing="leading", steps_offset=1),
    )  # fmt: skip


def stable_diffusion_3() -> StableDiffusion3Pipeline:
    tokenizer, t5_words = tiny_tokenizer(), t5_tokenizer()
    transformer = SD3Transformer2DModel(
        sample_size=16, patch_size=2, in_channels=8, num_layers=2, attention_head_dim=8, num_attention_heads=2,
        caption_projection_dim=16, joint_attention_dim=32, pooled_projection_dim=32, out_channels=8,
    )  # fmt: skip
    texts = [clip(tokenizer, projection=16) for _ in range(2)]
    return StableDiffusion3Pipeline(
        vae=kl(8, shift=0.1), transformer=transformer, tokenizer=tokenizer, tokenizer_2=tokenizer,
        tokenizer_3=t5_words, text_encoder=texts[0], text_encoder_2=texts[1],
        text_encoder_3=t5(t5_words, 32), scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )  # fmt: skip


def flux() -> FluxPipeline:
    tokenizer, t5_words = tiny_tokenizer(), t5_tokenizer()
    transformer = FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=16, pooled_projection_dim=16, axes_dims_rope=(4, 4, 8), guidance_embeds=True,
    )  # fmt: skip
    return FluxPipeline(
        vae=kl(4, shift=0.1), transformer=transformer, tokenizer=tokenizer, tokenizer_2=t5_words,
        text_encoder=clip(tokenizer), text_encoder_2=t5(t5_words),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, **DYNAMIC),
    )  # fmt: skip


def flux2_vae() -> AutoencoderKLFlux2:
    """Factor 4, with statistics of its own."""
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 3, "up_block_types": ("UpDecoderBlock2D",) * 3}
    vae = AutoencoderKLFlux2(
        **blocks, block_out_channels=(8,) * 3, layers_per_block=1, latent_channels=2, norm_num_groups=4, sample_size=64
    )
    vae.bn.running_mean.normal_(std=0.2)
    vae.bn.running_var.uniform_(0.5, 1.5)
    return vivid(vae, vae.decoder.conv_out)


def flux2_transformer(guidance_embeds: bool) -> Flux2Transformer2DModel:
    return Flux2Transformer2DModel(
        in_channels=8, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=48, timestep_guidance_channels=16, axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=guidance_embeds,
    )  # fmt: skip


def flux2() -> Flux2Pipeline:
    words = qwen_tokenizer()  # a PixtralProcessor adds only what reads images
    words.chat_template = "{% for m in messages %}{{ m.content[0].text }}<|im_end|>{% endfor %}"
    text = {
        "model_type": "mistral", "vocab_size": len(words), "hidden_size": 16, "intermediate_size": 16,
        "num_hidden_layers": 30, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8,
        "max_position_embeddings": 512,
    }  # fmt: skip
    vision = {
        "model_type": "pixtral", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
        "num_attention_heads": 2, "image_size": 16, "patch_size": 8,
    }  # fmt: skip
    config = Mistral3Config(text_config=text, vision_config=vision)
    return Flux2Pipeline(
        vae=flux2_vae(), transformer=flux2_transformer(True), tokenizer=words,
        text_encoder=Mistral3ForConditionalGeneration(config), scheduler=FlowMatchEulerDiscreteScheduler(**DYNAMIC),
    )  # fmt: skip


def flux2_klein() -> Flux2KleinPipeline:
    words = qwen_tokenizer()
    config = Qwen3Config(
        vocab_size=len(words), hidden_size=16, intermediate_size=16, num_hidden_layers=27, num_attention_heads=2,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=512,
    )  # fmt: skip
    return Flux2KleinPipeline(
        vae=flux2_vae(), transformer=flux2_transformer(False), tokenizer=words, text_encoder=Qwen3ForCausalLM(config),
        scheduler=FlowMatchEulerDiscreteScheduler(**DYNAMIC),
    )  # fmt: skip


def chroma() -> ChromaPipeline:
    t5_words = t5_tokenizer()
    transformer = ChromaTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=16, axes_dims_rope=(4, 4, 8), approximator_hidden_dim=32, approximator_layers=1,
        approximator_num_channels=16,
    )  # fmt: skip
    return ChromaPipeline(
        vae=kl(4, shift=0.1), transformer=transformer, tokenizer=t5_words, text_encoder=t5(t5_words),
        scheduler=FlowMatchEulerDiscreteScheduler(**DYNAMIC),
    )  # fmt: skip


def pixart_sigma() -> PixArtSigmaPipeline:
    t5_words = t5_tokenizer()
    transformer = PixArtTransformer2DModel(
        sample_size=8, num_layers=2, patch_size=2, attention_head_dim=8, num_attention_heads=2, caption_channels=16,
        in_channels=4, cross_attention_dim=16, out_channels=8, attention_bias=True, use_additional_conditions=False,
        activation_fn="gelu-approximate", norm_type="ada_norm_single", norm_elementwise_affine=False, norm_eps=1e-6,
    )  # fmt: skip
    return PixArtSigmaPipeline(
        vae=kl(), transformer=transformer, tokenizer=t5_words, text_encoder=t5(t5_words),
        scheduler=DPMSolverMultistepScheduler(**NOISE),
    )  # fmt: skip


def pixart_alpha() -> PixArtAlphaPipeline:
    """Of the size at which the pipeline tells the denoiser the image's size and aspect ratio."""
    t5_words = t5_tokenizer()
    transformer = PixArtTransformer2DModel(
        sample_size=128, num_layers=2, patch_size=2, attention_head_dim=12, num_attention_heads=2, caption_channels=16,
        in_channels=4, cross_attention_dim=24, out_channels=8, attention_bias=True, use_additional_conditions=True,
        activation_fn="gelu-approximate", norm_type="ada_norm_single", norm_elementwise_affine=False, norm_eps=1e-6,
    )  # fmt: skip
    return PixArtAlphaPipeline(
        vae=kl(), transformer=transformer, tokenizer=t5_words, text_encoder=t5(t5_words),
        scheduler=DPMSolverMultistepScheduler(**NOISE),
    )  # fmt: skip


def sana() -> SanaPipeline:
    words = gemma_tokenizer()
    transformer = SanaTransformer2DModel(
        patch_size=1, in_channels=4, out_channels=4, num_layers=1, num_attention_heads=2, attention_head_dim=4,
        num_cross_attention_heads=2, cross_attention_head_dim=4, cross_attention_dim=8, caption_channels=16,
        sample_size=32,
    )  # fmt: skip
    vae = AutoencoderDC(
        in_channels=3, latent_channels=4, attention_head_dim=2,
        encoder_block_types=("ResBlock", "EfficientViTBlock"), decoder_block_types=("ResBlock", "EfficientViTBlock"),
        encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8),
        encoder_qkv_multiscales=((), (5,)), decoder_qkv_multiscales=((), (5,)),
        encoder_layers_per_block=(1, 1), decoder_layers_per_block=[1, 1],
        downsample_block_type="conv", upsample_block_type="interpolate",
        decoder_norm_types="rms_norm", decoder_act_fns="silu", scaling_factor=0.41407,
    )  # fmt: skip
    return SanaPipeline(
        vae=vivid(vae, vae.decoder.conv_out.conv if hasattr(vae.decoder.conv_out, "conv") else vae.decoder.conv_out),
        transformer=transformer, tokenizer=words, text_encoder=gemma(words),
        scheduler=DPMSolverMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        ),
    )  # fmt: skip


def lumina2() -> Lumina2Pipeline:
    words = gemma_tokenizer()
    words.padding_side = "right"
    transformer = Lumina2Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, hidden_size=24, num_layers=2, num_refiner_layers=1,
        num_attention_heads=3, num_kv_heads=1, multiple_of=2, ffn_dim_multiplier=None, norm_eps=1e-5,
        scaling_factor=1.0, axes_dim_rope=[4, 2, 2], axes_lens=[400, 32, 32], cap_feat_dim=16,
    )  # fmt: skip
    return Lumina2Pipeline(
        vae=kl(4, shift=0.1, blocks=4), transformer=transformer, tokenizer=words, text_encoder=gemma(words),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=6.0, **DYNAMIC),
    )  # fmt: skip


def z_image() -> ZImagePipeline:
    words = qwen_tokenizer()
    transformer = ZImageTransformer2DModel(
        all_patch_size=(2,), all_f_patch_size=(1,), in_channels=8, dim=32, n_layers=2, n_refiner_layers=1, n_heads=2,
        n_kv_heads=2, norm_eps=1e-5, qk_norm=True, cap_feat_dim=16, rope_theta=256.0, t_scale=1000.0,
        axes_dims=[8, 4, 4], axes_lens=[256, 32, 32],
    )  # fmt: skip
    with torch.no_grad():
        transformer.x_pad_token.copy_(torch.ones_like(transformer.x_pad_token))
        transformer.cap_pad_token.copy_(torch.ones_like(transformer.cap_pad_token))
    config = Qwen3Config(
        vocab_size=len(words), hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=512,
    )  # fmt: skip
    return ZImagePipeline(
        vae=kl(8, shift=0.1), transformer=transformer, tokenizer=words, text_encoder=Qwen3Model(config),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )  # fmt: skip


def qwen_encoder(words: Any, **marks: int) -> Qwen2_5_VLForConditionalGeneration:
    """Reads text, and pictures where ``marks`` says which tokens stand for them."""
    text = {
        "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 2, "vocab_size": len(words), "max_position_embeddings": 512,
        "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e6},
    }  # fmt: skip
    vision = {
        "depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 16,
        "fullatt_block_indexes": [0],
    }  # fmt: skip
    return Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision, **marks))


def qwen_image() -> QwenImagePipeline:
    words = qwen_tokenizer()
    transformer = QwenImageTransformer2DModel(
        patch_size=2, in_channels=16, out_channels=4, num_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=16, guidance_embeds=False, axes_dims_rope=(8, 4, 4),
    )  # fmt: skip
    vae = AutoencoderKLQwenImage(
        base_dim=12, z_dim=4, dim_mult=[1, 2, 4], num_res_blocks=1, temperal_downsample=[False, True],
        latents_mean=[0.1, -0.2, 0.0, 0.3], latents_std=[1.0, 0.8, 1.2, 0.9],
    )  # fmt: skip
    return QwenImagePipeline(
        vae=vae, transformer=transformer, tokenizer=words, text_encoder=qwen_encoder(words),
        scheduler=FlowMatchEulerDiscreteScheduler(**DYNAMIC, shift_terminal=0.02),
    )  # fmt: skip


def aura_flow() -> AuraFlowPipeline:
    t5_words = t5_tokenizer()
    transformer = AuraFlowTransformer2DModel(
        sample_size=16, patch_size=2, in_channels=4, num_mmdit_layers=1, num_single_dit_layers=1,
        attention_head_dim=8, num_attention_heads=2, caption_projection_dim=16, joint_attention_dim=16,
        out_channels=4, pos_embed_max_size=256,
    )  # fmt: skip
    return AuraFlowPipeline(
        vae=kl(), transformer=transformer, tokenizer=t5_words, text_encoder=t5(t5_words),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.73),
    )  # fmt: skip


def cogview4() -> CogView4Pipeline:
    words = fast_tokenizer("[gMASK]", "<sop>")
    transformer = CogView4Transformer2DModel(
        patch_size=2, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=2,
        text_embed_dim=16, time_embed_dim=8, condition_dim=4, pos_embed_max_size=16, sample_size=8,
        rope_axes_dim=(16, 16),
    )  # fmt: skip
    config = GlmConfig(
        vocab_size=len(words), hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=512, pad_token_id=words.pad_token_id,
    )  # fmt: skip
    return CogView4Pipeline(
        vae=kl(), transformer=transformer, tokenizer=words, text_encoder=GlmModel(config),
        scheduler=FlowMatchEulerDiscreteScheduler(
            base_shift=0.25, max_shift=0.75, base_image_seq_len=256, use_dynamic_shifting=True, time_shift_type="linear"
        ),
    )  # fmt: skip


def hidream() -> HiDreamImagePipeline:
    tokenizer, t5_words, words = tiny_tokenizer(), t5_tokenizer(), fast_tokenizer("<|begin_of_text|>")
    tokenizer.model_max_length = 128
    transformer = HiDreamImageTransformer2DModel(
        patch_size=2, in_channels=4, out_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=8,
        num_attention_heads=2, caption_channels=[16, 16], text_emb_dim=32, axes_dims_rope=(4, 2, 2),
        max_resolution=(8, 8), llama_layers=[0, 1],
    )  # fmt: skip
    config = LlamaConfig(
        vocab_size=len(words), hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=512, attn_implementation="eager",
    )  # fmt: skip
    pipe = HiDreamImagePipeline(
        vae=kl(4, shift=0.1), transformer=transformer, tokenizer=tokenizer, tokenizer_2=tokenizer,
        tokenizer_3=t5_words, tokenizer_4=words, text_encoder=clip(tokenizer, projection=16),
        text_encoder_2=clip(tokenizer, projection=16), text_encoder_3=t5(t5_words),
        text_encoder_4=LlamaForCausalLM(config), scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )  # fmt: skip
    pipe.default_sample_size = 8  # all images have this area
    return pipe


def with_control(pipe: Any, cls: Any) -> Any:
    """The same pipeline, led by a ControlNet with weights of its own."""
    control = ControlNetModel.from_unet(pipe.unet, conditioning_embedding_out_channels=(8, 8, 16))
    with torch.no_grad():
        for layer in [*control.controlnet_down_blocks, control.controlnet_mid_block, control.controlnet_cond_embedding]:
            for weight in layer.parameters():
                weight.normal_(std=0.2)
    extra = {"requires_safety_checker": False} if "safety_checker" in pipe.components else {"add_watermarker": False}
    return cls(**pipe.components, controlnet=control, **extra)


def stable_diffusion_v() -> Any:
    """Predicts v."""
    pipe = tiny_pipeline("ddim")
    pipe.scheduler = DDIMScheduler(
        **NOISE, clip_sample=False, set_alpha_to_one=False, steps_offset=1, prediction_type="v_prediction"
    )
    return pipe


@dataclass(frozen=True)
class Row:
    """One family in the contract table.

    Attributes:
        build: makes the pipeline.
        options: of every call, beside the number of steps.
        guided: of calls with guidance.
        unguided: of calls without.
        passes: rows of the denoiser for one image with guidance.
    """

    build: Callable[[], Any]
    options: dict[str, Any] = field(default_factory=dict)
    guided: dict[str, Any] = field(default_factory=lambda: {"guidance_scale": 3.0, "negative_prompt": "cat"})
    unguided: dict[str, Any] = field(default_factory=lambda: {"guidance_scale": 1.0})
    passes: int = 2


CONTROL = {"image": Image.linear_gradient("L").resize((64, 64)).convert("RGB")}
SMALL = {"height": 32, "width": 32}
TRUE = {"true_cfg_scale": 3.0, "negative_prompt": "cat"}
FLUX2_OPTIONS = {**SMALL, "max_sequence_length": 24}
FAMILY_ROWS: dict[str, Row] = {
    "sd1": Row(lambda: tiny_pipeline("ddim")),
    "sd2-v": Row(stable_diffusion_v),
    "sd1-controlnet": Row(lambda: with_control(tiny_pipeline("ddim"), StableDiffusionControlNetPipeline), CONTROL),
    "sdxl": Row(sdxl),
    "sdxl-controlnet": Row(lambda: with_control(sdxl(), StableDiffusionXLControlNetPipeline), CONTROL),
    "sd3": Row(stable_diffusion_3, {"max_sequence_length": 8}),
    "flux": Row(flux, {**SMALL, "max_sequence_length": 8}, TRUE, {"guidance_scale": 2.5}),
    "flux2": Row(flux2, FLUX2_OPTIONS, {"guidance_scale": 3.0}, {"guidance_scale": 1.5}, passes=1),
    "flux2-klein": Row(flux2_klein, FLUX2_OPTIONS, {"guidance_scale": 3.0}),
    "chroma": Row(chroma, {**SMALL, "max_sequence_length": 8}),
    "pixart-sigma": Row(
        pixart_sigma, {"use_resolution_binning": False, "max_sequence_length": 8, "clean_caption": False}
    ),
    "pixart-alpha": Row(
        pixart_alpha,
        {**SMALL, "use_resolution_binning": False, "max_sequence_length": 8, "clean_caption": False},
    ),
    "sana": Row(
        sana,
        {**SMALL, "use_resolution_binning": False, "max_sequence_length": 8, "complex_human_instruction": ["be nice"]},
    ),
    "lumina2": Row(lumina2, {**SMALL, "max_sequence_length": 16, "system_prompt": "be"}),
    "z-image": Row(z_image, {**SMALL, "max_sequence_length": 64}, unguided={"guidance_scale": 0.0}),
    "qwen-image": Row(qwen_image, SMALL, TRUE, {}),
    "cogview4": Row(cogview4, SMALL),
    "hidream": Row(hidream, {**SMALL, "max_sequence_length": 16}),
    "aura-flow": Row(aura_flow, {**SMALL, "max_sequence_length": 8}),
}

if is_sentencepiece_available():
    FAMILY_ROWS["kolors"] = Row(kolors)


def family_pipeline(name: str, seed: int = 0) -> Any:
    """The tiny pipeline of a row; its weights depend on ``seed`` alone."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        pipe = FAMILY_ROWS[name].build()
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval().requires_grad_(False)
    pipe.set_progress_bar_config(disable=True)
    return pipe
