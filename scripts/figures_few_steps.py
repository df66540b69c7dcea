"""Block of figures about few-step use, from ``few_steps``."""

from __future__ import annotations

from figures_common import MISSING, read, table


def few_steps() -> str:
    """Seeds for the price of one, by the number of steps and the decoder of the look."""
    counted = read("few_steps")
    if not counted:
        return MISSING
    decoders = list(next(iter(counted["seeds"].values())))
    rows = [[steps, *(f"{ratios[decoder]:.2f}" for decoder in decoders)] for steps, ratios in counted["seeds"].items()]
    tera = {name: value / 1e12 for name, value in counted["flop"].items()}
    return "\n\n".join(
        [
            table(["SDXL, steps", *(f"look by: {decoder}" for decoder in decoders)], rows),
            f"Counted by `scripts/few_steps.py`, not timed: one look, `{counted['schedule']}`, no guidance, 1024x1024. "
            f"A call is {tera['call']:.1f} TFLOP, a decoding {tera['decode']:.1f}, by a tiny autoencoder "
            f"{tera['preview']:.1f}, a score {tera['verify']:.2f}; where the look is free, scores are too.",
        ]
    )


BLOCKS = (few_steps,)
