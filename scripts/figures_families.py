"""Block of figures about published architectures on an accelerator, from two runs of ``bench_families``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from figures_common import MISSING, read, table

from ttsnap.schedules.pruning_schedule import PruningSchedule

NAMES = {"sd15": "SD 1.5", "sdxl": "SDXL", "flux": "FLUX.1", "sd35-medium": "SD 3.5 medium"}
SCHEDULE = PruningSchedule.parse("2:0.4,6:0.4,11:0.5")  # of bench_families
SIZE = "denoiser, million parameters"
STOCK, BEST, PRUNED, IN_TIME = "stock", "best of N", "pruned at the same cost", "pruned in the stock's time"
AHEAD, AHEAD_SAME, AHEAD_TIME = "run of lookahead", "lookahead at the same cost", "lookahead in the stock's time"
Family = Mapping[str, Any]


def accelerator() -> str:
    """Stock pipeline and searches, then training steps, of each family."""
    measured = read("families")
    if not measured:
        return MISSING
    families = [measured["families"][name] for name in NAMES]
    rows = [[SIZE, *(f"{figures[SIZE]:,}" for figures in families)]]
    rows += [[name, *(_cell(figures, part, show) for figures in families)] for name, part, show in _SEARCHES]
    parts = [
        table(["", *NAMES.values()], rows),
        _how(measured),
        _what(measured["families"], measured["settings"]["steps"]),
    ]
    rows = [[name, *(_steps(figures, part) for figures in families)] for name, part in _TRAINING]
    return "\n\n".join(
        [*parts, table(["s and peak GiB, by rows at once", *NAMES.values()], rows), _rows_words(families)]
    )


def look_price(figures: Family, steps: int) -> tuple[float, float]:
    """What one look costs in denoiser calls: by the clocks of best-of-N, and at most by the counted cost."""
    n, shares = figures["candidates"], figures[f"shares of {BEST}"]
    cost = SCHEDULE.cost(figures["candidates, pruned at the same cost"], steps)
    by_clock = (shares["decoder"] + shares["verifier"]) * steps / shares["denoiser"]
    return by_clock, (n * steps - cost.calls) / (cost.decoded - n)


def expected_ratio(figures: Family, steps: int) -> float:
    """Seconds of the pruned search over the stock pipeline's, if calls and looks took what they take in best-of-N."""
    n, shares = figures["candidates"], figures[f"shares of {BEST}"]
    cost = SCHEDULE.cost(figures["candidates, pruned at the same cost"], steps)
    looks = (shares["decoder"] + shares["verifier"]) * cost.decoded / n
    of_best = shares["denoiser"] * cost.calls / (n * steps) + looks + shares["text_encoder"]
    return float(of_best * figures["overhead of best of N"])


def _cell(figures: Family, part: str, show: Callable[[Family, Any], str]) -> str:
    value = figures.get(part)
    if value is None:
        return "not measured"
    if isinstance(value, str):
        return "out of memory" if "out of memory" in value else "failed"
    return show(figures, value)


def _shares(_: Family, value: Mapping[str, float]) -> str:
    return " / ".join(f"{100 * value[part]:.1f}" for part in ("denoiser", "decoder", "verifier"))


def _memory(figures: Family, _: object) -> str:
    return " / ".join(f"{figures[part]['peak GiB']:.1f}" for part in (STOCK, BEST, PRUNED))


def _ratio(figures: Family, value: Mapping[str, float]) -> str:
    return f"{value['seconds']:.2f} ({value['seconds'] / figures[STOCK]['seconds']:.2f})"


def _steps(figures: Family, part: str) -> str:
    """Seconds and peak memory of a training step for each number of rows."""
    steps = {
        int(key.removeprefix(part.split("{")[0]).split()[0]): value for key, value in figures.items() if _is(part, key)
    }
    cells = [
        f"{rows}: " + (f"{step['seconds']:.2f}; {step['peak GiB']:.1f}" if isinstance(step, dict) else "out of memory")
        for rows, step in sorted(steps.items())
    ]
    return "<br>".join(cells) or "not measured"


def _is(part: str, key: str) -> bool:
    before, after = part.split("{}")
    return key.startswith(before) and key.endswith(after) and key.removeprefix(before).removesuffix(after).isdigit()


_SEARCHES: list[tuple[str, str, Callable[[Family, Any], str]]] = [
    ("candidates N", STOCK, lambda figures, _: str(figures["candidates"])),
    ("stock pipeline, s", STOCK, lambda _, v: f"{v['seconds']:.2f}"),
    ("stock pipeline, images a second", "images a second, stock", lambda _, v: f"{v:.2f}"),
    ("best-of-N, s (of stock's)", BEST, _ratio),
    ("its shares of denoiser / decoder / verifier, %", f"shares of {BEST}", _shares),
    ("pruned search, s (of stock's)", PRUNED, _ratio),
    ("seeds it looked at", "candidates, pruned at the same cost", lambda _, v: str(v)),
    ("pruned search in the stock's time, s (of it)", IN_TIME, _ratio),
    ("seeds it looked at", "candidates, pruned in the stock's time", lambda _, v: str(v)),
    ("peak GiB: stock / best-of-N / pruned", PRUNED, _memory),
    (
        "`micro_batch=1`: largest difference to the stock image",
        "strict mode, largest difference to the stock image",
        lambda _, v: str(v),
    ),
]
_TRAINING = [
    ("a step of DoRI", "DoRI, {} draws"),
    ("with gradient checkpointing", "DoRI, {} draws, gradient checkpointing"),
    ("a step of fine-tuning, with it", "fine-tuning, {} rows, gradient checkpointing"),
]


