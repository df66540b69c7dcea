"""A run of several processes: the first one writes, the others send it their results."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from diffkit import parallel
from diffkit.errors import InputError
from diffkit.runs.record import Run

__all__ = ["open_shared"]


def open_shared(
    out: str | Path,
    *,
    config: Mapping[str, Any],
    kind: str,
    provenance: Mapping[str, Any],
    added: Mapping[str, Any] | None = None,
) -> AbstractContextManager[Run | None]:
    """The run on the first process, None on the others; every process calls it. See :meth:`Run.open`.

    Raises:
        InputError: the first process was refused the folder; all processes are told, so that none waits for ever.
    """
    run, error = None, None
    if parallel.is_first():
        try:
            run = Run.open(out, config=config, kind=kind, provenance=provenance, added=added)
        except InputError as refused:
            error = str(refused)
    error = parallel.broadcast(error)
    if error is not None:
        raise InputError(error)
    return nullcontext() if run is None else run
