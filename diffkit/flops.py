"""The ledger: what a search cost, counted call by call, with floating-point operations and seconds.

Floating-point operations are what :class:`torch.utils.flop_counter.FlopCounterMode` counts (multiplications and
additions of matrix products, convolutions and attention), measured once for each shape on tensors without data.
"""

from __future__ import annotations

import copy
import itertools
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from diffkit.conditioning import Embeds, denoiser_call
from diffkit.errors import InputError
from diffkit.families import Autoencoder, Pipeline, Size, family_of, pipe_denoiser
from diffkit.families.base import size_of_latents

__all__ = ["Budget", "Cost", "Ledger", "Prices", "count_flops", "parse_budget", "pipeline_flops"]

Component = Literal["denoiser", "decoder", "preview", "verifier", "text_encoder"]
UNITS = {"": 1.0, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15}


class Budget(NamedTuple):
    """How much may be spent: ``amount`` of ``unit``; one ``x`` is the cost of one candidate denoised to the end."""

    amount: float
    unit: Literal["x", "FLOP", "s"]


def parse_budget(text: str) -> Budget:
    """Read ``"16x"`` (best-of-16's cost), ``"3.2TFLOP"``, ``"800 GFLOP"``, ``"40s"`` or ``"2min"``.

    Raises:
        InputError: another form, or an amount that is not positive.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(?:(x)|([KMGTP]?)FLOPs?|(s|min))\s*", str(text), re.IGNORECASE)
    if match is None or float(match[1]) <= 0:
        raise InputError(f"Cannot read the budget {text!r}; write for example 16x, 3.2TFLOP or 40s.")
    amount = float(match[1])
    if match[2]:
        return Budget(amount, "x")
    if match[4]:
        return Budget(amount * (60 if match[4].lower() == "min" else 1), "s")
    return Budget(amount * UNITS[match[3].upper()], "FLOP")


@dataclass(frozen=True)
class Prices:
    """What one unit of work costs, all in FLOP or all in seconds; None where unknown.

    Attributes:
        call: one denoiser call for one candidate, both rows with guidance.
        decode: one image decoded.
        verify: one image scored.
        encode: one prompt encoded.
        preview: one estimate decoded by a preview decoder.
    """

    call: float | None
    decode: float | None
    verify: float | None
    encode: float | None = 0.0
    preview: float | None = None


class Cost(NamedTuple):
    """Counted work of a search: denoiser calls (for one candidate each), images decoded and images scored.

    ``previewed`` images were decoded by a preview decoder; they are not among ``decoded``.
    """

    calls: int
    decoded: int
    verified: int
    previewed: int = 0

    def at(self, prices: Prices) -> float | None:
        """The total in the prices' unit, None when a price is unknown."""
        if prices.call is None or prices.decode is None or prices.verify is None:
            return None
        if self.previewed and prices.preview is None:
            return None
        previews = self.previewed * (prices.preview or 0.0)
        return self.calls * prices.call + self.decoded * prices.decode + self.verified * prices.verify + previews

    def plus(self, other: Cost) -> Cost:
        """Both together."""
        return Cost(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))


NOTHING, UNKNOWN = Cost(0, 0, 0), Prices(None, None, None, None)


