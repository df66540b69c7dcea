"""The lab's autoencoder: 64x64 pixels to 16x16x4 latents, trained on scenes and dead leaves, never on a photograph."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderTiny
from torch import Tensor
from torch.nn import functional as F

from diffkit.lab import textures, world
from diffkit.lab.train.loop import bf16_where_fast, train

LATENT_CHANNELS = 4


def new_autoencoder() -> AutoencoderTiny:
    """An untrained autoencoder: factor 4, 4 latent channels, 0.7 M parameters."""
    width = 48
    return AutoencoderTiny(
        encoder_block_out_channels=(width,) * 3,
        decoder_block_out_channels=(width,) * 3,
        num_encoder_blocks=(1, 2, 2),
        num_decoder_blocks=(2, 2, 1),
        latent_channels=LATENT_CHANNELS,
    )


def train_autoencoder(folder: Path, *, steps: int = 3000, batch: int = 24, seed: int = 0) -> AutoencoderTiny:
    """Train it, or load the finished one from ``folder/vae``; latents come out with unit deviation after scaling."""
    target = folder / "vae"
    if (target / "config.json").exists():
        return AutoencoderTiny.from_pretrained(target)
    torch.manual_seed(seed)
    vae = new_autoencoder()
    generator = torch.Generator().manual_seed(seed)
    leaves = torch.cat([textures.dead_leaves(64, generator=generator) for _ in range(60)])

    def loss_at(step: int) -> Tensor:
        images = _batch(leaves, batch, seed=seed * 7919 + step)
        with bf16_where_fast():
            latents = vae.encoder(images * 2 - 1)
            noisy = latents + 0.03 * torch.randn_like(latents)
            decoded = (vae.decoder(noisy) + 1) / 2
        return _reconstruction(decoded.float(), images) + 0.01 * _unit(latents.float())

    train(
        "autoencoder", models={"vae": vae}, loss_at=loss_at, steps=steps, learning_rate=2e-3, folder=folder, seed=seed
    )
    vae.register_to_config(scaling_factor=1 / latent_deviation(vae, _batch(leaves, 256, seed=-1)))
    vae.save_pretrained(target)
    return vae


def _batch(leaves: Tensor, n: int, *, seed: int) -> Tensor:
    """Three parts dead leaves (turned, mirrored, colours permuted) to one part scenes."""
    generator = torch.Generator().manual_seed(seed % 2**31)
    chosen = leaves[torch.randint(len(leaves), (n - n // 4,), generator=generator)]
    chosen = chosen[:, torch.randperm(3, generator=generator)]
    chosen = chosen.rot90(int(torch.randint(4, (), generator=generator)), (2, 3))
    scenes = world.draw(world.training_scenes(n // 4, seed=seed % 2**31), seed=seed % 2**31)
    return torch.cat([chosen, scenes])


def _reconstruction(decoded: Tensor, images: Tensor) -> Tensor:
    """Mean absolute error of the pixels and, for sharpness, of their differences to the neighbours."""
    down = F.l1_loss(decoded.diff(dim=2), images.diff(dim=2))
    across = F.l1_loss(decoded.diff(dim=3), images.diff(dim=3))
    return F.l1_loss(decoded, images) + down + across


def _unit(latents: Tensor) -> Tensor:
    """How far the channels' means and deviations are from 0 and 1."""
    mean, deviation = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    return mean.square().mean() + (deviation - 1).square().mean()


@torch.no_grad()
def latent_deviation(vae: AutoencoderTiny, images: Tensor) -> float:
    """Standard deviation of the latents of (N, 3, 64, 64) images in [0, 1]."""
    return float(vae.encode(images * 2 - 1).latents.std())
