"""One, two or three processes, two nodes: the same items, survivors and files; one that dies loses nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from launch import Ended, Trouble, command, launch, launch_nodes
from tiny import tiny_pipeline
from tiny_index import book

from diffkit.images import save_png
from diffkit.lab import textures

PROMPTS = ["a dog", "cat", "at it", "do", "a cat"]
TIMES = ("seconds", "s")  # the latter: prices by the clock


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its solver carries state and draws noise at every step."""
    path = tmp_path_factory.mktemp("model")
    tiny_pipeline("dpm-sde").save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def suspects(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("audit")
    for index, image in enumerate(textures.dead_leaves(5, generator=torch.Generator().manual_seed(1))):
        save_png(image, folder / f"{index}.png")
    for name, numbers in (("suspects", range(3)), ("controls", range(3, 5))):
        rows = [{"caption": f"a dog {number}", "image": f"{number}.png"} for number in numbers]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "suspects.jsonl", folder / "controls.jsonl"


def generate(model: Path, out: Path, *more: str, prompts: list[str] = PROMPTS) -> tuple[str, ...]:
    fixed = [
        "--model",
        str(model),
        "--reward",
        "test-launch-brightness",
        "--steps",
        "5",
        "--candidates",
        "7",
        "--seed",
        "7",
    ]
    cuts = ["--schedule", "0:0.5+2,2:0.5", "--winners", "2", "--device", "cpu", "--out", str(out)]
    return ("ttsnap", "generate", *prompts, *fixed, *cuts, "--micro-batch", "1", *more)


def compare(model: Path, out: Path) -> tuple[str, ...]:
    """Two prompts at a time share one budget."""
    prompts, index = (out.parent / name for name in ("prompts.txt", "index.json"))
    prompts.write_text("\n".join(PROMPTS))
    index.write_text(book(5).to_json())
    what = ["--prompts", str(prompts), "--reward", "test-launch-brightness", "--noise-aware", "none"]
    searches = ["--searches", "best-of-n,adaptive", "--index", str(index), "--group", "2", "--budget", "3x"]
    how = ["--steps", "5", "--seed", "7", "--micro-batch", "1", "--device", "cpu", "--out", str(out)]
    return ("ttsnap", "compare", "--model", str(model), *what, *searches, *how)


def collect(model: Path, out: Path) -> tuple[str, ...]:
    (out.parent / "prompts.txt").write_text("\n".join(PROMPTS))
    what = ["--prompts", str(out.parent / "prompts.txt"), "--rewards", "test-launch-brightness", "--candidates", "2"]
    how = ["--steps", "3", "--micro-batch", "2", "--device", "cpu", "--out", str(out)]
    return ("ttsnap", "collect", "--model", str(model), *what, *how)


def audit(model: Path, suspects: tuple[Path, Path], out: Path) -> tuple[str, ...]:
    what = ["--suspects", str(suspects[0]), "--controls", str(suspects[1]), "--budgets", "0,1,2", "--starts", "other"]
    how = ["--generations", "2", "--attack-generations", "1", "--steps", "2", "--batch", "1", "--micro-batch", "2"]
    return ("audit", "--model", str(model), *what, *how, "--save-triggers", "--device", "cpu", "--out", str(out))


def detect(model: Path, suspects: tuple[Path, Path], out: Path) -> tuple[str, ...]:
    what = ["--suspects", str(suspects[0]), "--controls", str(suspects[1]), "--detectors", "noise_magnitude"]
    how = ["--seeds", "2", "--steps", "2", "--micro-batch", "2", "--device", "cpu", "--out", str(out)]
    return ("audit", "detect", "--model", str(model), *what, *how)


def fine(ended: Ended) -> None:
    assert set(ended.codes) == {0}, ended.err
    assert not any(ended.out[1:]), "only the first process tells results"


def content(folder: Path) -> dict[str, Any]:
    """All results of a run, without what the clock says; the order of the journal aside."""
    found: dict[str, Any] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        if name == "journal.jsonl":
            lines = [json.loads(line) for line in path.read_text().splitlines()]
            found |= {f"item {line['key']}": timeless(line["item"]) for line in lines}
            assert len({line["key"] for line in lines}) == len(lines)
        elif name == "summary.json":
            found[name] = timeless(json.loads(path.read_text()))
        elif name not in ("run.json", ".lock", "report.html"):
            found[name] = path.read_bytes()
    return found


def timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: timeless(inner) for key, inner in value.items() if key not in TIMES}
    return [timeless(inner) for inner in value] if isinstance(value, list) else value


