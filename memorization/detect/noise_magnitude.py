"""Magnitude of the text-conditional noise: a memorized caption steers the prediction harder than any other.

Wen et al., "Detecting, Explaining, and Mitigating Memorization in Diffusion Models", ICLR 2024 (arXiv 2407.21720),
section 3: along an ordinary guided generation take ``d_t = || eps(x_t, c) - eps(x_t, empty) ||_2`` over all elements
of a sample, and average over steps and generations.

Where we differ: the norms are taken in float32 from the very generation the audit makes anyway, so that they cost
nothing more; and no threshold is shipped, because norms grow with the latent's size, guidance and scheduler.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from memorization.detect.listening import Finish, GenerationDetector, heard_or_refused, require_guidance
from memorization.detect.probe import Batch, norms

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline, SchedulerMixin

    from memorization.generate import Sampling


def noise_magnitude(conditional: Tensor, unconditional: Tensor) -> Tensor:
    """L2 norm of the difference of two noise predictions, over all elements of a sample.

    Args:
        conditional: (B, ...) prediction for the caption.
        unconditional: (B, ...) prediction for the empty (or negative) caption at the same latents and timestep.

    Returns:
        (B,) float32, >= 0; higher = more likely memorized.
    """
    return norms(conditional.float() - unconditional.float())


def noise_per_prediction(scheduler: SchedulerMixin, timestep: Tensor) -> float:
    """What a difference of predictions must be multiplied by to be a difference of noise.

    1 for noise prediction; for velocity v = sqrt(abar) eps - sqrt(1 - abar) x0 at a fixed x_t it is sqrt(abar); for
    the prediction of x0 it is sqrt(abar / (1 - abar)).
    """
    kind = scheduler.config.prediction_type
    if kind == "epsilon":
        return 1.0
    abar = float(scheduler.alphas_cumprod[int(torch.as_tensor(timestep).flatten()[0].round())])
    signal: float = abar**0.5
    return signal if kind == "v_prediction" else signal / (1 - abar) ** 0.5


@contextmanager
def record_noise_differences(pipe: DiffusionPipeline) -> Iterator[list[Tensor]]:
    """Collect the noise difference of every denoiser call that the pipeline makes inside the ``with`` block.

    Only guided calls are recorded: an unguided one has no unconditional half. The stock pipelines of the Stable
    Diffusion family put the unconditional half first.

    Yields:
        A list that grows by one (B, C, h, w) float32 tensor per denoising step.
    """
    steps: list[Tensor] = []

    def keep(_module: torch.nn.Module, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
        if pipe.do_classifier_free_guidance:
            unconditional, conditional = output[0].float().chunk(2)
            steps.append((conditional - unconditional) * noise_per_prediction(pipe.scheduler, inputs[1]))

    handle = pipe.unet.register_forward_hook(keep)
    try:
        yield steps
    finally:
        handle.remove()


class NoiseMagnitude(GenerationDetector):
    """:func:`noise_magnitude` averaged over the first steps of a generation.

    Published settings: one step and one seed, five steps and 16 seeds, all steps and four seeds.

    Args:
        steps: denoising steps to average over, from the first; None takes all of them.
    """

    name = "noise_magnitude"

    @contextmanager
    def record(self, pipe: DiffusionPipeline) -> Iterator[list[Tensor]]:
        """Listen to the pipeline's own calls inside a ``with`` block; what was heard is there when it ends."""
        heard: list[Tensor] = []
        with record_noise_differences(pipe) as differences:
            yield heard
        heard.extend(norms(step) for step in differences)

    def score(self, recorded: list[Tensor]) -> Tensor | None:
        """(B,) scores of the samples of one pipeline call, higher = more likely memorized; None without guidance."""
        if not recorded:
            return None
        return torch.stack(recorded[: self.steps]).mean(0).cpu()

    @contextmanager
    def listen(
        self, pipe: DiffusionPipeline, batch: Batch, sampling: Sampling, ends: Sequence[int] | None
    ) -> Iterator[Finish]:
        """See :class:`memorization.detect.listening.GenerationDetector`."""
        require_guidance(self.name, sampling)
        with self.record(pipe) as heard:
            yield lambda _latents: heard_or_refused(self.name, self.score(heard))
