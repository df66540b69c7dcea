"""Lookaheads to record: pairs (step, calls), and the estimates that they lead to while candidates are denoised."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from diffkit.conditioning import Conditioning
from diffkit.errors import InputError
from diffkit.families import Pipeline
from diffkit.lookahead import look_ahead
from diffkit.segments import Candidate, Denoising, run_segment
from diffkit.step_plan import Plan

__all__ = ["check_lookahead", "denoise_looking_ahead", "read_lookahead"]

Pairs = tuple[tuple[int, int], ...]


def read_lookahead(text: str) -> Pairs:
    """Read ``"1+3,3+2"``: after step index 1 by 3 calls, after 3 by 2; ``""`` is none. Each pair once, rising.

    Raises:
        InputError: another form.

    Example:
        >>> read_lookahead("3+2, 1+3")
        ((1, 3), (3, 2))
    """
    pairs = set()
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        try:
            step, calls = (int(number) for number in part.split("+"))
        except ValueError:
            raise InputError(f"Cannot read --lookahead {part!r}; write step+calls, as in 1+3,3+2.") from None
        pairs.add((step, calls))
    return tuple(sorted(pairs))


def check_lookahead(pairs: Sequence[tuple[int, int]], plan: Plan) -> Pairs:
    """The pairs, when a denoising can be looked ahead of so.

    Raises:
        InputError: they are no pairs, do not rise, a step has no estimate, or so many calls are not left after it.
    """
    if any(not isinstance(pair, tuple) or [type(number) for number in pair] != [int, int] for pair in pairs):
        raise InputError(f"Lookaheads to record are pairs of step and calls, as in ((1, 3), (3, 2)), got {pairs!r}.")
    if any(later <= pair for pair, later in itertools.pairwise(pairs)):
        raise InputError(f"The lookaheads to record must rise, got {', '.join(f'{s}+{k}' for s, k in pairs)}.")
    for step, calls in pairs:
        left = plan.calls - step - 1
        if step < 0 or not 1 <= calls <= left:
            raise InputError(
                f"The denoising has steps 0 to {plan.calls - 1}; after step {step} it cannot look ahead by {calls} "
                f"calls; write a step and at least 1 call of those that are left after it."
            )
    plan.check_looks(step for step, _ in pairs)
    return tuple((step, calls) for step, calls in pairs)


def denoise_looking_ahead(
    pipe: Pipeline,
    batch: Sequence[Candidate],
    conditioning: Conditioning,
    denoising: Denoising,
    plan: Plan,
    pairs: Pairs,
    on_estimate: Callable[[int, Tensor], None],
) -> tuple[list[Candidate], list[Tensor]]:
    """Denoise fresh candidates to the end, and look ahead on the way.

    Args:
        pairs: (step, calls), rising.
        on_estimate: as :func:`diffkit.segments.run_segment` takes it.

    Returns:
        The finished candidates, which no lookahead changes, and for each pair the estimates (B, ...) of their clean
        latents.
    """
    alive, ahead, start = list(batch), [], 0
    for step, group in itertools.groupby(pairs, key=lambda pair: pair[0]):
        alive = run_segment(pipe, alive, conditioning, denoising, start, step + 1, on_estimate=on_estimate)
        ahead += [torch.cat(look_ahead(pipe, alive, conditioning, denoising, calls)) for _, calls in group]
        start = step + 1
    return run_segment(pipe, alive, conditioning, denoising, start, plan.calls, on_estimate=on_estimate), ahead
