"""A trend over checkpoints: steps from files, the audits' own figures, one loading of the base, resuming."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from schemas import validate_run
from tiny import tiny_pipeline
from typer.testing import CliRunner

from diffkit import loading
from diffkit.cli import app
from diffkit.errors import InputError, Interrupted
from diffkit.images import save_png
from diffkit.lab import textures
from diffkit.model_options import ModelOptions
from diffkit.report.plots import rate_curves
from diffkit.stats import rate
from memorization.auditing import trend as module
from memorization.auditing.measure import Measurer
from memorization.auditing.models import AuditedModel
from memorization.auditing.run import audit
from memorization.auditing.settings import AuditSettings
from memorization.auditing.training_steps import training_steps
from memorization.auditing.trend import TrendResult, audit_trend
from memorization.items import gather

SETTINGS = AuditSettings(
    budgets=(0, 1),
    starts=("other",),
    generations=1,
    attack_generations=1,
    num_inference_steps=2,
    items_at_once=4,
    micro_batch=8,
    draws=1,
    threshold=0.5,
    detectors=(),
    other_captions=("a cat", "a dog"),
)
USUAL = "pytorch_lora_weights.safetensors"


def lora(folder: Path, seed: int, name: str = USUAL, **metadata: str) -> str:
    """A LoRA of random weights, as diffusers saves it, or under another name and with metadata."""
    pipe = tiny_pipeline()
    pipe.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
    draw = torch.Generator().manual_seed(seed)
    state = get_peft_model_state_dict(pipe.unet)
    layers = {key: torch.randn(value.shape, generator=draw) for key, value in state.items()}
    pipe.save_lora_weights(folder, unet_lora_layers=layers)
    if name == USUAL:
        return str(folder)
    save_file(load_file(folder / USUAL), folder / name, metadata=metadata)
    (folder / USUAL).unlink()
    return str(folder / name)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two checkpoints of the tiny ``model``, two suspects ``s.jsonl``, one control ``c.jsonl``."""
    folder = tmp_path_factory.mktemp("trend")
    rows = []
    for index, image in enumerate(textures.dead_leaves(3, generator=torch.Generator().manual_seed(1))):
        save_png(image, folder / f"{index}.png")
        rows.append(json.dumps({"id": str(index), "caption": f"=a dog {index}", "image": f"{index}.png"}) + "\n")
    (folder / "s.jsonl").write_text("".join(rows[:2]))
    (folder / "c.jsonl").write_text("".join(rows[2:]))
    tiny_pipeline().save_pretrained(folder / "model")
    for step in (5, 10):
        lora(folder / f"checkpoint-{step}", step)
    return folder


def run(made: Path, out: Path, **options: Any) -> TrendResult:
    base = ModelOptions(model=str(made / "model"))
    checkpoints = [str(made / "checkpoint-10"), str(made / "checkpoint-5")]
    sources = (made / "s.jsonl", made / "c.jsonl")
    return audit_trend(base, checkpoints, *sources, out=out, settings=SETTINGS, **options)


class Finished(NamedTuple):
    """A finished trend, which folder its interruption named, and the LoRA of each pipeline loaded afterwards."""

    result: TrendResult
    interrupted_in: Path
    loads: list[str | None]


