"""Reports: hostile text stays text, nothing is loaded, and all that was put in is there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure as MatplotlibFigure

from diffkit.report import (
    Cell,
    Facts,
    Figure,
    Notes,
    Paragraph,
    Picture,
    Section,
    Stat,
    Table,
    render_page,
    write_report,
)
from diffkit.report.plots import budget_curves, histogram, lines
from diffkit.runs import Run

HOSTILE = "</td><script>alert(1)</script><img src=x onerror=alert(2)> \"' {{ 7 * 7 }} $\\frac{$ <!-- ]]> & ä"


class Page(HTMLParser):
    """All elements with their attributes, and all text, as a browser's parser would see them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def addresses(self) -> Iterator[str]:
        for _, attributes in self.elements:
            yield from (
                attributes[name] for name in ("src", "href", "xlink:href", "data", "action") if name in attributes
            )


def picture() -> Picture:
    return Picture.of(torch.rand(3, 8, 8), caption=HOSTILE, label=HOSTILE)


def hostile_page() -> str:
    plot = budget_curves([0, 1, 10], [[0.1, None, 0.9]], [[0.1, 0.1, 0.2]], threshold=0.5, xlabel=HOSTILE)
    blocks = [
        Paragraph(HOSTILE + "\n\n" + HOSTILE),
        Table(
            [HOSTILE],
            [[HOSTILE], [Cell(HOSTILE, "bad", HOSTILE)], [picture()], [[picture(), picture()]], [None]],
            HOSTILE,
        ),
        Figure.of(HOSTILE, plot, HOSTILE),
        Facts({HOSTILE: HOSTILE, "none": None}),
        Notes([HOSTILE], "warn"),
    ]
    return render_page(
        title=HOSTILE,
        subtitle=HOSTILE,
        summary=[Stat(HOSTILE, HOSTILE, HOSTILE)],
        sections=[Section(HOSTILE, blocks), Section(HOSTILE, blocks, folded=True)],
        footer=HOSTILE,
    )


def test_hostile_text_stays_text_everywhere() -> None:
    page = Page(hostile_page())
    assert not [tag for tag, _ in page.elements if tag in {"script", "iframe", "object", "embed", "form", "base"}]
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    assert [a["src"][:15] for tag, a in page.elements if tag == "img"] == ["data:image/png;"] * 6
    assert all(a["alt"] == HOSTILE for tag, a in page.elements if tag == "img")
    text = "".join(page.texts)
    assert text.count("<script>alert(1)</script>") >= 30
    assert text.count(HOSTILE) == text.count("{{ 7 * 7 }}")  # shown whole, and nowhere evaluated


def test_the_page_loads_nothing() -> None:
    text = hostile_page()
    assert all(address.startswith(("data:image/", "#")) for address in Page(text).addresses())
    assert not re.search(r"url\(\s*['\"]?(?!#|data:)", text)
    assert "@import" not in text
    assert "default-src 'none'" in text


def test_pictures_must_be_inside_the_page() -> None:
    for uri in ("https://example.org/a.png", "data:text/html;base64,AAAA", "data:image/svg+xml;base64,AAAA", "a.png"):
        with pytest.raises(ValueError, match="data:image"):
            Picture(uri)


def test_tables_show_unknown_as_a_dash_and_refuse_ragged_rows() -> None:
    page = render_page(title="t", sections=[Table(["a", "b", "c"], [[None, 0.123456, 7]])])
    cells = re.findall(r"<td class=\"(\w*)\">(.*?)</td>", page)
    assert cells == [("unknown", "–"), ("numeric", "0.123"), ("numeric", "7")]
    with pytest.raises(ValueError, match="row 2: expected 1 cells, got 2"):
        Table(["a"], [["x"], ["y", "z"]])


def test_bare_blocks_join_the_section_before_them() -> None:
    page = Page(
        render_page(title="t", sections=[Section("One"), Paragraph("inside one"), Section("Two", [Notes(["n"])])])
    )
    assert [attributes["id"] for tag, attributes in page.elements if tag == "section"] == ["part-1", "part-2"]


def test_a_runs_report_tells_how_it_was_made(tmp_path: Path) -> None:
    config = {"model": "lab", "attack": {"steps": 50}, "caption": HOSTILE}
    with Run.open(
        tmp_path, config=config, kind="audit", provenance={"model_sha256": "ab" * 32, "seeds": [1, 2]}
    ) as run:
        path = write_report(run, title="Audit", sections=[Paragraph("hello")], summary=[Stat("n", "3")])
    text = "".join(Page(path.read_text(encoding="utf-8")).texts)
    assert path == tmp_path / "report.html"
    for expected in ("Audit", "hello", "ab" * 32, "[1, 2]", '{"steps": 50}', HOSTILE, torch.__version__.split("+")[0]):
        assert expected in text
    assert run.record["config_hash"] in text


def curves(figure: MatplotlibFigure) -> list[list[float]]:
    return [list(map(float, line.get_ydata())) for line in figure.axes[0].get_lines()]


def test_budget_curves_draw_every_image_and_the_medians() -> None:
    nan = float("nan")
    figure = budget_curves([0, 5], [[0.0, 1.0], [0.2, 0.4], [0.4, None]], [[0.1, 0.1]], threshold=0.8)
    drawn = curves(figure)
    assert [0.1, 0.1] in drawn
    assert [0.0, 1.0] in drawn
    assert any(line == pytest.approx([0.4, nan], nan_ok=True) for line in drawn)
    assert any(line == pytest.approx([0.2, 0.7]) for line in drawn)  # the median of what is known
    assert [0.8, 0.8] in drawn
    with pytest.raises(ValueError, match="suspects: expected curves of 2 points"):
        budget_curves([0, 5], [[0.0]], [])


def test_histogram_counts_over_common_bins() -> None:
    figure = histogram({"a": [0.0, 0.1, 1.0, float("nan")], "b": [0.9]}, bins=2, threshold=0.5)
    heights = [[patch.get_height() for patch in container] for container in figure.axes[0].containers]
    assert heights == [[2, 1], [0, 1]]
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert "a (n = 3)" in labels
    assert Figure.of("empty", histogram({"a": []})).svg.startswith("<svg")


def test_a_histogram_of_groups_of_very_different_sizes_has_shares() -> None:
    axes = histogram({"many": [0.0] * 30 + [1.0] * 10, "few": [0.0, 1.0, 1.0]}, bins=2).axes[0]
    heights = [[patch.get_height() for patch in container] for container in axes.containers]
    assert heights == [pytest.approx([3 / 4, 1 / 4]), pytest.approx([1 / 3, 2 / 3])]
    assert axes.get_ylabel() == "share of its group"


def test_lines_and_their_svg_take_the_pages_ink() -> None:
    figure = lines({"$x_{": ([0, 1], [1.0, 2.0])}, xlabel="step", ylabel="$ reward")
    svg = Figure.of("t", figure).svg
    assert "currentColor" in svg
    assert "#010203" not in svg
    assert "$x_{" in svg
    assert "<metadata" not in svg
    assert svg == Figure.of("t", lines({"$x_{": ([0, 1], [1.0, 2.0])}, xlabel="step", ylabel="$ reward")).svg