@dataclass
class Ledger:
    """What a search has cost so far.

    Attributes:
        rows_per_call: rows of the denoiser's batch for one candidate, 2 with guidance.
        calls: denoiser calls, one for each step of each candidate.
        padding_calls: calls spent on padding micro-batches to constant size.
        calibration_calls: calls spent on timing or probing before the search.
        decoded, verified, encoded: images decoded, images scored, texts encoded.
        previewed: estimates decoded by a preview decoder.
        calibration_images: images decoded and scored on timing or probing.
        without_pruning: what the same candidates cost when all are denoised to the end.
        flops: FLOP of one unit of work.
        seconds: wall-clock seconds by component.
        budget: what was asked, what it allows and what the search was planned to cost, in one unit.
    """

    rows_per_call: int
    calls: int = 0
    padding_calls: int = 0
    calibration_calls: int = 0
    decoded: int = 0
    verified: int = 0
    encoded: int = 0
    previewed: int = 0
    calibration_images: int = 0
    without_pruning: Cost = NOTHING
    flops: Prices = UNKNOWN
    seconds: dict[str, float] = field(default_factory=dict)
    budget: dict[str, float | str] | None = None

    @property
    def denoiser_rows(self) -> int:
        """Rows that went through the denoiser, for whatever purpose."""
        return (self.calls + self.padding_calls + self.calibration_calls) * self.rows_per_call

    @property
    def cost(self) -> Cost:
        """The work counted for candidates, without padding, probing and text."""
        return Cost(self.calls, self.decoded, self.verified, self.previewed)

    @contextmanager
    def clock(self, component: Component) -> Iterator[None]:
        """Add the block's wall-clock time to a component."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[component] = self.seconds.get(component, 0.0) + time.perf_counter() - began

    def to_dict(self) -> dict[str, object]:
        """Everything, ready for JSON; unknown figures are null."""
        spent, full = self.cost.at(self.flops), self.without_pruning.at(self.flops)
        return {
            **asdict(self),
            "without_pruning": self.without_pruning._asdict(),
            "denoiser_rows": self.denoiser_rows,
            "flop": spent,
            "flop_without_pruning": full,
        }


_MEASURED: WeakKeyDictionary[nn.Module, dict[tuple[object, ...], float | None]] = WeakKeyDictionary()


def count_flops(
    module: nn.Module,
    key: tuple[object, ...],
    call: Callable[[], object],
    on_trial: Callable[[], object] | None = None,
) -> float | None:
    """FLOP of ``call``, which must run ``module``; measured once for each ``key``.

    The call runs on fake tensors: shapes are computed, numbers are not. None where a module cannot be run so (for
    example one whose weights are streamed in by hooks).

    Args:
        on_trial: told before ``call`` runs for real, which it does, where this is given, for a module whose shapes
            depend on numbers (a mask that says how many tokens there are).
    """
    from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode

    known = _MEASURED.setdefault(module, {})
    if key not in known:
        try:
            with FakeTensorMode(allow_non_fake_inputs=True), FlopCounterMode(display=False) as counter, torch.no_grad():
                call()
            known[key] = float(counter.get_total_flops())
        except (DataDependentOutputException, DynamicOutputShapeException):
            if on_trial is None:
                return None
            on_trial()
            with FlopCounterMode(display=False) as counter, torch.no_grad():
                call()
            known[key] = float(counter.get_total_flops())
        except (RuntimeError, NotImplementedError, TypeError):
            known[key] = None
    return known[key]


def _twin(module: Any) -> Any:
    """While tensors are fake, a copy that shares the weights: what a module keeps for later calls must not be fake."""
    from torch._guards import active_fake_mode
    from torch._subclasses.fake_tensor import unset_fake_temporarily

    if active_fake_mode() is None:
        return module
    with unset_fake_temporarily():
        return copy.deepcopy(module, {id(one): one for one in itertools.chain(module.parameters(), module.buffers())})


def pipeline_flops(
    pipe: Pipeline,
    latent_shape: tuple[int, ...],
    embeds: Embeds | Tensor,
    *,
    guidance: bool,
    verify: float | None,
    preview: Autoencoder | None = None,
    size: tuple[int, int] | None = None,
    encode: float | None = None,
    on_trial: Callable[[], object] | None = None,
) -> Prices:
    """FLOP of a denoiser call, a decoding and a text encoding of this pipeline, and of the given verification.

    Args:
        latent_shape: of one candidate as the loop carries it, see :func:`diffkit.conditioning.latent_shape`.
        embeds: encoded prompts, for their shape and precision.
        guidance: whether a call carries two rows, together or one after the other.
        verify: FLOP of scoring one image, None when unknown.
        preview: the decoder of estimates, where it is not the pipeline's own.
        size: (height, width) in pixels of packed latents; the model's own size or a square when None.
        encode: FLOP of encoding one text where they were counted; else those of the one text encoder.
        on_trial: told when the denoiser must be called for real to count; without it its price is unknown then.
    """
    rows, family, denoiser = 2 if guidance else 1, family_of(pipe), pipe_denoiser(pipe)
    texts = embeds if isinstance(embeds, Embeds) else Embeds(embeds)
    length, width = texts.prompt_embeds.shape[1:]

    def call() -> Callable[[], object]:
        latents = torch.zeros(rows, *latent_shape, device=denoiser.device, dtype=denoiser.dtype)
        given = texts.rows([0] * rows).to(denoiser.device, denoiser.dtype)
        call = denoiser_call(pipe, latents, torch.tensor(1, device=denoiser.device), given, size=size)
        positional, named = family.inputs(pipe, call)

        def forward() -> object:
            module = _twin(denoiser)
            return type(module).forward(module, *positional, **named)

        return forward

    def decode(vae: Autoencoder) -> Callable[[], object]:
        latents = torch.zeros(1, *latent_shape, device=vae.device, dtype=vae.dtype)
        pixels = size_of_latents(pipe, family, latents) if size is None else Size(*size)
        unscaled = family.to_vae(pipe, latents, vae, pixels)
        return lambda: _twin(vae).decode(unscaled)

    def read() -> object:
        encoder = pipe.text_encoder
        return type(encoder).forward(encoder, torch.zeros(1, length, dtype=torch.long, device=encoder.device))

    def control() -> Callable[[], object]:
        latents = torch.zeros(rows, *latent_shape, device=denoiser.device, dtype=denoiser.dtype)
        given = texts.rows([0] * rows).to(denoiser.device, denoiser.dtype)
        call = denoiser_call(pipe, latents, torch.tensor(1, device=denoiser.device), given, size=size)
        positional, named = family.inputs(pipe, call)
        image = torch.zeros(rows, 3, *call.size, device=denoiser.device, dtype=denoiser.dtype)

        def forward() -> object:
            module = _twin(pipe.controlnet)
            many = len(module.nets) if hasattr(module, "nets") else 0
            images, scale = ([image] * many, [1.0] * many) if many else (image, 1.0)
            hints = {"controlnet_cond": images, "conditioning_scale": scale, "return_dict": False}
            return type(module).forward(module, *positional, **named, **hints)

        return forward

    shape = (*latent_shape, rows, length, width)
    called = count_flops(denoiser, shape, call(), on_trial)
    if family.control is not None:
        steered = count_flops(pipe.controlnet, shape, control())
        called = None if called is None or steered is None else called + steered
    return Prices(
        call=called,
        decode=count_flops(pipe.vae, shape, decode(pipe.vae)),
        verify=verify,
        encode=count_flops(pipe.text_encoder, shape, read) if encode is None else encode,
        preview=None if preview is None else count_flops(preview, shape, decode(preview)),
    )
