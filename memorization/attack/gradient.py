"""The loop of all attacks that follow gradients: draw, differentiate, Adam, constrain, keep at the budgets.

A technique is a *space*: its parameters, and the text embedding that follows from them. Everything is per image
(draws, Adam's moments, loss), so that an image's result does not depend on the others of its batch. The state after
any step can be saved; a search that goes on from it ends at the same numbers, to the last bit, as one that was never
interrupted.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor

from diffkit.errors import InputError
from diffkit.families import pipe_denoiser
from diffkit.gradient_checkpointing import gradient_checkpointing
from diffkit.prompt_embeds import Embeds
from memorization.attack.base import Attack, BatchTriggers, TargetBatch
from memorization.attack.checkpoint import Checkpoint, State, Unsaved
from memorization.attack.objective import Objective, frozen, objective
from memorization.text_embeddings import pooled_names, tensors

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


Pooled = Literal["fixed", "attacked"]


class Space:
    """Base of the spaces: parameters, and the embedding that follows from them.

    Attributes:
        parameters: float32 leaves, each (B, ...).
    """

    parameters: list[Tensor]

    def embed(self) -> Embeds:
        """B rows of embeddings, differentiable in the parameters."""
        raise NotImplementedError

    def constrain(self) -> None:
        """Project the parameters to the allowed set, after a step."""

    def note(self) -> None:
        """See the present parameters before a budget is kept or a step is taken, e.g. to track the best ones."""

    def kept(self) -> Embeds:
        """B rows of embeddings to keep at a budget."""
        return cloned(self.embed())

    def texts(self) -> list[list[str]] | None:
        """The prompts to type, ``[budget][target]``; None where the trigger is no text."""
        return None

    def memory(self) -> State:
        """The state of the space besides its parameters, for a checkpoint."""
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
        space: changed in place.
        loss: of the target images.
        sources: one CPU generator an image.
        budgets: steps after which to keep the embedding, rising; the last one ends the search.
        learning_rate: Adam's (AdamW's with a weight decay).
        draws: pairs of noise and timestep per image and step.
        weight_decay: decoupled.
        checkpoint: holds the state; an unfinished search goes on from it.

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
            upstream = loss.gradient(embeddings, drawn)
            outputs = [tensors(embeddings)[name] for name in upstream]
            gradients = torch.autograd.grad(outputs, space.parameters, list(upstream.values()))
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
    """The rows kept at the budgets passed so far."""
    device = like.prompt_embeds.device
    stacks = {name.removeprefix("kept."): value.to(device) for name, value in state.items() if name.startswith("kept.")}
    return [like.replace(**dict(zip(stacks, row, strict=True))) for row in zip(*stacks.values(), strict=True)]


def _restore(state: State, space: Space, optimizer: torch.optim.Optimizer, sources: Sequence[torch.Generator]) -> int:
    """Load a state; returns the number of steps it had taken."""
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


@dataclass(frozen=True, eq=False, kw_only=True)
class GradientAttack(Attack):
    """Base of the attacks that descend in a space.

    Attributes:
        learning_rate: Adam's.

    Raises:
        InputError: a learning rate that is not positive.
    """

    weight_decay: ClassVar[float] = 0.0

    learning_rate: float = 0.1

    def __post_init__(self) -> None:
        """Check the options."""
        super().__post_init__()
        if not self.learning_rate > 0:
            raise InputError(f"Expected a positive learning rate, got {self.learning_rate}.")

    def search(self, pipe: DiffusionPipeline, batch: TargetBatch, checkpoint: Checkpoint) -> BatchTriggers:
        """Attack one batch, going on from the checkpoint if it holds a state."""
        with frozen(pipe), gradient_checkpointing(pipe_denoiser(pipe)):
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
        return BatchTriggers(kept, space.texts())

    @abstractmethod
    def space(self, pipe: DiffusionPipeline, batch: TargetBatch, loss: Objective) -> Space:
        """The space of this technique, at its starting point. May draw from the batch's generators."""


@dataclass(frozen=True, eq=False, kw_only=True)
class EmbeddingAttack(GradientAttack):
    """Base of the attacks on the text encoder's output.

    Attributes:
        pooled: keep the pooled embeddings of the start ("fixed"), or optimise them too, at the same rate ("attacked").
            Masks are always kept.

    Raises:
        InputError: neither of the two, or (before the search) the family has no pooled embeddings.
    """

    pooled: Pooled = "fixed"

    def __post_init__(self) -> None:
        """Check the options."""
        super().__post_init__()
        if self.pooled not in ("fixed", "attacked"):
            raise InputError(f"Expected pooled embeddings fixed or attacked, got {self.pooled!r}.")

    def companions(self, starts: Embeds) -> Companions:
        """The companions of a batch, those that are attacked as parameters.

        Raises:
            InputError: they are to be attacked and there are none.
        """
        names = pooled_names(starts) if self.pooled == "attacked" else []
        if self.pooled == "attacked" and not names:
            raise InputError("This family has no pooled embeddings; leave --pooled attacked out.")
        return Companions(starts, names)


class Companions:
    """The companions of the sequences (pooled embeddings, masks), some of them optimised.

    Args:
        starts: B rows.
        free: names of the companions that are optimised.
    """

    def __init__(self, starts: Embeds, free: Sequence[str] = ()) -> None:
        self._starts = starts
        self._free = {name: starts.companions[name].detach().float().clone().requires_grad_(True) for name in free}

    @property
    def parameters(self) -> list[Tensor]:
        """The free companions."""
        return list(self._free.values())

    def with_sequences(self, sequences: Tensor) -> Embeds:
        """Rows of these (B, L, D) sequences and the companions at their present values."""
        values = {name: value.view_as(value) for name, value in self._free.items()}
        return self._starts.replace(sequences, **values)
