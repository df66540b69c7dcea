"""Several rungs, learning rates and detectors, edited suspects, a reference model, a mitigation: on a tiny pipeline."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from schemas import validate_run
from tiny import tiny_pipeline
from typer.testing import CliRunner

from diffkit.cli import app
from diffkit.errors import InputError, Interrupted
from diffkit.images import load_image, save_png
from diffkit.lab import textures
from diffkit.loading import model_checksum
from diffkit.mitigation import Mitigation, save_mitigation
from diffkit.mitigation.record import MitigationRecord
from diffkit.seeds import item_seed
from memorization.attack.checkpoint import FileCheckpoint
from memorization.auditing.edited_controls import edit
from memorization.auditing.models import AuditedModel, Reference
from memorization.auditing.run import AuditResult, audit
from memorization.auditing.settings import AuditSettings
from memorization.items import Gathered, gather

SETTINGS = AuditSettings(
    attacks=("dori", "soft-tokens-1"),
    learning_rates=(0.05, 0.1),
    budgets=(0, 2),
    starts=("other",),
    generations=2,
    attack_generations=1,
    num_inference_steps=2,
    items_at_once=2,
    micro_batch=4,
    draws=2,
    detectors=("noise_magnitude", "anisotropy"),
    edits=("mirror", "noise"),
    masks=True,
    threshold=0.75,
    other_captions=("a cat", "a dog"),
    attack_all=True,
)


@pytest.fixture(scope="module")
def gathered(tmp_path_factory: pytest.TempPathFactory) -> Gathered:
    """Two suspects that are one picture (a template), one without an image, and one control."""
    folder = tmp_path_factory.mktemp("companions")
    images = textures.dead_leaves(2, generator=torch.Generator().manual_seed(1))
    save_png(images[0], folder / "a.png")
    save_png((images[0] * 0.97), folder / "b.png")
    save_png(images[1], folder / "c.png")
    rows = [{"id": "a", "caption": "a dog", "image": "a.png", "kind": "TM"}]
    rows += [{"id": "b", "caption": "a cat", "image": "b.png", "kind": "TM"}, {"id": "3", "caption": "at it"}]
    (folder / "s.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "c.jsonl").write_text(json.dumps({"id": "c", "caption": "at", "image": "c.png"}) + "\n")
    return gather(folder / "s.jsonl", folder / "c.jsonl")


def reference(seed: int = 1) -> Reference:
    return Reference("other", lambda: tiny_pipeline(seed=seed), f"checksum-{seed}")


def run(
    gathered: Gathered, out: Path, settings: AuditSettings = SETTINGS, *, save_triggers: bool = False, **parts: Any
) -> AuditResult:
    audited = AuditedModel("tiny", tiny_pipeline, **parts)
    return audit(audited, gathered, out=out, settings=settings, save_triggers=save_triggers)


@pytest.fixture(scope="module")
def finished(gathered: Gathered, tmp_path_factory: pytest.TempPathFactory) -> AuditResult:
    return run(gathered, tmp_path_factory.mktemp("runs") / "all", reference=reference(), save_triggers=True)


def journal(folder: Path) -> dict[str, dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]
    return {line["key"]: line["item"] for line in lines}


def test_everything_that_is_measured_has_its_line(finished: AuditResult) -> None:
    validate_run(finished.folder, "audit")
    items = journal(finished.folder)
    names = ["suspect:a", "suspect:b", "suspect:3", "control:c"]
    names += ["mirror:a", "mirror:b", "noise:a", "noise:b", "reference_control:c", "reference:a", "reference:b"]
    assert sorted(items) == sorted(names)
    for key in ("suspect:a", "mirror:a", "reference:a", "control:c"):
        assert set(items[key]["attack"]) == {"dori", "soft-tokens-1"}
        assert set(items[key]["attack"]["dori"]) == {"other@0.05", "other@0.1"}
    assert items["mirror:a"]["of"] == items["reference:a"]["of"] == "suspect:a"
    assert all(items["suspect:3"]["detectors"][name]["value"] is not None for name in SETTINGS.detectors)


def test_the_reference_begins_where_the_suspect_began(finished: AuditResult) -> None:
    items = journal(finished.folder)
    assert items["reference:a"]["seeds"] == items["suspect:a"]["seeds"]
    assert items["reference_control:c"]["seeds"] == items["control:c"]["seeds"]
    assert items["reference_control:c"]["of"] == "control:c"
    assert items["reference:a"]["caption"] != items["suspect:a"]["caption"]  # by another model


def test_the_reference_of_itself_is_itself(gathered: Gathered, tmp_path: Path) -> None:
    """The same model as its own reference: the same figures, which shows that starts and seeds are the same."""
    same = run(gathered, tmp_path / "run", replace(SETTINGS, edits=(), masks=False), reference=reference(0))
    items = journal(same.folder)
    pairs = [("suspect:a", "reference:a"), ("suspect:b", "reference:b"), ("control:c", "reference_control:c")]
    for one, other in ((items[first], items[second]) for first, second in pairs):
        assert one["caption"] == pytest.approx(other["caption"], abs=1e-3)
        for rung, variants in one["attack"].items():
            for variant, rows in variants.items():
                for row, again in zip(rows, other["attack"][rung][variant], strict=True):
                    assert row == pytest.approx(again, abs=1e-2)


def test_the_edit_is_what_was_attacked(finished: AuditResult, gathered: Gathered) -> None:
    items = journal(finished.folder)
    original = load_image(gathered.items[0].suspect.images[0], (64, 64))
    for name in ("mirror", "noise"):
        kept = load_image(finished.folder / items[f"{name}:a"]["pictures"]["original"])
        wanted = edit(name, original, item_seed(0, f"{name}:a", "edit"))  # type: ignore[arg-type]
        assert (kept - wanted).abs().max() <= 1.01 / 255


def test_the_summary_keeps_them_apart(finished: AuditResult) -> None:
    summary = finished.summary
    assert summary["schema_version"] == 3
    assert list(summary["rungs"]) == ["soft-tokens-1", "dori"]  # weak to strong, whatever the order asked for
    assert summary["controls"]["total"] == 1
    assert {name: family["n"] for name, family in summary["edits"].items()} == {"mirror": 2, "noise": 2}
    assert summary["reference"]["caption"]["n"] == 2
    assert summary["reference_model"] == {"model": "other", "sha256": "checksum-1"}
    assert summary["detectors"]["anisotropy"]["suspects"] == 3
    work = summary["rungs"]["dori"]["work"]
    assert work["suspects"][-1]["at_risk"] <= 2
    assert summary["aggregation"]["maximum"]["suspects"]["caption"]["n"] == 2


def test_one_picture_has_one_vote(finished: AuditResult) -> None:
    clusters = finished.summary["clusters"]
    assert clusters["labels"]["suspect:a"] == clusters["labels"]["suspect:b"]
    assert clusters["n"] == 2
    assert sum(clusters["verdicts"].values()) == 2
    assert finished.summary["suspects"] == 3


def test_templates_have_a_mask_picture(finished: AuditResult) -> None:
    items = journal(finished.folder)
    for name in ("a", "b"):
        item = items[f"suspect:{name}"]
        assert item["mask"] is not None or (finished.folder / item["pictures"]["mask"]).is_file()
    assert "mask" not in items["mirror:a"]["pictures"]


def test_the_report_shows_them(finished: AuditResult) -> None:
    page = (finished.folder / "report.html").read_text()
    for text in ("Edited suspects", "Reference model", "soft-tokens-1", "weakest rung", "Share not yet back"):
        assert text in page


def test_triggers_by_rung_and_rate(finished: AuditResult) -> None:
    from safetensors.torch import load_file

    tensors = load_file(finished.folder / journal(finished.folder)["suspect:a"]["triggers"])
    assert {"dori.other@0.05.2", "dori.other@0.1.0", "soft-tokens-1.other@0.1.2"} <= set(tensors)
    assert not (finished.folder / "checkpoints").exists()
    assert "triggers" not in journal(finished.folder)["reference:a"]


def test_killed_inside_an_image_it_goes_on_there(
    finished: AuditResult, gathered: Gathered, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped right after a search saved its state: the state is used, and the result is the undisturbed one."""
    save, saved = FileCheckpoint.save, 0

    def stopping(self: FileCheckpoint, state: Any) -> None:
        nonlocal saved
        save(self, state)
        saved += 1
        if saved == 3:  # the first rung at both rates is done, the second has begun
            raise KeyboardInterrupt

    options: dict[str, Any] = {"reference": reference(), "save_triggers": True}
    with monkeypatch.context() as patch:
        patch.setattr(FileCheckpoint, "save", stopping)
        with pytest.raises(Interrupted):
            run(gathered, tmp_path / "run", **options)
    assert len(list((tmp_path / "run/checkpoints").glob("*.safetensors"))) == 3
    assert not journal(tmp_path / "run")
    run(gathered, tmp_path / "run", **options)
    assert journal(tmp_path / "run") == journal(finished.folder)
    assert (tmp_path / "run/summary.json").read_bytes() == (finished.folder / "summary.json").read_bytes()
    assert not (tmp_path / "run/checkpoints").exists()


