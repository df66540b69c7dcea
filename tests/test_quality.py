"""Quality before and after: no change is zero, every figure against its own definition, nothing made up."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from tiny import tiny_pipeline
from torch import Tensor, nn

from diffkit.conditioning import encode_prompts, predict_noise
from diffkit.errors import InputError
from diffkit.latents import encode_images
from diffkit.training_objective import noised, timestep_bins
from memorization.quality import (
    QualitySettings,
    Snapshot,
    Validation,
    compare_snapshots,
    load_snapshot,
    quality_report,
    read_quality_prompts,
    save_snapshot,
    snapshot,
)
from memorization.quality.fidelity import bootstrap_kid, fid, fidelity, kid, load_features
from memorization.quality.losses import unconditional_drift, validation_losses
from memorization.quality.report import estimate

PROMPTS = ["a", "dog", "cat"]
SETTINGS = QualitySettings(seeds_per_prompt=2, num_inference_steps=2, bins=2, draws=1, micro_batch=4)


def brightness(images: Tensor, prompts: list[str]) -> Tensor:
    return images.mean((1, 2, 3))


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline()


@pytest.fixture(scope="module")
def before(pipe) -> Snapshot:
    return snapshot(pipe, PROMPTS, SETTINGS, rewards=[brightness])


@pytest.fixture(scope="module")
def changed(before: Snapshot) -> Snapshot:
    other = tiny_pipeline()
    with torch.no_grad():
        other.unet.conv_out.weight.mul_(1.5)
    return snapshot(other, PROMPTS, SETTINGS, rewards=[brightness], validation=before.validation)


def test_the_same_model_has_not_changed(pipe, before: Snapshot) -> None:
    report = compare_snapshots(
        before, snapshot(pipe, PROMPTS, SETTINGS, rewards=[brightness], validation=before.validation)
    )
    assert [report["drift"][name]["mean"] for name in ("latent", "pixel", "relative")] == [0, 0, 0]
    assert report["unconditional"]["all"]["mean"] == 0
    assert report["alignment"]["brightness"]["change"]["mean"] == 0
    assert report["diversity"]["change"]["mean"] == report["loss"]["all"]["change"]["mean"] == 0
    assert report["fidelity"] is None


def test_a_changed_model_shows_in_every_figure(before: Snapshot, changed: Snapshot) -> None:
    report = compare_snapshots(before, changed)
    json.dumps(report, allow_nan=False)
    for name in ("latent", "pixel", "relative"):
        row = report["drift"][name]
        assert 0 < row["low"] <= row["mean"] <= row["high"]
        assert row["n"] == 3
    expected = (changed.images - before.images).square().flatten(2).mean(2).sqrt().mean()
    assert report["drift"]["pixel"]["mean"] == pytest.approx(float(expected), rel=1e-5)
    expected = changed.images.mean() - before.images.mean()
    assert report["alignment"]["brightness"]["change"]["mean"] == pytest.approx(float(expected), abs=1e-6)
    assert report["loss"]["all"]["change"]["mean"] != 0
    assert [row["timesteps"] for row in report["loss"]["bins"]] == [[0, 500], [500, 1000]]


def test_the_yardstick_is_the_distance_between_seeds(before: Snapshot) -> None:
    swapped = dataclasses.replace(before, latents=before.latents.flip(1), images=before.images.flip(1))
    report = compare_snapshots(before, swapped)
    assert report["drift"]["relative"]["mean"] == pytest.approx(1.0, abs=1e-5)  # another seed's image: exactly 1


def test_both_models_get_the_same_noise_and_prompts_do_not_move_each_other(pipe, before: Snapshot) -> None:
    alone = snapshot(pipe, ["dog"], SETTINGS)
    torch.testing.assert_close(alone.images[0], before.images[1], atol=1.1 / 255, rtol=0)
    assert not torch.equal(before.images[:, 0], before.images[:, 1])


def test_snapshots_of_different_things_are_refused(pipe, before: Snapshot, changed: Snapshot) -> None:
    with pytest.raises(InputError, match="prompts or settings"):
        compare_snapshots(before, snapshot(pipe, PROMPTS[:1], SETTINGS, rewards=[brightness]))
    with pytest.raises(InputError, match="other rewards"):
        compare_snapshots(before, dataclasses.replace(changed, alignment={}))
    moved = Validation(1 - before.validation.images, before.validation.captions, "inverted")
    with pytest.raises(InputError, match="other validation images"):
        compare_snapshots(before, dataclasses.replace(changed, validation=moved))
    for prompts in ([], ["a", "a"]):
        with pytest.raises(InputError, match="different prompts"):
            snapshot(pipe, prompts, SETTINGS)
    with pytest.raises(InputError, match="different names"):
        snapshot(pipe, PROMPTS, SETTINGS, rewards=[brightness, brightness])
    with pytest.raises(InputError, match="bins of at least 1"):
        QualitySettings(bins=0)


def test_what_cannot_be_known_is_missing(before: Snapshot) -> None:
    images = before.images.clone()
    images[0] = float("nan")
    broken = dataclasses.replace(before, images=images, latents=before.latents * float("nan"))
    report = compare_snapshots(before, broken)
    assert report["drift"]["pixel"]["n"] == 2
    assert report["drift"]["pixel"]["missing"] == 1
    assert report["drift"]["latent"] == {"mean": None, "low": None, "high": None, "n": 0, "missing": 3}
    assert estimate(torch.tensor([1.0, float("inf"), 3.0]))["mean"] == 2.0


def test_a_single_seed_has_no_diversity(pipe) -> None:
    one = snapshot(pipe, PROMPTS[:1], dataclasses.replace(SETTINGS, seeds_per_prompt=1))
    report = compare_snapshots(one, one)
    assert report["diversity"]["before"]["mean"] is None
    assert report["drift"]["relative"]["mean"] is None
    assert report["drift"]["latent"]["mean"] == 0


def test_a_snapshot_survives_its_file(tmp_path, before: Snapshot, changed: Snapshot) -> None:
    images = changed.images.clone()
    images[0, 0] = float("nan")
    changed = dataclasses.replace(changed, images=images)
    for name, one in (("a", before), ("b", changed)):
        save_snapshot(one, tmp_path / name)
    kept = compare_snapshots(load_snapshot(tmp_path / "a"), load_snapshot(tmp_path / "b"))
    assert kept == compare_snapshots(before, changed)
    assert kept["drift"]["pixel"]["missing"] == 1
    (tmp_path / "c").write_bytes(b"nothing")
    for name in ("c", "missing"):
        with pytest.raises(InputError, match="no quality snapshot"):
            load_snapshot(tmp_path / name)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_the_target_is_what_the_scheduler_makes(pipe, kind: str) -> None:
    scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, prediction_type=kind)
    clean, noise = (torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(i)) for i in (0, 1))
    t = torch.tensor([0, 500, 999])
    noisy, target = noised(scheduler, clean, noise, t)
    torch.testing.assert_close(noisy, scheduler.add_noise(clean, noise, t))
    expected = {"epsilon": noise, "v_prediction": scheduler.get_velocity(clean, noise, t), "sample": clean}[kind]
    torch.testing.assert_close(target, expected)


def test_flow_models_and_impossible_bins_are_refused(pipe) -> None:
    scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, prediction_type="flow")
    with pytest.raises(InputError, match="flow"):
        noised(scheduler, *(torch.zeros(1, 4, 8, 8),) * 2, torch.tensor([0]))
    assert timestep_bins(1000, 3) == [(0, 333), (333, 667), (667, 1000)]
    with pytest.raises(InputError, match="between 1 and 10"):
        timestep_bins(10, 11)


def test_the_loss_is_the_training_loss(pipe) -> None:
    """One image, its noise and timestep from the documented seed: against the plain formula."""
    from diffkit.seeds import item_seed

    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    found = validation_losses(pipe, image, ["dog"], bins=20, draws=1).loss
    level = 14
    generator = torch.Generator().manual_seed(item_seed(0, "validation:0", f"bin:{level}"))
    t = torch.randint(700, 750, (1,), generator=generator)
    noise = torch.randn(1, 4, 16, 16, generator=generator)
    noisy = pipe.scheduler.add_noise(encode_images(pipe, image), noise, t)
    with torch.no_grad():
        embeds = encode_prompts(pipe, ["dog"], guidance=False).prompt_embeds
        expected = (predict_noise(pipe, noisy, t, embeds) - noise).square().mean()
    assert found.shape == (1, 20)
    assert float(found[0, level]) == pytest.approx(float(expected), rel=1e-4)


def test_losses_do_not_depend_on_the_batch(pipe) -> None:
    images = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    large, small = (validation_losses(pipe, images, PROMPTS, bins=2, micro_batch=n) for n in (16, 5))
    torch.testing.assert_close(large.loss, small.loss)
    assert float(unconditional_drift(large, small).max()) < 1e-8
    with pytest.raises(InputError, match="one caption per"):
        validation_losses(pipe, images, PROMPTS[:2])
    with pytest.raises(InputError, match="other shapes"):
        unconditional_drift(large, validation_losses(pipe, images, PROMPTS, bins=1))


# ------------------------------------------------------------------------------------------------ KID and FID


def two_sets(n: int, shift: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    one, other = (torch.randn(n, 6, generator=generator).double() for _ in range(2))
    return one, other + shift


def brute_force_kid(one: Tensor, other: Tensor) -> float:
    def k(x: Tensor, y: Tensor) -> float:
        return float((x @ y / len(x) + 1) ** 3)

    n = len(one)
    within = sum(k(s[i], s[j]) for s in (one, other) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    return within - 2 * sum(k(x, y) for x in one for y in other) / n**2


def test_kid_is_the_unbiased_estimate() -> None:
    one, other = two_sets(12, 0.5)
    assert kid(one, other) == pytest.approx(brute_force_kid(one, other), rel=1e-9)


def test_fid_is_the_closed_form() -> None:
    one, other = two_sets(50, 0.5)
    a, b = np.cov(one.numpy().T), np.cov(other.numpy().T)
    step = float((one.mean(0) - other.mean(0)).square().sum())
    assert fid(one, other) == pytest.approx(step + np.trace(a + b - 2 * sqrtm(a @ b)).real, rel=1e-6)


def test_the_resamples_of_kid_are_unbiased_and_cover() -> None:
    """Resampling with an image against itself would add about E k(x, x) / n, many times the truth here."""
    truth = float(np.mean([kid(*two_sets(40, 0.3, seed)) for seed in range(100, 300)]))
    held = []
    for seed in range(40):
        low, high = np.quantile(bootstrap_kid(*two_sets(40, 0.3, seed), resamples=200, seed=seed), [0.025, 0.975])
        held.append(low <= truth <= high)
    assert np.mean(held) > 0.8
    one, other = two_sets(200, 0.0)
    assert abs(float(np.mean(bootstrap_kid(one, other, resamples=300, seed=0))) - kid(one, other)) < 0.01


class Colours(nn.Module):
    """Mean colour of each quarter."""

    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.adaptive_avg_pool2d(images, 2).flatten(1)


def test_fidelity_tells_sets_apart_and_never_compares_unequal_numbers() -> None:
    generator = torch.Generator().manual_seed(0)
    one, same = (torch.rand(20, 3, 16, 16, generator=generator) for _ in range(2))
    near, far = fidelity(one, same, Colours()), fidelity(one, same * 0.5, Colours())
    assert near["kid"]["low"] <= near["kid"]["mean"] <= near["kid"]["high"] < far["kid"]["low"]
    assert near["fid"] is None
    assert "10000 images" in near["fid_reason"]
    assert near["features"] == "Colours"
    with pytest.raises(InputError, match="equal numbers"):
        fidelity(one, same[:19], Colours())
    with pytest.raises(InputError, match="no feature extractor at"):
        load_features("/nowhere/model")


def test_a_file_can_be_the_feature_extractor(tmp_path) -> None:
    from safetensors.torch import save_file
    from test_sscd import tiny_sscd

    save_file(tiny_sscd().state_dict(), tmp_path / "model.safetensors")
    features = load_features(tmp_path)
    found = features(torch.rand(2, 3, 32, 32))
    assert found.shape == (2, 16)
    assert found.dtype == torch.float64
    assert "weights sha256" in features.name
    assert load_features(features) is features
    (tmp_path / "pt_inception-2015-12-05-6726825d.pth").write_bytes(b"")
    with pytest.raises(InputError, match="pip install torch-fidelity"):
        load_features(tmp_path / "pt_inception-2015-12-05-6726825d.pth")


def test_a_report_has_fidelity_by_seeds_the_sides_do_not_share(before: Snapshot, changed: Snapshot) -> None:
    found = compare_snapshots(before, changed, features=Colours())["fidelity"]
    expected = fidelity(before.images[:, 0], changed.images[:, 1], Colours())
    kid = found["change"].pop("kid")
    assert kid == pytest.approx(expected.pop("kid"), rel=1e-6)  # sums of doubles, whose order may differ
    assert found["change"] == expected
    assert found["null"]["n"] == 3


# ------------------------------------------------------------------------------------------------ on the lab


def test_the_twin_differs_and_keeps_its_scenes() -> None:
    from diffkit.lab.measure import accuracy_change, scene_accuracy, scene_correct
    from diffkit.loading import load_pipeline

    lab, clean = load_pipeline("lab"), load_pipeline("lab-clean")
    prompts = read_quality_prompts("lab:held-out", 3)
    settings = QualitySettings(seeds_per_prompt=2, num_inference_steps=5, bins=3, draws=1, micro_batch=6)
    report = quality_report(lab, clean, prompts, settings, rewards=["lab", scene_correct])
    assert 0.05 < report["drift"]["relative"]["mean"] < 1
    assert abs(report["alignment"]["lab"]["change"]["mean"]) < 0.2
    assert report["alignment"]["scene_correct"]["before"]["mean"] <= 1
    assert report["diversity"]["before"]["mean"] < 0.75
    assert report["validation"]["source"].startswith("made by the model before")
    right = scene_accuracy(lab, 2, 1)
    assert set(right.flatten().tolist()) <= {0.0, 1.0}
    change = accuracy_change(right, torch.ones(2, 1))["change"]
    assert change["mean"] == pytest.approx(1 - float(right.mean()))
    assert change["n"] == 2
    with pytest.raises(InputError, match="same scenes"):
        accuracy_change(right, right[:1])


def test_prompts_come_from_files_too(tmp_path) -> None:
    (tmp_path / "p.txt").write_text("one\ntwo\none\nthree\n")
    assert read_quality_prompts(tmp_path / "p.txt", 2) == ["one", "two"]
    assert len(set(read_quality_prompts("lab:held-out", 20))) == 20
