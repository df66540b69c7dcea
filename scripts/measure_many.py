"""Few memorized images among many: which come back as `retained`, which others do, and what the order of work saves.

    python scripts/measure_many.py [--out runs/many] [--part 76] [--json docs/figures/many.json]

Model: the lab under the NeMo mask `lab-nemo`. Suspects: the 24 planted images and 200 that were never planted
(``unplanted_suspects.py``); controls: the lab's 30; reference: the lab's clean twin. The audit runs twice, over the
whole ladder (``--attack-all``) and in the order of work, on one thread; processor seconds are compared, and verdicts.
With ``--part`` the whole ladder ends after so many items, all of which cost the same there, and its seconds are scaled;
verdicts are then not compared. Resumes where it was cut.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import psutil
from unplanted_suspects import write_list

from diffkit.stats import rate
from memorization.auditing.result import AuditSummary

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = {
    "--budgets": "0,5,10,25", "--starts": "other", "--generations": "4", "--attack-generations": "3", "--steps": "10",
    "--batch": "8", "--controls": "lab:controls", "--reference-model": "lab-clean",
}  # fmt: skip


def run(folder: Path, *words: str, part: int | None = None) -> float:
    """Run an audit on one thread; returns its processor seconds.

    Args:
        part: the audit is ended when its journal holds so many items.
    """
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    line = [sys.executable, "-m", "diffkit", "audit", "--out", str(folder), *words]
    with subprocess.Popen(line, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL) as process:
        audit, seconds = psutil.Process(process.pid), 0.0
        while process.poll() is None and (part is None or items(folder) < part):
            time.sleep(0.2)
            with suppress(psutil.Error):
                seconds = sum(audit.cpu_times()[:2])
        process.terminate()
    if process.returncode and part is None:
        raise SystemExit(f"diffkit audit failed with {process.returncode}")
    return seconds


def items(folder: Path) -> int:
    """How many items an audit's journal holds."""
    path = folder / "journal.jsonl"
    return path.read_bytes().count(b"\n") if path.is_file() else 0


class Audited(NamedTuple):
    """An audit that was run.

    Attributes:
        summary: None where it was ended before.
        seconds: processor seconds, those of earlier sittings included.
        items: measured in them.
    """

    summary: AuditSummary | None
    seconds: float
    items: int


def audited(name: str, out: Path, words: list[str], part: int | None = None) -> Audited:
    """Run one of the audits, as far as it has not been run yet."""
    folder = out / name.replace(" ", "-")
    clock, summary = folder.with_suffix(".seconds"), folder / "summary.json"
    if not summary.is_file() and (part is None or items(folder) < part):
        given = SETTINGS | {
            "--model": "lab", "--mitigation": "lab-nemo", "--suspects": str(out / "suspects" / "suspects.csv"),
        }  # fmt: skip
        spent = run(folder, *chain(*given.items()), *words, part=part)
        clock.write_text(str(spent + (float(clock.read_text()) if clock.is_file() else 0.0)))
    ended = json.loads(summary.read_text()) if summary.is_file() else None
    return Audited(ended, float(clock.read_text()), items(folder))


def verdicts(summary: AuditSummary) -> dict[str, str]:
    """Verdict by key."""
    return {finding["key"]: finding["verdict"] for finding in summary["findings"]}


def unlike(whole: Mapping[str, str], part: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """Keys whose verdicts differ, and both verdicts."""
    return [(key, whole[key], part[key]) for key in part if whole[key] != part[key]]


def is_planted(key: str) -> bool:
    """Whether a suspect was planted, by its id."""
    return not key.startswith("suspect:un-")


def figures(order: Audited, whole: Audited) -> dict[str, Any]:
    """What the docs show."""
    summary = order.summary
    assert summary is not None, "the order of work is run to its end"
    by_key, findings = verdicts(summary), {finding["key"]: finding for finding in summary["findings"]}
    threshold = summary["operating_point"]["threshold"]
    planted = [key for key in by_key if is_planted(key)]
    others = [key for key in by_key if not is_planted(key)]
    back = [key for key in planted if (findings[key]["similarity"] or 0) >= threshold]
    all_items = 2 * (len(by_key) + summary["controls"]["total"])  # on both models
    whole_seconds = whole.seconds * all_items / whole.items
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
        "unlike the whole ladder": whole.summary and unlike(verdicts(whole.summary), by_key),
        "stopped": summary["cost"]["stopped"],
        "sample gradients": summary["cost"]["sample_gradients"],
        "trigger images": summary["cost"]["trigger_images"],
        "processor seconds": {"whole ladder": round(whole_seconds), "order of work": round(order.seconds)},
        "items of the whole ladder": [whole.items, all_items],
        "ratio": round(order.seconds / whole_seconds, 3),
        "ratio without controls on the reference": round(
            order.seconds / whole_seconds * all_items / (all_items - summary["controls"]["total"]), 3
        ),
    }  # fmt: skip


def main() -> None:
    """Parse, audit twice, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/many"))
    parser.add_argument("--part", type=int, help="items after which the whole ladder ends")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    write_list(out / "suspects")
    whole = audited("whole ladder", out, ["--attack-all"], options.part)
    text = json.dumps(figures(audited("order of work", out, []), whole), indent=1)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
