"""The report that :func:`memorization.quality.quality_report` gives, as JSON values."""

from __future__ import annotations

from typing_extensions import TypedDict  # pydantic reads typing's own only from Python 3.12


class Estimate(TypedDict):
    """A mean with its 95 % bootstrap interval, None where unknown; ``missing`` values are left out of ``n``."""

    mean: float | None
    low: float | None
    high: float | None
    n: int
    missing: int


class Change(TypedDict):
    """Both means, and the mean of the paired differences."""

    before: Estimate
    after: Estimate
    change: Estimate


class Drift(TypedDict):
    """Root mean square distance to the first model's image of the same prompt and seed."""

    latent: Estimate
    pixel: Estimate
    relative: Estimate


class Diversity(Change):
    """Pairwise similarity within a prompt, higher = less diverse."""

    detector: str


class Alignment(Change):
    """One reward of text alignment."""

    higher_is_better: bool


class ValidationUsed(TypedDict):
    """The validation images: how many, and where they are from."""

    n: int
    source: str


class LossBin(Change):
    """The validation loss in one range of timesteps."""

    timesteps: list[int]


class LossChange(TypedDict):
    """The validation loss over all timesteps and by range."""

    all: Change
    bins: list[LossBin]


class DriftBin(Estimate):
    """The drift of the unconditional predictions in one range of timesteps."""

    timesteps: list[int]


class UnconditionalDrift(TypedDict):
    """Squared distance of the empty prompt's predictions over their mean square."""

    all: Estimate
    bins: list[DriftBin]


class SettingsUsed(TypedDict):
    """:class:`~memorization.quality.QualitySettings` as JSON."""

    seeds_per_prompt: int
    num_inference_steps: int
    guidance_scale: float
    bins: int
    draws: int
    micro_batch: int
    seed: int


class KernelDistance(TypedDict):
    """KID with its bootstrap interval, None where no resample has a pair."""

    mean: float
    low: float | None
    high: float | None


class Fidelity(TypedDict):
    """KID, and FID where there are enough images."""

    n: int
    features: str
    kid: KernelDistance
    fid: float | None
    fid_reason: str | None


class FidelityChange(TypedDict):
    """The first model against the second (``change``) and against itself (``null``), by other seeds."""

    change: Fidelity
    null: Fidelity


class QualityReport(TypedDict):
    """What changed between two models, see :func:`memorization.quality.compare_snapshots`."""

    schema_version: int
    prompts: int
    settings: SettingsUsed
    drift: Drift
    diversity: Diversity
    alignment: dict[str, Alignment]
    validation: ValidationUsed
    loss: LossChange
    unconditional: UnconditionalDrift
    fidelity: FidelityChange | None
