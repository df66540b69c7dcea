"""A search that pauses at its budgets, so that it need not go on for targets whose answer is certain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from diffkit.prompt_embeds import Embeds
from memorization.attack.base import Attack, Target, TargetBatch, Triggers, digest
from memorization.attack.checkpoint import Checkpoint, Checkpoints, State, Unsaved, narrowed

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

__all__ = ["Looks"]


class Looks:
    """One batch of targets, searched from look to look.

    Going on from a pause is going on from a saved state, which gives the same numbers as never pausing. Targets that
    are left off make the batch smaller; the numbers of the others change by rounding at most.

    Args:
        attack: with the budgets of all looks.
        pipe: a pipeline of a known family.
        targets: at most ``micro_batch`` of the attack; a smaller batch is filled up by repeating the last one.
        checkpoints: where the state is saved.

    Raises:
        ValueError: no targets, or more than a batch.

    Example:
        >>> from diffkit import load_pipeline
        >>> from memorization import Dori, Target
        >>> looks = Looks(Dori(budgets=(0, 1, 2), draws=1, micro_batch=2), load_pipeline("lab"), [
        ...     Target(torch.rand(3, 64, 64), text="a red circle", seed=seed) for seed in range(2)])
        >>> [triggers.budgets for triggers in looks.advance(2)]
        [(0, 1), (0, 1)]
        >>> looks.keep([1])
        >>> [triggers.budgets for triggers in looks.advance(3)]
        [(0, 1, 2)]
    """

    def __init__(
        self,
        attack: Attack,
        pipe: DiffusionPipeline,
        targets: Sequence[Target],
        checkpoints: Checkpoints | None = None,
    ) -> None:
        if not 0 < len(targets) <= attack.micro_batch:
            raise ValueError(f"targets: expected 1 to {attack.micro_batch}, got {len(targets)}")
        self.attack, self.pipe, self.checkpoints = attack, pipe, checkpoints
        self.targets = list(targets)
        self._batch = [*targets, *[targets[-1]] * (attack.micro_batch - len(targets))]
        self._state: State | None = None

    def advance(self, looks: int, *, rows: int | None = None) -> list[Triggers]:
        """Search up to the first so many budgets.

        Args:
            looks: how many of the attack's budgets.
            rows: through the denoiser at once; by default the attack's own.

        Returns:
            For each target its triggers at these budgets.
        """
        attack = self.attack.with_batches(rows=rows)
        batch = TargetBatch.of(self.pipe, self._batch)
        paused = _Paused(self._saved(attack, batch), self._state)
        embeddings, texts = attack.up_to(looks).search(self.pipe, batch, paused)
        self._state = paused.load()
        budgets, cost = tuple(attack.budgets[:looks]), attack.cost()[:looks]
        results = []
        for i in range(len(self.targets)):
            embeds = Embeds.cat([kept.rows([i]) for kept in embeddings[:looks]]).to("cpu", torch.float32)
            prompts = tuple(row[i] for row in texts[:looks]) if texts is not None else None
            results.append(Triggers(budgets, embeds, cost, prompts))
        return results

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these targets alone, by their places in the batch."""
        if len(rows) < len(self.targets):
            self.targets = [self.targets[row] for row in rows]
            self._batch = list(self.targets)
            self._state = None if self._state is None else narrowed(self._state, rows)

    def _saved(self, attack: Attack, batch: TargetBatch) -> Checkpoint:
        """The checkpoint of the present batch; one file for all its looks."""
        if self.checkpoints is None:
            return Unsaved()
        seeds = [target.seed for target in self._batch]
        return self.checkpoints.open(digest(self.pipe, attack.settings() | {"seeds": seeds}, batch))


class _Paused:
    """A state in memory before a checkpoint's; of the two, the one that is further counts."""

    def __init__(self, checkpoint: Checkpoint, state: State | None) -> None:
        self._checkpoint, self._state = checkpoint, state
        self._due = False

    def load(self) -> State | None:
        """The state that is furthest, on the CPU, or None."""
        states = [state for state in (self._state, self._checkpoint.load()) if state is not None]
        return max(states, key=lambda state: int(state["step"]), default=None)

    def due(self, step: int, *, last: bool = False) -> bool:
        """At a pause, and whenever the checkpoint's own is due."""
        self._due = self._checkpoint.due(step, last=last)
        return last or self._due

    def save(self, state: Mapping[str, Tensor]) -> None:
        """Replace the state in memory, and the checkpoint's where it is due."""
        self._state = {name: tensor.detach().cpu().clone() for name, tensor in state.items()}
        if self._due:
            self._checkpoint.save(self._state)
