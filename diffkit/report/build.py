"""A run's report: its page, with the record of how it was made at the end."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diffkit.report.html import Block, Facts, Section, Stat
from diffkit.report.render import render_page
from diffkit.runs import Run

__all__ = ["provenance_section", "write_report"]


def write_report(
    run: Run,
    *,
    title: str,
    sections: Sequence[Section | Block],
    subtitle: str = "",
    summary: Sequence[Stat] = (),
    name: str = "report.html",
) -> Path:
    """Write `report.html` of a run: one self-contained page that ends with configuration, versions and checksums.

    Args:
        run: an open run.
        title: heading of the page.
        sections: its parts, in order.
        subtitle: a line below the title; by default when and by which version it was made.
        summary: the figures on top.
        name: file name inside the run's folder.

    Returns:
        The path of the page.
    """
    session = run.record["sessions"][-1]
    made = f"{run.record['kind']}, {session['started']}, diffkit {session['packages']['diffkit'] or 'from source'}"
    page = render_page(
        title=title,
        subtitle=subtitle or made,
        summary=summary,
        sections=[*sections, provenance_section(run.record)],
        footer=f"{made}. Configuration {run.record['config_hash'][:16]}.",
    )
    return run.write_text(name, page)


def provenance_section(record: Mapping[str, Any]) -> Section:
    """The folded section that tells how a run was made, from the content of its run.json."""
    session = record["sessions"][-1]
    git = session["git"]
    made = {
        "Command": " ".join(session["argv"]),
        "Begun": record["started"],
        "Sessions": len(record["sessions"]),
        "Python": session["python"],
        "Platform": session["platform"],
        "Source": f"{git['commit'][:12]}{' with changes' if git['changed'] else ''}" if git else None,
        "Configuration": record["config_hash"],
    }
    return Section(
        "How this was made",
        (
            Facts(made | _shown(record["provenance"])),
            Facts({f"config.{name}": value for name, value in _shown(record["config"]).items()}),
            Facts({name: version for name, version in session["packages"].items() if version}),
        ),
        folded=True,
    )


def _shown(values: Mapping[str, Any]) -> dict[str, object]:
    return {
        name: value if isinstance(value, str) or value is None else json.dumps(value, ensure_ascii=False)
        for name, value in values.items()
    }
