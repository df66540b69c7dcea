"""Write the measured figures into the README, from the lab's card and the JSON files in docs/figures.

    python scripts/readme_figures.py            # rewrite the blocks between the markers
    python scripts/readme_figures.py --check    # exit 1 when they are out of date

The files in docs/figures come from ``scripts/measure_search.py --json``, ``scripts/bench_ttsnap.py --json`` and
``scripts/measure_audit.py --json``; a block whose file is missing says that it was not measured yet.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffkit.lab.make import read_card

ROOT = Path(__file__).resolve().parents[1]
FIGURES = ROOT / "docs" / "figures"


def read(name: str) -> dict[str, Any] | None:
    """One file of figures, None when it was not made."""
    path = FIGURES / f"{name}.json"
    return json.loads(path.read_text()) if path.is_file() else None


def share(value: Mapping[str, Any], key: str = "rate") -> str:
    """A share in per cent with n and its interval."""
    return f"{100 * value[key]:.0f} % (n = {value['n']}, {100 * value['low']:.0f} to {100 * value['high']:.0f})"


def table(headers: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [headers, ["---"] * len(headers), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def lab() -> str:
    """What the card says."""
    card = read_card()
    rows = []
    for name, found in card["lab"]["replication"]["planted"].items():
        clean = card["lab-clean"]["replication"]["planted"][name]
        rows.append([name, share(found), f"{found['median']:.2f}", share(clean)])
    controls = card["lab"]["replication"]["controls"]
    rows.append(["controls, never trained", share(controls), f"{controls['median']:.2f}", "–"])
    scenes, reward = card["lab"]["scenes"], card["reward"]["accuracy on hard negatives"]
    tau = scenes["reward tau with the judge"]
    points = [
        f"single samples right by the judge: {share(scenes['single'], 'mean')}",
        f"best of 16 by the reward: {share(scenes['best of 16 by the reward'])}",
        f"the reward prefers the true caption to a hard negative: {share(reward['all'])}",
        f"its Kendall tau with the judge over 16 seeds: {tau['mean']:.2f} ({tau['low']:.2f} to {tau['high']:.2f})",
        f"{card['megabytes']:.0f} MB in all; {card['seconds per image']:.2f} s an image on two cores",
    ]
    above = card["settings"]["replicated above"]
    head = ["planted", f"replicated (correlation > {above}) by lab", "median", "by lab-clean"]
    return table(head, rows) + "\n\n" + "\n".join(f"- {point}" for point in points)


def search_row(way: Mapping[str, Any]) -> list[str]:
    """Seeds, cost, reward, accuracy and time of one way to search."""
    cost = f"{way['TFLOP a prompt']:.3f}"
    return [f"{way['seeds']:.0f}", cost, f"{way['reward']:.3f}", share(way, "right"), f"{way['seconds a prompt']:.1f}"]


def search() -> str:
    """Seed search: best-of-N against pruning, and the overhead."""
    found, bench = read("search"), read("bench_ttsnap")
    parts = []
    if found:
        head = ["way", "seeds", "TFLOP a prompt", "reward", "right by the judge", "seconds a prompt"]
        ways = {name: value for name, value in found.items() if isinstance(value, dict) and "seeds" in value}
        rows = [[name, *search_row(value)] for name, value in ways.items()]
        parts.append(table(head, rows))
    if bench:
        more = bench["pruned"]["seeds_ratio"]
        parts.append(
            f"Best-of-16 takes {bench['ratio']:.2f} times the stock pipeline's time for the same 16 images and their "
            f"scores; at the same counted cost the pruned search sees {more:.1f} times as many seeds."
        )
    return "\n\n".join(parts) or "Not measured yet."


def audit() -> str:
    """Verdicts on the lab, by kind and strength."""
    found = read("audit")
    if not found:
        return "The default audit of the lab was not measured in full yet."
    verdicts = list(found["lab: verdicts"])
    rows = [
        [name, str(row["n"]), *(str(row.get(verdict, 0)) for verdict in verdicts)]
        for name, row in found["lab: verdicts by kind and strength"].items()
    ]
    flagged, clean = found["lab: controls flagged"], found["lab-clean: replicated or retained"]
    return (
        table(["planted", "n", *verdicts], rows)
        + f"\n\nControls flagged as anything: {flagged['count']} of {flagged['n']}. On `lab-clean`, "
        + f"{clean['k']} of the same {clean['n']} images are replicated or retained."
    )


def main() -> None:
    """Rewrite or check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    path = ROOT / "README.md"
    before = after = path.read_text()
    for name, block in (("lab", lab()), ("search", search()), ("audit", audit())):
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        after = pattern.sub(lambda match, text=block: f"{match[1]}{text}\n{match[2]}", after)
    if check and before != after:
        sys.exit("README.md is out of date: run 'python scripts/readme_figures.py'")
    path.write_text(after)


if __name__ == "__main__":
    main()
