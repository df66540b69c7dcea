"""The lab's reward: trained on rendered scenes only, with dense labels and hard negatives.

Every step draws new arrangements of shapes and, for each, captions that are true, nearly true (relation flipped,
colours swapped, one word changed) or random. The label is the share of the caption that holds, known from how the
picture was made: no judge and no denoised image is ever seen. Two auxiliary tasks make relations learnable in
minutes: each patch tells what covers it, of which shape that is and where it lies (at first this alone is trained);
each noun attends to its thing's patches and tells where that is.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BlipTextConfig, BlipVisionConfig, CLIPTokenizer

from diffkit.lab import world
from diffkit.lab.train.denoiser import TEXT_LENGTH, new_tokenizer
from diffkit.lab.train.loop import train
from diffkit.lab.world import Placed, Scene, Thing
from diffkit.rewards.cross_attention import CrossAttentionReward, tokenize

PATCH = 8
WIDTH = 96
CAPTIONS = 4
COLOURS, SHAPES, BACKGROUNDS = list(world.COLOURS), list(world.SHAPES), list(world.BACKGROUNDS)


class Picture(NamedTuple):
    """What a training image shows."""

    things: list[Placed]
    background: str


class Labels(NamedTuple):
    """What holds of a caption in a picture, each in [0, 1]; ``places`` are the named things' centres in [-1, 1]."""

    parts: tuple[float, float, float, float]  # subject, object, relation, background
    places: tuple[float, float, float, float]
    named: tuple[Placed, Placed]

    @property
    def score(self) -> float:
        """The graded share of the caption that holds."""
        return sum(self.parts) / 4


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


# ------------------------------------------------------------------------------------------ examples


def sample_picture(rng: np.random.Generator) -> Picture:
    """A scene's picture; sometimes with one thing left out or a third thing added, as weak samples have them."""
    scene = _training_scene(rng)
    things = world.arrange(scene, rng)
    event = rng.random()
    if event < 0.1:
        things = things[:1]
    elif event < 0.25:
        things = _add_third(things, rng)
    return Picture([things[i] for i in rng.permutation(len(things))], scene.background)


def _training_scene(rng: np.random.Generator) -> Scene:
    while True:
        scene = world.sample_scenes(1, seed=int(rng.integers(2**31)))[0]
        if not world.is_held_out(scene):
            return scene


def _add_third(things: list[Placed], rng: np.random.Generator) -> list[Placed]:
    thing = Thing(str(rng.choice(COLOURS)), str(rng.choice(SHAPES)))
    for _ in range(20):
        x, y, radius = rng.uniform((12, 12, 6), (52, 52, 11))
        extra = Placed(thing, float(x), float(y), float(radius))
        if all(np.hypot(extra.x - t.x, extra.y - t.y) > extra.radius + t.radius + 3 for t in things):
            return [*things, extra]
    return things


def true_caption(picture: Picture, rng: np.random.Generator) -> Scene:
    """A caption that holds: two of the things (one invented where there is only one) in their relation."""
    first, second = (picture.things * 2)[:2]
    step = (first.x - second.x, first.y - second.y)
    relation = max(world.RELATIONS, key=lambda name: np.dot(step, world.RELATIONS[name]))
    scene = Scene(first.thing, relation, second.thing, picture.background)
    return _change_word(scene, rng) if len(picture.things) == 1 else scene


def hard_negatives(scene: Scene, rng: np.random.Generator) -> list[Scene]:
    """Relation flipped, colours swapped, one word changed: each contradicts the scene wherever it can."""
    first, second = scene.subject, scene.object
    swapped = replace(scene, subject=Thing(second.colour, first.shape), object=Thing(first.colour, second.shape))
    flipped = replace(scene, relation=world.OPPOSITE[scene.relation])
    return [negative for negative in (flipped, swapped, _change_word(scene, rng)) if negative != scene]


def _other(options: list[str], than: str, rng: np.random.Generator) -> str:
    return str(rng.choice([option for option in options if option != than]))


def _change_word(scene: Scene, rng: np.random.Generator) -> Scene:
    first, second = scene.subject, scene.object
    changes = (
        lambda: replace(scene, subject=Thing(_other(COLOURS, first.colour, rng), first.shape)),
        lambda: replace(scene, subject=Thing(first.colour, _other(SHAPES, first.shape, rng))),
        lambda: replace(scene, object=Thing(_other(COLOURS, second.colour, rng), second.shape)),
        lambda: replace(scene, object=Thing(second.colour, _other(SHAPES, second.shape, rng))),
        lambda: replace(scene, relation=_other(list(world.RELATIONS), scene.relation, rng)),
        lambda: replace(scene, background=_other(BACKGROUNDS, scene.background, rng)),
    )
    return changes[rng.integers(len(changes))]()


