"""Is every layer of a LoRA's file put on the model, as strong as the file says?

Loaders rename, split and rescale the factors of a LoRA, and leave out with a log line, or without a word, what they
cannot place. So the file and the adapters in the model are compared by what survives all of that: the shapes, and the
energy of each layer's change (:func:`diffkit.lora_file.product_energy`).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from torch import Tensor, nn

from diffkit.errors import InputError
from diffkit.lora_file import LoraFile, product_energy

__all__ = ["Layer", "adapter_layers", "check_whole", "left_over"]

EXACT, CAST = 1e-5, 0.05  # relative differences of energies: none, and of weights cast to half precision
SUM = 1e-3  # of the sum over many layers, in which roundings cancel
SMALL = 1e-9  # of the greatest energy: below, half precision decides


class Layer(NamedTuple):
    """A layer's change: its name, the shape of its factors, its energy."""

    name: str
    shape: tuple[int, ...]
    energy: float


def adapter_layers(model: nn.Module, *, scaled: bool = True) -> Iterator[Layer]:
    """The adapters in a model, as peft put them there; vectors beside the factors (magnitudes, biases) count too.

    The energy of an adapter that no file filled is infinite.

    Args:
        scaled: count the energy with peft's scale, alpha over the rank.
    """
    from peft.tuners.lora import LoraLayer

    for name, layer in model.named_modules():
        if not isinstance(layer, LoraLayer):
            continue
        for adapter in layer.lora_A:
            down, up = (factors.get_parameter(f"{adapter}.weight") for factors in (layer.lora_A, layer.lora_B))
            scale = layer.scaling[adapter] if scaled else 1.0
            if down.is_meta or up.is_meta:
                yield Layer(name, tuple(up.shape[:2]), math.inf)
            else:
                yield Layer(name, *product_energy(down.detach(), up.detach(), scale))
            vectors = [*_own(layer.lora_B, f"{adapter}.bias"), *_own(layer.lora_magnitude_vector, f"{adapter}.weight")]
            for vector in vectors:
                energy = math.inf if vector.is_meta else float(vector.detach().double().square().sum())
                yield Layer(name, (vector.numel(),), energy)


def _own(modules: nn.ModuleDict, name: str) -> list[Tensor]:
    """The parameter of that name, if there is one."""
    return [parameter for key, parameter in modules.named_parameters() if key == name]


def left_over(wanted: Iterable[Layer], present: Iterable[Layer]) -> tuple[list[Layer], list[Layer]]:
    """What is left of each side after layers of one shape and energy are paired, the closest first.

    Example:
        >>> file = [Layer("q", (8, 2, 8), 1.0), Layer("k", (8, 2, 8), 4.0)]
        >>> left_over(file, [Layer("attn.q", (8, 2, 8), 1.0)])
        ([Layer(name='k', shape=(8, 2, 8), energy=4.0)], [])
    """
    left, right = list(wanted), list(present)
    for tolerance in (EXACT, CAST):
        left, right = _unpaired(left, right, tolerance)
    return left, right


def _unpaired(left: list[Layer], right: list[Layer], tolerance: float) -> tuple[list[Layer], list[Layer]]:
    groups: dict[tuple[int, ...], tuple[list[Layer], list[Layer]]] = defaultdict(lambda: ([], []))
    for side, layers in enumerate((left, right)):
        for layer in sorted(layers, key=lambda layer: layer.energy, reverse=True):
            groups[layer.shape][side].append(layer)
    floor = SMALL * max((layer.energy for layer in (*left, *right)), default=0.0)
    rest: tuple[list[Layer], list[Layer]] = ([], [])
    for pair in groups.values():  # each side's weakest layer is its last
        while pair[0] and pair[1]:
            energies = [layers[-1].energy for layers in pair]
            if math.isclose(*energies, rel_tol=tolerance, abs_tol=floor):
                pair[0].pop()
                pair[1].pop()
            else:
                weaker = int(energies[1] < energies[0])
                rest[weaker].append(pair[weaker].pop())
        for side, layers in enumerate(pair):
            rest[side].extend(layers)
    return rest


def check_whole(file: LoraFile, parts: Mapping[str, nn.Module], source: str | Path, pipeline: str) -> None:
    """Check that the adapters in these parts of a pipeline are the file's: none left out, none made up.

    Layers that a loader has split or joined are compared by the sum of their energies.

    Args:
        source: what the user called the LoRA; ``pipeline``: the class it was put on.

    Raises:
        InputError: how many layers would be left out, and the first of them.
    """
    scaled = not file.alphas_in_metadata
    wanted = [Layer(name, shape, energy) for name, (shape, energy) in file.energies().items()]
    if odd := [layer.name for layer in wanted if not math.isfinite(layer.energy)]:
        raise InputError(
            f"The LoRA {str(source)!r} holds NaN or infinite numbers, first in {odd[0]}; the file is damaged."
        )
    present = [layer for part in parts.values() for layer in adapter_layers(part, scaled=scaled)]
    missing, added = left_over(wanted, present)
    if not missing and not added:
        return
    sums = [sum(layer.energy for layer in layers) for layers in (missing, added)]
    if missing and added and math.isclose(*sums, rel_tol=SUM):
        return
    if not missing:
        raise InputError(
            f"{len(added)} layers of {pipeline} would get values that the LoRA {str(source)!r} does not hold, the "
            f"first: {added[0].name}; the file is not whole, so get it again."
        )
    what = "put on at another strength than the file says" if added else "left out"
    raise InputError(
        f"{len(missing)} of the {len(wanted)} layers of the LoRA {str(source)!r} would be {what} in {pipeline}, the "
        f"first: {missing[0].name}. It was made for another model, or has names that diffusers does not read; save it "
        f"by the pipeline's own save_lora_weights, or give the merged model."
    )
