"""What a search hands out: the winners as the stock pipeline hands out its images, with seeds, trace and cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from diffusers.utils import BaseOutput
from PIL.Image import Image
from torch import Tensor

from diffkit.conditioning import latent_shape
from diffkit.families import Pipeline, Size, VideoSize, any_family_of
from diffkit.image_filters import has_safety_checker
from diffkit.latents import decoded_latents, decoding_dtype
from diffkit.ledger import Cost, Ledger
from ttsnap.search.config import SearchConfig
from ttsnap.search.interruption import places, with_gaps
from ttsnap.search.noise import Recipe
from ttsnap.search.request import SearchResult
from ttsnap.search.session import StageTrace, Winner
from ttsnap.search.videos import handed_out

__all__ = ["TTSnapPipelineOutput", "pipeline_output"]

#: As ``output_type`` says.
Images = list[Image] | np.ndarray[Any, Any] | Tensor


@dataclass
class TTSnapPipelineOutput(BaseOutput):  # type: ignore[misc]
    """Winners of all prompts, prompt by prompt, best first.

    Attributes:
        images: PIL images, or an array or tensor, as ``output_type`` says.
        seeds: the winners' seeds; the stock pipeline makes the same image from ``torch.Generator().manual_seed(seed)``,
            unless there is a recipe.
        rewards: the winners' scores on their finished images.
        trace: every look at every prompt's candidates, in order.
        ledger: the counted cost, and what it would have been without pruning.
        nsfw_content_detected: as in diffusers; None without a safety checker. An image that is flagged wins only where
            all candidates are, or a budget pays for finishing no other; it is then black, and its reward is that of the
            image under the black.
        recipes: how the winners' noise came about where the seed alone does not say it (neighbours, steered particles).
        similarities: the winners' highest similarities to a forbidden picture; None without a copy guard.
        held_out: the winners' scores by each held-out reward, by its name; None without any.
        spent: what each prompt cost.
        interrupted: whether the search was stopped by ``pipe._interrupt = True``, from a hook, a thread or a user
            interface. What was finished is here as always. An image that is missing is None, or NaN in an array or
            tensor, and its reward NaN; in its place ``seeds`` has the best seed so far (by the last look; without one,
            the first), which the stock pipeline draws, or None. The ledger has the calls that ran.

    Example:
        >>> from ttsnap import TTSnapPipeline
        >>> pipe = TTSnapPipeline.from_pretrained("lab", reward="lab")
        >>> pipe.set_progress_bar_config(disable=True)
        >>> out = pipe("a red circle on gray", num_candidates=2, num_inference_steps=4, seeds=[5, 6])
        >>> out.seeds[0] in (5, 6), out.ledger.calls, [look.step for look in out.trace]
        (True, 8, [3])
    """

    images: list[Image] | list[Image | None] | np.ndarray[Any, Any] | Tensor
    seeds: list[int | None]
    rewards: list[float]
    trace: list[StageTrace]
    ledger: Ledger
    nsfw_content_detected: list[bool] | None = None
    recipes: list[Recipe | None] | None = None
    similarities: list[float] | None = None
    held_out: list[dict[str, float]] | None = None
    spent: list[Cost] | None = None
    interrupted: bool = False


class TTSnapVideoOutput(TTSnapPipelineOutput):
    """Winners of a pipeline of videos; ``frames`` is what the stock pipeline's output calls them."""

    @property
    def frames(self) -> list[list[Image]] | np.ndarray[Any, Any] | Tensor:
        """The winners' videos: lists of PIL images, or an array or tensor, as ``output_type`` says; also ``images``."""
        return cast("list[list[Image]]", self.images)


def pipeline_output(
    pipe: Pipeline, result: SearchResult, output_type: str, config: SearchConfig
) -> TTSnapPipelineOutput:
    """The output of a call of the pipeline, with gaps where a search that was stopped has no image."""
    listed = places(result.winners, result.leading, config.winners)
    winners = [place.winner for place in listed]
    drawn = [winner for winner in winners if winner is not None]
    images = _images(pipe, drawn, result.ledger, output_type, noisy=result.noisy) if drawn else _no_images(output_type)
    size = config.size(pipe)
    frames = (size.frames,) if isinstance(size, VideoSize) else ()
    shapes = {"np": (*frames, *size, 3), "pt": (*frames, 3, *size), "latent": latent_shape(pipe, size)}
    checked = has_safety_checker(pipe) and output_type != "latent"
    kind = TTSnapVideoOutput if frames else TTSnapPipelineOutput
    return kind(
        images=with_gaps(images, listed, shapes.get(output_type, ())),
        seeds=[place.seed for place in listed],
        recipes=[None if winner is None else winner.recipe for winner in winners],
        rewards=[math.nan if winner is None else winner.score for winner in winners],
        trace=result.trace,
        ledger=result.ledger,
        spent=result.spent,
        nsfw_content_detected=[winner is not None and winner.flagged for winner in winners] if checked else None,
        similarities=None
        if result.ledger.guard is None
        else [math.nan if winner is None or winner.similarity is None else winner.similarity for winner in winners],
        held_out=[dict((winner and winner.held_out) or {}) for winner in winners]
        if any(winner.held_out is not None for winner in drawn)
        else None,
        interrupted=result.interrupted,
    )


def _images(pipe: Pipeline, winners: Sequence[Winner], ledger: Ledger, output_type: str, *, noisy: bool) -> Images:
    """The winners as the stock pipeline hands them out: black where flagged, with its watermark."""
    shown: Images
    latents = [winner.candidate.latents for winner in winners if winner.candidate.latents is not None]
    if output_type == "latent":
        return _shown_latents(pipe, torch.cat(latents).to(pipe._execution_device), winners[0])
    if any_family_of(pipe).makes_videos:
        return cast("list[Image]", handed_out(pipe, [winner.image for winner in winners], output_type))
    mark = getattr(pipe, "watermark", None)
    if mark is not None or noisy:  # it goes on values that are not clipped yet
        size = (int(winners[0].image.shape[-2]), int(winners[0].image.shape[-1]))
        marked = [decoded_latents(pipe, row, size=size) for row in latents]
        marked = marked if mark is None else [mark.apply_watermark(image) for image in marked]
        ledger.decoded += len(marked)
        pipe.maybe_free_model_hooks()
        shown = pipe.image_processor.postprocess(torch.cat(marked), output_type)
        return shown
    images = torch.stack([winner.image for winner in winners])
    images[torch.tensor([winner.flagged for winner in winners])] = 0.0
    if output_type == "pt":
        return images.to(pipe._execution_device, decoding_dtype(pipe))
    shown = pipe.image_processor.postprocess(images, output_type, [False] * len(images))
    return shown


def _shown_latents(pipe: Pipeline, latents: Tensor, winner: Winner) -> Tensor:
    """Latents as the stock pipeline hands them out, of images as large as the winner's."""
    shown = any_family_of(pipe).shown
    return latents if shown is None else shown(pipe, latents, Size(*map(int, winner.image.shape[-2:])))


def _no_images(output_type: str) -> Images:
    if output_type == "pil":
        return []
    return np.zeros(0, np.float32) if output_type == "np" else torch.zeros(0)
