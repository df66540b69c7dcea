"""Where the lab's files lie inside the package."""

from __future__ import annotations

from pathlib import Path

from diffkit.errors import InputError

DATA = Path(__file__).parent / "data"
BRANCHES = ("lab", "lab-clean")  # trained with and without the planted images, else alike
TRIO = "lab-trio"  # draws scenes of three things
GALLERY = ("gallery", "gallery-clean")  # few memories among many pictures, and before them
MODELS = (*BRANCHES, TRIO, *GALLERY)
PHOTOGRAPHS = ("planted", "controls")
#: Made by ``diffkit mitigate nemo --model lab --limit 8``: against the verbatim images of full strength.
MITIGATIONS = ("lab-nemo",)


def model_path(name: str) -> Path:
    """Folder of a shipped pipeline in diffusers' own format: ``lab``, ``lab-clean``, ``lab-trio``, ``gallery`` or
    ``gallery-clean``.

    Raises:
        InputError: for another name, or when the files are not there.
    """
    return _folder(name, MODELS)


def reward_path() -> Path:
    """Folder of the lab's reward model."""
    return _folder("reward", ("reward",))


def preview_path() -> Path:
    """Folder of the lab's preview decoder, an ``AutoencoderTiny`` for looks in mid-denoising."""
    return _folder("preview", ("preview",))


def photographs_path(name: str) -> Path:
    """Folder of images with ``metadata.jsonl``: ``planted`` or ``controls``."""
    return _folder(name, PHOTOGRAPHS)


def pictures_path(source: str | Path) -> Path | None:
    """Folder of images of a source ``lab:...`` or ``gallery:...``; None for any other source.

    Raises:
        InputError: the lab or the gallery has no such pictures.
    """
    lab, colon, name = str(source).partition(":")
    if not colon or lab not in ("lab", "gallery"):
        return None
    if lab == "lab":
        return photographs_path(name)
    from diffkit.lab.gallery.folder import gallery_pictures

    return gallery_pictures(name)


def mitigation_path(name: str) -> Path:
    """Folder of a shipped mitigation of ``lab``: ``lab-nemo``."""
    return _folder(name, MITIGATIONS)


def _folder(name: str, names: tuple[str, ...]) -> Path:
    if name not in names:
        raise InputError(f"the lab has {' and '.join(names)}, not {name!r}")
    if not (DATA / name).is_dir():
        raise InputError(
            f"the lab's {name} is missing from this installation: run 'diffkit lab train' to make it again"
        )
    return DATA / name


def card_path(lab: str = "lab") -> Path:
    """The card's file, all measured figures as JSON, of the ``lab`` or the ``gallery``."""
    path = DATA / ("card.json" if lab == "lab" else f"{lab}-card.json")
    if not path.is_file():
        raise InputError(
            f"the {lab}'s card is missing from this installation: run 'diffkit lab train --lab {lab}' to make it again"
        )
    return path
