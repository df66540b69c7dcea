"""An audit's folder is verified from its files: what is untouched passes, every edit is named."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from schemas import validate
from tiny import tiny_pipeline
from typer.testing import CliRunner

from diffkit.cli import app
from diffkit.errors import InputError
from diffkit.images import save_png
from diffkit.lab import textures
from memorization.auditing.run import audit
from memorization.auditing.settings import AuditSettings
from memorization.auditing.summary import SUMMARY_SCHEMA
from memorization.auditing.verification import Verification
from memorization.auditing.verify import verify_audit
from memorization.auditing.verify_figures import compare_values

DATA = Path(__file__).parent / "data" / "v0_1_0"
SETTINGS = AuditSettings(
    budgets=(0, 1),
    starts=("other",),
    generations=1,
    attack_generations=1,
    num_inference_steps=2,
    micro_batch=8,
    draws=1,
    other_captions=("a cat", "a dog"),
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The audit ``run`` of ``model``, a broken row among the suspects ``s.jsonl``; its controls are ``c.jsonl``."""
    folder = tmp_path_factory.mktemp("verify")
    rows = []
    for index, image in enumerate(textures.dead_leaves(4, generator=torch.Generator().manual_seed(1))):
        save_png(image, folder / f"{index}.png")
        rows.append(json.dumps({"id": str(index), "caption": f"a dog {index}", "image": f"{index}.png"}) + "\n")
    (folder / "s.jsonl").write_text("".join(rows[:2]) + '{"caption": "lost", "image": "gone.png"}\n')
    (folder / "c.jsonl").write_text("".join(rows[2:]))
    tiny_pipeline().save_pretrained(folder / "model")
    model = str(folder / "model")
    audit(model, folder / "s.jsonl", folder / "c.jsonl", out=folder / "run", settings=SETTINGS, save_triggers=True)
    return folder


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    """A copy of the audit to tamper with."""
    return Path(shutil.copytree(made / "run", tmp_path / "run"))


def statuses(verification: Verification) -> dict[str, str]:
    return {check["name"]: check["status"] for check in verification["checks"]}


def edit(path: Path, pattern: str, replacement: str) -> None:
    """Replace the first place of a pattern in a file."""
    text, count = re.subn(pattern, replacement, path.read_text(), count=1)
    assert count == 1, pattern
    path.write_text(text)


def test_an_untouched_audit_passes(made: Path) -> None:
    verification = verify_audit(made / "run")
    validate("audit-verify", verification)
    assert verification["result"] == "ok"
    not_made = {"threshold", "data", "weights", "report"}
    assert {name for name, status in statuses(verification).items() if status == "not checked"} == not_made
    assert set(statuses(verification).values()) == {"ok", "not checked"}
    assert set(verification["sha256"]) == {"run.json", "journal.jsonl", "summary.json", "report.html", "results.csv"}


def test_every_file_of_a_record_has_its_checksum(made: Path) -> None:
    for line in (made / "run/journal.jsonl").read_text().splitlines():
        item = json.loads(line)["item"]
        assert set(item["sha256"]) == {*item["pictures"].values(), item["triggers"]}


def flip_a_byte(run: Path) -> None:
    picture = next((run / "images").iterdir())
    data = bytearray(picture.read_bytes())
    data[-20] ^= 1
    picture.write_bytes(data)


def drop_the_last_record(run: Path) -> None:
    lines = (run / "journal.jsonl").read_text().splitlines(keepends=True)
    (run / "journal.jsonl").write_text("".join(lines[:-1]))


def repeat_a_record(run: Path) -> None:
    text = (run / "journal.jsonl").read_text()
    (run / "journal.jsonl").write_text(text + text.splitlines(keepends=True)[0])


def drop_a_figure(run: Path) -> None:
    summary = json.loads((run / "summary.json").read_text())
    del summary["findings"][0]["caption_max"]
    (run / "summary.json").write_text(json.dumps(summary))


def remove_a_picture(run: Path) -> None:
    next((run / "images").iterdir()).unlink()


