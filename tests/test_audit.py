"""The audit from end to end on a tiny real pipeline: files, totals, interruption, exit codes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from schemas import validate, validate_run
from tiny import tiny_pipeline
from typer.testing import CliRunner

from diffkit.cli import app
from diffkit.errors import InputError, Interrupted
from diffkit.images import save_png
from diffkit.lab import textures
from diffkit.seeds import item_seed
from memorization.auditing.measure import Measurer
from memorization.auditing.models import AuditedModel
from memorization.auditing.run import AuditResult, audit
from memorization.auditing.settings import AuditSettings
from memorization.cli.audit import exit_code
from memorization.items import Gathered, gather

SETTINGS = AuditSettings(
    budgets=(0, 1, 2),
    starts=("other", "gaussian"),
    generations=3,
    attack_generations=2,
    num_inference_steps=2,
    items_at_once=2,
    micro_batch=4,
    other_captions=("a cat", "a dog"),
)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Five suspects, one of them without an image and one row broken, and three controls."""
    folder = tmp_path_factory.mktemp("audit")
    images = textures.dead_leaves(8, generator=torch.Generator().manual_seed(1))
    for index, image in enumerate(images):
        save_png(image, folder / f"{index}.png")
    rows: list[dict[str, str]] = [{"caption": f"a dog {i}", "image": f"{i}.png", "kind": "VM"} for i in range(4)]
    rows += [{"caption": "a <b>cat</b> at it"}, {"caption": "lost", "image": "gone.png"}]
    suspects, controls = folder / "suspects.jsonl", folder / "controls.jsonl"
    suspects.write_text("".join(json.dumps(row) + "\n" for row in rows))
    controls.write_text("".join(json.dumps({"caption": f"at {i}", "image": f"{i}.png"}) + "\n" for i in range(5, 8)))
    return suspects, controls


@pytest.fixture(scope="module")
def gathered(sources: tuple[Path, Path]) -> Gathered:
    return gather(*sources)


@pytest.fixture(scope="module")
def finished(gathered: Gathered, tmp_path_factory: pytest.TempPathFactory) -> AuditResult:
    return run(gathered, tmp_path_factory.mktemp("runs") / "undisturbed")


def run(gathered: Gathered, out: Path, settings: AuditSettings = SETTINGS, **options: bool) -> AuditResult:
    return audit(AuditedModel("tiny", tiny_pipeline), gathered, out=out, settings=settings, **options)


def journal(folder: Path) -> dict[str, dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]
    assert len({line["key"] for line in lines}) == len(lines)
    return {line["key"]: line["item"] for line in lines}


def test_every_item_is_in_the_journal_and_in_the_totals(finished: AuditResult, gathered: Gathered) -> None:
    items = journal(finished.folder)
    assert list(items) == [item.key for item in sorted(gathered.items, key=lambda item: item.role)]  # controls first
    summary = finished.summary
    assert summary == json.loads((finished.folder / "summary.json").read_text())
    assert summary["suspects"] == 6  # the broken row is one of them
    assert sum(summary["verdicts"].values()) == 6
    assert summary["verdicts"]["could not be scored"] == 2
    assert summary["verdicts"]["inconclusive"] == 4  # three controls cannot carry a verdict
    assert "19" in summary["controls"]["failure"]
    (broken,) = summary["unreadable"]
    assert broken["row"] == 6
    assert "gone.png" in broken["reason"]


def test_the_files_are_as_declared(finished: AuditResult) -> None:
    validate_run(finished.folder, "audit")
    record = journal(finished.folder)["suspect:0"]
    for wrong in ({**record, "extra": 1}, {**record, "seeds": None}, {k: v for k, v in record.items() if k != "best"}):
        with pytest.raises(ValueError, match=r"extra|seeds|best"):
            validate("audit-record", wrong)


def test_an_item_s_line(finished: AuditResult) -> None:
    item = journal(finished.folder)["suspect:0"]
    assert len(item["caption"]) == len(item["seeds"]) == len(item["detectors"]["noise_magnitude"]["scores"]) == 3
    assert set(item["attack"]["dori"]) == {"other", "gaussian"}
    assert [len(row) for row in item["attack"]["dori"]["other"]] == [2, 2, 2]
    assert item["sample_gradients"] == 2 * 2 * 8
    assert item["seeds"][1] == item_seed(0, "suspect:0", "caption", 1)
    for picture in item["pictures"].values():
        assert (finished.folder / picture).is_file()
    assert set(item["pictures"]) == {"original", "caption", "dori-1", "dori-2"}


