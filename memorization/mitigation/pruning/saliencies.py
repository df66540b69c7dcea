"""The saliencies of a pipeline's layers; what they are measured from is kept in the run, layer by layer."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from diffkit.runs.files import safe_name, write_bytes_atomically
from memorization.mitigation.pruning import distortion, magnitude, taylor, wanda
from memorization.mitigation.pruning.calibration import Calibration
from memorization.mitigation.pruning.layers import Layers
from memorization.mitigation.pruning.settings import PruneSettings

if TYPE_CHECKING:
    from diffkit.runs import Run

__all__ = ["DENSE", "Saliencies"]

DENSE = "dense"  # measured with no layer pruned


class Saliencies:
    """Scores of layers, higher = keep.

    Args:
        layers: all that may be pruned.
        modules: module -> its layers.
        calibration: of the pipeline; None where the settings need none.
        settings: which saliency, and of what.
        run: keeps norms and importances, so that a resumed run does not measure them again.
    """

    def __init__(
        self,
        layers: Layers,
        modules: Mapping[str, Sequence[str]],
        calibration: Calibration | None,
        settings: PruneSettings,
        run: Run,
    ) -> None:
        self.layers, self.modules, self.calibration = layers, modules, calibration
        self.settings, self.run = settings, run

    @property
    def measured(self) -> bool:
        """Whether the scores depend on what the other layers do."""
        return self.settings.saliency in ("wanda", "taylor")

    def scores(self, names: Sequence[str], stage: str = DENSE) -> dict[str, Tensor]:
        """Layer -> float32 scores, shaped as the weight and on its device.

        Args:
            names: of layers, all of a module or none of it.
            stage: of the pipeline's other weights; measurements are kept by stage and layer.
        """
        weights = {name: self.layers[name].weight for name in names}
        match self.settings.saliency:
            case "magnitude":
                return {name: magnitude.saliency(weight) for name, weight in weights.items()}
            case "distortion":
                parts = [part for part in self.modules.values() if set(part) <= set(names)]
                scored = [distortion.saliency({name: weights[name] for name in part}) for part in parts]
                together = {name: value for part in scored for name, value in part.items()}
                return {name: together[name] for name in names}
            case "wanda":
                norms = self._measurements(names, stage)
                return {name: wanda.saliency(weight, norms[name]["norms"]) for name, weight in weights.items()}
            case _:
                return self._taylor(names, stage)

    def _taylor(self, names: Sequence[str], stage: str) -> dict[str, Tensor]:
        parts = self._measurements(names, stage)
        self._measurements(list(self.layers), DENSE, read=False)
        total = sum(layer.weight.numel() for layer in self.layers.values())
        means = [
            max(sum(self.run.done[f"{DENSE}:{name}"][kind] for name in self.layers) / total, sys.float_info.min)
            for kind in ("ordinary", "memorized")
        ]
        return {name: taylor.saliency(**parts[name], means=means, damping=self.settings.damping) for name in names}

    def _measurements(self, names: Sequence[str], stage: str, *, read: bool = True) -> dict[str, dict[str, Tensor]]:
        """What the scores of layers follow from; what the run does not have is measured and saved."""
        from safetensors.torch import load, save

        missing = [name for name in names if f"{stage}:{name}" not in self.run.done]
        for name, tensors in (self._measure(missing) if missing else {}).items():
            file = f"{stage}/{safe_name(name)}.safetensors"
            write_bytes_atomically(self.run.path(file), save({key: value.cpu() for key, value in tensors.items()}))
            sums = {key: float(value.double().sum()) for key, value in tensors.items()}
            self.run.write(f"{stage}:{name}", {"file": file, **sums})
        if not read:
            return {}
        files = {name: self.run.path(self.run.done[f"{stage}:{name}"]["file"]) for name in names}
        device = next(iter(self.layers.values())).weight.device
        return {
            name: {key: value.to(device) for key, value in load(path.read_bytes()).items()}
            for name, path in files.items()
        }

    def _measure(self, names: Sequence[str]) -> dict[str, dict[str, Tensor]]:
        calibration, layers = self.calibration, {name: self.layers[name] for name in names}
        assert calibration is not None  # by PruneSettings.needs_data
        if self.settings.saliency == "wanda":
            norms = wanda.input_norms(layers, lambda: calibration.loss(calibration.ordinary))
            return {name: {"norms": value} for name, value in norms.items()}
        assert calibration.memorized is not None  # by PruneSettings.needs_images
        kinds = {"ordinary": calibration.ordinary, "memorized": calibration.memorized}
        gradients = {kind: taylor.root_mean_square_gradients(calibration, layers, rows) for kind, rows in kinds.items()}
        return {
            name: {kind: taylor.importance(layer.weight, gradients[kind][name]) for kind in kinds}
            for name, layer in layers.items()
        }
