"""The options by which a command names its model: loaded, checked and recorded in one way by all commands."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diffkit.families import Pipeline

__all__ = ["ModelOptions"]


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """What :func:`diffkit.load_pipeline` takes, from a command's options.

    Example:
        >>> options = ModelOptions(model="lab", scheduler="euler")
        >>> options.name, type(options.load().scheduler).__name__
        ('lab', 'EulerDiscreteScheduler')
    """

    model: str
    revision: str | None = None
    dtype: str = "auto"
    device: str = "auto"
    variant: str | None = None
    config: str | None = None
    scheduler: str | None = None
    lora: str | None = None
    mitigation: Path | None = None

    @property
    def name(self) -> str:
        """What a record calls the model: its name, with the revision where one was given."""
        return self.model if self.revision is None else f"{self.model}@{self.revision}"

    def checksum(self) -> str | None:
        """As :func:`diffkit.loading.model_checksum`, with the LoRA."""
        from diffkit.loading import model_checksum

        return model_checksum(self.model, self.lora, config=self.config)

    def check(self) -> None:
        """Check that all can be loaded, without reading any weights.

        Raises:
            InputError: as :func:`diffkit.load_pipeline`, as far as names, files and their headers show.
        """
        from diffkit.loading import check_model

        check_model(
            self.model,
            revision=self.revision,
            variant=self.variant,
            config=self.config,
            scheduler=self.scheduler,
            lora=self.lora,
            mitigation=self.mitigation,
        )

    def load(self) -> Pipeline:
        """The pipeline.

        Raises:
            InputError: as :func:`diffkit.load_pipeline`, or the model begins from a picture.
        """
        from diffkit.families import refuse_pictures
        from diffkit.loading import load_pipeline

        pipe = load_pipeline(
            self.model,
            revision=self.revision,
            dtype=self.dtype,
            device=self.device,
            variant=self.variant,
            config=self.config,
            scheduler=self.scheduler,
            lora=self.lora,
            mitigation=self.mitigation,
        )
        refuse_pictures(pipe)
        return pipe
