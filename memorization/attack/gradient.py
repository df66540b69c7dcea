"""The loop of all attacks that follow gradients: draw, differentiate, Adam, constrain, keep at the budgets.

A technique is a *space*: which numbers are varied and how they become the text embedding. Everything is per image
(draws, Adam's moments, loss), so many images run at once as if each ran alone. The state after any step can be saved;
a search that goes on from it ends at the same numbers, to the last bit, as one that was never interrupted.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor

from diffkit.errors import InputError
from diffkit.prompt_embeds import Embeds
from memorization.attack.base import Attack, Batch, Found
from memorization.attack.checkpoint import Checkpoint, State, Unsaved
from memorization.attack.objective import Objective, frozen, objective
from memorization.text_embeddings import pooled_names, tensors

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


Pooled = Literal["fixed", "attacked"]


class Space:
    """Base of the spaces: numbers to be varied, and the embedding they make.

    Attributes:
        parameters: float32 leaves, each (B, ...).
    """

    parameters: list[Tensor]

    def embed(self) -> Embeds:
        """B rows of embeddings, differentiable in the parameters."""
        raise NotImplementedError

    def constrain(self) -> None:
        """Bring the parameters back to where they may be, after a step."""

    def note(self) -> None:
        """Look at the present parameters before a budget is kept or a step is taken, e.g. to remember the best."""

    def kept(self) -> Embeds:
        """B rows of embeddings to keep at a budget."""
        return cloned(self.embed())

    def memory(self) -> State:
        """What the space remembers besides its parameters."""
        return {}

    def remember(self, state: State) -> None:
        """The inverse of :meth:`memory`."""


def cloned(rows: Embeds) -> Embeds:
    """A copy of its own memory, without history."""
    return rows.replace(**{name: value.detach().clone() for name, value in tensors(rows).items()})


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
) -> list[Embeds]:
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
        For every budget B rows, float32.
    """
    checkpoint = checkpoint or Unsaved()
    optimizer = torch.optim.AdamW(space.parameters, lr=learning_rate, weight_decay=weight_decay)
    kept: list[Embeds] = []
    done = 0
    if (state := checkpoint.load()) is not None:
        done = _restore(state, space, optimizer, sources)
        kept = _kept(state, space.embed().detach())
    elif budgets[0] == 0:
        space.note()
        kept = [space.kept()]
    for step in range(done + 1, budgets[-1] + 1):
        drawn = loss.draw(sources, draws)
        with torch.enable_grad():
            embeddings = space.embed()
            asked = loss.gradient(embeddings, drawn)
            varied = [tensors(embeddings)[name] for name in asked]
            gradients = torch.autograd.grad(varied, space.parameters, list(asked.values()))
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
    return kept


def _state(
    step: int, kept: list[Embeds], space: Space, optimizer: torch.optim.Optimizer, sources: Sequence[torch.Generator]
) -> State:
    """Everything the next step depends on."""
    state = {"step": torch.tensor(step), "sources": torch.stack([source.get_state() for source in sources])}
    for name in tensors(kept[0]) if kept else ():
        state[f"kept.{name}"] = torch.stack([tensors(rows)[name] for rows in kept])
    for i, parameter in enumerate(space.parameters):
        state[f"parameter.{i}"] = parameter
        state |= {f"adam.{i}.{name}": value for name, value in optimizer.state[parameter].items()}
    return state | {f"space.{name}": value for name, value in space.memory().items()}


def _kept(state: State, like: Embeds) -> list[Embeds]:
    """What was kept at the budgets passed so far."""
    device = like.prompt_embeds.device
    found = {name.removeprefix("kept."): value.to(device) for name, value in state.items() if name.startswith("kept.")}
    return [like.replace(**dict(zip(found, row, strict=True))) for row in zip(*found.values(), strict=True)]


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
        with frozen(pipe):
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


class EmbeddingAttack(GradientAttack):
    """Base of the attacks on the text encoder's output.

    Args:
        pooled: leave the pooled embeddings beside the sequence as the start has them ("fixed"), or vary them too, as
            they are, by the same rate ("attacked"). Masks always stay.

    Raises:
        InputError: neither of the two, or (before the search) there is nothing pooled in this family.
    """

    def __init__(
        self,
        *,
        budgets: Sequence[int] = (0, 1, 10, 25, 50),
        micro_batch: int = 8,
        rows: int = 64,
        draws: int = 8,
        learning_rate: float = 0.1,
        pooled: Pooled = "fixed",
    ) -> None:
        super().__init__(budgets=budgets, micro_batch=micro_batch, rows=rows, draws=draws, learning_rate=learning_rate)
        if pooled not in ("fixed", "attacked"):
            raise InputError(f"Expected pooled embeddings fixed or attacked, got {pooled!r}.")
        self.pooled = pooled

    def beside(self, starts: Embeds) -> Beside:
        """The companions of a batch, those that are attacked as parameters.

        Raises:
            InputError: they shall be attacked and there are none.
        """
        names = pooled_names(starts) if self.pooled == "attacked" else []
        if self.pooled == "attacked" and not names:
            raise InputError("This family has no pooled embeddings; leave --pooled attacked out.")
        return Beside(starts, names)


class Beside:
    """What stands beside the sequence: companions, some of them free.

    Args:
        starts: B rows.
        free: names of the companions that are varied.
    """

    def __init__(self, starts: Embeds, free: Sequence[str] = ()) -> None:
        self._starts = starts
        self._free = {name: starts.companions[name].detach().float().clone().requires_grad_(True) for name in free}

    @property
    def parameters(self) -> list[Tensor]:
        """The free companions."""
        return list(self._free.values())

    def around(self, sequence: Tensor) -> Embeds:
        """The rows with this (B, L, D) sequence and the companions as they are now."""
        now = {name: value.view_as(value) for name, value in self._free.items()}
        return self._starts.replace(sequence, **now)
