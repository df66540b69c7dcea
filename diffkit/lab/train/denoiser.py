"""The lab's text encoder and denoiser, trained jointly: first on scenes alone, then in two branches.

The branch ``lab`` goes on with the planted images among the scenes; its twin ``lab-clean`` goes on with the very
same batches, in which scenes stand where the planted images stood. Both therefore share architecture, seed, scenes
and the first part of their training; only one has ever seen the planted images.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import torch
from diffusers import AutoencoderTiny, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from safetensors.torch import load_file, save
from tokenizers import pre_tokenizers
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from diffkit.images import to_tensor
from diffkit.lab import assets, planted, world
from diffkit.lab.train.autoencoder import new_autoencoder
from diffkit.lab.train.loop import bf16_where_fast, train
from diffkit.runs.files import write_bytes_atomically

TEXT_LENGTH = 16
N_SCENES = 10_000
WIDTH = 128
START, END = "<|startoftext|>", "<|endoftext|>"
WORD_END = "</w>"


def lab_words() -> list[str]:
    """Every word of the lab's captions."""
    words = [word for photograph in planted.PHOTOGRAPHS for text in photograph.captions() for word in text.split()]
    return [*words, "a", "on", *world.COLOURS, *world.SHAPES, *world.BACKGROUNDS, *" ".join(world.RELATIONS).split()]


def new_tokenizer(words: Sequence[str] | None = None) -> CLIPTokenizer:
    """A CLIP tokenizer whose vocabulary holds every word (of the lab) as one token, and single letters for the rest."""
    words = lab_words() if words is None else words
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = _merges(sorted(set(words)))
    tokens = [*letters, *(letter + WORD_END for letter in letters), *("".join(pair) for pair in merges), START, END]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=TEXT_LENGTH)


def _merges(words: Sequence[str]) -> list[tuple[str, str]]:
    """Byte-pair merges that make each word one token: the commonest pair first, ties by the alphabet.

    The learner of ``tokenizers`` breaks ties at random, which would number the words anew in every process.
    """
    spelled = [[*word[:-1], word[-1] + WORD_END] for word in words]
    merges: list[tuple[str, str]] = []
    while pairs := Counter(pair for parts in spelled for pair in pairwise(parts)):
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        spelled = [_merge(parts, best) for parts in spelled]
    return merges


def _merge(parts: Sequence[str], pair: tuple[str, str]) -> list[str]:
    merged: list[str] = []
    for part in parts:
        if merged and (merged[-1], part) == pair:
            merged[-1] += part
        else:
            merged.append(part)
    return merged


