"""Reports: one self-contained page that loads nothing and trusts nothing."""

from __future__ import annotations

from diffkit.report.build import write_report
from diffkit.report.html import (
    Block,
    Cell,
    Facts,
    Figure,
    Notes,
    Paragraph,
    Picture,
    Section,
    Stat,
    Table,
    Tone,
)
from diffkit.report.links import Link, LinkedPicture, Links, Search
from diffkit.report.render import render_page

__all__ = [
    "Block",
    "Cell",
    "Facts",
    "Figure",
    "Link",
    "LinkedPicture",
    "Links",
    "Notes",
    "Paragraph",
    "Picture",
    "Search",
    "Section",
    "Stat",
    "Table",
    "Tone",
    "render_page",
    "write_report",
]
