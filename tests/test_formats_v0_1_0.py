"""What 0.1.0 wrote is opened, resumed, applied and reported as it was; see tests/data/v0_1_0/README.md."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from diffkit.cli import main

DATA = Path(__file__).parent / "data" / "v0_1_0"

#: Floats that this machine computes anew: another processor, another library, another order of sums.
TOLERANCE = 1e-3
#: Fields that a resumed run does not share with an undisturbed one: clocks ("s" is a price in seconds), and the
#: checksum of weights that hold floats computed anew; a shard's own "sha256" likewise.
VOLATILE = {"seconds", "s", "weights_sha256"}
#: Keys that later versions write beside those of 0.1.0: what a simulation's calls cost, checksums of an item's files,
#: p-values, the verdict that a triage gives, how many attacks ended early, and a setting of NeMo.
ADDED = {
    "costs", "sha256", "tail_p", "bulk_p", "evidence", "caption_tail_p", "caption_q", "null", "power", "not attacked",
    "stopped", "most_shared",
}  # fmt: skip
#: Fields of an audit's summary that a resumed run does not share with one of 0.1.0: the version of the rules, and what
#: depends on how many suspects are put before the reference model: since then only those that it could acquit.
ORDER = {"schema_version", "reference", "reference_caption", "cost"}
#: Finished runs of which opening computes some floats anew: an audit's and a study's operating point, the ordinary
#: values that a mask leaves behind, a distilled reward's calibration. The files of all others stay to the byte.
ANEW = {"audit", "audit-wide", "audit-compare", "locality", "nemo", "wanda", "distilled"}
#: How many pictures a run's report shows; one without a report is not here.
REPORTS = {"audit": 12, "audit-wide": 9, "audit-compare": 10, "locality": 0, "compare": 4}


class Change(NamedTuple):
    """Another setting for a run: what is added to its command, and the key that the refusal names."""

    options: tuple[str, ...]
    key: str


SEED = Change(("--seed", "1"), "seed is 0 there and 1 here")
#: None: another run of its kind is refused already, and each refusal loads a model.
CHANGES: dict[str, Change | None] = {
    "audit": Change(("--steps", "3"), "settings.num_inference_steps is 2 there and 3 here"),
    "audit-wide": None,
    "audit-compare": Change(("--names", "before,later"), "audits.later"),
    "detect": SEED,
    "nemo": Change(("--set", "seeds=3"), "settings.seeds is 2 there and 3 here"),
    "wanda": Change(("--set", "fill=zero"), "settings.fill"),
    "delta": Change(("--set", "updates=5"), "settings.updates is 4 there and 5 here"),
    "lora": None,
    "prompt-guard": Change(("--set", "iterations=3"), "settings.iterations is 2 there and 3 here"),
    "attention-guard": Change(("--set", "factor=1.5"), "settings.factor is 1.25 there and 1.5 here"),
    "locality": Change(("--lines", "2"), "settings.lines is 1 there and 2 here"),
    "collect": None,
    "scores": Change(("--rewards", "lab"), "rewards.lab-noise-aware"),
    "distilled": SEED,
    "generate": Change(("--guidance", "2"), "guidance is 3.0 there and 2.0 here"),
    "compare": SEED,
}
HALVES = sorted(path.name.removesuffix("-half") for path in DATA.glob("*-half"))
APPLIED = {
    "nemo": "lab", "wanda": "lab", "prompt-guard": "lab", "attention-guard": "lab", "delta": "tiny", "lora": "tiny",
}  # fmt: skip

Command = Callable[..., str]


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Command]:
    """The command line in a copy of the fixtures; gives stdout, or stderr where it fails."""
    shutil.copytree(DATA, tmp_path / "v0_1_0")
    monkeypatch.chdir(tmp_path / "v0_1_0")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)

    def run(*arguments: str, code: int = 0) -> str:
        monkeypatch.setattr(sys, "argv", ["diffkit", *arguments])
        capfd.readouterr()
        with pytest.raises(SystemExit) as end:
            main()
        out, err = capfd.readouterr()
        assert (end.value.code or 0) == code, err
        return " ".join(err.split()) if code else out

    yield run
    torch.set_num_threads(threads)


def test_every_run_has_a_test() -> None:
    runs = {path.parent.name for path in DATA.glob("*/run.json")}
    assert runs == {*CHANGES, *(f"{name}-half" for name in HALVES)}


@pytest.mark.parametrize("name", CHANGES)
def test_a_finished_run_is_opened_again(command: Command, name: str) -> None:
    folder, before = Path(name), contents(Path(name))
    command(*arguments(folder))
    after = contents(folder)
    assert after["journal.jsonl"] == before["journal.jsonl"]
    for file in before.keys() - {"run.json"}:
        if name in ANEW:
            assert_same_file(DATA / name / file, folder / file)
        else:
            assert after[file] == before[file], file
    for field in ("schema_version", "kind", "config", "config_hash", "started"):  # not provenance, sessions, finished
        assert record(folder)[field] == record(DATA / name)[field]
    assert [session["argv"] for session in record(folder)["sessions"]] == [["diffkit", *arguments(folder)]] * 2
    assert_reported(folder, name)
    if (change := CHANGES[name]) is not None:
        assert change.key in command(*arguments(folder), *change.options, code=2)
        assert contents(folder) == after


@pytest.mark.parametrize("name", HALVES)
def test_a_killed_run_goes_on(command: Command, name: str) -> None:
    folder, journal = Path(f"{name}-half"), Path(f"{name}-half/journal.jsonl")
    kept = whole_lines(journal)
    command(*arguments(folder))
    assert journal.read_bytes().startswith(kept)
    assert_same_lines(DATA / name / "journal.jsonl", journal)
    for file in contents(DATA / name).keys() - {"run.json", "journal.jsonl"}:
        assert_same_file(DATA / name / file, folder / file)
    assert_reported(folder, name)


@pytest.mark.parametrize("name", APPLIED)
def test_a_mitigation_is_applied(command: Command, name: str) -> None:
    """The scores of a caption on the mitigated model, all computed anew, are 0.1.0's; so is the run's identity."""
    folder, plain = Path("applied") / name, Path("applied") / APPLIED[name]
    for file in ("journal.jsonl", "summary.json"):
        (folder / file).unlink()
    command(*arguments(folder))
    assert_same_lines(DATA / folder / "journal.jsonl", folder / "journal.jsonl")
    assert_same_file(DATA / folder / "summary.json", folder / "summary.json")
    with pytest.raises(AssertionError):  # the model without it has other scores
        assert_same_lines(plain / "journal.jsonl", folder / "journal.jsonl")


def test_a_distilled_reward_scores_as_it_did(command: Command) -> None:
    command("ttsnap", "rescore", "collect", "--reward", "distilled/model", "--out", "again.npz")
    with np.load(DATA / "rescored.npz") as before, np.load("again.npz") as after:
        assert list(after) == list(before)
        for name in before:
            assert_same_array(before[name], after[name])


def test_a_schedule_is_replayed(command: Command) -> None:
    options = ["--key", "lab-noise-aware", "--budgets", "2x:4x:2x", "--resamples", "1", "--format", "json"]
    shown = command("ttsnap", "simulate", "lab", "--schedule", "schedule.json", *options)
    assert_same(json.loads((DATA / "simulated.json").read_text()), json.loads(shown))
    # Rewards that were recorded with a noise-aware judge, and their counted prices.
    options = ["--key", "lab-noise-aware", "--schedule", "1:0.5", "--resamples", "1", "--format", "json"]
    (rewards,) = json.loads(command("ttsnap", "simulate", "scores", *options))["rewards"]
    assert rewards["prompts"] == 4


def test_a_schedule_and_an_index_rule_guide_a_search(command: Command) -> None:
    options = ["--model", "tiny", "--candidates", "3", "--out", "searched", "--format", "json"]
    (item,) = json.loads(command("ttsnap", "generate", "a dog", "--schedule", "schedule.json", *options))
    schedule = json.loads(Path("schedule.json").read_text())
    assert [look["step"] for look in item["trace"]][:-1] == schedule["entries"][0]["steps"]
    options = ["--model", "tiny", "--prompts", "suspects/ordinary.txt", "--limit", "1", "--steps", "3"]
    search = ["--budget", "4x", "--searches", "index", "--index", "index.json", "--out", "indexed", "--format", "json"]
    (row,) = json.loads(command("ttsnap", "compare", *options, *search))
    assert (row["search"], row["failed"]) == ("index", 0)


def arguments(folder: Path) -> list[str]:
    """The command line that made a run."""
    first: list[str] = json.loads((DATA / folder / "run.json").read_text())["sessions"][0]["argv"]
    return first[1:]


def record(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "run.json").read_text())
    return content


def contents(folder: Path) -> dict[str, bytes]:
    """All files of a run by their path in it, but for its pictures and its unfinished searches."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    named = {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
    return {name: data for name, data in named.items() if not name.startswith(("images/", "checkpoints/"))}


