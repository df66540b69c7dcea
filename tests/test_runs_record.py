"""A run folder: resumes itself, refuses everything else, and loses nothing to a kill."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from diffkit.errors import InputError, Interrupted
from diffkit.runs import Run
from diffkit.runs.record import SCHEMA_VERSION, differing_keys

CONFIG = {"model": "lab", "attack": {"steps": 50, "budgets": [0, 1, 10]}, "seed": 0}

WORKER = """
import sys, time
from diffkit.runs import Run
with Run.open(sys.argv[1], config={"n": 40}, kind="test") as run:
    for number in range(40):
        key = f"item-{number}"
        if key in run.done:
            continue
        run.save_image(key, __import__("PIL.Image").Image.new("RGB", (64, 64), (number, 0, 0)))
        run.write(key, {"value": number * number, "caption": "x" * 5000})
        print(key, flush=True)
        time.sleep(0.002)
"""


def test_items_and_record_survive_reopening(tmp_path: Path) -> None:
    with Run.open(tmp_path / "run", config=CONFIG, kind="audit", provenance={"device": "cpu"}) as run:
        run.write("a", {"score": 0.5, "pair": (1, 2)})
        run.write("b", {"score": None, "reason": "no image"})
        assert not run.resumed
    with Run.open(tmp_path / "run", config=dict(reversed(CONFIG.items())), kind="audit") as again:
        assert again.resumed
        assert dict(again.done) == {"a": {"score": 0.5, "pair": [1, 2]}, "b": {"score": None, "reason": "no image"}}
        assert again.record["finished"] is None
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["schema_version"] == SCHEMA_VERSION
    assert record["finished"] is not None
    assert len(record["sessions"]) == 2
    assert record["sessions"][0]["packages"]["torch"] == torch.__version__.split("+")[0]


def test_the_item_in_memory_equals_the_item_on_disk(tmp_path: Path) -> None:
    with Run.open(tmp_path, config={}, kind="x") as run:
        run.write("a", {"pair": (1, 2)})
        assert run.done["a"] == {"pair": [1, 2]}


def test_another_configuration_is_refused_with_the_keys(tmp_path: Path) -> None:
    Run.open(tmp_path, config=CONFIG, kind="audit").close()
    other = {"model": "lab", "attack": {"steps": 10, "budgets": [0, 1]}, "extra": True}
    with pytest.raises(InputError) as refusal:
        Run.open(tmp_path, config=other, kind="audit")
    message = str(refusal.value)
    assert "attack.steps is 50 there and 10 here" in message
    assert "attack.budgets is [0, 1, 10] there and [0, 1] here" in message
    assert "seed is 0 there and not set here" in message
    assert "extra is not set there and true here" in message
    assert "model" not in message.replace("another", "")
    with pytest.raises(InputError, match="run of 'audit', not of 'search'"):
        Run.open(tmp_path, config=CONFIG, kind="search")


def test_a_key_added_since_has_the_value_that_runs_had_before(tmp_path: Path) -> None:
    """A run of an earlier version is resumed where the new key has its value; its record stays as it is."""
    Run.open(tmp_path, config=CONFIG, kind="audit").close()
    now = CONFIG | {"dtype": "float32", "attack": {"steps": 50, "budgets": [0, 1, 10], "noise": "gaussian"}}
    added = {"dtype": "float32", "attack.noise": "gaussian"}
    Run.open(tmp_path, config=now, kind="audit", added=added).close()
    assert json.loads((tmp_path / "run.json").read_text())["config"] == CONFIG
    with pytest.raises(InputError, match=r'another run: dtype is "float32" there and "float16" here\. Choose'):
        Run.open(tmp_path, config=now | {"dtype": "float16"}, kind="audit", added=added)
    with pytest.raises(InputError, match="dtype is not set there"):
        Run.open(tmp_path, config=now, kind="audit")


def test_what_the_provenance_notes_counts_before_the_added_value(tmp_path: Path) -> None:
    Run.open(tmp_path, config={"dtype": "auto"}, kind="x", provenance={"dtype": "torch.float16"}).close()
    with pytest.raises(InputError, match='dtype is "float16" there and "float32" here'):
        Run.open(tmp_path, config={"dtype": "float32"}, kind="x", added={"dtype": "float32"})
    Run.open(tmp_path, config={"dtype": "float16"}, kind="x", added={"dtype": "float16"}).close()


def test_an_edited_record_is_refused(tmp_path: Path) -> None:
    Run.open(tmp_path, config=CONFIG, kind="audit").close()
    path = tmp_path / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"config": CONFIG | {"seed": 1}}))
    with pytest.raises(InputError, match="edited by hand"):
        Run.open(tmp_path, config=CONFIG | {"seed": 1}, kind="audit")


def test_items_in_error_are_tried_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that ends as before is not written again; one that ends otherwise supersedes its line."""
    monkeypatch.delenv("DIFFKIT_QUIET", raising=False)
    with Run.open(tmp_path, config={}, kind="x") as run:
        for key, error in (("a", "no image"), ("b", None), ("c", "no memory"), ("d", None)):
            run.write(key, {"error": error, "seconds": 1.0})
    before = (tmp_path / "journal.jsonl").read_bytes()
    path = tmp_path / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema_version": 1}))
    with Run.open(tmp_path, config={}, kind="x") as run:
        run.retry(["a", "c"], "prompts")
        assert "Retrying 2 prompts in error." in capsys.readouterr().err
        assert list(run.done) == ["b", "d"]
        run.write("a", {"error": "no image", "seconds": 2.0})
        assert (tmp_path / "journal.jsonl").read_bytes() == before
        assert json.loads(path.read_text())["schema_version"] == 1
        run.write("c", {"error": None, "seconds": 2.0})
        assert list(run.done) == ["a", "b", "c", "d"]
        with pytest.raises(ValueError, match="in the journal already"):
            run.write("c", {"error": None})
    assert (tmp_path / "journal.jsonl").read_bytes().startswith(before)
    assert json.loads(path.read_text())["schema_version"] == SCHEMA_VERSION
    with Run.open(tmp_path, config={}, kind="x") as run:
        assert {key: item["seconds"] for key, item in run.done.items()} == {"a": 1.0, "b": 1.0, "c": 2.0, "d": 1.0}
        assert list(run.done) == ["a", "b", "c", "d"]


