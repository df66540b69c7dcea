"""What a measured allocation keeps low: the loss on ordinary data, or that less what is left of the memories."""

from __future__ import annotations

from collections.abc import Callable

from diffkit.prompt_embeds import Embeds
from diffkit.seeds import item_seed
from memorization.attack.base import Target
from memorization.attack.dori import Dori
from memorization.mitigation.pruning.calibration import Calibration, NoisedRows
from memorization.mitigation.pruning.settings import PruneSettings

__all__ = ["Fitness", "attacked_loss", "make_objective"]

Fitness = Callable[[], float]  # of the pipeline as it is; lower = better


def make_objective(calibration: Calibration, settings: PruneSettings) -> Fitness:
    """The objective of the settings, on the same noise at each call.

    - ``loss``: the diffusion loss on ordinary data, L_ord.
    - ``forget``: ``L_ord - forget * L_mem``, L_mem the loss of the suspects' images under their captions.
    - ``dori``: ``L_ord - forget * L_att``, L_att their loss under embeddings that :func:`attacked_loss` found.
    """
    memorized = calibration.memorized

    def objective() -> float:
        ordinary = calibration.loss(calibration.ordinary)
        if settings.objective == "loss" or memorized is None:
            return ordinary
        if settings.objective == "forget":
            return ordinary - settings.forget * calibration.loss(memorized)
        return ordinary - settings.forget * attacked_loss(calibration, memorized, settings)

    return objective


def attacked_loss(calibration: Calibration, memorized: NoisedRows, settings: PruneSettings) -> float:
    """Mean loss of the first suspects' images under embeddings of a short DoRI attack on the pipeline as it is.

    Each search begins at an ordinary caption; the loss is taken on noise that no search has seen. Higher = the memories
    are harder to bring back.
    """
    assert calibration.images is not None  # read with the memorized rows
    images = calibration.images[: settings.attack_images]
    every = calibration.ordinary.embeds
    targets = [
        Target(image, every.rows([place * settings.draws % len(every)]), item_seed(settings.seed, str(place), "dori"))
        for place, image in enumerate(images)
    ]
    attack = Dori(budgets=(settings.attack_steps,), micro_batch=len(targets), rows=settings.batch, draws=4)
    triggers = Embeds.cat([trigger.embeds for trigger in attack(calibration.pipe, targets)])
    n = len(targets) * settings.draws
    owners = [row // settings.draws for row in range(n)]
    rows = NoisedRows(memorized.noisy[:n], memorized.timesteps[:n], memorized.target[:n], triggers.rows(owners))
    return calibration.loss(rows)
