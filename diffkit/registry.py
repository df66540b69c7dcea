"""Named, lazily imported extensions: rewards, detectors, attacks, mitigations, searches.

A name is found among the objects registered in this process, then among the builtins (declared as
``"module:attribute"`` strings, so that listing names imports nothing), then among the installed entry points of the
registry's group. So another package adds a reward without a change here.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Generic, TypeVar, cast

from diffkit.errors import InputError, unknown_name

__all__ = ["Registry", "import_attribute"]

T = TypeVar("T")
U = TypeVar("U")


def import_attribute(reference: str) -> object:
    """The object that a ``"module:attribute"`` string names.

    Raises:
        InputError: the string has no colon, or the module has no such attribute.
        ImportError: the module cannot be imported.
    """
    module_name, colon, attribute = reference.partition(":")
    if not colon or not module_name or not attribute:
        raise InputError(f"Expected 'module:attribute', got {reference!r}.")
    module = importlib.import_module(module_name)
    if not hasattr(module, attribute):
        raise InputError(f"Module {module_name!r} has no attribute {attribute!r}, which {reference!r} asks for.")
    return cast(object, getattr(module, attribute))


class Registry(Generic[T]):
    """Objects of one kind by name.

    Args:
        kind: the word for messages, e.g. "reward".
        group: the entry-point group in which other packages declare theirs, e.g. "diffkit.rewards".
        builtins: name -> "module:attribute", imported at the first `get`.
    """

    def __init__(self, kind: str, group: str, builtins: Mapping[str, str] | None = None) -> None:
        self.kind = kind
        self.group = group
        self._builtins = dict(builtins or {})
        self._objects: dict[str, T] = {}

    def register(self, name: str) -> Callable[[U], U]:
        """Decorator that registers an object under `name`; the object itself comes back unchanged.

        Raises:
            InputError: another object already has that name.
        """

        def decorator(target: U) -> U:
            taken = self._objects.get(name)
            if taken is not None and taken is not cast(object, target):
                raise InputError(f"The {self.kind} {name!r} is registered already; choose another name.")
            self._objects[name] = cast(T, target)
            return target

        return decorator

    def _entry_points(self) -> dict[str, EntryPoint]:
        return {entry.name: entry for entry in entry_points(group=self.group)}

    def names(self) -> list[str]:
        """All known names, sorted. Imports none of them."""
        return sorted({*self._objects, *self._builtins, *self._entry_points()})

    def __contains__(self, name: object) -> bool:
        return name in self._objects or name in self._builtins or name in self._entry_points()

    def get(self, name: str) -> T:
        """The object of that name, imported now if it was not yet.

        Raises:
            InputError: nobody registered the name; the message lists the known ones.
        """
        if name in self._objects:
            return self._objects[name]
        if name in self._builtins:
            value = cast(T, import_attribute(self._builtins[name]))
        elif name in (entries := self._entry_points()):
            value = cast(T, entries[name].load())
        else:
            raise unknown_name(self.kind, name, self.names())
        self._objects[name] = value
        return value
