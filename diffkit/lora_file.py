"""The tensors of a LoRA's file, sorted by what they are: pairs of factors, scales, vectors. Safetensors only."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError, safe_open
from torch import Tensor

from diffkit.errors import InputError

__all__ = ["Factors", "LoraFile", "LoraNames", "open_lora", "product_energy", "sort_names"]

_HALF = re.compile(r"^(?P<layer>.*lora\w*)\.(?P<half>A|B|down|up)(?:\.default)?\.weight$")
_JOINED_HALF = re.compile(r"^(?P<layer>.+)\.lora_(?P<half>A|B|down|up)(?:\.default)?\.weight$")
_ALPHA = re.compile(r"^(?P<layer>.+)\.alpha$")
_VECTOR = re.compile(r"^(?P<layer>.+)\.(?:lora_magnitude_vector(?:\.weight|\.default\.weight)?|lora_B\.bias)$")
_FIRST = {"A": True, "down": True, "B": False, "up": False}

#: What else files of adapters hold: words in a tensor's name -> what it belongs to.
OTHER_KINDS: tuple[tuple[tuple[str, ...], str], ...] = (
    (("hada_",), "a LoHa"),
    (("lokr_",), "a LoKr"),
    (("oft_", "boft_", "oft."), "an OFT"),
    (("dora_scale",), "a DoRA in the kohya or LyCORIS form, whose magnitudes diffusers leaves out"),
    (("lora_mid",), "a LoCon with a Tucker core"),
    (("emb_params", "bundle_emb", "string_to_param", "clip_l", "clip_g"), "a textual inversion"),
    (("ia3", "on_input"), "an IA3"),
    ((".diff", "w_norm", "b_norm", "set_weight"), "a difference of whole weights"),
    (("base_layer", "modules_to_save"), "a network that peft keeps whole"),
    ((".bias", "norm"), "biases or norms that were trained too"),
)


class Factors(NamedTuple):
    """The names of the two factors of one layer's change, and of its scale, where there is one."""

    down: str
    up: str
    alpha: str | None


class LoraNames(NamedTuple):
    """A LoRA's tensors by name: layer -> its factors, and vectors that belong to a layer (magnitudes, biases)."""

    factors: dict[str, Factors]
    vectors: tuple[str, ...]


@dataclass(frozen=True)
class LoraFile:
    """A LoRA's file.

    Attributes:
        path: the file.
        names: its tensors, sorted.
        alphas_in_metadata: whether peft's settings, which hold the scales, are in the file's header.
    """

    path: Path
    names: LoraNames
    alphas_in_metadata: bool

    def energies(self) -> dict[str, tuple[tuple[int, ...], float]]:
        """Each layer's, or vector's, shape and :func:`product_energy`, alpha included."""
        with safe_open(self.path, framework="pt") as tensors:
            energies: dict[str, tuple[tuple[int, ...], float]] = {}
            for layer, (down, up, alpha) in self.names.factors.items():
                first, second = tensors.get_tensor(down), tensors.get_tensor(up)
                scale = 1.0 if alpha is None else float(tensors.get_tensor(alpha).float()) / first.shape[0]
                energies[layer] = product_energy(first, second, scale)
            for name in self.names.vectors:
                vector = tensors.get_tensor(name).double()
                energies[name] = (vector.numel(),), float(vector.square().sum())
        return energies


def product_energy(down: Tensor, up: Tensor, scale: float = 1.0) -> tuple[tuple[int, int, int], float]:
    """Squared Frobenius norm of ``scale * up @ down``, without forming the product.

    It adds up when the rows of ``up`` are dealt to several layers, as loaders do for a joint query, key and value,
    and does not change when the scale moves from one factor to the other.

    Args:
        down: (rank, in), or a convolution's (rank, in, h, w).
        up: (out, rank), or (out, rank, 1, 1).

    Returns:
        (out, rank, in) with a convolution's axes as one, and the energy.

    Example:
        >>> import torch
        >>> down, up = torch.tensor([[3.0, 4.0]]), torch.tensor([[1.0], [2.0]])
        >>> product_energy(down, up), float((up @ down).square().sum())
        (((2, 1, 2), 125.0), 125.0)
    """
    first, second = down.flatten(1).double(), up.flatten(1).double()
    gram = (first @ first.T) * (second.T @ second)
    return (second.shape[0], first.shape[0], first.shape[1]), float(gram.sum()) * scale**2