def whole_lines(journal: Path) -> bytes:
    """What of a journal a resumed run may rely on: a line that a kill tore has no end."""
    data = journal.read_bytes() if journal.exists() else b""
    return data[: data.rfind(b"\n") + 1]


def assert_reported(folder: Path, name: str) -> None:
    assert (folder / "report.html").exists() == (name in REPORTS)
    if name in REPORTS:
        assert (folder / "report.html").read_text().count("data:image/png;base64,") == REPORTS[name]


def assert_same_lines(before: Path, after: Path) -> None:
    """The same items, in an order of their own; the reference model sees those that it could acquit."""
    old, new = (
        {line["key"]: line for line in map(json.loads, path.read_text().splitlines())} for path in (before, after)
    )
    assert {key for key in old.keys() - new.keys() if not key.startswith("reference:")} == set()
    assert new.keys() <= old.keys()
    for key, line in new.items():
        assert_same(old[key], line, key)


def assert_same_file(before: Path, after: Path) -> None:
    """Equal to the last byte, or equal but for floats and for VOLATILE fields."""
    if before.read_bytes() == after.read_bytes():
        return
    if before.suffix == ".json":
        text = after.read_text()
        old, new = json.loads(before.read_text()), json.loads(text)
        if "findings" in old and "operating_point" in old:
            old, new = (without_order(part) for part in (old, new))
        assert_same(old, new, before.name)
        assert text == json.dumps(json.loads(text), indent=2, ensure_ascii=False) + "\n"
    elif before.suffix == ".jsonl":
        lines = ([json.loads(line) for line in path.read_text().splitlines()] for path in (before, after))
        assert_same(*lines, before.name)
    else:
        assert before.suffix == ".safetensors", before
        old_tensors, new_tensors = load_file(before), load_file(after)
        assert list(new_tensors) == list(old_tensors)
        for name, tensor in old_tensors.items():
            assert new_tensors[name].dtype == tensor.dtype
            assert new_tensors[name].shape == tensor.shape
        assert_same_array(whole(old_tensors), whole(new_tensors))


