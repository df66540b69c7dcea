"""Mitigations: reversible changes to a pipeline against memorization, each stored as a small folder.

A folder holds ``mitigation.json`` (the card) and ``weights.safetensors``. Tensor names begin with the part of the
pipeline they belong to, e.g. ``unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_v``. Kinds:

- ``mask``: ``<module>.rows`` (int32 output rows to zero, bias included), ``<module>.weights`` (int32 flat indices into
  the weight) or ``<module>.bits`` (uint8, one bit for each weight in flat order, 1 = off, the first in the highest bit;
  :mod:`diffkit.mitigation.packed_mask`), of linear layers and convolutions. ``<suspect id>/<module>.rows`` belongs to
  one suspect; the union of all is applied by default.
  What is switched off may leave its ordinary value behind instead of 0: ``<module>.outputs`` (float, an ordinary value
  of each output) for rows, ``<module>.inputs`` (float, an ordinary value of each input) for weights. It goes into the
  bias of the module or, for a ``to_v`` without one, through ``to_out.0`` into the bias there: attention weights sum
  to 1, so that a constant value passes unchanged.
- ``delta``: ``<parameter>``, the difference to the model's own parameter.
- ``lora``: a peft adapter as diffusers saves it, alpha = rank (the file has no place for another alpha).

Others join by the entry-point group ``diffkit.mitigation_kinds``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from diffkit.errors import InputError
from diffkit.lab import assets
from diffkit.noted_options import NotedMitigation, note_mitigation
from diffkit.registry import Registry
from diffkit.runs.files import dump_json, write_bytes_atomically

if TYPE_CHECKING:
    from torch import Tensor

    from diffkit.families import Pipeline

__all__ = [
    "CARD",
    "OF_WEIGHTS",
    "SCHEMA_VERSION",
    "WEIGHTS",
    "Applied",
    "Mitigation",
    "apply_mitigation",
    "card_checksum",
    "card_of",
    "mitigation_kinds",
    "load_mitigation",
    "mitigation_folder",
    "read_card",
    "save_mitigation",
]

SCHEMA_VERSION = 1
CARD, WEIGHTS = "mitigation.json", "weights.safetensors"
OF_WEIGHTS = ("mask", "delta", "lora")  # kinds; the others, guards, change a generation and no weight


@dataclass(frozen=True, eq=False)
class Mitigation:
    """A reversible change to one model.

    Attributes:
        method: that made it, e.g. "nemo".
        kind: how it is applied, see the module.
        model: name, folder or hub id of the model it was made for.
        model_sha256: checksum of that model's folder; None = unknown (a hub id), then only shapes are compared.
        settings: of the method, JSON values.
        suspects: ids of the suspects it was made against.
        figures: what was measured while making it, JSON values; unknown is None.
        tensors: names as in the module's description.
    """

    method: str
    kind: str
    model: str
    tensors: Mapping[str, Tensor]
    model_sha256: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    suspects: tuple[str, ...] = ()
    figures: Mapping[str, Any] = field(default_factory=dict)

    def parts(self) -> list[str]:
        """Ids of the suspects that have tensors of their own, in the card's order."""
        own = {name.rpartition("/")[0] for name in self.tensors if "/" in name}
        return [suspect for suspect in self.suspects if suspect in own]

    def card(self) -> dict[str, Any]:
        """The card's content, without the checksum of the weights."""
        return {
            "schema_version": SCHEMA_VERSION,
            "method": self.method,
            "kind": self.kind,
            "model": self.model,
            "model_sha256": self.model_sha256,
            "settings": dict(self.settings),
            "suspects": list(self.suspects),
            "figures": dict(self.figures),
        }


Undo = Callable[[], None]
#: (pipeline, mitigation, only this suspect or None) -> its undoing; raises InputError before changing anything.
Kind = Callable[["Pipeline", Mitigation, "str | None"], Undo]

mitigation_kinds: Registry[Kind] = Registry(
    "kind of mitigation",
    "diffkit.mitigation_kinds",
    builtins={
        "mask": "diffkit.mitigation.kinds:apply_mask",
        "delta": "diffkit.mitigation.kinds:apply_delta",
        "lora": "diffkit.mitigation.kinds:apply_lora",
    },
)


def save_mitigation(folder: str | Path, mitigation: Mitigation) -> Path:
    """Write a mitigation's two files; returns the folder.

    The card comes last and knows the checksum of the weights, so that a crash in between is found when loading.
    """
    folder = Path(folder)
    data, card = _serialized(mitigation)
    text = dump_json(card, indent=2) + "\n"
    write_bytes_atomically(folder / WEIGHTS, data)
    write_bytes_atomically(folder / CARD, text.encode())
    return folder


def _serialized(mitigation: Mitigation) -> tuple[bytes, dict[str, Any]]:
    """The weights' file and the card of a mitigation."""
    import hashlib

    from safetensors.torch import save

    data = save({name: tensor.detach().cpu().contiguous() for name, tensor in mitigation.tensors.items()})
    return data, mitigation.card() | {"weights_sha256": hashlib.sha256(data).hexdigest()}


def card_of(mitigation: Mitigation | str | Path) -> dict[str, Any]:
    """The card that a mitigation has in its folder, with the checksum of its weights."""
    return _serialized(mitigation)[1] if isinstance(mitigation, Mitigation) else read_card(mitigation)


def mitigation_folder(mitigation: str | Path) -> Path:
    """The folder of a mitigation: a folder itself, or the name of a shipped one where there is no such folder.

    Example:
        >>> mitigation_folder("lab-nemo").parent.name, str(mitigation_folder("runs/nemo"))
        ('data', 'runs/nemo')
    """
    shipped = str(mitigation) in assets.MITIGATIONS and not Path(mitigation).exists()
    return assets.mitigation_path(str(mitigation)) if shipped else Path(mitigation)


