"""Atomic writes, names that suit every file system, and a lock that is released when its process ends."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

from diffkit.errors import InputError

__all__ = [
    "OPERATING_POINT",
    "ROWS_IN_ERROR",
    "FolderLock",
    "dump_json",
    "fsync_folder",
    "remove_empty_run",
    "safe_name",
    "write_bytes_atomically",
]


#: File of a run with the rows of its input that could not be read: source, row, reason.
ROWS_IN_ERROR = "rows_in_error.csv"
#: File of a run with its copy detector's calibration, which is computed before the first item.
OPERATING_POINT = "operating_point.json"


def dump_json(value: object, *, indent: int | None = None) -> str:
    """JSON text; NaN and infinity are refused, since what is unknown is written as null.

    Raises:
        ValueError: a number is not finite.
        TypeError: a value is no JSON type (a `Path` is written as its text).
    """
    return json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False, default=_path_as_text)


def _path_as_text(value: object) -> str:
    if isinstance(value, Path):
        return value.as_posix()
    raise TypeError(f"expected a JSON value, got {type(value).__name__}: {value!r}")


def fsync_folder(folder: Path) -> None:
    """Make the folder's own entries (a new or renamed file) survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_bytes_atomically(path: Path, data: bytes) -> None:
    """Replace the file's content at once: a reader, or a crash, sees the old content or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    fsync_folder(path.parent)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def safe_name(text: str) -> str:
    """A file name for any text: letters, digits, dot, dash and underscore, at most about 80 characters.

    Texts that had to be changed carry a hash of the original, so that two different texts never share a name.
    """
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.")[:64]
    if plain == text and plain and not re.search(r"-[0-9a-f]{12}$", plain):
        return plain
    return f"{plain or 'item'}-{hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()[:12]}"


def remove_empty_run(folder: Path, made: Sequence[Path]) -> None:
    """Remove the files and empty folders of a run that has kept nothing else; leave one that has as it is.

    Args:
        folder: the run's folder.
        made: the folder and those above it, as far as they were made for the run; the innermost first.
    """
    inside = sorted(folder.rglob("*"), reverse=True)
    files = {path.relative_to(folder).as_posix(): path for path in inside if not path.is_dir()}
    if files.keys() - {"run.json", "journal.jsonl", ".lock", ROWS_IN_ERROR, OPERATING_POINT}:
        return
    for path in files.values():
        path.unlink()
    for path in (*(path for path in inside if path.is_dir()), *made):
        if any(path.iterdir()):
            return
        path.rmdir()


class FolderLock:
    """One writer a folder. The kernel holds the lock, so it vanishes with the process, however that ends."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a+", encoding="utf-8")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.seek(0)
            owner = self._file.read().strip() or "unknown"
            self._file.close()
            raise InputError(
                f"Another process (pid {owner}) is writing to {path.parent}: wait for it, or choose another --out."
            ) from None
        self._file.seek(0)
        self._file.truncate()
        self._file.write(f"{os.getpid()}\n")
        self._file.flush()

    def release(self) -> None:
        """Let the next writer in. Releasing twice does no harm."""
        self._file.close()
