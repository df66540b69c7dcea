"""A real Stable Diffusion pipeline with random weights, small enough to prove equalities on one core."""

from __future__ import annotations

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    DDIMScheduler,
    DDPMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    KDPM2AncestralDiscreteScheduler,
    KDPM2DiscreteScheduler,
    LCMScheduler,
    LMSDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    TCDScheduler,
    UNet2DConditionModel,
    UniPCMultistepScheduler,
)
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from transformers import CLIPConfig, CLIPImageProcessor, CLIPTextConfig, CLIPTextModel, CLIPTokenizer

WIDTH, LENGTH = 32, 16
NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SCHEDULERS = {
    "ddim": lambda: DDIMScheduler(**NOISE, clip_sample=False, set_alpha_to_one=False, steps_offset=1),
    "euler": lambda: EulerDiscreteScheduler(**NOISE),
    "euler-ancestral": lambda: EulerAncestralDiscreteScheduler(**NOISE),
    "dpm++": lambda: DPMSolverMultistepScheduler(**NOISE, solver_order=2),
    "dpm++karras": lambda: DPMSolverMultistepScheduler(**NOISE, solver_order=3, use_karras_sigmas=True),
    "dpm-sde": lambda: DPMSolverMultistepScheduler(**NOISE, algorithm_type="sde-dpmsolver++"),
    "unipc": lambda: UniPCMultistepScheduler(**NOISE, solver_order=3),
    "pndm": lambda: PNDMScheduler(**NOISE, skip_prk_steps=True, steps_offset=1),
    "pndm-prk": lambda: PNDMScheduler(**NOISE, skip_prk_steps=False, steps_offset=1),
    "ddpm": lambda: DDPMScheduler(**NOISE, clip_sample=False),
    "deis": lambda: DEISMultistepScheduler(**NOISE, solver_order=3, use_karras_sigmas=True),
    "dpm-singlestep": lambda: DPMSolverSinglestepScheduler(**NOISE, solver_order=3),
    "dpm-singlestep-sde": lambda: DPMSolverSinglestepScheduler(**NOISE, algorithm_type="sde-dpmsolver++"),
    "heun": lambda: HeunDiscreteScheduler(**NOISE),
    "kdpm2": lambda: KDPM2DiscreteScheduler(**NOISE),
    "kdpm2-ancestral": lambda: KDPM2AncestralDiscreteScheduler(**NOISE),
    "lcm": lambda: LCMScheduler(**NOISE),
    "lms": lambda: LMSDiscreteScheduler(**NOISE, use_karras_sigmas=True),
    "tcd": lambda: TCDScheduler(**NOISE),
}


def tiny_tokenizer() -> CLIPTokenizer:
    """Words of single letters and a few merges."""
    letters = [chr(code) for code in range(33, 127)]
    vocabulary = {token: index for index, token in enumerate([*letters, *(letter + "</w>" for letter in letters)])}
    merges = [("a", "t</w>"), ("d", "o"), ("do", "g</w>"), ("c", "at</w>")]
    for pair in merges:
        vocabulary.setdefault("".join(pair), len(vocabulary))
    for special in ("<|startoftext|>", "<|endoftext|>"):
        vocabulary[special] = len(vocabulary)
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=LENGTH)


def tiny_vae(kind: str = "tiny") -> AutoencoderTiny | AutoencoderKL:
    """Factor 4, 4 latent channels."""
    if kind == "kl":
        return AutoencoderKL(
            block_out_channels=(8, 8, 8),
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            latent_channels=4,
            norm_num_groups=4,
        ).eval()
    vae = AutoencoderTiny(
        encoder_block_out_channels=(8, 8, 8),
        decoder_block_out_channels=(8, 8, 8),
        num_encoder_blocks=(1, 1, 1),
        num_decoder_blocks=(1, 1, 1),
        scaling_factor=0.5,
    ).eval()
    last = vae.decoder.layers[-1]
    with torch.no_grad():  # untouched, random weights decode to a nearly uniform picture, which would hide differences
        last.weight.mul_(6)
        last.bias.fill_(0.5)
    return vae


def tiny_pipeline(scheduler: str = "ddim", seed: int = 0, vae: str = "tiny") -> StableDiffusionPipeline:
    """16x16 latents, 64x64 images, 16 tokens; random weights that depend on ``seed`` alone."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        tokenizer = tiny_tokenizer()
        text = CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=2 * WIDTH,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=LENGTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        unet = UNet2DConditionModel(
            sample_size=16,
            layers_per_block=1,
            block_out_channels=(16, 32),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=WIDTH,
            attention_head_dim=2,
            norm_num_groups=8,
        )
        pipe = StableDiffusionPipeline(
            vae=tiny_vae(vae),
            text_encoder=CLIPTextModel(text).eval(),
            tokenizer=tokenizer,
            unet=unet.eval(),
            scheduler=SCHEDULERS[scheduler](),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def tiny_checker(threshold: float) -> dict[str, object]:
    """A safety checker with random weights, and its feature extractor: it flags images nearer to its concept."""
    tower = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        checker = StableDiffusionSafetyChecker(
            CLIPConfig(
                vision_config={**tower, "projection_dim": 8, "image_size": 32, "patch_size": 16},
                text_config={**tower, "projection_dim": 8, "vocab_size": 64},
                projection_dim=8,
            )
        ).eval()
        with torch.no_grad():
            checker.concept_embeds.normal_()
            checker.special_care_embeds.normal_()
            checker.concept_embeds_weights.fill_(2.0)  # above any cosine
            checker.special_care_embeds_weights.fill_(2.0)
            checker.concept_embeds_weights[0] = threshold
    eyes = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    return {"safety_checker": checker, "feature_extractor": eyes}
