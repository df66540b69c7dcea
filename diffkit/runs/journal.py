"""The journal of a run: one finished item a line, synced to the disk before ``append`` returns."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any, NamedTuple

from diffkit.errors import InputError
from diffkit.runs.files import dump_json, fsync_folder

__all__ = ["Journal", "JournalContent", "read_journal"]


class JournalContent(NamedTuple):
    """What a journal holds: finished items by key in the order first written, its sound part's length in bytes.

    ``repeats``: whether a line supersedes an earlier one, see :meth:`Journal.reopen`.
    """

    items: dict[str, dict[str, Any]]
    sound_bytes: int
    repeats: bool = False


def read_journal(path: Path) -> JournalContent:
    """Read a journal. A last line that a crash tore is left out; damage anywhere else is refused.

    Every append is on the disk before the next begins, so only the last line can be torn. A last line without its
    newline counts as torn even if it parses: its ``append`` has not returned. A line with ``"again": true`` supersedes
    the earlier line of its key, an item in error that was tried again.

    Raises:
        InputError: a line before the last is no record, or a key stands there twice without ``again``.
    """
    if not path.exists():
        return JournalContent({}, 0)
    data = path.read_bytes()
    lines = data.split(b"\n")
    torn_tail = lines.pop()  # empty when the last line is whole
    items: dict[str, dict[str, Any]] = {}
    sound, repeats = 0, False
    for number, line in enumerate(lines, start=1):
        record = _parse(line)
        if record is None:
            if number == len(lines) and not torn_tail:
                break
            raise InputError(f"{path}, line {number} is damaged. Remove that line, or choose another --out.")
        key, item, again = record
        repeats |= again
        if (key in items) != again:
            raise InputError(f"{path}, line {number} repeats the item {key!r}. Two programs wrote to this run.")
        items[key] = item
        sound += len(line) + 1
    return JournalContent(items, sound, repeats)


class _Line(NamedTuple):
    key: str
    item: dict[str, Any]
    again: bool


def _parse(line: bytes) -> _Line | None:
    try:
        record = json.loads(line.decode())
    except ValueError:  # wrong JSON and wrong UTF-8 alike
        return None
    if not isinstance(record, dict) or set(record) - {"again"} != {"key", "item"}:
        return None
    key, item, again = record["key"], record["item"], record.get("again", False)
    sound = isinstance(key, str) and isinstance(item, dict) and isinstance(again, bool)
    return _Line(key, item, again) if sound else None


def _outcome(item: dict[str, Any]) -> dict[str, Any]:
    """An item without what the clock says."""
    return {name: value for name, value in item.items() if name != "seconds"}


class Journal:
    """An open journal. What is in `items` is on the disk.

    Opening cuts off a torn last line, so that the next append starts on a line of its own.
    """

    def __init__(self, path: Path) -> None:
        self.items, self._end, self.repeats = read_journal(path)
        self._order = list(self.items)
        self._superseded: dict[str, dict[str, Any]] = {}
        created = not path.exists()
        self._file = path.open("ab", buffering=0)
        self._guard = threading.Lock()
        if self._file.tell() != self._end:
            self._cut()
        if created:
            fsync_folder(path.parent)

    def _cut(self) -> None:
        """Remove what stands after the last whole line."""
        self._file.truncate(self._end)
        os.fsync(self._file.fileno())

    def reopen(self, key: str) -> None:
        """Take an item out of ``items``, so that its key can be appended once more.

        The item's line stays, and counts until the new one is on the disk.
        """
        self._superseded[key] = self.items.pop(key)

    def append(self, key: str, item: dict[str, Any]) -> None:
        """Write one finished item and wait until it is on the disk; one tried again only if it ends otherwise.

        Raises:
            ValueError: the key is finished already, or a number is not finite.
            OSError: the disk is full or gone; the journal stays sound and without the item.
        """
        line = dump_json({"key": key, "item": item} | ({"again": True} if key in self._superseded else {}))
        read_back: dict[str, Any] = json.loads(line)["item"]  # as a resumed run would read it
        with self._guard:
            if key in self.items:
                raise ValueError(f"the item {key!r} is in the journal already")
            earlier = self._superseded.get(key)
            if earlier is not None and _outcome(earlier) == _outcome(read_back):
                read_back = earlier
            else:
                self._write(line.encode() + b"\n")
            self._insert(key, read_back)

    def _write(self, line: bytes) -> None:
        try:
            rest = memoryview(line)
            while rest:
                rest = rest[self._file.write(rest) :]
            os.fsync(self._file.fileno())
        except BaseException:
            self._cut()
            raise
        self._end += len(line)

    def _insert(self, key: str, item: dict[str, Any]) -> None:
        """Put an item at its place in the order in which items were first finished."""
        again = self._superseded.pop(key, None)
        self.items[key] = item
        if again is None:
            self._order.append(key)
            return
        self.repeats |= item is not again
        ordered = {name: self.items[name] for name in self._order if name in self.items}
        self.items.clear()
        self.items.update(ordered)

    def close(self) -> None:
        """Close the file; closing twice does no harm."""
        self._file.close()
