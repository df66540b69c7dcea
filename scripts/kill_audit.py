"""Kill an audit with SIGKILL at random moments, resume it each time, and compare with an undisturbed run.

    python scripts/kill_audit.py                 # 20 kills on the lab
    python scripts/kill_audit.py --model FOLDER --kills 5

After every kill the journal must hold every key that it held before, each once. Whenever a resumed run gets to its
end, its summary.json, its journal's content and its pictures must be the undisturbed run's, byte for byte, and the
remaining kills fall on a fresh run. Prints one JSON object; exits with 1 on any difference.
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
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SMALL = [
    *("--budgets", "0,1,2", "--generations", "2", "--attack-generations", "1", "--steps", "4"),
    *("--limit", "6", "--limit-controls", "4", "--batch", "2", "--micro-batch", "4"),
]


def command(model: str, out: Path) -> list[str]:
    """The audit to disturb: 10 items in groups of 2."""
    return [sys.executable, "-m", "diffkit", "audit", "--model", model, "--out", str(out), *SMALL]


def finished_keys(folder: Path) -> list[str]:
    """Keys of the whole lines of a journal; a torn tail does not count."""
    path = folder / "journal.jsonl"
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return [json.loads(line)["key"] for line in lines]


def contents(folder: Path) -> dict[str, bytes]:
    """What two equal runs share: summary, journal and pictures (run.json and the report hold times)."""
    files = [folder / "summary.json", folder / "journal.jsonl", *sorted((folder / "images").glob("*.png"))]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def run_undisturbed(model: str, out: Path) -> float:
    """Run to the end; returns seconds."""
    began = time.monotonic()
    done = subprocess.run(command(model, out), cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"the undisturbed audit failed with {done.returncode}:\n{done.stderr}")
    return time.monotonic() - began


def run_until(model: str, out: Path, seconds: float) -> bool:
    """Run, and kill after so many seconds; returns whether it was killed."""
    with subprocess.Popen(command(model, out), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        try:
            _, errors = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.communicate()
            return True
    if process.returncode:
        sys.exit(f"a resumed audit failed with {process.returncode}:\n{errors.decode()}")
    return False


def differences(before: list[str], folder: Path) -> list[str]:
    """What a kill did to the journal."""
    keys = finished_keys(folder)
    found = [f"{key} was lost" for key in before if key not in keys]
    return found + [f"{key} is there twice" for key in sorted(set(keys)) if keys.count(key) > 1]


def main() -> None:
    """Parse the arguments, disturb, compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="lab")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    chance = random.Random(options.seed)
    with tempfile.TemporaryDirectory(prefix="kill-audit-") as scratch:
        base = Path(scratch)
        duration = run_undisturbed(options.model, base / "undisturbed")
        expected = contents(base / "undisturbed")
        wrong: list[str] = []
        kills, runs, moments = 0, 0, []
        folder, keys = base / "run-0", list[str]()
        while True:
            more = kills < options.kills
            wait = chance.uniform(0.1, 1.0) * duration if more else 20 * duration + 60
            killed = run_until(options.model, folder, wait)
            wrong += differences(keys, folder)
            keys = finished_keys(folder)
            if killed:
                kills += 1
                moments.append({"second": round(wait, 1), "finished": len(keys)})
                continue
            result = contents(folder)
            wrong += [
                f"{name} differs" for name in expected.keys() | result.keys() if expected.get(name) != result.get(name)
            ]
            runs += 1
            if not more:
                break
            folder, keys = base / f"run-{runs}", []
    report = {"kills": kills, "resumed_runs_compared": runs, "seconds_undisturbed": round(duration, 1)}
    print(json.dumps(report | {"moments": moments, "differences": wrong}, indent=2))
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