def whole(tensors: dict[str, torch.Tensor]) -> np.ndarray[Any, Any]:
    """All values of a file, one after another: a share of four values says nothing."""
    return torch.cat([tensor.float().flatten() for tensor in tensors.values()]).numpy()


def without_order(value: Any) -> Any:
    """An audit's summary without what the order of work changes."""
    if isinstance(value, dict):
        return {name: without_order(part) for name, part in value.items() if name not in ORDER}
    return [without_order(part) for part in value] if isinstance(value, list) else value


def assert_same(before: Any, after: Any, where: str = "") -> None:
    """The same keys in the same order, the same values; floats within TOLERANCE, relative or absolute."""
    if isinstance(before, dict):
        assert [name for name in after if name not in ADDED - before.keys()] == list(before), where
        for name in before.keys() - VOLATILE - ({"sha256"} if "shard" in before else set()):
            assert_same(before[name], after[name], f"{where}.{name}")
    elif isinstance(before, list):
        assert len(after) == len(before), where
        for index, pair in enumerate(zip(before, after, strict=True)):
            assert_same(*pair, f"{where}[{index}]")
    elif isinstance(before, float):
        assert isinstance(after, float), where
        assert after == pytest.approx(before, rel=TOLERANCE, abs=TOLERANCE), where
    else:
        assert type(after) is type(before), where
        assert after == before, where


def assert_same_array(before: np.ndarray[Any, Any], after: np.ndarray[Any, Any]) -> None:
    """Adam makes whole steps of rounding where a gradient is nothing: a twentieth of weights may differ, a little."""
    assert after.shape == before.shape
    assert after.dtype == before.dtype
    if before.dtype.kind == "f":
        away = ~np.isclose(after, before, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True)
        assert away.mean() <= 0.05 if away.size else True
        assert np.allclose(after, before, rtol=0, atol=1e-2, equal_nan=True)
    else:
        assert np.array_equal(after, before)
