"""What a model's folder holds, checked before any weight is read: its classes, its parts, the files of its weights."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from diffkit.errors import InputError
from diffkit.model_components import Component, choose_variant, read_json
from diffkit.weight_files import first_dtype, read_header

__all__ = ["ModelFolder", "pipeline_class"]

INDEX = "model_index.json"


class ModelFolder:
    """A folder in diffusers' format.

    Example:
        >>> from diffkit.lab.assets import model_path
        >>> folder = ModelFolder(model_path("lab"))
        >>> folder.class_name, [component.name for component in folder.components()][:2], folder.check()
        ('StableDiffusionPipeline', ['scheduler', 'text_encoder'], None)
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @cached_property
    def index(self) -> dict[str, Any]:
        """The content of ``model_index.json``.

        Raises:
            InputError: it is not there, or no JSON object.
        """
        if not (self.path / INDEX).is_file():
            raise InputError(f"{str(self.path)!r} is no diffusers model: it has no {INDEX}{_what_it_is(self.path)}.")
        return read_json(self.path / INDEX)

    @property
    def class_name(self) -> str:
        """The pipeline's class, as the index names it.

        Raises:
            InputError: it names none, or one whose code lies in the folder.
        """
        name = self.index.get("_class_name")
        if isinstance(name, list):
            raise InputError(
                f"The model {str(self.path)!r} brings a pipeline class of its own, {name[-1]}; code from a model is "
                f"not run."
            )
        if not isinstance(name, str) or not name:
            raise InputError(f"{self.path / INDEX} names no pipeline: it has no _class_name.")
        return name

    def components(self) -> Iterator[Component]:
        """The parts that the index names."""
        for name, entry in sorted(self.index.items()):
            if not isinstance(entry, list) or name.startswith("_"):
                continue
            if len(entry) != 2 or not all(isinstance(value, str) for value in entry):
                continue  # a part that the model does without, or a setting that is a list
            yield Component(name, self.path / name, *entry)

    def check(
        self,
        variant: str | None = None,
        *,
        any_class: bool = False,
        given: Collection[str] = (),
        adapters: bool = False,
    ) -> str | None:
        """Check that the pipeline and all its parts can be loaded, reading no weights.

        Args:
            variant: of the weights, such as ``fp16``; None takes the plain ones, or the only variant there is.
            any_class: the pipeline's class is given by the caller and not looked at.
            given: parts that the caller brings along and the folder may lack.
            adapters: whether a text encoder may be an adapter of a model elsewhere, as it is saved where it has one.

        Returns:
            The variant to load.

        Raises:
            InputError: what cannot be loaded, and why.
        """
        if not any_class:
            pipeline_class(self.class_name, self.path)
        parts = [part for part in self.components() if part.name not in given]
        models = [part for part in parts if part.has_weights(adapters=adapters)]
        chosen = choose_variant(self.path, models, variant)
        for part in models:
            part.check_files(chosen)
        return chosen

    def check_filled(self, pipe: Any, variant: str | None, *, given: Collection[str] = ()) -> None:
        """Check that the files filled all weights of a pipeline that was loaded from them.

        The libraries leave weights that a file lacks empty, or fill them with random numbers.

        Args:
            given: parts that do not come from the folder.

        Raises:
            InputError: a part has more weights than its files.
        """
        for part in self.components():
            network = getattr(pipe, part.name, None)
            if part.name in given or part.is_adapter or not isinstance(network, torch.nn.Module):
                continue
            files = part.weights.get(variant) or part.weights.get(None) or []
            sizes = [torch.Size(entry["shape"]).numel() for path in files for entry in read_header(path).values()]
            own = sum(parameter.numel() for parameter in network.parameters())
            if sum(sizes) < own or any(parameter.is_meta for parameter in network.parameters()):
                raise InputError(
                    f"The {part.name} of the model {str(self.path)!r} has {own} weights and its files hold "
                    f"{sum(sizes)}; the rest would be random. Get the whole model."
                )

    def dtype(self, variant: str | None) -> torch.dtype:
        """The precision of the denoiser's weights, or of the first part that has weights."""
        order = sorted(self.components(), key=lambda part: (part.name not in ("unet", "transformer"), part.name))
        files = [part.weights.get(variant) or part.weights.get(None) or [] for part in order]
        first = next((paths[0] for paths in files if paths), None)
        return torch.float32 if first is None else first_dtype(first)


def pipeline_class(name: str, source: str | Path) -> Any:
    """The pipeline of that name in the diffusers that is installed.

    Raises:
        InputError: it has none.
    """
    import diffusers

    pipeline = getattr(diffusers, name, None)
    if not isinstance(pipeline, type) or not hasattr(pipeline, "from_pretrained"):
        raise InputError(
            f"The model {str(source)!r} is a {name}, which diffusers {version('diffusers')} does not have; update "
            f"diffusers if the model is newer, or give another model."
        )
    return pipeline


def _what_it_is(folder: Path) -> str:
    """What a folder without an index is instead, for a message."""
    names = {path.name for path in folder.iterdir()}
    if {"adapter_config.json", "pytorch_lora_weights.safetensors", "adapter_model.safetensors"} & names:
        return "; it is a LoRA, to give as --lora beside the model it was made for"
    if "config.json" in names:
        config = read_json(folder / "config.json")
        if "_class_name" in config:
            above = f"; give {folder.resolve().parent}" if (folder.resolve().parent / INDEX).is_file() else ""
            return f", it is one part of a model, a {config['_class_name']}{above}"
        if "architectures" in config or "model_type" in config:
            return (
                f", it is a model of transformers, a {(config.get('architectures') or [config.get('model_type')])[0]}"
            )
    below = sorted(path.parent.name for path in folder.glob(f"*/{INDEX}"))
    if below:
        return f"; there is one in {folder / below[0]}"
    files = sorted(name for name in names if name.endswith(".safetensors"))
    return f"; for a single-file checkpoint give the file, {folder / files[0]}" if files else ""
