"""Blocks of figures about the lab and about memorization."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from figures_common import MISSING, read, share, table

from diffkit.lab.make import read_card


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
    trio, tau = card["lab-trio"], scenes["reward tau with the judge"]
    points = [
        f"single samples right by the judge: {share(scenes['single'], 'mean')}",
        f"best of 16 by the reward: {share(scenes['best of 16 by the reward'])}",
        f"the reward prefers the true caption to a hard negative: {share(reward['all'])}",
        f"its Kendall tau with the judge over 16 seeds: {tau['mean']:.2f} ({tau['low']:.2f} to {tau['high']:.2f})",
        f"`lab-trio`: single samples right {share(trio['scenes']['single'], 'mean')}, best of 16 by the reward "
        f"{share(trio['scenes']['best of 16 by the reward'])}; {trio['million parameters']:.1f} million parameters",
        f"{card['lab']['million parameters']:.1f} million parameters a model; {card['megabytes']:.0f} MB in all; "
        f"{card['seconds per image']:.2f} s an image on two cores",
    ]
    above = card["settings"]["replicated above"]
    head = ["planted", f"replicated (correlation > {above}) by lab", "median", "by lab-clean"]
    return table(head, rows) + "\n\n" + "\n".join(f"- {point}" for point in points)


def audit() -> str:
    """Verdicts on the lab, by kind and strength."""
    found = read("audit")
    if not found:
        return MISSING
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


def of(value: Mapping[str, Any]) -> str:
    """k of n and the share's interval."""
    return f"{value['k']} of {value['n']} ({100 * value['low']:.0f} to {100 * value['high']:.0f} %)"


def counted(rate: Mapping[str, Any]) -> str:
    """:func:`of` for a rate as summaries have it."""
    low, high = rate["interval"]
    return of({"k": rate["count"], "n": rate["n"], "low": low, "high": high})


def points(value: Mapping[str, Any]) -> str:
    """A change of a share in percentage points."""
    return f"{100 * value['mean']:+.1f} ({100 * value['low']:+.1f} to {100 * value['high']:+.1f})"


def detectors() -> str:
    """Who finds which planted captions."""
    found = read("detectors")
    if not found:
        return MISSING
    mix = "scenes and photographs"
    kinds = [name for name in found["n"] if name.startswith(("verbatim", "template"))]
    rows = []
    for name, row in found["detectors"].items():
        own = row["full-strength verbatim against"][mix]
        flagged = row["flagged at 1 % of scenes and photographs"]
        rows.append(
            [
                f"`{name}`",
                f"{own['auc']:.2f}",
                f"{100 * own['found']['share']:.0f} %",
                *(f"{flagged[kind]['k']} of {flagged[kind]['n']}" for kind in kinds),
                f"{row['rows for a caption and seed']:.0f}",
                f"{row['seconds for a caption']:.1f}",
            ]
        )
    head = ["detector", "AUC", "TPR at 1 % FPR", *kinds, "denoiser rows a seed", "s a caption"]
    n = found["n"]
    return (
        table(head, rows)
        + f"\n\nAUC and TPR: {n['verbatim, full']} full-strength verbatim captions against {n['scenes']} held-out "
        + f"scenes and {n['photographs']} captions of never-trained photographs; {found['settings']['seeds']} seeds. "
        + "The counts are captions above the threshold that flags 1 % of those negatives; seconds are of one core."
    )


def mitigations() -> str:
    """NeMo and Wanda, before and after DoRI."""
    found = read("mitigations")
    if not found:
        return MISSING
    rows = [["none", of(found["before"]["captions"]), "–", "–", "–"]]
    for name in ("nemo", "wanda"):
        best = found[f"best {name}"]
        attack = [found.get(f"attack {name} {role}") for role in ("suspect", "control")]
        back = [from_each(part) if part else "–" for part in attack]
        for way in ("union", "per suspect"):
            row = best[way]
            cells = [of(row["replicated by caption"]), points(row["scene accuracy"]["change"])]
            rows.append([f"{name}, {way}", *cells, *(back if way == best["best as"] else ("–", "–"))])
    clean = found["attack lab-clean suspect"]
    rows.append(["none, `lab-clean`", "–", "–", from_each(clean), "–"])
    steps = found["attack"]["steps"]
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
        for name, row in found.items()
        if isinstance(row, dict) and "method" in row
    ]
    if sweep:
        head = ["setting", "union: by caption", "scene accuracy", "per suspect: by caption", "scene accuracy"]
        text += "\n\nOther settings of the two:\n\n" + table(head, sweep)
    return text + f"\n\nSuspects: the verbatim images of full strength, {found['seeds per caption']} seeds, medians."


