"""The options of the commands that audit, and the settings that they give."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from diffkit.micro_batch import read_micro_batch
from diffkit.option_values import read_names, read_numbers, read_size

if TYPE_CHECKING:
    from memorization.auditing.settings import AuditSettings

__all__ = [
    "Alpha",
    "AttackGenerations",
    "Attacks",
    "Batch",
    "Budgets",
    "Controls",
    "Copies",
    "CorrectionMethod",
    "Draws",
    "Generations",
    "LearningRates",
    "OtherCaptions",
    "Pooled",
    "ReferenceModel",
    "Size",
    "Starts",
    "Threshold",
    "read_settings",
]

Controls = Annotated[
    str, typer.Option("--controls", "-c", help="Images the model was not trained on, in the same forms; or none.")
]
Budgets = Annotated[str, typer.Option(help="Attack steps at which to look, from 0.")]
Starts = Annotated[str, typer.Option(help="Where the attack begins: other, gaussian, prompt.")]
Generations = Annotated[int, typer.Option(min=1, help="Images from each caption.")]
AttackGenerations = Annotated[int, typer.Option(min=1, help="Images from each trigger and budget.")]
Alpha = Annotated[float, typer.Option(help="Level of the pre-set budget and of the corrected p-values.")]
CorrectionMethod = Annotated[
    Literal["bh", "holm", "none"], typer.Option(help="For many suspects: Benjamini-Hochberg, Holm, or none.")
]
Attacks = Annotated[
    str,
    typer.Option(help="Attacks, comma separated: words, soft-tokens-4, dori, ... The weakest that works is named."),
]
LearningRates = Annotated[
    str | None, typer.Option(help="Of the attacks, e.g. 0.01,0.03,0.1; the best counts. Default: each one's own.")
]
Draws = Annotated[int, typer.Option(min=1, help="Pairs of noise and timestep per attack step.")]
Pooled = Annotated[
    Literal["fixed", "attacked"],
    typer.Option(help="Pooled embeddings (SDXL, SD3, FLUX.1): as the starts have them, or attacked too."),
]
Size = Annotated[
    str | None, typer.Option(metavar="HxW", help="Height and width in pixels; the model's own by default.")
]
ReferenceModel = Annotated[
    str | None,
    typer.Option(
        help="A model not trained on the suspects; a suspect that it reproduces too is inconclusive. Default: with "
        "--lora the model without it, else none."
    ),
]
Copies = Annotated[str, typer.Option(help="Copy detector.")]
Threshold = Annotated[float | None, typer.Option(help="Its threshold; calibrated by default.")]
OtherCaptions = Annotated[
    str | None,
    typer.Option(help="Unrelated captions at which attacks start: a .txt, one a line, or another list."),
]
Batch = Annotated[int, typer.Option(min=1, help="Suspects or controls attacked at once.")]


def read_settings(
    *,
    budgets: str,
    starts: str,
    attack: str,
    learning_rates: str | None,
    draws: int,
    pooled: Literal["fixed", "attacked"],
    size: str | None,
    generations: int,
    attack_generations: int,
    steps: int,
    guidance: float,
    alpha: float,
    correction: Literal["bh", "holm", "none"],
    copies: str,
    threshold: float | None,
    seed: int,
    batch: int,
    micro_batch: str,
    other_captions: str | None,
    detector: str = "none",
    edited_controls: str = "none",
    masks: bool = False,
    attack_all: bool = False,
    triage: str | None = None,
) -> AuditSettings:
    """The settings that the options of a command stand for.

    Raises:
        InputError: an option is out of its range, or a list that it names cannot be read.
    """
    from diffkit.prompts import read_prompts
    from memorization.auditing.settings import AuditSettings

    return AuditSettings(
        budgets=read_numbers(budgets, int, "budgets such as 0,1,10,25,50"),
        starts=read_names(starts),
        attacks=read_names(attack),
        learning_rates=None
        if learning_rates is None
        else read_numbers(learning_rates, float, "learning rates such as 0.01,0.03,0.1"),
        draws=draws,
        pooled=pooled,
        size=None if size is None else read_size(size),
        detectors=() if detector == "none" else read_names(detector),
        edits=() if edited_controls == "none" else read_names(edited_controls),  # type: ignore[arg-type]  # checked there
        masks=masks,
        generations=generations,
        attack_generations=attack_generations,
        num_inference_steps=steps,
        guidance_scale=guidance,
        alpha=alpha,
        correction=correction,
        copies=copies,
        threshold=threshold,
        seed=seed,
        items_at_once=batch,
        micro_batch=read_micro_batch(micro_batch),
        other_captions=None if other_captions is None else tuple(read_prompts(other_captions)),
        attack_all=attack_all,
        triage=triage,
    )
