"""Values that are numbers: in half precision a model overflows, and what is NaN must neither win nor count as black."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["NOT_FINITE", "finite_rows"]

#: Why an image is not scored, with what to do.
NOT_FINITE = (
    "the image is not finite, as where half precision overflows in a model or its autoencoder; use float32: --dtype "
    "float32 and a new --out, or pipe.to(torch.float32)"
)


def finite_rows(values: Tensor) -> Tensor:
    """(B,) whether a row of (B, ...) holds neither NaN nor infinity."""
    whole: Tensor = values.isfinite().flatten(1).all(1)
    return whole
