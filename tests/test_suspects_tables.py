"""Tables with CSV quoting and without: which quotes are markup, and that no line is lost."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from diffkit.errors import InputError
from diffkit.suspects import read_suspects


def read(tmp_path: Path, name: str, text: str) -> tuple[list[str], list[int]]:
    """Captions, and the rows in error."""
    path = tmp_path / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    suspects, errors = read_suspects(path)
    return [suspect.caption for suspect in suspects], [error.row for error in errors]


def test_a_table_of_prompts_without_quoting_is_read_raw(tmp_path: Path) -> None:
    rows = ["a kite", '"OPEN" painted on a door', '"unfinished thought', 'a "tame" lion', '40"', '"whole quotation"']
    table = "Prompt\tCategory\n" + "".join(f"{row}\tx\n" for row in rows)
    assert read(tmp_path, "prompts.tsv", table) == (rows, [])
    assert read(tmp_path, "one-column.csv", "caption\n" + "\n".join(rows)) == (rows, [])
    assert read(tmp_path, "comma.csv", "caption,tag\n" + "".join(f"{row},x\n" for row in rows)) == (rows, [])


def test_a_quote_left_open_is_an_error_and_swallows_nothing(tmp_path: Path) -> None:
    table = 'caption,tag\n"a, b",x\n"left open,x\nc,x\n"d, e",x\n"f" g,x\n"h, i",x\n'
    assert read(tmp_path, "list.csv", table) == (["a, b", "c", "d, e", "h, i"], [3, 6])
    # two quotes left open look like one field over several lines
    table = 'caption,tag\n"a, b",x\n"left open,x\nc,x\nalso open",x\nd,x\n'
    assert read(tmp_path, "list.csv", table) == (["a, b", "d"], [3, 3, 3])
    assert read(tmp_path, "raw.csv", table.replace('"a, b"', "a")) == (
        ["a", '"left open', "c", 'also open"', "d"],
        [],
    )


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
def test_what_a_writer_quotes_comes_back(tmp_path: Path, delimiter: str, quoting: int) -> None:
    captions = ["a cat", '"OPEN" on a door', f"one{delimiter} two", "first line\nsecond line", '"', "plain"]
    with (tmp_path / "list.csv").open("w", newline="") as file:
        csv.writer(file, delimiter=delimiter, quoting=quoting).writerows(
            [("caption", "tag"), *((caption, "x") for caption in captions)]
        )
    suspects, errors = read_suspects(tmp_path / "list.csv")
    assert ([suspect.caption for suspect in suspects], errors) == (captions, [])


def test_forms_of_text_that_spreadsheets_write(tmp_path: Path) -> None:
    for name, content in {
        "bom.csv": b"\xef\xbb\xbfcaption\r\na dog\r\n",
        "mac.csv": b"caption\ra dog\r",
        "unicode.csv": "caption\ta\na dog\tb\n".encode("utf-16"),
    }.items():
        (tmp_path / name).write_bytes(content)
        assert [suspect.caption for suspect in read_suspects(tmp_path / name)[0]] == ["a dog"], name


def test_columns_that_would_be_lost_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="two columns 'caption'"):
        read(tmp_path, "twice.csv", "caption,Caption\na,b\n")
    assert read(tmp_path, "concatenated.csv", "caption,tag\na,b\ncaption,tag\nc,d\n") == (["a", "c"], [3])
    (tmp_path / "x.png").write_bytes(b"")
    suspects, errors = read_suspects(_written(tmp_path / "list.csv", "caption,photo\na,x.png\nb,gone.png\n"))
    assert [suspect.caption for suspect in suspects] == ["b"]
    assert "the column 'photo' names the image x.png" in errors[0].reason
    assert [suspect.caption for suspect in read_suspects(tmp_path / "list.csv", images=False)[0]] == ["a", "b"]


def _written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path
