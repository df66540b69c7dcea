"""The loop of all attacks that follow gradients: draw, differentiate, Adam, constrain, keep at the budgets.

A technique is a *space*: which numbers are varied and how they become the text embedding. Everything is per image
(draws, Adam's moments, loss), so many images run at once as if each ran alone. The state after any step can be saved;
a search that goes on from it ends at the same numbers, to the last bit, as one that was never interrupted.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from diffkit.errors import InputError
from memorization.attack.base import Attack, Batch, Found
from memorization.attack.checkpoint import Checkpoint, State, Unsaved
from memorization.attack.objective import Objective, frozen, objective

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


class Space:
    """Base of the spaces: numbers to be varied, and the embedding they make.

    Attributes:
        parameters: float32 leaves, each (B, ...).
    """

    parameters: list[Tensor]

    def embed(self) -> Tensor:
        """(B, L, D) embeddings, differentiable in the parameters."""
        raise NotImplementedError

    def constrain(self) -> None:
        """Bring the parameters back to where they may be, after a step."""

    def note(self) -> None:
        """Look at the present parameters before a budget is kept or a step is taken, e.g. to remember the best."""

    def kept(self) -> Tensor:
        """(B, L, D) embeddings to keep at a budget."""
        return self.embed().detach().clone()

    def memory(self) -> State:
        """What the space remembers besides its parameters."""
        return {}

    def remember(self, state: State) -> None:
        """The inverse of :meth:`memory`."""


def descend(
    space: Space,
    loss: Objective,
    sources: Sequence[torch.Generator],
    *,
    budgets: Sequence[int],
    learning_rate: float,
    draws: int,
    weight_decay: float = 0.0,
    checkpoint: Checkpoint | None = None,
) -> Tensor:
    """Minimise the loss over the space and keep the embedding at each budget.

    Args:
        space: what is varied; changed in place.
        loss: of the target images.
        sources: one CPU generator an image.
        budgets: steps after which to keep the embedding, rising; the last one ends the search.
        learning_rate: Adam's (AdamW's with a weight decay).
        draws: pairs of noise and timestep per image and step.
        weight_decay: decoupled.
        checkpoint: where the state is saved and looked for.

    Returns:
        (len(budgets), B, L, D) float32.
    """
    checkpoint = checkpoint or Unsaved()
    optimizer = torch.optim.AdamW(space.parameters, lr=learning_rate, weight_decay=weight_decay)
    kept: list[Tensor] = []
    done = 0
    if (state := checkpoint.load()) is not None:
        done = _restore(state, space, optimizer, sources)
        kept = list(state["kept"].to(space.parameters[0].device))
    elif budgets[0] == 0:
        space.note()
        kept = [space.kept()]
    for step in range(done + 1, budgets[-1] + 1):
        drawn = loss.draw(sources, draws)
        with torch.enable_grad():
            embeddings = space.embed()
            gradients = torch.autograd.grad(embeddings, space.parameters, loss.gradient(embeddings, drawn))
        for parameter, gradient in zip(space.parameters, gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()
        with torch.no_grad():
            space.constrain()
            space.note()
        if step in budgets:
            kept.append(space.kept())
        if checkpoint.due(step, last=step == budgets[-1]):
            checkpoint.save(_state(step, kept, space, optimizer, sources))
    return torch.stack(kept)


def _state(
    step: int, kept: list[Tensor], space: Space, optimizer: torch.optim.Optimizer, sources: Sequence[torch.Generator]
) -> State:
    """Everything the next step depends on."""
    state = {"step": torch.tensor(step), "sources": torch.stack([source.get_state() for source in sources])}
    state["kept"] = torch.stack(kept) if kept else torch.empty(0)
    for i, parameter in enumerate(space.parameters):
        state[f"parameter.{i}"] = parameter
        state |= {f"adam.{i}.{name}": value for name, value in optimizer.state[parameter].items()}
    return state | {f"space.{name}": value for name, value in space.memory().items()}


def _restore(state: State, space: Space, optimizer: torch.optim.Optimizer, sources: Sequence[torch.Generator]) -> int:
    """Put a state back; returns how many steps it had taken."""
    for source, saved in zip(sources, state["sources"], strict=True):
        source.set_state(saved.clone())  # torch reads the whole storage of a view
    moments = {}
    for i, parameter in enumerate(space.parameters):
        parameter.data.copy_(state[f"parameter.{i}"])
        prefix = f"adam.{i}."
        moments[i] = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
    space.remember({name.removeprefix("space."): value for name, value in state.items() if name.startswith("space.")})
    return int(state["step"])


class GradientAttack(Attack):
    """Base of the attacks that descend in a space.

    Args:
        learning_rate: Adam's.

    Raises:
        InputError: a learning rate that is not positive.
    """

    weight_decay: ClassVar[float] = 0.0

    def __init__(
        self,
        *,
        budgets: Sequence[int] = (0, 1, 10, 25, 50),
        micro_batch: int = 8,
        rows: int = 64,
        draws: int = 8,
        learning_rate: float = 0.1,
    ) -> None:
        super().__init__(budgets=budgets, micro_batch=micro_batch, rows=rows, draws=draws)
        if not learning_rate > 0:
            raise InputError(f"Expected a positive learning rate, got {learning_rate}.")
        self.learning_rate = learning_rate

    def search(self, pipe: DiffusionPipeline, batch: Batch, checkpoint: Checkpoint) -> Found:
        """Attack one batch, going on from the checkpoint if it holds a state."""
        with frozen(pipe.unet, pipe.text_encoder):
            loss = objective(pipe, batch.images, rows=self.rows)
            space = self.space(pipe, batch, loss)
            kept = descend(
                space,
                loss,
                batch.sources,
                budgets=self.budgets,
                learning_rate=self.learning_rate,
                draws=self.draws,
                weight_decay=self.weight_decay,
                checkpoint=checkpoint,
            )
        return Found(kept, self.texts(space))

    @abstractmethod
    def space(self, pipe: DiffusionPipeline, batch: Batch, loss: Objective) -> Space:
        """What this technique varies, at its beginning. May draw from the batch's generators."""

    def texts(self, space: Space) -> list[list[str]] | None:
        """What one would type at each budget, for each target; None where the trigger is no text."""
        return None
