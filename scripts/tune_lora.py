"""Tune a LoRA on a few pictures until it holds them, and keep checkpoints, as diffusers' training scripts name them.

    python scripts/tune_lora.py --base lab-clean --out runs/tuned [--updates 2000] [--keep 5]

The pictures are the eight photographs that were planted in ``lab`` at full strength; ``lab-clean`` never saw them.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from measure_mitigations import full_strength
from peft import LoraConfig, get_peft_model_state_dict
from torch.nn import functional as F

from diffkit.console import progress
from diffkit.images import load_image
from diffkit.latents import encode_images
from diffkit.loading import load_pipeline
from diffkit.lora import USUAL
from diffkit.suspects import Suspect
from diffkit.training_objective import draw_timesteps, noised
from memorization.text_embeddings import encoded

TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2")
RANK, LEARNING_RATE, SEED = 32, 1e-3, 0


def kept_updates(updates: int, keep: int) -> list[int]:
    """After which updates a checkpoint is kept: the last, and each half of the next.

    >>> kept_updates(2000, 5)
    [125, 250, 500, 1000, 2000]
    """
    return sorted({max(1, updates >> halvings) for halvings in range(keep)})


def tune(base: str, pictures: Sequence[Suspect], out: Path, *, updates: int, keep: int, device: str) -> list[Path]:
    """Tune a LoRA on all pictures at once, each update with other noise; finished checkpoints are not made again.

    Returns:
        The checkpoints' folders, rising.
    """
    folders = {update: out / f"checkpoint-{update}" for update in kept_updates(updates, keep)}
    if all((folder / USUAL).is_file() for folder in folders.values()):
        return list(folders.values())
    pipe = load_pipeline(base, dtype="float32", device=device)
    with torch.no_grad():
        latents = encode_images(pipe, torch.stack([load_image(picture.images[0]) for picture in pictures]))
        texts = encoded(pipe, [picture.caption for picture in pictures]).prompt_embeds
    torch.manual_seed(SEED)  # of the adapter's first factors
    pipe.unet.requires_grad_(False)
    pipe.unet.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=list(TARGETS)))
    weights = [weight for weight in pipe.unet.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=LEARNING_RATE)
    draw = torch.Generator().manual_seed(SEED)
    with progress(f"tuning a LoRA on {len(pictures)} pictures", total=updates) as bar:
        for update in range(1, updates + 1):
            noise = torch.randn(latents.shape, generator=draw).to(latents)
            timesteps = draw_timesteps(pipe.scheduler, len(latents), draw).to(latents.device)
            noisy, target = noised(pipe.scheduler, latents, noise, timesteps)
            output = pipe.unet(noisy, timesteps, encoder_hidden_states=texts).sample
            optimizer.zero_grad()
            F.mse_loss(output, target).backward()
            optimizer.step()
            if update in folders:
                pipe.save_lora_weights(folders[update], unet_lora_layers=get_peft_model_state_dict(pipe.unet))
            bar.advance()
    return list(folders.values())


def main() -> None:
    """Parse and tune."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="lab-clean")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--updates", type=int, default=2000)
    parser.add_argument("--keep", type=int, default=5)
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    for folder in tune(options.base, full_strength(), options.out, updates=options.updates, keep=options.keep,
                       device=options.device):  # fmt: skip
        print(folder)


if __name__ == "__main__":
    main()
