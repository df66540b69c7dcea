"""Provenance of a result: versions, source revision, checksums."""

from __future__ import annotations

import hashlib
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from diffkit.errors import InputError

__all__ = ["PACKAGES", "environment", "git_revision", "sha256_file", "sha256_folder", "sha256_path"]

PACKAGES = (
    "diffkit",
    "torch",
    "torchvision",
    "diffusers",
    "transformers",
    "accelerate",
    "peft",
    "open_clip_torch",
    "safetensors",
    "numpy",
    "scipy",
    "pillow",
)


def environment() -> dict[str, object]:
    """Python, platform, package versions (null where not installed) and the toolkit's git revision. Imports none."""
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "packages": {name: _version(name) for name in PACKAGES},
        "git": git_revision(Path(__file__).resolve().parents[1]),
        "argv": list(sys.argv),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def git_revision(folder: Path) -> dict[str, object] | None:
    """Commit and state of the checkout that tracks `folder`'s own files; None outside of one, or without git.

    A package in a virtual environment inside somebody's repository is not tracked by it and so gives None.
    """

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=20, check=True
            )
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip()

    if not git("ls-files", "--", "*.py"):
        return None
    commit = git("rev-parse", "HEAD")
    changes = git("status", "--porcelain", "--untracked-files=no")
    return None if commit is None else {"commit": commit, "changed": bool(changes) if changes is not None else None}


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's content.

    Raises:
        InputError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"Cannot read {path}: {error.strerror}.") from error


def sha256_folder(folder: Path) -> str:
    """Hex SHA-256 over the relative paths and contents of all files below `folder`, in the order of the paths.

    Hidden files and folders are left out: download tools keep notes there that say nothing about the content.

    Raises:
        InputError: there is no such folder.
    """
    if not folder.is_dir():
        raise InputError(f"Expected a folder at {folder}, and there is none.")
    total = hashlib.sha256()
    files = (path for path in folder.rglob("*") if path.is_file())
    for name, path in sorted((path.relative_to(folder).as_posix(), path) for path in files):
        if any(part.startswith(".") for part in name.split("/")):
            continue
        total.update(f"{sha256_file(path)} {name}\n".encode())
    return total.hexdigest()


def sha256_path(path: Path) -> str | None:
    """Hex SHA-256 of a folder (:func:`sha256_folder`) or a file; None where there is neither."""
    if path.is_dir():
        return sha256_folder(path)
    return sha256_file(path) if path.is_file() else None