@pytest.mark.parametrize(
    "options",
    [
        {"reference": None},
        {"reference": reference(2)},
        {"reference": reference(), "mitigation": MitigationRecord("nemo", "0" * 64, "runs/nemo")},
    ],
)
def test_another_reference_or_mitigation_is_another_audit(
    finished: AuditResult, gathered: Gathered, options: dict[str, Any]
) -> None:
    with pytest.raises(InputError, match="reference|mitigation"):
        run(gathered, finished.folder, save_triggers=True, **options)


SMALL = ["--budgets", "0,1", "--starts", "other", "--generations", "1", "--attack-generations", "1", "--steps", "2"]
SMALL += ["--draws", "1", "--batch", "2", "--micro-batch", "2", "--limit", "1", "--controls", "none"]


def test_command_with_mitigation_and_reference(gathered: Gathered, tmp_path: Path) -> None:
    """The mitigated model is what is measured, the reference is not; both are in the record."""
    tiny_pipeline().save_pretrained(tmp_path / "model")
    checksum = model_checksum(tmp_path / "model")
    weight = "unet.conv_out.weight"
    change = {weight: 0.5 * torch.randn(4, 16, 3, 3, generator=torch.Generator().manual_seed(0))}
    save_mitigation(tmp_path / "mitigation", Mitigation("test", "delta", "tiny", change, model_sha256=checksum))
    suspects = gathered.items[0].suspect.images[0].parent / "s.jsonl"
    line = ["audit", "--model", str(tmp_path / "model"), "--suspects", str(suspects), *SMALL, "--detector", "none"]
    line += ["--attack-all", "--mitigation", str(tmp_path / "mitigation"), "--reference-model", str(tmp_path / "model")]
    done = CliRunner().invoke(app, [*line, "--out", str(tmp_path / "run")])
    assert done.exit_code == 0, done.output
    items = journal(tmp_path / "run")
    assert items["suspect:a"]["caption"] != items["reference:a"]["caption"]
    assert items["suspect:a"]["detectors"] == {}
    config = json.loads((tmp_path / "run/run.json").read_text())["config"]
    assert config["mitigation"]["method"] == "test"
    assert len(config["mitigation"]["sha256"]) == 64
    assert config["reference"]["sha256"] == checksum
    plain = CliRunner().invoke(app, [*line[:-4], "--out", str(tmp_path / "run")])
    assert plain.exit_code == 2
    assert "mitigation" in plain.output


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--attack", "magic", "soft-tokens-1"),
        ("--detector", "magic", "noise_magnitude"),
        ("--edited-controls", "magic", "mirror"),
        ("--learning-rates", "fast", "0.01,0.03,0.1"),
        ("--mitigation", "/no/such", "mitigat"),
    ],
)
def test_unknown_names_make_no_folder(gathered: Gathered, tmp_path: Path, option: str, value: str, said: str) -> None:
    suspects = gathered.items[0].suspect.images[0].parent / "s.jsonl"
    line = ["audit", "--model", "lab", "--suspects", str(suspects), *SMALL, "--out", str(tmp_path / "run")]
    done = CliRunner().invoke(app, [*line, option, value])
    assert done.exit_code == 2, done.output
    assert said in done.output
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"attacks": ()}, "attacks"),
        ({"attacks": ("dori", "dori")}, "once"),
        ({"edits": ("upside-down",)}, "mirror"),
        ({"learning_rates": (0.1, 0.0)}, "positive"),
        ({"learning_rates": (float("nan"),)}, "positive"),
        ({"detectors": ("noise_magnitude",) * 2}, "detectors"),
    ],
)
def test_settings_that_cannot_be_meant(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        replace(SETTINGS, **wrong)
