"""Write the tables of families and of schedulers, which the code itself states, into docs/families.md.

python scripts/families_table.py            # rewrite the blocks between the markers
python scripts/families_table.py --check    # exit 1 when they are out of date
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from diffkit.families import FAMILIES, REFUSED_PIPELINES, SEARCH_FAMILIES, Family
from diffkit.families.base import DIFFUSION, FLOW, FLOW_NOISY, stock_default
from diffkit.families.pixart_sana import SANA_SPRINT
from diffkit.scheduler_choice import SHORT_NAMES
from diffkit.solvers import SOLVERS, Solver

PAGE = Path(__file__).resolve().parents[1] / "docs" / "families.md"
HEAD = ("family", "pipeline class", "denoiser", "predicts", "schedulers", "text that is carried", "guidance", "refused")
SCHEDULERS = (
    "scheduler",
    "`--scheduler`",
    "method",
    "models",
    "calls in T steps",
    "adds noise",
    "refused settings",
)
GROUPS = {DIFFUSION: "all of diffusion", FLOW_NOISY: "all of flows", FLOW: "all of flows but FlowMatchLCM"}
NOISE = {"never": "no", "always": "yes", "eta": "with `eta`", "sde": "with `algorithm_type=sde-dpmsolver++`"}
#: PNDM repeats its second call; with a Runge-Kutta start, the first three steps take four calls each.
CALLS = {"PNDMScheduler": "T + 1; T + 9 without `skip_prk_steps`"}


def row(family: Family) -> tuple[str, ...]:
    """One line of the table."""
    each = ", ".join(short(name) for name in family.schedulers)
    schedulers = GROUPS.get(family.schedulers, each)
    carried = ", ".join(f"`{name}`" for name in ("prompt_embeds", *family.companions))
    if family.layout not in ("fixed", "layered"):
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


PICTURE_HEAD = ("family", "pipeline class", "schedulers", "pictures", "`strength`", "refused")


def picture_row(family: Family) -> tuple[str, ...]:
    """One line of the table of families that begin from a picture."""
    given = [*family.pictures, *([] if family.control is None else [family.control])]
    words = [f"`{name}`" + (" or none" if name in family.spare_pictures else "") for name in given]
    strength = stock_default(family, "strength")
    return (
        family.name,
        f"`{family.pipeline}`",
        GROUPS.get(family.schedulers, ", ".join(short(name) for name in family.schedulers)),
        ", ".join(words),
        "none" if strength is None else f"{strength}",
        family.refused,
    )


def short(name: str) -> str:
    """A scheduler's class without the words that all have."""
    return name.removesuffix("Scheduler").replace("Discrete", "")


def scheduler_row(name: str, solver: Solver) -> tuple[str, ...]:
    """One line of the table of schedulers."""
    models = (("diffusion", DIFFUSION), ("flow", FLOW_NOISY), ("TrigFlow", SANA_SPRINT.schedulers))
    kinds = [kind for kind, names in models if name in names]
    options = [option for option, (kind, settings) in SHORT_NAMES.items() if kind == name and len(settings) <= 2]
    calls = CALLS.get(name, "T" if solver.calls_per_step == 1 else "2 T - 1")
    refused = ", ".join(f"`{setting}`" for setting in solver.refused.split(", ") if setting)
    return (
        f"`{name}`",
        ", ".join(f"`{option}`" for option in options),
        solver.method,
        ", ".join(kinds),
        calls,
        NOISE[solver.noise],
        refused or "none",
    )


def scheduler_table() -> str:
    """All schedulers whose denoising can be cut."""
    return lines(SCHEDULERS, [scheduler_row(name, solver) for name, solver in SOLVERS.items()])


def lines(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A table."""
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [head, tuple("---" for _ in head), *rows])


def table() -> str:
    """The families of text alone, and the pipelines that are refused by name."""
    refused = [f"- `{name}`: {reason}." for name, reason in REFUSED_PIPELINES.items()]
    families = lines(HEAD, [row(family) for family in (*FAMILIES, *SEARCH_FAMILIES) if not family.edits])
    return "\n".join([families, "", "Refused by name:", "", *refused])


def picture_table() -> str:
    """The families that begin from a picture."""
    return lines(PICTURE_HEAD, [picture_row(family) for family in FAMILIES if family.edits])


def main() -> None:
    """Rewrite or check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    before = after = PAGE.read_text(encoding="utf-8")
    for name, block in (("families", table()), ("pictures", picture_table()), ("schedulers", scheduler_table())):
        after = re.sub(
            rf"(<!-- {name} -->\n).*?(<!-- end -->)",
            lambda found, block=block: f"{found[1]}{block}\n{found[2]}",
            after,
            flags=re.DOTALL,
        )
    if check and before != after:
        sys.exit(f"{PAGE.name} is out of date: run 'python scripts/families_table.py'")
    if before != after:
        PAGE.write_text(after, encoding="utf-8")


if __name__ == "__main__":
    main()
