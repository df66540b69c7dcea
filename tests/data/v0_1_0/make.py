"""A command of diffkit 0.1.0, killed where KILL says: ``journal:2`` in the third line, ``NAME:2`` after file NAME.

``KILL=journal:2 python make.py audit --out audit-half ...``; without KILL the command runs to its end. ``tiny`` writes
the model of ``tiny/``. See README.md. Works with 0.1.0 only.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

NAMES = ("dog", "cat", "owl")


def tiny() -> None:
    """The smallest Stable Diffusion of random weights, whose whole denoiser can be kept as a delta."""
    import torch
    from diffusers import AutoencoderTiny, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    torch.manual_seed(0)
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[], model_max_length=16)
    text = CLIPTextConfig(
        vocab_size=len(words), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=16, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    unet = UNet2DConditionModel(
        sample_size=8, layers_per_block=1, block_out_channels=(4,), cross_attention_dim=16, attention_head_dim=2,
        down_block_types=("DownBlock2D",), mid_block_type=None, up_block_types=("CrossAttnUpBlock2D",),
        norm_num_groups=4,
    )  # fmt: skip
    blocks = {"encoder_block_out_channels": (4, 4, 4), "decoder_block_out_channels": (4, 4, 4)}
    vae = AutoencoderTiny(**blocks, num_encoder_blocks=(1, 1, 1), num_decoder_blocks=(1, 1, 1), scaling_factor=0.5)
    noise = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
    scheduler = DDIMScheduler(**noise, clip_sample=False)
    StableDiffusionPipeline(
        vae=vae, text_encoder=CLIPTextModel(text), tokenizer=tokenizer, unet=unet, scheduler=scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    ).save_pretrained("tiny")  # fmt: skip


def pictures() -> None:
    """Two suspects with pictures, a control, and ordinary captions for ``tiny/``."""
    import torch
    from PIL import Image

    folder = Path("suspects")
    folder.mkdir()
    pixels = torch.randint(0, 256, (3, 4, 4, 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    for number, picture in enumerate(pixels):
        Image.fromarray(picture.numpy()).resize((32, 32), Image.Resampling.NEAREST).save(folder / f"{number}.png")
    rows = [f'{{"id": "{name}", "caption": "a {name}", "image": "{i}.png"}}\n' for i, name in enumerate(NAMES)]
    (folder / "suspects.jsonl").write_text("".join(rows[:2]))
    (folder / "controls.jsonl").write_text(rows[2])
    (folder / "ordinary.txt").write_text("".join(f"a {letter} hut\n" for letter in "bcdefghijk"))


def kill(name: str, count: int) -> None:
    """End this process without goodbye inside the line after ``count``, or once the file is written so often."""
    from diffkit.runs.journal import Journal

    append: Callable[..., None] = Journal.append
    replace, seen = os.replace, [0]

    def appended(self: Journal, key: str, item: dict[str, Any]) -> None:
        if len(self.items) == count:
            self._file.write(f'{{"key": "{key}", "item": {{"'.encode())
            os._exit(137)
        append(self, key, item)

    def replaced(source: Any, target: Any) -> None:
        replace(source, target)
        seen[0] += Path(target).name == name
        if seen[0] == count:
            os._exit(137)

    if name == "journal":
        Journal.append = appended  # type: ignore[method-assign]
    else:
        os.replace = replaced  # type: ignore[assignment]


if __name__ == "__main__":
    sys.argv[0] = "diffkit"
    if sys.argv[1:] == ["tiny"]:
        tiny()
        pictures()
    else:
        if told := os.environ.get("KILL"):
            place, _, number = told.rpartition(":")
            kill(place, int(number))
        from diffkit.cli import main

        main()
