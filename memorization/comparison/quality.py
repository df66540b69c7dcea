"""Quality of the compared models, each against the first; snapshots are kept in the comparison's run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from diffkit.console import progress
from diffkit.errors import InputError
from diffkit.loading import load_pipeline, model_checksum, resolve_device, resolve_dtype, resolve_model
from diffkit.lora import lora_checksum
from diffkit.mitigation import card_checksum, read_card
from diffkit.rewards import load_reward
from diffkit.runs import Run
from memorization.comparison.paired import AuditRun
from memorization.presets import recorded_preset
from memorization.quality import QualitySettings, Snapshot, compare_snapshots, load_snapshot, save_snapshot, snapshot
from memorization.quality.result import QualityReport
from memorization.quality.settings import read_quality_prompts

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from diffkit.rewards.base import RewardLike


def measure_quality(
    run: Run,
    runs: Sequence[AuditRun],
    prompts_from: str,
    *,
    limit: int,
    settings: QualitySettings,
    rewards: Sequence[str] = (),
    dtype: str = "auto",
    device: str = "auto",
) -> dict[str, QualityReport]:
    """What each later run's model lost against the first one's; one that is in the journal is not measured again.

    Args:
        run: the comparison's open run; snapshots are kept in its folder ``quality``.
        runs: the audits; their models and mitigations are loaded again and must be unchanged.
        prompts_from: what :func:`memorization.quality.read_quality_prompts` takes.
        limit: the first so many prompts.
        settings: of the generations.
        rewards: registered rewards for text alignment; by default those of the audits' preset.

    Raises:
        InputError: a model or mitigation is gone or not the audited one any more.
    """
    prompts = read_quality_prompts(prompts_from, limit)
    scorers: list[RewardLike] = list(rewards) or _preset_rewards(runs, prompts_from)
    states: list[Snapshot] = []
    with progress("quality", total=len(runs)) as bar:
        for index, audited in enumerate(runs):
            path = run.path(_snapshot(index))
            if not path.is_file():
                validation = states[0].validation if states else None
                pipe = _load(audited, dtype=dtype, device=device)
                save_snapshot(snapshot(pipe, prompts, settings, rewards=scorers, validation=validation), path)
            states.append(load_snapshot(path))
            if index and f"quality:{audited.name}" not in run.done:
                run.write(f"quality:{audited.name}", compare_snapshots(states[0], states[-1]))
            bar.advance()
    return {audited.name: cast("QualityReport", run.done[f"quality:{audited.name}"]) for audited in runs[1:]}


def _preset_rewards(runs: Sequence[AuditRun], prompts_from: str) -> list[RewardLike]:
    """The rewards of the preset that all audits have, if it names any."""
    presets = {recorded_preset(audited.record).name: recorded_preset(audited.record) for audited in runs}
    (preset, *others) = presets.values()
    return [] if others or preset.rewards is None else preset.rewards(prompts_from)


def check_quality(
    runs: Sequence[AuditRun], out: Path, prompts_from: str, limit: int, rewards: Sequence[str] = ()
) -> None:
    """Check what can be checked before a folder is made: the prompts, the rewards, the models still to measure.

    Raises:
        InputError: as :func:`measure_quality`.
    """
    read_quality_prompts(prompts_from, limit)
    for reward in rewards:
        load_reward(reward)
    for index, audited in enumerate(runs):
        if not (out / _snapshot(index)).is_file():
            _require_unchanged(audited)


def _snapshot(index: int) -> str:
    return f"quality/{index}.safetensors"


def quality_dtype(runs: Sequence[AuditRun], dtype: str, device: str) -> str:
    """The precision in which the models will be measured; ``auto`` may mean several.

    Raises:
        InputError: an unknown dtype, or a device or a model that is not there.
    """
    place = resolve_device(device)
    looked_up = dtype == "auto" and place.type != "cpu"
    names = {_source(audited)[0] for audited in runs}
    precisions = {resolve_dtype(dtype, place, resolve_model(name) if looked_up else name) for name in names}
    return ", ".join(sorted(str(precision).removeprefix("torch.") for precision in precisions))


def _source(audited: AuditRun) -> tuple[str, str | None]:
    """The name by which the audited model is loaded, and its revision."""
    config = audited.record["config"]
    name, at, revision = str(config["model"]).rpartition("@")
    return (name, revision) if at and config["model_sha256"] is None else (str(config["model"]), None)


def _mitigation_folder(audited: AuditRun) -> str | None:
    folder: str | None = audited.record["provenance"].get("mitigation_folder")
    return folder if audited.record["config"]["mitigation"] else None


def _require_unchanged(audited: AuditRun) -> None:
    """Refuse a model, mitigation or LoRA that has changed since the audit."""
    config = audited.record["config"]
    name, _ = _source(audited)
    settings = config.get("model_config")
    if config["model_sha256"] is not None and model_checksum(name, config=settings) != config["model_sha256"]:
        raise InputError(
            f"The model {name!r} is not the one that {audited.folder} audited any more; leave out --quality."
        )
    folder = _mitigation_folder(audited)
    if config["mitigation"] and folder is None:
        raise InputError(
            f"{audited.folder} audited a mitigation that no folder holds ({config['mitigation']['method']}), so that "
            "its model cannot be loaded; leave out --quality."
        )
    if folder is not None and card_checksum(read_card(folder)) != config["mitigation"]["sha256"]:
        raise InputError(f"The mitigation {folder} is not the one that {audited.folder} audited; leave out --quality.")
    lora = config.get("lora")
    if lora is not None and lora_checksum(lora["name"]) != lora["sha256"]:
        raise InputError(f"The LoRA {lora['name']} is not the one that {audited.folder} audited; leave out --quality.")


def _load(audited: AuditRun, *, dtype: str, device: str) -> DiffusionPipeline:
    """The audited model with its mitigation."""
    _require_unchanged(audited)
    config, (name, revision) = audited.record["config"], _source(audited)
    lora = config.get("lora")
    return load_pipeline(
        name,
        revision=revision,
        dtype=dtype,
        device=device,
        mitigation=_mitigation_folder(audited),
        lora=None if lora is None else lora["name"],
        variant=config.get("variant"),
        config=config.get("model_config"),
        scheduler=config.get("scheduler"),
    )