def test_an_item_whose_retry_was_killed_is_still_in_error(tmp_path: Path) -> None:
    with Run.open(tmp_path, config={}, kind="x") as run:
        run.write("a", {"error": "no memory"})
    run = Run.open(tmp_path, config={}, kind="x")
    run.retry(["a"])
    run.close()
    with Run.open(tmp_path, config={}, kind="x") as run:
        assert run.done["a"] == {"error": "no memory"}


def test_wrong_input_leaves_no_new_run(tmp_path: Path) -> None:
    """Nothing that was there is touched, and a run in which something was finished or kept stays."""
    (tmp_path / "there").mkdir()
    for out in (tmp_path / "runs" / "new", tmp_path / "there"):
        with pytest.raises(InputError), Run.open(out, config={"copies": "tilde"}, kind="x") as run:
            run.path("checkpoints").mkdir()
            raise InputError("no such copies")
        Run.open(out, config={"copies": "tiled"}, kind="x").close()
    shutil.rmtree(tmp_path / "runs")
    for kept in ("write", "save"):
        out = tmp_path / "runs" / kept
        with pytest.raises(InputError), Run.open(out, config={}, kind="x") as run:
            run.write("a", {}) if kept == "write" else run.write_text("stages/0.txt", "done")
            raise InputError("no such picture")
        with pytest.raises(InputError), Run.open(out, config={}, kind="x"):
            raise InputError("not again")
        assert (out / "run.json").is_file()
    with pytest.raises(ValueError, match="a bug"), Run.open(tmp_path / "bug", config={}, kind="x"):
        raise ValueError("a bug")
    assert (tmp_path / "bug" / "run.json").is_file()


def test_differing_keys_of_equal_configurations() -> None:
    assert differing_keys(CONFIG, json.loads(json.dumps(CONFIG))) == []
    assert differing_keys({"a": {}}, {"a": None}) == ["a is {} there and null here"]


def test_a_second_writer_is_refused_and_a_released_lock_is_free(tmp_path: Path) -> None:
    first = Run.open(tmp_path, config=CONFIG, kind="audit")
    with pytest.raises(InputError, match=r"Another process \(pid \d+\)"):
        Run.open(tmp_path, config=CONFIG, kind="audit")
    first.close()
    Run.open(tmp_path, config=CONFIG, kind="audit").close()


