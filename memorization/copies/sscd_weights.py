"""SSCD's published weights under one set of names: torchvision's, whichever library the file was made with.

The same network was published with torchvision's and with Classy Vision's names. Both register their layers in the
order in which a picture meets them, the shortcut of a block last, so tensors are matched in order and every shape must
agree. ``scripts/convert_sscd.py`` checks the result against the TorchScript program itself.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import TypedDict

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from diffkit.errors import InputError


class Architecture(TypedDict):
    """What :class:`~memorization.copies.sscd.SSCD` is built from."""

    layers: tuple[int, ...]
    groups: int
    width_per_group: int
    dims: int


def read_weights(file: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, or of a ``.pt`` file of plain tensors, under torchvision's names.

    Raises:
        InputError: the file is TorchScript (which is a program: convert it once), damaged, or not SSCD's.
    """
    if file.suffix == ".safetensors":
        try:
            return renamed(load_file(file), str(file))
        except SafetensorError as error:
            raise InputError(f"{file} is no safetensors file: {error}.") from error
    if is_torchscript(file):
        raise InputError(
            f"{file} is TorchScript, which runs code when it is loaded: convert it once with "
            "`python scripts/convert_sscd.py FILE FOLDER` and give the folder."
        )
    try:
        found = torch.load(file, map_location="cpu", weights_only=True)
    except (RuntimeError, UnpicklingError, EOFError, ValueError, KeyError) as error:
        raise InputError(f"{file} is no file of plain tensors: {str(error).splitlines()[0]}") from error
    if not isinstance(found, Mapping) or not all(isinstance(value, Tensor) for value in found.values()):
        raise InputError(f"{file} holds something else than tensors by name; expected sscd_*.torchvision.pt.")
    return renamed(found, str(file))


def is_torchscript(file: Path) -> bool:
    """Whether a file is a TorchScript archive, seen from its table of contents alone."""
    if not zipfile.is_zipfile(file):
        return False
    with zipfile.ZipFile(file) as archive:
        return any(name.split("/", 1)[-1].startswith("code/") for name in archive.namelist())


def renamed(tensors: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """The tensors under torchvision's names, ``backbone.conv1.weight`` and so on, float32.

    Raises:
        InputError: number or shapes of the tensors are not those of a bottleneck ResNet with one linear layer.
    """
    from memorization.copies.sscd import SSCD

    counted = ("num_batches_tracked",)
    given = {name: value for name, value in tensors.items() if not name.endswith(counted)}
    architecture = architecture_of(given, where)
    with torch.device("meta"):
        wanted = SSCD(**architecture).state_dict()
    names = [name for name in wanted if not name.endswith(counted)]
    order = names if set(names) == set(given) else list(given)
    if len(order) != len(names):
        raise InputError(f"{where} is no SSCD model: expected {len(names)} tensors, got {len(order)}.")
    result = {name: given[own].float().contiguous() for name, own in zip(names, order, strict=True)}
    for name, own in zip(names, order, strict=True):
        if result[name].shape != wanted[name].shape:
            got, expected = tuple(result[name].shape), tuple(wanted[name].shape)
            raise InputError(f"{where} is no SSCD model: {own} has shape {got}, expected {expected} ({name}).")
    zeros = {name: torch.zeros((), dtype=torch.long) for name in wanted if name.endswith(counted)}
    return {name: {**result, **zeros}[name] for name in wanted}


def architecture_of(tensors: Mapping[str, Tensor], where: str = "The file") -> Architecture:
    """Blocks, groups and width from the shapes of the convolutions, in order.

    Raises:
        InputError: they are not those of a bottleneck ResNet of four stages with one linear layer.
    """
    shapes = [tuple(value.shape) for value in tensors.values()]
    middles = [shape for shape in shapes if len(shape) == 4 and shape[2:] == (3, 3)]  # one in each block
    linear = [shape for shape in shapes if len(shape) == 2]
    widths = sorted({shape[0] for shape in middles})
    if len(widths) != 4 or len(linear) != 1:
        raise InputError(
            f"{where} is no SSCD model: expected four widths of blocks and one linear layer, got {len(widths)} and "
            f"{len(linear)}."
        )
    groups = widths[0] // middles[0][1]
    return {
        "layers": tuple(sum(shape[0] == width for shape in middles) for width in widths),
        "groups": groups,
        "width_per_group": widths[0] // groups,
        "dims": linear[0][0],
    }
