"""Blocks of figures about seed search."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from figures_common import MISSING, ROOT, gain, read, table

EACH = "one schedule for each budget"
ADAPTIVE = "index or schedule, whichever was better on prompts held out of the fitting"


def search() -> str:
    """Searches at equal counted cost on the lab."""
    return _search("search")


def search_trio() -> str:
    """The same on scenes of three things."""
    return _search("search_trio")


def _search(name: str) -> str:
    figures = read(name)
    if not figures:
        return MISSING
    rows = [
        [
            budget if row["search"] == "best-of-n" else "",
            row["search"],
            f"{row['candidates']:.0f}",
            f"{row['reward']:.4f}",
            gain(row["reward_gain"], 4),
            f"{100 * row['judged']:.1f} %",
            gain(row["judged_gain"]),
        ]
        for budget, ways in figures.items()
        for row in ways
    ]
    n = next(iter(figures.values()))[0]["prompts"]
    head = ["cost of best-of", "search", "seeds", "reward", "over best-of-N", "judged right", "over best-of-N"]
    return table(head, rows) + (
        f"\n\n{n} held-out scenes; intervals are 95 % over prompts, paired. `ttsp` prunes like `ttsnap`, by the plain "
        "reward; `lookahead-fitted` by the schedule that ships. Judged right: by the lab's mechanical judge."
    )


def ahead_ways() -> str:
    """Big steps: how well seeds are ranked by the package's way, and with one thing of it changed."""
    measured = read("lookahead")
    if not measured:
        return MISSING
    taus = {
        (row["step"], row["calls"], row["second_order"], row["spacing"], row["free_start"]): row["tau"]
        for row in measured["rows"]
    }
    twice = measured["rows"][0]["spacing"]
    ways = {
        "as it is": (True, twice, True),
        "equal spacing to the end": (True, "index", True),
        "equal spacing in log-SNR": (True, "log-SNR", True),
        "a call before the first leap": (True, twice, False),
        "first order (DDIM)": (False, twice, True),
        "first order, equal spacing, a call first": (False, "index", False),
    }
    looks = list(dict.fromkeys(key[:2] for key in taus))
    rows = [[name, *(f"{taus[(*look, *way)]:.2f}" for look in looks)] for name, way in ways.items()]
    head = ["big steps", *(f"after step {step}, {calls} calls ahead" for step, calls in looks)]
    n, seeds = measured["n"], measured["candidates"]
    return table(head, rows) + f"\n\nKendall's tau to the final reward, mean over {n} captions of {seeds} seeds."


def overhead() -> str:
    """What the pipeline itself costs."""
    bench = read("bench_ttsnap")
    if not bench:
        return MISSING
    more = bench["pruned"]["seeds_ratio"]
    return (
        f"Best-of-16 takes {bench['ratio']:.2f} times the stock pipeline's time for the same 16 images and their "
        f"scores; at the same counted cost a search pruned by 2:0.4,6:0.4,11:0.5 sees {more:.1f} times as many seeds."
    )


def backends() -> str:
    """The back-ends of distillation."""
    figures = read("backends")
    if not figures:
        return MISSING
    rows = [
        [
            row["backend"],
            row["loss"],
            f"{row['tau before']:.2f}",
            f"{row['tau after']:.2f}",
            f"{row['megabytes']:.1f}",
            f"{row['seconds']:.0f}",
        ]
        for row in figures["rows"]
    ]
    steps = ", ".join(map(str, figures["early steps"]))
    counts = figures["rows"][0]["prompts"]
    text = (
        f"Mean over the looks after steps {steps} of Kendall's tau with the final reward, on {counts['held_out']} "
        f"held-out prompts (trained on {counts['trained']}), {figures['updates']} updates each."
    )
    return table(["back-end", "loss", "tau before", "tau after", "MB", "seconds"], rows) + "\n\n" + text


def chain() -> str:
    """The whole chain from an empty folder, timed."""
    figures = read("lab_search")
    if not figures:
        return MISSING
    parts = ", ".join(f"{name} {seconds / 60:.1f}" for name, seconds in figures["seconds"].items())
    return (
        f"A smaller version of it, from an empty folder to a served pipeline, took {figures['minutes in all']:.0f} "
        f"minutes on two cores (`scripts/lab_search.py`; minutes: {parts})."
    )


def taught_trio() -> str:
    """What distillation gave the reward that ships for scenes of three things, from its card."""
    card = json.loads((ROOT / "ttsnap" / "lab-trio" / "noise_aware" / "card.json").read_text())
    levels = sorted(card["tau"], key=lambda level: int(level["step"]))

    def shown(level: Mapping[str, Any], key: str) -> str:
        low, high = level[f"{key}_interval"]
        return f"{level[key]:.2f} ({low:.2f} to {high:.2f})"

    rows = [[str(level["step"]), *(shown(level, key) for key in ("before", "after", "gain"))] for level in levels]
    early = [level["gain"] for level in levels if 2 <= level["step"] <= 8]
    prompts = card["prompts"]
    head = ["look after step", "tau of the plain reward", "tau of the taught reward", "gain"]
    return table(head, rows) + (
        f"\n\nOn {prompts['held_out']} captions held out, {card['candidates']} seeds each (taught on "
        f"{prompts['trained']}); mean gain of the looks after steps 2 to 8: {sum(early) / len(early):.2f}."
    )


