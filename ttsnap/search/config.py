"""What a search computes, whatever the prompts, the noise and the reward: built once, checked once, passed on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from diffkit.copy_guard import CopyGuard
from diffkit.errors import InputError
from diffkit.families import Autoencoder, Pipeline, Size, VideoSize, any_family_of, default_size, is_guided
from diffkit.ledger import Budget, parse_budget
from diffkit.micro_batch import auto_size
from diffkit.seeds import plain_integers
from diffkit.segments import Denoising, alone_only
from diffkit.step_plan import Plan, plan
from ttsnap.schedules.pruning_schedule import PruningSchedule

if TYPE_CHECKING:
    from ttsnap.search.trace import StageTrace

__all__ = ["SearchConfig"]

BEST_OF_N = PruningSchedule()
MICRO_BATCH = {"cpu": 8}  # fewer rows cost time by themselves, more save none
ACCELERATOR_MICRO_BATCH = 16


@dataclass(frozen=True)
class SearchConfig:
    """Arguments of ``TTSnapPipeline.__call__``; see there.

    Attributes:
        guidance_scale: None where the family's pipeline takes none.
        schedule: of a call without a strategy.
        winners: how many images to keep for each prompt.
        previews: whether the trace keeps the decoded estimates.
        diversity: of several winners, in [0, 1]; 0 takes the best by reward.
        copy_guard: says which images may not win; candidates whose images are like that are dropped at any look.
        preview_vae: decodes estimates; the pipeline's own VAE when None. Finished images are always its own.
        share: whether the processes of a launch search together: each runs every n-th of the candidates of every
            segment and look, dealt anew after each cut, and all know all results.
        on_look: called with the pipeline and each look at a prompt's candidates; False stops the search.
        extra: further keyword arguments of the stock pipeline's calls.
        encoding: those that only shape the encoding of the prompts.
    """

    num_inference_steps: int
    guidance_scale: float | None
    schedule: PruningSchedule = BEST_OF_N
    num_candidates: int | None = None
    budget: str | None = None
    winners: int = 1
    height: int | None = None
    width: int | None = None
    eta: float = 0.0
    micro_batch: int | Literal["auto"] | None = None
    previews: bool = False
    preview_vae: Autoencoder | None = None
    copy_guard: CopyGuard | None = None
    diversity: float = 0.0
    share: bool = False
    on_look: Callable[[Pipeline, StageTrace], bool | None] | None = None
    extra: Mapping[str, object] = field(default_factory=dict)
    encoding: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Integers of numpy are as good as Python's."""
        plain_integers(self, "num_inference_steps", "num_candidates", "winners", "height", "width", "micro_batch")

    @property
    def parsed_budget(self) -> Budget | None:
        """The budget of each prompt; None for a fixed number of candidates.

        Raises:
            InputError: it cannot be read.
        """
        return None if self.budget is None else parse_budget(self.budget)

    def plan(self, pipe: Pipeline, *, as_stock: bool = False) -> Plan:
        """The denoiser calls, after everything here that can be wrong was checked without computing.

        Args:
            as_stock: of a call that is the stock pipeline's, whose scheduler may draw noise without a seed.

        Raises:
            InputError: something is.
        """
        steps = plan(pipe, self.num_inference_steps, self.size(pipe), self.extra, unseeded=as_stock)
        self.schedule.resolve(steps.calls).validate(steps.calls)
        if any_family_of(pipe).one_row and self.micro_batch not in (None, 1):
            raise InputError(f"A {any_family_of(pipe).pipeline} makes one image at a time; leave out micro_batch.")
        at_once = None if self.micro_batch == "auto" else self.micro_batch
        for name, value in (("num_images_per_prompt", self.winners), ("micro_batch", at_once)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise InputError(f"{name} must be a whole number of at least 1, got {value!r}.")
        if self.micro_batch not in (None, 1) and (reason := alone_only(pipe, self.extra)) is not None:
            raise InputError(reason)
        if not 0 <= self.diversity <= 1:
            raise InputError(f"diversity must lie in [0, 1], got {self.diversity!r}.")
        cell = any_family_of(pipe).multiple(pipe)
        for name, pixels in (("height", self.height), ("width", self.width)):
            if pixels is not None and (pixels < cell or pixels % cell):
                raise InputError(f"{name} must be a positive multiple of {cell}, got {pixels}.")
        return steps

    def size(self, pipe: Pipeline) -> Size:
        """Height and width in pixels, of a video with its frames."""
        own, made = default_size(pipe), any_family_of(pipe).frames_made
        height, width = self.height or own.height, self.width or own.width
        if made is None:
            return Size(height, width)
        asked = self.extra.get("num_frames")
        if asked is not None and (isinstance(asked, bool) or not isinstance(asked, int) or asked < 1):
            raise InputError(f"num_frames must be a whole number of at least 1, got {asked!r}.")
        frames = made(pipe, asked) if asked is not None else own.frames if isinstance(own, VideoSize) else 1
        return VideoSize(height, width, frames)

    def is_guided(self, pipe: Pipeline, negative_prompts: object) -> bool:
        """Whether a denoiser call carries two rows."""
        return is_guided(pipe, self.guidance_scale, {**self.extra, "negative_prompt": negative_prompts})

    def denoising(self, pipe: Pipeline, most: int | None) -> Denoising:
        """How candidates are denoised.

        Args:
            most: how many candidates there are at first, of all prompts; None where the budget decides.
        """
        size, eta, batch = self.size(pipe), self.eta, self._micro_batch(pipe, most)
        frames = size.frames if isinstance(size, VideoSize) else None
        return Denoising(self.num_inference_steps, self.guidance_scale, *size, eta, batch, "least", self.extra, frames)

    def _micro_batch(self, pipe: Pipeline, most: int | None) -> int:
        if any_family_of(pipe).one_row:
            return 1
        if self.micro_batch == "auto":
            return auto_size(pipe._execution_device)
        if self.micro_batch is not None:
            return self.micro_batch
        if alone_only(pipe, self.extra) is not None:
            return 1
        if any_family_of(pipe).makes_videos:
            return 1  # one fills an accelerator
        size = MICRO_BATCH.get(pipe._execution_device.type, ACCELERATOR_MICRO_BATCH)
        return size if most is None else min(size, most)