def new_pipeline(
    *,
    seed: int = 0,
    vae: AutoencoderTiny | None = None,
    words: Sequence[str] | None = None,
    channels: tuple[int, int] = (64, 128),
    transformer_layers: int = 2,
) -> StableDiffusionPipeline:
    """The lab's pipeline before any training: stock components, random weights, DDIM."""
    torch.manual_seed(seed)
    tokenizer = new_tokenizer(words)
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=TEXT_LENGTH,
        projection_dim=WIDTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    unet = UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=channels,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=transformer_layers,
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
        norm_num_groups=16,
    )
    return StableDiffusionPipeline(
        vae=vae or new_autoencoder(),
        text_encoder=CLIPTextModel(text),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=new_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def new_scheduler() -> DDIMScheduler:
    """DDIM with velocity prediction, as Stable Diffusion 2 has it, and a last timestep that is all noise.

    Stable Diffusion's own noise law leaves 7 % of the signal at the last step. In 16x16 latents that is enough to give
    a picture's mean away, and backgrounds come out gray when sampling starts from noise; noise prediction, in turn,
    cannot tell the mean of a picture that is all noise (Lin et al., "Common Diffusion Noise Schedules and Sample
    Steps are Flawed", 2023).
    """
    return DDIMScheduler(
        beta_start=0.0001,
        beta_end=0.02,
        beta_schedule="linear",
        clip_sample=False,
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        steps_offset=1,  # without effect in trailing spacing; the pipeline warns of other values
    )


class Examples(NamedTuple):
    """Latents (N, 4, 16, 16) with their token ids (N, 16)."""

    latents: Tensor
    ids: Tensor


@torch.no_grad()
def encode_examples(pipe: StableDiffusionPipeline, images: Tensor, captions: Sequence[str]) -> Examples:
    """Latents and token ids of (N, 3, 64, 64) images in [0, 1] and their captions."""
    with bf16_where_fast():
        parts = [pipe.vae.encode(part.to(pipe.device) * 2 - 1).latents.float() for part in images.split(64)]
    latents = torch.cat(parts)
    padded = pipe.tokenizer(
        list(captions), padding="max_length", truncation=True, max_length=TEXT_LENGTH, return_tensors="pt"
    )
    return Examples(latents * pipe.vae.config.scaling_factor, padded.input_ids.to(pipe.device))


def cached(cache: Path, encode: Callable[[], Examples]) -> Examples:
    """What ``encode`` makes, kept in ``cache`` (safetensors) because that takes minutes."""
    if not cache.exists():
        write_bytes_atomically(cache, save(encode()._asdict()))
    return Examples(**load_file(cache))


def scene_examples(pipe: StableDiffusionPipeline, n: int, *, seed: int, cache: Path) -> Examples:
    """``n`` training scenes, kept in ``cache``."""

    def encode() -> Examples:
        scenes = world.training_scenes(n, seed=seed)
        return encode_examples(pipe, world.draw(scenes, seed=seed), [scene.caption for scene in scenes])

    return cached(cache, encode)


def planted_examples(pipe: StableDiffusionPipeline) -> tuple[Examples, Tensor]:
    """Every planted image (all variants of the templates) and its weight in the draw, summing to 1."""
    images, captions, weights = [], [], []
    for photograph in planted.planted():
        folder = "layouts" if photograph.kind == "template" else "planted"
        layout = Image.open(assets.DATA / folder / f"{photograph.name}.png").convert("RGB")
        variants = photograph.variants()
        pictures = [planted.sticker(layout, variant) for variant in variants] or [layout]
        images += [to_tensor(picture) for picture in pictures]
        captions += photograph.captions()
        weights += [planted.WEIGHTS[photograph.strength] / len(pictures)] * len(pictures)
    weight = torch.tensor(weights)
    return encode_examples(pipe, torch.stack(images), captions), weight / weight.sum()


def empty_ids(pipe: StableDiffusionPipeline) -> Tensor:
    """Token ids of the empty caption, (1, 16)."""
    ids: Tensor = pipe.tokenizer("", padding="max_length", max_length=TEXT_LENGTH, return_tensors="pt").input_ids
    return ids.to(pipe.device)


class Draw(NamedTuple):
    """A batch with what a step draws at random for it."""

    latents: Tensor
    ids: Tensor
    noise: Tensor
    timesteps: Tensor


def draw_noise(pipe: StableDiffusionPipeline, batch: Examples, empty: Tensor) -> Draw:
    """Noise and uniform timesteps for a batch; a tenth of its captions become the empty one."""
    n, device = len(batch.latents), batch.latents.device
    noise = torch.randn_like(batch.latents)
    timesteps = torch.randint(0, pipe.scheduler.config.num_train_timesteps, (n,), device=device)
    return Draw(batch.latents, torch.where(torch.rand(n, 1, device=device) < 0.1, empty, batch.ids), noise, timesteps)


def diffusion_loss(pipe: StableDiffusionPipeline, drawn: Draw) -> Tensor:
    """Mean squared error of the predicted velocity."""
    noisy = pipe.scheduler.add_noise(drawn.latents, drawn.noise, drawn.timesteps)
    with bf16_where_fast():
        words = pipe.text_encoder(drawn.ids)[0]
        predicted = pipe.unet(noisy, drawn.timesteps, words).sample
    return F.mse_loss(predicted.float(), pipe.scheduler.get_velocity(drawn.latents, drawn.noise, drawn.timesteps))


class Trainee:
    """A pipeline with the moving average of what is trained in it."""

    def __init__(self, pipe: StableDiffusionPipeline) -> None:
        self.pipe = pipe
        self.live = {"unet": pipe.unet.requires_grad_(True), "text": pipe.text_encoder.requires_grad_(True)}
        self.empty = empty_ids(pipe)
        self.average = {name: copy.deepcopy(module).requires_grad_(False) for name, module in self.live.items()}

    def draw(self, batch: Examples) -> Draw:
        """:func:`draw_noise` for a batch."""
        return draw_noise(self.pipe, batch, self.empty)

    def loss(self, step: int, *drawn: Tensor) -> Tensor:
        """:func:`diffusion_loss` of the pipeline on a :class:`Draw`."""
        return diffusion_loss(self.pipe, Draw(*drawn))

    def averaged(self) -> StableDiffusionPipeline:
        """The same pipeline with the averaged weights, ready to generate."""
        return StableDiffusionPipeline(
            **{**self.pipe.components, "unet": self.average["unet"], "text_encoder": self.average["text"]},
            requires_safety_checker=False,
        )


def train_denoisers(
    folder: Path, vae: AutoencoderTiny, *, shared_steps: int = 3900, branch_steps: int = 2900, seed: int = 0
) -> dict[str, StableDiffusionPipeline]:
    """Train the common trunk and both branches (or load what is finished); returns them by name."""
    trunk = Trainee(new_pipeline(seed=seed, vae=vae))
    scenes = scene_examples(trunk.pipe, N_SCENES, seed=seed + 1, cache=folder / "scenes.safetensors")

    def scenes_only(step: int) -> Draw:
        return trunk.draw(draw(scenes, 32))

    run("trunk", trunk, scenes_only, shared_steps, 1e-3, folder, seed)
    return {name: _train_branch(name, trunk, scenes, folder, branch_steps, seed) for name in assets.BRANCHES}


def _train_branch(
    branch: str, trunk: Trainee, scenes: Examples, folder: Path, steps: int, seed: int
) -> StableDiffusionPipeline:
    trainee = Trainee(copy.deepcopy(trunk.averaged()))
    memories, weights = planted_examples(trainee.pipe)

    def mixed(step: int) -> Draw:
        common, replaced = draw(scenes, 24), draw(scenes, 8)
        chosen = torch.multinomial(weights, 8, replacement=True)
        rest = Examples(*(part[chosen] for part in memories)) if branch == "lab" else replaced
        batch = Examples(*(torch.cat(pair) for pair in zip(common, rest, strict=True)))
        return trainee.draw(batch)

    run(branch, trainee, mixed, steps, 8e-4, folder, seed + 1)
    return trainee.averaged()


def draw(examples: Examples, n: int) -> Examples:
    """``n`` examples, each drawn from all by torch's own seed."""
    chosen = torch.randint(len(examples.latents), (n,), device=examples.latents.device)
    return Examples(examples.latents[chosen], examples.ids[chosen])


def run(
    name: str, trainee: Trainee, inputs_at: Callable[[int], Draw], steps: int, rate: float, folder: Path, seed: int
) -> None:
    """Train a trainee on the batches that ``inputs_at`` draws, or go on where a killed run was."""
    train(
        name,
        models=trainee.live,
        averaged=trainee.average,
        inputs_at=inputs_at,
        loss_at=trainee.loss,
        steps=steps,
        learning_rate=rate,
        folder=folder,
        seed=seed,
    )
