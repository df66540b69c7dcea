"""Block of figures about published architectures on an accelerator, from two runs of ``bench_families``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from figures_common import MISSING, read, table

from ttsnap.schedules.pruning_schedule import PruningSchedule

NAMES = {"sd15": "SD 1.5", "sdxl": "SDXL", "flux": "FLUX.1", "sd35-medium": "SD 3.5 medium"}
SCHEDULE = PruningSchedule.parse("2:0.4,6:0.4,11:0.5")  # of bench_families
DORI, TUNING = "DoRI, 4 draws", "fine-tuning, 4 rows, gradient checkpointing"
SIZE = "denoiser, million parameters"
STOCK, BEST, PRUNED = "stock", "best of N", "pruned at the same cost"
Family = Mapping[str, Any]


def accelerator() -> str:
    """Stock pipeline, searches and training steps of each family."""
    measured, earlier = read("families"), read("families_training")
    if not measured or not earlier:
        return MISSING
    runs = [[run["families"].get(name, {}) for run in (measured, earlier)] for name in NAMES]
    sizes = [next(f"{figures[SIZE]:,.0f}" for figures in both if SIZE in figures) for both in runs]
    rows = [[SIZE, *sizes]]
    rows += [[name, *(_cell(both[0], part, show) for both in runs)] for name, part, show in _SEARCHES]
    rows += [[f"{name}, s; peak GiB", *(_trained(both, part) for both in runs)] for name, part in _TRAINING]
    searched = {name: figures for name, figures in measured["families"].items() if BEST in figures}
    words = _what(searched, measured["settings"]["steps"])
    return f"{table(['', *NAMES.values()], rows)}\n\n{_how(measured, earlier)}\n\n{words}"


def look_price(figures: Family, steps: int) -> tuple[float, float]:
    """What one look costs in denoiser calls: by the clocks of best-of-N, and at most by the counted cost."""
    n, shares = figures["candidates"], figures[f"shares of {BEST}"]
    cost = SCHEDULE.cost(figures["candidates of the pruned search"], steps)
    by_clock = (shares["decoder"] + shares["verifier"]) * steps / shares["denoiser"]
    return by_clock, (n * steps - cost.calls) / (cost.decoded - n)


def expected_ratio(figures: Family, steps: int) -> float:
    """Seconds of the pruned search over the stock pipeline's, if calls and looks took what they take in best-of-N."""
    n, shares = figures["candidates"], figures[f"shares of {BEST}"]
    cost = SCHEDULE.cost(figures["candidates of the pruned search"], steps)
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


def _trained(runs: list[Family], part: str) -> str:
    """The figures of the later run, then of the earlier one."""
    cells = [_cell(figures, part, lambda _, v: f"{v['seconds']:.2f}; {v['peak GiB']:.1f}") for figures in runs]
    return " / ".join(cell for cell in cells if cell != "not measured") or "not measured"


_SEARCHES: list[tuple[str, str, Callable[[Family, Any], str]]] = [
    ("candidates N", STOCK, lambda figures, _: str(figures["candidates"])),
    ("stock pipeline, s", STOCK, lambda _, v: f"{v['seconds']:.2f}"),
    ("stock pipeline, images a second", "images a second, stock", lambda _, v: f"{v:.2f}"),
    ("best-of-N, s (of stock's)", BEST, _ratio),
    ("its shares of denoiser / decoder / verifier, %", f"shares of {BEST}", _shares),
    ("pruned search, s (of stock's)", PRUNED, _ratio),
    ("seeds it looked at", "candidates of the pruned search", lambda _, v: str(v)),
    ("peak GiB: stock / best-of-N / pruned", PRUNED, _memory),
    (
        "`micro_batch=1`: largest difference to the stock image",
        "strict mode, largest difference to the stock image",
        lambda _, v: str(v),
    ),
]
_TRAINING = [("one step of DoRI, 4 draws at once", DORI), ("one step of fine-tuning, 4 rows", TUNING)]


def _how(measured: Mapping[str, Any], earlier: Mapping[str, Any]) -> str:
    settings, versions = measured["settings"], measured["versions"]
    again = earlier["settings"]["repeats"]
    return (
        f"{measured['machine']}, torch {versions['torch']}, diffusers {versions['diffusers']}, {settings['dtype']}, "
        f"random weights, {settings['steps']} steps, micro-batches of {settings['micro_batch']}, the families' own "
        "sizes and guidance. n = 1: one call after one to warm up, so there is no interval. The second figures of a "
        f"training step are of an earlier run (median of {again} calls); SD 3.5 medium is of that run alone. Its "
        "searches were not measured: the later run ended before it. FLUX.1's step of fine-tuning failed with a CUDA "
        "error after the lack of memory, and says nothing of what it needs."
    )


def _what(searched: Mapping[str, Family], steps: int) -> str:
    """The figures in words."""
    overheads = [figures[f"overhead of {BEST}"] for figures in searched.values()]
    ratios = _each(searched, lambda f: f[PRUNED]["seconds"] / f[STOCK]["seconds"], 2)
    clocks = _each(searched, lambda f: look_price(f, steps)[0], 1)
    counted = _each(searched, lambda f: look_price(f, steps)[1], 1)
    explained = _each(searched, lambda f: expected_ratio(f, steps), 2)
    differences = [figures["strict mode, largest difference to the stock image"] for figures in searched.values()]
    equal = "equal to the bit" if not any(differences) else "not always equal to the bit"
    return (
        f"- In strict mode the winner and the stock pipeline's image are {equal} in {len(differences)} families, one "
        "winner each.\n"
        f"- Best-of-N takes {min(overheads):.2f} to {max(overheads):.2f} times the stock pipeline's time for the same "
        "images and scores.\n"
        f'- A pruned search "at the same counted cost" takes {ratios} times the stock pipeline\'s time. '
        f"FLOP undercount looks where the denoiser is small: by the clock a look costs {clocks} denoiser calls; by "
        f"the count at most {counted}. That makes {explained} times; the rest, such as small and padded micro-batches "
        "after the cuts, was not taken apart."
    )


def _each(searched: Mapping[str, Family], value: Callable[[Family], float], digits: int) -> str:
    return ", ".join(f"{value(figures):.{digits}f} ({NAMES[name]})" for name, figures in searched.items())


BLOCKS = (accelerator,)
