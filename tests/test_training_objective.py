"""What a denoiser is trained on: against diffusers' own noising, and formulas by hand."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from tiny import NOISE

from diffkit.noise_levels import noise_levels
from diffkit.parameterization import PURE_NOISE, predicted_x0
from diffkit.training_objective import draw_timesteps, noised

CLEAN, NOISY = torch.randn(3, 4, 5, 5, generator=torch.Generator().manual_seed(0)), torch.randn(3, 4, 5, 5)
PACKED = CLEAN.flatten(2).transpose(1, 2)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_noising_is_the_schedulers_and_its_target_gives_x0_back(shift):
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    timesteps = scheduler.timesteps[[10, 500, 999]]
    for clean in (CLEAN, PACKED):
        noise = torch.randn(clean.shape)
        noisy, target = noised(scheduler, clean, noise, timesteps)
        for row in range(3):
            theirs = scheduler.scale_noise(clean[row : row + 1], timesteps[row : row + 1], noise[row : row + 1])
            torch.testing.assert_close(noisy[row : row + 1], theirs)
            back = predicted_x0(scheduler, target[row], noisy[row], timesteps[row])
            torch.testing.assert_close(back, clean[row], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_diffusion_targets_give_x0_back(kind):
    scheduler = DDIMScheduler(**NOISE, prediction_type=kind)
    timesteps = torch.tensor([5, 400, 800])
    noisy, target = noised(scheduler, CLEAN, NOISY, timesteps)
    torch.testing.assert_close(noisy, scheduler.add_noise(CLEAN, NOISY, timesteps))
    for row in range(3):
        back = predicted_x0(scheduler, target[row], noisy[row], timesteps[row])
        torch.testing.assert_close(back, CLEAN[row], rtol=1e-3, atol=1e-3)


def test_timesteps_of_training():
    """Esser et al. 2024: the median of a logit-normal noise level is 1/2, and shifted by 3 it is 3/4."""
    generator = torch.Generator().manual_seed(0)
    for shift, median in ((1.0, 500), (3.0, 750)):
        drawn = draw_timesteps(FlowMatchEulerDiscreteScheduler(shift=shift), 20_000, generator)
        assert drawn.median() == pytest.approx(median, abs=8)
        assert 0 < drawn.min() < drawn.max() < 1000
    dynamic = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    assert draw_timesteps(dynamic, 20_000, generator).median() == pytest.approx(500, abs=8)
    uniform = draw_timesteps(DDIMScheduler(**NOISE), 20_000, generator)
    assert uniform.dtype == torch.long
    assert uniform.float().mean() == pytest.approx(499.5, abs=8)


def test_noise_levels_of_a_flow_are_noise_over_signal():
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(sigmas=[1.0, 0.75, 0.5, 0.25])
    assert noise_levels(scheduler) == pytest.approx([PURE_NOISE, 3.0, 1.0, 1 / 3])
