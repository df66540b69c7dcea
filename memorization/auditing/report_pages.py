"""The pages of a large audit, in `report/` beside report.html: every row, and a search over all of them.

With the pictures of all rows inside it, the page of 10 000 items would have hundreds of megabytes. These pages load
the pictures from `images/`; they are made and written one after the other.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

from diffkit.report import Block, Link, Links, Notes, Paragraph, Search, render_page
from diffkit.report.links import FoundRow, search_script
from diffkit.runs import Run
from memorization.auditing.aggregate import Records, scores
from memorization.auditing.report_rows import LINES, PAGE_ROWS, SHOWN, Rows
from memorization.auditing.report_tables import control_table, linked, suspect_table, two_decimals
from memorization.auditing.result import AuditSummary, repeated_controls_of

FOLDER = "report"
FOUND = ("id", "role", "verdict", "caption", "by caption", "by attack")  # columns of the search
_PAGE = re.compile(r"(suspects|controls|lines)-\d+\.html|search\.(html|js)")


@dataclass(frozen=True)
class Group:
    """Rows that have pages of their own.

    Attributes:
        name: begins the names of the files, ``suspects-001.html``.
        title: heading of the pages.
        total: number of rows.
        at_once: rows of one page.
        block: the rows [first, last) with their anchors.
        label: what a link to the page of these rows says beside its number.
    """

    name: str
    title: str
    total: int
    at_once: int
    block: Callable[[int, int, Sequence[str]], Block]
    label: Callable[[int, int], str] = lambda first, last: ""

    @property
    def pages(self) -> list[tuple[int, int]]:
        """First row of each page, and the first after it."""
        return [(first, min(first + self.at_once, self.total)) for first in range(0, self.total, self.at_once)]

    def file(self, row: int) -> str:
        """Name of the page that holds a row, counted from 0."""
        return f"{self.name}-{row // self.at_once + 1:03d}.html"

    def anchor(self, row: int) -> str:
        """Name of the row inside its page."""
        return f"{self.name}-{row + 1}"

    def links(self) -> Links:
        """Links from report.html to all pages."""
        labels = [f"{index} {self.label(*page)}".strip() for index, page in enumerate(self.pages, start=1)]
        return Links(
            [Link(label, f"{FOLDER}/{self.file(first)}") for label, (first, _) in zip(labels, self.pages, strict=True)]
        )


def page_groups(rows: Rows, records: Records, summary: AuditSummary) -> list[Group]:
    """The groups that need pages; none where report.html shows everything."""
    groups: list[Group] = []
    show = linked("../")

    def suspects(first: int, last: int, anchors: Sequence[str]) -> Block:
        return suspect_table(rows.findings[first:last], records, summary, show, anchors)

    def controls(first: int, last: int, anchors: Sequence[str]) -> Block:
        return control_table(rows.controls[first:last], records, summary, show, anchors)

    def lines(first: int, last: int, anchors: Sequence[str]) -> Block:
        return Notes(rows.lines[first:last], "warn")

    def verdicts(first: int, last: int) -> str:
        return ", ".join(dict.fromkeys(finding["verdict"] for finding in rows.findings[first:last]))

    if not rows.complete:
        groups.append(Group("suspects", "Suspects", len(rows.findings), PAGE_ROWS, suspects, verdicts))
        groups.append(Group("controls", "Controls", len(rows.controls), PAGE_ROWS, controls))
    if len(rows.lines) > len(rows.shown_lines):
        groups.append(Group("lines", "What could not be scored", len(rows.lines), 10 * LINES, lines))
    return [group for group in groups if group.total]


def write_pages(
    run: Run, title: str, groups: Sequence[Group], rows: Rows, records: Records, summary: AuditSummary
) -> None:
    """Write the pages in `report/`, one after the other, and remove those of an earlier time.

    Args:
        run: the open run.
        title: of the report.
        groups: of :func:`page_groups`.
        rows: all rows.
        records: journal records by key.
        summary: the content of summary.json.
    """
    written = set()
    search = () if rows.complete else _search(title, groups, rows, records, summary)
    for name, text in chain(chain.from_iterable(_pages(title, group) for group in groups), search):
        run.write_text(f"{FOLDER}/{name}", text)
        written.add(name)
    folder = run.path(FOLDER)
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if _PAGE.fullmatch(path.name) and path.name not in written:
            run.remove(f"{FOLDER}/{path.name}")


def _pages(title: str, group: Group) -> Iterator[tuple[str, str]]:
    """Name and text of each page of a group."""
    for first, last in group.pages:
        links = [Link("report", "../report.html")]
        links += [Link("previous", group.file(first - 1))] if first else []
        links += [Link("next", group.file(last))] if last < group.total else []
        block = group.block(first, last, [group.anchor(row) for row in range(first, last)])
        heading = f"{group.title} {first + 1} to {last} of {group.total}"
        yield (
            group.file(first),
            render_page(title=heading, subtitle=title, sections=[Links(links), block, Links(links)]),
        )


def _search(
    title: str, groups: Sequence[Group], rows: Rows, records: Records, summary: AuditSummary
) -> Iterator[tuple[str, str]]:
    """The page that searches all suspects and controls, and its script with their texts."""
    places = {group.name: [f"{group.file(i)}#{group.anchor(i)}" for i in range(group.total)] for group in groups}
    found = []
    for finding, place in zip(rows.findings, places.get("suspects", ()), strict=True):
        record, similarities = records[finding["key"]], (finding["caption"], finding["similarity"])
        texts = [record["id"], "suspect", finding["verdict"], record["prompt"], *map(two_decimals, similarities)]
        found.append(FoundRow(place, texts))
    settings, budget = summary["settings"], summary["budget"]
    for key, place in zip(rows.controls, places.get("controls", ()), strict=True):
        record, measured = records[key], scores(key, records[key], settings["budgets"], summary["rung"])
        similarities = (measured.caption, None if budget is None else (measured.curve or {}).get(budget))
        texts = [record["id"], "control", "", record["prompt"], *map(two_decimals, similarities)]
        found.append(FoundRow(place, texts))
    yield "search.js", search_script(FOUND, found)
    box = Search("search.js", "Words of an id, a verdict or a caption:")
    page: list[Block] = [Links([Link("report", "../report.html")]), box]
    yield "search.html", render_page(title="Search", subtitle=title, sections=page)


def shown_blocks(rows: Rows, results: Sequence[str]) -> tuple[Block, ...]:
    """How many suspects report.html shows, and where the others are; nothing where it shows all."""
    if rows.complete:
        return ()
    counts = []
    for verdict in SHOWN:
        shown, total = (
            sum(finding["verdict"] == verdict for finding in part) for part in (rows.shown_findings, rows.findings)
        )
        counts += [f"{shown} of {total} {verdict}"] if total else []
    left = len(rows.findings) - len(rows.shown_findings)
    text = (
        f"Shown here, of each verdict the most similar: {', '.join(counts)}. The other {left} suspects are not on this "
        f"page. All rows are in the folder {FOLDER} beside it and in {' and '.join(results)}."
    )
    return (Paragraph(text), _entries(results))


def control_note(rows: Rows, summary: AuditSummary) -> tuple[Block, ...]:
    """How many controls report.html shows, unless it shows all, and how many were left out since they repeat others."""
    notes, repeated = list[str](), repeated_controls_of(summary)
    if not rows.complete:
        notes += [f"The {len(rows.shown_controls)} of {len(rows.controls)} controls that come nearest to their images."]
    if repeated:
        key, first = next(iter(repeated.items()))
        notes += [f"{len(repeated)} more show pictures of these ({key} that of {first}) and were left out."]
    return tuple(map(Paragraph, notes))


def line_blocks(rows: Rows) -> tuple[Block, ...]:
    """What could not be scored, and how many lines are left out."""
    if not rows.lines:
        return (Paragraph("Everything was scored."),)
    notes = Notes(rows.shown_lines, "warn")
    left = len(rows.lines) - len(rows.shown_lines)
    if not left:
        return (notes,)
    links = Links([Link("all lines", f"{FOLDER}/lines-001.html")])
    return (notes, Paragraph(f"{left} of {len(rows.lines)} lines are not on this page."), links)


def page_links(groups: Sequence[Group], results: Sequence[str]) -> tuple[Block, ...]:
    """Links to all pages."""
    blocks: list[Block] = [_entries(results)] if any(group.name == "suspects" for group in groups) else []
    for group in groups:
        blocks += [Paragraph(f"{group.title}, {group.total} rows:"), group.links()]
    return tuple(blocks)


def _entries(results: Sequence[str]) -> Links:
    search = Link("search all rows", f"{FOLDER}/search.html")
    return Links(
        [search, Link("first page of all rows", f"{FOLDER}/suspects-001.html"), *(Link(r, r) for r in results)]
    )
