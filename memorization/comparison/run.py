"""Compare finished audits of several models, and write the comparison into a run folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from diffkit.errors import InputError
from diffkit.option_values import read_names
from diffkit.runs import Run, sha256_path
from memorization.comparison.paired import AuditRun, read_runs, summarise_comparison
from memorization.comparison.result import Comparison
from memorization.quality.result import QualityReport

__all__ = ["QualityRequest", "compare_audits"]


@dataclass(frozen=True)
class QualityRequest:
    """What to measure of the models' quality, see :func:`memorization.comparison.quality.measure_quality`.

    Attributes:
        prompts: a source that :func:`memorization.quality.read_quality_prompts` takes.
        limit: the first so many prompts.
        seeds: images of each prompt.
        rewards: registered rewards for text alignment, comma separated; "" = the preset's, if it has any.
        dtype: of the models that are loaded; ``device`` likewise.
    """

    prompts: str
    limit: int = 16
    seeds: int = 4
    rewards: str = ""
    dtype: str = "auto"
    device: str = "auto"


def compare_audits(
    folders: Sequence[str | Path],
    names: Sequence[str] | None = None,
    *,
    out: str | Path | None = None,
    quality: QualityRequest | None = None,
) -> Comparison:
    """Compare audits of several models, suspect by suspect: original, mitigated, never trained on the suspects.

    Args:
        folders: two or more finished audits of the same suspects, controls and settings; the first is the baseline.
        names: for the report; by default the folders' names.
        out: a run folder for summary.json and a report with all pictures; the same call resumes there.
        quality: also measure what each later model lost against the first; needs ``out``.

    Raises:
        InputError: folders that are no finished audits or not the same audit (the message names the settings that
            differ), or ``quality`` without ``out``.

    Example:
        >>> import tempfile
        >>> from memorization import AuditSettings, audit, compare_audits, read_suspects
        >>> small = AuditSettings(budgets=(0, 1), starts=("other",), generations=1, attack_generations=1,
        ...                       num_inference_steps=2, draws=1, micro_batch=2)
        >>> suspects = read_suspects("lab:planted")[0][:1]
        >>> runs = [audit(name, suspects, out=tempfile.mkdtemp(), settings=small) for name in ("lab", "lab-clean")]
        >>> comparison = compare_audits([run.folder for run in runs], ["trained", "never trained"])
        >>> comparison["changes"]["never trained"]["caption"]["n"]
        1
    """
    runs = read_runs(folders, names)
    if out is None:
        if quality is not None:
            raise InputError("Quality is measured into a folder: add --out runs/compare, or leave out --quality.")
        return summarise_comparison(runs)
    from memorization.comparison.quality import check_quality, quality_dtype
    from memorization.comparison.report import write_comparison

    asked = (
        None
        if quality is None
        else {
            "prompts": quality.prompts,
            "contents": sha256_path(Path(quality.prompts).expanduser()),
            "limit": quality.limit,
            "seeds": quality.seeds,
            "rewards": quality.rewards,
            "dtype": quality_dtype(runs, quality.dtype, quality.device),
        }
    )
    config = {"audits": {run.name: run.record["config_hash"] for run in runs}, "quality": asked}
    if quality is not None:
        check_quality(runs, Path(out), quality.prompts, quality.limit, read_names(quality.rewards))
    # Version 0.1.0 recorded neither the dtype nor what the file of prompts held.
    added = {} if asked is None else {f"quality.{name}": asked[name] for name in ("dtype", "contents")}
    with Run.open(out, config=config, kind="audit-compare", added=added) as run:
        measured = None if quality is None else _measure(run, runs, quality)
        comparison = summarise_comparison(runs, measured)
        run.write_json("summary.json", comparison)
        write_comparison(run, runs, comparison)
    return comparison


def _measure(run: Run, runs: Sequence[AuditRun], quality: QualityRequest) -> dict[str, QualityReport]:
    """Generate as the baseline's audit did."""
    from memorization.comparison.quality import measure_quality
    from memorization.quality import QualitySettings

    audited = runs[0].summary["settings"]
    micro_batch = audited["micro_batch"]
    settings = QualitySettings(
        seeds_per_prompt=quality.seeds,
        num_inference_steps=audited["num_inference_steps"],
        guidance_scale=audited["guidance_scale"],
        micro_batch=QualitySettings.micro_batch if micro_batch == "auto" else micro_batch,
        seed=audited["seed"],
    )
    return measure_quality(
        run,
        runs,
        quality.prompts,
        limit=quality.limit,
        settings=settings,
        rewards=read_names(quality.rewards),
        dtype=quality.dtype,
        device=quality.device,
    )
