"""The steps of a denoising: calls of the denoiser by number, the noise level of each, and where it can be cut."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from diffkit.custom_steps import step_settings, steps_in_words
from diffkit.errors import InputError
from diffkit.families import Pipeline, any_family_of, as_size
from diffkit.noise_levels import blind_steps, noise_levels, refuse_division_by_zero
from diffkit.prepared_again import skipped_calls
from diffkit.scheduler_window import scheduler_copy
from diffkit.solvers import SOLVERS, cut_refusal
from diffkit.step_caches import step_cache
from diffkit.step_noise import refuse_unseeded_noise

__all__ = ["Plan", "check_pipeline", "plan", "scheduled", "whole_only"]


@dataclass(frozen=True)
class Plan:
    """The steps of one denoising: ``calls`` denoiser calls, and the noise level that goes into each (see solvers).

    After ``blind`` steps there is no estimate of the clean latents: the model predicts epsilon at pure noise. ``uncut``
    says why it cannot be cut at all, None where it can; of a scheduler that is not known the noise levels are NaN.
    ``noisy``: it ends before the latents are clean (SDXL's ``denoising_end``).
    """

    calls: int
    sigmas: tuple[float, ...]
    blind: tuple[int, ...] = ()
    uncut: str | None = None
    noisy: bool = False

    def check_looks(self, steps: Iterable[int]) -> None:
        """Refuse to look at estimates after blind steps, and anything but whole images where it cannot be cut.

        Raises:
            InputError: one of ``steps`` is blind, or there are steps and the denoising cannot be cut.
        """
        looks = set(steps)
        if looks and self.uncut is not None:
            raise InputError(self.uncut)
        refused = sorted(looks & set(self.blind))
        if refused:
            raise InputError(
                f"There is no estimate to look at after step {refused[0]}: it begins from pure noise (zero terminal "
                f"SNR), where predicted epsilon says nothing of the image; look after step {max(self.blind) + 1} or "
                f"later."
            )


def check_pipeline(
    pipe: Pipeline, extra: Mapping[str, object] | None = None, size: tuple[int, int] | None = None
) -> None:
    """Whether the pipeline's denoising can be run here, whatever its scheduler.

    Args:
        extra: further keyword arguments of the pipeline.
        size: (height, width) in pixels; the model's own when None.

    Raises:
        InputError: unknown family, or something that it cannot carry.
    """
    if type(pipe.vae).__name__ == "ConsistencyDecoderVAE":
        raise InputError(
            "A ConsistencyDecoderVAE draws noise while it decodes, which no seed of an image draws again; use the "
            "pipeline with its own autoencoder."
        )
    family = any_family_of(pipe)
    reason = family.refusals(pipe, extra or {}, family.default_size(pipe) if size is None else as_size(size))
    if reason is not None:
        raise InputError(f"The denoising of this {type(pipe).__name__} cannot be cut: {reason}.")


def whole_only(pipe: Pipeline, extra: Mapping[str, object] | None) -> str | None:
    """Why a denoising cannot be suspended, a sentence; None where it can."""
    if (reason := any_family_of(pipe).whole_only(pipe, extra or {})) is not None:
        return f"The denoising of this {type(pipe).__name__} cannot be cut: {reason}, or give schedule=''."
    return cut_refusal(pipe.scheduler) or step_cache(pipe)


def plan(
    pipe: Pipeline,
    num_inference_steps: int,
    size: tuple[int, int] | None = None,
    extra: Mapping[str, object] | None = None,
    *,
    unseeded: bool = False,
) -> Plan:
    """The steps that ``num_inference_steps`` means for the pipeline's scheduler, which is left as it was.

    Args:
        size: (height, width) in pixels, on which the noise levels of some families depend; the model's own when None.
        extra: further keyword arguments of the pipeline, as :func:`check_pipeline` takes them.
        unseeded: whether its scheduler may draw noise that no seed can draw again.

    Raises:
        InputError: the pipeline cannot be run here, its scheduler takes no such number of steps, divides by zero, or
            draws noise that no seed can draw again.
    """
    check_pipeline(pipe, extra, size)
    if isinstance(num_inference_steps, bool) or not isinstance(num_inference_steps, int) or num_inference_steps < 1:
        raise InputError(f"num_inference_steps must be a whole number of at least 1, got {num_inference_steps!r}.")
    known = type(pipe.scheduler).__name__ in SOLVERS
    with scheduled(pipe, num_inference_steps, size, extra) as skipped:
        every = noise_levels(pipe.scheduler) if known else [math.nan] * len(pipe.scheduler.timesteps)
        timesteps = pipe.scheduler.timesteps[skipped : len(every)]
        calls = any_family_of(pipe).calls(pipe, extra or {}, timesteps)
    sigmas = every[skipped:]
    if not unseeded:
        refuse_unseeded_noise(pipe, size)
    blind = blind_steps(pipe.scheduler, sigmas) if known else ()
    refuse_division_by_zero(pipe.scheduler, blind)
    return Plan(calls, tuple(sigmas[:calls]), blind, whole_only(pipe, extra), noisy=calls < len(timesteps))


@contextmanager
def scheduled(
    pipe: Pipeline,
    num_inference_steps: int,
    size: tuple[int, int] | None = None,
    extra: Mapping[str, object] | None = None,
) -> Iterator[int]:
    """The pipeline's scheduler with the timesteps of a denoising; it is as it was afterwards.

    Args:
        size, extra: as :func:`plan` takes them.

    Yields:
        How many of the timesteps the pipeline leaves out, by its ``strength``.

    Raises:
        InputError: the scheduler takes no such number of steps, or no such timesteps or sigmas; or strength leaves
            none.
    """
    pixels = any_family_of(pipe).default_size(pipe) if size is None else as_size(size)
    with scheduler_copy(pipe) as scheduler:
        try:
            settings = step_settings(pipe, num_inference_steps, pixels, extra)
            scheduler.set_timesteps(**settings)
        except (ValueError, IndexError, TypeError, AssertionError) as error:
            name, reason = type(pipe.scheduler).__name__, str(error) or "its settings do not fit this pipeline"
            raise InputError(f"{name} refuses {steps_in_words(num_inference_steps, extra)}: {reason}") from error
        yield skipped_calls(pipe, num_inference_steps if "num_inference_steps" in settings else None, extra)
