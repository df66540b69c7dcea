"""How each kind of mitigation changes a pipeline's weights in place, and how it is taken back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from diffkit.errors import InputError

if TYPE_CHECKING:
    from diffkit.families import Pipeline
    from diffkit.mitigation import Mitigation, Undo

__all__ = ["apply_delta", "apply_lora", "apply_mask", "find_module", "find_parameter"]

ADAPTER = "diffkit-mitigation"


def find_module(pipe: Pipeline, name: str) -> nn.Module:
    """The module of that dotted name, counted from the pipeline: ``unet.mid_block...``.

    Raises:
        InputError: the pipeline has none.
    """
    part, _, rest = name.partition(".")
    root = getattr(pipe, part, None)
    if isinstance(root, nn.Module):
        try:
            return root.get_submodule(rest)
        except AttributeError:
            pass
    raise InputError(f"The mitigation names {name!r}, which this {type(pipe).__name__} does not have.")


def find_parameter(pipe: Pipeline, name: str) -> nn.Parameter:
    """The parameter of that dotted name, counted from the pipeline: ``unet.conv_in.weight``.

    Raises:
        InputError: the pipeline has none, or holds it elsewhere (offloaded layer by layer).
    """
    module, _, attribute = name.rpartition(".")
    found = getattr(find_module(pipe, module), attribute, None) if module else None
    if not isinstance(found, nn.Parameter):
        raise InputError(f"The mitigation names {name!r}, which this {type(pipe).__name__} does not have.")
    if found.is_meta:
        raise InputError(f"{name!r} is offloaded; apply the mitigation before switching offloading on.")
    return found


def apply_mask(pipe: Pipeline, mitigation: Mitigation, only: str | None) -> Undo:
    """Zero output rows (bias included) or single weights; the union of the chosen parts.

    Zeroing the rows gives what NeMo's hook gives, which multiplies those outputs by 0.
    """
    indices: dict[nn.Parameter, list[Tensor]] = {}
    for name, tensor in mitigation.tensors.items():
        suspect, _, rest = name.rpartition("/")
        if only is None or suspect in ("", only):
            for parameter, flat in _flat_indices(pipe, rest, tensor):
                indices.setdefault(parameter, []).append(flat)
    saved = []
    with torch.no_grad():
        for parameter, parts in indices.items():
            where = torch.unravel_index(torch.cat(parts).unique().to(parameter.device), parameter.shape)
            saved.append((parameter, where, parameter[where].clone()))
            parameter[where] = 0
    return lambda: _put_back(saved)


def _flat_indices(pipe: Pipeline, name: str, tensor: Tensor) -> Iterator[tuple[nn.Parameter, Tensor]]:
    """The parameters a mask's entry touches, with flat indices into each."""
    module_name, _, what = name.rpartition(".")
    if what not in ("rows", "weights") or tensor.is_floating_point() or tensor.ndim != 1:
        raise InputError(f"The mask has an entry {name!r} that is neither a list of rows nor of weights.")
    weight = find_parameter(pipe, f"{module_name}.weight")
    chosen = tensor.long()
    limit = len(weight) if what == "rows" else weight.numel()
    if len(chosen) and not 0 <= int(chosen.min()) <= int(chosen.max()) < limit:
        raise InputError(f"The mask's {name!r} goes beyond the model's {limit} {what}; it was made for another model.")
    if what == "weights":
        yield weight, chosen
        return
    columns = weight.numel() // len(weight)
    yield weight, (chosen[:, None] * columns + torch.arange(columns)).flatten()
    bias = getattr(find_module(pipe, module_name), "bias", None)
    if isinstance(bias, nn.Parameter):
        yield bias, chosen


def _put_back(saved: list[tuple[nn.Parameter, tuple[Tensor, ...], Tensor]]) -> None:
    with torch.no_grad():
        for parameter, where, values in saved:
            parameter[tuple(index.to(parameter.device) for index in where)] = values.to(parameter)


def apply_delta(pipe: Pipeline, mitigation: Mitigation, only: str | None) -> Undo:
    """Add the stored differences to the parameters; taking it back restores the saved originals, bit for bit."""
    pairs = [(find_parameter(pipe, name), tensor) for name, tensor in mitigation.tensors.items()]
    for (parameter, tensor), name in zip(pairs, mitigation.tensors, strict=True):
        if parameter.shape != tensor.shape:
            raise InputError(
                f"The mitigation's {name!r} has shape {tuple(tensor.shape)}, the model's {tuple(parameter.shape)}; "
                "it was made for another model."
            )
    originals = [parameter.detach().to("cpu", copy=True) for parameter, _ in pairs]
    with torch.no_grad():
        for parameter, tensor in pairs:
            parameter.add_(tensor.to(parameter))

    def undo() -> None:
        with torch.no_grad():
            for (parameter, _), original in zip(pairs, originals, strict=True):
                parameter.copy_(original)

    return undo


def apply_lora(pipe: Pipeline, mitigation: Mitigation, only: str | None) -> Undo:
    """Load the adapter beside the weights, by the pipeline's own ``load_lora_weights``."""
    if not hasattr(pipe, "load_lora_weights"):
        raise InputError(f"{type(pipe).__name__} takes no LoRA adapters; use the mitigation as a full pipeline folder.")
    try:
        pipe.load_lora_weights(dict(mitigation.tensors), adapter_name=ADAPTER)
    except (RuntimeError, ValueError, KeyError) as error:
        reason = str(error).strip().split("\n")[0]
        raise InputError(f"The mitigation's adapter does not fit this model: {reason}") from error

    def undo() -> None:
        pipe.delete_adapters(ADAPTER)

    return undo
