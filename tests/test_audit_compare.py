"""Audits side by side: what is refused, McNemar against scipy, the report, quality, on tiny real pipelines."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from schemas import validate_run
from scipy.stats import binomtest
from tiny import tiny_pipeline
from typer.testing import CliRunner

from diffkit.cli import app
from diffkit.errors import InputError
from diffkit.images import save_png
from diffkit.lab import textures
from memorization.auditing.run import audit
from memorization.auditing.settings import AuditSettings
from memorization.comparison.paired import changes, mcnemar, read_runs, summarise_comparison
from memorization.comparison.report import gallery_rows
from memorization.items import gather

SETTINGS = AuditSettings(
    budgets=(0, 1),
    starts=("other",),
    generations=2,
    attack_generations=1,
    num_inference_steps=2,
    items_at_once=4,
    micro_batch=8,
    draws=1,
    threshold=0.75,
    other_captions=("a cat", "a dog"),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three audits: two models with 3 suspects and 20 controls, and one of another seed; and the models."""
    folder = tmp_path_factory.mktemp("compare")
    images = textures.dead_leaves(23, generator=torch.Generator().manual_seed(1))
    rows = []
    for index, image in enumerate(images):
        save_png(image, folder / f"{index}.png")
        rows.append(json.dumps({"id": str(index), "caption": f"a dog {index}", "image": f"{index}.png"}) + "\n")
    (folder / "s.jsonl").write_text("".join(rows[:3]))
    (folder / "c.jsonl").write_text("".join(rows[3:]))
    gathered = gather(folder / "s.jsonl", folder / "c.jsonl")
    for name, seed, settings in (("one", 0, SETTINGS), ("two", 1, SETTINGS), ("other", 0, replace(SETTINGS, seed=1))):
        model = folder / f"model-{seed}"
        tiny_pipeline(seed=seed).save_pretrained(model)
        found = gathered._replace(items=gathered.items[:3]) if name == "other" else gathered
        audit(str(model), found, out=folder / name, settings=settings)
    return folder


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40))
def test_mcnemar_is_scipys_binomial_test(pairs: list[tuple[bool, bool]]) -> None:
    found = mcnemar([a for a, _ in pairs], [b for _, b in pairs])
    lost, gained = (sum(pair == p for p in pairs) for pair in ((True, False), (False, True)))
    assert (found["only_before"], found["only_after"], found["n"]) == (lost, gained, len(pairs))
    wanted = binomtest(lost, lost + gained, 0.5).pvalue if lost + gained else 1.0
    assert found["p"] == pytest.approx(wanted)


def test_mcnemar_without_pairs() -> None:
    assert mcnemar([], [])["p"] is None
    with pytest.raises(InputError, match="pairs"):
        mcnemar([True], [])


def test_runs_of_another_question_are_refused_with_the_keys(folder: Path) -> None:
    with pytest.raises(InputError) as caught:
        read_runs([folder / "one", folder / "other"])
    for key in ("data_sha256", "settings.seed", "items"):
        assert key in str(caught.value)


