"""Run folders: what was asked, what is finished, with what it was made. The only code that writes results."""

from __future__ import annotations

from diffkit.runs.provenance import environment, sha256_file, sha256_folder, sha256_path
from diffkit.runs.record import SCHEMA_VERSION, Run

__all__ = ["SCHEMA_VERSION", "Run", "environment", "sha256_file", "sha256_folder", "sha256_path"]
