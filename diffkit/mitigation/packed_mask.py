"""Dense masks in one bit a weight; a list of indices takes 32 bits a weight that is off."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from diffkit.errors import InputError

__all__ = ["mask_tensor", "pack_mask", "unpack_mask"]


def pack_mask(mask: Tensor) -> Tensor:
    """Eight weights a byte, the first in the highest bit, zeros behind the last: bool (...) to uint8 (ceil(n / 8),).

    Example:
        >>> pack_mask(torch.tensor([True, False, True, False, False, False, False, False, True])).tolist()
        [160, 128]
    """
    return torch.from_numpy(np.packbits(mask.detach().cpu().flatten().numpy()))


def unpack_mask(bits: Tensor, n: int) -> Tensor:
    """What :func:`pack_mask` packed: uint8 (ceil(n / 8),) to bool (n,).

    Raises:
        InputError: another type, or not as many bytes as ``n`` weights need.

    Example:
        >>> unpack_mask(torch.tensor([160, 128], dtype=torch.uint8), 9).nonzero().flatten().tolist()
        [0, 2, 8]
    """
    if bits.dtype != torch.uint8 or bits.shape != (-(-n // 8),):
        raise InputError(
            f"Expected {-(-n // 8)} bytes (uint8) of a packed mask of {n} weights, got {bits.dtype} of "
            f"{tuple(bits.shape)}; it was made for another model."
        )
    return torch.from_numpy(np.unpackbits(bits.cpu().numpy(), count=n)).bool()


def mask_tensor(module: str, mask: Tensor) -> dict[str, Tensor]:
    """The smaller of the two forms of a module's mask of weights, by its name in a mitigation; none where all are on.

    Args:
        module: named from the pipeline.
        mask: bool, shaped as the weight, True = off.

    Example:
        >>> [(name, len(tensor)) for name, tensor in mask_tensor("unet.conv_in", torch.ones(4, 16).bool()).items()]
        [('unet.conv_in.bits', 8)]
    """
    off = int(mask.sum())
    if not off:
        return {}
    if 32 * off > mask.numel():
        return {f"{module}.bits": pack_mask(mask)}
    return {f"{module}.weights": mask.detach().cpu().flatten().nonzero().flatten().int()}
