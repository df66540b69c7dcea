"""The lab's reward: trained on rendered scenes only, with dense labels and hard negatives.

Every step draws new arrangements of shapes and, for each, captions that are true, nearly true (relation flipped,
colours swapped, one word changed) or random. The label is the share of the caption that holds, known from how the
picture was made: no judge and no denoised image is ever seen. Two auxiliary tasks make relations learnable in
minutes: each patch tells what covers it, of which shape that is and where it lies (at first this alone is trained);
each noun attends to its thing's patches and tells where that is.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BlipTextConfig, BlipVisionConfig, CLIPTokenizer

from diffkit.lab import world
from diffkit.lab.train.denoiser import TEXT_LENGTH, new_tokenizer
from diffkit.lab.train.examples import (
    BACKGROUNDS,
    COLOURS,
    PATCH,
    SHAPES,
    Labels,
    Picture,
    label,
    patch_contents,
    sample_captions,
    sample_picture,
    soften,
)
from diffkit.lab.train.loop import train
from diffkit.lab.world import Scene
from diffkit.rewards.cross_attention import CrossAttentionReward, tokenize

WIDTH = 96
CAPTIONS = 4


def new_reward(tokenizer: CLIPTokenizer) -> CrossAttentionReward:
    """An untrained reward: four vision and three text layers of width 96."""
    # Weights of BLIP's usual deviation (0.02 for words, 1e-10 for the image) are far too small at this width.
    shape = {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_attention_heads": 4, "initializer_range": 0.08}
    vision = BlipVisionConfig(**shape, num_hidden_layers=4, image_size=world.SIZE, patch_size=PATCH)
    text = BlipTextConfig(
        **shape,
        vocab_size=len(tokenizer),
        num_hidden_layers=3,
        encoder_hidden_size=WIDTH,
        max_position_embeddings=TEXT_LENGTH,
        is_decoder=True,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CrossAttentionReward(vision, text)


class _Auxiliary(nn.Module):
    """The two helper tasks' heads; thrown away after training."""

    def __init__(self) -> None:
        super().__init__()
        self.contents = nn.Linear(WIDTH, len(COLOURS) + len(SHAPES) + len(BACKGROUNDS))
        self.shape = nn.Linear(WIDTH, len(SHAPES))
        self.where = nn.Linear(WIDTH, 2)  # a patch's own column and row
        self.noun = nn.Linear(WIDTH, 3)  # present, x, y
        self.word = nn.Linear(WIDTH, 1)  # does the relation, the background hold


def train_reward(
    folder: Path, *, sight_steps: int = 2000, steps: int = 1600, batch: int = 24, seed: int = 0
) -> CrossAttentionReward:
    """Train the reward, or load the finished one from ``folder/reward``."""
    target = folder / "reward"
    if (target / "model.safetensors").exists():
        return CrossAttentionReward.from_pretrained(target)[0]
    torch.manual_seed(seed)
    tokenizer = new_tokenizer()
    model, auxiliary = new_reward(tokenizer), _Auxiliary()

    def sight_at(step: int) -> Tensor:
        rng = np.random.default_rng((seed, 1, step))
        pictures = [sample_picture(rng) for _ in range(2 * batch)]
        return _sight_loss(auxiliary, model.encode_images(_render(pictures)), pictures)

    def loss_at(step: int) -> Tensor:
        rng = np.random.default_rng((seed, 2, step))
        pictures = [sample_picture(rng) for _ in range(batch)]
        captions = [sample_captions(picture, rng) for picture in pictures]
        return _loss(model, auxiliary, tokenizer, pictures, captions)

    models = {"reward": model, "auxiliary": auxiliary}
    rate = 1e-3
    train("sight", models=models, loss_at=sight_at, steps=sight_steps, learning_rate=rate, folder=folder, seed=seed)
    train("reward", models=models, loss_at=loss_at, steps=steps, learning_rate=rate, folder=folder, seed=seed)
    model.save_pretrained(target, tokenizer)
    return model.eval()


