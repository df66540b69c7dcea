"""Blocks of figures about the lab and about memorization."""

from __future__ import annotations

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
    tau = scenes["reward tau with the judge"]
    points = [
        f"single samples right by the judge: {share(scenes['single'], 'mean')}",
        f"best of 16 by the reward: {share(scenes['best of 16 by the reward'])}",
        f"the reward prefers the true caption to a hard negative: {share(reward['all'])}",
        f"its Kendall tau with the judge over 16 seeds: {tau['mean']:.2f} ({tau['low']:.2f} to {tau['high']:.2f})",
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


BLOCKS = (lab, audit)
