"""Which rung of the ladder brings planted images back on the lab, and do its triggers hold elsewhere.

    python scripts/measure_ladder.py [--only rungs,transfer,rates,long] [--json docs/figures/ladder.json]

Full-strength verbatim suspects against controls no model has seen (photographs first, then held-out scenes). All
searches begin at an unrelated caption, the same way for all. Resumes where it was cut, a job being one attack on one
group of images. Success: median over seeds of the tiled similarity at or above 0.75.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffkit.conditioning import encode_prompts
from diffkit.console import progress
from diffkit.images import load_image
from diffkit.lab import planted
from diffkit.loading import load_pipeline
from diffkit.runs import Run
from diffkit.runs.files import write_bytes_atomically
from diffkit.seeds import item_seed
from diffkit.stats import clopper_pearson
from diffkit.suspects import Suspect, read_suspects
from memorization.attack import attacks
from memorization.attack.base import Target
from memorization.attack.checkpoint import Checkpoints
from memorization.attack.initialization import StartingPoints
from memorization.attack.ladder import ladder, weakest
from memorization.attack.transfer import transfer, varied_conditions
from memorization.copies.tiled import TiledCorrelation
from memorization.generation import Sampling, generate

THRESHOLD, SAMPLING, SEED = 0.75, Sampling(20, 3.0, 16), 0
RATES = (0.01, 0.03, 0.1)
LONG = (0, 10, 50, 150, 500)
SECTIONS = ("rungs", "transfer", "rates", "long")


class Job(NamedTuple):
    """One attack on some of the images."""

    name: str
    attack: str
    options: dict[str, Any]
    suspects: int
    controls: int


class Images(NamedTuple):
    """Suspects, then controls."""

    pipe: Any
    suspects: list[Suspect]
    controls: list[Suspect]
    starts: StartingPoints


def images(suspects: int, controls: int) -> Images:
    """The lab and its images."""
    pipe = load_pipeline("lab")
    pipe.set_progress_bar_config(disable=True)
    full = {entry.name for entry in planted.planted() if entry.kind == "verbatim" and entry.strength == "full"}
    known = [suspect for suspect in read_suspects("lab:planted")[0] if suspect.images[0].stem in full]
    return Images(pipe, known[:suspects], read_suspects("lab:controls")[0][:controls], StartingPoints(pipe))


def jobs(only: Sequence[str], options: argparse.Namespace) -> list[Job]:
    """What there is to do, cheapest evidence first."""
    budgets = {"budgets": tuple(int(part) for part in options.budgets.split(","))}
    n, controls, draws = options.suspects, options.controls, {"draws": options.draws}
    found = []
    if "rungs" in only:
        names = ["dori", "words", "hard-tokens", *(name for name in ladder()[3:-1])]
        found += [Job(name, name, budgets | draws, n, controls) for name in names]
    if "rates" in only:
        found += [
            Job(f"dori at {rate}", "dori", budgets | draws | {"learning_rate": rate}, n, controls)
            for rate in RATES[:-1]
        ]
    if "long" in only:
        found.append(Job("dori, long", "dori", {"budgets": LONG} | draws, min(n, 4), min(controls, 19)))
    return found


def target(all_: Images, suspect: Suspect, job: Job) -> Target:
    """One image with its unrelated caption."""
    seed = item_seed(SEED, suspect.id, "attack:other")
    own = torch.zeros(0)
    start = all_.starts.start("other", own=own, seed=seed)
    return Target(load_image(suspect.images[0]), start, seed, all_.starts.text("other", own="", seed=seed))


def run_job(all_: Images, job: Job, run: Run, seeds: int) -> dict[str, Any]:
    """Attack and evaluate: similarity by budget and seed for each image."""
    chosen = all_.suspects[: job.suspects] + all_.controls[: job.controls]
    attack = attacks.get(job.attack)(micro_batch=len(chosen), **job.options)
    checkpoints = Checkpoints(run.path(f"checkpoints-{job.name}"))
    found = attack(all_.pipe, [target(all_, one, job) for one in chosen], checkpoints=checkpoints)
    budgets = len(found[0].budgets)
    embeddings = torch.cat([one.embeddings for one in found])
    write_bytes_atomically(run.path(f"triggers-{job.name}.pt"), _bytes(embeddings))
    negative = encode_prompts(all_.pipe, [""], guidance=False).prompt_embeds
    drawn = [s for one in chosen for _ in range(budgets) for s in fresh(one, "evaluate", seeds)]
    rows = embeddings.repeat_interleave(seeds, 0)
    made = generate(all_.pipe, rows, negative, drawn, sampling=SAMPLING).images.split(budgets * seeds)
    copies = TiledCorrelation()
    similarity = [
        copies.similarity(part, load_image(one.images[0])[None])[:, 0].view(budgets, seeds).tolist()
        for part, one in zip(made, chosen, strict=True)
    ]
    return {
        "budgets": list(found[0].budgets),
        "sample gradients": list(found[0].sample_gradients),
        "suspects": similarity[: job.suspects],
        "controls": similarity[job.suspects :],
        "texts": [one.texts[-1] for one in found] if found[0].texts else None,
    }


def _bytes(tensor: Tensor) -> bytes:
    from safetensors.torch import save

    return bytes(save({"embeddings": tensor}))


def fresh(suspect: Suspect, purpose: str, n: int) -> list[int]:
    """Seeds of one image for one purpose."""
    return [item_seed(SEED, suspect.id, purpose, i) for i in range(n)]


def share(values: Sequence[Sequence[float]]) -> dict[str, Any]:
    """How many medians reach the threshold, with the exact 95 % interval."""
    medians = [median(row) for row in values]
    k, n = sum(value >= THRESHOLD for value in medians), len(medians)
    low, high = clopper_pearson(k, n)
    return {"k": k, "n": n, "share": k / n, "low": low, "high": high, "median": median(medians), "max": max(medians)}


def curve(record: dict[str, Any]) -> list[dict[str, Any]]:
    """One row a budget."""
    return [
        {
            "budget": budget,
            "sample gradients": record["sample gradients"][i],
            "suspects": share([one[i] for one in record["suspects"]]),
            "controls": share([one[i] for one in record["controls"]]),
        }
        for i, budget in enumerate(record["budgets"])
    ]


def transfers(all_: Images, run: Run, tried: Sequence[str], seeds: int) -> dict[str, Any]:
    """The last triggers of some attacks under other conditions, and on the twin that never saw the images."""
    from safetensors.torch import load

    table: dict[str, Any] = {}
    pipes, twin = {"lab": all_.pipe}, load_pipeline("lab-clean")
    twin.set_progress_bar_config(disable=True)
    for name in tried:
        if name not in run.done:
            continue
        n = len(run.done[name]["suspects"])
        embeddings = load(run.path(f"triggers-{name}.pt").read_bytes())["embeddings"]
        last = embeddings.unflatten(0, (-1, len(run.done[name]["budgets"])))[:n, -1]
        known = [load_image(one.images[0])[None] for one in all_.suspects[:n]]
        tried_so = varied_conditions(SAMPLING, tuple(range(100, 100 + seeds)), tuple(range(200, 200 + seeds)))
        found = transfer(pipes, last, known, TiledCorrelation(), tried_so)
        found += transfer({"lab-clean": twin}, last, known, TiledCorrelation(), tried_so[1:2])
        table[name] = {f"{one.model}, {one.condition.name}": one.rate(THRESHOLD) for one in found}
    return table


def figures(run: Run) -> dict[str, Any]:
    """What the docs show."""
    found: dict[str, Any] = {"threshold": THRESHOLD, "rungs": {}, "rates": {}, "long": None}
    for key, record in run.done.items():
        if key.startswith("dori at "):
            found["rates"][key.removeprefix("dori at ")] = curve(record)
        elif key == "dori, long":
            found["long"] = curve(record)
        elif key != "transfer":
            found["rungs"][key] = curve(record)
    found["rungs"] = {name: found["rungs"][name] for name in ladder() if name in found["rungs"]}
    found["texts"] = {key: record["texts"] for key, record in run.done.items() if record.get("texts")}
    medians = {name: [median(one[-1]) for one in run.done[name]["suspects"]] for name in found["rungs"]}
    each = zip(*medians.values(), strict=True)
    names = [weakest({name: hit >= THRESHOLD for name, hit in zip(medians, row, strict=True)}) for row in each]
    found["weakest rung of each suspect"] = names
    found["transfer"] = run.done["transfer"]["table"] if "transfer" in run.done else None
    return found


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/ladder"))
    parser.add_argument("--only", default=",".join(SECTIONS), help="sections, comma separated")
    parser.add_argument("--suspects", type=int, default=4)
    parser.add_argument("--controls", type=int, default=19)
    parser.add_argument("--budgets", default="10,50")
    parser.add_argument("--draws", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    only = options.only.split(",")
    config = {key: getattr(options, key) for key in ("suspects", "controls", "budgets", "draws", "seeds")}
    all_ = images(options.suspects, options.controls)
    with Run.open(options.out, config=config, kind="ladder") as run:
        todo = [job for job in jobs(only, options) if job.name not in run.done]
        with progress("ladder", total=len(todo)) as bar:
            for job in todo:
                run.write(job.name, run_job(all_, job, run, options.seeds))
                Checkpoints(run.path(f"checkpoints-{job.name}")).clear()
                bar.advance()
        if "transfer" in only and "transfer" not in run.done:
            run.write("transfer", {"table": transfers(all_, run, ("soft-tokens-4", "dori"), options.seeds)})
        found = {"settings": config} | figures(run)
    text = json.dumps(found, indent=1)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
