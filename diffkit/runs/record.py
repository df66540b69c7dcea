"""A run: a folder with its configuration and its finished items, so that the same command resumes it.

Layout: `run.json` (what was asked, with what), `journal.jsonl` (finished items), `images/`, and whatever the run
writes at its end, such as `summary.json` and `report.html`.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any, Self

from diffkit.console import say
from diffkit.errors import InputError, Interrupted
from diffkit.runs.files import FolderLock, dump_json, remove_empty_run, safe_name, write_bytes_atomically
from diffkit.runs.identity import completed_config, config_hash, differing_keys
from diffkit.runs.journal import Journal
from diffkit.runs.provenance import environment

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

__all__ = ["SCHEMA_VERSION", "Run", "config_hash", "differing_keys"]

SCHEMA_VERSION = 2  # of run.json and journal.jsonl together; since 2 a journal may hold an item "again"


class Run:
    """An open run; use `Run.open`. It is a context manager: leaving it without an error marks the run finished.

    Attributes:
        folder: the run's folder.
        resumed: whether the folder held this run before.
        record: the content of run.json.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     for item in ("cat", "dog"):  # the second time the run goes on
        ...         with Run.open(folder, config={"steps": 4}, kind="example") as run:
        ...             run.write(item, {"score": 0.5})
        ...             print(run.resumed, list(run.done))
        False ['cat']
        True ['cat', 'dog']
    """

    def __init__(
        self, folder: Path, record: dict[str, Any], lock: FolderLock, *, resumed: bool, made: Sequence[Path] = ()
    ) -> None:
        self.folder = folder
        self.record = record
        self.resumed = resumed
        self._lock = lock
        self._made = made
        self._save_record()  # before the journal: a folder with a journal and no run.json would be refused
        self._journal = Journal(folder / "journal.jsonl")

    @classmethod
    def open(
        cls,
        folder: str | Path,
        *,
        config: Mapping[str, Any],
        kind: str,
        provenance: Mapping[str, Any] | None = None,
        added: Mapping[str, Any] | None = None,
    ) -> Run:
        """Begin a run in `folder`, or go on with the one that is there.

        Args:
            folder: made if it does not exist; must be empty or hold the same run.
            config: everything that changes results, as JSON types; a model's or data set's checksum belongs here
                if a changed one shall be refused. Two runs with equal configurations are the same run.
            kind: what makes the run, e.g. "audit".
            provenance: what is worth knowing but does not identify the run: device, seeds, checksums.
            added: keys of ``config`` that earlier versions did not record, with the value that their runs had: a run
                without the key is resumed if that is the present value; see
                :func:`diffkit.runs.identity.completed_config`. Where a run may have had any, give the present value.

        Raises:
            InputError: another configuration or kind is in the folder (the message names the keys that differ),
                something else is, a newer diffkit wrote it, or another process is writing to it now.
        """
        folder = Path(folder)
        requested = json.loads(dump_json(dict(config)))  # tuples become lists, as they will be read back
        _refuse_foreign_folder(folder)
        made = [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        lock = FolderLock(folder / ".lock")
        try:
            present = _read_record(folder / "run.json")
            if present is not None:
                _refuse_other_run(folder, present, kind, requested, json.loads(dump_json(dict(added or {}))))
            session = {"started": _now(), "finished": None, **environment()}
            record = present or _new_record(kind, requested)
            record["provenance"] = json.loads(dump_json(dict(provenance or {})))
            record["sessions"].append(session)
            record["finished"] = None
            return cls(folder, record, lock, resumed=present is not None, made=made)
        except BaseException:
            lock.release()
            raise

    @property
    def done(self) -> Mapping[str, dict[str, Any]]:
        """The finished items by key, in the order they were first finished; read-only."""
        return MappingProxyType(self._journal.items)

    def write(self, key: str, item: Mapping[str, Any]) -> None:
        """Record a finished item; when this returns, it is on the disk. Save its images first.

        Raises:
            ValueError: the key is finished already, or a number is NaN or infinite (write None and a reason).
        """
        self._journal.append(key, dict(item))
        if self._journal.repeats and self.record["schema_version"] < SCHEMA_VERSION:
            self.record["schema_version"] = SCHEMA_VERSION  # an earlier version would call the journal damaged
            self._save_record()

    def retry(self, keys: Iterable[str], what: str = "items", why: str = "in error") -> None:
        """Take items that could not be scored out of those that are done, to try them again; say so on the console.

        One that ends as before (but for its ``seconds``) is not written again; else its new record supersedes the old
        one, which stays in the journal.

        Args:
            keys: of finished items in error.
            what: the items in the message, "captions" for example; ``why``: what is the matter with them.
        """
        again = list(keys)
        for key in again:
            self._journal.reopen(key)
        if again:
            say(f"Retrying {len(again)} {what} {why}.")

    def save_image(self, name: str, image: Image | Tensor) -> str:
        """Write `images/<name>.png` atomically and return that path, relative to the run's folder.

        Args:
            name: any text; characters that do not suit a file name are replaced, see `files.safe_name`.
            image: a PIL image, or a tensor (3, H, W) in [0, 1].
        """
        from diffkit.images import to_pil

        buffer = io.BytesIO()
        to_pil(image).save(buffer, format="PNG")
        relative = f"images/{safe_name(name.removesuffix('.png'))}.png"
        write_bytes_atomically(self.folder / relative, buffer.getvalue())
        return relative

    def write_text(self, name: str, text: str) -> Path:
        """Write a text file of the run atomically (UTF-8); `name` is relative to the folder."""
        path = self.path(name)
        write_bytes_atomically(path, text.encode())
        return path

    def write_json(self, name: str, value: Mapping[str, Any] | list[Any]) -> Path:
        """Write a JSON file of the run atomically; numbers must be finite, unknown is None."""
        return self.write_text(name, dump_json(value, indent=2) + "\n")

    def remove(self, name: str) -> None:
        """Remove a file of the run that no longer holds, and its folder if nothing else is in it."""
        path = self.path(name)
        path.unlink(missing_ok=True)
        if path.parent != self.folder and path.parent.is_dir() and not any(path.parent.iterdir()):
            path.parent.rmdir()

    def path(self, name: str) -> Path:
        """The path of a file of this run.

        Raises:
            ValueError: the name leads out of the run's folder.
        """
        path = self.folder / name
        if not path.resolve().is_relative_to(self.folder.resolve()):
            raise ValueError(f"{name!r} leads out of the run's folder {self.folder}")
        return path

    def _save_record(self) -> None:
        self.write_json("run.json", self.record)

    def close(self, *, finished: bool = False) -> None:
        """Release the folder; with `finished`, note in run.json that the run is complete."""
        if finished:
            self.record["finished"] = self.record["sessions"][-1]["finished"] = _now()
            self._save_record()
        self._journal.close()
        self._lock.release()

    def __enter__(self) -> Self:
        """The run itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close; Ctrl-C leaves as `Interrupted`, which knows the folder.

        A new run that ends with an `InputError` before anything was finished or kept is removed, so that the corrected
        command has the folder.
        """
        if kind is not None and issubclass(kind, InputError) and not self.resumed and not self._journal.items:
            self._journal.close()
            remove_empty_run(self.folder, self._made)
        self.close(finished=kind is None)
        if kind is KeyboardInterrupt:
            raise Interrupted(self.folder) from error


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _new_record(kind: str, config: dict[str, Any]) -> dict[str, Any]:
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": kind,
        "config": config,
        "config_hash": config_hash(config),
        "started": _now(),
        "finished": None,
        "provenance": {},
        "sessions": [],
    }


def _read_record(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        record = json.loads(path.read_bytes())
    except ValueError as error:
        raise InputError(f"{path} is no JSON ({error}). Choose another --out.") from error
    version = record.get("schema_version") if isinstance(record, dict) else None
    if not isinstance(version, int):
        raise InputError(f"{path} is not the record of a run: it has no schema_version. Choose another --out.")
    if version > SCHEMA_VERSION:
        raise InputError(
            f"{path} was written by a newer diffkit (schema {version}; this one knows {SCHEMA_VERSION}). "
            "Upgrade diffkit, or choose another --out."
        )
    return dict(record)


def _refuse_foreign_folder(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; --out takes a folder.")
    if folder.is_dir() and not (folder / "run.json").exists():
        foreign = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
        if foreign:
            raise InputError(f"{folder} is not empty and holds no run (it has {foreign[0]!r}). Choose another --out.")


def _refuse_other_run(
    folder: Path, present: Mapping[str, Any], kind: str, requested: Mapping[str, Any], added: Mapping[str, Any]
) -> None:
    if present["kind"] != kind:
        raise InputError(f"{folder} holds a run of {present['kind']!r}, not of {kind!r}. Choose another --out.")
    differences = differing_keys(completed_config(present, added), requested)
    if not differences and present["config_hash"] != config_hash(present["config"]):
        differences = ["run.json was edited by hand"]
    if differences:
        raise InputError(
            f"{folder} holds another run: {'; '.join(differences)}. Choose another --out, or the same options."
        )
