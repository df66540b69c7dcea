"""The tree of pictures that the TTSnap authors' generation writes: ``p0000/id000/s00.png``, read as it is needed.

``s07.png`` is the x0 estimate after 8 denoiser calls, the last one the finished image. Neither seeds nor noise levels
were stored, so they are unknown here; rewards come from YAML files beside the tree (see ``published_rewards``).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from diffkit.errors import InputError
from diffkit.images import load_image

__all__ = ["PublishedImages", "PublishedTrajectory"]

PROMPT, CANDIDATE, STEP = re.compile(r"p(\d+)"), re.compile(r"id(\d+)"), re.compile(r"s(\d+)\.png")


@dataclass(frozen=True)
class PublishedTrajectory:
    """The pictures of one prompt's candidates; nothing is read before it is asked for.

    Attributes:
        name: the prompt's folder, e.g. ``p0000``, which is also its key in the published YAML files.
        prompt: its text; None when no list of prompts was given.
        candidates: the candidates' folders, e.g. ``id000``, rising; (N,).
        steps: the steps that every candidate has, without the last, which is the finished image; (S,).
        last: the last step.
        folder: where they lie.
    """

    name: str
    prompt: str | None
    candidates: tuple[str, ...]
    steps: tuple[int, ...]
    last: int
    folder: Path

    def estimates(self, step: int) -> Tensor:
        """(N, 3, H, W) float32 in [0, 1]: x0 estimates after ``step`` + 1 denoiser calls, or the finished images.

        Raises:
            InputError: the step was not recorded, or a picture is damaged or of another size than the others.
        """
        if step not in (*self.steps, self.last):
            recorded = ", ".join(map(str, (*self.steps, self.last)))
            raise InputError(
                f"Step {step} of {self.folder} was not recorded for all candidates; recorded are {recorded}."
            )
        files = [self.folder / candidate / f"s{step:02d}.png" for candidate in self.candidates]
        images = [load_image(file) for file in files]
        for file, image in zip(files, images, strict=True):
            if image.shape != images[0].shape:
                sizes = [f"{shape[2]} x {shape[1]}" for shape in (image.shape, images[0].shape)]
                raise InputError(f"{file} has {sizes[0]} pixels, the others {sizes[1]}; they must be of one size.")
        return torch.stack(images)

    @property
    def final_images(self) -> Tensor:
        """(N, 3, H, W) float32 in [0, 1]."""
        return self.estimates(self.last)


@dataclass(frozen=True)
class PublishedImages(Sequence[PublishedTrajectory]):
    """A published tree as a lazy dataset, prompts in the order of their numbers.

    ``PublishedImages.open(folder)`` lists a tree; ``images[0].estimates(2)`` are the estimates of the first prompt.
    """

    folder: Path
    trajectories: tuple[PublishedTrajectory, ...]

    @classmethod
    def open(cls, folder: str | Path, prompts: Sequence[str] | None = None) -> PublishedImages:
        """List a tree; no picture is read.

        Args:
            prompts: texts, of which ``p0007`` takes number 7; the published lists are JSON lists of strings.

        Raises:
            InputError: no such tree, a prompt without pictures or text, or candidates that end at different steps.
        """
        folder = Path(folder)
        numbered = _numbered(folder, PROMPT)
        if not numbered:
            raise InputError(f"{folder} holds no published trajectories; expected folders such as p0000/id000/s00.png.")
        if prompts is not None and max(numbered) >= len(prompts):
            raise InputError(f"{numbered[max(numbered)]} needs prompt {max(numbered)}, but {len(prompts)} were given.")
        trajectories = [
            _trajectory(path, None if prompts is None else prompts[n]) for n, path in sorted(numbered.items())
        ]
        return cls(folder, tuple(trajectories))

    def __len__(self) -> int:
        return len(self.trajectories)

    def __getitem__(self, position: int) -> PublishedTrajectory:  # type: ignore[override]
        """The prompt at a position, from 0; negative ones count from the end."""
        return self.trajectories[position]

    def __iter__(self) -> Iterator[PublishedTrajectory]:
        return iter(self.trajectories)


def _numbered(folder: Path, pattern: re.Pattern[str]) -> dict[int, Path]:
    """What lies in a folder under names of the pattern, by number.

    Raises:
        InputError: two names are one number.
    """
    if not folder.is_dir():
        raise InputError(f"There is no folder {folder} with published trajectories.")
    paths: dict[int, Path] = {}
    for path in sorted(folder.iterdir()):
        if match := pattern.fullmatch(path.name):
            if int(match[1]) in paths:
                raise InputError(f"{path} and {paths[int(match[1])]} have the same number; remove one of them.")
            paths[int(match[1])] = path
    return paths


def _trajectory(folder: Path, prompt: str | None) -> PublishedTrajectory:
    candidates = {path.name: set(_numbered(path, STEP)) for _, path in sorted(_numbered(folder, CANDIDATE).items())}
    if not candidates or not all(candidates.values()):
        raise InputError(f"{folder} has a candidate without pictures, or none; expected id000/s00.png and so on.")
    ends = {max(steps) for steps in candidates.values()}
    if len(ends) > 1:
        raise InputError(
            f"The candidates in {folder} end at different steps, {min(ends)} to {max(ends)}; complete them."
        )
    last = ends.pop()
    steps = sorted(set.intersection(*candidates.values()) - {last})
    return PublishedTrajectory(folder.name, prompt, tuple(candidates), tuple(steps), last, folder)
