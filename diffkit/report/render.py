"""The rendering of a report as one page of HTML.

Every text is escaped by the template. A page loads nothing, so that it can be mailed, archived and opened anywhere;
only one with parts of `links.py` loads files of its own run.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from diffkit.report.html import Block, Section, Stat, Table
from diffkit.report.links import LinkedPicture, Search

if TYPE_CHECKING:
    from jinja2 import Template

__all__ = ["render_page"]


def render_page(
    *,
    title: str,
    subtitle: str = "",
    summary: Sequence[Stat] = (),
    sections: Sequence[Section | Block],
    footer: str = "",
) -> str:
    """The page as HTML text, escaped, with a policy that forbids it to load or run anything that is not part of it.

    Args:
        title: heading and window title.
        subtitle: a line below it.
        summary: the figures on top.
        sections: in order; a bare block joins the section before it.
        footer: small print.
    """
    grouped = _grouped(sections)
    return _template().render(
        title=title, subtitle=subtitle, summary=list(summary), sections=grouped, footer=footer, policy=_policy(grouped)
    )


@lru_cache(maxsize=1)
def _template() -> Template:
    from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("diffkit.report", package_path=""),
        autoescape=select_autoescape(default=True, default_for_string=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["kind"] = lambda block: type(block).__name__
    environment.filters["trusted"] = Markup
    return environment.get_template("page.html")


def _policy(sections: Sequence[Section]) -> str:
    """The Content-Security-Policy: nothing is loaded, but files of the run by a page that has parts of `links.py`.

    A browser that reads from a disk has no origin: there ``'self'`` matches nothing, and ``file:`` is needed.
    """
    blocks = [block for section in sections for block in section.blocks]
    cells = [cell for block in blocks if isinstance(block, Table) for row in block.rows for cell in row]
    pictures = [part for cell in cells for part in (cell if isinstance(cell, (list, tuple)) else [cell])]
    own = " 'self' file:"
    images = own if any(isinstance(picture, LinkedPicture) for picture in pictures) else ""
    script = f"; script-src{own}" if any(isinstance(block, Search) for block in blocks) else ""
    return f"default-src 'none'; img-src data:{images}; style-src 'unsafe-inline'{script}"


def _grouped(parts: Sequence[Section | Block]) -> list[Section]:
    sections: list[Section] = []
    for part in parts:
        if isinstance(part, Section):
            sections.append(part)
        elif sections:
            last = sections[-1]
            sections[-1] = Section(last.title, (*last.blocks, part), last.folded)
        else:
            sections.append(Section("", (part,)))
    return sections