def test_without_an_image_the_caption_is_still_heard(finished: AuditResult) -> None:
    (item,) = [item for item in journal(finished.folder).values() if "cat" in item["prompt"]]
    assert item["caption"] is None
    assert item["attack"] is None
    assert item["reason"] == "no image to compare with"
    assert len(item["detectors"]["noise_magnitude"]["scores"]) == 3


def test_caption_images_are_the_stock_pipeline_s(finished: AuditResult) -> None:
    """The journal's seed gives the saved image with no toolkit in the way."""
    item = journal(finished.folder)["suspect:1"]
    best = max(range(3), key=lambda index: item["caption"][index])
    generator = torch.Generator().manual_seed(item["seeds"][best])
    image = tiny_pipeline()(
        item["prompt"], generator=generator, num_inference_steps=2, guidance_scale=3.0, output_type="pt"
    ).images[0]
    from diffkit.images import load_image

    saved = load_image(finished.folder / item["pictures"]["caption"])
    assert (saved - image).abs().max() <= 1.01 / 255


def test_the_report_stands_alone(finished: AuditResult) -> None:
    page = (finished.folder / "report.html").read_text()
    assert "data:image/png;base64," in page
    assert "<b>cat</b>" not in page
    assert "&lt;b&gt;cat&lt;/b&gt;" in page
    assert "gone.png" in page
    assert 'src="http' not in page


def test_summary_holds_no_clock(finished: AuditResult) -> None:
    text = (finished.folder / "summary.json").read_text().lower()
    assert not any(word in text for word in ("second", "started", "finished", "2026", str(finished.folder)))


@pytest.mark.parametrize("stop_after", [2, 5])
def test_an_interrupted_audit_goes_on_to_the_same_result(
    finished: AuditResult, gathered: Gathered, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_after: int
) -> None:
    """Ctrl-C between two groups and in the middle of one: identical journal content, summary and pictures."""
    from diffkit.runs import Run

    write, count = Run.write, 0

    def interrupted(self: Run, key: str, item: dict[str, Any]) -> None:
        nonlocal count
        count += 1
        if count > stop_after:
            raise KeyboardInterrupt
        write(self, key, item)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "write", interrupted)
        with pytest.raises(Interrupted):
            run(gathered, tmp_path / "run")
    assert len(journal(tmp_path / "run")) == stop_after
    run(gathered, tmp_path / "run")
    assert journal(tmp_path / "run") == journal(finished.folder)
    assert (tmp_path / "run/summary.json").read_bytes() == (finished.folder / "summary.json").read_bytes()
    for picture in (finished.folder / "images").iterdir():
        assert (tmp_path / "run/images" / picture.name).read_bytes() == picture.read_bytes()


