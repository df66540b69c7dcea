"""The parts of a model's folder: their classes, and the files of their weights with their variants and shards."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from diffkit.errors import InputError
from diffkit.weight_files import is_pointer, refuse_unreadable

__all__ = ["Component", "choose_variant", "read_json"]

_WEIGHTS = re.compile(
    r"^(?:diffusion_pytorch_model|pytorch_model|model)(?:\.(?P<variant>[\w-]+?))?(?:-(?P<shard>\d{5})-of-(?P<shards>\d{5}))?"
    r"(?:\.(?P<legacy>[\w-]+))?\.(?:safetensors|bin)$"
)
_UNREAD = (".bin", ".pt", ".pth", ".ckpt", ".msgpack", ".h5")


@dataclass(frozen=True)
class Component:
    """One part of a model's folder.

    Attributes:
        name: such as ``unet``; ``folder``: where it lies.
        library: the module its class comes from, as ``model_index.json`` has it; ``class_name``: its class.
    """

    name: str
    folder: Path
    library: str
    class_name: str

    @cached_property
    def weights(self) -> dict[str | None, list[Path]]:
        """The files by variant; None is the plain one. Of a variant that has no safetensors, PyTorch's ``.bin``.

        diffusers finds a ``.bin`` only where it is in one piece.
        """
        return {**self._files("bin"), **self._files("safetensors")}

    def _files(self, suffix: str) -> dict[str | None, list[Path]]:
        files: dict[str | None, list[Path]] = {}
        for path in sorted(self.folder.glob(f"*.{suffix}")):
            match = _WEIGHTS.match(path.name)
            if match and not (suffix == "bin" and match["shard"]):
                files.setdefault(match["variant"] or match["legacy"], []).append(path)
        return files

    def kind(self) -> type[Any]:
        """The component's class.

        Raises:
            InputError: it would need code that is not diffusers' or transformers' own, or they do not have it.
        """
        return _component_class(self)

    @property
    def is_adapter(self) -> bool:
        """Whether transformers saved an adapter in place of the part, which names the folder or hub id of its model."""
        names = {path.name for path in self.folder.iterdir()} if self.folder.is_dir() else set()
        return {"adapter_config.json", "adapter_model.safetensors"} <= names and "config.json" not in names

    def has_weights(self, *, adapters: bool = False) -> bool:
        """Whether the part is a network, once its folder and its settings have been looked at.

        Args:
            adapters: whether an adapter may stand for a network, which then has none here.

        Raises:
            InputError: the folder or a file of settings is missing or cannot be read.
        """
        kind = self.kind()
        model = str(self.folder.parent)
        if not self.folder.is_dir():
            raise InputError(
                f"The model {model!r} lacks its {self.name}: model_index.json names a {self.class_name}, and there is "
                f"no folder {self.folder}; get the whole model."
            )
        for path in sorted(path for path in self.folder.iterdir() if path.is_file()):
            if path.name.endswith("config.json"):
                read_json(path)
            elif is_pointer(path):
                raise InputError(f"{path} is a git-lfs pointer and not the file; run `git lfs pull` in its folder.")
        if not issubclass(kind, torch.nn.Module) or (adapters and self.is_adapter):
            return False
        if not (self.folder / "config.json").is_file():
            raise InputError(f"The {self.name} of the model {model!r} has no config.json; get the whole model.")
        return True

    def check_files(self, variant: str | None) -> None:
        """Check that all files of the weights are there and none is cut short.

        Raises:
            InputError: a shard is missing or a file is damaged.
        """
        files = self.weights.get(variant) or self.weights[None]
        where = f"The {self.name} of the model {str(self.folder.parent)!r}"
        names = {path.name for path in files}
        for path in files:
            refuse_unreadable(path, where)
            for shard in _shards(path.name):
                if shard not in names:
                    raise InputError(f"{where} lacks {shard}, one of its shards; get the whole model.")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file of a model.

    Raises:
        InputError: it is a pointer of git-lfs, or no JSON object.
    """
    if is_pointer(path):
        raise InputError(f"{path} is a git-lfs pointer and not the file; run `git lfs pull` in its folder.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is no JSON: {error}.") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} holds no JSON object; expected diffusers' own {path.name}.")
    return content


def _component_class(part: Component) -> type[Any]:
    import diffusers

    where = f"The {part.name} of the model {str(part.folder.parent)!r}"
    if part.library in ("diffusers", "transformers"):
        module, package = importlib.import_module(part.library), part.library
    elif isinstance(getattr(diffusers.pipelines, part.library, None), ModuleType):
        module, package = getattr(diffusers.pipelines, part.library), "diffusers"
    else:
        raise InputError(
            f"{where} is a {part.class_name} of {part.library!r}, which is neither diffusers nor transformers; code "
            f"from a model is not run."
        )
    kind = getattr(module, part.class_name, None)
    if not isinstance(kind, type):
        raise InputError(
            f"{where} is a {part.class_name}, which {package} {version(package)} does not have; update {package} if "
            f"the model is newer."
        )
    return kind


def choose_variant(model: Path, parts: list[Component], variant: str | None) -> str | None:
    """The variant with which every part has weights: the given one, else the plain one, else the only one there is.

    Parts that lack it, but have plain weights, take those.

    Raises:
        InputError: a part has no weights that would be taken, or several variants and no plain ones.
    """
    for part in parts:
        if not part.weights:
            _refuse_no_weights(model, part)
    if variant is not None:
        without = [part for part in parts if variant not in part.weights and None not in part.weights]
        if without or not any(variant in part.weights for part in parts):
            part = (without or parts)[0]
            raise InputError(
                f"You are trying to load the model files of the `variant={variant}`, and the {part.name} of the model "
                f"{str(model)!r} has no weights of the variant {variant!r}; it has {_listing(part.weights)}."
            )
        return variant
    bound = [part for part in parts if None not in part.weights]
    if not bound:
        return None
    common = set.intersection(*({name for name in part.weights if name} for part in bound))
    if len(common) != 1:
        raise InputError(
            f"The {bound[0].name} of the model {str(model)!r} has no plain weights, and several variants, "
            f"{_listing(bound[0].weights)}; choose by --variant."
        )
    return common.pop()


def _listing(weights: Mapping[str | None, object]) -> str:
    return ", ".join(sorted("the plain ones" if name is None else name for name in weights))


def _refuse_no_weights(model: Path, part: Component) -> None:
    names = sorted(path.name for path in part.folder.iterdir() if path.suffix in _UNREAD)
    if not names:
        raise InputError(
            f"Could not load the model {str(model)!r}: its {part.name} has no weights in {part.folder}; get the whole "
            f"model."
        )
    raise InputError(
        f"Could not load the model {str(model)!r}: its {part.name} has {names[0]} and neither .safetensors nor a .bin "
        f"in one piece; load it with the library that wrote it, and save it again by save_pretrained."
    )


def _shards(name: str) -> list[str]:
    """The names of all shards of the weights that a file is one of; none where it is whole."""
    match = _WEIGHTS.match(name)
    if match is None or match["shard"] is None:
        return []
    return [name.replace(f"-{match['shard']}-of-", f"-{i:05d}-of-") for i in range(1, int(match["shards"]) + 1)]