def open_lora(path: Path, source: str | Path) -> LoraFile:
    """Read the names in a LoRA's file and check that it holds nothing that would be left out.

    Args:
        path: the file.
        source: what the user called it.

    Raises:
        InputError: no safetensors file, or tensors that are no LoRA's.
    """
    try:
        with safe_open(path, framework="pt") as tensors:
            keys, metadata = list(tensors.keys()), tensors.metadata() or {}
            shapes = {key: tuple(tensors.get_slice(key).get_shape()) for key in keys}
    except (SafetensorError, OSError) as error:
        from diffkit.weight_files import reason_unreadable

        raise InputError(f"The LoRA {str(source)!r} cannot be read: {reason_unreadable(path, error)}.") from error
    names = sort_names(keys, source)
    _refuse_shapes(names, shapes, source)
    return LoraFile(path, names, _has_settings(metadata))


def sort_names(keys: Iterable[str], source: str | Path) -> LoraNames:
    """Sort a file's tensors by their names.

    Raises:
        InputError: a tensor is of another kind of adapter, or a pair lacks a half.
    """
    halves: dict[str, dict[bool, str]] = {}
    alphas: dict[str, str] = {}
    vectors: list[str] = []
    others: list[str] = []
    keys = sorted(keys)
    for key in keys:
        if half := _JOINED_HALF.match(key) or _HALF.match(key):
            halves.setdefault(half["layer"], {})[_FIRST[half["half"]]] = key
        elif alpha := _ALPHA.match(key):
            alphas[alpha["layer"]] = key
        elif _VECTOR.match(key):
            vectors.append(key)
        else:
            others.append(key)
    owners = {layer: _alpha_of(layer, alphas) for layer in halves}
    others += sorted({*alphas} - {*owners.values()}, key=str)
    _refuse_others(others, len(keys), source)
    torn = [layer for layer, pair in halves.items() if len(pair) < 2]
    if torn:
        raise InputError(
            f"{len(torn)} of the {len(halves)} layers in the LoRA {str(source)!r} have one of their two factors only, "
            f"the first: {torn[0]}; the file is not whole, so get it again."
        )
    factors = {
        layer: Factors(pair[True], pair[False], alphas.get(owners[layer] or "")) for layer, pair in halves.items()
    }
    return LoraNames(factors, tuple(vectors))


def _alpha_of(layer: str, alphas: Mapping[str, str]) -> str | None:
    """The name under which a layer's alpha stands: the layer's, or that without diffusers' own ending."""
    forms = (layer, *(layer.removesuffix(end) for end in (".lora", "_lora", ".lora_linear_layer")))
    return next((form for form in forms if form in alphas), None)


def _refuse_others(others: list[str], total: int, source: str | Path) -> None:
    if not others:
        return
    first = others[0]
    kind = next((kind for words, kind in OTHER_KINDS if any(word in first for word in words)), None)
    what = f"it is of {kind}" if kind is not None else "no LoRA has such a one"
    raise InputError(
        f"{len(others)} of the {total} tensors of the LoRA {str(source)!r} would be left out, the first: {first} "
        f"({what}). Merge the adapter into the model with the program that made it, and give the merged model."
    )


def _refuse_shapes(names: LoraNames, shapes: Mapping[str, tuple[int, ...]], source: str | Path) -> None:
    for layer, (down, up, _) in names.factors.items():
        first, second = shapes[down], shapes[up]
        if min(len(first), len(second)) < 2 or first[0] != second[1]:
            raise InputError(
                f"The two factors of {layer} in the LoRA {str(source)!r} are of shapes {list(first)} and "
                f"{list(second)}, which have no rank in common; the file is damaged or of another kind."
            )


def _has_settings(metadata: Mapping[str, str]) -> bool:
    """Whether the header holds peft's settings as diffusers writes them."""
    try:
        return bool(json.loads(metadata.get("lora_adapter_metadata", "null")))
    except ValueError:
        return False
