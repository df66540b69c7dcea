"""Every example in a docstring runs and prints what it says."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("diffkit", "memorization", "ttsnap")
FLAGS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS


def modules_with_examples() -> list[str]:
    """Dotted names of the modules whose text holds an example; nothing is imported."""
    paths = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    parts = [path.relative_to(ROOT).with_suffix("").parts for path in paths if ">>>" in path.read_text("utf-8")]
    return [".".join(names[:-1] if names[-1] == "__init__" else names) for names in parts]


@pytest.mark.parametrize("name", modules_with_examples())
def test_examples_print_what_they_say(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # an example may write a folder
    results = doctest.testmod(importlib.import_module(name), optionflags=FLAGS)
    assert results.attempted
    assert not results.failed, "the report of what differs is in the captured output"


def test_the_walk_finds_examples() -> None:
    assert "diffkit.seeds" in modules_with_examples()