def test_a_refused_run_leaves_no_lock_behind(tmp_path: Path) -> None:
    Run.open(tmp_path, config=CONFIG, kind="audit").close()
    with pytest.raises(InputError):
        Run.open(tmp_path, config={}, kind="audit")
    Run.open(tmp_path, config=CONFIG, kind="audit").close()


def test_newer_schema_and_foreign_folders_are_refused(tmp_path: Path) -> None:
    Run.open(tmp_path / "run", config=CONFIG, kind="audit").close()
    path = tmp_path / "run" / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema_version": SCHEMA_VERSION + 1}))
    with pytest.raises(InputError, match="newer diffkit"):
        Run.open(tmp_path / "run", config=CONFIG, kind="audit")
    path.write_text("{}")
    with pytest.raises(InputError, match="no schema_version"):
        Run.open(tmp_path / "run", config=CONFIG, kind="audit")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "holiday.jpg").write_bytes(b"")
    with pytest.raises(InputError, match="holiday.jpg"):
        Run.open(tmp_path / "photos", config=CONFIG, kind="audit")
    with pytest.raises(InputError, match="is a file"):
        Run.open(path, config=CONFIG, kind="audit")
    assert [p.name for p in (tmp_path / "photos").iterdir()] == ["holiday.jpg"]


def test_keys_are_unique_and_numbers_finite(tmp_path: Path) -> None:
    with Run.open(tmp_path, config={}, kind="x") as run:
        run.write("a", {})
        with pytest.raises(ValueError, match="in the journal already"):
            run.write("a", {})
        with pytest.raises(ValueError, match="not JSON compliant"):
            run.write("b", {"score": float("nan")})
        with pytest.raises(ValueError, match="leads out"):
            run.write_text("../outside.txt", "")
        run.write("c", {})
        assert list(run.done) == ["a", "c"]


def test_images_come_back_and_never_collide(tmp_path: Path) -> None:
    with Run.open(tmp_path, config={}, kind="x") as run:
        red = run.save_image("a/b", torch.tensor([1.0, 0.0, 0.0])[:, None, None].expand(3, 4, 5))
        green = run.save_image("a-b", Image.new("RGB", (5, 4), (0, 255, 0)))
        assert red != green
        assert Image.open(tmp_path / red).getpixel((4, 3)) == (255, 0, 0)
        assert Image.open(tmp_path / green).getpixel((0, 0)) == (0, 255, 0)
        assert (tmp_path / red).parent == tmp_path / "images"


def test_ctrl_c_leaves_as_interrupted_with_the_folder(tmp_path: Path) -> None:
    with pytest.raises(Interrupted) as stop, Run.open(tmp_path, config={}, kind="x") as run:
        run.write("a", {})
        raise KeyboardInterrupt
    assert stop.value.folder == tmp_path
    assert json.loads((tmp_path / "run.json").read_text())["finished"] is None


def test_killed_at_random_moments_nothing_is_lost_or_done_twice(tmp_path: Path) -> None:
    moments = random.Random(7)
    announced: list[str] = []
    for _ in range(6):
        with subprocess.Popen([sys.executable, "-c", WORKER, str(tmp_path / "run")], stdout=subprocess.PIPE) as worker:
            assert worker.stdout is not None
            announced += [line.decode().strip() for _ in range(4) if (line := worker.stdout.readline())]
            time.sleep(moments.uniform(0, 0.01))
            worker.send_signal(signal.SIGKILL)
            announced += [line.decode().strip() for line in worker.stdout if line.endswith(b"\n")]
    last = subprocess.run([sys.executable, "-c", WORKER, str(tmp_path / "run")], capture_output=True, check=True)
    announced += last.stdout.decode().split()
    assert len(announced) == len(set(announced))
    with Run.open(tmp_path / "run", config={"n": 40}, kind="test") as run:
        assert sorted(run.done) == sorted(f"item-{number}" for number in range(40))
        assert all(item["value"] == int(key.split("-")[1]) ** 2 for key, item in run.done.items())
        for number in range(40):
            assert Image.open(run.folder / "images" / f"item-{number}.png").getpixel((63, 63)) == (number, 0, 0)
