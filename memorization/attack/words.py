"""Words: a search for an ordinary text that brings the image back, by anyone who can call the model forwards.

MemBench (Hong et al., TMLR 2025, section 4): Gibbs sampling over the words of a prompt: take a position, propose words
for it, score each prompt by the model, draw one by ``softmax(score / temperature)``. Their proposals are BERT's 200
likeliest fillers and their score ``|| eps(x, c) - eps(x, empty) ||^2`` at pure noise, which needs no image; their
published temperature is 0.1 and the prompt 8 words long.

Where we differ: proposals are drawn from the tokenizer's whole words, or from the user's own list, so nothing is
downloaded; with the image at hand the score is minus its diffusion loss on draws fixed for the search, and the
published score is an option; scores are divided by their deviation among the proposals, so one temperature suits all
models (0 is greedy); the best prompt so far is what counts at a budget. A budget is a number of positions tried. Of a
flow model the published score takes velocities in place of noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from diffkit.errors import InputError
from diffkit.parameterization import is_flow
from diffkit.prompt_embeds import Embeds
from memorization.attack.base import FORWARD, Attack, Batch, Found
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


class Words(Attack):
    """Gibbs (or greedy) search over words.

    Args:
        length: words of the prompt; an encoder with fewer places is filled completely.
        proposals: words tried for a position, besides the one that stands there.
        temperature: in units of the scores' deviation; 0 is greedy.
        score: "loss" (of the target image) or "magnitude" (Wen's, without the image).
        vocabulary: words to choose from; None takes every whole word of at least two letters the tokenizer knows.

    Raises:
        InputError: a count below 1, a negative temperature, an unknown score.
    """

    name = "words"
    rung = 1

    def __init__(
        self,
        *,
        budgets: Sequence[int] = (0, 1, 10, 25, 50),
        micro_batch: int = 8,
        rows: int = 64,
        draws: int = 8,
        length: int = 8,
        proposals: int = 15,
        temperature: float = 0.1,
        score: Score = "loss",
        vocabulary: Sequence[str] | None = None,
    ) -> None:
        super().__init__(budgets=budgets, micro_batch=micro_batch, rows=rows, draws=draws)
        if length < 1 or proposals < 1 or temperature < 0:
            raise InputError("Expected at least 1 word, 1 proposal and a temperature of 0 or more.")
        if score not in ("loss", "magnitude"):
            raise InputError(f"Expected the score to be loss or magnitude, got {score!r}.")
        self.length, self.proposals, self.temperature, self.score = length, proposals, temperature, score
        self.vocabulary = tuple(vocabulary) if vocabulary is not None else None

    def search(self, pipe: DiffusionPipeline, batch: Batch, checkpoint: Checkpoint) -> Found:
        """Attack one batch, going on from the checkpoint if it holds a state."""
        text = TextSpace(pipe)
        words = _vocabulary(text, self.vocabulary)
        loss = objective(pipe, batch.images, rows=self.rows)
        with frozen(pipe), torch.no_grad():
            gibbs = _Gibbs(self, pipe, text, words, loss, batch)
            history = gibbs.run(checkpoint)
            embeddings = [text.encode_ids(ids) for ids in history]
        return Found(embeddings, [[text.text(row) for row in ids] for ids in history])

    def cost_per_step(self) -> float:
        """Every proposal on every draw, without gradients."""
        return (self.proposals + 1) * self.draws * FORWARD


class _Gibbs:
    """The running search of one batch."""

    def __init__(
        self, settings: Words, pipe: DiffusionPipeline, text: TextSpace, words: Tensor, loss: Objective, batch: Batch
    ) -> None:
        self.settings, self.pipe, self.text, self.words, self.loss = settings, pipe, text, words, loss
        self.sources = batch.sources
        self.ids = text.begin(batch.texts, batch.sources, min(settings.length, text.slots))
        self.judges: Draws = loss.draw(batch.sources, settings.draws, stratified=True)
        self.best = self.ids.clone()
        self.most = self._scores(self.ids[:, None])[:, 0]

    def run(self, checkpoint: Checkpoint) -> list[Tensor]:
        """(B, k) best ids at each budget."""
        budgets = self.settings.budgets
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
            fresh.append(torch.randint(len(self.words), (self.settings.proposals,), generator=source))
        row = torch.arange(len(self.ids), device=self.ids.device)
        proposed = self.ids[:, None].repeat(1, self.settings.proposals + 1, 1)
        proposed[row, 1:, torch.tensor(place)] = self.words[torch.stack(fresh).to(self.words.device)]
        scores = self._scores(proposed)
        top = scores.argmax(1)
        better = scores[row, top] > self.most
        self.most = torch.where(better, scores[row, top], self.most)
        self.best = torch.where(better[:, None], proposed[row, top], self.best)
        self.ids = proposed[row, choose(scores, self.settings.temperature, self.sources)]

    def _scores(self, ids: Tensor) -> Tensor:
        """(B, P) scores, higher = better, of (B, P, k) prompts."""
        flat = self.text.encode_ids(ids.flatten(0, 1))
        return -self.loss.loss(flat, self.judges) if self.settings.score == "loss" else self._magnitudes(flat)

    def _magnitudes(self, flat: Embeds) -> Tensor:
        """(B, P) mean over draws of the squared difference between the predictions with and without the text.

        At the noisiest training timestep, on the judges' noise as latents: what the published score looks at.

        Args:
            flat: B * P rows, image by image.
        """
        noise = self.judges.noise
        count, scheduler = len(noise), self.pipe.scheduler
        candidates = len(flat) // count
        top = scheduler.config.num_train_timesteps - (0 if is_flow(scheduler) else 1)
        last = torch.full((count,), top, device=noise.device)
        empty = empty_text(self.pipe).expand(count)
        found = torch.zeros(count, candidates, device=noise.device)
        for index in range(noise.shape[1]):
            latents = noise[:, index]
            nothing = self.loss.denoiser(latents, last, empty).float()
            for candidate in range(candidates):
                rows = flat.rows([image * candidates + candidate for image in range(count)])
                said = self.loss.denoiser(latents, last, rows).float()
                found[:, candidate] += (said - nothing).square().flatten(1).sum(1)
        return found / noise.shape[1]

    def _state(self, step: int, history: list[Tensor]) -> State:
        return {
            "step": torch.tensor(step),
            "sources": torch.stack([source.get_state() for source in self.sources]),
            "ids": self.ids,
            "best": self.best,
            "most": self.most,
            "history": torch.stack(history) if history else torch.empty(0),
        }

    def _restore(self, state: State) -> tuple[int, list[Tensor]]:
        device = self.ids.device
        for source, saved in zip(self.sources, state["sources"], strict=True):
            source.set_state(saved.clone())  # torch reads the whole storage of a view
        self.ids, self.best, self.most = (state[name].to(device) for name in ("ids", "best", "most"))
        return int(state["step"]), list(state["history"].to(device))


def _vocabulary(text: TextSpace, words: Sequence[str] | None) -> Tensor:
    """Ids of the words to choose from.

    Raises:
        InputError: none of the user's words is one token of this tokenizer.
    """
    if words is None:
        natural = [i for i in text.words.tolist() if (word := text.text(torch.tensor([i]))).isalpha() and len(word) > 1]
    else:
        known = set(text.words.tolist())
        ids = [text.ids(word).tolist() for word in words]
        natural = sorted({found[0] for found in ids if len(found) == 1 and found[0] in known})
    if not natural:
        given = "of the words given is" if words is not None else "of its tokens is"
        raise InputError(f"A search over words needs words that are one token each; none {given} one here.")
    return torch.tensor(natural, device=text.words.device)
