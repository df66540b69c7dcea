"""Journals, torn and whole; atomic files; names; checksums."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffkit.errors import InputError
from diffkit.runs.files import dump_json, safe_name, write_bytes_atomically
from diffkit.runs.journal import Journal, read_journal
from diffkit.runs.provenance import git_revision, sha256_file, sha256_folder

values = st.one_of(st.none(), st.booleans(), st.integers(), st.text(), st.floats(allow_nan=False, allow_infinity=False))
items = st.dictionaries(st.text(), st.dictionaries(st.text(), values, max_size=3), max_size=5)


@given(items=items, data=st.data())
@settings(max_examples=40)
def test_a_journal_cut_anywhere_keeps_exactly_its_whole_lines(
    items: dict[str, dict[str, object]], data: st.DataObject
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "journal.jsonl"
        ends = [0]
        journal = Journal(path)
        for key, item in items.items():
            journal.append(key, item)
            ends.append(path.stat().st_size)
        journal.close()
        cut = data.draw(st.integers(0, ends[-1]))
        garbage = data.draw(st.sampled_from([b"", b"\x00\x00", b'{"key": "z"', b"\xff\n"]))
        path.write_bytes(path.read_bytes()[:cut] + (garbage if cut in ends else b""))
        whole = sum(end <= cut for end in ends[1:])
        expected = dict(list(items.items())[:whole])
        resumed = Journal(path)
        assert resumed.items == expected
        resumed.append("a key nobody has", {"n": 1})
        resumed.close()
        assert read_journal(path).items == expected | {"a key nobody has": {"n": 1}}


def test_damage_before_the_last_line_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    good = b'{"key": "a", "item": {}}\n'
    for bad in (b"{}\n" + good, b"nonsense\n" + good, b'{"key": 1, "item": {}}\n' + good, b"bad\ntorn"):
        path.write_bytes(bad)
        with pytest.raises(InputError, match="line 1 is damaged"):
            read_journal(path)
    path.write_bytes(good + good)
    with pytest.raises(InputError, match="line 2 repeats the item 'a'"):
        read_journal(path)
    again = b'{"key": "a", "item": {"n": 2}, "again": true}\n'
    path.write_bytes(good + again)
    assert read_journal(path).items == {"a": {"n": 2}}
    for first in (b"", b'{"key": "b", "item": {}}\n'):
        path.write_bytes(first + again)
        with pytest.raises(InputError, match="repeats the item 'a'"):
            read_journal(path)


def test_lines_inside_text_do_not_break_the_journal(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j")
    item = {"caption": "two\nlines\u2028and\r\nmore"}
    journal.append("k", item)
    journal.close()
    assert read_journal(tmp_path / "j").items == {"k": item}


def test_a_full_disk_costs_only_the_item_in_hand(tmp_path: Path) -> None:
    code = """
import resource, sys
from pathlib import Path
from diffkit.runs.files import write_bytes_atomically
from diffkit.runs.journal import Journal
folder = Path(sys.argv[1])
journal = Journal(folder / "j")
journal.append("a", {"n": 1})
write_bytes_atomically(folder / "summary.json", b"old")
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
for attempt in (lambda: journal.append("b", {"text": "x" * 5000}),
                lambda: write_bytes_atomically(folder / "summary.json", b"x" * 5000)):
    try:
        attempt()
    except OSError as error:
        print(error.strerror)
journal.append("c", {"n": 3})
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout == "File too large\nFile too large\n"
    assert read_journal(tmp_path / "j").items == {"a": {"n": 1}, "c": {"n": 3}}
    assert (tmp_path / "summary.json").read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["j", "summary.json"]


def test_atomic_write_replaces_and_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file.txt"
    write_bytes_atomically(path, b"one")
    write_bytes_atomically(path, b"two")
    assert path.read_bytes() == b"two"
    (tmp_path / "is-a-folder").mkdir()
    with pytest.raises(OSError, match="directory"):
        write_bytes_atomically(tmp_path / "is-a-folder", b"x")
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["deep", "file.txt", "is-a-folder"]


@given(st.text(max_size=200), st.text(max_size=200))
def test_safe_names_are_safe_and_distinct(first: str, second: str) -> None:
    name = safe_name(first)
    assert 0 < len(name) <= 80
    assert not set(name) - set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")
    assert not name.startswith(".")
    assert (safe_name(second) == name) == (first == second)


def test_json_writes_paths_as_text_and_refuses_the_rest() -> None:
    assert json.loads(dump_json({"path": Path("a/b")})) == {"path": "a/b"}
    with pytest.raises(TypeError, match="expected a JSON value, got set"):
        dump_json({"x": {1}})


def test_checksums_follow_content_and_place(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.bin").write_bytes(b"hello")
    assert sha256_file(tmp_path / "a" / "x.bin") == hashlib.sha256(b"hello").hexdigest()
    before = sha256_folder(tmp_path)
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "note").write_text("x")
    assert sha256_folder(tmp_path) == before
    (tmp_path / "a" / "x.bin").rename(tmp_path / "a" / "y.bin")
    assert sha256_folder(tmp_path) != before
    with pytest.raises(InputError, match="there is none"):
        sha256_folder(tmp_path / "missing")
    with pytest.raises(InputError, match="Cannot read"):
        sha256_file(tmp_path / "missing")


def test_git_revision_only_of_tracked_sources(tmp_path: Path) -> None:
    git = ["git", "-C", str(tmp_path), "-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run([*git, "init", "-q"], check=True)
    (tmp_path / "a.py").write_text("x = 1\n")
    assert git_revision(tmp_path) is None
    subprocess.run([*git, "add", "a.py"], check=True)
    subprocess.run([*git, "commit", "-qm", "a"], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    assert git_revision(tmp_path) == {"commit": head, "changed": False}
    (tmp_path / "a.py").write_text("x = 2\n")
    assert git_revision(tmp_path) == {"commit": head, "changed": True}
    assert git_revision(tmp_path / "missing") is None
