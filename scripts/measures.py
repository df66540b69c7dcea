"""Measures in a JSON file, added one by one, so that a script goes on where it was cut."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from diffkit.runs.files import write_bytes_atomically


class Measures:
    """Rows by name, of one configuration; processes that measure different rows may share the file.

    Args:
        path: of the file.
        config: what the rows were measured on.
    """

    def __init__(self, path: Path, config: Mapping[str, Any]) -> None:
        self.path, self.config = path, json.loads(json.dumps(config))
        self.rows()

    def rows(self) -> dict[str, Any]:
        """What is measured so far, by any process."""
        if not self.path.exists():
            return {}
        content = json.loads(self.path.read_text())
        if content["config"] != self.config:
            sys.exit(f"{self.path} holds measures of {content['config']}, not of {self.config}: choose another --json.")
        return dict(content["measures"])

    def add(self, name: str, measure: Callable[[], Any]) -> Any:
        """The row of that name, measured and written unless it is there."""
        if name not in self.rows():
            row = measure()
            print(name, json.dumps(row), flush=True)
            content = {"config": self.config, "measures": self.rows() | {name: row}}
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_bytes_atomically(self.path, (json.dumps(content, indent=1) + "\n").encode())
        return self.rows()[name]
