"""Write the measured figures into README and docs, from the lab's card and the JSON files in docs/figures.

    python scripts/readme_figures.py            # rewrite the blocks between the markers
    python scripts/readme_figures.py --check    # exit 1 when they are out of date

The files in docs/figures come from the scripts of the same names with ``--json`` (``measure_search`` and so on), from
``bench_wall_clock`` (``wall_clock``), ``bench_simulate`` (``tensors``), ``bench_families`` (``families``, of several
runs) and ``lab_search``. A block whose file is missing says that it was not measured yet.
"""

from __future__ import annotations

import argparse
import re
import sys

import figures_evidence
import figures_families
import figures_few_steps
import figures_gallery
import figures_memorization
import figures_mitigation
import figures_pruning
import figures_rewards
import figures_ttsnap
from figures_common import ROOT

PAGES = (
    ROOT / "README.md",
    *(ROOT / "docs" / f"{name}.md" for name in ("families", "lab", "memorization", "rewards", "ttsnap")),
)


def main() -> None:
    """Rewrite or check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    modules = (
        figures_memorization,
        figures_mitigation,
        figures_gallery,
        figures_pruning,
        figures_evidence,
        figures_families,
        figures_few_steps,
        figures_rewards,
        figures_ttsnap,
    )
    blocks = {block.__name__: block() for module in modules for block in module.BLOCKS}
    for path in PAGES:
        before = after = path.read_text()
        for name, block in blocks.items():
            pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
            after = pattern.sub(lambda match, text=block: f"{match[1]}{text}\n{match[2]}", after)
        if check and before != after:
            sys.exit(f"{path.name} is out of date: run 'python scripts/readme_figures.py'")
        if before != after:
            path.write_text(after)


if __name__ == "__main__":
    main()
