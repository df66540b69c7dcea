"""Words: a gradient-free search for an ordinary text that brings the image back.

MemBench (Hong et al., TMLR 2025, section 4): Gibbs sampling over the words of a prompt: take a position, propose words
for it, score each prompt by the model, draw one by ``softmax(score / temperature)``. Their proposals are BERT's 200
likeliest fillers and their score ``|| eps(x, c) - eps(x, empty) ||^2`` at pure noise, which needs no image; their
published temperature is 0.1 and the prompt 8 words long.

Where we differ: proposals are drawn from the tokenizer's whole words, or from the user's own list, so nothing is
downloaded; with the image at hand the score is minus its diffusion loss on draws fixed for the search, and the
published score is an option; scores are divided by their deviation among the proposals, so one temperature suits all
models (0 is greedy); at a budget the best prompt so far is kept. A budget is a number of positions tried. Of a
flow model the published score takes velocities in place of noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from diffkit.errors import InputError
from diffkit.parameterization import is_flow
from diffkit.prompt_embeds import Embeds
from memorization.attack.base import FORWARD, Attack, BatchTriggers, TargetBatch
from memorization.attack.checkpoint import Checkpoint, State
from memorization.attack.objective import Draws, Objective, frozen, objective
from memorization.attack.token_embeddings import TextSpace
from memorization.text_embeddings import empty_text

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

Score = Literal["loss", "magnitude"]


def choose(scores: Tensor, temperature: float, sources: Sequence[torch.Generator]) -> Tensor:
    """(B,) which proposal each image takes, by its own generator.

    Args:
        scores: (B, P), higher = better.
        temperature: of the softmax over scores in units of their deviation; 0 takes the best, the first of equals.
        sources: one CPU generator an image, advanced by one draw whatever the temperature.
    """
    random = torch.stack([torch.rand(scores.shape[1], generator=source) for source in sources]).to(scores.device)
    if temperature == 0:
        return scores.argmax(1)
    standard = scores / scores.std(1, keepdim=True).clamp(min=1e-12) / temperature
    return (standard - (-random.clamp(min=1e-12).log()).log()).argmax(1)  # Gumbel: a draw from the softmax


@dataclass(frozen=True, eq=False, kw_only=True)
class Words(Attack):
    """Gibbs (or greedy) search over words.

    Attributes:
        length: words of the prompt; an encoder with fewer places is filled completely.
        proposals: words tried for a position, besides the present one.
        temperature: in units of the scores' deviation; 0 is greedy.
        score: "loss" (of the target image) or "magnitude" (Wen's, without the image).
        vocabulary: words to choose from; None = every whole word of at least two letters in the tokenizer.

    Raises:
        InputError: a count below 1, a negative temperature, an unknown score.
    """

    name = "words"
    rung = 1

    length: int = 8
    proposals: int = 15
    temperature: float = 0.1
    score: Score = "loss"
    vocabulary: Sequence[str] | None = None

    def __post_init__(self) -> None:
        """Check the options."""
        super().__post_init__()
        if self.length < 1 or self.proposals < 1 or self.temperature < 0:
            raise InputError("Expected at least 1 word, 1 proposal and a temperature of 0 or more.")
        if self.score not in ("loss", "magnitude"):
            raise InputError(f"Expected the score to be loss or magnitude, got {self.score!r}.")
        object.__setattr__(self, "vocabulary", None if self.vocabulary is None else tuple(self.vocabulary))

    def search(self, pipe: DiffusionPipeline, batch: TargetBatch, checkpoint: Checkpoint) -> BatchTriggers:
        """Attack one batch, going on from the checkpoint if it holds a state."""
        text = TextSpace(pipe)
        words = _vocabulary(text, self.vocabulary)
        loss = objective(pipe, batch.images, rows=self.rows)
        with frozen(pipe), torch.no_grad():
            gibbs = _Gibbs(self, pipe, text, words, loss, batch)
            history = gibbs.run(checkpoint)
            embeddings = [text.encode_ids(ids) for ids in history]
        return BatchTriggers(embeddings, [[text.text(row) for row in ids] for ids in history])

    def cost_per_step(self) -> float:
        """Every proposal on every draw, without gradients."""
        return (self.proposals + 1) * self.draws * FORWARD


class _Gibbs:
    """The running search of one batch."""

    def __init__(
        self,
        options: Words,
        pipe: DiffusionPipeline,
        text: TextSpace,
        words: Tensor,
        loss: Objective,
        batch: TargetBatch,
    ) -> None:
        self.options, self.pipe, self.text, self.words, self.loss = options, pipe, text, words, loss
        self.sources = batch.sources
        self.ids = text.begin(batch.texts, batch.sources, min(options.length, text.slots))
        self.draws: Draws = loss.draw(batch.sources, options.draws, stratified=True)
        self.best = self.ids.clone()
        self.best_score = self._scores(self.ids[:, None])[:, 0]

    def run(self, checkpoint: Checkpoint) -> list[Tensor]:
        """(B, k) best ids at each budget."""
        budgets = self.options.budgets
        history: list[Tensor] = [self.best.clone()] if budgets[0] == 0 else []
        done = 0
        if (state := checkpoint.load()) is not None:
            done, history = self._restore(state)
        for step in range(done + 1, budgets[-1] + 1):
            self._step()
            if step in budgets:
                history.append(self.best.clone())
            if checkpoint.due(step, last=step == budgets[-1]):
                checkpoint.save(self._state(step, history))
        return history

    def _step(self) -> None:
        """One position of each prompt: propose, score, draw."""
        place, fresh = [], []
        for source in self.sources:
            place.append(int(torch.randint(self.ids.shape[1], (), generator=source)))
            fresh.append(torch.randint(len(self.words), (self.options.proposals,), generator=source))
        row = torch.arange(len(self.ids), device=self.ids.device)
        proposed = self.ids[:, None].repeat(1, self.options.proposals + 1, 1)
        proposed[row, 1:, torch.tensor(place)] = self.words[torch.stack(fresh).to(self.words.device)]
        scores = self._scores(proposed)
        top = scores.argmax(1)
        better = scores[row, top] > self.best_score
        self.best_score = torch.where(better, scores[row, top], self.best_score)
        self.best = torch.where(better[:, None], proposed[row, top], self.best)
        self.ids = proposed[row, choose(scores, self.options.temperature, self.sources)]

    def _scores(self, ids: Tensor) -> Tensor:
        """(B, P) scores, higher = better, of (B, P, k) prompts."""
        flat = self.text.encode_ids(ids.flatten(0, 1))
        return -self.loss.loss(flat, self.draws) if self.options.score == "loss" else self._magnitudes(flat)

    def _magnitudes(self, flat: Embeds) -> Tensor:
        """(B, P) mean over draws of the squared difference between the predictions with and without the text.

        At the noisiest training timestep, on the noise of the fixed draws as latents, as published.

        Args:
            flat: B * P rows, image by image.
        """
        noise = self.draws.noise
        count, scheduler = len(noise), self.pipe.scheduler
        candidates = len(flat) // count
        top = scheduler.config.num_train_timesteps - (0 if is_flow(scheduler) else 1)
        last = torch.full((count,), top, device=noise.device)
        empty = empty_text(self.pipe).expand(count)
        magnitudes = torch.zeros(count, candidates, device=noise.device)
        for index in range(noise.shape[1]):
            latents = noise[:, index]
            unconditional = self.loss.denoiser(latents, last, empty).float()
            for candidate in range(candidates):
                rows = flat.rows([image * candidates + candidate for image in range(count)])
                conditional = self.loss.denoiser(latents, last, rows).float()
                magnitudes[:, candidate] += (conditional - unconditional).square().flatten(1).sum(1)
        return magnitudes / noise.shape[1]

    def _state(self, step: int, history: list[Tensor]) -> State:
        return {
            "step": torch.tensor(step),
            "sources": torch.stack([source.get_state() for source in self.sources]),
            "ids": self.ids,
            "best": self.best,
            "most": self.best_score,
            "history": torch.stack(history) if history else torch.empty(0),
        }

    def _restore(self, state: State) -> tuple[int, list[Tensor]]:
        device = self.ids.device
        for source, saved in zip(self.sources, state["sources"], strict=True):
            source.set_state(saved.clone())  # torch reads the whole storage of a view
        self.ids, self.best, self.best_score = (state[name].to(device) for name in ("ids", "best", "most"))
        return int(state["step"]), list(state["history"].to(device))


def _vocabulary(text: TextSpace, words: Sequence[str] | None) -> Tensor:
    """Ids of the words to choose from.

    Raises:
        InputError: none of the user's words is one token of this tokenizer.
    """
    if words is None:
        natural = [i for i in text.words.tolist() if (word := text.text(torch.tensor([i]))).isalpha() and len(word) > 1]
    else:
        typeable = set(text.words.tolist())
        tokens = [text.ids(word).tolist() for word in words]
        natural = sorted({ids[0] for ids in tokens if len(ids) == 1 and ids[0] in typeable})
    if not natural:
        given = "of the words given is" if words is not None else "of its tokens is"
        raise InputError(f"A search over words needs words that are one token each; none {given} one here.")
    return torch.tensor(natural, device=text.words.device)
