"""Every test runs offline, quiet, and with caches of its own."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# Before the first import of a hub client or of matplotlib: both read these once.
_CACHE = tempfile.TemporaryDirectory(prefix="diffkit-tests-")
os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    HF_HOME=str(Path(_CACHE.name) / "huggingface"),
    MPLCONFIGDIR=str(Path(_CACHE.name) / "matplotlib"),
    MPLBACKEND="Agg",
    DIFFKIT_QUIET="1",
    NO_COLOR="1",
)


# The same examples on every machine, however busy it is.
settings.register_profile("diffkit", deadline=None, derandomize=True)
settings.load_profile("diffkit")


class SocketUsed(RuntimeError):
    """A test tried to reach the network."""


@pytest.fixture(autouse=True)
def no_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test opens a connection; sockets between processes of this machine (AF_UNIX) may."""
    for name in ("connect", "connect_ex"):
        original = getattr(socket.socket, name)

        def guarded(self: socket.socket, address: Any, _original: Any = original) -> Any:
            if self.family in (socket.AF_INET, socket.AF_INET6):
                raise SocketUsed(f"a test tried to connect to {address!r}")
            return _original(self, address)

        monkeypatch.setattr(socket.socket, name, guarded)

    def no_lookup(host: Any, *rest: Any, **options: Any) -> Any:
        raise SocketUsed(f"a test tried to look up {host!r}")

    monkeypatch.setattr(socket, "getaddrinfo", no_lookup)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Tiny models lose time on several threads, and the last bits may depend on their number."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with published data that is never committed; its tests skip where it is absent."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("DIFFKIT_SHARED_DATA", default))
    if not folder.is_dir():
        pytest.skip(f"no shared data at {folder}; set DIFFKIT_SHARED_DATA to its folder")
    return folder
