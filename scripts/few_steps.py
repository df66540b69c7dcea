"""When a look pays in few-step use: seeds for the price of one, by the package's own cost arithmetic.

    python scripts/few_steps.py [--json docs/figures/few_steps.json]

FLOP of SDXL (published sizes, 1024x1024) counted on shapes alone, without guidance, as Turbo, Lightning, LCM and TCD
are used; the verifier costs what CLIP ViT-L/14 does. One look after the first call keeps half of the seeds. The ratio
is how many seeds that looks at for what best-of-N spends on one, with looks by the whole autoencoder, by a tiny one of
the published size (TAESD) and by one that costs nothing. No clock is read, and nothing says what a look sees.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import architectures
import diffusers
import torch

from diffkit.flops import pipeline_flops
from diffkit.ledger import Prices
from diffkit.prompt_embeds import Embeds
from ttsnap.schedules.pruning_schedule import PruningSchedule
from ttsnap.search.budget import schedule_cost

SCHEDULE = PruningSchedule.parse("0:0.5")
STEPS, CANDIDATES = (2, 3, 4, 6, 8), 1000
VERIFY = 162e9  # CLIP ViT-L/14 on one image, FLOP


def prices() -> Prices:
    """FLOP of SDXL without guidance, on shapes alone."""
    with torch.device("meta"):
        pipe = architectures.sdxl()
        preview = diffusers.AutoencoderTiny()
        embeds = Embeds(torch.empty(1, 77, 2048), {"pooled_prompt_embeds": torch.empty(1, 1280)})
    shape = (4, 128, 128)
    return pipeline_flops(
        pipe, shape, embeds, guidance=False, verify=VERIFY, preview=preview, size=(1024, 1024), encode=0
    )


def ratio(steps: int, priced: Prices, *, preview: bool) -> float:
    """Seeds that a search with one look tries for what best-of-N spends on one."""
    whole = schedule_cost(PruningSchedule(), CANDIDATES, steps, priced)
    return whole / schedule_cost(SCHEDULE, CANDIDATES, steps, priced, preview=preview)


def figures() -> dict[str, Any]:
    """Prices, and the ratio for each number of steps and decoder."""
    priced = prices()
    free = Prices(priced.call, priced.decode, 0.0, preview=0.0)
    result = {
        str(steps): {
            "whole autoencoder": ratio(steps, priced, preview=False),
            "tiny autoencoder": ratio(steps, priced, preview=True),
            "free": ratio(steps, free, preview=True),
        }
        for steps in STEPS
    }
    flop = {"call": priced.call, "decode": priced.decode, "preview": priced.preview, "verify": priced.verify}
    return {"schedule": str(SCHEDULE), "flop": flop, "seeds": result}


def main() -> None:
    """Print, and write where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    text = json.dumps(figures(), indent=1)
    if path := parser.parse_args().json:
        path.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
