"""Kill the line audit, mitigate, audit, compare with SIGKILL at random moments, resume it, and compare the results.

    python scripts/kill_line.py                  # 20 kills on the lab
    python scripts/kill_line.py --kills 5 --json docs/figures/kill_line.json
    python scripts/kill_line.py --line order --json docs/figures/kill_order.json  # one audit: early ends and triage

Each command is killed at random, started again with the same words until it ends, and then the next one begins. Most
kills come a moment after the journal has grown by a random number of items, inside an open run; others at any moment.
After every kill the journal must hold every key that it held before, each once. When the line has ended, results must
be those of an undisturbed line, byte for byte, and the remaining kills fall on a fresh line. Prints one JSON object,
writes it after each line; exits with 1 on any difference. A kill that comes after the end of a command is not counted.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
AUDIT = [
    *("--budgets", "0,2,4", "--generations", "2", "--attack-generations", "1", "--steps", "4"),
    *("--limit", "4", "--limit-controls", "2", "--batch", "2", "--micro-batch", "4"),
]
SETTINGS = {
    "nemo": (),
    "wanda": (),
    "adversarial": ("updates=12", "checkpoint_every=2", "retention_examples=48", "validation=8", "surrogates=1",
                    "num_inference_steps=6"),
}  # fmt: skip
#: An audit under a NeMo mask, so that captions do not give the images: attacks that end early, and a triage.
ORDER = [
    *("--mitigation", "lab-nemo", "--reference-model", "lab-clean", "--triage", "seed_agreement:0.5"),
    *("--budgets", "0,5,10,25", "--starts", "other", "--draws", "4", "--steps", "8", "--threshold", "0.6"),
    *("--generations", "2", "--attack-generations", "2", "--limit", "10", "--limit-controls", "19", "--batch", "4"),
]
#: What a run consists of but for times, pids and versions (run.json, the pages and the cards' own records of them).
COMPARED = (
    "journal.jsonl",
    "triage/journal.jsonl",
    "summary.json",
    "weights.safetensors",
    "images/*.png",
    "triggers/*.safetensors",
)


def commands(base: Path, line_name: str) -> dict[str, list[str]]:
    """Folder -> the command that fills it, in their order."""
    if line_name == "order":
        return {"order": ["audit", "--out", str(base / "order"), *ORDER]}
    line = {"lab": ["audit", "--out", str(base / "lab"), *AUDIT]}
    for method, settings in SETTINGS.items():
        chosen = [word for setting in settings for word in ("--set", setting)]
        line[method] = ["mitigate", method, "--limit", "4", "--out", str(base / method), *chosen]
        mask = ("--mitigation", str(base / method))
        line[f"{method}-audit"] = ["audit", *mask, "--out", str(base / f"{method}-audit"), *AUDIT]
    audits = [str(base / "lab"), *(str(base / f"{method}-audit") for method in SETTINGS)]
    quality = ("--quality", "lab:held-out", "--quality-limit", "4", "--quality-seeds", "1")
    line["compare"] = ["audit", "compare", *audits, *quality, "--out", str(base / "compare")]
    return line


class Moment(NamedTuple):
    """When a command is killed: so many seconds after its journal holds so many items, or after its start."""

    seconds: float
    items: int | None = None


def run(line: list[str], folder: Path, moment: Moment | None = None) -> float | None:
    """Run a command to its end, or kill it. Returns the second of the kill; None if it ended before."""
    start, began = [sys.executable, "-m", "diffkit", *line], time.monotonic()
    with (
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(start, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=errors) as process,
    ):
        while moment is not None and moment.items is not None and process.poll() is None:
            if len(finished_keys(folder)) >= moment.items:
                break
            time.sleep(0.05)
        try:
            process.wait(moment.seconds if moment is not None else None)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            return time.monotonic() - began
        if process.returncode:
            errors.seek(0)
            sys.exit(f"diffkit {' '.join(line)} failed with {process.returncode}:\n{errors.read().decode()}")
    return None


def finished_keys(folder: Path) -> list[str]:
    """Keys of the whole lines of a run's journal, of its triage's journal before it; a torn tail does not count."""
    paths = [path for path in (folder / "triage" / "journal.jsonl", folder / "journal.jsonl") if path.exists()]
    lines = [(path.parent.name, line) for path in paths for line in path.read_bytes().split(b"\n")[:-1]]
    return [f"{name} {json.loads(line)['key']}" for name, line in lines]


def contents(folder: Path) -> dict[str, bytes]:
    """What two equal runs share."""
    files = [path for pattern in COMPARED for path in sorted(folder.glob(pattern))]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def ended(files: dict[str, bytes]) -> dict[str, int]:
    """How many attacks of an audit ended early or were not begun, by reason."""
    summary = json.loads(files.get("summary.json", b"{}"))
    return dict(summary.get("cost", {}).get("stopped", {}))


class Disturber:
    """Kills commands until its kills are spent."""

    def __init__(self, kills: int, seed: int) -> None:
        self.left, self.chance = kills, random.Random(seed)
        self.moments: list[dict[str, Any]] = []
        self.wrong: list[str] = []

    def carry_out(self, line: list[str], folder: Path, duration: float, items: int) -> None:
        """Run a command to its end, killing it at random.

        Args:
            duration: its usual seconds.
            items: how many it finishes.
        """
        keys: list[str] = []
        while True:
            disturb = self.left > 0 and self.chance.random() < 0.9
            before = len(keys)
            killed = run(line, folder, self._moment(duration, before, items) if disturb else None)
            finished = finished_keys(folder)
            self.wrong += [f"{folder.name}: {key} was lost" for key in keys if key not in finished]
            self.wrong += [f"{folder.name}: {key} is there twice" for key, n in Counter(finished).items() if n > 1]
            keys = finished
            if killed is None:
                return
            self.left -= 1
            self.moments.append(
                {"command": folder.name, "second": round(killed, 1), "before": before, "finished": len(keys)}
            )

    def report(self, lines: int) -> dict[str, Any]:
        """What was done so far, and every difference."""
        return {
            "kills": len(self.moments),
            "inside an open run": sum(moment["finished"] > moment["before"] for moment in self.moments),
            "lines_compared": lines,
            "moments": self.moments,
            "differences": self.wrong,
        }

    def _moment(self, duration: float, finished: int, items: int) -> Moment:
        if finished >= items or self.chance.random() < 0.25:
            return Moment(self.chance.uniform(0.1, 1.0) * duration)
        new = 1 + int((items - finished) * self.chance.random() ** 2)
        return Moment(self.chance.uniform(0.0, 0.1) * duration, finished + new)


def main() -> None:
    """Parse the arguments, disturb, compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--line", choices=("whole", "order"), default="whole")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kill-line-") as scratch:
        durations: dict[str, float] = {}
        expected: dict[str, dict[str, bytes]] = {}
        items: dict[str, int] = {}
        for name, line in commands(Path(scratch) / "undisturbed", given.line).items():
            began, folder = time.monotonic(), Path(scratch) / "undisturbed" / name
            run(line, folder)
            durations[name] = time.monotonic() - began
            expected[name], items[name] = contents(folder), len(finished_keys(folder))
        undisturbed = {
            "files_compared": sum(len(files) for files in expected.values()),
            "seconds_undisturbed": {name: round(seconds, 1) for name, seconds in durations.items()},
            "attacks that ended early": {name: ended(expected[name]) for name in expected},
        }
        disturber, lines = Disturber(given.kills, given.seed), 0
        while disturber.left > 0 or not lines:
            base = Path(scratch) / f"line-{lines}"
            for name, line in commands(base, given.line).items():
                disturber.carry_out(line, base / name, durations[name], items[name])
                result = contents(base / name)
                names = expected[name].keys() | result.keys()
                differ = [file for file in names if expected[name].get(file) != result.get(file)]
                disturber.wrong += [f"{name}/{file} differs" for file in sorted(differ)]
            lines += 1
            text = json.dumps(disturber.report(lines) | undisturbed, indent=1)
            if given.json:
                given.json.write_text(text + "\n")
    print(text)
    sys.exit(1 if disturber.wrong else 0)


if __name__ == "__main__":
    main()
