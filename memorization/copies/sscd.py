"""SSCD: the published self-supervised descriptor for image copy detection, in plain torchvision modules.

Pizzi et al., "A Self-Supervised Descriptor for Image Copy Detection", CVPR 2022 (arXiv 2202.10261): a ResNet body,
generalised-mean pooling with p = 3, one linear layer, L2 norm; two pictures are compared by the cosine of their
descriptors. ``sscd_disc_mixup`` is a ResNet50 with 512 numbers, ``sscd_disc_large`` a ResNeXt101 32x4d with 1024.

The weights are not distributed with this package. They are read from safetensors, which ``scripts/convert_sscd.py``
makes once of the published TorchScript file, or from the published ``.torchvision.pt`` and ``.classy.pt`` files of
plain tensors. Similarities are comparable only with the same weights and preprocessing; ``preprocessing`` states both.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Literal, TypedDict

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.resnet import Bottleneck, ResNet

from diffkit.errors import InputError
from diffkit.runs import sha256_file

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

ENVIRONMENT = "DIFFKIT_SSCD"
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
POWER = 3.0  # of the generalised mean
Resize = Literal["skew-320", "small-288"]


class GeneralisedMean(nn.Module):
    """(B, C, h, w) to (B, C): the p-th root of the mean p-th power over positions; p = 1 is the average."""

    def __init__(self, p: float = POWER) -> None:
        super().__init__()
        self.p = p

    def forward(self, features: Tensor) -> Tensor:
        """Features are expected to be >= 0; smaller ones count as 1e-6."""
        pooled: Tensor = features.clamp(min=1e-6).pow(self.p).mean((2, 3)).pow(1 / self.p)
        return pooled


class SSCD(nn.Module):
    """Normalised pictures (B, 3, H, W) to descriptors (B, dims) of length 1.

    Args:
        layers: blocks in each of the four stages.
        groups: of the 3x3 convolutions; ``width_per_group`` as torchvision means it.
        dims: length of the descriptor.
    """

    def __init__(
        self, layers: Sequence[int] = (3, 4, 6, 3), *, groups: int = 1, width_per_group: int = 64, dims: int = 512
    ) -> None:
        super().__init__()
        self.backbone = ResNet(
            Bottleneck, list(layers), num_classes=dims, groups=groups, width_per_group=width_per_group
        )
        self.backbone.avgpool = GeneralisedMean()
        self.num_features = dims

    def forward(self, pictures: Tensor) -> Tensor:
        """See the class."""
        return F.normalize(self.backbone(pictures))

    @classmethod
    def from_pretrained(cls, path: str | Path) -> SSCD:
        """Read a folder with ``model.safetensors``, a ``.safetensors`` file, or a published file of plain tensors.

        Raises:
            InputError: there is no such file, it is TorchScript, or its tensors are not SSCD's.
        """
        weights = read_weights(weights_file(path))
        model = cls(**architecture_of(weights))
        model.load_state_dict(weights)
        return model.eval()


def weights_file(path: str | Path) -> Path:
    """The file that ``path`` means: itself, or ``model.safetensors`` in it.

    Raises:
        InputError: nothing is there; the message says what to download and where to put it.
    """
    file = Path(path).expanduser()
    file = file / "model.safetensors" if file.is_dir() else file
    if not file.is_file():
        raise InputError(f"There are no SSCD weights at {file}. {HOW}")
    return file


HOW = (
    "Download sscd_disc_mixup.torchscript.pt from https://dl.fbaipublicfiles.com/sscd-copy-detection/, convert it with "
    f"`python scripts/convert_sscd.py FILE FOLDER`, and give the folder as sscd:FOLDER or in {ENVIRONMENT}."
)


def prepare(images: Tensor, resize: Resize = "skew-320") -> Tensor:
    """(B, 3, H, W) in [0, 1] to what SSCD sees: :func:`resized` and normalised as ImageNet's."""
    images = resized(images, resize)
    mean, deviation = (images.new_tensor(values).view(3, 1, 1) for values in (MEAN, DEVIATION))
    return (images - mean) / deviation


def resized(images: Tensor, resize: Resize = "skew-320") -> Tensor:
    """(B, 3, H, W) in [0, 1] to the size that SSCD sees, bilinear and antialiased, still in [0, 1].

    The authors recommend both: "skew-320" squashes to 320x320, "small-288" makes the shorter side 288. They resize
    8-bit pictures by PIL; here the numbers stay floating, which differs by rounding only.
    """
    height, width = images.shape[-2:]
    size = (320, 320)
    if resize == "small-288":
        size = (288, int(288 * width / height)) if height <= width else (int(288 * height / width), 288)
    images = F.interpolate(images.float(), size=size, mode="bilinear", antialias=True, align_corners=False)
    return images.clamp(0, 1)


