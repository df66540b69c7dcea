"""What an audit is about: suspects and controls by key, and their reference images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from diffkit.errors import InputError
from diffkit.prompts import RowError, Suspect, read_suspects

if TYPE_CHECKING:
    from torch import Tensor

Role = Literal["suspect", "control"]


@dataclass(frozen=True)
class AuditItem:
    """One suspect or control."""

    role: Role
    suspect: Suspect

    @property
    def key(self) -> str:
        """Identifies the item in the run: ``suspect:cat``."""
        return f"{self.role}:{self.suspect.id}"


class Gathered(NamedTuple):
    """The items of an audit, suspects first, and the rows that could not be read."""

    items: list[AuditItem]
    suspect_errors: list[RowError]
    control_errors: list[RowError]


def gather(
    suspects: str | Path,
    controls: str | Path | None,
    *,
    limit: int | None = None,
    limit_controls: int | None = None,
) -> Gathered:
    """Read suspects and controls.

    Args:
        suspects: what :func:`diffkit.prompts.read_suspects` takes.
        controls: the same, or None; without controls no attack verdict can be given.
        limit: only the first so many suspects; ``limit_controls``: only the first so many controls.

    Raises:
        InputError: no suspect at all, or an id used twice.
    """
    wanted, suspect_errors = read_suspects(suspects)
    known, control_errors = read_suspects(controls) if controls is not None else ([], [])
    items = [AuditItem("suspect", suspect) for suspect in wanted[:limit]]
    items += [AuditItem("control", suspect) for suspect in known[:limit_controls]]
    if not wanted:
        raise InputError(f"{suspects} has no row that can be audited ({len(suspect_errors)} in error).")
    twice = [key for key, count in Counter(item.key for item in items).items() if count > 1]
    if twice:
        raise InputError(f"The ids of suspects and of controls must be unique; {twice[0]!r} occurs more than once.")
    return Gathered(items, suspect_errors, control_errors)


class References(NamedTuple):
    """(R, 3, H, W) reference images of one item, or None and the reason."""

    images: Tensor | None
    reason: str | None


def load_references(item: AuditItem, size: tuple[int, int]) -> References:
    """Read an item's images at the model's size; one that cannot be read makes the item unscored, with the reason."""
    import torch

    from diffkit.images import load_image

    if not item.suspect.images:
        return References(None, "no image to compare with")
    try:
        return References(torch.stack([load_image(path, size) for path in item.suspect.images]), None)
    except (InputError, OSError) as error:
        return References(None, str(error))


def data_digest(items: Sequence[AuditItem]) -> str:
    """Hex SHA-256 over keys, captions and the contents of all images, in order."""
    from hashlib import sha256

    from diffkit.runs import sha256_file

    total = sha256()
    for item in items:
        total.update(f"{item.key}\n{item.suspect.caption}\n".encode())
        for path in item.suspect.images:
            total.update(f"{sha256_file(path) if path.is_file() else 'missing'}\n".encode())
    return total.hexdigest()
