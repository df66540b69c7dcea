"""Shrink a denoiser: take out the heads, channels and groups that a mask has switched off, so that it runs faster.

A unit (:mod:`diffkit.mitigation.units`) whose input columns are all 0 in the layers behind it gives nothing to the
model. Without it the outputs stay the same, up to the rounding of sums in another order, and the layers are smaller.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, cast

import torch
from torch import Tensor, nn

from diffkit.counting_copy import original_module
from diffkit.errors import InputError
from diffkit.families import pipe_denoiser
from diffkit.mitigation import Applied, Mitigation, Undo, apply_mitigation, load_mitigation
from diffkit.mitigation.units import Units, removable_units

if TYPE_CHECKING:
    from diffkit.families import Pipeline

__all__ = ["remove_units", "shrink"]

Removable: TypeAlias = nn.Linear | nn.Conv2d | nn.GroupNorm  # what units are made of


def shrink(
    pipe: Pipeline, mitigation: Mitigation | str | Path, *, only: str | None = None, model_sha256: str | None = None
) -> Applied:
    """Apply a mitigation to a pipeline and remove the units that it switches off, in place.

    What it switches off beside whole units stays there as zeros. Undoing it puts the pipeline's own layers back, which
    are kept until the handle is dropped.

    Args:
        pipe: of a known family.
        mitigation: itself or its folder; one of ``prune`` with ``structure=channels``.
        only: see :func:`diffkit.apply_mitigation`.
        model_sha256: see there.

    Raises:
        InputError: it does not fit the pipeline, or switches off no whole unit.

    Example:
        >>> import torch
        >>> from diffkit import load_pipeline
        >>> pipe, block = load_pipeline("lab", device="cpu"), "mid_block.attentions.0.transformer_blocks.0"
        >>> columns = torch.arange(512 * 128).view(128, 512)[:, :100].flatten()  # inner channels 0 to 99
        >>> mask = Mitigation("by-hand", "mask", "lab", tensors={f"unet.{block}.ff.net.2.weights": columns})
        >>> with shrink(pipe, mask):
        ...     print(pipe.unet.get_submodule(f"{block}.ff.net.2"))
        Linear(in_features=412, out_features=128, bias=True)
        >>> pipe.unet.get_submodule(f"{block}.ff.net.2")
        Linear(in_features=512, out_features=128, bias=True)
    """
    if not isinstance(mitigation, Mitigation):
        mitigation = load_mitigation(mitigation)
    masked = apply_mitigation(pipe, mitigation, only=only, model_sha256=model_sha256)
    try:
        put_back = remove_units(original_module(pipe_denoiser(pipe)))
    except InputError:
        masked.undo()
        raise

    def undo() -> None:
        put_back()
        masked.undo()

    return Applied(mitigation, undo)


@torch.no_grad()
def remove_units(denoiser: nn.Module) -> Undo:
    """Replace layers by smaller ones without the units that give nothing; one unit of each module stays.

    Returns:
        Puts the denoiser's own layers back.

    Raises:
        InputError: no unit of it has all of its columns at 0.
    """
    rows: dict[str, Tensor] = {}
    columns: dict[str, Tensor] = {}
    counters: list[tuple[nn.Module, str, int]] = []
    for units in removable_units(denoiser).values():
        off = _gives_nothing(denoiser, units)
        if not off.any():
            continue
        for name, index in units.rows.items():
            _mark(rows, name, len(_weight(denoiser, name)), index[off])
        for name, index in units.columns.items():
            _mark(columns, name, _weight(denoiser, name).shape[1], index[off])
        for name, values in units.attributes.items():
            owner = denoiser.get_submodule(name)
            counters += [(owner, attribute, value * int(off.sum())) for attribute, value in values.items()]
    if not columns:
        raise InputError(
            "Nothing of this denoiser is switched off as a whole head, channel or group, so that it cannot be made "
            "smaller; make a mask with `diffkit mitigate prune --set structure=channels`."
        )
    names = list(dict.fromkeys([*rows, *columns]))
    own = {name: cast("Removable", denoiser.get_submodule(name)) for name in names}
    smaller = {name: _smaller(layer, rows.get(name), columns.get(name)) for name, layer in own.items()}

    def put(layers: Mapping[str, nn.Module], sign: int) -> None:
        for name, layer in layers.items():
            denoiser.set_submodule(name, layer)
        for owner, attribute, value in counters:
            setattr(owner, attribute, getattr(owner, attribute) + sign * value)

    put(smaller, -1)
    return lambda: put(own, 1)


def _weight(denoiser: nn.Module, name: str) -> Tensor:
    return denoiser.get_parameter(f"{name}.weight")


def _gives_nothing(denoiser: nn.Module, units: Units) -> Tensor:
    """Bool (n,): all columns of the unit are 0; at most n - 1 of them, the first one stays."""
    off = torch.ones(units.number, dtype=torch.bool)
    for name, index in units.columns.items():
        used = _weight(denoiser, name).transpose(0, 1).flatten(1).any(1).cpu()
        off &= ~used[index].any(1)
    if off.all():
        off[0] = False
    return off


def _mark(marks: dict[str, Tensor], name: str, n: int, index: Tensor) -> None:
    marks.setdefault(name, torch.zeros(n, dtype=torch.bool))[index.flatten()] = True


def _smaller(layer: Removable, rows: Tensor | None, columns: Tensor | None) -> nn.Module:
    """A new layer without these output rows and input columns, bool, True = removed."""
    weight: Tensor = layer.weight
    bias: Tensor | None = layer.bias
    if rows is not None:
        kept = (~rows).nonzero().flatten().to(weight.device)
        weight, bias = weight.index_select(0, kept), None if bias is None else bias.index_select(0, kept)
    if columns is not None:
        weight = weight.index_select(1, (~columns).nonzero().flatten().to(weight.device))
    small = _like(layer, weight)
    small.weight = nn.Parameter(weight.clone(), layer.weight.requires_grad)
    if bias is not None:
        small.bias = nn.Parameter(bias.clone(), layer.weight.requires_grad)
    return small.train(layer.training)


def _like(layer: Removable, weight: Tensor) -> Removable:
    """A layer of the same kind for a smaller weight, without data."""
    if isinstance(layer, nn.GroupNorm):
        groups = layer.num_groups * len(weight) // layer.num_channels
        return nn.GroupNorm(groups, len(weight), layer.eps, layer.affine, device="meta")
    if isinstance(layer, nn.Linear):
        return nn.Linear(weight.shape[1], len(weight), layer.bias is not None, device="meta")
    groups = len(weight) if layer.groups > 1 else 1  # depthwise
    return nn.Conv2d(
        weight.shape[1] * groups,
        len(weight),
        layer.kernel_size,  # type: ignore[arg-type]
        layer.stride,  # type: ignore[arg-type]
        layer.padding,  # type: ignore[arg-type]
        layer.dilation,  # type: ignore[arg-type]
        groups,
        layer.bias is not None,
        layer.padding_mode,
        device="meta",
    )
