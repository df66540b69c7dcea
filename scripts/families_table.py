"""Write the table of families, which the code itself states, into docs/families.md.

python scripts/families_table.py            # rewrite the block between the markers
python scripts/families_table.py --check    # exit 1 when it is out of date
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from diffkit.families import FAMILIES, REFUSED_PIPELINES, Family

PAGE = Path(__file__).resolve().parents[1] / "docs" / "families.md"
HEAD = ("family", "pipeline class", "denoiser", "predicts", "schedulers", "text that is carried", "guidance", "refused")


def row(family: Family) -> tuple[str, ...]:
    """One line of the table."""
    schedulers = ", ".join(name.removesuffix("Scheduler").replace("Discrete", "") for name in family.schedulers)
    carried = ", ".join(f"`{name}`" for name in ("prompt_embeds", *family.companions))
    if family.layout != "fixed":
        carried += ", texts of their own length"
    return (
        family.name,
        f"`{family.pipeline}`",
        family.denoiser,
        family.prediction,
        schedulers,
        carried,
        family.guidance,
        family.refused,
    )


def table() -> str:
    """All families, and the pipelines that are refused by name."""
    rows = [HEAD, tuple("---" for _ in HEAD), *(row(family) for family in FAMILIES)]
    lines = ["| " + " | ".join(cells) + " |" for cells in rows]
    refused = [f"- `{name}`: {reason}." for name, reason in REFUSED_PIPELINES.items()]
    return "\n".join([*lines, "", "Refused by name:", "", *refused])


def main() -> None:
    """Rewrite or check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    before = PAGE.read_text(encoding="utf-8")
    block = table()
    after = re.sub(
        r"(<!-- families -->\n).*?(<!-- end -->)",
        lambda found: f"{found[1]}{block}\n{found[2]}",
        before,
        flags=re.DOTALL,
    )
    if check and before != after:
        sys.exit(f"{PAGE.name} is out of date: run 'python scripts/families_table.py'")
    if before != after:
        PAGE.write_text(after, encoding="utf-8")


if __name__ == "__main__":
    main()
