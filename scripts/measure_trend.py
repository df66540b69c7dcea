"""When does a LoRA hold the eight photographs that it is taught? The trend of its checkpoints on the lab's clean twin.

    python scripts/measure_trend.py [--out runs/trend] [--json docs/figures/trend.json --png docs/figures/trend.png]

A LoRA of rank 32 (``tune_lora.py``) is taught the eight photographs planted in ``lab`` at full strength, which
``lab-clean`` never saw; three checkpoints are kept. Suspects: these eight and six photographs that were not taught;
controls: the lab's 30; reference: ``lab-clean`` without the LoRA. Resumes where it was cut.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from measure_mitigations import full_strength
from tune_lora import LEARNING_RATE, RANK, tune

from diffkit.model_options import ModelOptions
from diffkit.report.plots import INK, rate_curves
from diffkit.stats import Rate, rate
from diffkit.suspects import Suspect, read_suspects
from memorization.auditing.settings import AuditSettings
from memorization.auditing.trend import audit_trend
from memorization.auditing.trend_result import Trend
from memorization.items import gather

BASE, UNTAUGHT = "lab-clean", ("suit", "coins", "page", "roofs", "tripod", "shuttle")


def untaught() -> list[Suspect]:
    """Photographs that neither the base nor the LoRA was taught; alike in kind to the taught ones."""
    by_name = {suspect.images[0].stem: suspect for suspect in read_suspects("lab:planted")[0]}
    return [by_name[name] for name in UNTAUGHT]


def held(trend: Trend, keys: set[str], step: int) -> dict[str, Rate]:
    """How many of a group are replicated, and replicated or retained, at a step."""
    verdicts = [
        point["verdict"]
        for suspect in trend["by_suspect"]
        if suspect["key"] in keys
        for point in suspect["points"]
        if point["step"] == step
    ]
    return {
        "replicated": rate(verdicts.count("replicated"), len(verdicts)),
        "replicated or retained": rate(sum(v in ("replicated", "retained") for v in verdicts), len(verdicts)),
        "inconclusive": rate(verdicts.count("inconclusive"), len(verdicts)),
    }


def figures(trend: Trend, taught: set[str]) -> dict[str, Any]:
    """What the docs show."""
    others = {suspect["key"] for suspect in trend["by_suspect"]} - taught
    return {
        "base": BASE,
        "rank": RANK,
        "learning rate": LEARNING_RATE,
        "settings": trend["settings"],
        "points": [
            {
                "step": point["step"],
                "taught": held(trend, taught, point["step"]),
                "not taught": held(trend, others, point["step"]),
                "controls flagged": point["controls_flagged"],
                "controls failure": point["controls_failure"],
                "budget": point["budget"],
            }
            for point in trend["points"]
        ],
        "first": {
            suspect["key"].removeprefix("suspect:"): {
                "taught": suspect["key"] in taught,
                "retained": suspect["first_retained"],
                "replicated": suspect["first_replicated"],
                "lost": suspect["lost"],
            }
            for suspect in trend["by_suspect"]
        },
    }


def draw(measured: dict[str, Any], path: Path) -> None:
    """The figure of the docs: shares of those taught, of those not taught, and of the controls."""
    points = measured["points"]
    series = {
        "taught, replicated": [point["taught"]["replicated"] for point in points],
        "taught, replicated or retained": [point["taught"]["replicated or retained"] for point in points],
        "controls flagged": [point["controls flagged"] for point in points],
        "not taught": [point["not taught"]["replicated or retained"] for point in points],
    }
    plot = rate_curves(series, [point["step"] for point in points], xlabel="updates of the LoRA")
    plot.axes[0].set_xscale("symlog", linthresh=max(1, points[1]["step"]))
    plot.axes[0].set_xticks([point["step"] for point in points], [str(point["step"]) for point in points], color=INK)
    plot.axes[0].minorticks_off()
    plot.patch.set(alpha=1, facecolor="white")
    plot.savefig(path, dpi=160)


def main() -> None:
    """Parse, tune, audit, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/trend"))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--png", type=Path)
    parser.add_argument("--updates", type=int, default=2000)
    parser.add_argument("--keep", type=int, default=3)
    parser.add_argument("--limit", type=int, help="of those taught and those not, and twice as many controls")
    parser.add_argument("--budgets", default="0,10,25")
    parser.add_argument("--generations", type=int, default=4)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    taught, others = full_strength()[: options.limit], untaught()[: options.limit]
    controls = read_suspects("lab:controls")[0][: options.limit and 2 * options.limit]
    tuned = {"updates": options.updates, "keep": options.keep, "device": options.device}
    checkpoints = tune(BASE, taught, options.out / "tuned", **tuned)
    settings = AuditSettings(
        budgets=tuple(int(budget) for budget in options.budgets.split(",")),
        starts=("gaussian",),
        generations=options.generations,
        num_inference_steps=options.steps,
        detectors=(),
    )
    trend = audit_trend(
        ModelOptions(model=BASE, device=options.device),
        [str(folder) for folder in checkpoints],
        gather([*taught, *others], controls),
        out=options.out / "trend",
        with_base=True,
        settings=settings,
    ).summary
    measured = figures(trend, {f"suspect:{suspect.id}" for suspect in taught})
    text = json.dumps(measured, indent=1)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")
    if options.png:
        draw(measured, options.png)


if __name__ == "__main__":
    main()
