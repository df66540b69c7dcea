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
    """What a journal holds: finished items by key in the order written, and the length of its sound part in bytes."""

    items: dict[str, dict[str, Any]]
    sound_bytes: int


def read_journal(path: Path) -> JournalContent:
    """Read a journal. A last line that a crash tore is left out; damage anywhere else is refused.

    Every append is on the disk before the next begins, so only the last line can be torn. A last line without its
    newline counts as torn even if it parses: its ``append`` has not returned.

    Raises:
        InputError: a line before the last is no record, or a key stands there twice.
    """
    if not path.exists():
        return JournalContent({}, 0)
    data = path.read_bytes()
    lines = data.split(b"\n")
    torn_tail = lines.pop()  # empty when the last line is whole
    items: dict[str, dict[str, Any]] = {}
    sound = 0
    for number, line in enumerate(lines, start=1):
        record = _parse(line)
        if record is None:
            if number == len(lines) and not torn_tail:
                break
            raise InputError(f"{path}, line {number} is damaged. Remove that line, or choose another --out.")
        key, item = record
        if key in items:
            raise InputError(f"{path}, line {number} repeats the item {key!r}. Two programs wrote to this run.")
        items[key] = item
        sound += len(line) + 1
    return JournalContent(items, sound)


def _parse(line: bytes) -> tuple[str, dict[str, Any]] | None:
    try:
        record = json.loads(line.decode())
    except ValueError:  # wrong JSON and wrong UTF-8 alike
        return None
    if not isinstance(record, dict) or set(record) != {"key", "item"}:
        return None
    key, item = record["key"], record["item"]
    return (key, item) if isinstance(key, str) and isinstance(item, dict) else None


class Journal:
    """An open journal. What is in `items` is on the disk.

    Opening cuts off a torn last line, so that the next append starts on a line of its own.
    """

    def __init__(self, path: Path) -> None:
        self.items, self._end = read_journal(path)
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

    def append(self, key: str, item: dict[str, Any]) -> None:
        """Write one finished item and wait until it is on the disk.

        Raises:
            ValueError: the key is finished already, or a number is not finite.
            OSError: the disk is full or gone; the journal stays sound and without the item.
        """
        line = dump_json({"key": key, "item": item}).encode() + b"\n"
        with self._guard:
            if key in self.items:
                raise ValueError(f"the item {key!r} is in the journal already")
            try:
                rest = memoryview(line)
                while rest:
                    rest = rest[self._file.write(rest) :]
                os.fsync(self._file.fileno())
            except BaseException:
                self._cut()
                raise
            self._end += len(line)
            self.items[key] = json.loads(line)["item"]  # as a resumed run would read it

    def close(self) -> None:
        """Close the file; closing twice does no harm."""
        self._file.close()
