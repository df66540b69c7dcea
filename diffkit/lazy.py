"""Public names of a package, imported on first use: ``import diffkit`` alone costs no torch (PEP 562)."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping

__all__ = ["lazy_names"]


def lazy_names(package: str, homes: Mapping[str, str]) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """The ``__getattr__`` and ``__dir__`` of a package whose public names are imported on first use.

    A type checker sees nothing of it: import the same names under ``if TYPE_CHECKING`` beside it.

    Args:
        package: the package's ``__name__``.
        homes: public name -> the module that defines it under the same name.

    Example:
        >>> __getattr__, __dir__ = lazy_names(__name__, {"sqrt": "math"})
        >>> __getattr__("sqrt")(9.0)
        3.0
    """

    def get(name: str) -> object:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(homes[name]), name)

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *homes})

    return get, names
