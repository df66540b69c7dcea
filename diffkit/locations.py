"""Where the user's files are: a path here, or a hub id. What looks like a file never goes to the hub."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path

from diffkit.errors import InputError

__all__ = ["is_hub_id", "looks_like_path", "missing_file"]

#: Endings of files of weights and settings; a hub id may have a dot (``owner/model-1.5``), but none of these.
FILE_ENDINGS = (
    *(".safetensors", ".sft", ".ckpt", ".pt", ".pth", ".bin", ".gguf", ".onnx", ".h5", ".msgpack", ".pkl", ".pickle"),
    *(".zip", ".tar", ".json", ".yaml", ".yml", ".txt"),
)


def looks_like_path(location: str | Path) -> bool:
    """Whether a location can only be a path: by its form, its ending, or because it is there.

    Example:
        >>> [looks_like_path(name) for name in ("./model", "models/a.safetensors", "owner/model-1.5")]
        [True, True, False]
    """
    text = str(location)
    formed = isinstance(location, Path) or text.startswith((".", "~", "/")) or "\\" in text or text.count("/") != 1
    return formed or Path(text).suffix.lower() in FILE_ENDINGS or Path(text).exists()


def is_hub_id(location: str | Path) -> bool:
    """Whether a location means the hub: ``owner/name``, no path, and nothing of that name here."""
    return not looks_like_path(location)


def missing_file(location: str | Path, what: str, forms: str) -> InputError:
    """The error for a path at which there is nothing, with the names near it that are there.

    Args:
        what: what it was to be, such as "model".
        forms: what can be given instead.

    Example:
        >>> print(missing_file("/nowhere/a.safetensors", "LoRA", "a file"))
        There is no LoRA '/nowhere/a.safetensors': there is no folder /nowhere. Give a file.
    """
    nearby = _nearby(Path(location).expanduser())
    return InputError(f"There is no {what} {str(location)!r}{nearby}. Give {forms}.")


def _nearby(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return f": there is no folder {folder}"
    names = [entry.name for entry in sorted(folder.iterdir()) if not entry.name.startswith(".")]
    near = get_close_matches(path.name, names, n=3, cutoff=0.5)
    if not near:
        return f": nothing of that name in {folder.resolve()}"
    return f"; near it: {', '.join(str(folder / name) for name in near)}"
