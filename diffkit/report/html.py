"""What a report is made of; :func:`diffkit.report.render.render_page` makes a page of it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

from diffkit.report.links import LinkedPicture, Links, Search

if TYPE_CHECKING:
    from matplotlib.figure import Figure as MatplotlibFigure
    from PIL.Image import Image
    from torch import Tensor

__all__ = [
    "AnyPicture", "Block", "Cell", "CellLike", "Facts", "Figure", "Notes", "Paragraph", "Picture", "Section", "Stat",
    "Table", "Tone",
]  # fmt: skip

Tone = Literal["plain", "good", "warn", "bad", "muted"]

THUMBNAIL = 192  # pixels of the longer side; shown at half of that, so that dense displays stay sharp
_NUMBER = re.compile(r"[-−+<≤]?\s?\d[\d\s.,]*(e[-+]?\d+)?\s?%?")


@dataclass(frozen=True)
class Stat:
    """A figure of the summary: what it is, its value, and a line on how to read it (n, interval, source)."""

    label: str
    value: str
    detail: str = ""
    tone: Tone = "plain"


@dataclass(frozen=True)
class Paragraph:
    """Plain text; an empty line starts a new paragraph."""

    text: str

    @property
    def parts(self) -> list[str]:
        """The single paragraphs."""
        return [part.strip() for part in re.split(r"\n\s*\n", self.text) if part.strip()]


@dataclass(frozen=True)
class Cell:
    """A cell of a table: text, a tone (a verdict reads as a badge), and a smaller line below."""

    text: str
    tone: Tone = "plain"
    detail: str = ""


@dataclass(frozen=True)
class Picture:
    """An image in a cell.

    Attributes:
        uri: a ``data:image/...`` URI, see `diffkit.images.data_uri`.
        caption: what it shows; also read to those who cannot see it.
        label: a short figure below, e.g. a similarity.
    """

    uri: str
    caption: str = ""
    label: str = ""

    def __post_init__(self) -> None:
        """Refuse anything the page would have to load."""
        if not re.fullmatch(r"data:image/(png|jpeg|webp);base64,[A-Za-z0-9+/=]+", self.uri):
            raise ValueError(f"expected a data:image URI in base64, got {self.uri[:40]!r}")

    @classmethod
    def of(cls, image: Image | Tensor | str | Path, caption: str = "", label: str = "") -> Self:
        """From a PIL image, a tensor (3, H, W) in [0, 1], or an image file; made small enough for a table."""
        from diffkit.images import data_uri

        return cls(data_uri(image, max_side=THUMBNAIL), caption, label)


AnyPicture = Picture | LinkedPicture
CellLike = str | int | float | Cell | AnyPicture | Sequence[AnyPicture] | None


@dataclass(frozen=True)
class Table:
    """A table. A cell is text, a number, a `Cell`, a `Picture`, several pictures, or None for what is unknown.

    `anchors`: for each row the name by which a link reaches it; none by default.
    """

    headers: Sequence[str]
    rows: Sequence[Sequence[CellLike]]
    caption: str = ""
    anchors: Sequence[str] = ()

    def __post_init__(self) -> None:
        """Refuse rows of another length than the header, and anchors of another number than the rows."""
        if self.anchors and len(self.anchors) != len(self.rows):
            raise ValueError(f"expected {len(self.rows)} anchors, got {len(self.anchors)}")
        for number, row in enumerate(self.rows, start=1):
            if len(row) != len(self.headers):
                raise ValueError(f"row {number}: expected {len(self.headers)} cells, got {len(row)}")

    @property
    def prepared(self) -> list[list[dict[str, object]]]:
        """The cells as the template wants them."""
        return [[_prepare(cell) for cell in row] for row in self.rows]


def _prepare(cell: CellLike) -> dict[str, object]:
    if cell is None:
        return {"kind": "text", "text": "–", "tone": "plain", "detail": "", "look": "unknown"}
    if isinstance(cell, (Picture, LinkedPicture)):
        return {"kind": "pictures", "pictures": [cell]}
    if isinstance(cell, Cell):
        text, tone, detail = cell.text, cell.tone, cell.detail
    elif isinstance(cell, (str, int, float)):
        text, tone, detail = (f"{cell:.3g}" if isinstance(cell, float) else str(cell)), "plain", ""
    else:
        return {"kind": "pictures", "pictures": list(cell)}
    numeric = tone == "plain" and _NUMBER.fullmatch(text) is not None
    look = "numeric" if numeric else _look(max(len(text), len(detail)))
    return {"kind": "text", "text": text, "tone": tone, "detail": detail, "look": look}


def _look(length: int) -> str:
    """The class of a cell with so many characters: a long text gets a column it can be read in."""
    return "prose" if length > 80 else "words" if length > 24 else ""


@dataclass(frozen=True)
class Figure:
    """A plot. `svg` is trusted markup: make it with `Figure.of` from a matplotlib figure, never from user input."""

    title: str
    svg: str
    caption: str = ""

    @classmethod
    def of(cls, title: str, figure: MatplotlibFigure, caption: str = "") -> Self:
        """From a matplotlib figure; its ink follows the page's light or dark scheme."""
        from diffkit.report.plots import to_svg

        return cls(title, to_svg(figure), caption)

    @property
    def width(self) -> int:
        """Its natural width in pixels, at which its letters have the size that they were given in points."""
        box = re.search(r'viewBox="0 0 ([\d.]+)', self.svg)
        return round(float(box[1]) * 4 / 3) if box else 480


@dataclass(frozen=True)
class Facts:
    """Names and values, e.g. a configuration."""

    items: Mapping[str, object]

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """As text; None reads as a dash."""
        return [(name, "–" if value is None else str(value)) for name, value in self.items.items()]


@dataclass(frozen=True)
class Notes:
    """A list: assumptions, limits, errors."""

    items: Sequence[str]
    tone: Tone = "plain"


Block = Paragraph | Table | Figure | Facts | Notes | Links | Search


@dataclass(frozen=True)
class Section:
    """A titled part of the page. With `folded`, the reader opens it; it is always printed."""

    title: str
    blocks: Sequence[Block] = field(default_factory=tuple)
    folded: bool = False