def _how(measured: Mapping[str, Any]) -> str:
    settings, versions = measured["settings"], measured["versions"]
    repeats = ", ".join(
        f"{figures[STOCK]['repeats']} ({NAMES[name]})" for name, figures in measured["families"].items()
    )
    return (
        f"{measured['machine']}, torch {versions['torch']}, diffusers {versions['diffusers']}, {settings['dtype']}, "
        f"random weights, {settings['steps']} steps, micro-batches of {settings['micro_batch']}, the families' own "
        f"sizes and guidance. Medians after one call to warm up, of calls: {repeats}; too few for an interval. The "
        "searches of FLUX.1, and DoRI of 4 draws without gradient checkpointing, are of an earlier run on a machine of "
        "the same kind."
    )


def _rows_words(families: list[Family]) -> str:
    """What gradient checkpointing saves, where the same number of rows was measured both ways."""
    both = [
        (NAMES[name], figures["DoRI, 4 draws"], figures["DoRI, 4 draws, gradient checkpointing"])
        for name, figures in zip(NAMES, families, strict=True)
        if {"DoRI, 4 draws", "DoRI, 4 draws, gradient checkpointing"} <= figures.keys()
        and not isinstance(figures["DoRI, 4 draws"], str)
    ]
    changes = "; ".join(
        f"{name} {plain['peak GiB']:.1f} to {saved['peak GiB']:.1f} GiB, "
        f"{plain['seconds']:.2f} to {saved['seconds']:.2f} s"
        for name, plain, saved in both
    )
    return f"Gradient checkpointing of 4 draws at once: {changes}. A lone step of few rows pays most for it."


def _what(searched: Mapping[str, Family], steps: int) -> str:
    """The figures in words."""
    overheads = [figures[f"overhead of {BEST}"] for figures in searched.values()]
    ratios = _each(searched, lambda f: f[PRUNED]["seconds"] / f[STOCK]["seconds"], 2)
    clocks = _each(searched, lambda f: look_price(f, steps)[0], 1)
    counted = _each(searched, lambda f: look_price(f, steps)[1], 1)
    explained = _each(searched, lambda f: expected_ratio(f, steps), 2)
    differences = [figures["strict mode, largest difference to the stock image"] for figures in searched.values()]
    timed = {name: figures for name, figures in searched.items() if IN_TIME in figures}
    kept = sum(figures[IN_TIME]["seconds"] <= figures[STOCK]["seconds"] for figures in timed.values())
    seeds = _each(timed, lambda f: f["candidates, pruned in the stock's time"], 0)
    plain = _each(timed, lambda f: f["candidates"], 0)
    equal = "equal to the bit" if not any(differences) else "not always equal to the bit"
    return (
        f"- In strict mode the winner and the stock pipeline's image are {equal} in {len(differences)} families, one "
        "winner each.\n"
        f"- Best-of-N takes {min(overheads):.2f} to {max(overheads):.2f} times the stock pipeline's time for the same "
        "images and scores.\n"
        f'- A pruned search "at the same counted cost" takes {ratios} times the stock pipeline\'s time. '
        f"FLOP undercount looks where the denoiser is small: by the clock a look costs {clocks} denoiser calls; by "
        f"the count at most {counted}. That makes {explained} times; the rest, such as small and padded micro-batches "
        "after the cuts, was not taken apart.\n"
        f"- With the stock pipeline's seconds as its budget it kept within them in {kept} of {len(timed)} families and "
        f"looked at {seeds} seeds instead of {plain}.\n{_ahead(searched)}"
    )


def _ahead(searched: Mapping[str, Family]) -> str:
    """The run of the lookahead search in words."""
    runs = {name: figures[AHEAD] for name, figures in searched.items() if AHEAD in figures}
    same = {name: run for name, run in runs.items() if AHEAD_SAME in run}
    timed = {name: run for name, run in runs.items() if AHEAD_TIME in run}
    ratios = _each(same, lambda run: run[AHEAD_SAME]["seconds"] / run[STOCK]["seconds"], 2)
    drafts = _each(same, lambda run: run[f"candidates, {AHEAD_SAME}"], 0)
    kept = _each(timed, lambda run: run[AHEAD_TIME]["seconds"] / run[STOCK]["seconds"], 2)
    seeds = _each(timed, lambda run: run[f"candidates, {AHEAD_TIME}"], 0)
    return (
        f"- Lookahead (`1:0.06+3`), a run of its own with one timed call each: at the same counted cost {drafts} "
        f"drafts took {ratios} times that run's stock time, so that looks cost more than was counted here too. With "
        f"the stock pipeline's seconds as its budget it took {kept} of them, for {seeds} drafts."
    )


def _each(searched: Mapping[str, Family], value: Callable[[Family], float], digits: int) -> str:
    return ", ".join(f"{value(figures):.{digits}f} ({NAMES[name]})" for name, figures in searched.items())


BLOCKS = (accelerator,)