def from_each(attack: Mapping[str, Any]) -> str:
    """How many came back, start by start; by the better of two where that alone was kept."""
    rows = attack.get("from each start", {"better of two": attack["brought back"]})
    return "; ".join(f"{start}: {of(row)}" for start, row in rows.items())


def locality() -> str:
    """What agrees among the triggers of one image, beside its nulls."""
    found = read("locality")
    if not found:
        return MISSING
    nulls = ("others", "control", "starts", "captions", "chance")
    groups = {
        "distance of triggers": found["embeddings"]["distance"],
        "cosine of displacements": found["embeddings"]["cosine"],
        "activations, mean distance": found["activations"]["all"],
        **{f"weights, {name}, IoU": part["all"] for name, part in found["weights"].items()},
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
        [text, *(f"{point['k']} of {point['n']}" for point in found["lines"][key].values())]
        for key, text in lines.items()
    ]
    starts = found["starts"]
    said = (
        f"{found['images']['suspects']} full-strength verbatim images and {found['images']['controls']} never-trained "
        f"photographs, {found['settings']['starts']} Gaussian starts each, {found['settings']['attack_steps']} steps: "
        f"{starts['suspect']['k']} of {starts['suspect']['n']} searches bring a memorized image back, "
        f"{starts['control']['k']} of {starts['control']['n']} a control. "
        f"Below, the {found['images']['memorized']} images of which enough did; 95 % over images."
    )
    head = ["", "one image", "other memorized images", "controls, same starts", "the starts", "captions", "chance"]
    return "\n\n".join((said, table(head, rows), table(["point", "gives the image"], points)))


def shown(value: Mapping[str, Any] | None) -> str:
    """An estimate with its interval."""
    if not value or value["value"] is None:
        return "–"
    return f"{value['value']:.2f} ({value['low']:.2f} to {value['high']:.2f})"


def kill_line() -> str:
    """Kills at random moments."""
    found = read("kill_line")
    if not found:
        return MISSING
    whole = (
        f"`scripts/kill_line.py` killed this line {found['kills']} times at random moments; {found['lines_compared']} "
        f"resumed lines were compared with an undisturbed one: {len(found['differences'])} differences."
    )
    order = read("kill_order")
    if not order:
        return whole
    ends = ", ".join(f"{n} by {reason}" for reason, n in order["attacks that ended early"]["order"].items())
    return (
        f"{whole} An audit with triage, mask and reference model, whose attacks ended early or not begun ({ends}), "
        f"was killed {order['kills']} times, {order['inside an open run']} of these while its journal grew: "
        f"{order['lines_compared']} lines, {len(order['differences'])} differences."
    )


def adversarial() -> str:
    """What fine-tuning against triggers leaves, by attacks it was not trained on; LoRA beside it."""
    found = {name: read(name) for name in ("adversarial", "adversarial_lora")}
    if not found["adversarial"]:
        return MISSING
    rows = []
    for name, label in (("adversarial", "all weights"), ("adversarial_lora", "LoRA, rank 16")):
        row = found[name]
        if row is None:
            continue
        worst = row["attacks, full-strength verbatim, all cells together"]
        rows.append(
            [
                label,
                of(row["captions after, every seed"]),
                *(f"{of(worst[budget])}, {len(row['attacks'])} attacks" for budget in ("50", "150")),
                points(row["scene accuracy"]["change"]),
                f"{row['quality']['drift']['relative']['mean']:.2f}",
                f"{row['training']['seconds'] / 60:.0f}",
            ]
        )
    head = ["", "captions, every seed", "attacks at 50", "attacks at 150", "scene accuracy, points", "drift", "minutes"]
    text = table(head, rows)
    full = found["adversarial"]
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
    found = read("ladder")
    if not found or not found["rungs"]:
        return MISSING
    last = {name: rows[-1] for name, rows in found["rungs"].items()}
    budget = next(iter(last.values()))["budget"]
    rows = [
        [f"`{name}`", of(row["suspects"]), f"{row['suspects']['median']:.2f}", of(row["controls"])]
        for name, row in last.items()
    ]
    text = table(["rung, weakest first", "brought back", "median similarity", "controls"], rows)
    if found["rates"]:
        rates = [
            [f"{float(rate):g}", *(of(row["suspects"]) for row in curve)] for rate, curve in found["rates"].items()
        ]
        budgets = [str(row["budget"]) for row in next(iter(found["rates"].values()))]
        text += "\n\n" + table(["DoRI, learning rate", *(f"at {b}" for b in budgets)], rates)
    if found["long"]:
        long = [
            [str(row["budget"]), of(row["suspects"]), of(row["controls"]), f"{row['controls']['max']:.2f}"]
            for row in found["long"]
        ]
        text += "\n\n" + table(["DoRI, steps", "brought back", "controls", "nearest control"], long)
    if found["transfer"]:
        names = list(next(iter(found["transfer"].values())))
        moved = [[name, *(f"{100 * rates[name]:.0f} %" for rates in found["transfer"].values())] for name in names]
        text += "\n\n" + table(["the same triggers with", *(f"`{name}`" for name in found["transfer"])], moved)
    return text + f"\n\nEvery search starts at an unrelated caption; {budget} steps where no other number stands."