def load_mitigation(folder: str | Path) -> Mitigation:
    """Read a mitigation's folder, or a shipped mitigation by its name, ``lab-nemo``.

    Raises:
        InputError: no such folder or file, a newer schema, or weights that are not the card's.
    """
    from safetensors.torch import load

    from diffkit.runs import sha256_file

    folder = mitigation_folder(folder)
    card = read_card(folder)
    weights = folder / WEIGHTS
    if not weights.is_file() or sha256_file(weights) != card["weights_sha256"]:
        raise InputError(f"{weights} is missing or not the file its card describes; run the mitigation again.")
    return Mitigation(
        method=card["method"],
        kind=card["kind"],
        model=card["model"],
        tensors=load(weights.read_bytes()),
        model_sha256=card["model_sha256"],
        settings=card["settings"],
        suspects=tuple(card["suspects"]),
        figures=card["figures"],
    )


def read_card(folder: str | Path) -> dict[str, Any]:
    """The card of a mitigation's folder, or of a shipped one by its name. Imports nothing heavy.

    Raises:
        InputError: it is not there, is no card, or comes from a newer diffkit.
    """
    path = mitigation_folder(folder) / CARD
    if not path.is_file():
        raise InputError(
            f"{str(folder)!r} holds no mitigation: it has no {CARD}. Make one with `diffkit mitigate`; for the model "
            "`lab` one is shipped, `lab-nemo`."
        )
    try:
        card = json.loads(path.read_bytes())
    except ValueError as error:
        raise InputError(f"{path} is no JSON ({error}); run the mitigation again.") from error
    version = card.get("schema_version") if isinstance(card, dict) else None
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise InputError(f"{path} was written by a newer diffkit (schema {version}); upgrade diffkit.")
    keys = {"method", "kind", "model", "model_sha256", "settings", "suspects", "figures", "weights_sha256"}
    if not isinstance(card, dict) or version is None or not keys <= set(card):
        raise InputError(f"{path} is not the card of a mitigation; run the mitigation again.")
    return dict(card)


def card_checksum(card: Mapping[str, Any]) -> str:
    """Hex SHA-256 that tells a mitigation from others in the record of a run: of its weights.

    A guard has none; there it is that of the card.

    Example:
        >>> card_checksum({"kind": "mask", "weights_sha256": "5ec4"})
        '5ec4'
    """
    import hashlib

    if card["kind"] in OF_WEIGHTS:
        return str(card["weights_sha256"])
    content = {key: card[key] for key in ("method", "kind", "settings", "figures", "weights_sha256")}
    return hashlib.sha256(dump_json(content).encode()).hexdigest()


class Applied:
    """A mitigation that is applied to a pipeline; a context manager that undoes it at the end of the block."""

    def __init__(self, mitigation: Mitigation, undo: Undo) -> None:
        self.mitigation = mitigation
        self._undo: Undo | None = undo

    def undo(self) -> None:
        """Restore the pipeline's own weights, bit for bit; a second call does nothing.

        Undo several mitigations of one pipeline in the reverse order.

        Raises:
            InputError: the layers that it changed have got a LoRA since, or were fused with others.
        """
        if self._undo is not None:
            self._undo()
            self._undo = None

    def __enter__(self) -> Self:
        """The handle itself; the mitigation has been on since :func:`apply_mitigation`."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Undo it."""
        self.undo()


def apply_mitigation(
    pipe: Pipeline,
    mitigation: Mitigation | str | Path,
    *,
    only: str | None = None,
    model_sha256: str | None = None,
) -> Applied:
    """Apply a mitigation to a pipeline, in place; an audit of the pipeline records it.

    Args:
        pipe: the pipeline.
        mitigation: itself, its folder, or the name of a shipped one, ``lab-nemo``.
        only: id of one suspect whose part alone is applied, for methods that choose weights per suspect; by default
            the union of all parts.
        model_sha256: checksum of the pipeline's own folder; compared with the card's where both are known.

    Raises:
        InputError: it was made for another model, its tensors do not fit, or ``only`` names no part of it.

    Example:
        >>> import torch
        >>> from diffkit import load_pipeline
        >>> pipe, rows = load_pipeline("lab", device="cpu"), torch.arange(3)
        >>> layer = "mid_block.attentions.0.transformer_blocks.0.attn2.to_v"
        >>> mask = Mitigation("by-hand", "mask", "lab", tensors={f"unet.{layer}.rows": rows})
        >>> weight = pipe.unet.get_parameter(f"{layer}.weight")
        >>> with apply_mitigation(pipe, mask):
        ...     print(bool(weight[rows].any()), bool(weight[3:].any()))
        False True
        >>> bool(weight[rows].any())
        True
    """
    note = NotedMitigation(mitigation, only)
    if not isinstance(mitigation, Mitigation):
        mitigation = load_mitigation(mitigation)
    made_for = mitigation.model_sha256
    if made_for is not None and model_sha256 is not None and made_for != model_sha256:
        raise InputError(
            f"This mitigation was made for {mitigation.model!r} (sha256 {made_for[:12]}), but the model is another one "
            f"(sha256 {model_sha256[:12]}); make it again for this model."
        )
    if only is not None and only not in mitigation.parts():
        raise InputError(f"The mitigation {mitigation.method!r} holds nothing for {only!r} alone; leave `only` out.")
    undo = mitigation_kinds.get(mitigation.kind)(pipe, mitigation, only)
    forget = note_mitigation(pipe, note)

    def restore() -> None:
        undo()
        forget()

    return Applied(mitigation, restore)
