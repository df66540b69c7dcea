"""Copy detection inside a mask: for template memories, where a region varies and the rest is always the same.

Webster et al. (arXiv 2305.08694) compare templates only where two near-duplicates agree; without near-duplicates the
curvature difference gives a mask. Here a mask limits any copy detector: outside of it both pictures become flat, at
their own mean colour inside, and both are cut to the mask's bounding box. A flat region carries no evidence for
``tiled``; for ``ms-ssim`` it counts as agreement, which the threshold must then allow for.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from diffkit.errors import InputError
from memorization.copies import CopyDetector

LEAST = 1 / 64  # share of the picture that a mask must cover


class Masked:
    """Another copy detector, restricted to a mask.

    Example:
        >>> import torch
        >>> from memorization.copies import load_copy_detector
        >>> from memorization.copies.masked import Masked
        >>> mask = torch.zeros(64, 64)
        >>> mask[:, :32] = 1  # only the left half counts
        >>> image, other = torch.rand(2, 1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
        >>> half = torch.cat([image[..., :32], other[..., 32:]], -1)
        >>> bool(Masked(load_copy_detector("tiled"), mask).similarity(half, image) > 0.99)
        True

    Args:
        detector: the copy detector; its threshold is taken over.
        mask: (H, W) in [0, 1], 1 = look here; resized to each picture's size.

    Raises:
        InputError: the mask has another shape, other values, or covers under a 64th of the picture.
    """

    def __init__(self, detector: CopyDetector, mask: Tensor) -> None:
        if mask.ndim != 2 or not bool(((mask >= 0) & (mask <= 1)).all()):
            raise InputError(f"Expected a mask (H, W) with values in [0, 1], got shape {tuple(mask.shape)}.")
        self.share = float(mask.float().mean())
        if self.share < LEAST:
            raise InputError(f"The mask covers only {self.share:.1%} of the picture; at least {LEAST:.1%} are needed.")
        self.detector, self.mask = detector, mask.float()
        self.name = f"masked {detector.name}"
        self.threshold = detector.threshold
        self.preprocessing = f"{detector.preprocessing}; inside a mask of {self.share:.1%} of the picture"

    def similarity(self, images: Tensor, references: Tensor) -> Tensor:
        """(A, 3, H, W) and (B, 3, H', W') in [0, 1] to (A, B) float32 in [-1, 1]; higher = more alike inside."""
        return self.detector.similarity(limited(images, self.mask), limited(references, self.mask))


def limited(images: Tensor, mask: Tensor) -> Tensor:
    """(n, 3, H, W) images with their mean colour where the mask is 0, cut to the mask's bounding box."""
    size = images.shape[-2:]
    mask = mask.to(images)[None, None]
    if mask.shape[-2:] != size:
        mask = F.interpolate(mask, size=size, mode="bilinear", antialias=True, align_corners=False)
    mean = (images * mask).sum((2, 3), keepdim=True) / mask.sum().clamp(min=1e-6)
    filled = mask * images + (1 - mask) * mean
    inside = mask[0, 0] >= min(0.5, float(mask.max()))
    rows, columns = inside.any(1).nonzero().flatten(), inside.any(0).nonzero().flatten()
    return filled[..., int(rows[0]) : int(rows[-1]) + 1, int(columns[0]) : int(columns[-1]) + 1]


def template_mask(images: Tensor, *, tolerance: float = 0.03) -> Tensor:
    """Where several pictures of one template agree: (R, 3, H, W) in [0, 1] to (H, W) of 0 and 1.

    Webster's rule: every picture differs from the first by less than ``tolerance``, summed over the channels; then
    specks are removed and the rest is grown, by 3 and 6 of 256 pixels and in proportion, but by 1 pixel at least.

    Raises:
        InputError: fewer than two pictures.
    """
    if len(images) < 2:
        raise InputError(f"A template's mask takes at least 2 pictures of it, got {len(images)}.")
    same = ((images[1:] - images[:1]).abs().sum(1) < tolerance).all(0).float()[None, None]
    radius = [max(1, round(pixels * min(images.shape[-2:]) / 256)) for pixels in (3, 6)]
    return _grown(1 - _grown(1 - same, radius[0]), radius[1])[0, 0]


def _grown(mask: Tensor, radius: int) -> Tensor:
    """The mask with every 1 spread to its square neighbourhood."""
    return F.max_pool2d(mask, 2 * radius + 1, stride=1, padding=radius)
