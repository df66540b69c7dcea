"""The head that ImageReward and LAION's aesthetic predictor share: five linear layers, nothing in between.

Dropout stands between them in training, so in evaluation the head is one affine map; it is kept in its published form,
because the published weights are, and because who trains it may want the dropout.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from diffkit.errors import InputError

__all__ = ["PLACES", "linear_head", "widths_of"]

PLACES = (0, 2, 4, 6, 7)  # of the linear layers in the published sequence
DROPOUT = (0.2, 0.2, 0.1)


def linear_head(widths: Sequence[int]) -> nn.Sequential:
    """Features (B, widths[0]) to (B, 1); published are 768, 1024, 128, 64, 16, 1."""
    one, two, three, four, five = (nn.Linear(i, o) for i, o in itertools.pairwise(widths))
    first, second, third = (nn.Dropout(share) for share in DROPOUT)
    return nn.Sequential(one, first, two, second, three, third, four, five)


def widths_of(state: Mapping[str, Tensor], prefix: str) -> list[int]:
    """The widths of a published head, from its tensors ``{prefix}{place}.weight``.

    Raises:
        InputError: a layer is missing, or the layers do not fit one behind the other.
    """
    names = [f"{prefix}{place}.weight" for place in PLACES]
    missing = [name for name in names if name not in state]
    if missing:
        raise InputError(f"Expected the five linear layers of a published head, but {missing[0]} is missing.")
    shapes = [tuple(state[name].shape) for name in names]
    if any(a[0] != b[1] for a, b in itertools.pairwise(shapes)) or shapes[-1][0] != 1:
        raise InputError(f"The layers of the head do not fit: {shapes}.")
    return [shapes[0][1], *(shape[0] for shape in shapes)]
