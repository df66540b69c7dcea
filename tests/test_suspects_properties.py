"""Whatever a list or a folder looks like: rows in = suspects + rows in error."""

from __future__ import annotations

import csv
import io
import json
import tempfile
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from diffkit.errors import InputError
from diffkit.suspects import read_suspects

PICTURE = io.BytesIO()
Image.fromarray(np.zeros((2, 2, 3), np.uint8)).save(PICTURE, format="PNG")

#: Text of one line, rich in what tables and lists are separated by.
LINES = st.text(st.sampled_from('ab ""\',;|[{#é'), max_size=8)
NAMES = st.sampled_from(["a", "b", "10_dog", "caf\u00e9", "cafe\u0301"])
SUFFIXES = st.sampled_from([".png", ".PNG", ".jpg", ".avif", ".heic", ".txt", ".caption", ".png.txt", ".md"])


def counts(name: str, content: str) -> tuple[list[str], int]:
    """Captions of a file with this content, and how many rows are in error."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_text(content, newline="")
        suspects, errors = read_suspects(path)
    return [suspect.caption for suspect in suspects], len(errors)


@given(st.lists(LINES, min_size=1, max_size=8), st.sampled_from(["\t", ",", ";"]))
def test_every_line_of_a_table_that_nobody_quoted(captions: list[str], delimiter: str) -> None:
    captions = [caption.replace(delimiter, "") for caption in captions]
    table = f"caption{delimiter}tag\n" + "".join(f"{caption}{delimiter}x\n" for caption in captions)
    good, in_error = counts("list.csv", table)
    assert len(good) + in_error == len(captions)
    if delimiter == "\t" and not any(caption.startswith('"') for caption in captions):
        assert good == [caption for caption in captions if caption.strip()]


@given(
    st.lists(st.text(st.sampled_from('ab "\n,;\t'), max_size=8).filter(str.strip), min_size=1, max_size=6),
    st.booleans(),
)
def test_every_row_that_a_csv_writer_writes(captions: list[str], all_quoted: bool) -> None:
    buffer = io.StringIO()
    writer = csv.writer(buffer, quoting=csv.QUOTE_ALL if all_quoted else csv.QUOTE_MINIMAL)
    writer.writerows([("caption", "tag", "note"), *((caption, "x", "") for caption in captions)])
    good, in_error = counts("list.csv", buffer.getvalue())
    assert len(good) + in_error >= len(captions)  # lines that can be read both ways are an error each
    if in_error == 0:
        assert good == captions


@given(st.lists(st.one_of(LINES, st.lists(LINES, max_size=3), st.none(), st.integers()), min_size=1, max_size=6))
def test_every_entry_of_a_json_list(entries: list[object]) -> None:
    rows = [{"caption": entry} for entry in entries]
    expected = sum(max(len(entry), 1) if isinstance(entry, list) else 1 for entry in entries)
    for name, content in (("a.json", json.dumps(rows)), ("a.jsonl", "\n".join(map(json.dumps, rows)))):
        good, in_error = counts(name, content)
        assert len(good) + in_error == expected


@given(st.lists(LINES, min_size=1, max_size=8))
def test_every_line_of_a_text_file(lines: list[str]) -> None:
    if any(line.strip() for line in lines):
        assert counts("a.txt", "\n".join(lines)) == ([line for line in lines if line.strip()], 0)


@settings(max_examples=150)
@given(
    st.dictionaries(
        st.tuples(st.sampled_from(["", "10_dog/", "sub/", "sub/deep/"]), NAMES, SUFFIXES),
        st.sampled_from(["a caption", "two\nlines", "", " \n", '{"file_name": 1}']),
        min_size=1,
        max_size=7,
    ),
    st.one_of(st.none(), st.lists(st.tuples(NAMES, SUFFIXES), max_size=3)),
)
def test_every_picture_below_a_folder(
    files: dict[tuple[str, str, str], str], listed: list[tuple[str, str]] | None
) -> None:
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        pictures = set()
        for (folder, stem, suffix), text in files.items():
            path = root / folder / f"{stem}{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            if suffix.lower() in (".png", ".jpg", ".avif", ".heic"):
                path.write_bytes(PICTURE.getvalue())
                pictures.add(path)
            else:
                path.write_text(text)
        if listed is not None:
            rows = [{"file_name": f"{stem}{suffix}", "text": "a caption"} for stem, suffix in listed]
            (root / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
        try:
            suspects, errors = read_suspects(root)
        except InputError:
            assert not pictures
            return
        images = {path for suspect in suspects for path in suspect.images}
        reasons = "\n".join(error.reason for error in errors)
        assert all(path in images or path.name in reasons for path in pictures)
        assert len({suspect.id for suspect in suspects}) == len(suspects)
