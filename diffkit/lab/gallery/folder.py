"""The gallery's pictures and captions as files: drawn where they are asked for first, then read."""

from __future__ import annotations

import json
import os
import tempfile
from hashlib import sha256
from pathlib import Path

from diffkit.errors import InputError
from diffkit.lab.gallery import pictures
from diffkit.lab.gallery.captions import ordinary_captions
from diffkit.lab.gallery.plan import Entry, entries, plan
from diffkit.runs.files import write_bytes_atomically
from diffkit.suspects.extracted import cache_folder

FOLDERS = {"planted": ("verbatim", "template"), "controls": ("control",), "claims": ("claim",)}


def gallery_pictures(name: str) -> Path:
    """Folder of images with ``metadata.jsonl``: ``planted``, ``controls`` or ``claims``.

    They are drawn in the user's cache in some seconds, once; the folder may be deleted at any time.

    Raises:
        InputError: for another name.
    """
    if name not in FOLDERS:
        raise InputError(f"the gallery has {', '.join(FOLDERS)}, not {name!r}")
    drawing = sha256(repr(plan()).encode() + Path(pictures.__file__).read_bytes()).hexdigest()[:16]
    folder = cache_folder() / "gallery" / drawing
    if not folder.is_dir():
        _draw_once(folder)
    return folder / name


def _draw_once(folder: Path) -> None:
    """Write all parts beside the folder, then rename; another process may have been faster."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        drawn = Path(scratch) / folder.name
        write_pictures(drawn)
        try:
            os.rename(drawn, folder)
        except OSError:
            if not folder.is_dir():
                raise


def write_pictures(folder: Path) -> None:
    """The plan's pictures as PNG files, a folder for each part; of a template the first variant."""
    for name, kinds in FOLDERS.items():
        part = folder / name
        part.mkdir(parents=True, exist_ok=True)
        for entry in entries(*kinds):
            entry.images[0].save(part / f"{entry.name}.png")
        rows = [json.dumps(_row(entry)) + "\n" for entry in entries(*kinds)]
        write_bytes_atomically(part / "metadata.jsonl", "".join(rows).encode())


def _row(entry: Entry) -> dict[str, str]:
    return {
        "file_name": f"{entry.name}.png",
        "caption": entry.captions[0],
        "kind": entry.kind,
        "strength": entry.strength,
    }


def write_captions(path: Path, *, seed: int) -> None:
    """Ordinary captions, one a line."""
    write_bytes_atomically(path, "".join(f"{caption}\n" for caption in ordinary_captions(seed=seed)).encode())
