"""Reports of large audits: nothing is left out, the page stays small, hostile text stays text, old pages go."""

from __future__ import annotations

import csv
import html
import io
import json
import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import pytest
from synthetic_audit import open_run, write_items, write_report
from test_report import HOSTILE, Page
from test_report_layout import BROWSERS, FLAGS

from diffkit.report import LinkedPicture, Links, Search, Section, Table, render_page
from diffkit.report.links import FoundRow, Link, search_script
from diffkit.report.plots import budget_curves
from diffkit.report.tabular import Column, csv_text, guarded, parquet_bytes
from diffkit.suspects import RowError
from memorization.auditing.report_rows import LINES, SHOWN, SHOWN_CONTROLS
from memorization.auditing.result import AuditSummary

SUSPECTS, CONTROLS, ERRORS = 240, 30, 450
FORMULA = '=HYPERLINK("https://example.org/?"&A1)'
CAPTIONS = (
    HOSTILE,
    FORMULA,
    "+1",
    "-1",
    "@SUM(A1)",
    "\tx",
    "\r=1",
    'two\nlines, "quoted"',
    "'tis",
    "\u2028</script>",
    "",
)

PAGES = ("suspects-001.html", "suspects-002.html", "controls-001.html", "lines-001.html", "search.html", "search.js")


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, AuditSummary]:
    """A large audit, reported twice, with a page of an earlier time and a file of the user among its pages."""
    folder = tmp_path_factory.mktemp("large")
    errors = [RowError("list.csv", row, f"{HOSTILE} {row}") for row in range(1, ERRORS + 1)]
    with open_run(folder) as run:
        write_items(run, suspects=SUSPECTS, controls=CONTROLS, size=8, pool=4, captions=CAPTIONS)
        write_report(run, errors)
    for name in ("suspects-009.html", "notes.html"):
        (folder / "report" / name).write_text("old")
    with open_run(folder) as run:
        return folder, write_report(run, errors)


@pytest.fixture(scope="module")
def rows(large: tuple[Path, AuditSummary]) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO((large[0] / "results.csv").read_bytes().decode(), newline="")))


def pages(folder: Path, name: str) -> list[Page]:
    return [Page(path.read_text(encoding="utf-8")) for path in sorted((folder / "report").glob(f"{name}-*.html"))]


def test_every_item_is_on_one_page_and_in_the_table(
    large: tuple[Path, AuditSummary], rows: list[dict[str, str]]
) -> None:
    folder, summary = large
    keys = [json.loads(line)["key"] for line in (folder / "journal.jsonl").read_text().split("\n")[:-1]]
    assert [row["key"] for row in rows[: len(keys)]] == keys
    assert [(row["role"], row["row"]) for row in rows[len(keys) :]] == [
        ("suspect", str(n)) for n in range(1, ERRORS + 1)
    ]
    assert Counter(row["verdict"] for row in rows if row["role"] == "suspect") == Counter(summary["verdicts"])
    for name, role, total in (("suspects", "suspect", SUSPECTS), ("controls", "control", CONTROLS)):
        texts = Counter(text for page in pages(folder, name) for text in page.texts)
        assert all(texts[key.split(":")[1]] == 1 for key in keys if key.startswith(role))
        anchors = [a["id"] for page in pages(folder, name) for tag, a in page.elements if tag == "tr" and "id" in a]
        assert anchors == [f"{name}-{n}" for n in range(1, total + 1)]
    lines = [text for page in pages(folder, "lines") for text in page.texts if text.startswith("list.csv, row ")]
    assert len(lines) == ERRORS


def test_the_table_has_the_figures_of_the_summary(large: tuple[Path, AuditSummary], rows: list[dict[str, str]]) -> None:
    by_key = {row["key"]: row for row in rows}
    for finding in large[1]["findings"]:
        row = by_key[finding["key"]]
        assert row["verdict"] == finding["verdict"]
        for column, value in (
            ("p", finding["p"]), ("q", finding["q"]), ("caption_similarity", finding["caption"]),
            ("attack_similarity", finding["similarity"]),
        ):  # fmt: skip
            assert row[column] == ("" if value is None else repr(value))
        if finding["similarity"] is not None:
            looks = [float(row[name]) for name in row if name.startswith("dori@") and name != "dori@0" and row[name]]
            assert float(row["attack_similarity"]) == max(looks)
    control = by_key["control:00003"]
    assert (control["flagged"], control["verdict"], control["image_original"][:7]) == ("false", "", "images/")
    assert float(control["dori@50"]) <= float(control["attack_similarity"])


