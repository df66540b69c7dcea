"""Few memorized images among many: which come back as `retained`, which others do, and what the order of work saves.

    python scripts/measure_many.py [--out runs/many] [--json docs/figures/many.json]

Model: the lab under the NeMo mask `lab-nemo`. Suspects: the 24 planted images and 200 that were never planted
(``unplanted_suspects.py``); controls: the lab's 30; reference: the lab's clean twin. The audit runs twice, over the
whole ladder (``--attack-all``) and in the order of work, on one thread; processor seconds are compared,
and the verdicts. Resumes where it was cut.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any

from unplanted_suspects import write_list

from diffkit.stats import rate
from memorization.auditing.result import AuditSummary

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = {
    "--budgets": "0,5,10,25", "--starts": "other", "--generations": "4", "--attack-generations": "3", "--steps": "10",
    "--batch": "8", "--controls": "lab:controls", "--reference-model": "lab-clean",
}  # fmt: skip
RUNS = {"whole ladder": ["--attack-all"], "order of work": []}


def run(*words: str) -> float:
    """Run a command of diffkit on one thread; returns its processor seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    line = [sys.executable, "-m", "diffkit", *words]
    subprocess.run(line, cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def audited(name: str, out: Path, words: list[str]) -> tuple[AuditSummary, float]:
    """One audit's summary and processor seconds, those of earlier sittings included."""
    folder, clock = out / name.replace(" ", "-"), out / f"{name.replace(' ', '-')}.seconds"
    if not (folder / "summary.json").is_file():
        given = SETTINGS | {
            "--model": "lab", "--mitigation": "lab-nemo", "--out": str(folder),
            "--suspects": str(out / "suspects" / "suspects.csv"),
        }  # fmt: skip
        spent = run("audit", *chain(*given.items()), *words)
        clock.write_text(str(spent + (float(clock.read_text()) if clock.is_file() else 0.0)))
    return json.loads((folder / "summary.json").read_text()), float(clock.read_text())


def verdicts(summary: AuditSummary) -> dict[str, str]:
    """Verdict by key."""
    return {finding["key"]: finding["verdict"] for finding in summary["findings"]}


def is_planted(key: str) -> bool:
    """Whether a suspect was planted, by its id."""
    return not key.startswith("suspect:un-")


def figures(runs: Mapping[str, tuple[AuditSummary, float]]) -> dict[str, Any]:
    """What the docs show."""
    summary, seconds = runs["order of work"]
    whole, whole_seconds = runs["whole ladder"]
    by_key, findings = verdicts(summary), {finding["key"]: finding for finding in summary["findings"]}
    threshold = summary["operating_point"]["threshold"]
    planted = [key for key in by_key if is_planted(key)]
    others = [key for key in by_key if not is_planted(key)]
    back = [key for key in planted if (findings[key]["similarity"] or 0) >= threshold]
    unlike = [(key, verdicts(whole)[key], by_key[key]) for key in by_key if verdicts(whole)[key] != by_key[key]]
    return {
        "settings": SETTINGS,
        "threshold": threshold,
        "budget": summary["budget"],
        "planted": dict(Counter(by_key[key] for key in planted)),
        "never planted": dict(Counter(by_key[key] for key in others)),
        "planted, back by the attack, retained": rate(sum(by_key[k] == "retained" for k in back), len(back)),
        "planted, retained or replicated": rate(
            sum(by_key[key] in ("retained", "replicated") for key in planted), len(planted)
        ),
        "never planted, retained or replicated": rate(
            sum(by_key[key] in ("retained", "replicated") for key in others), len(others)
        ),
        "controls flagged": summary["controls"]["flagged"],
        "retained by rank": rate(sum((findings[key]["p"] or 1) <= 0.05 / len(by_key) for key in back), len(back)),
        "unlike the whole ladder": unlike,
        "stopped": summary["cost"]["stopped"],
        "sample gradients": {"whole ladder": whole["cost"]["sample_gradients"],
                             "order of work": summary["cost"]["sample_gradients"]},
        "trigger images": {"whole ladder": whole["cost"]["trigger_images"],
                           "order of work": summary["cost"]["trigger_images"]},
        "processor seconds": {"whole ladder": round(whole_seconds), "order of work": round(seconds)},
        "ratio": round(seconds / whole_seconds, 3),
    }  # fmt: skip


def main() -> None:
    """Parse, audit twice, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/many"))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    write_list(out / "suspects")
    text = json.dumps(figures({name: audited(name, out, words) for name, words in RUNS.items()}), indent=1)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
