"""The whole line on the lab: audit, mitigate three ways, audit again, compare; each command timed.

    python scripts/lab_line.py [--out runs/line] [--json docs/figures/line.json] [--limit 24]

The commands are those of docs/memorization.md. Resumes where it was cut; times are those of the last run of each.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
METHODS = ("nemo", "wanda", "adversarial")
AUDIT = ("--budgets", "0,10,25,50", "--detector", "noise_magnitude,anisotropy")


def commands(out: Path, extra: tuple[str, ...]) -> dict[str, list[str]]:
    """Name -> arguments of diffkit, in their order."""
    line = {"audit lab": ["audit", "--model", "lab", "--out", str(out / "lab"), *AUDIT, *extra]}
    for method in METHODS:
        mask = str(out / method)
        line[f"mitigate {method}"] = ["mitigate", method, "--model", "lab", "--out", mask]
        line[f"audit {method}"] = ["audit", "--model", "lab", "--mitigation", mask, "--out", f"{mask}-audit", *AUDIT]
        line[f"audit {method}"] += extra
    line["audit lab-clean"] = ["audit", "--model", "lab-clean", "--out", str(out / "lab-clean"), *AUDIT, *extra]
    folders = [str(out / "lab"), *(str(out / f"{method}-audit") for method in METHODS), str(out / "lab-clean")]
    names = ",".join(("lab", *METHODS, "lab-clean"))
    line["compare"] = ["audit", "compare", *folders, "--names", names, "--quality", "lab:held-out"]
    line["compare"] += ["--out", str(out / "compare"), "--format", "json"]
    return line


def main() -> None:
    """Run all, time each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/line"))
    parser.add_argument("--limit", type=int, help="only so many suspects")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    extra = () if given.limit is None else ("--limit", str(given.limit))
    seconds, comparison = {}, {}
    for name, line in commands(given.out.resolve(), extra).items():
        began = time.monotonic()
        done = subprocess.run([sys.executable, "-m", "diffkit", *line], cwd=ROOT, stdout=subprocess.PIPE, check=False)
        if done.returncode not in (0, 3):
            sys.exit(f"{name} failed with {done.returncode}")
        seconds[name] = round(time.monotonic() - began, 1)
        print(f"{name}: {seconds[name]:.0f} s", file=sys.stderr)
        if name == "compare":
            comparison = json.loads(done.stdout)
    figures = {"seconds": seconds, "minutes in all": round(sum(seconds.values()) / 60, 1), "compare": comparison}
    text = json.dumps(figures, indent=1)
    print(text)
    if given.json:
        given.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