@pytest.mark.parametrize(
    ("names", "options", "said"),
    [
        (["one"], {}, "two audits"),
        (["one", "two"], {"names": ["a", "a"]}, "different names"),
        (["one", "two"], {"names": ["a"]}, "2 different names"),
        (["one", "nowhere"], {}, "nowhere"),
    ],
)
def test_what_cannot_be_compared(folder: Path, names: list[str], options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        read_runs([folder / name for name in names], **options)


def test_an_unfinished_audit_is_refused(folder: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(folder / "one", tmp_path / "one")
    record = json.loads((tmp_path / "one/run.json").read_text())
    (tmp_path / "one/run.json").write_text(json.dumps(record | {"finished": None}))
    with pytest.raises(InputError, match="no finished audit"):
        read_runs([tmp_path / "one", folder / "two"])


def with_findings(run: Any, verdicts: list[str], captions: list[float | None]) -> Any:
    findings = [
        finding | {"verdict": verdict, "caption": caption}
        for finding, verdict, caption in zip(run.summary["findings"], verdicts, captions, strict=True)
    ]
    return replace(run, summary=run.summary | {"findings": findings})


def test_changes_by_hand(folder: Path) -> None:
    """What is unknown or inconclusive in either run is left out and counted."""
    one, two = read_runs([folder / "one", folder / "two"])
    before = with_findings(one, ["replicated", "retained", "not shown"], [0.9, 0.1, 0.1])
    after = with_findings(two, ["not shown", "inconclusive", "retained"], [0.2, None, 0.8])
    found = changes(before, after)
    counts = ("n", "before", "after", "only_before", "only_after", "left_out")
    assert [found["verdict"][name] for name in counts] == [2, 1, 1, 1, 1, 1]
    assert [found["caption"][name] for name in counts] == [2, 1, 1, 1, 1, 1]
    assert found["dori"]["budget"] == 1
    assert found["dori"]["n"] == 3


def test_a_run_against_itself_changes_nothing(folder: Path) -> None:
    comparison = summarise_comparison(read_runs([folder / "one", folder / "one"], ["a", "b"]))
    for one in comparison["changes"]["b"].values():
        assert one["only_before"] == one["only_after"] == 0
        assert one["p"] == (1.0 if one["n"] else None)  # three suspects of random weights may be inconclusive
    assert comparison["runs"]["a"] == comparison["runs"]["b"]


def command(folder: Path, *more: str) -> Any:
    line = ["audit", "compare", str(folder / "one"), str(folder / "two"), *more]
    return CliRunner().invoke(app, line)


def test_command_without_a_folder_prints_only(folder: Path) -> None:
    done = command(folder, "--format", "json", "--names", "original,mitigated")
    assert done.exit_code == 0, done.output
    comparison = json.loads(done.stdout)
    assert list(comparison["runs"]) == ["original", "mitigated"]
    assert comparison["baseline"] == "original"
    table = command(folder)
    assert "McNemar" in table.stdout


def test_a_large_gallery_shows_what_changed_and_what_came_back() -> None:
    verdicts = [("not shown", "not shown"), ("replicated", "replicated"), ("not shown",) * 2, ("retained", "not shown")]
    gallery = [{"key": f"suspect:{i}", "verdicts": {"a": a, "b": b}} for i, (a, b) in enumerate(verdicts)]
    assert [row["key"][-1] for row in gallery_rows(gallery, most=3)] == ["0", "1", "3"]
    assert [row["key"][-1] for row in gallery_rows(gallery, most=1)] == ["3"]
    assert gallery_rows(gallery) == gallery


def test_command_with_quality_and_report(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a dog\na cat\n")
    line = ["--out", str(tmp_path / "run"), "--quality", str(tmp_path / "prompts.txt"), "--quality-seeds", "2"]
    done = command(folder, *line, "--format", "json")
    assert done.exit_code == 0, done.output
    validate_run(tmp_path / "run", "audit-compare")
    quality = json.loads(done.stdout)["quality"]
    assert quality["two"]["drift"]["relative"]["n"] == 2
    page = (tmp_path / "run/report.html").read_text()
    assert page.count("data:image/png;base64,") == 3 * 5  # an original, then caption and attack of two runs
    assert 'src="http' not in page
    again = command(folder, *line, "--format", "json")  # resumes: nothing is generated twice
    assert json.loads(again.stdout)["quality"] == quality
    other = command(folder, *line, "--quality-limit", "1")
    assert other.exit_code == 2
    assert "quality.limit" in other.output


@pytest.mark.parametrize(
    ("more", "said"), [(["--quality", "lab:held-out"], "--out"), (["--names", "only"], "different names")]
)
def test_wrong_usage(folder: Path, more: list[str], said: str) -> None:
    done = command(folder, *more)
    assert done.exit_code == 2, done.output
    assert said in done.output


def test_a_changed_model_is_not_measured(folder: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "moved"
    shutil.copytree(folder, copy)
    for name in ("one", "two"):
        record = json.loads((copy / name / "run.json").read_text())
        record["config"]["model"] = str(copy / Path(record["config"]["model"]).name)
        (copy / name / "run.json").write_text(json.dumps(record))
    (copy / "model-1/model_index.json").write_text((copy / "model-1/model_index.json").read_text() + " ")
    done = command(copy, "--out", str(tmp_path / "run"), "--quality", str(folder / "s.jsonl"), "--quality-limit", "1")
    assert done.exit_code == 2, done.output
    assert "not the one" in done.output
    record["config"]["mitigation"] = {"method": "by-hand", "sha256": "0" * 64}  # of a pipeline that carried it
    (copy / name / "run.json").write_text(json.dumps(record))
    shutil.copy(folder / "model-1/model_index.json", copy / "model-1/model_index.json")
    done = command(copy, "--out", str(tmp_path / "run"), "--quality", str(folder / "s.jsonl"), "--quality-limit", "1")
    assert done.exit_code == 2, done.output
    assert "audited a mitigation that no folder holds (by-hand)" in done.output