@pytest.fixture(scope="module")
def finished(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A trend with its base; Ctrl-C in the audit of the second model, between its controls and its suspects."""
    out = tmp_path_factory.mktemp("runs") / "trend"
    load, measure = loading.load_pipeline, Measurer.measure
    loads: list[str | None] = []
    count = 0

    def counted(*args: Any, **options: Any) -> Any:
        loads.append(options["lora"])
        return load(*args, **options)

    def stopped(self: Measurer, items: Sequence[Any], effort: Any) -> Any:
        nonlocal count
        count += 1
        if count == 4:  # controls and suspects of the base, controls of the first checkpoint, then its suspects
            raise KeyboardInterrupt
        return measure(self, items, effort)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Measurer, "measure", stopped)
        with pytest.raises(Interrupted) as caught:
            run(made, out, with_base=True)
    assert len((out / "step-5/journal.jsonl").read_text().splitlines()) == 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loading, "load_pipeline", counted)
        return Finished(run(made, out, with_base=True), caught.value.folder, loads)


def test_a_checkpoint_has_the_audit_it_would_have_alone(made: Path, finished: Finished, tmp_path: Path) -> None:
    """The interrupted one, on the base that all share."""
    folder, trend = finished.result.folder, finished.result.summary
    validate_run(folder, "audit-trend")
    assert finished.interrupted_in == folder
    assert [point["step"] for point in trend["points"]] == [0, 5, 10]
    model = AuditedModel.from_pretrained(str(made / "model"), lora=str(made / "checkpoint-5"))
    alone = audit(model, gather(made / "s.jsonl", made / "c.jsonl"), out=tmp_path / "alone", settings=SETTINGS).summary
    assert json.loads((folder / "step-5/summary.json").read_text()) == alone
    assert trend["points"][1]["verdicts"] == alone["verdicts"]
    for suspect, finding in zip(trend["by_suspect"], alone["findings"], strict=True):
        point = suspect["points"][1]
        assert (point["caption"], point["similarity"]) == (finding["caption"], finding["similarity"])
    base = json.loads((folder / "base/summary.json").read_text())
    assert (base["lora"], base["reference_model"]) == (None, None)


def test_every_model_is_loaded_once(made: Path, finished: Finished) -> None:
    assert finished.loads == [None, str(made / "checkpoint-5"), str(made / "checkpoint-10")]


def test_the_table_and_the_page(finished: Finished) -> None:
    folder, trend = finished.result.folder, finished.result.summary
    rows = list(csv.DictReader(io.StringIO((folder / "trend.csv").read_text())))
    assert [row["key"] for row in rows] == ["suspect:0", "suspect:1"]
    assert rows[0]["caption"] == "'=a dog 0"
    assert float(rows[1]["by_caption_5"]) == trend["by_suspect"][1]["points"][1]["caption"]
    page = (folder / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 2
    assert "<svg" in page


def test_other_checkpoints_in_the_same_folder_are_refused(made: Path, finished: Finished) -> None:
    with pytest.raises(InputError, match="checkpoints"):
        run(made, finished.result.folder)


def test_first_steps_by_hand() -> None:
    """Not shown, retained, not shown, replicated, inconclusive: retained from the second on, lost once."""
    finding: Any = {"key": "suspect:0", "kind": None, "caption": 0.1, "similarity": 0.2}
    verdicts = ["not shown", "retained", "not shown", "replicated", "inconclusive"]
    findings: Any = {step: finding | {"verdict": verdict} for step, verdict in enumerate(verdicts)}
    suspect = module._suspect("a dog", findings)
    assert (suspect["first_retained"], suspect["first_replicated"], suspect["lost"]) == (1, 3, [2])
    never = module._suspect("a dog", {1: finding | {"verdict": "inconclusive"}})
    assert (never["first_retained"], never["first_replicated"], never["lost"]) == (None, None, [])


def test_a_curve_needs_a_rate_at_each_place() -> None:
    with pytest.raises(ValueError, match="expected 2 rates"):
        rate_curves({"suspects": [rate(1, 2)]}, [1, 2], xlabel="training step")
    assert len(rate_curves({"suspects": [rate(1, 2), rate(0, 0)]}, [1, 2], xlabel="step").axes[0].lines) == 1


# -------------------------------------------------------------------------------------------- training steps


@pytest.mark.parametrize(
    ("names", "values", "unit", "source"),
    [
        (["dog-000010.safetensors", "dog-000002.safetensors"], [10, 2], "epoch", "names"),
        (["dog-step00000500.safetensors", "dog-step00001000.safetensors"], [500, 1000], "step", "names"),
        (["dog_000000500.safetensors", "dog_000001000.safetensors"], [500, 1000], "step", "names"),
        (["checkpoint-5/" + USUAL, "checkpoint-10/" + USUAL], [5, 10], "step", "names"),
        (["first.safetensors", "second.safetensors"], [1, 2], "checkpoint", "order"),
    ],
)
def test_steps_of_names(tmp_path: Path, names: list[str], values: list[int], unit: str, source: str) -> None:
    paths = [tmp_path / name for name in names]
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        save_file({"a": torch.zeros(1)}, path)
    assert training_steps([str(path) for path in paths]) == (values, unit, source)
    assert training_steps([str(path) for path in paths], [7, 8]) == ([7, 8], "step", "given")


def test_steps_of_metadata(tmp_path: Path) -> None:
    """What sd-scripts writes into a file counts more than the epoch in its name; the last file's has none."""
    paths = [tmp_path / "dog-000010.safetensors", tmp_path / "dog.safetensors"]
    for path, step in zip(paths, ("400", "800"), strict=True):
        save_file({"a": torch.zeros(1)}, path, metadata={"ss_steps": step})
    assert training_steps([str(path) for path in paths]) == ([400, 800], "step", "metadata")


@pytest.mark.parametrize(
    ("names", "given", "said"),
    [
        (["dog-000010"], None, "at least two"),
        (["dog-000010", "dog"], None, "has no training step"),
        (["dog-000010", "dog-step00000500"], None, "count steps and epochs"),
        (["a-10", "b-10"], None, "both of step 10"),
        (["a", "b"], [5], "for each of 2"),
        (["a", "b"], [5, 5], "both of step 5"),
        (["a", "nowhere"], None, "nowhere"),
    ],
)
def test_steps_are_not_guessed(tmp_path: Path, names: list[str], given: list[int] | None, said: str) -> None:
    for name in names:
        if name != "nowhere":
            save_file({"a": torch.zeros(1)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(InputError, match=said):
        training_steps([str(tmp_path / f"{name}.safetensors") for name in names], given)


# ---------------------------------------------------------------------------------------------- command line


def command(made: Path, *more: str) -> Any:
    line = ["audit", "trend", "--base", str(made / "model"), "--suspects", str(made / "s.jsonl")]
    line += ["--controls", str(made / "c.jsonl"), "--budgets", "0,1", "--starts", "other", "--generations", "1"]
    line += ["--attack-generations", "1", "--steps", "2", "--draws", "1", "--micro-batch", "8", "--threshold", "0.5"]
    other = ["--other-captions", str(made / "other.txt")]
    (made / "other.txt").write_text("a cat\na dog\n")
    return CliRunner().invoke(app, [*line, *other, *more])


def test_command_resumes_what_the_function_began(
    made: Path, finished: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The options give the same settings: nothing is measured again."""

    def never(self: Measurer, items: Sequence[object]) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(Measurer, "measure", never)
    checkpoints = ["--lora", str(made / "checkpoint-5"), str(made / "checkpoint-10"), "--with-base"]
    done = command(made, *checkpoints, "--out", str(finished.result.folder), "--format", "json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout) == finished.result.summary


def test_dry_run(made: Path, tmp_path: Path) -> None:
    checkpoints = ["--lora", str(made / "checkpoint-5"), "--lora", str(made / "checkpoint-10")]
    done = command(made, *checkpoints, "--out", str(tmp_path / "run"), "--dry-run", "--format", "json")
    assert done.exit_code == 0, done.output
    plan = json.loads(done.stdout)
    assert plan["step 5"] == str(made / "checkpoint-5")
    assert (plan["suspects"], plan["suspects on the reference model"]) == (4, 4)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--lora", "checkpoint-5"], "at least two"),
        (["--lora", "checkpoint-5", "--lora", "checkpoint-10", "checkpoint-5"], "after one --lora"),
        (["--lora", "checkpoint-5", "gone"], "gone"),
        (["--lora", "checkpoint-5", "checkpoint-10", "--training-steps", "0,5", "--with-base"], "of step 0 already"),
        (["--lora", "checkpoint-5", "checkpoint-10", "--training-steps", "first,second"], "training steps such as"),
    ],
)
def test_wrong_usage(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: list[str], said: str) -> None:
    monkeypatch.chdir(made)
    done = command(made, *more, "--out", str(tmp_path / "run"))
    assert done.exit_code == 2, done.output
    assert said in done.output
    assert not (tmp_path / "run").exists()


def test_another_reference_model(made: Path, tmp_path: Path) -> None:
    """Without one there are no companions; a named one is that of the base too."""
    steps = training_steps([str(made / "checkpoint-5"), str(made / "checkpoint-10")])
    base = ModelOptions(model=str(made / "model"))
    checkpoints = [str(made / "checkpoint-5"), str(made / "checkpoint-10")]
    for name, expected in (("none", None), ("lab", "lab")):
        points = module.planned_checkpoints(base, checkpoints, steps, with_base=True, reference_model=name)
        assert [point.model.reference and point.model.reference.model for point in points] == [expected] * 3
    assert replace(base, lora=checkpoints[0]).checksum() != base.checksum()
