"""Parts of a report in several pages: links between them, pictures that stay in their files, a search of all rows.

Everything is relative to the run's folder, so that it opens from a disk without a server and moves with the folder.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import NamedTuple

__all__ = ["FoundRow", "Link", "LinkedPicture", "Links", "Search", "search_script"]

_RELATIVE = re.compile(r"(\.\./)?[A-Za-z0-9_-][A-Za-z0-9._-]*(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*(#[A-Za-z0-9._-]+)?")


def _refuse_elsewhere(address: str) -> None:
    if not _RELATIVE.fullmatch(address):
        raise ValueError(f"expected the relative path of a file of the run, got {address[:60]!r}")


@dataclass(frozen=True)
class LinkedPicture:
    """A picture of the run's folder that the page shows from its file.

    Attributes:
        address: its path relative to the page.
        caption: what it shows; also read to those who cannot see it.
        label: a short figure below, e.g. a similarity.
    """

    address: str
    caption: str = ""
    label: str = ""

    def __post_init__(self) -> None:
        """Refuse anything outside of the run's folder."""
        _refuse_elsewhere(self.address)

    @property
    def uri(self) -> str:
        """What the template loads."""
        return self.address


class Link(NamedTuple):
    """A link to another file of the run: its text, its path relative to the page."""

    text: str
    address: str


@dataclass(frozen=True)
class Links:
    """A row of links."""

    links: Sequence[Link]

    def __post_init__(self) -> None:
        """Refuse anything outside of the run's folder."""
        for link in self.links:
            _refuse_elsewhere(link.address)


@dataclass(frozen=True)
class Search:
    """A box that searches all rows; :func:`search_script` makes the script in the file `script` beside the page."""

    script: str
    label: str

    def __post_init__(self) -> None:
        """Refuse a script from elsewhere."""
        _refuse_elsewhere(self.script)


class FoundRow(NamedTuple):
    """A row that can be searched: the address of its place, and the texts of its cells."""

    address: str
    cells: Sequence[str]


def search_script(headers: Sequence[str], rows: Sequence[FoundRow], *, limit: int = 200) -> str:
    r"""The JavaScript of a :class:`Search`: all rows as data, and the code that shows those with all words.

    The data are JSON in plain ASCII, without ``<``, and reach the page as text only.

    Args:
        headers: of the columns.
        rows: in the order in which they are shown.
        limit: how many are shown at most.

    Example:
        >>> script = search_script(["id"], [FoundRow("rows-001.html#row-1", ["</script>\u2028"])])
        >>> script.splitlines()[1]
        '["rows-001.html#row-1", ["\\u003c/script>\\u2028"]]'
    """
    for row in rows:
        _refuse_elsewhere(row.address)
    data = ",\n".join(_as_javascript([row.address, list(row.cells)]) for row in rows)
    settings = f"const HEADERS = {_as_javascript(list(headers))}, LIMIT = {limit};"
    code = (files("diffkit.report") / "search.js").read_text(encoding="utf-8")
    return f"const ROWS = [\n{data}\n];\n{settings}\n{code}"


def _as_javascript(value: object) -> str:
    return json.dumps(value, ensure_ascii=True).replace("<", "\\u003c")