def test_a_finished_audit_measures_nothing_again(
    finished: AuditResult, gathered: Gathered, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(self: Measurer, items: Sequence[object]) -> None:
        raise AssertionError("measured again")

    before = (finished.folder / "summary.json").read_bytes()
    monkeypatch.setattr(Measurer, "measure", never)
    run(gathered, finished.folder)
    assert (finished.folder / "summary.json").read_bytes() == before


def test_the_bar_ends_where_it_should(
    sources: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The work announced before the first batch is the work done."""
    from memorization.auditing import measure_all as module

    seen: dict[str, int] = {}

    class Counter:
        def advance(self, steps: int = 1) -> None:
            seen["done"] = seen.get("done", 0) + steps

        def describe(self, text: str) -> None:
            seen["descriptions"] = seen.get("descriptions", 0) + 1

    @contextmanager
    def watched(description: str, total: int | None = None) -> Iterator[Counter]:
        seen["total"] = seen.get("total", 0) + (total or 0)
        yield Counter()

    monkeypatch.setattr(module, "progress", watched)
    run(gather(*sources), tmp_path / "run")
    assert seen["done"] == seen["total"] > 0
    assert seen["descriptions"] == 5  # groups of two: of three controls, and of five suspects


def test_another_audit_in_the_same_folder_is_refused(finished: AuditResult, gathered: Gathered) -> None:
    from dataclasses import replace

    with pytest.raises(InputError, match="generations"):
        run(gathered, finished.folder, replace(SETTINGS, generations=4))


def test_company_changes_nobody_s_numbers(finished: AuditResult, sources: tuple[Path, Path], tmp_path: Path) -> None:
    """One suspect alone, without controls: the same similarities as among the others."""
    alone = run(gather(sources[0], None, limit=1), tmp_path / "alone")
    one, other = journal(alone.folder)["suspect:0"], journal(finished.folder)["suspect:0"]
    assert one["seeds"] == other["seeds"]
    assert one["caption"] == pytest.approx(other["caption"], abs=1e-3)
    heard = [record["detectors"]["noise_magnitude"]["scores"] for record in (one, other)]
    assert heard[0] == pytest.approx(heard[1], rel=1e-3)
    for start in SETTINGS.starts:
        for row, same in zip(one["attack"]["dori"][start], other["attack"]["dori"][start], strict=True):
            assert row == pytest.approx(same, abs=1e-2)
    assert alone.summary["controls"]["n"] == 0


def test_triggers_are_kept_only_when_asked_for(
    finished: AuditResult, sources: tuple[Path, Path], tmp_path: Path
) -> None:
    from safetensors.torch import load_file

    assert not (finished.folder / "triggers").exists()
    kept = run(gather(sources[0], None, limit=1), tmp_path / "kept", save_triggers=True)
    tensors = load_file(kept.folder / journal(kept.folder)["suspect:0"]["triggers"])
    assert set(tensors) == {f"dori.{start}.{budget}" for start in SETTINGS.starts for budget in SETTINGS.budgets}
    assert tensors["dori.other.2"].shape == (16, 32)


def test_nan_images_are_unscored_not_clean(finished: AuditResult, gathered: Gathered, tmp_path: Path) -> None:
    pipe = tiny_pipeline()
    with torch.no_grad():
        pipe.unet.conv_out.bias.fill_(float("nan"))
    result = audit(pipe, gathered, out=tmp_path / "nan", settings=SETTINGS, name="tiny")
    assert result.summary["verdicts"]["could not be scored"] == 6
    assert "not a number" in journal(result.folder)["suspect:0"]["reason"]
    # the same command with the model as it should be: what was in error is tried again
    again = audit(tiny_pipeline(), gathered, out=tmp_path / "nan", settings=SETTINGS, name="tiny").summary
    assert again == finished.summary
    before = (tmp_path / "nan" / "journal.jsonl").read_bytes()
    assert audit(tiny_pipeline(), gathered, out=tmp_path / "nan", settings=SETTINGS, name="tiny").summary == again
    assert (tmp_path / "nan" / "journal.jsonl").read_bytes() == before


def test_a_broken_autoencoder_is_refused(gathered: Gathered, tmp_path: Path) -> None:
    pipe = tiny_pipeline()
    with torch.no_grad():
        pipe.vae.decoder.layers[-1].bias.fill_(float("nan"))
    with pytest.raises(InputError, match="float32"):
        audit(pipe, gathered, out=tmp_path / "nan", settings=SETTINGS, name="tiny")
    assert not (tmp_path / "nan").exists()  # refused before an item was measured


# ------------------------------------------------------------------------------------------ command line


@pytest.mark.parametrize(
    ("verdicts", "unscored", "fail_on", "code"),
    [
        ({"retained": 1}, 0, "never", 0),
        ({"retained": 1}, 0, "retained", 1),
        ({"replicated": 1}, 0, "retained", 1),
        ({"retained": 1}, 0, "replicated", 0),
        ({"inconclusive": 2}, 0, "retained", 0),
        ({"inconclusive": 2}, 0, "inconclusive", 1),
        ({"could not be scored": 1}, 0, "retained", 3),
        ({"could not be scored": 1, "retained": 1}, 0, "retained", 1),
        ({}, 1, "never", 3),
    ],
)
def test_exit_codes(verdicts: dict[str, int], unscored: int, fail_on: Any, code: int) -> None:
    names = ("replicated", "retained", "not shown", "inconclusive", "could not be scored")
    summary = {
        "verdicts": dict.fromkeys(names, 0) | verdicts,
        "controls": {"unscored": unscored},
        "unreadable": [],
    }
    assert exit_code(summary, fail_on) == code


@pytest.fixture
def tiny_folder(tmp_path: Path) -> Path:
    tiny_pipeline().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def small(sources: tuple[Path, Path], model: Path, out: Path, *more: str) -> list[str]:
    line = ["audit", "--model", str(model), "--suspects", str(sources[0]), "--controls", str(sources[1])]
    line += ["--out", str(out), "--budgets", "0,1", "--starts", "other", "--generations", "2", "--batch", "2"]
    return [*line, "--attack-generations", "1", "--steps", "2", "--micro-batch", "4", *more]


def test_command(sources: tuple[Path, Path], tiny_folder: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, small(sources, tiny_folder, tmp_path / "run", "--format", "json"))
    assert done.exit_code == 3, done.output  # a lost image, and one suspect without
    summary = json.loads(done.stdout)
    assert summary["suspects"] == 6
    assert len(summary["model_sha256"]) == 64
    again = CliRunner().invoke(app, small(sources, tiny_folder, tmp_path / "run", "--fail-on", "inconclusive"))
    assert again.exit_code == 1, again.output
    assert "inconclusive" in again.stdout
    other = CliRunner().invoke(app, small(sources, tiny_folder, tmp_path / "run", "--seed", "1"))
    assert other.exit_code == 2
    assert "seed" in other.output


def test_ctrl_c_says_how_to_go_on(
    sources: tuple[Path, Path], tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(self: Measurer, items: Sequence[object], effort: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Measurer, "measure", stopped)
    done = CliRunner().invoke(app, small(sources, tiny_folder, tmp_path / "run"))
    assert done.exit_code == 130, done.output
    assert f"--out {tmp_path / 'run'}" in done.output


def test_dry_run_loads_and_writes_nothing(sources: tuple[Path, Path], tiny_folder: Path, tmp_path: Path) -> None:
    line = small(sources, tiny_folder, tmp_path / "run", "--dry-run", "--format", "json")
    lost = CliRunner().invoke(app, small(sources, tmp_path / "no-model", tmp_path / "run", "--dry-run"))
    assert lost.exit_code == 2
    assert "no-model" in lost.output
    done = CliRunner().invoke(app, line)
    assert done.exit_code == 0, done.output
    plan = json.loads(done.stdout)
    assert (plan["suspects"], plan["controls"], plan["rows in error"]) == (5, 3, 1)
    assert plan["sample gradients"] == 7 * 1 * 8
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--budgets", "50,10", "rising"),
        ("--budgets", "ten", "0,1,10,25,50"),
        ("--starts", "nowhere", "gaussian"),
        ("--alpha", "2", "alpha"),
        ("--other-captions", "nothing.csv", "nothing.csv"),
    ],
)
def test_wrong_input_is_refused_before_anything_runs(
    sources: tuple[Path, Path], tmp_path: Path, option: str, value: str, said: str
) -> None:
    done = CliRunner().invoke(app, small(sources, tmp_path / "no-model", tmp_path / "run", option, value))
    assert done.exit_code == 2, done.output
    assert said in done.output
    assert not (tmp_path / "run").exists()


def test_suspects_that_are_not_there(sources: tuple[Path, Path], tmp_path: Path) -> None:
    nowhere = (tmp_path / "nothing.csv", sources[1])
    done = CliRunner().invoke(app, small(nowhere, tmp_path / "no-model", tmp_path / "run"))
    assert done.exit_code == 2, done.output
    assert "nothing.csv" in done.output
    assert not (tmp_path / "run").exists()


def test_no_folder_for_the_results(sources: tuple[Path, Path]) -> None:
    done = CliRunner().invoke(app, ["audit", "--suspects", str(sources[0]), "--controls", "none"])
    assert done.exit_code == 2
    assert "--out" in done.output


def test_captions_alone_are_heard_and_counted(tmp_path: Path) -> None:
    """A published list without its images: a noise magnitude for each, no similarity, no false comfort."""
    (tmp_path / "list.txt").write_text("a dog\na cat\n")
    result = run(gather(tmp_path / "list.txt", None), tmp_path / "run")
    assert result.summary["verdicts"]["could not be scored"] == 2
    assert result.summary["operating_point"]["source"].startswith("not calibrated")
    assert result.summary["detectors"]["noise_magnitude"]["suspects"] == 2
    assert "no image to compare with" in (tmp_path / "run/report.html").read_text()
