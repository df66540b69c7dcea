"""A copy of a module that only counts: without hooks, without compilation, and without data where shapes are computed.

Calls that count are nobody's business: hooks that users, diffusers or accelerate have put on a module must not hear of
them, and what they keep (a cache, a step counter, weights on their way) must stay as it is.
"""

from __future__ import annotations

import copy
import itertools
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["counting_copy", "original_module"]

_LEFT_OUT = object()
_LISTENERS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_FORWARDS = ("forward", "_old_forward", "_hf_hook", "_diffusers_hook")  # of accelerate and diffusers


def original_module(module: Any) -> Any:
    """The module itself, where ``torch.compile`` has wrapped it.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> original_module(torch.compile(layer)) is layer, original_module(layer) is layer
        (True, True)
    """
    return getattr(module, "_orig_mod", module)


def counting_copy(module: nn.Module, device: torch.device | None = None, dtype: torch.dtype | None = None) -> Any:
    """A copy without hooks and compilation; inside of a ``FakeTensorMode`` its weights are without data, else shared.

    Args:
        device: of weights without data; their own when None.
        dtype: in the place of 8-bit floats, in which a model is stored and not run.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> hook = layer.register_forward_hook(lambda *call: print("called"))
        >>> twin = counting_copy(layer)
        >>> twin(torch.zeros(1, 2)).shape, twin.weight is layer.weight
        (torch.Size([1, 2]), True)
    """
    from torch._guards import active_fake_mode
    from torch._subclasses.fake_tensor import unset_fake_temporarily

    fake = active_fake_mode() is not None
    weights = itertools.chain(module.parameters(), module.buffers())
    memo = {id(weight): _without_data(weight, device, dtype) if fake else weight for weight in weights}
    kept: dict[int, object] = {**memo, **_hooks_left_out(module)}
    with unset_fake_temporarily():
        twin = copy.deepcopy(module, kept)
    for part in list(twin.modules()):
        for name in [name for name, value in vars(part).items() if value is _LEFT_OUT]:
            delattr(part, name)
        for name, child in part.named_children():
            setattr(part, name, original_module(child))
    return twin


def _without_data(weight: Tensor, device: torch.device | None, dtype: torch.dtype | None) -> Tensor:
    """A weight of the same shape, to be called while shapes are computed; quantized ones and indices are kept."""
    if type(weight) not in (Tensor, nn.Parameter) or not weight.is_floating_point():
        return weight
    stored = weight.dtype.itemsize == 1
    empty = torch.empty_like(weight, device=device, dtype=dtype if stored else None, requires_grad=False)
    return nn.Parameter(empty, requires_grad=False) if isinstance(weight, nn.Parameter) else empty


def _hooks_left_out(module: nn.Module) -> dict[int, object]:
    """What a copy has in the place of the module's hooks, by their ids: none, and the class's own ``forward``."""
    left_out: dict[int, object] = {}
    for part in module.modules():
        attributes = vars(part)
        left_out.update((id(attributes[name]), OrderedDict()) for name in _LISTENERS if name in attributes)
        if "_hf_hook" in attributes or "_diffusers_hook" in attributes:
            left_out.update((id(attributes[name]), _LEFT_OUT) for name in _FORWARDS if name in attributes)
    return left_out
