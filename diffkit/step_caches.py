"""Hooks that keep something from step to step: diffusers' step caches, which must not pass from image to image."""

from __future__ import annotations

from diffkit.errors import InputError
from diffkit.families import Pipeline, any_family_of

__all__ = ["refuse_step_caches", "step_cache"]


def refuse_step_caches(pipe: Pipeline) -> None:
    """Refuse a denoiser, or a ControlNet, that answers from what it saw at earlier steps; see :func:`step_cache`.

    Raises:
        InputError: it does.

    Example:
        >>> from diffkit import load_pipeline
        >>> from diffusers import PyramidAttentionBroadcastConfig, apply_pyramid_attention_broadcast
        >>> pipe = load_pipeline("lab")
        >>> refuse_step_caches(pipe)
        >>> config = PyramidAttentionBroadcastConfig(
        ...     cross_attention_block_skip_range=2, cross_attention_block_identifiers=["blocks"],
        ...     current_timestep_callback=lambda: 500,
        ... )
        >>> apply_pyramid_attention_broadcast(pipe.unet, config)
        >>> try:
        ...     refuse_step_caches(pipe)
        ... except InputError as error:
        ...     print(error)
        The denoiser of this StableDiffusionPipeline has a hook that keeps ...
    """
    if (reason := step_cache(pipe)) is not None:
        raise InputError(reason)


def step_cache(pipe: Pipeline) -> str | None:
    """A sentence about a denoiser, or a ControlNet, that answers from what it saw at earlier steps; None without one.

    That is after ``enable_cache`` (FirstBlockCache, TaylorSeer, MagCache, FasterCache, pyramid attention broadcast and
    so on), or where such hooks were applied one by one. A cache belongs to one denoising: candidates that are suspended
    and resumed would find each other's, and a batch decides together whether to skip, so that an image would depend on
    its batch. The stock call of one image empties it at its end.
    """
    for name in (any_family_of(pipe).denoiser, "controlnet"):
        module = getattr(pipe, name, None)
        if module is None:
            continue
        what = f"The {'ControlNet' if name == 'controlnet' else 'denoiser'} of this {type(pipe).__name__}"
        if getattr(module, "is_cache_enabled", False):
            return (
                f"{what} has a cache (enable_cache), whose contents would pass from candidate to candidate; call "
                f"pipe.{name}.disable_cache() first, or give schedule='' and micro_batch=1."
            )
        for place, part in module.named_modules():
            for hook, kept in getattr(getattr(part, "_diffusers_hook", None), "hooks", {}).items():
                if kept._is_stateful:
                    return (
                        f"{what} has a hook that keeps what it saw from step to step ({hook} at {place or name}), "
                        f"which would pass from candidate to candidate; take it off with "
                        f"pipe.{name}._diffusers_hook.remove_hook({hook!r}, recurse=True), or give schedule='' and "
                        f"micro_batch=1."
                    )
    return None