def copy_guard() -> str:
    """How many winners are copies of planted pictures, without and with a guard."""
    figures = read("copy_guard")
    if not figures:
        return MISSING

    def counted(rate: Mapping[str, Any]) -> str:
        low, high = rate["interval"]
        return f"{rate['count']} of {rate['n']} ({100 * low:.0f} to {100 * high:.0f} %)"

    rows = [
        [
            kind,
            counted(row["copies_without"]),
            counted(row["copies_guarded"]),
            str(row["no_winner"]),
            str(row["no_winner_but_clean_images"]),
            f"{row['mixed_with_winner']} of {row['mixed']}",
            f"{row['seconds_guarded'] / row['seconds_without']:.2f}",
        ]
        for kind, row in [*figures["groups"].items(), ("all", figures["all"])]
    ]
    head = ["caption", "winner is a copy", "with the guard", "no winner", "though clean images finish",
            "searches with both that have a winner", "time"]  # fmt: skip
    return table(head, rows) + (
        f"\n\nSearches, with 95 % (Clopper and Pearson). Both: of the {figures['candidates']} finished images some are "
        f"copies and some are not. Time: with the guard over without; copies are dropped early, which saves more than "
        f"the checks cost. Where nothing is dropped ({figures['undisturbed_searches']} searches) the checks are "
        f"{100 * figures['guard_share_of_seconds']:.0f} % of the time and "
        f"{100 * figures['guard_share_of_flop']:.0f} % of the FLOP, for "
        f"{figures['guard']['pictures']} pictures. Looks after steps "
        f"{' and '.join(part.split(':')[0] for part in figures['schedule'].split(','))} of {figures['steps']}."
    )


def steps() -> str:
    """The noise-aware reward at other numbers of steps than it was taught at."""
    figures = read("steps")
    if not figures:
        return MISSING

    def shown(value: Mapping[str, Any]) -> str:
        return f"{value['mean']:.2f} ({value['interval'][0]:.2f} to {value['interval'][1]:.2f})"

    rows = [[str(row["steps"]), shown(row["lab"]), shown(row["lab-noise-aware"])] for row in figures]
    head = ["denoising steps", "tau of the plain reward", "tau of the noise-aware reward"]
    return table(head, rows) + f"\n\nMean over the early looks; {figures[0]['n']} held-out scenes, 95 % over scenes."


def wall() -> str:
    """Wall-clock time to best-of-N's reward on the lab."""
    return _wall("wall_clock")


def wall_trio() -> str:
    """The same on scenes of three things."""
    return _wall("wall_clock_trio")


def wall_ahead() -> str:
    """Lookahead in rounds there, with the schedule that ships."""
    return _wall("wall_clock_ahead")


def rounds() -> str:
    """The search in rounds against best-of-64, in a sentence."""
    figures = read("wall_clock_trio")
    if not figures:
        return MISSING
    sentences = []
    for name in ("lookahead", "TTSnap"):
        ways = [row for row in figures["rows"] if row["way"].startswith(f"{name} until")]
        if not ways:
            continue
        row = min(ways, key=lambda way: way["share of time"])
        low, high = row["interval"]
        until = row["way"].removeprefix(f"{name} until ").split(",")[0]
        sentences.append(
            f"In rounds, until its reward is {until}, {name} takes {_share(row)} of the time of best-of-64 there, at a "
            f"mean reward of {row['difference']:+.4f} over it (95 % interval {low:+.4f} to {high:+.4f})."
        )
    return " ".join([*sentences, f"{figures['n']} held-out scenes."])


def _share(row: Mapping[str, Any]) -> str:
    """Of best-of-N's time, with its interval where that was measured."""
    ends = row.get("interval of the share")
    return f"{row['share of time']:.2f}" + (f" ({ends[0]:.2f} to {ends[1]:.2f})" if ends and ends[0] < ends[1] else "")


def _wall(name: str) -> str:
    figures = read(name)
    if not figures:
        return MISSING
    rows = [
        [
            row["way"],
            f"{row['reward']:.4f}",
            f"{row['difference']:+.4f} ({row['interval'][0]:+.4f} to {row['interval'][1]:+.4f})",
            f"{row['seconds']:.1f}",
            _share(row),
        ]
        for row in figures["rows"]
    ]
    head = ["search", "reward", "over best-of-64", "seconds a prompt", "of its time"]
    threads = "one thread" if figures.get("threads") == 1 else "two threads"
    return table(head, rows) + f"\n\n{figures['n']} held-out scenes, one process, {threads}, interleaved."