#: What is done to the folder, the checks that differ then, and what one of the sentences says.
TAMPERED: dict[str, tuple[Callable[[Path], Any], set[str], str]] = {
    "the configuration": (lambda run: edit(run / "run.json", '"alpha": 0.05', '"alpha": 0.06'),
                          {"configuration", "other figures"}, "settings.alpha is 0.05 in summary.json and 0.06"),
    "its hash": (lambda run: edit(run / "run.json", '"config_hash": "[0-9a-f]{8}', '"config_hash": "00000000'),
                 {"configuration"}, "states the hash 00000000"),
    "a similarity": (lambda run: edit(run / "journal.jsonl", r'("suspect:0".*"caption": \[)[-0-9.]+', r"\g<1>0.99"),
                     {"verdicts", "suspects", "other figures"}, "findings.suspect:0.caption is"),
    "a record's key": (lambda run: edit(run / "journal.jsonl", '"key": "suspect:1"', '"key": "suspect:9"'),
                       {"items", "verdicts", "suspects"}, "the record of suspect:9 is that of suspect:1"),
    "a torn line": (lambda run: (run / "journal.jsonl").write_text((run / "journal.jsonl").read_text()[:-5]),
                    {"journal", "items", "other figures"}, "the last line is torn"),
    "a damaged line": (lambda run: edit(run / "journal.jsonl", '"key"', '"kex"'),
                       {"journal", "items", "verdicts"}, "line 1 is damaged"),
    "a lost record": (drop_the_last_record, {"items"}, "has 4 items, the journal 3"),
    "a record twice": (repeat_a_record, {"journal", "items"}, "repeats the item"),
    "a verdict": (lambda run: edit(run / "summary.json", '"verdict": "inconclusive"', '"verdict": "retained"'),
                  {"suspects"}, 'verdict is "retained" in summary.json and "inconclusive" by the journal'),
    "a count": (lambda run: edit(run / "summary.json", '"inconclusive": 2', '"inconclusive": 1'),
                {"verdicts"}, "verdicts.inconclusive is 1 in summary.json and 2 by the journal"),
    "a figure left out": (drop_a_figure, {"suspects"}, "caption_max is not in summary.json"),
    "the model's name": (lambda run: edit(run / "summary.json", '"model": "[^"]*"', '"model": "other"'),
                         {"model"}, 'model is "other" in summary.json'),
    "a picture": (flip_a_byte, {"pictures"}, "is not the file that was recorded"),
    "a picture removed": (remove_a_picture, {"pictures"}, "is missing"),
    "a picture elsewhere": (lambda run: edit(run / "journal.jsonl", '"images/', '"../../images/'),
                            {"pictures"}, "leads out of the folder"),
}  # fmt: skip


@pytest.mark.parametrize("what", TAMPERED)
def test_an_edit_is_named(run: Path, what: str) -> None:
    tamper, names, sentence = TAMPERED[what]
    tamper(run)
    verification = verify_audit(run)
    assert verification["result"] == "differs"
    differing = {check["name"]: check for check in verification["checks"] if check["status"] == "differs"}
    assert names <= set(differing), differing
    assert any(sentence in text for check in differing.values() for text in check["differences"]), differing


@pytest.mark.parametrize("name", ["audit", "audit-wide"])
def test_an_audit_of_0_1_0(name: str) -> None:
    verification = verify_audit(DATA / name)
    assert verification["result"] == "ok"
    assert statuses(verification)["pictures"] == "not recorded"
    wide = json.loads((DATA / name / "summary.json").read_text())["settings"]["threshold"] is not None
    assert statuses(verification)["threshold"] == ("ok" if wide else "not checked")


def test_verdicts_by_earlier_rules_are_not_compared_but_figures_are(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = "memorization.auditing.verify_figures"
    monkeypatch.setattr(f"{module}.SUMMARY_SCHEMA", SUMMARY_SCHEMA + 1)
    assert statuses(verify_audit(run))["verdicts"] == "not recorded"
    edit(run / "journal.jsonl", r'("suspect:0".*"caption": \[)[-0-9.]+', r"\g<1>0.99")
    assert statuses(verify_audit(run))["other figures"] == "differs"


def test_the_data(made: Path, tmp_path: Path) -> None:
    sources = {"suspects": made / "s.jsonl", "controls": made / "c.jsonl"}
    assert statuses(verify_audit(made / "run", **sources))["data"] == "ok"
    other = Path(shutil.copytree(made, tmp_path / "other"))
    save_png(torch.zeros(3, 64, 64), other / "1.png")
    (differing,) = (
        check
        for check in verify_audit(made / "run", suspects=other / "s.jsonl", controls=other / "c.jsonl")["checks"]
        if check["status"] == "differs"
    )
    assert differing["name"] == "data"
    with pytest.raises(InputError, match="add --controls"):
        verify_audit(made / "run", suspects=made / "s.jsonl")


def test_command(made: Path, run: Path, tmp_path: Path) -> None:
    line = ["audit", "verify", str(run), "--model", str(made / "model"), "--format", "json"]
    done = CliRunner().invoke(app, line)
    assert done.exit_code == 0, done.output
    assert statuses(json.loads(done.stdout))["weights, model"] == "ok"
    other = Path(shutil.copytree(made / "model", tmp_path / "model"))
    (other / "model_index.json").write_text((other / "model_index.json").read_text() + " ")
    done = CliRunner().invoke(app, ["audit", "verify", str(run), "--model", str(other)])
    assert done.exit_code == 1
    assert "the files give" in " ".join(done.stdout.split())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere"], "no finished audit"),
        ([str(DATA / "detect")], "no audit"),
        ([str(DATA / "audit-half")], "no finished audit"),
        ([str(DATA / "audit"), "--lora", "x"], "add --model"),
        ([str(DATA / "audit"), "--controls", "lab:controls"], "add --suspects"),
        ([str(DATA / "audit"), "--model", "nowhere/at/all"], "nowhere/at/all"),
    ],
)
def test_wrong_input(arguments: list[str], said: str) -> None:
    done = CliRunner().invoke(app, ["audit", "verify", *arguments])
    assert done.exit_code == 2, done.output
    assert said in done.output


def test_values_are_compared_key_by_key() -> None:
    rows = compare_values({"a": [1, 2], "b": 1.0, "c": True, "d": None}, {"a": [1], "b": 1.0 + 1e-9, "c": 1, "e": 2})
    assert [(row.key, row.missing) for row in rows] == [("a", False), ("c", False), ("d", False), ("e", True)]
