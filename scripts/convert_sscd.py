"""Convert the published SSCD weights to safetensors, once.

    python scripts/convert_sscd.py sscd_disc_mixup.torchscript.pt weights/sscd [--sha256 HEX]

TorchScript is a program: it is loaded only when the file's SHA-256 is known here or given (compare with a source you
trust). The converted network is run beside the program on random pictures and kept only when both agree. TorchScript is
deprecated in torch; the published .torchvision.pt and .classy.pt files hold plain tensors and are accepted as well.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from diffkit.errors import InputError
from diffkit.runs import sha256_file
from diffkit.runs.files import write_bytes_atomically
from memorization.copies.sscd import SSCD, architecture_of, is_torchscript, read_weights, renamed

#: The authors publish no checksums. This one is what several unrelated public projects pin for the authors' address.
KNOWN = {"9f26bd4c848cc19b73d2ae92eea6e04886f61a7b764ceb7a13aeee62e6a6db56": "sscd_disc_mixup.torchscript.pt"}
TOLERANCE = 1e-4  # of descriptors of length 1


def convert(source: Path, folder: Path, sha256: str | None = None) -> Path:
    """Write ``folder/model.safetensors``; returns its path.

    Raises:
        InputError: the checksum is unknown or another, or the network does not compute what the program computes.
    """
    digest = sha256_file(source)
    if sha256 is not None and digest != sha256.lower():
        raise InputError(f"{source} has SHA-256 {digest}, not {sha256}: download it again, and do not use it.")
    program = is_torchscript(source)
    if program and sha256 is None and digest not in KNOWN:
        raise InputError(
            f"{source} is TorchScript with the unknown SHA-256 {digest}: compare it with a source you trust, then give "
            "it as --sha256, or take the published .torchvision.pt file of plain tensors."
        )
    weights = from_program(source) if program else read_weights(source)
    metadata = {"format": "pt", "source": source.name, "source_sha256": digest}
    target = folder / "model.safetensors"
    write_bytes_atomically(target, save(weights, metadata=metadata))
    return target


def from_program(source: Path) -> dict[str, Tensor]:
    """The program's tensors under torchvision's names, checked by running both.

    Raises:
        InputError: no way of reading the tensors gives the program's own descriptors.
    """
    module = torch.jit.load(str(source), map_location="cpu").eval()
    pictures = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = module(pictures)
    reason = "its tensors are in no known order"
    for tensors in chain([module.state_dict()], frozen(module)):
        try:
            weights = renamed(tensors, str(source))
        except InputError as error:
            reason = str(error)
            continue
        model = SSCD(**architecture_of(weights))
        model.load_state_dict(weights)
        with torch.no_grad():
            found = float((model.eval()(pictures) - wanted).abs().max())
        if found <= TOLERANCE:
            return weights
        reason = f"the descriptors differ by {found:.2g}"
    raise InputError(f"{source} could not be converted: {reason}. Take the published .torchvision.pt file instead.")


def frozen(module: torch.jit.ScriptModule) -> Iterator[dict[str, Tensor]]:
    """Tensors of a program whose parameters were frozen into constants, batch norms folded or not.

    A program runs a block's shortcut first or last: both readings are offered.
    """
    layers: list[tuple[str, list[Tensor]]] = []
    for node in module.inlined_graph.nodes():
        constants: list[Tensor] = [c for c in (value.toIValue() for value in node.inputs()) if torch.is_tensor(c)]
        if constants and node.kind() in ("aten::conv2d", "aten::_convolution", "aten::batch_norm", "aten::linear"):
            layers.append((node.kind(), constants))
    convolutions = _with_norms(layers)
    linear = [tensors for kind, tensors in layers if kind == "aten::linear"]
    if not convolutions or len(linear) != 1:
        return
    for order in (convolutions, _shortcuts_last(convolutions)):
        flat = [tensor for tensors in order for tensor in tensors] + linear[0]
        yield {f"{index:04d}": tensor for index, tensor in enumerate(flat)}


def _with_norms(layers: Sequence[tuple[str, list[Tensor]]]) -> list[list[Tensor]]:
    """Each convolution's weight with its batch norm's weight, bias, mean and variance."""
    groups: list[list[Tensor]] = []
    for kind, tensors in layers:
        if kind == "aten::batch_norm":
            groups[-1] = [groups[-1][0], *tensors]
        elif kind != "aten::linear":
            weight = tensors[0]
            bias = tensors[1] if len(tensors) > 1 else torch.zeros(len(weight))
            one = torch.ones(len(weight))  # a folded norm: its bias stays, a variance of 1 - eps makes it do nothing
            groups.append([weight, one, bias, torch.zeros(len(weight)), one - 1e-5])
    return groups


def _shortcuts_last(convolutions: list[list[Tensor]]) -> list[list[Tensor]]:
    """The stem, then blocks of three; a shortcut (1x1) that comes before its block's three is moved behind them."""
    stem, rest = convolutions[:1], convolutions[1:]
    ordered: list[list[Tensor]] = []
    while rest:
        shapes = [tensors[0].shape[-1] for tensors in rest[:4]]
        first = 1 if shapes[:3] == [1, 1, 3] else 0
        ordered += [*rest[first : first + 3], *rest[:first]]
        rest = rest[first + 3 :]
    return [*stem, *ordered]


def main() -> None:
    """Parse, convert, say what was written."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sha256", help="what the file's checksum must be")
    options = parser.parse_args()
    try:
        target = convert(options.source, options.folder, options.sha256)
    except InputError as error:
        sys.exit(str(error))
    print(f"{target}  sha256 {sha256_file(target)}")


if __name__ == "__main__":
    main()
