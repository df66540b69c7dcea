"""How large a budget must be before the attack brings back images the lab was never trained on.

    python scripts/measure_overpowered.py [--out runs/overpowered] [--json figures.json]

Planted photographs under captions that do not give them, against scenes the lab never saw; the learning rate is five
times the usual. Shows the pre-set budget fall back, or every attack verdict turn "inconclusive". Resumes where it was
cut; about ten minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from diffkit.images import save_png
from diffkit.lab import world
from diffkit.suspects import read_suspects
from memorization.auditing.run import audit
from memorization.auditing.settings import AuditSettings
from memorization.items import gather

PLANTED = ("cat", "cup", "portrait", "pagoda")
SETTINGS = AuditSettings(
    learning_rates=(0.5,),
    budgets=(0, 25, 50, 100, 200),
    starts=("other",),
    generations=1,
    attack_generations=3,
    draws=2,
    detectors=(),
    items_at_once=12,
    micro_batch=24,
)


def prepare(folder: Path) -> None:
    """Write the suspects and the twenty controls."""
    folder.mkdir(parents=True, exist_ok=True)
    scenes = world.held_out_scenes(20, seed=5)
    rows = []
    for index, image in enumerate(world.draw(scenes, seed=3)):
        save_png(image, folder / f"{index}.png")
        rows.append({"caption": scenes[index - 7].caption, "image": f"{index}.png"})  # its own could well give it
    planted = {suspect.id: str(suspect.images[0]) for suspect in read_suspects("lab:planted")[0]}
    suspects = [{"id": name, "caption": scenes[0].caption, "image": planted[name]} for name in PLANTED]
    for name, lines in (("suspects", suspects), ("controls", rows)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def figures(out: Path) -> dict[str, Any]:
    """Run (or resume) the audit and take what matters."""
    data = out / "data"
    prepare(data)
    gathered = gather(data / "suspects.jsonl", data / "controls.jsonl")
    summary = audit("lab", gathered, out=out / "run", settings=SETTINGS).summary
    return {
        "learning rate": SETTINGS.learning_rates,
        "threshold": summary["operating_point"]["threshold"],
        "attack": [
            {name: row[name] for name in ("budget", "suspects", "controls", "suspect_median", "control_median")}
            for row in summary["attack"]
        ],
        "pre-set budget": summary["budget"],
        "controls": summary["controls"]["failure"],
        "verdicts": summary["verdicts"],
    }


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/overpowered"))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    text = json.dumps(figures(options.out), indent=1)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
