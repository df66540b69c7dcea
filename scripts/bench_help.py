"""Median wall time of `diffkit --help` over ten fresh processes, in seconds. Prints the figure; the goal is 0.5."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path

RUNS = 10


def main() -> None:
    """Time the runs one after another and print their median, best and worst."""
    root = Path(__file__).resolve().parents[1]
    seconds = []
    for _ in range(RUNS):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "diffkit", "--help"], check=True, capture_output=True, cwd=root)
        seconds.append(time.perf_counter() - start)
    print(
        f"diffkit --help: median {statistics.median(seconds):.3f} s "
        f"(best {min(seconds):.3f}, worst {max(seconds):.3f}, n = {RUNS})"
    )


if __name__ == "__main__":
    main()
