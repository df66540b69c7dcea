"""The card: what the finished lab does, measured with n and intervals."""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy.stats import kendalltau
from torch import Tensor

from diffkit import stats
from diffkit.errors import InputError
from diffkit.images import load_image
from diffkit.lab import assets, judge, planted, trio, world
from diffkit.lab.train.examples import hard_negatives
from diffkit.latents import decode_latents, encode_images
from diffkit.rewards.base import Reward
from diffkit.rewards.lab import LabReward, LabTrioReward
from diffkit.suspects import Suspect, read_suspects

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

log = logging.getLogger(__name__)

#: Above this correlation with its original a generation counts as a replication on the card.
REPLICATED = 0.75
STEPS, GUIDANCE, SEEDS = 20, 3.0, 10


def correlation(images: Tensor, reference: Tensor) -> Tensor:
    """Pearson correlation of all pixels and channels: (B, 3, H, W) with (3, H, W) -> (B,) in [-1, 1]."""
    a = images.flatten(1) - images.flatten(1).mean(1, keepdim=True)
    b = (reference - reference.mean()).flatten()
    correlations: Tensor = (a @ b) / (a.norm(dim=1) * b.norm()).clamp(min=1e-8)
    return correlations


@torch.no_grad()
def generate(pipe: StableDiffusionPipeline, prompts: Sequence[str], seeds: Sequence[int], *, batch: int = 32) -> Tensor:
    """One image for each (prompt, seed) pair: (N, 3, 64, 64) in [0, 1]."""
    pipe.set_progress_bar_config(disable=True)
    images = []
    for start in range(0, len(prompts), batch):
        part = slice(start, start + batch)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds[part]]
        out = pipe(
            list(prompts[part]),
            num_inference_steps=STEPS,
            guidance_scale=GUIDANCE,
            generator=generators,
            output_type="pt",
        )
        images.append(out.images.float().cpu())
    return torch.cat(images)


def rate(hits: Sequence[bool]) -> dict[str, Any]:
    """Share of hits with n and its exact 95 % interval."""
    k, n = int(sum(hits)), len(hits)
    low, high = stats.clopper_pearson(k, n)
    return {"rate": k / n, "n": n, "low": low, "high": high}


def _mean(values: Sequence[float]) -> dict[str, Any]:
    low, high = stats.bootstrap_mean(values)
    return {"mean": float(np.mean(values)), "n": len(values), "low": low, "high": high}


def _similarities(pipe: StableDiffusionPipeline, suspects: Sequence[Suspect]) -> dict[str, Tensor]:
    """Correlation of 10 seeds' images from each caption with the suspect's own image."""
    prompts = [suspect.caption for suspect in suspects for _ in range(SEEDS)]
    images = generate(pipe, prompts, list(range(SEEDS)) * len(suspects))
    groups = zip(suspects, images.split(SEEDS), strict=True)
    return {suspect.id: correlation(group, load_image(suspect.images[0])) for suspect, group in groups}


def replication(pipe: StableDiffusionPipeline) -> dict[str, Any]:
    """Share of seeds on which a planted caption gives its image, by kind and strength, and the controls' figures."""
    suspects, _ = read_suspects("lab:planted")
    controls = [control for control in read_suspects("lab:controls")[0] if control.kind == "control"]
    strength = {photograph.name: photograph.strength for photograph in planted.PHOTOGRAPHS}
    similarities = _similarities(pipe, suspects)
    groups: dict[str, list[float]] = defaultdict(list)
    for suspect in suspects:
        groups[f"{suspect.kind}, {strength[suspect.images[0].stem]}"] += similarities[suspect.id].tolist()
    other = torch.cat(list(_similarities(pipe, controls).values()))
    return {
        "planted": {
            name: {**rate([v > REPLICATED for v in values]), "median": float(np.median(values))}
            for name, values in groups.items()
        },
        "controls": {
            **rate((other > REPLICATED).tolist()),
            "median": other.median().item(),
            "max": other.max().item(),
        },
        "by image": {key: float(values.median()) for key, values in similarities.items()},
    }


@torch.no_grad()
def autoencoder_limit(pipe: StableDiffusionPipeline) -> dict[str, Any]:
    """Correlation of photographs with their own reconstruction: the most that a generation can reach."""
    limits = {}
    for name in ("planted", "controls"):
        images = torch.stack([load_image(s.images[0]) for s in read_suspects(f"lab:{name}")[0]])
        decoded = decode_latents(pipe, encode_images(pipe, images))
        limits[name] = _mean([float(correlation(d[None], i)) for d, i in zip(decoded, images, strict=True)])
    return limits


def scenes(
    pipe: StableDiffusionPipeline, reward: Reward, captions: Sequence[str], *, seeds: int = 16
) -> dict[str, Any]:
    """Single-sample and best-of-16 accuracy by the mechanical judge, and the reward's agreement with it."""
    images = generate(pipe, [c for c in captions for _ in range(seeds)], list(range(seeds)) * len(captions))
    single, best, possible, tau = [], [], [], []
    for caption, group in zip(captions, images.split(seeds), strict=True):
        judged = [judge.check(image, caption) for image in group]
        scores = reward.score(group, [caption] * seeds)
        correct = [judgement.correct for judgement in judged]
        single.append(float(np.mean(correct)))
        best.append(correct[int(scores.argmax())])
        possible.append(any(correct))
        tau.append(float(kendalltau(scores.numpy(), [judgement.score for judgement in judged]).statistic))
    return {
        "single": _mean(single),
        "best of 16 by the reward": rate(best),
        "best of 16 by the judge": rate(possible),
        "reward tau with the judge": _mean([value for value in tau if np.isfinite(value)]),
    }


