"""Look at candidates: decode, score, guard and flag them in micro-batches, each process its part."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from diffkit.conditioning import Conditioning
from diffkit.copy_guard import is_guarded
from diffkit.families import Pipeline, any_family_of
from diffkit.families.base import Decoding
from diffkit.image_filters import FLAGGED
from diffkit.latents import decode_latents, decode_videos
from diffkit.ledger import Cost, Ledger
from diffkit.micro_batch import MicroBatch
from diffkit.parallel import everyone, processes, shard
from diffkit.rewards.base import Reward, score_checked
from diffkit.segments import Candidate, Denoising
from ttsnap.search.config import SearchConfig
from ttsnap.search.guarding import Guarded, drop_copies
from ttsnap.search.selection import ranking
from ttsnap.search.shown import flagged_rows, pictures
from ttsnap.search.trace import Look

__all__ = ["Scorer"]


@dataclass
class Scorer:
    """Decodes candidates' latents and scores the images.

    Attributes:
        prompts: what the reward reads, by the candidates' prompts.
        charge: called with a prompt and what it has cost.
    """

    pipe: Pipeline
    reward: Reward
    prompts: Sequence[str]
    conditioning: Conditioning
    denoising: Denoising
    ledger: Ledger
    config: SearchConfig
    charge: Callable[[int, Cost], None]

    def __post_init__(self) -> None:
        """Micro-batches of their own: decoding needs another amount of memory than denoising."""
        adaptive = self.config.micro_batch == "auto"
        self.batches = MicroBatch(self.denoising.micro_batch, adaptive=adaptive, what="images to decode and score")

    @property
    def cheap(self) -> bool:
        """Whether estimates are decoded by a preview decoder."""
        return self.config.preview_vae is not None

    def rank(self, scores: Sequence[float], flagged: Sequence[bool] | None = None) -> list[int]:
        """Positions of the finite scores, best first, those that the safety checker flags after all others."""
        return ranking(scores, higher_is_better=self.reward.higher_is_better, flagged=flagged)

    def ranked(self, look: Look, rows: Sequence[int]) -> list[int]:
        """Those of the rows of a look that have a score, best first."""
        return [rows[at] for at in self.rank([look.scores[r] for r in rows], [look.flagged[r] for r in rows])]

    def decode(self, batch: Sequence[Candidate], *, final: bool) -> Tensor:
        """Images (B, 3, H, W) in [0, 1] of candidates' latents; estimates by the preview decoder where there is one.

        Of a pipeline of videos (B, frames, 3, H, W).
        """
        latents = torch.cat([candidate.latents for candidate in batch if candidate.latents is not None])
        size = self.denoising.size
        if size is not None and any_family_of(self.pipe).makes_videos:
            dtype = self.conditioning.prompt_embeds.dtype
            sources = [candidate.generator for candidate in batch]
            return decode_videos(self.pipe, latents, Decoding(size, sources, self.denoising.extra, dtype))
        return decode_latents(self.pipe, latents, None if final else self.config.preview_vae, size)

    def look(self, alive: Sequence[Candidate], *, keep: int, final: bool, log_snr: float | None) -> Look:
        """Decode and score candidates; only the ``keep`` best images of each prompt stay in memory.

        Args:
            final: whether these are finished images, which the safety checker sees.
            log_snr: the noise level of estimates; None for clean images.
        """
        own = shard(alive) if self.config.share else list(alive)
        look = self._look(own, keep=keep, final=final, log_snr=log_snr)
        self._count(alive, not final and self.cheap)
        if not self.config.share or processes() == 1:
            return look
        look = Look.joined(everyone(look))
        self._forget(look, alive, keep)
        return look

    @torch.no_grad()
    def _look(self, alive: Sequence[Candidate], *, keep: int, final: bool, log_snr: float | None) -> Look:
        """Decode and score in micro-batches, in this process."""
        similarities: list[float] = []
        look = Look([], [], {}, [], [], similarities=similarities)

        def judged(batch: Sequence[Candidate], size: int) -> tuple[Tensor, Guarded, list[bool]]:
            with self.ledger.clock("decoder" if final or not self.cheap else "preview"):
                images = self.decode(batch, final=final)
            with self.ledger.clock("verifier"):
                prompts = [self.prompts[candidate.prompt] for candidate in batch]
                scores, reasons = score_checked(self.reward, images, prompts, log_snr)
            verdicts = self._guarded(images, scores.tolist(), reasons)
            if not final:
                return images, verdicts, [False] * len(images)
            with self.ledger.clock("decoder"):
                flagged = flagged_rows(self.pipe, images, self.conditioning.prompt_embeds.dtype)
            return images, verdicts, flagged

        for _, (images, verdicts, flagged) in self.batches.each(alive, judged):
            first = len(look.scores)
            look.scores.extend(verdicts.scores)
            copies = [is_guarded(reason) for reason in verdicts.reasons]
            look.reasons.extend(
                FLAGGED if flag and not copy else reason
                for flag, copy, reason in zip(flagged, copies, verdicts.reasons, strict=True)
            )
            look.flagged.extend(flagged)
            similarities.extend(verdicts.similarities)
            if self.config.previews:
                hidden = [flag or copy for flag, copy in zip(flagged, copies, strict=True)]
                look.previews.extend(pictures(self.pipe, images, hidden))
            if keep:
                look.images.update({first + row: image.cpu().clone() for row, image in enumerate(images)})
                self._forget(look, alive, keep)
        return look

    def _guarded(self, images: Tensor, scores: Sequence[float], reasons: Sequence[str | None]) -> Guarded:
        """Scores and reasons as the copy guard leaves them."""
        if self.config.copy_guard is None:
            return drop_copies(None, images, scores, reasons)
        with self.ledger.clock("guard"):
            return drop_copies(self.config.copy_guard, images, scores, reasons)

    def _count(self, alive: Sequence[Candidate], cheap: bool) -> None:
        """Write a look into the ledger, and onto the prompts' accounts."""
        cost = Cost(0, 0, 1, 1) if cheap else Cost(0, 1, 1)
        for candidate in alive:
            self.charge(candidate.prompt, cost)
        self.ledger.decoded += len(alive) * cost.decoded
        self.ledger.previewed += len(alive) * cost.previewed
        self.ledger.verified += len(alive)
        if self.ledger.guard is not None:
            self.ledger.guard["checks"] += len(alive)

    def _forget(self, look: Look, alive: Sequence[Candidate], keep: int) -> None:
        """Drop the images that cannot win any more."""
        for prompt in {alive[row].prompt for row in look.images}:
            rows = [row for row in range(len(look.scores)) if alive[row].prompt == prompt]
            best = set(self.ranked(look, rows)[:keep])
            for row in set(rows) - best:
                look.images.pop(row, None)
