"""Activations inside a denoiser, layer by layer."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from diffkit.errors import InputError

__all__ = ["Activations", "record_activations"]

Activations = dict[str, list[Tensor]]  # layer -> its output at each call, in order


@contextmanager
def record_activations(module: nn.Module, pattern: str) -> Iterator[Activations]:
    """Record the outputs of every layer whose dotted name matches ``pattern`` inside the ``with`` block.

    Args:
        pattern: shell-style, e.g. ``*attn2.to_v``. Memory grows with each call.

    Raises:
        InputError: no layer matches.

    Example:
        >>> import torch
        >>> network = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> with record_activations(network, "[02]") as outputs:
        ...     _ = network(torch.zeros(1, 3))
        >>> {layer: [tuple(output.shape) for output in calls] for layer, calls in outputs.items()}
        {'0': [(1, 4)], '2': [(1, 2)]}
    """
    layers = {name: layer for name, layer in module.named_modules() if name and fnmatch.fnmatchcase(name, pattern)}
    if not layers:
        raise InputError(f"No layer of {type(module).__name__} matches {pattern!r}.")
    outputs: Activations = {name: [] for name in layers}

    def record(name: str, output: Tensor | tuple[Tensor, ...]) -> None:
        outputs[name].append((output[0] if isinstance(output, tuple) else output).detach())

    handles = [
        layer.register_forward_hook(lambda _module, _inputs, output, name=name: record(name, output))
        for name, layer in layers.items()
    ]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()
