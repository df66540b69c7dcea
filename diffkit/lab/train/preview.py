"""The lab's preview decoder: the autoencoder's own encoder with a far cheaper decoder, taught to mimic the full one.

Its inputs in a search are estimates of clean latents in mid-denoising, so that is what it is taught on: one-step
estimates of noised scenes at every noise level, beside the scenes' own latents.
"""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from diffusers import AutoencoderTiny, StableDiffusionPipeline
from torch import Tensor
from torch.nn import functional as F

from diffkit.lab.train.denoiser import Examples
from diffkit.lab.train.loop import bf16_where_fast, train
from diffkit.parameterization import predicted_x0

WIDTH = 16


def new_preview(vae: AutoencoderTiny) -> AutoencoderTiny:
    """``vae`` with its encoder and scaling, and an untrained narrow decoder."""
    preview = AutoencoderTiny(
        encoder_block_out_channels=vae.config.encoder_block_out_channels,
        num_encoder_blocks=vae.config.num_encoder_blocks,
        decoder_block_out_channels=(WIDTH,) * 3,
        num_decoder_blocks=(1, 1, 1),
        latent_channels=vae.config.latent_channels,
        scaling_factor=vae.config.scaling_factor,
    )
    preview.encoder.load_state_dict(vae.encoder.state_dict())
    return preview


@torch.no_grad()
def estimates(pipe: StableDiffusionPipeline, examples: Examples, *, seed: int) -> Tensor:
    """One-step estimates of the clean latents, in the autoencoder's own scale, of latents noised to random levels.

    Args:
        examples: N scaled latents and their token ids.

    Returns:
        (N, 4, 16, 16).
    """
    generator = torch.Generator().manual_seed(seed)
    x0 = []
    for latents, ids in zip(examples.latents.split(64), examples.ids.split(64), strict=True):
        noise = torch.randn(latents.shape, generator=generator)
        timesteps = torch.randint(pipe.scheduler.config.num_train_timesteps, (len(latents),), generator=generator)
        noisy = pipe.scheduler.add_noise(latents, noise, timesteps)
        with bf16_where_fast():
            velocity = pipe.unet(noisy, timesteps, pipe.text_encoder(ids)[0]).sample.float()
        x0.append(predicted_x0(pipe.scheduler, velocity, noisy, timesteps))
    unscaled: Tensor = torch.cat(x0) / pipe.vae.config.scaling_factor
    return unscaled


def train_preview(
    folder: Path, pipe: StableDiffusionPipeline, scenes: Examples, *, steps: int = 1000, batch: int = 24, seed: int = 0
) -> AutoencoderTiny:
    """Train it, or load the finished one from ``folder/preview``."""
    target = folder / "preview"
    if (target / "config.json").exists():
        return AutoencoderTiny.from_pretrained(target)
    torch.manual_seed(seed)
    preview = new_preview(pipe.vae)
    chosen = Examples(scenes.latents[:2000], scenes.ids[:2000])
    clean = chosen.latents / pipe.vae.config.scaling_factor
    inputs = torch.cat([estimates(pipe, chosen, seed=seed), clean])
    with torch.no_grad(), bf16_where_fast():
        targets = torch.cat([pipe.vae.decoder(part).clamp(-1, 1).bfloat16() for part in inputs.split(64)])

    def loss_at(step: int) -> Tensor:
        drawn = torch.randint(len(inputs), (batch,))
        with bf16_where_fast():
            shown = preview.decoder(inputs[drawn])
        return F.l1_loss(shown.float(), targets[drawn].float())

    models = {"decoder": preview.decoder}
    train("preview", models=models, loss_at=loss_at, steps=steps, learning_rate=3e-3, folder=folder, seed=seed)
    copy.deepcopy(preview).half().save_pretrained(target)
    return preview
