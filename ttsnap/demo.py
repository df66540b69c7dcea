"""The search's part of ``diffkit demo``: best-of-N against TTSnap at equal counted cost, judged mechanically."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from diffkit.demo import Demonstration

if TYPE_CHECKING:
    from PIL.Image import Image

    from ttsnap.pipeline import TTSnapPipeline
    from ttsnap.search.output import TTSnapPipelineOutput

PROMPTS, CANDIDATES, STEPS = 24, 4, 20


class Outcome(NamedTuple):
    """One search of one prompt."""

    seeds: int
    reward: float
    correct: bool
    tflop: float
    seconds: float
    image: Image


#: The three ways that are compared: what each adds to the call.
WAYS: dict[str, dict[str, Any]] = {
    "one seed": {"num_candidates": 1},
    f"best of {CANDIDATES}": {"num_candidates": CANDIDATES},
    f"TTSnap, cost of best of {CANDIDATES}": {"budget": f"{CANDIDATES}x", "schedule": "lab"},
}


def search(pipe: TTSnapPipeline, caption: str, prompt_index: int, options: Mapping[str, Any], *, seed: int) -> Outcome:
    """Search one caption and let the mechanical judge look at the winner."""
    import time

    from torchvision.transforms.functional import to_tensor

    from diffkit.lab.judge import check

    began = time.perf_counter()
    settings: dict[str, Any] = {
        "num_inference_steps": STEPS,
        "guidance_scale": 3.0,
        "seed": seed,
        "first_prompt": prompt_index,
    }
    out = cast("TTSnapPipelineOutput", pipe(caption, **settings, **options))
    seconds = time.perf_counter() - began
    image = cast("Image", out.images[0])
    spent = out.ledger.cost.at(out.ledger.flops)
    return Outcome(
        seeds=len(out.trace[0].candidates),
        reward=out.rewards[0],
        correct=check(to_tensor(image), caption).correct,
        tflop=float("nan") if spent is None else spent / 1e12,
        seconds=seconds,
        image=image,
    )


def search_captions(captions: list[str], *, seed: int = 0, model: str = "lab") -> dict[str, list[Outcome]]:
    """Search every caption in each of :data:`WAYS`; the same run seed, so the pools share their first seeds."""
    from diffkit.console import progress
    from ttsnap.pipeline import TTSnapPipeline

    pipe = TTSnapPipeline.from_pretrained(model, reward="lab-noise-aware")
    pipe.set_progress_bar_config(disable=True)
    outcomes: dict[str, list[Outcome]] = {name: [] for name in WAYS}
    with progress("searching", total=len(captions) * len(WAYS)) as bar:
        for index, caption in enumerate(captions):
            for name, options in WAYS.items():
                outcomes[name].append(search(pipe, caption, index, options, seed=seed))
                bar.advance()
    return outcomes


def demonstrate(folder: Path) -> Demonstration:
    """Compare the three ways on held-out scenes and keep every winner in one picture."""
    from diffkit.images import contact_sheet, save_png
    from diffkit.lab.world import held_out_scenes

    captions = [scene.caption for scene in held_out_scenes(PROMPTS, seed=31)]
    by_way = search_captions(captions)
    folder.mkdir(parents=True, exist_ok=True)
    save_png(
        contact_sheet([outcome.image for row in by_way.values() for outcome in row], columns=PROMPTS),
        folder / "winners.png",
    )
    (folder / "captions.txt").write_text("\n".join(captions) + "\n")
    rows = []
    for name, outcomes in by_way.items():
        n = len(outcomes)
        rows.append(
            (
                name,
                round(sum(o.seeds for o in outcomes) / n),
                f"{sum(o.tflop for o in outcomes) / n:.3f}",
                f"{sum(o.reward for o in outcomes) / n:.3f}",
                f"{sum(o.correct for o in outcomes)} of {n}",
                f"{sum(o.seconds for o in outcomes) / n:.1f}",
            )
        )
    return Demonstration(
        f"Seed search on {PROMPTS} held-out scenes (winners.png: one row a way, one column a caption)",
        ("way", "seeds", "TFLOP a prompt", "reward", "right by the judge", "seconds a prompt"),
        rows,
        [("winners", folder / "winners.png"), ("captions", folder / "captions.txt")],
    )
