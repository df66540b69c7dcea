"""Base class of the published rewards: a network, its preprocessing, its weights and a card."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Generic, TypeVar

import torch
from PIL import Image
from torch import Tensor, nn

from diffkit.errors import InputError
from diffkit.flops import count_flops
from diffkit.loading import resolve_device, resolve_dtype
from diffkit.rewards.preprocessing import Preprocessing
from diffkit.rewards.token_pruning import name_options, token_pruning_of
from diffkit.rewards.weights import digest

__all__ = ["NetworkReward", "Recent"]

T = TypeVar("T")
PROMPTS_KEPT = 1024
ROWS_AT_ONCE = 16


class Recent(Generic[T]):
    """A cache of one value for each of the ``size`` prompts that were used last."""

    def __init__(self, size: int = PROMPTS_KEPT) -> None:
        self.size = size
        self._known: OrderedDict[str, T] = OrderedDict()

    def __len__(self) -> int:
        return len(self._known)

    def get(self, prompts: Sequence[str], make: Callable[[list[str]], Sequence[T]]) -> list[T]:
        """One value for each prompt; ``make`` is called once, with the different new ones, if there are any."""
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._known]
        made = dict(zip(new, make(new), strict=True)) if new else {}
        values = [made[prompt] if prompt in made else self._known[prompt] for prompt in prompts]
        for prompt, value in zip(prompts, values, strict=True):
            self._known[prompt] = value
            self._known.move_to_end(prompt)
        while len(self._known) > self.size:
            self._known.popitem(last=False)
        return values

    def clear(self) -> None:
        """Forget all."""
        self._known.clear()


class NetworkReward:
    """A reward that one network computes; subclasses say which.

    The network is called with images (B, 3, side, side) float in [0, 1] and with what :meth:`tokenize` gives, one row
    an image, and returns scores (B,). A copy of it can be trained in its place (``TrainableReward``).

    Args:
        network: in evaluation mode.
        preprocessing: how images come to the network's size.
        files: the weights it was read from, for the record.
        device: as torch names it, or ``auto``: cuda, else mps, else cpu.
        dtype: of the network: ``float32`` (also ``auto``), ``float16`` or ``bfloat16``; scores are float32 always.
    """

    name: str
    higher_is_better = True
    range: tuple[float, float] = (float("-inf"), float("inf"))
    licence: ClassVar[str]
    lora_targets: list[str] | None = None
    reads_prompts = True

    def __init__(
        self,
        network: nn.Module,
        preprocessing: Preprocessing,
        files: Sequence[Path] = (),
        *,
        device: str = "auto",
        dtype: str = "float32",
    ) -> None:
        place = resolve_device(device)
        precision = torch.float32 if dtype == "auto" else resolve_dtype(dtype, place, "")
        self.network = network.to(place, precision).eval().requires_grad_(False)
        self.preprocessing, self.files = preprocessing, tuple(files)
        self.input_size = preprocessing.side
        self._tokens: Recent[tuple[Tensor, ...]] = Recent()
        self.flops_per_image: float | None = self._count_flops()

    @property
    def module(self) -> nn.Module:
        """The network, in evaluation mode; train a copy of it."""
        return self.network

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.network.parameters()).device

    @cached_property
    def sha256(self) -> str | None:
        """Hex SHA-256 of the weight file as hubs show it, of all their digests where there are several, or None."""
        return digest(self.files)

    def set_name(self, location: str | Path, published: str, *options: str) -> None:
        """Put behind the name where the weights are, unless they are the published ones, and the options."""
        own = [] if str(location) == published else [str(location)]
        self.name = ":".join([self.name, *own, *options, *name_options(token_pruning_of(self.network))])

    def card(self) -> dict[str, object]:
        """Name, range, preprocessing, licence, checksum, and any token pruning, ready for JSON; reads all weights."""
        pruning = token_pruning_of(self.network)
        return {
            "name": self.name,
            "range": [None if abs(end) == float("inf") else end for end in self.range],
            "preprocessing": f"{self.preprocessing.fit} {self.preprocessing.side}",
            "licence": self.licence,
            "sha256": self.sha256,
            **({} if pruning is None else {"token_pruning": str(pruning)}),
        }

    def tokenize(self, prompts: list[str]) -> tuple[Tensor, ...]:
        """What the network needs of the prompts: tensors on the CPU with one row a prompt."""
        raise NotImplementedError

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores (B,) float32 of images (B, 3, H, W) float in [0, 1], by the tensor path.

        Raises:
            InputError: another shape, or not as many prompts as images.
        """
        _check(images, prompts)
        rows = [slice(start, start + ROWS_AT_ONCE) for start in range(0, len(images), ROWS_AT_ONCE)]
        with torch.no_grad():
            parts = [self.differentiable(images[part], prompts[part]) for part in rows]
        return torch.cat(parts).float() if parts else torch.zeros(0)

    def score_pil(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> Tensor:
        """Scores (B,) float32 of PIL images of any sizes, preprocessed exactly as published.

        Raises:
            InputError: not PIL images, or not as many prompts as images.
        """
        _check(images, prompts)
        rows = [slice(start, start + ROWS_AT_ONCE) for start in range(0, len(images), ROWS_AT_ONCE)]
        with torch.no_grad():
            parts = [
                self._judge(self.preprocessing.pictures(images[part]).to(self.device), prompts[part]) for part in rows
            ]
        return torch.cat(parts).float() if parts else torch.zeros(0)

    def differentiable(
        self, images: Tensor, prompts: Sequence[str], module: Callable[..., Tensor] | None = None
    ) -> Tensor:
        """Scores (B,) with gradient of images (B, 3, H, W) float in [0, 1], by ``module`` if one is given."""
        _check(images, prompts)
        return self._judge(self.preprocessing.tensors(images.to(self.device).float()), prompts, module)

    def _judge(self, pixels: Tensor, prompts: Sequence[str], module: Callable[..., Tensor] | None = None) -> Tensor:
        """Scores (B,) of images (B, 3, side, side) in [0, 1] on the network's device."""
        network: Callable[..., Tensor] = module or self.network
        return network(pixels, *self._rows(prompts))

    def _rows(self, prompts: Sequence[str]) -> tuple[Tensor, ...]:
        """Tokens of the prompts, one row each, on the network's device; each prompt is tokenized once."""

        def make(new: list[str]) -> list[tuple[Tensor, ...]]:
            return list(zip(*self.tokenize(new), strict=True))

        columns = zip(*self._tokens.get(prompts, make), strict=True)
        return tuple(torch.stack(column).to(self.device) for column in columns)

    def _count_flops(self) -> float | None:
        """FLOP of an image with its text; later images with the same prompt may cost less."""
        tokens = self.tokenize(["a"])
        side = self.input_size

        def call() -> None:
            pixels = torch.zeros(1, 3, side, side, device=self.device)
            self.network(pixels, *(torch.zeros_like(token, device=self.device) for token in tokens))

        return count_flops(self.network, (side, *(tuple(token.shape) for token in tokens)), call)


def _check(images: Tensor | Sequence[Image.Image], prompts: Sequence[str]) -> None:
    if isinstance(prompts, str) or len(images) != len(prompts):
        count = "one text" if isinstance(prompts, str) else f"{len(prompts)} prompts"
        raise InputError(f"Got {count} for {len(images)} images; give a list with one prompt for each.")
