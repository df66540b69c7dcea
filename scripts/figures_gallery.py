"""Blocks of figures about the gallery: what it holds, and published findings measured again on it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from figures_common import MISSING, counted, gain, read, share, table

from diffkit.lab.assets import card_path
from diffkit.lab.gallery.plan import WEIGHTS, entries
from diffkit.lab.gallery.train import PLANTING_STEPS, PLANTS

UNMEASURED = "not measured"
METHODS = {
    "nemo": "NeMo, each suspect's own neurons",
    "nemo-together": "NeMo, the neurons that most share",
    "wanda": "Wanda",
    "adversarial": "adversarial fine-tuning",
    "prompt-guard": "prompt guard",
    "attention-guard": "attention guard",
    "attention-guard factor 2": "attention guard, factor 2",
    "attention-guard factor 4": "attention guard, factor 4",
}
GUARDS = ("prompt-guard", "attention-guard")  # what their names begin with; an attack leaves them out
EFFECTS = ("its caption gives it", "DoRI from there", "DoRI from elsewhere", "never-trained pictures, by DoRI")


def gallery() -> str:
    """What the card says."""
    card = json.loads(card_path("gallery").read_text())
    clean = card["gallery-clean"]["replication"]
    rows = [
        [name, share(row), f"{row['median']:.2f}", share(clean[name])]
        for name, row in card["gallery"]["replication"].items()
    ]
    head = ["planted", f"correlation > {card['replicated above']} by gallery", "median", "by gallery-clean"]
    drawn = PLANTING_STEPS * PLANTS / sum(entry.weight for entry in entries("verbatim", "template"))
    times = {entry.strength: round(drawn * entry.weight, -2) for entry in entries("verbatim")}
    text = ", ".join(f"{strength} some {number:,.0f} times" for strength, number in times.items())
    return f"{table(head, rows)}\n\nA verbatim picture is drawn in training: {text}."


def replication() -> str:
    """Published findings, theirs and ours."""
    content = read("replication")
    if not content:
        return MISSING
    measures = content["measures"]
    rows = [*_detector_rows(measures), *_caption_rows(measures), *_dori_rows(measures)]
    return table(["finding", "published (Stable Diffusion 1.4)", "gallery"], rows)


def _detector_rows(measures: Mapping[str, Any]) -> list[list[str]]:
    published = {
        "noise_magnitude:steps=1": ("noise magnitude, one step", "AUC 0.976, TPR 0.90"),
        "noise_magnitude": ("noise magnitude, all steps", "AUC 0.994, TPR 0.98"),
        "anisotropy": ("anisotropy", "AUC 0.99"),
        "sharpness": ("sharpness", "–"),
        "attention_entropy": ("attention entropy", "weak"),
        "bright_ending": ("bright ending", "AUC up to 0.997"),
    }
    rows = [[name, theirs, _detector(measures, key)] for key, (name, theirs) in published.items()]
    four = [
        "sharpness, 4 seeds as published, not 2",
        "AUC 0.998",
        _detector(measures, "sharpness", "sharpness of 4 seeds"),
    ]
    return [*rows[:4], four, *rows[4:]]


def _detector(measures: Mapping[str, Any], key: str, measure: str = "detectors") -> str:
    row = measures.get(measure, {}).get(key)
    if row is None or "auc" not in row:
        return row["could not be scored"] if row else UNMEASURED
    return (
        f"AUC {row['auc']:.3f} (n = {row['n'][0]} and {row['n'][1]}); on the half that set no threshold: AUC "
        f"{row['auc on the other half']:.3f}, found {counted(row['found on the other half'])} at "
        f"{counted(row['false alarms there'])} false alarms"
    )


def _caption_rows(measures: Mapping[str, Any]) -> list[list[str]]:
    published = {"nemo": "0.20", "nemo-together": "–", "wanda": "0.00", "adversarial": "–"}
    rows = [["captions before", "0.98", _share(measures.get("captions", {}).get("suspects"))]]
    return rows + [
        [f"captions under {METHODS[name]}", theirs, _share(measures.get(name, {}).get("captions"))]
        for name, theirs in published.items()
    ]


def _dori_rows(measures: Mapping[str, Any]) -> list[list[str]]:
    published = {
        "dori under nemo": (f"DoRI, 50 steps, under {METHODS['nemo']}", "–"),
        "dori from the caption under nemo": ("the same, from the caption", "0.99"),
        "dori under nemo-together": (f"DoRI, 50 steps, under {METHODS['nemo-together']}", "–"),
        "dori under wanda": ("DoRI, 50 steps, under Wanda", "–"),
        "dori from the caption under wanda": ("the same, from the caption", "0.72"),
        "dori under adversarial": ("DoRI, 50 steps, after adversarial fine-tuning", "–"),
        "dori from the caption under adversarial": ("the same, from the caption", "0.02"),
        "dori": ("DoRI, 50 steps, no mitigation", "–"),
        "dori on the twin": ("DoRI, 50 steps, on the twin that never saw them", "–"),
        "never trained": ("DoRI, 50 steps, never-trained pictures", "none (SSCD 0.48)"),
    }
    rows = [[name, theirs, _attacked(measures, key, "50")] for key, (name, theirs) in published.items()]
    for budget, theirs in (("150", "SSCD 0.65"), ("500", "they replicate")):
        rows.append([f"the same, {budget} steps", theirs, _attacked(measures, "never trained long", budget)])
    return rows


def _attacked(measures: Mapping[str, Any], key: str, budget: str) -> str:
    row = measures.get(key, {}).get(budget)
    if row is None:
        return UNMEASURED
    text = f"{counted(row)}, similarity {row['median']:.2f}"
    early = measures[key].get("10") if budget == "50" else None
    return f"{text}; {early['count']} after 10 steps" if early else text


def _share(row: Mapping[str, Any] | None) -> str:
    return UNMEASURED if row is None else counted(row)


def gallery_mitigations() -> str:
    """Every mitigation of all suspects: captions, DoRI, and what it costs."""
    content = read("replication")
    if not content:
        return MISSING
    measures = content["measures"]
    rows = [["none", *_effects(measures, ""), "–", "–"]]
    for name, title in METHODS.items():
        if name in measures:
            quality = measures[name]["quality"]
            costs = [quality["loss"]["all"]["change"], quality["fidelity"]["change"]["kid"]]
            captions, *attacks = _effects(measures, f" under {name}")
            attacks = ["–"] * len(attacks) if name.startswith(GUARDS) else attacks
            rows.append([title, captions, *attacks, *(gain(cost, 4) for cost in costs)])
    heads = ["mitigation", *EFFECTS, "loss on ordinary pictures", "KID of ordinary captions"]
    text = table(heads, rows)
    if "nemo" in measures:
        nemo = measures["nemo"]["figures"]
        text += (
            f"\n\nNeMo switches off {nemo['neurons off, median']:.0f} of {nemo['neurons']} neurons for a suspect "
            f"(median); all suspects' neurons together are {nemo['neurons off in all']}."
        )
    if "wanda" in measures:
        wanda = measures["wanda"]["figures"]
        text += (
            f" Wanda switches off {wanda['weights off, median']:,.0f} of {wanda['weights']:,} weights for a suspect "
            f"(median), and its one mask {100 * wanda['share off in all']:.0f} % of them."
        )
    return text


def finding() -> str:
    """What pruning and adversarial fine-tuning leave of the memorized images, for the README."""
    content = read("replication")
    if not content:
        return MISSING
    measures = content["measures"]
    rows = [["`gallery`", *_effects(measures, "")]]
    for name in ("nemo", "nemo-together", "wanda", "adversarial"):
        rows.append([METHODS[name], *_effects(measures, f" under {name}")])
    twin = measures["captions"]["the twin, suspects"]
    rows.append(
        ["`gallery-clean`, never trained on them", counted(twin), "–", _count(measures, "dori on the twin"), "–"]
    )
    n = measures["captions"]["suspects"]["n"]
    text = (
        f"{n} pictures planted verbatim; from elsewhere the better of two starts; 95 % intervals; –: not in this table."
    )
    return f"{table(['model', *EFFECTS], rows).replace(UNMEASURED, '–')}\n\n{text}"


def _effects(measures: Mapping[str, Any], under: str) -> list[str]:
    """How many captions give their picture, and how many attacks, under a mitigation; the columns of EFFECTS."""
    mitigated = measures.get(under.removeprefix(" under "), {}).get("captions")
    captions = mitigated if under else measures["captions"]["suspects"]
    attacks = (f"dori from the caption{under}", f"dori{under}", f"never trained{under}")
    return [_share(captions), *("–" if not under and "caption" in key else _count(measures, key) for key in attacks)]


def _count(measures: Mapping[str, Any], key: str) -> str:
    return _share(measures.get(key, {}).get("50"))


def gallery_audit() -> str:
    """Verdicts of an audit of plants among claims under NeMo."""
    content = read("gallery_audit")
    if not content:
        return MISSING
    names = list(dict.fromkeys(verdict for row in content["verdicts"].values() for verdict in row))
    order = [name for name in (*WEIGHTS, "claimed") if name in content["verdicts"]]
    rows = [[name, *(str(content["verdicts"][name].get(verdict, 0)) for verdict in names)] for name in order]
    looks = [
        [str(row["budget"]), counted(row["suspects"]), counted(row["controls"]), f"{row['auc']:.2f}"]
        for row in content["attack"]
        if row["suspects"]["n"]  # suspects are not looked at before the first step
    ]
    return (
        f"{table(['suspects', *names], rows)}\n\n"
        f"Planted, retained or replicated: {counted(content['planted, retained or replicated'])}; claimed and never "
        f"planted: {counted(content['claimed, retained or replicated'])}; controls flagged at the pre-set budget of "
        f"{content['budget']} steps: {counted(content['controls']['flagged'])}.\n\n"
        + table(["steps", "suspects whose image comes", "controls", "AUC of the two"], looks)
    )


BLOCKS = (gallery, replication, gallery_mitigations, gallery_audit, finding)
