"""The items of an audit: suspects, controls, edited suspects, and the suspects on the reference model."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from diffkit.console import say
from diffkit.errors import InputError
from diffkit.runs.files import dump_json
from diffkit.suspects import RowError, Suspect, read_suspects
from diffkit.suspects.record import writable

if TYPE_CHECKING:
    from diffkit.runs import Run

Role = Literal["suspect", "control", "edit", "reference", "reference_control"]
ON_REFERENCE: tuple[Role, ...] = ("reference", "reference_control")
#: Edits of a suspect's image; see memorization/auditing/edited_controls.py.
EditName = Literal["mirror", "crop", "shuffle", "noise"]
#: Where suspects or controls come from: what :func:`diffkit.read_suspects` takes, or its result.
Source = str | Path | Sequence[Suspect]
SHOWN_ERRORS = 10
KINDS = "kinds_sha256"  # an audit's configuration states :func:`kinds_digest` by this key; version 0.1.0 did not


@dataclass(frozen=True)
class AuditItem:
    """One suspect or control to measure.

    Attributes:
        role: a "suspect"; a "control"; an "edit" of a suspect, attacked as it is; the suspect on the "reference"
            model, with the suspect's own seeds; a control on it, "reference_control", likewise.
        suspect: caption and images.
        edit: what was done to the images, of an "edit".
    """

    role: Role
    suspect: Suspect
    edit: EditName | None = None

    @property
    def key(self) -> str:
        """Identifies the item in the run: ``suspect:cat``, ``control:dog``, ``mirror:cat``, ``reference:cat``."""
        return f"{self.edit or self.role}:{self.suspect.id}"

    @property
    def seed_key(self) -> str:
        """Determines its seeds; on the reference model an item has the seeds it has on the audited model."""
        return (self.of or self.key) if self.role in ON_REFERENCE else self.key

    @property
    def of(self) -> str | None:
        """Key of the suspect or control it was made from."""
        if self.role == "reference_control":
            return f"control:{self.suspect.id}"
        return f"suspect:{self.suspect.id}" if self.role in ("edit", "reference") else None


class Gathered(NamedTuple):
    """The items of an audit, suspects first, and the rows that could not be read."""

    items: list[AuditItem]
    suspect_errors: list[RowError]
    control_errors: list[RowError]


def gather(
    suspects: Source | Gathered,
    controls: Source | None = None,
    *,
    limit: int | None = None,
    limit_controls: int | None = None,
) -> Gathered:
    """Read suspects and controls.

    Args:
        suspects: what :func:`diffkit.suspects.read_suspects` takes, suspects that it has read, or the result of
            this function, which is returned.
        controls: the same, or None; without controls no attack verdict can be given.
        limit: only the first so many suspects; ``limit_controls``: only the first so many controls.

    Raises:
        InputError: no suspect at all, an id used twice, or controls beside gathered items.
    """
    if isinstance(suspects, Gathered):
        if controls is not None:
            raise InputError("Gathered items have their controls already: leave out controls.")
        return suspects
    suspect_list, suspect_errors = _read(suspects)
    control_list, control_errors = _read(controls) if controls is not None else ([], [])
    items = [AuditItem("suspect", suspect) for suspect in suspect_list[:limit]]
    items += [AuditItem("control", suspect) for suspect in control_list[:limit_controls]]
    if not suspect_list:
        raise InputError(_nothing_to_audit(suspects, suspect_errors))
    twice = [key for key, count in Counter(item.key for item in items).items() if count > 1]
    if twice:
        raise InputError(f"The ids of suspects and of controls must be unique; {twice[0]!r} occurs more than once.")
    return Gathered(items, suspect_errors, control_errors)


def _nothing_to_audit(source: Source, errors: Sequence[RowError]) -> str:
    """Why there is no suspect: the reasons of the first rows."""
    name = source if isinstance(source, (str, Path)) else "The list of suspects"
    reasons = "; ".join(f"row {error.row}: {error.reason}" for error in errors[:3])
    more = f"; and {len(errors) - 3} more" if len(errors) > 3 else ""
    return f"{name} has no row that can be audited" + (f". In error: {reasons}{more}." if errors else ": it is empty.")


def _read(source: Source) -> tuple[list[Suspect], list[RowError]]:
    return read_suspects(source) if isinstance(source, (str, Path)) else (list(source), [])


def with_companions(
    items: Sequence[AuditItem], *, edits: Sequence[EditName] = (), reference: bool = False
) -> list[AuditItem]:
    """The items, then edits of the suspects, family by family, then controls and suspects on the reference model.

    A suspect without an image has nothing to edit, and a reference needs one to compare with.
    """
    suspects, controls = (
        [item for item in items if item.role == role and item.suspect.images] for role in ("suspect", "control")
    )
    edited = [replace(item, role="edit", edit=name) for name in edits for item in suspects]
    companions = [
        *(replace(item, role="reference_control") for item in controls),
        *(replace(item, role="reference") for item in suspects),
    ]
    return [*items, *edited, *(companions if reference else [])]


def without_repeated(items: Sequence[AuditItem], repeated: Collection[str]) -> list[AuditItem]:
    """The items without the controls of these keys, on the reference model too."""
    return [item for item in items if (item.of or item.key) not in repeated]


def stated_count(roles: Iterable[str]) -> int:
    """How many items a run's configuration states, by their roles.

    Controls on the reference model follow from the others, and runs of earlier versions, which resume, had none.
    """
    return sum(role != "reference_control" for role in roles)


def say_row_errors(errors: Sequence[RowError], *, rest: str | None) -> None:
    """Print rows that could not be read: the first ten and what became of the ``rest``; all of them for None."""
    shown = errors if rest is None else errors[:SHOWN_ERRORS]
    for error in shown:
        say(f"{error.source}, row {error.row}: {error.reason}")
    if len(errors) > len(shown):
        say(f"... and {len(errors) - len(shown)} {rest}")


def write_row_errors(run: Run, gathered: Gathered) -> None:
    """Write all rows that could not be read into ``rows_in_error.csv`` of a run: source, row, reason."""
    from diffkit.runs.files import ROWS_IN_ERROR

    errors = [*gathered.suspect_errors, *gathered.control_errors]
    if not errors:
        run.path(ROWS_IN_ERROR).unlink(missing_ok=True)
        return
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    writer.writerows([("source", "row", "reason"), *((error.source, error.row, error.reason) for error in errors)])
    run.write_text(ROWS_IN_ERROR, writable(lines.getvalue()))


def captions_of(items: Sequence[AuditItem]) -> dict[str, str]:
    """The captions by the items' keys."""
    return {item.key: item.suspect.caption for item in items}


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


def kinds_digest(items: Sequence[AuditItem]) -> str:
    """Hex SHA-256 over the kinds of suspects and controls, in order.

    Controls are fitted by their kinds, so that other kinds give other verdicts.
    """
    from hashlib import sha256

    return sha256(dump_json([item.suspect.kind for item in items]).encode()).hexdigest()