def scene_correct(images: Tensor, prompts: Sequence[str]) -> Tensor:
    """(B,) 1 where every part of a scene's caption holds by the mechanical judge, else 0; also serves as a reward."""
    judged = [judge.check(image, prompt).correct for image, prompt in zip(images, prompts, strict=True)]
    return torch.tensor(judged, dtype=torch.float32)


def scene_accuracy(pipe: StableDiffusionPipeline, n: int = 40, seeds: int = 4, *, seed: int = 5) -> Tensor:
    """(n, seeds) of 0 and 1: which images of held-out scenes are right; the same scenes and noise for every model.

    Args:
        n: held-out scenes, chosen by ``seed``.
        seeds: images of each, seeded 0, 1, ...
    """
    captions = [scene.caption for scene in world.held_out_scenes(n, seed=seed) for _ in range(seeds)]
    return scene_correct(generate(pipe, captions, list(range(seeds)) * n), captions).view(n, seeds)


def accuracy_change(before: Tensor, after: Tensor) -> dict[str, Any]:
    """Mean accuracy before, after, and the paired change, each with its bootstrap interval over scenes.

    Args:
        before: (n, seeds) of :func:`scene_accuracy`; ``after`` likewise, of the same scenes and seeds.

    Raises:
        InputError: the two are of other shapes.
    """
    if before.shape != after.shape:
        raise InputError(f"Expected the same scenes and seeds, got {tuple(before.shape)} and {tuple(after.shape)}.")
    old, new = before.double().mean(1), after.double().mean(1)
    return {"before": _mean(old.tolist()), "after": _mean(new.tolist()), "change": _mean((new - old).tolist())}


def reward_accuracy(reward: Reward, *, n: int = 400) -> dict[str, Any]:
    """How often a held-out scene's caption scores above the same caption with one thing made wrong."""
    held_out = world.held_out_scenes(n, seed=6)
    images = world.draw(held_out, seed=6)
    rng = np.random.default_rng(6)
    kinds: dict[str, list[bool]] = defaultdict(list)
    truth = reward.score(images, [scene.caption for scene in held_out])
    for scene, image, score in zip(held_out, images, truth, strict=True):
        for negative in hard_negatives(scene, rng):
            wrong = reward.score(image[None], [negative.caption])
            kinds[_difference(scene, negative)].append(bool(score > wrong[0]))
    everything = [hit for hits in kinds.values() for hit in hits]
    return {**{name: rate(hits) for name, hits in sorted(kinds.items())}, "all": rate(everything)}


def _difference(scene: world.Scene, other: world.Scene) -> str:
    if other.relation == world.OPPOSITE[scene.relation]:
        return "relation flipped"
    changed = sum(a != b for a, b in zip(scene.caption.split(), other.caption.split(), strict=False))
    return "colours swapped" if changed == 2 and scene.relation == other.relation else "one word changed"


def seconds_per_image(pipe: StableDiffusionPipeline, *, batch: int = 16) -> float:
    """Seconds for one 20-step guided image in a batch of 16, on this machine as it is."""
    captions = ["a red circle left of a blue square on gray"] * batch
    generate(pipe, captions[:1], [0])
    began = time.perf_counter()
    generate(pipe, captions, list(range(batch)))
    return (time.perf_counter() - began) / batch


def megabytes(folder: Path) -> float:
    """Size of a folder in MB (10^6 bytes); a file that models share by links counts once."""
    return sum(file.stat().st_size for file in {path.resolve() for path in folder.rglob("*") if path.is_file()}) / 1e6


def million_parameters(pipe: StableDiffusionPipeline) -> float:
    """Parameters of autoencoder, text encoder and denoiser together, in millions."""
    parts = (pipe.vae, pipe.text_encoder, pipe.unet)
    return int(sum(parameter.numel() for part in parts for parameter in part.parameters())) / 1e6


def measure_model(name: str, pipe: StableDiffusionPipeline, folder: Path) -> dict[str, Any]:
    """How well it draws 40 held-out scenes of its kind, by the judge and the reward of that kind, and its size."""
    draw, kind = (trio.held_out_trios, LabTrioReward) if name == assets.TRIO else (world.held_out_scenes, LabReward)
    return {
        "scenes": scenes(pipe, kind(folder / "reward"), [scene.caption for scene in draw(40, seed=5)]),
        "megabytes": megabytes(folder / name),
        "million parameters": million_parameters(pipe),
    }


def measure(models: dict[str, StableDiffusionPipeline], folder: Path) -> dict[str, Any]:
    """All figures of the card, for the models by name; ``folder`` holds them and the reward."""
    card: dict[str, Any] = {"settings": {"steps": STEPS, "guidance": GUIDANCE, "replicated above": REPLICATED}}
    for name, pipe in models.items():
        log.info("measuring %s", name)
        card[name] = {} if name == assets.TRIO else {"replication": replication(pipe)}
        card[name] |= measure_model(name, pipe, folder)
    card["autoencoder limit"] = autoencoder_limit(models["lab"])
    right = reward_accuracy(LabReward(folder / "reward"))
    card["reward"] = {"accuracy on hard negatives": right, "megabytes": megabytes(folder / "reward")}
    card["seconds per image"] = seconds_per_image(models["lab"])
    card["megabytes"] = megabytes(folder)
    return card
