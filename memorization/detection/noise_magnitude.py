"""Magnitude of the text-conditional noise: a memorized caption steers the prediction harder than any other.

Wen et al., "Detecting, Explaining, and Mitigating Memorization in Diffusion Models", ICLR 2024 (arXiv 2407.21720),
section 3: along an ordinary guided generation take ``d_t = || eps(x_t, c) - eps(x_t, empty) ||_2`` over all elements
of a sample, and average over steps and generations.

Where we differ: the norms are taken in float32 from the very generation the audit makes anyway, so that they cost
nothing more; and no threshold is shipped, because norms grow with the latent's size, guidance and scheduler. Of a flow
model (``x_t = (1 - sigma) x + sigma eps``, output ``v = eps - x``) the noise difference ``(1 - sigma) (v_c - v_empty)``
is 0 at pure noise, so that there ``d_t = || v(x_t, c) - v(x_t, empty) ||_2``, which is what guidance adds to the step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from diffkit.families import pipe_denoiser
from diffkit.parameterization import noise_per_prediction
from diffkit.sampling_steps import before_steps
from memorization.detection.base import Need
from memorization.detection.denoiser_queries import Batch, norms
from memorization.detection.generation_detector import Finish, GenerationDetector, heard_or_refused, require_guidance

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from memorization.generation import Sampling


def noise_magnitude(conditional: Tensor, unconditional: Tensor) -> Tensor:
    """L2 norm of the difference of two noise predictions, over all elements of a sample.

    Args:
        conditional: (B, ...) prediction for the caption.
        unconditional: (B, ...) prediction for the empty (or negative) caption at the same latents and timestep.

    Returns:
        (B,) float32, >= 0; higher = more likely memorized.
    """
    return norms(conditional.float() - unconditional.float())


@contextmanager
def record_noise_differences(pipe: DiffusionPipeline) -> Iterator[list[Tensor]]:
    """Collect the noise difference of every denoising step that the pipeline makes inside the ``with`` block.

    Both predictions of a step are heard wherever the pipeline asks for them: as halves of one batch, or in two calls.
    Only guided steps are recorded: an unguided one has no second prediction. The sign of a difference is not told.

    Yields:
        A list that grows by one float32 tensor, shaped as the latents, per denoising step.
    """
    steps: list[Tensor] = []
    heard: list[Tensor] = []

    def keep(_module: torch.nn.Module, _inputs: object, output: tuple[Tensor, ...]) -> None:
        heard.append(output[0])

    def step(timestep: Tensor, latents: Tensor) -> None:
        both = _both(heard, latents)
        heard.clear()
        if both is not None:
            steps.append((both[1] - both[0]) * noise_per_prediction(pipe.scheduler, timestep))

    handle = pipe_denoiser(pipe).register_forward_hook(keep)
    try:
        with before_steps(pipe, step):
            yield steps
    finally:
        handle.remove()


def _both(heard: Sequence[Tensor | Sequence[Tensor]], sample: Tensor) -> tuple[Tensor, Tensor] | None:
    """The two predictions of a step, float32 and shaped as the latents; None where there is only one."""
    parts = [part if isinstance(part, Tensor) else torch.stack(list(part)) for part in heard]
    if not parts or sum(len(part) for part in parts) != 2 * len(sample):
        return None
    first, second = torch.cat(parts).float().chunk(2)
    channels = slice(sample.shape[1] if sample.ndim == 4 else None)  # what else a network predicts is no noise
    return first[:, channels].view_as(sample), second[:, channels].view_as(sample)


class NoiseMagnitude(GenerationDetector):
    """:func:`noise_magnitude` averaged over the first steps of a generation.

    Published settings: one step and one seed, five steps and 16 seeds, all steps and four seeds.

    Args:
        steps: denoising steps to average over, from the first; None takes all of them.
    """

    name = "noise_magnitude"
    needs: frozenset[Need] = frozenset({"trajectory", "unconditional"})

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
        """See :class:`memorization.detection.generation_detector.GenerationDetector`."""
        require_guidance(self.name, pipe, sampling)
        with self.record(pipe) as heard:
            yield lambda _latents: heard_or_refused(self.name, self.score(heard))