def bench_dori() -> str:
    """One batch against single searches."""
    found = read("bench_dori")
    if not found:
        return MISSING
    alone = found["singles in one process"]["seconds"] / found["images"]
    apart = found["singles in processes of their own"]
    start = sum(apart["seconds each"]) / apart["run"] - alone
    return (
        f"One search of {found['images']} images at once, {found['steps']} steps: "
        f"{found['ratio to singles in one process']:.2f} of the time of as many single searches one after the other in "
        f"one process ({found['threads']} threads; {found['ratio in processor time']:.2f} of the processor time). One "
        f"in a process of its own adds {start:.1f} s of starting Python and loading the model to every image. "
        "`--micro-batch auto` bounds the memory."
    )


def sscd_int8() -> str:
    """Edited copies told from other photographs, at two sizes."""
    found = read("sscd_int8")
    if not found:
        return MISSING
    names = ("sscd-int8", "tiled")
    rows = []
    for size in ("64x64", "full size"):
        measured = found[size]["detectors"]
        for edit in (key for key, value in measured["tiled"].items() if isinstance(value, dict)):
            row = [size, edit]
            for name in names:
                area, flagged = measured[name][edit]["auc"], measured[name][edit]["non-copies at the threshold"]
                row += [
                    f"{area['mean']:.2f} ({area['low']:.2f} to {area['high']:.2f})",
                    of(measured[name][edit]["own original first"]),
                    of(measured[name][edit]["copies at the threshold"]),
                    f"{flagged['k']} of {flagged['n']}",
                ]
            rows.append(row)
    columns = ("AUC", "own original first", "copies found", "non-copies flagged")
    head = ["pictures", "edit", *(f"{name}: {column}" for name in names for column in columns)]
    difference = max(found[size]["arithmetic"]["largest difference of scores"] for size in ("64x64", "full size"))
    return (
        table(head, rows)
        + f"\n\nComputing the 8-bit steps in float32 instead changes a score by {difference:.3f} at most."
    )


def bench_audit_report() -> str:
    """Size, memory and loading time of reports, from small to large."""
    found = read("bench_audit_report")
    if not found:
        return MISSING
    rows = []
    for row in found["rows"]:
        load = row["seconds to load report.html"]
        rows.append(
            [
                f"{row['items']:,}".replace(",", " "),
                f"{row['seconds']:.1f}",
                f"{row['peak MiB'] - row['peak MiB before']:.0f}",
                f"{row['report.html, MiB']:.1f}",
                str(row["pages"]),
                f"{load['median']:.2f} (highest of {load['loads']}: {load['highest']:.2f})" if load else "–",
            ]
        )
    head = [
        "suspects and controls",
        "s to write",
        "MiB more memory",
        "MiB of report.html",
        "further pages",
        "s to load",
    ]
    return (
        table(head, rows)
        + f"\n\nSynthetic records, pictures of {found['picture pixels']} pixels, two cores; loading by headless "
        + "chromium from the disk, until the load event."
    )