def _loss(
    model: CrossAttentionReward,
    auxiliary: _Auxiliary,
    tokenizer: CLIPTokenizer,
    pictures: list[Picture],
    captions: list[list[Scene]],
) -> Tensor:
    labels = [label(p, scene) for p, scenes in zip(pictures, captions, strict=True) for scene in scenes]
    flat = [scene for scenes in captions for scene in scenes]
    ids, mask = tokenize(tokenizer, [scene.caption for scene in flat])
    patches = model.encode_images(_render(pictures))
    repeated = patches.repeat_interleave(CAPTIONS, 0)
    read = model.text(ids, attention_mask=mask, encoder_hidden_states=repeated, output_attentions=True)
    states = read.last_hidden_state
    scores = model.head(states[:, 0]).squeeze(-1)
    parts = torch.tensor([item.parts for item in labels])
    places = torch.tensor([item.places for item in labels])
    rows = torch.arange(len(flat))
    subject, relation, other, background = _word_positions(flat)
    value = F.mse_loss(scores, parts.mean(1))
    sight = _sight_loss(auxiliary, patches, pictures)
    looks = torch.stack([read.cross_attentions[1][rows, :2, word, 1:] for word in (subject, other)], 1)
    attended = _attention_loss(looks, labels)
    nouns = torch.stack([auxiliary.noun(states[rows, subject]), auxiliary.noun(states[rows, other])], 1)
    present = F.mse_loss(nouns[..., 0], parts[:, :2])
    offset = (nouns[..., 1:] - places.view(-1, 2, 2)).square().sum(-1)
    where = (offset * (parts[:, :2] > 0)).mean()
    words = auxiliary.word(torch.stack([states[rows, relation], states[rows, background]], 1)).squeeze(-1)
    holds = F.mse_loss(words, parts[:, 2:])
    total: Tensor = 4 * value + sight + present + where + holds + 0.2 * attended
    return total


def _render(pictures: list[Picture]) -> Tensor:
    return soften(torch.stack([world.paint(*picture) for picture in pictures]))


def _sight_loss(auxiliary: _Auxiliary, patches: Tensor, pictures: list[Picture]) -> Tensor:
    """What covers each patch, of which shape the covering thing is, and where the patch lies."""
    states = patches[:, 1:]
    contents = torch.stack([patch_contents(picture) for picture in pictures])
    shapes = contents[..., len(COLOURS) : len(COLOURS) + len(SHAPES)]
    covered = shapes.sum(-1) > 0.2
    kind = F.cross_entropy(auxiliary.shape(states[covered]), shapes[covered].argmax(-1))
    axis = torch.linspace(-1, 1, world.SIZE // PATCH)
    column, row = torch.meshgrid(axis, axis, indexing="xy")
    place = (auxiliary.where(states) - torch.stack([column, row], -1).view(-1, 2)).square().mean()
    total: Tensor = 4 * F.mse_loss(auxiliary.contents(states), contents) + kind + place
    return total


def _attention_loss(looks: Tensor, labels: list[Labels]) -> Tensor:
    """Minus the log of the attention (N, 2 nouns, heads, patches) that falls on the named things that are drawn."""
    blank = torch.zeros(world.SIZE, world.SIZE)
    things = [placed for item in labels for placed in item.named]
    masks = torch.stack([world.cover(placed) if placed.radius else blank for placed in things])
    shares = F.avg_pool2d(masks[:, None], PATCH).flatten(1).view(len(labels), 2, 1, -1)
    mass = (looks * (shares > 0.2)).sum(-1)
    visible = (shares.amax(-1) > 0.2) & (torch.tensor([item.parts[:2] for item in labels]) > 0)[..., None]
    return -(mass.clamp(min=1e-6).log() * visible).mean()


def _word_positions(scenes: list[Scene]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Token positions (after the start token) of the subject's shape, relation, object's shape and background."""
    long = torch.tensor([len(scene.relation.split()) - 1 for scene in scenes])
    return torch.full_like(long, 3), torch.full_like(long, 4), 7 + long, 9 + long
