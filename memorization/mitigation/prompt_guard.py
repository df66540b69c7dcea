"""A guard at generation time: optimise the text embedding until its effect is that of an ordinary caption.

Wen et al., "Detecting, Explaining, and Mitigating Memorization in Diffusion Models", ICLR 2024 (arXiv 2407.21720),
section 4.2: at the first denoising step the embedding y is optimised by AdamW (rate 0.05, at most 10 steps, the first
token frozen) to lower ``|| eps(x_T, y) - eps(x_T, empty) ||`` to a target; the rest of the generation uses the result.

Where we differ from the authors' code: theirs takes one norm over the whole batch, so that the loss grows with the
number of images. Here every image has its own norm and target, and does not depend on the others of its batch.
The target is calibrated on ordinary captions, since norms depend on the latent's size and the scheduler.

A generation without guidance stays as it is, and so does a call of the denoiser outside of a stock pipeline's loop (a
loop of one's own, a detector's query). A loop that begins later, as image-to-image does, is softened at its own first
step; a candidate that a search resumes keeps what was found at its first step. A ControlNet reads the caption itself.

It needs guidance (the unconditional half) and changes no weight; anyone who holds the weights can remove it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from diffkit.conditioning import encode_prompts, initial_latents, predict_noise
from diffkit.errors import InputError
from diffkit.families import Family, family_of, pipe_denoiser
from diffkit.mitigation import Mitigation, Undo
from diffkit.parameterization import noise_per_prediction
from diffkit.sampling_steps import begin
from diffkit.seeds import generators
from memorization.detection.noise_magnitude import noise_magnitude
from memorization.mitigation import Method
from memorization.mitigation.pipeline_loop import Loop, SuspendedRows, running_loop
from memorization.mitigation.reference_captions import ordinary_captions, require_finite_predictions
from memorization.presets import recorded_preset

if TYPE_CHECKING:
    from diffkit.families import Pipeline
    from diffkit.runs import Run
    from diffkit.suspects import Suspect

__all__ = ["METHOD", "PromptGuardSettings", "apply_guard", "soften"]


@dataclass(frozen=True)
class PromptGuardSettings:
    """Settings of the guard.

    Attributes:
        target: norm of the noise difference at which an image's optimisation ends; None = the mean over
            ordinary captions.
        learning_rate: AdamW's; ``iterations``: at most so many steps.
        captions: text file of ordinary captions; None = those of the preset. ``calibration``: how many.
        steps: denoising steps of a generation, for the calibration's timestep; ``seed``: of its noise.
    """

    target: float | None = None
    learning_rate: float = 0.05
    iterations: int = 10
    captions: str | None = None
    calibration: int = 32
    steps: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the values."""
        if self.learning_rate <= 0 or min(self.iterations, self.calibration, self.steps) < 1:
            raise InputError("Expected a positive learning rate, and at least one iteration, caption and step.")
        if self.target is not None and self.target <= 0:
            raise InputError(f"Expected a positive target, got {self.target}.")


def soften(
    difference: Callable[[Tensor], Tensor],
    embeds: Tensor,
    *,
    target: float,
    learning_rate: float = 0.05,
    iterations: int = 10,
) -> Tensor:
    """Embeddings whose loss is at most ``target``, or the last ones; token 0 does not change.

    Args:
        difference: (B, L, D) -> (B,) loss, differentiable; a row's loss depends on that row alone.
        embeds: (B, L, D).

    Returns:
        (B, L, D) float32. A row is left as it is from the moment its loss is at most the target.
    """
    first = embeds[:, :1].float()
    rest = embeds[:, 1:].float().clone().requires_grad_(True)
    optimizer = torch.optim.AdamW([rest], lr=learning_rate, weight_decay=0.0)
    done = torch.zeros(len(embeds), dtype=torch.bool, device=embeds.device)
    for _ in range(iterations):
        with torch.enable_grad():
            loss = difference(torch.cat([first, rest], 1))
            (rest.grad,) = torch.autograd.grad(loss.sum(), [rest])
        done |= loss.detach() <= target
        if bool(done.all()):
            break
        kept = rest.detach().clone()
        optimizer.step()
        with torch.no_grad():
            rest[done] = kept[done]
    return torch.cat([first, rest.detach()], 1)