def many() -> str:
    """Few memorized images among many, and what the order of work saves."""
    measured = read("many")
    if not measured:
        return MISSING

    n = sum(measured["planted"].values()) + sum(measured["never planted"].values())
    unlike, (ran, items) = measured["unlike the whole ladder"], measured["items of the whole ladder"]
    compared = "" if unlike is None else f" Verdicts unlike those of the whole ladder: {len(unlike)}."
    scaled = "" if ran == items else f", which was measured on {ran} of its {items} items"
    return (
        f"24 planted images among {n} suspects, the lab under `lab-nemo`, 30 controls, reference `lab-clean`: of the "
        f"planted that the attack brings back, retained {counted(measured['planted, back by the attack, retained'])}, "
        f"by rank alone {counted(measured['retained by rank'])}; of all planted, retained or replicated "
        f"{counted(measured['planted, retained or replicated'])}; of the never planted "
        f"{counted(measured['never planted, retained or replicated'])}; controls flagged "
        f"{counted(measured['controls flagged'])}.{compared} The order of work took {measured['ratio']:.2f} of the "
        f"whole ladder's processor time{scaled}, and {measured['ratio without controls on the reference']:.2f} of it "
        f"without the controls on the reference; {measured['sample gradients']:,} sample gradients and "
        f"{measured['trigger images']:,} images from triggers."
    )


def start_of_the_run(start: dict[str, Any]) -> str:
    """How long an audit takes until it begins its first item."""

    def number(count: int) -> str:
        return f"{count:,}".replace(",", " ")

    rows = []
    for kind, label in (("anew", "begun anew"), ("resumed", f"resumed, {number(start['done when resumed'])} done")):
        (low, median, high), wall, memory = (start[kind][name] for name in ("processor seconds", "seconds", "peak MiB"))
        seconds = f"{median:.1f} ({low:.1f} to {high:.1f})"
        rows.append([label, seconds, f"{wall[1]:.1f} ({wall[0]:.1f} to {wall[2]:.1f})", f"{memory[2]:.0f}"])
    head = [f"{number(start['suspects'])} suspects", "processor s", "s by the clock", "peak MiB"]
    return (
        "\n\nFrom the launch of `diffkit audit` on a folder of pictures with captions to its first item, libraries "
        f"included; median (range) of {start['repeats']}, while other work kept both cores busy, which the clock "
        "counts and processor seconds do not:\n\n" + table(head, rows)
    )


def bench_audit_scale() -> str:
    """Processor time and memory of audits of few and of many suspects."""
    found = read("bench_audit_scale")
    if not found:
        return MISSING
    rows = [
        [
            f"{row['suspects']:,}".replace(",", " "),
            f"{row['seconds before the first item']:.1f}",
            f"{1000 * row['seconds a suspect']:.1f} ({seconds:.2f})",
            f"{row['seconds after the last item']:.1f}",
            f"{row['peak MiB']:.0f} ({memory:.2f})",
            str(row["repeats"]),
        ]
        for row, seconds, memory in zip(found["rows"], *found["ratios to the first row"].values(), strict=True)
    ]
    head = [
        "suspects",
        "s before the first item",
        "ms a suspect (ratio to the first row)",
        "s after the last item",
        "peak MiB (ratio)",
        "runs",
    ]
    return table(head, rows) + (
        f"\n\nProcessor time of one thread: a tiny model with random weights, the smallest settings, "
        f"{found['controls']} controls, pictures of {found['picture pixels']} pixels. Importing the libraries is not "
        "counted. After the last item come near-duplicates, summary and report."
        + (start_of_the_run(found["start"]) if "start" in found else "")
    )


def trend() -> str:
    """When a LoRA holds the photographs that it is taught."""
    measured = read("trend")
    if not measured:
        return MISSING

    rows = [
        [
            str(point["step"]),
            counted(point["taught"]["replicated"]),
            counted(point["taught"]["replicated or retained"]),
            counted(point["not taught"]["replicated or retained"]),
            counted(point["controls flagged"]),
        ]
        for point in measured["points"]
    ]
    head = ["updates", "taught: replicated", "taught: replicated or retained", "not taught: either", "controls flagged"]
    text = f"A LoRA of rank {measured['rank']} on `{measured['base']}`; 0 is the base without it."
    picture = "![Shares over the updates of a LoRA](figures/trend.png)"
    return "\n\n".join((text, picture, table(head, rows)))


BLOCKS = (
    lab,
    audit,
    detectors,
    ladder,
    bench_dori,
    mitigations,
    adversarial,
    locality,
    sscd_int8,
    kill_line,
    bench_audit_report,
    many,
    bench_audit_scale,
    trend,
)
