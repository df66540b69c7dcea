"""Blocks of figures about mitigations of the lab's memories, and the attacks on them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from figures_common import MISSING, of, points, read, table


def mitigations() -> str:
    """NeMo and Wanda, before and after DoRI."""
    figures = read("mitigations")
    if not figures:
        return MISSING
    rows = [["none", of(figures["before"]["captions"]), "–", "–", "–"]]
    for name in ("nemo", "wanda"):
        best = figures[f"best {name}"]
        attack = [figures.get(f"attack {name} {role}") for role in ("suspect", "control")]
        back = [from_each(part) if part else "–" for part in attack]
        for way in ("union", "per suspect"):
            row = best[way]
            cells = [of(row["replicated by caption"]), points(row["scene accuracy"]["change"])]
            rows.append([f"{name}, {way}", *cells, *(back if way == best["best as"] else ("–", "–"))])
    clean = figures["attack lab-clean suspect"]
    rows.append(["none, `lab-clean`", "–", "–", from_each(clean), "–"])
    steps = figures["attack"]["steps"]
    head = ["mitigation", "replicated by caption", "scene accuracy, points", f"DoRI at {steps}", "controls"]
    text = table(head, rows)
    sweep = [
        [
            name,
            *(
                cell
                for way in ("union", "per suspect")
                for cell in (of(row[way]["replicated by caption"]), points(row[way]["scene accuracy"]["change"]))
            ),
        ]
        for name, row in figures.items()
        if isinstance(row, dict) and "method" in row
    ]
    if sweep:
        head = ["setting", "union: by caption", "scene accuracy", "per suspect: by caption", "scene accuracy"]
        text += "\n\nOther settings of the two:\n\n" + table(head, sweep)
    return text + (
        f"\n\nSuspects: the verbatim images of full strength, {figures['seeds per caption']} seeds, medians. Union: "
        "one mask for all suspects; per suspect: each under its own. Scene accuracy: change of the share of held-out "
        "scenes that the mechanical judge calls right."
    )


def from_each(attack: Mapping[str, Any]) -> str:
    """How many came back, start by start; by the better of two where that alone was kept."""
    rows = attack.get("from each start", {"better of two": attack["brought back"]})
    return "; ".join(f"{start}: {of(row)}" for start, row in rows.items())


def locality() -> str:
    """What agrees among the triggers of one image, beside its nulls."""
    figures = read("locality")
    if not figures:
        return MISSING
    nulls = ("others", "control", "starts", "captions", "chance")
    groups = {
        "distance of triggers": figures["embeddings"]["distance"],
        "cosine of displacements": figures["embeddings"]["cosine"],
        "activations, mean distance": figures["activations"]["all"],
        **{f"weights, {name}, IoU": part["all"] for name, part in figures["weights"].items()},
    }
    rows = [[name, shown(group["same"]), *(shown(group.get(null)) for null in nulls)] for name, group in groups.items()]
    lines = {
        "trigger": "midpoint of two triggers of the image",
        "caption": "midpoint of trigger and caption",
        "start": "midpoint of trigger and another start (null)",
        "others": "midpoint to another image's trigger (null)",
        "carried": "the displacement carried to another start",
        "mean": "the mean displacement at a fresh start",
    }
    points = [
        [text, *(f"{point['k']} of {point['n']}" for point in figures["lines"][key].values())]
        for key, text in lines.items()
    ]
    starts = figures["starts"]
    text = (
        f"{figures['images']['suspects']} full-strength verbatim images and {figures['images']['controls']} "
        f"never-trained photographs, {figures['settings']['starts']} Gaussian starts each, "
        f"{figures['settings']['attack_steps']} steps: "
        f"{starts['suspect']['k']} of {starts['suspect']['n']} searches bring a memorized image back, "
        f"{starts['control']['k']} of {starts['control']['n']} a control. "
        f"Below, the {figures['images']['memorized']} images of which enough did; 95 % over images."
    )
    head = ["", "one image", "other memorized images", "controls, same starts", "the starts", "captions", "chance"]
    return "\n\n".join((text, table(head, rows), table(["point", "gives the image"], points)))


def shown(value: Mapping[str, Any] | None) -> str:
    """An estimate with its interval."""
    if not value or value["value"] is None:
        return "–"
    return f"{value['value']:.2f} ({value['low']:.2f} to {value['high']:.2f})"


def adversarial() -> str:
    """What fine-tuning against triggers leaves, by attacks it was not trained on; LoRA beside it."""
    figures = {name: read(name) for name in ("adversarial", "adversarial_lora")}
    if not figures["adversarial"]:
        return MISSING
    rows = []
    for name, label in (("adversarial", "all weights"), ("adversarial_lora", "LoRA, rank 16")):
        row = figures[name]
        if row is None:
            continue
        worst = row["attacks, full-strength verbatim, all cells together"]
        rows.append(
            [
                label,
                of(row["captions after, every seed"]),
                *(f"{of(worst[budget])}, attacks: {len(row['attacks'])}" for budget in ("50", "150")),
                points(row["scene accuracy"]["change"]),
                f"{row['quality']['drift']['relative']['mean']:.2f}",
                f"{row['training']['seconds'] / 60:.0f}",
            ]
        )
    head = ["", "captions, every seed", "attacks at 50", "attacks at 150", "scene accuracy, points", "drift", "minutes"]
    text = table(head, rows)
    full = figures["adversarial"]
    each = [
        [name.replace(", seed 0, full images", ""), *(attack_cell(cells[budget]) for budget in ("50", "150"))]
        for name, cells in (full["unmitigated"] | full["attacks"]).items()
    ]
    n = full["scene accuracy"]["change"]["n"]
    return (
        text
        + f"\n\nImages of full strength, verbatim; {n} held-out scenes. Drift: distance in latents from the image of "
        + "the same prompt and seed before, over the mean distance of two seeds. Each attack, images brought back and "
        + "the highest similarity (0.75 counts as a copy):\n\n"
        + table(["all weights, attack", "at 50 steps", "at 150 steps"], each)
    )


def attack_cell(cell: Mapping[str, Any]) -> str:
    """How many came back, and the nearest."""
    row = cell["verbatim, full"]
    return f"{row['k']} of {row['n']} (highest {row['highest']:.2f})"


def ladder() -> str:
    """Rungs of the ladder, with controls, and whether triggers hold elsewhere."""
    figures = read("ladder")
    if not figures or not figures["rungs"]:
        return MISSING
    last = {name: rows[-1] for name, rows in figures["rungs"].items()}
    budget = next(iter(last.values()))["budget"]
    rows = [
        [f"`{name}`", of(row["suspects"]), f"{row['suspects']['median']:.2f}", of(row["controls"])]
        for name, row in last.items()
    ]
    text = table(["rung, weakest first", "brought back", "median similarity", "controls"], rows)
    if figures["rates"]:
        rates = [
            [f"{float(rate):g}", *(of(row["suspects"]) for row in curve)] for rate, curve in figures["rates"].items()
        ]
        budgets = [str(row["budget"]) for row in next(iter(figures["rates"].values()))]
        text += "\n\n" + table(["DoRI, learning rate", *(f"at {b}" for b in budgets)], rates)
    if figures["long"]:
        long = [
            [str(row["budget"]), of(row["suspects"]), of(row["controls"]), f"{row['controls']['max']:.2f}"]
            for row in figures["long"]
        ]
        text += "\n\n" + table(["DoRI, steps", "brought back", "controls", "nearest control"], long)
    if figures["transfer"]:
        names = list(next(iter(figures["transfer"].values())))
        moved = [[name, *(f"{100 * rates[name]:.0f} %" for rates in figures["transfer"].values())] for name in names]
        text += "\n\n" + table(["the same triggers with", *(f"`{name}`" for name in figures["transfer"])], moved)
    return text + f"\n\nEvery search starts at an unrelated caption; {budget} steps."


BLOCKS = (mitigations, adversarial, locality, ladder)
