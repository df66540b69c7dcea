"""Distil the lab's reward by every back-end on the same trajectories, and compare on the same held-out prompts.

    python scripts/measure_backends.py runs/trajectories [--out runs/backends] [--json docs/figures/backends.json]

Every row makes as many updates in all. Resumes where it was cut.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from ttsnap.trajectories.dataset import Trajectories

ROOT = Path(__file__).resolve().parents[1]
EARLY = (2, 3, 4, 5, 6, 8)
LEVELS = "all"
UPDATES = 400
ROWS = [("conditioned", "preference"), ("conditioned", "mse"), ("full", "preference"), ("lora", "preference")]


def distil(trajectories: Path, out: Path, backend: str, loss: str) -> dict[str, Any]:
    """Run (or resume) one distillation; returns its card."""
    stages = 4 if backend == "conditioned" else len(Trajectories.open(trajectories).steps)
    line = [sys.executable, "-m", "diffkit", "ttsnap", "distill", str(trajectories), "--backend", backend]
    line += ["--loss", loss, "--levels", LEVELS, "--stages", "4", "--steps-per-stage", str(UPDATES // stages)]
    line += ["--out", str(out), "--format", "json"]
    if backend == "lora":
        line += ["--learning-rate", "0.003"]  # adapters start at nothing and need larger steps
    subprocess.run(line, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    card: dict[str, Any] = json.loads((out / "summary.json").read_text())
    return card


def row(backend: str, loss: str, card: dict[str, Any], out: Path) -> dict[str, Any]:
    """Mean tau over the early steps, before and after, the size of the weights and the time."""
    levels = [level for level in card["tau"] if level["step"] in EARLY]
    stages = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return {
        "backend": backend,
        "loss": loss,
        "tau before": float(np.mean([level["before"] for level in levels])),
        "tau after": float(np.mean([level["after"] for level in levels])),
        "by step": {
            str(level["step"]): {name: level[name] for name in ("before", "after", "gain", "gain_interval")}
            for level in card["tau"]
        },
        "prompts": card["prompts"],
        "megabytes": sum(file.stat().st_size for file in (out / "model").rglob("*.safetensors")) / 1e6,
        "seconds": sum(stage["seconds"] for stage in stages),
    }


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trajectories", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/backends"))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found = []
    for backend, loss in ROWS:
        out = options.out / f"{backend}-{loss}"
        found.append(row(backend, loss, distil(options.trajectories, out, backend, loss), out))
    text = json.dumps({"early steps": EARLY, "updates": UPDATES, "rows": found}, indent=1)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