def test_the_page_is_bounded_and_says_what_is_not_on_it(large: tuple[Path, AuditSummary]) -> None:
    folder, summary = large
    text = (folder / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    scored = {verdict: count for verdict, count in summary["verdicts"].items() if verdict != "could not be scored"}
    shown = sum(min(SHOWN[verdict], count) for verdict, count in scored.items())
    words = "".join(page.texts)
    assert words.count(" of 2 seeds") == shown < SUSPECTS / 2
    assert f"20 of {summary['verdicts']['not shown']} not shown" in words
    assert f"The {SHOWN_CONTROLS} of {CONTROLS} controls" in words
    assert words.count("list.csv, row ") == LINES
    pictures = [attributes["src"] for tag, attributes in page.elements if tag == "img"]
    assert 0 < len(pictures) <= 3 * (sum(SHOWN.values()) + SHOWN_CONTROLS)
    assert all(uri.startswith("data:image/") for uri in pictures)
    assert "script" not in {tag for tag, _ in page.elements}
    assert len(text) < 1_000_000


def test_addresses_are_files_of_the_run(large: tuple[Path, AuditSummary]) -> None:
    folder, _ = large
    for path in (folder / "report.html", *((folder / "report" / name) for name in PAGES if name.endswith(".html"))):
        page = Page(path.read_text(encoding="utf-8"))
        for address in page.addresses():
            if not address.startswith(("#", "data:")):
                assert (path.parent / address.split("#")[0]).is_file(), (path, address)
        policy = next(a["content"] for _, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
        assert policy.startswith("default-src 'none'; img-src data:")
        assert ("file:" in policy) == (path.name.startswith(("suspects", "controls", "search")))
        assert ("script-src" in policy) == (path.name == "search.html")
    assert {path.name for path in folder.iterdir()} >= {"report.html", "results.csv"}


def test_pages_of_an_earlier_time_go_and_other_files_stay(large: tuple[Path, AuditSummary]) -> None:
    assert {path.name for path in (large[0] / "report").iterdir()} == {*PAGES, "notes.html"}


def test_a_small_audit_is_one_page(tmp_path: Path) -> None:
    with open_run(tmp_path) as run:
        write_items(run, suspects=12, controls=3, size=8, pool=4, captions=CAPTIONS)
        write_report(run)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert not (tmp_path / "report").exists()
    assert all(address.startswith(("#", "data:image/")) for address in page.addresses())
    assert "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\"" in text
    assert [name for name in page.texts if re.fullmatch(r"\d{5}", name)] == [
        f"{n:05d}" for n in (*range(12), *range(3))
    ]
    assert sum(tag == "img" for tag, _ in page.elements) == 3 * 15
    assert page.texts.count("original") == 15
    assert "All rows" not in page.texts


def test_texts_that_begin_like_a_formula_are_guarded(rows: list[dict[str, str]]) -> None:
    expected = [HOSTILE, f"'{FORMULA}", "'+1", "'-1", "'@SUM(A1)", "'\tx", "'\r=1", *CAPTIONS[7:]]
    assert [row["caption"] for row in rows[: len(CAPTIONS)]] == expected
    assert all(guarded(text) == text for text in ("", "a=1", "1", "'=1"))
    table = csv_text([Column("=x"), Column("n", "number")], [["=1", -0.5], [None, None]])
    assert table == "'=x,n\r\n'=1,-0.5\r\n,\r\n"


def test_parquet_holds_the_same_table(large: tuple[Path, AuditSummary], rows: list[dict[str, str]]) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    columns = parquet.read_table(large[0] / "results.parquet").to_pydict()
    assert list(columns) == list(rows[0])
    for name, values in columns.items():
        texts = [("true" if v else "false") if isinstance(v, bool) else v for v in values]
        texts = ["" if v is None else guarded(v) if isinstance(v, str) else repr(v) for v in texts]
        assert texts == [row[name] for row in rows], name


def test_without_pyarrow_a_parquet_file_of_an_earlier_time_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    assert parquet_bytes([Column("a")], [["x"]]) is None
    with open_run(tmp_path) as run:
        write_items(run, suspects=2, controls=1, size=8, pool=1)
        (tmp_path / "results.parquet").write_text("old")
        write_report(run)
    assert not (tmp_path / "results.parquet").exists()


def test_hostile_text_stays_text_on_all_pages(large: tuple[Path, AuditSummary]) -> None:
    folder, _ = large
    for path in (folder / "report").glob("*-*.html"):
        page = Page(path.read_text(encoding="utf-8"))
        assert not [tag for tag, _ in page.elements if tag in {"script", "iframe", "object", "embed", "form", "base"}]
        assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    script = (folder / "report" / "search.js").read_text(encoding="utf-8")
    data = script[script.index("[") : script.index("];") + 1]
    assert data.isascii()
    assert "<" not in data
    found = json.loads(data)
    assert len(found) == SUSPECTS + CONTROLS
    assert set(CAPTIONS) <= {cells[3] for _, cells in found}


@pytest.mark.skipif(not BROWSERS, reason="no chromium is installed")
def test_a_browser_searches_all_rows_from_the_disk(large: tuple[Path, AuditSummary], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(large[0], folder)
    path = folder / "report" / "search.html"
    path.write_text(path.read_text(encoding="utf-8").replace('id="search"', 'id="search" value="ALERT(1) onerror"'))
    command = [BROWSERS[0], *FLAGS, f"--user-data-dir={tmp_path / 'browser'}", "--dump-dom", path.as_uri()]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    assert f"1 of {SUSPECTS + CONTROLS} rows<" in shown
    table = Page(shown[shown.index('id="results"') :])
    assert [tag for tag, _ in table.elements if tag == "img"] == []
    assert HOSTILE.replace("\r", "\n") in "".join(table.texts)
    links = [attributes["href"] for tag, attributes in table.elements if tag == "a"]
    assert len(links) == 1
    assert re.fullmatch(r"suspects-00[12]\.html#suspects-\d+", html.unescape(links[0]))


@pytest.mark.parametrize(
    "address",
    [
        "https://example.org/a.png",
        "//example.org/a.png",
        "/etc/passwd",
        "../../a.png",
        "javascript:alert(1)",
        "a b",
        "",
    ],
)
def test_pages_link_only_to_files_of_their_run(address: str) -> None:
    for make in (
        lambda: LinkedPicture(address),
        lambda: Links([Link("text", address)]),
        lambda: Search(address, "label"),
        lambda: search_script(["id"], [FoundRow(address, ["x"])]),
    ):
        with pytest.raises(ValueError, match="relative path"):
            make()


def test_a_page_loads_files_only_where_it_has_linked_pictures() -> None:
    table = Table(["a"], [[[LinkedPicture("../images/a.png", HOSTILE)]]], anchors=["row-1"])
    page = Page(render_page(title="t", sections=[Section("s", (table,))]))
    assert [a["src"] for tag, a in page.elements if tag == "img"] == ["../images/a.png"]
    with pytest.raises(ValueError, match="expected 1 anchors, got 2"):
        Table(["a"], [["x"]], anchors=["row-1", "row-2"])


def test_thousands_of_curves_are_a_band_and_the_highest() -> None:
    curves = [[0.0, index / 500] for index in range(501)]
    figure = budget_curves([0, 5], curves, [[0.1, None]])
    drawn = [list(line.get_ydata()) for line in figure.axes[0].get_lines()]
    assert len(drawn) == 50 + 1 + 2
    assert [0.0, 1.0] in drawn
    assert [0.0, 0.5] in drawn  # the median of all, not of those drawn
    (band,) = figure.axes[0].collections
    heights = band.get_paths()[0].vertices[:, 1]
    assert heights.max() == pytest.approx(0.95)
    assert 0.05 in heights.round(6)
