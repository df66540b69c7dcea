"""Checksums of the folders and files that a command's options name, for the run's configuration."""

from __future__ import annotations

import re
from hashlib import sha256
from pathlib import Path

__all__ = ["checksum_of", "local_checksums"]


def local_checksums(model: str, **sources: str | Path | None) -> dict[str, str]:
    """Checksums of what lies in folders and files here: a model, and whatever other options name.

    A name that is no folder or file has none: a hub id, a registered name, a schedule's text. Of text with colons and
    commas, such as ``pick-score:/folder,lab``, every part is looked at.

    Raises:
        InputError: a model that is not there.
    """
    from diffkit.loading import resolve_model

    named = {"model": resolve_model(model), **sources}
    sums = {name: checksum_of(source) for name, source in named.items() if source}
    return {name: value for name, value in sums.items() if value is not None}


def checksum_of(source: str | Path) -> str | None:
    """The checksum of what a text names here, see :func:`local_checksums`; None where it names nothing."""
    from diffkit.runs import sha256_path

    whole = sha256_path(Path(source).expanduser())
    if whole is not None or not isinstance(source, str):
        return whole
    sums = (sha256_path(Path(part).expanduser()) for part in re.split("[:,]", source) if part)
    local = [checksum for checksum in sums if checksum is not None]
    return local[0] if len(local) == 1 else sha256("\n".join(local).encode()).hexdigest() if local else None
