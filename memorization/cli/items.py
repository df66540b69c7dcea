"""Suspects and controls as the commands read them, and how much work they are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from diffkit.console import write_json, write_table

if TYPE_CHECKING:
    from memorization.auditing.settings import AuditSettings
    from memorization.items import Gathered


def gather_items(suspects: str, controls: str, *, limit: int | None, limit_controls: int | None) -> Gathered:
    """The suspects and controls of a command's options; controls may be ``none``."""
    from memorization.items import gather

    return gather(suspects, None if controls == "none" else controls, limit=limit, limit_controls=limit_controls)


def print_row_errors(gathered: Gathered, out: Path | None) -> None:
    """The first rows that could not be read, and why; all of them without a folder that has the rest."""
    from diffkit.runs.files import ROWS_IN_ERROR
    from memorization.items import say_row_errors

    errors = [*gathered.suspect_errors, *gathered.control_errors]
    say_row_errors(errors, rest=None if out is None else f"more: see {out / ROWS_IN_ERROR}")


def print_plan(plan: Mapping[str, object], format: str) -> None:
    """How much would be done, on stdout."""
    if format == "json":
        write_json(plan)
    else:
        write_table(["would be done", "count"], list(plan.items()))


def planned_work(gathered: Gathered, settings: AuditSettings, *, reference: bool) -> dict[str, int]:
    """How much would be done, by what is counted."""
    from memorization.auditing.attack_suite import build_attacks
    from memorization.items import with_companions

    items = with_companions(gathered.items, edits=settings.edits, reference=reference)
    with_image = sum(bool(item.suspect.images) for item in items)
    attacks = [attack for name in settings.attacks for attack in build_attacks(name, settings).values()]
    attempts = with_image * len(settings.starts)
    return {
        "suspects": sum(item.role == "suspect" for item in items),
        "controls": sum(item.role == "control" for item in items),
        "edited suspects": sum(item.role == "edit" for item in items),
        "controls on the reference model": sum(item.role == "reference_control" for item in items),
        "suspects on the reference model": sum(item.role == "reference" for item in items),
        "rows in error": len(gathered.suspect_errors) + len(gathered.control_errors),
        "items without an image": len(items) - with_image,
        "images from captions": len(items) * settings.generations,
        "images from triggers": attempts * len(attacks) * len(settings.budgets) * settings.attack_generations,
        "sample gradients": attempts * sum(attack.cost()[-1] for attack in attacks),
    }


def stated_power(gathered: Gathered, settings: AuditSettings) -> dict[str, float | None]:
    """What the controls can show about a single memorized image, before anything runs."""
    from memorization.auditing.p_values import power

    suspects = sum(item.role == "suspect" for item in gathered.items)
    kinds = Counter(item.suspect.kind for item in gathered.items if item.role == "control")
    shown = power(suspects * len(settings.attacks), kinds.values(), settings.alpha)
    deviations = shown["deviations"]
    return {
        "controls that one memorized image takes, by rank": shown["by_rank"],
        "deviations above the controls that it takes": None if deviations is None else round(deviations, 1),
    }
