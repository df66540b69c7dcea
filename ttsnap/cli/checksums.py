"""Checksums of the folders and files that a command's options name, for the run's configuration."""

from __future__ import annotations

from pathlib import Path

__all__ = ["local_checksums"]


def local_checksums(model: str, **sources: str | Path | None) -> dict[str, str]:
    """Checksums of what lies in folders and files here: a model, and whatever other options name.

    A name that is no folder or file has none: a hub id, a registered name, a schedule's text. Of text with colons,
    such as ``pick-score:/folder``, every part is looked at.

    Raises:
        InputError: a model that is not there.
    """
    from diffkit.loading import resolve_model

    named = {"model": resolve_model(model), **sources}
    sums = {name: _checksum(source) for name, source in named.items() if source}
    return {name: value for name, value in sums.items() if value is not None}


def _checksum(source: str | Path) -> str | None:
    from diffkit.runs import sha256_path

    parts = str(source).split(":") if isinstance(source, str) else []
    sums = (sha256_path(Path(part).expanduser()) for part in (source, *parts) if part)
    return next((checksum for checksum in sums if checksum is not None), None)