class _Softening:
    """The captions of the loop that is running, and what replaces them."""

    def __init__(self, target: float, settings: Mapping[str, Any]) -> None:
        self.target, self.settings = target, settings
        self.suspended = SuspendedRows()
        self._timesteps: Tensor | None = None
        self._original: Tensor | None = None
        self._softened: Tensor | None = None

    def __call__(self, module: torch.nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> Any:
        """A pre-hook of the denoiser: its arguments with the softened embeddings, or None = as they are.

        Raises:
            InputError: the pipeline's loop cannot be read.
        """
        loop = None if torch.is_grad_enabled() else running_loop(required=True)
        if loop is None:
            return None
        embeds = _embeddings(loop, named)
        guided = loop.is_guided(len(embeds))
        negative, positive = embeds.chunk(2) if guided else (embeds[:0], embeds)
        if self._timesteps is not loop.timesteps:
            self._timesteps, self._original, self._softened = loop.timesteps, None, None
        if self._original is None and guided:
            self._original = positive.clone()
            self._softened = self._first(loop, module, inputs, named)
        if self._original is None or self._softened is None or not torch.equal(positive, self._original):
            return None
        return inputs, {**named, "encoder_hidden_states": torch.cat([negative, self._softened])}

    def _first(self, loop: Loop, module: torch.nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> Tensor:
        """Softened embeddings at the first step of a loop: those of before, where it resumes a denoising."""
        captions = named["encoder_hidden_states"].chunk(2)[1]
        if loop.resumes:
            softened = self.suspended.recall(loop, captions)
        else:
            softened = _softened(loop, module, inputs, named, self.target, self.settings).to(captions)
        self.suspended.remember(loop, captions, softened)
        return softened


def _embeddings(loop: Loop, named: Mapping[str, Any]) -> Tensor:
    embeds = named.get("encoder_hidden_states")
    if not isinstance(embeds, Tensor):
        raise InputError(
            f"The prompt guard softens encoder_hidden_states, and the loop of {type(loop.pipe).__name__} gives its "
            f"denoiser no tensor of that name."
        )
    return embeds


def apply_guard(pipe: Pipeline, mitigation: Mitigation, only: str | None) -> Undo:
    """Optimise the embeddings at the first step of a guided generation, and use the result in the later steps.

    Raises:
        InputError: the family does not predict with and without the caption in one batch, or gives no gradient in the
            caption.
    """
    family = require_stacked_guidance(pipe)
    softening = _Softening(float(mitigation.figures["target"]), mitigation.settings)
    handle = getattr(pipe, family.denoiser).register_forward_pre_hook(softening, with_kwargs=True)
    return handle.remove  # type: ignore[no-any-return]


def require_stacked_guidance(pipe: Pipeline) -> Family:
    """The pipeline's family, if it guides by one batch of both predictions, with a gradient in the caption.

    Raises:
        InputError: it does not.
    """
    family = family_of(pipe)
    if not family.guidance_batched:
        raise InputError(f"The prompt guard works on both predictions of one batch; {family.name} makes no such batch.")
    if family.no_gradient is not None:
        raise InputError(f"The prompt guard cannot optimise captions of {family.name}: {family.no_gradient}.")
    return family


def _half(value: Any, rows: int, which: int) -> Any:
    """One half of the batch in every tensor that has ``rows`` rows; 0 = without the caption, 1 = with it.

    Lists, tuples and dictionaries of tensors are gone through: the residuals of a ControlNet, the image prompts of an
    IP-Adapter.
    """
    if isinstance(value, Tensor):
        return value.chunk(2)[which] if value.ndim and len(value) == rows else value
    if isinstance(value, dict):
        return {name: _half(part, rows, which) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)([_half(part, rows, which) for part in value])
    return value


def _softened(
    loop: Loop,
    denoiser: torch.nn.Module,
    inputs: tuple[Any, ...],
    named: Mapping[str, Any],
    target: float,
    settings: Mapping[str, Any],
) -> Tensor:
    """(n, L, D) softened embeddings of the conditional half of one guided call of the denoiser."""
    embeds = named["encoder_hidden_states"]
    timestep = torch.as_tensor(named["timestep"] if "timestep" in named else inputs[1])
    scale = noise_per_prediction(loop.pipe.scheduler, timestep)

    def predict(sequence: Tensor, half: int) -> Tensor:  # not by a call: hooks on the denoiser must not run
        rows = len(embeds)
        positional = [_half(value, rows, half) for value in inputs]
        others = {name: _half(value, rows, half) for name, value in named.items()}
        others |= {"encoder_hidden_states": sequence, "return_dict": False}
        output: Tensor = denoiser.forward(*positional, **others)[0]
        return output[:, : loop.latents.shape[1]]  # further channels (a learned variance) are no noise

    empty = predict(embeds.chunk(2)[0], 0)

    def difference(rows: Tensor) -> Tensor:
        return scale * noise_magnitude(predict(rows.to(embeds), 1), empty)

    return soften(
        difference,
        embeds.chunk(2)[1],
        target=target,
        learning_rate=settings["learning_rate"],
        iterations=settings["iterations"],
    )


@torch.no_grad()
def calibrate_guard_target(pipe: Pipeline, captions: Sequence[str], *, steps: int, seed: int) -> float:
    """Mean norm of the noise difference of ordinary captions at the first timestep, one noise each."""
    dtype = pipe_denoiser(pipe).dtype
    conditioning = encode_prompts(pipe, captions)
    magnitudes = []
    for index, generator in enumerate(generators(range(seed, seed + len(captions)))):
        noise = initial_latents(pipe, [generator], dtype=torch.float32).to(pipe.device, dtype)
        scaled, timestep = begin(pipe, noise, steps)
        row = conditioning.rows([index])
        assert row.negative is not None
        with_text = predict_noise(pipe, scaled, timestep, row.positive)
        magnitudes.append(noise_magnitude(with_text, predict_noise(pipe, scaled, timestep, row.negative)))
    return float(require_finite_predictions(torch.cat(magnitudes)).mean()) * noise_per_prediction(
        pipe.scheduler, timestep
    )


def mitigate(pipe: Pipeline, suspects: Sequence[Suspect], run: Run, settings: PromptGuardSettings) -> Mitigation:
    """A mitigation without tensors; the guard works for every caption, the suspects are only listed."""
    config = run.record["config"]
    require_stacked_guidance(pipe)
    target = settings.target
    if target is None:
        captions = ordinary_captions(settings.captions, preset=recorded_preset(run.record), n=settings.calibration)
        target = calibrate_guard_target(pipe, captions, steps=settings.steps, seed=settings.seed)
    return Mitigation(
        method="prompt-guard",
        kind="prompt-guard",
        model=config["model"],
        tensors={},
        model_sha256=config["model_sha256"],
        settings=asdict(settings),
        suspects=tuple(suspect.id for suspect in suspects),
        figures={"target": target},
    )


METHOD = Method(name="prompt-guard", kind="prompt-guard", settings=PromptGuardSettings, mitigate=mitigate)
