"""Magnitude of the text-conditional noise: it is larger for memorized captions.

Wen et al., "Detecting, Explaining, and Mitigating Memorization in Diffusion Models", ICLR 2024 (arXiv 2407.21720),
section 3: along an ordinary guided generation take ``d_t = || eps(x_t, c) - eps(x_t, empty) ||_2`` over all elements
of a sample, and average over steps and generations.

Where we differ: the norms are taken in float32 from the generation that the audit makes anyway, at no extra
cost; and no threshold is shipped, because norms grow with the latent's size, guidance and scheduler. Of a flow
model (``x_t = (1 - sigma) x + sigma eps``, output ``v = eps - x``) the noise difference ``(1 - sigma) (v_c - v_empty)``
is 0 at pure noise, so that there ``d_t = || v(x_t, c) - v(x_t, empty) ||_2``, which is what guidance adds to the step.
At the first step of a model of zero terminal SNR that predicts v, the outputs are compared as they are too.
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
from memorization.detection.denoiser_queries import DenoiserBatch, norms
from memorization.detection.generation_detector import Finish, GenerationDetector, require_guidance, require_scores

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

    Both predictions of a step are recorded, whether they are halves of one batch or two calls. Unguided steps are left
    out: they have no second prediction. The sign of a difference is arbitrary.

    Yields:
        A list that grows by one float32 tensor, shaped as the latents, per denoising step.
    """
    steps: list[Tensor] = []
    outputs: list[Tensor] = []

    def keep(_module: torch.nn.Module, _inputs: object, output: tuple[Tensor, ...]) -> None:
        outputs.append(output[0])

    def step(timestep: Tensor, latents: Tensor) -> None:
        both = _both(outputs, latents)
        outputs.clear()
        if both is not None:
            steps.append((both[1] - both[0]) * noise_per_prediction(pipe.scheduler, timestep))

    handle = pipe_denoiser(pipe).register_forward_hook(keep)
    try:
        with before_steps(pipe, step):
            yield steps
    finally:
        handle.remove()


def _both(outputs: Sequence[Tensor | Sequence[Tensor]], sample: Tensor) -> tuple[Tensor, Tensor] | None:
    """The two predictions of a step, float32 and shaped as the latents; None where there is only one."""
    parts = [part if isinstance(part, Tensor) else torch.stack(list(part)) for part in outputs]
    if not parts or sum(len(part) for part in parts) != 2 * len(sample):
        return None
    first, second = torch.cat(parts).float().chunk(2)
    channels = slice(
        sample.shape[1] if sample.ndim == 4 else None
    )  # further channels (a learned variance) are no noise
    return first[:, channels].view_as(sample), second[:, channels].view_as(sample)


class NoiseMagnitude(GenerationDetector):
    """:func:`noise_magnitude` averaged over the first steps of a generation.

    Published settings: one step and one seed, five steps and 16 seeds, all steps and four seeds.

    Args:
        steps: denoising steps to average over, from the first; None = all of them.
    """

    name = "noise_magnitude"
    needs: frozenset[Need] = frozenset({"trajectory", "unconditional"})

    @contextmanager
    def record(self, pipe: DiffusionPipeline) -> Iterator[list[Tensor]]:
        """Record the pipeline's own calls inside a ``with`` block; the list is filled when it ends."""
        magnitudes: list[Tensor] = []
        with record_noise_differences(pipe) as differences:
            yield magnitudes
        magnitudes.extend(norms(step) for step in differences)

    def score(self, recorded: list[Tensor]) -> Tensor | None:
        """(B,) scores of the samples of one pipeline call, higher = more likely memorized; None without guidance."""
        if not recorded:
            return None
        return torch.stack(recorded[: self.steps]).mean(0).cpu()

    @contextmanager
    def observe(
        self, pipe: DiffusionPipeline, batch: DenoiserBatch, sampling: Sampling, ends: Sequence[int] | None
    ) -> Iterator[Finish]:
        """See :class:`memorization.detection.generation_detector.GenerationDetector`."""
        require_guidance(self.name, pipe, sampling)
        with self.record(pipe) as magnitudes:
            yield lambda _latents: require_scores(self.name, self.score(magnitudes))