def first_level() -> str:
    """Sampling lab-trio from the lab's own first level of noise and from its own."""
    figures = read("first_level")
    if not figures:
        return MISSING
    rows = [
        [
            f"{row['noise']:.1f}",
            f"{100 * row['right']:.1f} % ({100 * row['interval'][0]:.1f} to {100 * row['interval'][1]:.1f})",
            str(row["calls to the look"]),
        ]
        for row in figures["rows"]
    ]
    text = (
        f"{figures['n']} held-out scenes, {figures['seeds']} seeds each; {figures['right with both']:.0f} images are "
        f"right from both, {figures['right with either']:.0f} from either."
    )
    head = ["noise over signal at the first call", "single samples right", "calls to the noise of the first look"]
    return table(head, rows) + "\n\n" + text


def preview() -> str:
    """The preview decoder."""
    figures = read("preview")
    if not figures:
        return MISSING
    names = ("tau of full and preview", "tau to the final, full", "tau to the final, preview")
    rows = [[str(step["step"]), *(f"{step[name]['mean']:.2f}" for name in names)] for step in figures["steps"]]
    cost = figures["look in denoiser calls"]
    n = figures["steps"][0][names[0]]["n"]
    return (
        table(["look after step", *names], rows)
        + f"\n\n{n} held-out scenes. A look costs {cost['full']:.2f} denoiser calls with the full decoder and "
        + f"{cost['preview']:.2f} with the preview decoder."
    )


def fit() -> str:
    """Learned schedules and the index rule on the published rewards."""
    figures = read("fit")
    if not figures:
        return MISSING
    keys = list(figures["rewards"])
    variants = list(figures["rewards"][keys[0]]["variants"])
    rows = []
    for name in variants:
        cells = [figures["rewards"][key]["variants"][name] for key in keys]
        means = [f"{figures[f'mean gain %, {model}'][name]:.1f}" for model in ("flux", "sdxl")]
        rows.append([name, *(f"{c['gain %']:.1f} ({c['low']:.0f} to {c['high']:.0f})" for c in cells), *means])
    return table(["", *(key.replace("_", " ") for key in keys), "mean flux", "mean sdxl"], rows)


def fit_budgets() -> str:
    """Schedule, index rule and the better of the two at each budget."""
    figures = read("fit")
    if not figures:
        return MISSING
    gaps = [
        {budget: means[ADAPTIVE][budget] - means[EACH][budget] for budget in means[EACH]}
        for means in (reward["mean difference to best-of-N"] for reward in figures["rewards"].values())
    ]
    below = [
        f"{key.replace('_', ' ')} at {budget} by {-gap:.2g}"
        for key, gap_of in zip(figures["rewards"], gaps, strict=True)
        for budget, gap in gap_of.items()
        if gap < 0
    ]
    surely = sum(
        interval[1] < 0
        for reward in figures["rewards"].values()
        for interval in reward["difference of index or schedule to the schedule"].values()
    )
    cells = sum(map(len, gaps))
    spent = max(
        variants["variants"][name]["highest share of the budget spent"]
        for variants in figures["rewards"].values()
        for name in ("index", ADAPTIVE)
    )
    prompts = next(iter(figures["rewards"].values()))["prompts"]
    return (
        f"Of {cells} budgets and rewards, *index or schedule* is above the schedule at {cells - len(below)} "
        f"({prompts} prompts each); below it: {'; '.join(below) or 'nowhere'}; surely below (95 %): {surely}. The "
        f"highest total that any search spent is {100 * spent:.1f} % of its budget."
    )


def tensors() -> str:
    """The published schedule under three accountings."""
    figures = read("tensors")
    if not figures:
        return MISSING
    ways = ("exact", "fractional", "published")
    rows = [
        [row["reward"].replace("_", " "), row["pruned by"], *(f"{row[way][0]:+.1f}" for way in ways)]
        for row in figures["gains"]
    ]
    return table(["reward", "pruned by", *ways], rows)


def lab_index() -> str:
    """What the index rules that ship gain on prompts held out."""
    figures = read("lab_index")
    if not figures:
        return MISSING

    def cell(row: Mapping[str, float]) -> str:
        return f"{row['difference']:+.4f} ({row['low']:+.4f} to {row['high']:+.4f})"

    rows = [
        [name, f"{row['equivalent']:.0f}x", cell(row), cell(row["schedule"]), row["kept"]]
        for name, part in figures.items()
        for row in part["rows"]
    ]
    head = ["", "budget", "index under one total", "learned schedule", "the file holds"]
    n = next(iter(figures.values()))["prompts"]
    note = f"Reward over best-of-N at the same budget, {n} prompts each, held out in five parts (replayed); 95 %."
    return table(head, rows) + f"\n\n{note}"


BLOCKS = (
    chain, copy_guard, steps, search, taught_trio, search_trio, ahead_ways, overhead, backends, wall, wall_trio,
    wall_ahead, rounds, first_level, preview, fit, fit_budgets, tensors, lab_index,
)  # fmt: skip