def sample_captions(picture: Picture, rng: np.random.Generator) -> list[Scene]:
    """Four captions of a picture: true, two hard negatives, and a random one."""
    truth = true_caption(picture, rng)
    negatives = hard_negatives(truth, rng)
    chosen = [negatives[i] for i in rng.permutation(len(negatives))[:2]]
    chosen += [_change_word(truth, rng) for _ in range(2 - len(chosen))]
    return [truth, *chosen, _training_scene(rng)]


def label(picture: Picture, scene: Scene) -> Labels:
    """Compare a caption with what was drawn: the pairing of names and things that makes most of it true."""

    def likeness(placed: Placed, thing: Thing) -> float:
        return (placed.thing.colour == thing.colour) * (0.4 + 0.6 * (placed.thing.shape == thing.shape))

    missing = Placed(Thing("", ""), world.SIZE / 2, world.SIZE / 2, 0.0)
    choices = [*picture.things, missing]
    best, found, best_pair = -1.0, (0.0, 0.0, 0.0), (missing, missing)
    for a in choices:
        for b in choices:
            if a is b and a is not missing:
                continue
            first, second = likeness(a, scene.subject), likeness(b, scene.object)
            relation = _margin(a, b, scene.relation) if first and second else 0.0
            if first + second + relation > best:
                best, found, best_pair = first + second + relation, (first, second, relation), (a, b)
    x1, y1, x2, y2 = (2 * v / world.SIZE - 1 for p in best_pair for v in (p.x, p.y))
    return Labels((*found, float(picture.background == scene.background)), (x1, y1, x2, y2), best_pair)


def _margin(first: Placed, second: Placed, relation: str) -> float:
    step = np.array([first.x - second.x, first.y - second.y])
    cosine = step @ np.array(world.RELATIONS[relation]) / max(float(np.linalg.norm(step)), 1e-6)
    return float(np.clip((cosine - 0.55) / 0.3, 0, 1))


def patch_contents(picture: Picture) -> Tensor:
    """What covers each patch, as shares in [0, 1]: (64, 8 colours + 3 shapes + 4 backgrounds)."""
    maps = torch.zeros(len(COLOURS) + len(SHAPES) + len(BACKGROUNDS), world.SIZE, world.SIZE)
    free = torch.ones(world.SIZE, world.SIZE)
    for placed in picture.things:
        mask = world.cover(placed)
        maps[COLOURS.index(placed.thing.colour)] += mask
        maps[len(COLOURS) + SHAPES.index(placed.thing.shape)] += mask
        free = free * (1 - mask)
    maps[len(COLOURS) + len(SHAPES) + BACKGROUNDS.index(picture.background)] = free
    return F.avg_pool2d(maps.clamp(0, 1), PATCH).flatten(1).T


def soften(images: Tensor) -> Tensor:
    """Rendered images as a soft decoder or a fax would show them: random blur, contrast, tint and noise."""
    n = len(images)
    blurred = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="reflect"), 3, stride=1)
    blurred = torch.lerp(images, blurred, torch.rand(n, 1, 1, 1))
    contrast = 1 + 0.15 * torch.randn(n, 1, 1, 1)
    tint = 0.04 * torch.randn(n, 3, 1, 1)
    noise = 0.06 * torch.rand(n, 1, 1, 1) * torch.randn_like(images)
    return ((blurred - 0.5) * contrast + 0.5 + tint + noise).clamp(0, 1)


# ------------------------------------------------------------------------------------------ training


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
    """Minus the log of the attention (N, 2 nouns, heads, patches) that falls on the named things, where there."""
    blank = torch.zeros(world.SIZE, world.SIZE)
    things = [placed for item in labels for placed in item.named]
    masks = torch.stack([world.cover(placed) if placed.radius else blank for placed in things])
    shares = F.avg_pool2d(masks[:, None], PATCH).flatten(1).view(len(labels), 2, 1, -1)
    mass = (looks * (shares > 0.2)).sum(-1)
    there = (shares.amax(-1) > 0.2) & (torch.tensor([item.parts[:2] for item in labels]) > 0)[..., None]
    return -(mass.clamp(min=1e-6).log() * there).mean()


def _word_positions(scenes: list[Scene]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Token positions (after the start token) of the subject's shape, relation, object's shape and background."""
    long = torch.tensor([len(scene.relation.split()) - 1 for scene in scenes])
    return torch.full_like(long, 3), torch.full_like(long, 4), 7 + long, 9 + long