class SSCDSimilarity:
    """Cosine of SSCD descriptors as a copy detector.

    Args:
        path: the weights, see :meth:`SSCD.from_pretrained`; None takes what the variable DIFFKIT_SSCD names.
        threshold: 0.75 is 90 % precision on DISC for ``sscd_disc_mixup`` (the authors); papers on memorization use
            0.7 or 0.5, often with other weights or another preparation. Calibration raises it where needed.
        pipe: the network goes to its device; the CPU without one.
        resize: see :func:`prepare`.
        micro_batch: pictures encoded at once.

    Raises:
        InputError: no weights; the message says what to do.
    """

    def __init__(
        self,
        path: str | Path | None = None,
        threshold: float = 0.75,
        *,
        pipe: DiffusionPipeline | None = None,
        resize: Resize = "skew-320",
        micro_batch: int = 16,
    ) -> None:
        if resize not in ("skew-320", "small-288"):
            raise InputError(f"Expected the resizing skew-320 or small-288, got {resize!r}.")
        place = path or os.environ.get(ENVIRONMENT)
        if not place:
            raise InputError(f"SSCD's weights are not known. {HOW}")
        file = weights_file(place)
        self.model = SSCD.from_pretrained(file)
        if pipe is not None:
            self.model.to(pipe.device)
        self.name = "sscd" if resize == "skew-320" else "sscd-288"
        self.weights_sha256 = sha256_file(file)
        self.threshold, self.resize, self.micro_batch = threshold, resize, micro_batch
        shape = "squash to 320x320" if resize == "skew-320" else "shorter side to 288"
        self.preprocessing = (
            f"{shape}, antialiased bilinear, ImageNet mean and deviation; {self.model.num_features} numbers; "
            f"weights sha256 {self.weights_sha256}"
        )

    @torch.no_grad()
    def describe(self, images: Tensor) -> Tensor:
        """(n, dims) float32 descriptors of length 1, on the CPU, of (n, 3, H, W) images in [0, 1]."""
        device = next(self.model.parameters()).device
        parts = [self.model(prepare(part.to(device), self.resize)) for part in images.split(self.micro_batch)]
        return torch.cat(parts).float().cpu()

    def similarity(self, images: Tensor, references: Tensor) -> Tensor:
        """(A, 3, H, W) and (B, 3, H', W') in [0, 1] to (A, B) float32 in [-1, 1]; higher = more alike."""
        return (self.describe(images) @ self.describe(references).T).clamp(-1, 1)


def small_edge(path: str | Path | None = None, *, pipe: DiffusionPipeline | None = None) -> SSCDSimilarity:
    """SSCD on pictures that keep their aspect, the authors' other recommendation."""
    return SSCDSimilarity(path, pipe=pipe, resize="small-288")


class Architecture(TypedDict):
    """What :class:`~memorization.copies.sscd.SSCD` is built from."""

    layers: tuple[int, ...]
    groups: int
    width_per_group: int
    dims: int


def read_weights(file: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, or of a ``.pt`` file of plain tensors, under torchvision's names.

    Raises:
        InputError: the file is TorchScript (which is a program: convert it once), damaged, or not SSCD's.
    """
    if file.suffix == ".safetensors":
        try:
            return renamed(load_file(file), str(file))
        except SafetensorError as error:
            raise InputError(f"{file} is no safetensors file: {error}.") from error
    if is_torchscript(file):
        raise InputError(
            f"{file} is TorchScript, which runs code when it is loaded: convert it once with "
            "`python scripts/convert_sscd.py FILE FOLDER` and give the folder."
        )
    try:
        tensors = torch.load(file, map_location="cpu", weights_only=True)
    except (RuntimeError, UnpicklingError, EOFError, ValueError, KeyError) as error:
        raise InputError(f"{file} is no file of plain tensors: {str(error).splitlines()[0]}") from error
    if not isinstance(tensors, Mapping) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise InputError(f"{file} holds something else than tensors by name; expected sscd_*.torchvision.pt.")
    return renamed(tensors, str(file))


def is_torchscript(file: Path) -> bool:
    """Whether a file is a TorchScript archive, seen from its table of contents alone."""
    if not zipfile.is_zipfile(file):
        return False
    with zipfile.ZipFile(file) as archive:
        return any(name.split("/", 1)[-1].startswith("code/") for name in archive.namelist())


def renamed(tensors: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """The tensors under torchvision's names, ``backbone.conv1.weight`` and so on, float32.

    Raises:
        InputError: number or shapes of the tensors are not those of a bottleneck ResNet with one linear layer.
    """
    from memorization.copies.sscd import SSCD

    counted = ("num_batches_tracked",)
    given = {name: value for name, value in tensors.items() if not name.endswith(counted)}
    architecture = architecture_of(given, where)
    with torch.device("meta"):
        expected_state = SSCD(**architecture).state_dict()
    names = [name for name in expected_state if not name.endswith(counted)]
    order = names if set(names) == set(given) else list(given)
    if len(order) != len(names):
        raise InputError(f"{where} is no SSCD model: expected {len(names)} tensors, got {len(order)}.")
    result = {name: given[own].float().contiguous() for name, own in zip(names, order, strict=True)}
    for name, own in zip(names, order, strict=True):
        if result[name].shape != expected_state[name].shape:
            got, expected = tuple(result[name].shape), tuple(expected_state[name].shape)
            raise InputError(f"{where} is no SSCD model: {own} has shape {got}, expected {expected} ({name}).")
    zeros = {name: torch.zeros((), dtype=torch.long) for name in expected_state if name.endswith(counted)}
    return {name: {**result, **zeros}[name] for name in expected_state}


def architecture_of(tensors: Mapping[str, Tensor], where: str = "The file") -> Architecture:
    """Blocks, groups and width from the shapes of the convolutions, in order.

    Raises:
        InputError: they are not those of a bottleneck ResNet of four stages with one linear layer.
    """
    shapes = [tuple(value.shape) for value in tensors.values()]
    middles = [shape for shape in shapes if len(shape) == 4 and shape[2:] == (3, 3)]  # one in each block
    linear = [shape for shape in shapes if len(shape) == 2]
    widths = sorted({shape[0] for shape in middles})
    if len(widths) != 4 or len(linear) != 1:
        raise InputError(
            f"{where} is no SSCD model: expected four widths of blocks and one linear layer, got {len(widths)} and "
            f"{len(linear)}."
        )
    groups = widths[0] // middles[0][1]
    return {
        "layers": tuple(sum(shape[0] == width for shape in middles) for width in widths),
        "groups": groups,
        "width_per_group": widths[0] // groups,
        "dims": linear[0][0],
    }
