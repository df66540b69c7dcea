"""An audit of 100, 1 000 and 10 000 suspects: processor seconds a suspect and peak memory, which are to stay level.

The model is a tiny pipeline with random weights, the settings are the smallest: one denoising step, one image a
caption, one attack step from one start, no detector. What is left is what the toolkit itself needs around the model:
reading, seeds, similarities, pictures, journal, near-duplicates, summary, report. Each audit has a process of its own;
audits of few suspects are repeated, and the median counts.

The start of the run is measured apart, of `diffkit audit` on a folder of the most suspects, until it begins its first
item: from the launch of the process, libraries included; begun anew, and resumed where half of the suspects are done.

    python scripts/bench_audit_scale.py [--suspects 100 1000 10000] [--only start] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import torch
from tiny import tiny_pipeline

from diffkit import cli
from diffkit.images import save_png
from diffkit.suspects import Suspect
from memorization.auditing import measure_all
from memorization.auditing.effort import Effort
from memorization.auditing.measure import Measurement, Measurer
from memorization.auditing.models import AuditedModel
from memorization.auditing.run import audit
from memorization.auditing.settings import AuditSettings
from memorization.items import AuditItem

CONTROLS, SIZE, REPEATS = 20, 64, 5
SETTINGS = AuditSettings(
    budgets=(0, 1), starts=("other",), generations=1, attack_generations=1, num_inference_steps=1, guidance_scale=1.0,
    draws=1, detectors=(), items_at_once=20, micro_batch=20, other_captions=("a cat", "a dog"),
)  # fmt: skip
LEVEL = ("seconds a suspect", "peak MiB")
STARTS = 3  # of each kind
OPTIONS = {
    "--budgets": "0,1", "--starts": "other", "--generations": "1", "--attack-generations": "1", "--steps": "1",
    "--guidance": "1", "--draws": "1", "--detector": "none", "--batch": "20", "--micro-batch": "20",
}  # fmt: skip


def main() -> None:
    """Print a row for each number of suspects, the ratios between them and the start; write them where asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--suspects", type=int, nargs="+", default=[100, 1000, 10_000])
    parser.add_argument("--only", choices=("scale", "start"), help="one of the two measurements")
    parser.add_argument("--json", type=Path, help="file for the figures; what is not measured stays in it")
    parser.add_argument("--run", type=Path, help=argparse.SUPPRESS)  # what a child process does
    parser.add_argument("--until", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.until is not None:
        begun(given.run, given.until)
    elif given.run is not None:
        print(json.dumps(audited(given.run, given.suspects[0])))
    else:
        figures = json.loads(given.json.read_text()) if given.json and given.json.exists() else {}
        if given.only != "start":
            rows = [measured(suspects) for suspects in given.suspects]
            figures |= {"picture pixels": SIZE, "controls": CONTROLS, "rows": rows}
            figures["ratios to the first row"] = ratios(rows)
        if given.only != "scale":
            figures["start"] = starts(max(given.suspects))
        print(json.dumps(figures, indent=1))
        if given.json:
            given.json.write_text(json.dumps(figures, indent=1) + "\n")


def ratios(rows: Sequence[dict[str, Any]]) -> dict[str, list[float]]:
    """Each row's figures that are to stay level, over the first row's."""
    return {name: [round(row[name] / rows[0][name], 3) for row in rows] for name in LEVEL}


def measured(suspects: int) -> dict[str, Any]:
    """The median over the repeats of one number of suspects."""
    repeats = max(1, min(REPEATS, 1000 // suspects))
    runs = []
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as folder:
            line = [sys.executable, __file__, "--run", folder, "--suspects", str(suspects)]
            runs.append(json.loads(subprocess.run(line, stdout=subprocess.PIPE, text=True, check=True).stdout))
    return {
        "suspects": suspects,
        "repeats": repeats,
        **{name: round(statistics.median(run[name] for run in runs), 5) for name in runs[0]},
    }


def starts(suspects: int) -> dict[str, Any]:
    """The start of `diffkit audit` on so many suspects: lowest, median and highest of each figure."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for role, indices in (("suspects", range(suspects)), ("controls", range(suspects, suspects + CONTROLS))):
            for suspect in pictures(folder / role, indices):
                suspect.images[0].with_suffix(".txt").write_text(suspect.caption)
        tiny_pipeline().save_pretrained(folder / "model")
        anew = []
        for _ in range(STARTS):
            shutil.rmtree(folder / "run", ignore_errors=True)
            anew.append(launched(folder, 0))
        launched(folder, CONTROLS + suspects // 2)
        resumed = [launched(folder, 0) for _ in range(STARTS)]
    figures = {"anew": spread(anew), "resumed": spread(resumed)}
    return {"suspects": suspects, "done when resumed": suspects // 2, "repeats": STARTS, **figures}


def launched(folder: Path, until: int) -> dict[str, float]:
    """Figures of one process that ends where it has measured so many items and begins the next."""
    line = [sys.executable, __file__, "--run", str(folder), "--until", str(until)]
    start = time.perf_counter()
    ended = subprocess.run(line, stdout=subprocess.PIPE, text=True, check=True)
    return {"seconds": time.perf_counter() - start, **json.loads(ended.stdout)}


def spread(runs: Sequence[dict[str, float]]) -> dict[str, list[float]]:
    """Lowest, median and highest of each figure."""
    columns = {name: sorted(run[name] for run in runs) for name in runs[0]}
    return {
        name: [round(value, 2) for value in (column[0], statistics.median(column), column[-1])]
        for name, column in columns.items()
    }


def begun(folder: Path, until: int) -> None:
    """`diffkit audit`, ended where it has measured so many items and begins the next."""
    measure, items_done = Measurer.measure, 0

    def measuring(measurer: Measurer, items: Sequence[AuditItem], effort: Effort) -> list[Measurement]:
        nonlocal items_done
        if items_done >= until:
            print(json.dumps({"processor seconds": time.process_time(), "peak MiB": peak()}), flush=True)
            os._exit(0)
        items_done += len(items)
        return measure(measurer, items, effort)

    Measurer.measure = measuring  # type: ignore[method-assign]
    folders = {f"--{name}": str(folder / name) for name in ("model", "suspects", "controls")}
    options = {**folders, **OPTIONS, "--out": str(folder / "run")}
    sys.argv = ["diffkit", "audit", *(word for option in options.items() for word in option)]
    cli.main()


def audited(folder: Path, suspects: int) -> dict[str, float]:
    """One audit; processor seconds of its parts, and peak memory over that of the libraries."""
    torch.set_num_threads(1)
    marks = Marks()
    items = pictures(folder / "pictures", range(suspects + CONTROLS))
    libraries, start = peak(), time.process_time()
    model = AuditedModel("tiny", tiny_pipeline)
    audit(model, items[:suspects], items[suspects:], out=folder / "run", settings=SETTINGS)
    end = time.process_time()
    return {
        "seconds before the first item": marks.first - start,
        "seconds a suspect": (marks.last - marks.suspects) / suspects,
        "seconds after the last item": end - marks.last,
        "seconds in all": end - start,
        "peak MiB": peak(),
        "peak MiB before": libraries,
    }


class Marks:
    """When the first item and the first suspect were begun, and the last item was written; processor seconds."""

    def __init__(self) -> None:
        self.first = self.suspects = self.last = 0.0
        measure, keep = Measurer.measure, measure_all._keep

        def measuring(measurer: Measurer, items: Sequence[AuditItem], effort: Effort) -> list[Measurement]:
            now = time.process_time()
            self.first = self.first or now
            if items[0].role == "suspect":
                self.suspects = self.suspects or now
            return measure(measurer, items, effort)

        def keeping(*given: Any, **options: Any) -> None:
            keep(*given, **options)
            self.last = time.process_time()

        Measurer.measure = measuring  # type: ignore[method-assign]
        measure_all._keep = keeping


def pictures(folder: Path, indices: Iterable[int]) -> list[Suspect]:
    """Different pictures and captions."""
    items = []
    for index in indices:
        coarse = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(index))
        image = torch.nn.functional.interpolate(coarse, size=SIZE, mode="bilinear")[0]
        path = folder / f"{index:05d}.png"
        save_png(image, path)
        items.append(Suspect(path.stem, f"a dog number {index}", (path,)))
    return items


def peak() -> float:
    """Peak resident memory in MiB; getrusage would count that of the parent before it became this process."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024


if __name__ == "__main__":
    main()
