"""Blocks of figures about the lab, and about detectors and audits: verdicts, speed, killed runs."""

from __future__ import annotations

from typing import Any

from figures_common import MISSING, counted, of, read, share, table

from diffkit.lab.make import read_card


def lab() -> str:
    """What the card says."""
    card = read_card()
    rows = []
    for name, figures in card["lab"]["replication"]["planted"].items():
        clean = card["lab-clean"]["replication"]["planted"][name]
        rows.append([name, share(figures), f"{figures['median']:.2f}", share(clean)])
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
    figures = read("audit")
    if not figures:
        return MISSING
    verdicts = list(figures["lab: verdicts"])
    rows = [
        [name, str(row["n"]), *(str(row.get(verdict, 0)) for verdict in verdicts)]
        for name, row in figures["lab: verdicts by kind and strength"].items()
    ]
    flagged, clean = figures["lab: controls flagged"], figures["lab-clean: replicated or retained"]
    return (
        table(["planted", "n", *verdicts], rows)
        + f"\n\nControls flagged as anything: {flagged['count']} of {flagged['n']}. On `lab-clean`, "
        + f"{clean['k']} of the same {clean['n']} images are replicated or retained."
    )


def detectors() -> str:
    """Who finds which planted captions."""
    figures = read("detectors")
    if not figures:
        return MISSING
    mix = "scenes and photographs"
    kinds = [name for name in figures["n"] if name.startswith(("verbatim", "template"))]
    rows = []
    for name, row in figures["detectors"].items():
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
    n = figures["n"]
    return (
        table(head, rows)
        + f"\n\nAUC and TPR: {n['verbatim, full']} full-strength verbatim captions against {n['scenes']} held-out "
        + f"scenes and {n['photographs']} captions of never-trained photographs; {figures['settings']['seeds']} seeds. "
        + "The counts are captions above the threshold that flags 1 % of those negatives; seconds are of one core."
    )


def kill_line() -> str:
    """Kills at random moments."""
    figures = read("kill_line")
    if not figures:
        return MISSING
    whole = (
        f"`scripts/kill_line.py` killed a smaller version of this line {figures['kills']} times at random "
        "moments; "
        f"{figures['lines_compared']} resumed lines were compared with an undisturbed one: "
        f"{len(figures['differences'])} differences."
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


def bench_dori() -> str:
    """One batch against single searches."""
    figures = read("bench_dori")
    if not figures:
        return MISSING
    alone = figures["singles in one process"]["seconds"] / figures["images"]
    apart = figures["singles in processes of their own"]
    start = sum(apart["seconds each"]) / apart["run"] - alone
    return (
        f"One search of {figures['images']} images at once, {figures['steps']} steps: "
        f"{figures['ratio to singles in one process']:.2f} of the time of as many single searches one after the other "
        f"in one process ({figures['threads']} threads; {figures['ratio in processor time']:.2f} of the processor "
        f"time). One in a process of its own adds {start:.1f} s of starting Python and loading the model to every "
        "image. `--micro-batch auto` bounds the memory."
    )


def sscd_int8() -> str:
    """Edited copies told from other photographs, at two sizes."""
    figures = read("sscd_int8")
    if not figures:
        return MISSING
    names = ("sscd-int8", "tiled")
    rows = []
    for size in ("64x64", "full size"):
        measured = figures[size]["detectors"]
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
    difference = max(figures[size]["arithmetic"]["largest difference of scores"] for size in ("64x64", "full size"))
    return (
        table(head, rows)
        + f"\n\nComputing the 8-bit steps in float32 instead changes a score by {difference:.3f} at most."
    )


def bench_audit_report() -> str:
    """Size, memory and loading time of reports, from small to large."""
    figures = read("bench_audit_report")
    if not figures:
        return MISSING
    rows = []
    for row in figures["rows"]:
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
        + f"\n\nSynthetic records, pictures of {figures['picture pixels']} pixels, two cores; loading by headless "
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
    figures = read("bench_audit_scale")
    if not figures:
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
        for row, seconds, memory in zip(figures["rows"], *figures["ratios to the first row"].values(), strict=True)
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
        f"{figures['controls']} controls, pictures of {figures['picture pixels']} pixels. Importing the libraries is "
        "not counted. After the last item come near-duplicates, summary and report."
        + (start_of_the_run(figures["start"]) if "start" in figures else "")
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
    bench_dori,
    sscd_int8,
    kill_line,
    bench_audit_report,
    many,
    bench_audit_scale,
    trend,
)
