"""Writing and opening the report of an audit: seconds, memory, bytes, and the time until a browser has loaded it.

Each audit is synthetic: records with random similarities through the journal, pictures of 512 pixels from a pool. The
report is written in a process of its own; chromium, if it is installed, opens it from the disk.

    python scripts/bench_audit_report.py [--items 100 1000 10000] [--json docs/figures/bench_audit_report.json]
"""

from __future__ import annotations

import argparse
import html
import json
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from synthetic_audit import open_run, write_items, write_report

SIZE, POOL = 512, 16  # pixels of a picture, pictures
LOADS = 5
MEBIBYTE = 2**20
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update",
)  # fmt: skip
TIMER = """<pre id="milliseconds"></pre><script>
addEventListener("load", () => { document.getElementById("milliseconds").textContent = performance.now(); });
</script>"""


def main() -> None:
    """Print a row for each number of items, and write the rows where asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=int, nargs="+", default=[100, 1000, 10_000], help="suspects and controls")
    parser.add_argument("--json", type=Path, help="file for the rows")
    parser.add_argument("--write", type=Path, help=argparse.SUPPRESS)  # what the child process does
    given = parser.parse_args()
    if given.write is not None:
        print(json.dumps(written(given.write)))
        return
    rows = []
    for items in given.items:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(measured(Path(folder) / "run", items))
        print(json.dumps(rows[-1]), flush=True)
    if given.json:
        given.json.write_text(json.dumps({"picture pixels": SIZE, "pictures": POOL, "rows": rows}, indent=1) + "\n")


def measured(folder: Path, items: int) -> dict[str, Any]:
    """One audit: made, reported by a child process, opened by the browser."""
    controls = max(30, items // 100)
    with open_run(folder) as run:
        write_items(run, suspects=items - controls, controls=controls, size=SIZE, pool=POOL)
    line = [sys.executable, __file__, "--write", str(folder)]
    row = {"items": items, **json.loads(subprocess.run(line, stdout=subprocess.PIPE, text=True, check=True).stdout)}
    row["report.html, MiB"] = round((folder / "report.html").stat().st_size / MEBIBYTE, 2)
    row["pages"] = len(list(folder.glob("report/*.html")))
    row["summary.json, MiB"] = round((folder / "summary.json").stat().st_size / MEBIBYTE, 2)
    for name, page in {
        "report.html": "report.html",
        "a page": "report/suspects-001.html",
        "search": "report/search.html",
    }.items():
        if (folder / page).is_file():
            row[f"seconds to load {name}"] = loaded(folder / page)
    return row


def written(folder: Path) -> dict[str, Any]:
    """Write the report of a run; seconds, and peak memory over that of the libraries and the journal."""
    with open_run(folder) as run:
        before, start = _peak(), time.perf_counter()
        write_report(run)
        seconds = time.perf_counter() - start
    return {"seconds": round(seconds, 2), "peak MiB": round(_peak()), "peak MiB before": round(before)}


def _peak() -> float:
    """Peak resident memory in MiB; getrusage would count that of the parent before it became this process."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024


def loaded(page: Path) -> dict[str, Any] | None:
    """Seconds from the start of the navigation to the load event; None without a browser.

    The page is measured as a copy whose policy allows the timer's script.
    """
    browser = next(
        (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
    )
    if browser is None:
        return None
    text = page.read_text(encoding="utf-8")
    copy = page.with_name("timed.html")
    copy.write_text(
        re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text, count=1) + TIMER, encoding="utf-8"
    )
    seconds = []
    for _ in range(LOADS):
        with tempfile.TemporaryDirectory() as profile:
            command = [browser, *FLAGS, f"--user-data-dir={profile}", "--dump-dom", copy.as_uri()]
            shown = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True).stdout
        found = re.search(r'<pre id="milliseconds">([\d.]+)</pre>', html.unescape(shown))
        if found is None:
            raise RuntimeError(f"{browser} did not load {page}")
        seconds.append(round(float(found[1]) / 1000, 3))
    copy.unlink()
    return {"median": statistics.median(seconds), "highest": max(seconds), "loads": LOADS}


if __name__ == "__main__":
    main()
