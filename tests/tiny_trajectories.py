"""Trajectories in the collected layout, written by hand, with a tiny real reward that can learn from them."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tiny import LENGTH, tiny_tokenizer
from torch import Tensor
from transformers import BlipTextConfig, BlipVisionConfig

from diffkit.rewards.cross_attention import CrossAttentionReward
from diffkit.rewards.lab import LabReward
from ttsnap.trajectories.dataset import Trajectories, shard_name

SIDE, WIDTH = 16, 32
SIGMAS = (8.0, 4.0, 2.0, 1.0, 0.5)  # of five denoiser calls


def tiny_reward(folder: Path, seed: int = 0) -> LabReward:
    """The lab's reward class at a tiny size, random weights, its scores spread like a trained one's."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        tokenizer = tiny_tokenizer()
        shape = {"hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_attention_heads": 2, "num_hidden_layers": 1}
        vision = BlipVisionConfig(**shape, image_size=SIDE, patch_size=8, initializer_range=0.3)
        text = BlipTextConfig(
            **shape,
            vocab_size=len(tokenizer),
            encoder_hidden_size=WIDTH,
            max_position_embeddings=LENGTH,
            is_decoder=True,
            initializer_range=0.3,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        model = CrossAttentionReward(vision, text)
    model.save_pretrained(folder, tokenizer)
    return LabReward(folder)


def pixels(images: Tensor) -> Tensor:
    return (images * 255).round().to(torch.uint8)


def tiny_trajectories(
    folder: Path,
    reward: LabReward,
    *,
    prompts: int = 12,
    candidates: int = 4,
    sigmas: tuple[float, ...] = SIGMAS,
    seed: int = 3,
) -> Trajectories:
    """Flat pictures of random colours; the noisier an estimate, the more its colours are turned round and blurred.

    What an estimate shows determines the finished image, but the plain reward reads it wrongly: there is something to
    learn, and more of it the noisier the level.
    """
    generator = torch.Generator().manual_seed(seed)
    texts = [f"{'abcdefghijklmnopqrstuvwxyz'[index % 26]} dog" + " at" * (index // 26) for index in range(prompts)]
    (folder / "shards").mkdir(parents=True)
    for index, text in enumerate(texts):
        final = torch.rand(candidates, 3, 1, 1, generator=generator).expand(-1, -1, SIDE, SIDE)
        noise = torch.randn(candidates, len(sigmas), 3, SIDE, SIDE, generator=generator)
        turned = torch.tensor([sigma / (1 + sigma) for sigma in sigmas]).view(1, -1, 1, 1, 1)
        shown = (1 - turned) * final[:, None] + turned * (1 - final[:, None].roll(1, 2))
        previews = (shown + 0.02 * noise).clamp(0, 1)
        many = [text] * candidates
        looks = torch.stack([reward.score(previews[:, step], many) for step in range(len(sigmas))], 1)
        tensors = {
            "previews": pixels(previews),
            "final_images": pixels(final),
            f"rewards.{reward.name}": looks,
            f"finals.{reward.name}": reward.score(final, many),
            "seeds": torch.arange(candidates),
        }
        save_file({key: value.contiguous() for key, value in tensors.items()}, folder / shard_name(index))
    record = {
        "schema_version": 1,
        "kind": "trajectories",
        "config": {
            "prompts": texts,
            "record": list(range(len(sigmas))),
            "rewards": {reward.name: {"higher_is_better": True}},
            "candidates": candidates,
        },
        "config_hash": f"{prompts}x{candidates}",
        "provenance": {
            "sigmas": list(sigmas),
            "flop": {"call": 1.0, "decode": 1.0, "encode": 1.0, "verify": {reward.name: 1.0}},
        },
    }
    (folder / "run.json").write_text(json.dumps(record))
    lines = [json.dumps({"key": str(index), "item": {}}) + "\n" for index in range(prompts)]
    (folder / "journal.jsonl").write_text("".join(lines))
    return Trajectories.open(folder)
