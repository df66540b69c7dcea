"""Quality of the compared models, each against the first: generated anew, kept in the comparison's run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from diffkit.console import progress
from diffkit.errors import InputError
from diffkit.lab.assets import MODELS as LAB_MODELS
from diffkit.loading import load_pipeline, model_checksum
from diffkit.mitigation import read_card
from diffkit.runs import Run
from memorization.comparison.paired import AuditRun
from memorization.quality import QualitySettings, Snapshot, compare, load_snapshot, save_snapshot, snapshot
from memorization.quality.settings import read_quality_prompts

if TYPE_CHECKING:
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
) -> dict[str, Any]:
    """What each later run's model costs against the first one's; one that is in the journal is not measured again.

    Args:
        run: the comparison's open run; snapshots are kept in its folder ``quality``.
        runs: the audits; their models and mitigations are loaded again and must be unchanged.
        prompts_from: what :func:`memorization.quality.read_quality_prompts` takes.
        limit: so many prompts.
        settings: of the generations.
        rewards: registered rewards for text alignment; on the lab its reward and its mechanical judge by default.

    Raises:
        InputError: a model or mitigation is gone or not the audited one any more.
    """
    prompts = read_quality_prompts(prompts_from, limit)
    judges: list[RewardLike] = list(rewards)
    if not judges and all(one.record["config"]["model"] in LAB_MODELS for one in runs):
        from diffkit.lab.measure import scene_correct

        judges = ["lab", *([scene_correct] if prompts_from == "lab:held-out" else [])]
    states: list[Snapshot] = []
    with progress("quality", total=len(runs)) as bar:
        for index, one in enumerate(runs):
            path = run.path(f"quality/{index}.safetensors")
            if not path.is_file():
                validation = states[0].validation if states else None
                pipe = _load(one, dtype=dtype, device=device)
                save_snapshot(snapshot(pipe, prompts, settings, rewards=judges, validation=validation), path)
            states.append(load_snapshot(path))
            if index and f"quality:{one.name}" not in run.done:
                run.write(f"quality:{one.name}", compare(states[0], states[-1]))
            bar.advance()
    return {one.name: run.done[f"quality:{one.name}"] for one in runs[1:]}


def _load(one: AuditRun, *, dtype: str, device: str) -> Any:
    """The audited model with its mitigation, refused where either is not what was audited."""
    config = one.record["config"]
    name, revision = config["model"], None
    if "@" in name and config["model_sha256"] is None:
        name, _, revision = name.rpartition("@")
    if config["model_sha256"] is not None and model_checksum(name) != config["model_sha256"]:
        raise InputError(f"The model {name!r} is not the one that {one.folder} audited any more; leave out --quality.")
    folder = one.record["provenance"].get("mitigation_folder") if config["mitigation"] else None
    if folder is not None and read_card(folder)["weights_sha256"] != config["mitigation"]["sha256"]:
        raise InputError(f"The mitigation {folder} is not the one that {one.folder} audited; leave out --quality.")
    return load_pipeline(name, revision=revision, dtype=dtype, device=device, mitigation=folder)
