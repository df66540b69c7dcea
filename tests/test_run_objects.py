"""Runs begun from Python go on with the same objects only: names do not tell pipelines, rewards and searches apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import EulerDiscreteScheduler
from tiny import tiny_pipeline
from torch import Tensor, nn

from diffkit import load_pipeline, load_reward
from diffkit.errors import InputError
from diffkit.rewards.identity import reward_identity
from ttsnap import CollectSettings, CompareSettings, collect, compare
from ttsnap.cli.checksums import checksum_of
from ttsnap.evaluation.contenders import PairedReward, read_contenders
from ttsnap.noise_aware.data import recorded_name
from ttsnap.schedules.pruning_schedule import PruningSchedule

PROMPTS = ["a dog", "a cat"]


class Brightness:
    """Scores by the mean of an image, and estimates by the same times a factor."""

    name, higher_is_better, range, flops_per_image = "brightness", True, (-1.0, 1.0), 1.0

    def score(self, images: Tensor, prompts: list[str]) -> Tensor:
        return images.flatten(1).mean(1)

    def score_estimates(self, images: Tensor, prompts: list[str], log_snr: float) -> Tensor:
        return self.score(images, prompts)


class Darkness(Brightness):
    def score_estimates(self, images: Tensor, prompts: list[str], log_snr: float) -> Tensor:
        return -self.score(images, prompts)


class Weighted(Brightness):
    def __init__(self, weight: float) -> None:
        self.network = nn.Linear(1, 1)
        nn.init.constant_(self.network.weight, weight)
        nn.init.zeros_(self.network.bias)


def compared(out: Path, aware: Any = None, searches: Any = "ttsnap", pipe: Any = None, **more: Any) -> None:
    settings = CompareSettings("2x", num_inference_steps=2)
    pipe = pipe or tiny_pipeline("ddim")
    reward = Brightness()
    compare(pipe, PROMPTS[:1], searches, settings, reward=reward, noise_aware=aware, schedule="0:0.5", out=out, **more)


def test_a_comparison_goes_on_with_the_same_objects_only(tmp_path: Path) -> None:
    out, other = tmp_path / "run", tiny_pipeline("ddim")
    compared(out, Brightness())
    compared(out, Brightness())
    other.scheduler = EulerDiscreteScheduler.from_config(other.scheduler.config)
    schedules = {"": PruningSchedule.parse("0:0.9")}
    for changed in (
        {"aware": Darkness()},
        {"aware": Brightness(), "pipe": other},
        {"aware": Brightness(), "searches": read_contenders("ttsnap", schedules=schedules)},
        {"aware": Brightness(), "preview_vae": tiny_pipeline().vae},
    ):
        with pytest.raises(InputError, match=r"holds another run: objects\."):
            compared(out, **changed)


def test_a_recording_goes_on_with_the_same_objects_only(tmp_path: Path) -> None:
    """Its noise levels stand once for the whole run."""
    pipe, settings = tiny_pipeline("ddim"), CollectSettings(candidates=2, num_inference_steps=2)
    collect(pipe, PROMPTS, Weighted(1.0), settings, out=tmp_path)
    collect(pipe, PROMPTS, Weighted(1.0), settings, out=tmp_path)
    with pytest.raises(InputError, match=r"objects\.rewards"):
        collect(pipe, PROMPTS, Weighted(2.0), settings, out=tmp_path)
    pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    with pytest.raises(InputError, match=r"objects\.pipeline\.scheduler"):
        collect(pipe, PROMPTS, Weighted(1.0), settings, out=tmp_path)


def test_the_identity_of_a_reward_is_that_of_its_parts() -> None:
    assert reward_identity(Weighted(1.0)) == reward_identity(Weighted(1.0)) != reward_identity(Weighted(2.0))
    pairs = [PairedReward(Brightness(), aware) for aware in (Brightness(), Darkness(), Weighted(1.0), Weighted(2.0))]
    assert len({str(reward_identity(pair)) for pair in pairs}) == 4


def test_every_folder_that_a_text_names_has_its_part_in_the_checksum(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights").write_text(name)
    one, two = (f"clip-score:{tmp_path / name}" for name in ("one", "two"))
    assert checksum_of("lab,clip-score") is None
    assert checksum_of(one) == checksum_of(tmp_path / "one") == checksum_of(f"lab,{one}:dtype=float16")
    assert len({checksum_of(one), checksum_of(two), checksum_of(f"{one},{two}")}) == 3


def test_a_reward_recorded_with_options_is_known_by_its_own_name(tmp_path: Path) -> None:
    text, settings = "lab:token_pruning=rank-0.5", CollectSettings(candidates=2, num_inference_steps=2)
    trajectories = collect(load_pipeline("lab", device="cpu"), PROMPTS[:1], [text], settings, out=tmp_path)
    assert recorded_name(trajectories, load_reward(text).name) == text == recorded_name(trajectories, text)
    with pytest.raises(InputError, match="not 'lab'; collect with that reward"):
        recorded_name(trajectories, "lab")
    assert torch.equal(trajectories[0].finals[text], trajectories[0].tensor(f"finals.{text}"))
