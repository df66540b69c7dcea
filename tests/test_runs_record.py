"""A run folder: resumes itself, refuses everything else, and loses nothing to a kill."""

from __future__ import annotations

import json
import random
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