@pytest.fixture(scope="module")
def alone(
    model: Path, suspects: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, Any]]:
    """What one process makes of each command."""
    folder = tmp_path_factory.mktemp("alone")
    fine(launch(1, several, str(model), [str(path) for path in suspects], str(folder), folder=folder / "logs"))
    return {name: content(folder / name) for name in ("generate", "collect", "audit", "detect")}


def several(model: str, suspects: list[str], folder: str) -> None:
    """All four commands one after the other, on as many processes as there are."""
    out, sources = Path(folder), (Path(suspects[0]), Path(suspects[1]))
    for arguments in (
        generate(Path(model), out / "generate"),
        collect(Path(model), out / "collect"),
        audit(Path(model), sources, out / "audit"),
        detect(Path(model), sources, out / "detect"),
    ):
        from typer.testing import CliRunner

        from diffkit.cli import app

        result = CliRunner().invoke(app, list(arguments))
        if result.exit_code:
            raise SystemExit(f"{arguments}: {result.stderr} {result.exception!r}")


def test_results_do_not_depend_on_the_number_of_processes(model, suspects, alone, tmp_path):
    """Of two processes: the searches, audits and runs that go on below, and test_trajectories."""
    processes = 3
    fine(launch(processes, several, str(model), [str(path) for path in suspects], str(tmp_path), folder=tmp_path / "l"))
    for name, expected in alone.items():
        found = content(tmp_path / name)
        assert list(found) == list(expected)
        for key, value in expected.items():
            assert found[key] == value, f"{name}: {key}"
    assert json.loads((tmp_path / "audit" / "run.json").read_text())["provenance"]["processes"] == processes


def test_larger_batches_leave_the_same_survivors(model, alone, tmp_path):
    more = ("--micro-batch", "3")
    for processes in (1, 3):
        out = tmp_path / str(processes)
        arguments = generate(model, out, *more, prompts=PROMPTS[:2])
        fine(launch(processes, command, *arguments, folder=tmp_path / f"logs{processes}"))
        for key in ("0000", "0001"):
            item, expected = content(out)[f"item {key}"], alone["generate"][f"item {key}"]
            assert [look["survivors"] for look in item["trace"]] == [look["survivors"] for look in expected["trace"]]
            assert [one["seed"] for one in item["winners"]] == [one["seed"] for one in expected["winners"]]
            assert item["ledger"]["calls"] == expected["ledger"]["calls"]


def searches(model: str, out: str) -> None:
    """Strategies that keep more than a schedule in mind; every process gets all."""
    from diffkit.parallel import is_first
    from ttsnap import TTSnapPipeline

    pipe = TTSnapPipeline.from_pretrained(model, reward=lambda images, prompts: images.mean((1, 2, 3)) * 10)
    pipe.set_progress_bar_config(disable=True)
    told = []
    for search in ("fk", "zero-order", "lookahead"):
        found = pipe(
            ["a dog", "cat"], num_inference_steps=5, guidance_scale=3.0, seed=7, budget="6x", search=search,
            micro_batch=1, share=True, output_type="pt",
        )  # fmt: skip
        looks = [look.to_dict() for look in found.trace]
        told.append({"images": found.images.tolist(), "looks": looks, "cost": found.ledger.cost._asdict()})
    unseeded = pipe("a dog", num_inference_steps=2, num_candidates=3, share=True, schedule="").seeds
    Path(f"{out}/{'first' if is_first() else 'other'}.json").write_text(json.dumps(told))
    Path(f"{out}/{'first' if is_first() else 'other'}-seeds").write_text(str(unseeded))


def test_searches_by_name_are_shared_too(model, tmp_path):
    for processes in (1, 2):
        (tmp_path / str(processes)).mkdir()
        fine(launch(processes, searches, str(model), str(tmp_path / str(processes)), folder=tmp_path / f"l{processes}"))
    expected = json.loads((tmp_path / "1" / "first.json").read_text())
    for who in ("first", "other"):
        assert json.loads((tmp_path / "2" / f"{who}.json").read_text()) == expected
    assert (tmp_path / "2" / "first-seeds").read_text() == (tmp_path / "2" / "other-seeds").read_text()


@pytest.mark.parametrize("kill", [True, False])
def test_a_search_that_lost_a_process_goes_on_alone(kill, model, alone, tmp_path):
    out = tmp_path / "generate"
    trouble = Trouble(1, "ttsnap.search.scorer", "score_checked", 25, kill)  # in its second prompt
    ended = launch(2, command, *generate(model, out), folder=tmp_path / "logs", trouble=trouble)
    assert ended.codes == [70, -9 if kill else 70]
    assert "Another process of this launch has ended" in ended.err[0]
    assert kill or "Process 1: RuntimeError: this process was told to fail" in ended.err[1]
    assert {key for key in content(out) if key.startswith("item")} == {"item 0000", "item 0001"}
    fine(launch(1, command, *generate(model, out), folder=tmp_path / "again"))
    assert content(out) == alone["generate"]


def test_prompts_that_share_a_budget_are_searched_again_together(model, tmp_path):
    for name in ("alone", "killed"):
        (tmp_path / name).mkdir()
    fine(launch(1, command, *compare(model, tmp_path / "alone" / "run"), folder=tmp_path / "l1"))
    line = compare(model, tmp_path / "killed" / "run")
    trouble = Trouble(0, "diffkit.runs", "Run.write", 4, kill=True)  # within the first group
    assert launch(2, command, *line, folder=tmp_path / "l2", trouble=trouble).codes[0] == -9
    done = [key for key in content(tmp_path / "killed" / "run") if key.startswith("item")]
    assert done == ["item best-of-n/000000", "item best-of-n/000001", "item adaptive/000000"]
    fine(launch(2, command, *line, folder=tmp_path / "l3"))
    assert content(tmp_path / "killed" / "run") == content(tmp_path / "alone" / "run")


def test_an_audit_that_lost_a_process_goes_on_alone(model, suspects, alone, tmp_path):
    out = tmp_path / "audit"
    trouble = Trouble(1, "memorization.auditing.measure", "Measurer._measurement", 2, kill=True)  # after the attack
    ended = launch(2, command, *audit(model, suspects, out), folder=tmp_path / "logs", trouble=trouble)
    assert ended.codes == [70, -9]
    assert "the same command goes on" in ended.err[0]
    assert sum(key.startswith("item") for key in content(out)) == 2
    assert list((out / "checkpoints").iterdir())  # the unfinished search of the lost process is there
    fine(launch(1, command, *audit(model, suspects, out), folder=tmp_path / "again"))
    assert content(out) == alone["audit"]


def test_an_audit_on_two_nodes_gives_the_same_files(model, suspects, alone, tmp_path):
    out = tmp_path / "audit"
    fine(launch_nodes(2, command, *audit(model, suspects, out), folder=tmp_path / "logs"))
    assert content(out) == alone["audit"]
    assert json.loads((out / "run.json").read_text())["provenance"]["processes"] == 2


@pytest.mark.parametrize("lost", [0, 1])
def test_an_audit_that_lost_a_node_goes_on(lost, model, suspects, alone, tmp_path):
    out = tmp_path / "audit"
    trouble = Trouble(lost, "memorization.auditing.measure", "Measurer._measurement", 2, kill=True, node=True)
    ended = launch_nodes(2, command, *audit(model, suspects, out), folder=tmp_path / "logs", trouble=trouble)
    assert ended.codes == ([-9, 1] if lost == 0 else [1, -9])
    assert "the same command goes on" in ended.err[1 - lost]
    fine(launch(1, command, *audit(model, suspects, out), folder=tmp_path / "again"))
    assert content(out) == alone["audit"]


def test_under_torchrun_a_killed_process_ends_the_run(model, alone, tmp_path):
    out = tmp_path / "generate"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    script = [str(Path(__file__).with_name("launch.py")), *generate(model, out, prompts=PROMPTS[:2])]
    root = str(Path(__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1"}
    troubled = {**environment, "LAUNCH_TROUBLE": "1"}
    ended = subprocess.run([*launcher, *script], env=troubled, capture_output=True, text=True, timeout=200)
    assert ended.returncode != 0
    assert "another of its processes ended" in ended.stderr.lower() or "Another process" in ended.stderr
    fine(launch(2, command, *generate(model, out, prompts=PROMPTS[:2]), folder=tmp_path / "again"))
    found = content(out)
    assert {"item 0000", "item 0001", "images/0001-0.png"} <= set(found)
    assert {key for key in found if found[key] != alone["generate"][key]} == {"summary.json"}  # it has fewer prompts
