"""DoRI: a text embedding that brings a given image back, found by textual inversion on the text encoder's output.

"Finding Dori: Memorization in Text-to-Image Diffusion Models Is Not Local" (arXiv 2507.16880): with all weights
frozen, minimise over the embedding ``y`` the plain diffusion loss of the image,

    E || target - model(sqrt(abar_t) x + sqrt(1 - abar_t) noise, t, y) ||^2,    noise ~ N(0, I), t ~ U{0, .., T - 1}

by Adam at rate 0.1, 8 fresh draws of (noise, t) a step, 50 steps, without guidance.

The authors' code was not public when this was written. Our choices: the autoencoder's posterior mean as ``x``; the
embedding and Adam in float32 whatever the model's precision; no weight decay; all token positions move; the model's
own target and timestep law, in place of noise and uniform timesteps, where a model was trained otherwise
(:mod:`diffkit.training_objective`). The pooled embedding of SDXL, SD3 and FLUX keeps its value at the start, or is
attacked too by choice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from diffkit.prompt_embeds import Embeds
from memorization.attack.base import TargetBatch
from memorization.attack.gradient import Companions, EmbeddingAttack, Space
from memorization.attack.objective import Objective

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


class FreeEmbedding(Space):
    """Every number of the text encoder's output.

    Args:
        starts: B rows where the search begins.
        companions: of the starts; all fixed where None.
    """

    def __init__(self, starts: Embeds, companions: Companions | None = None) -> None:
        self._companions = companions or Companions(starts)
        sequence = starts.prompt_embeds.detach().float().clone().requires_grad_(True)
        self.parameters = [sequence, *self._companions.parameters]

    def embed(self) -> Embeds:
        """The parameters themselves."""
        return self._companions.with_sequences(self.parameters[0].view_as(self.parameters[0]))


class Dori(EmbeddingAttack):
    """DoRI on a pipeline of any family.

    Options: see :class:`memorization.attack.gradient.EmbeddingAttack`; the defaults are the published ones.

    Example:
        >>> from diffkit import load_pipeline, read_suspects
        >>> from diffkit.images import load_image
        >>> from memorization import Dori, Target
        >>> pipe, suspect = load_pipeline("lab"), read_suspects("lab:planted")[0][0]
        >>> attack = Dori(budgets=(0, 2), draws=2)
        >>> triggers = attack(pipe, Target(load_image(suspect.images[0]), text="a red circle"))
        >>> triggers.budgets, len(triggers.embeddings), triggers.sample_gradients
        ((0, 2), 2, (0, 4))
    """

    name = "dori"
    rung = 8

    def space(self, pipe: DiffusionPipeline, batch: TargetBatch, loss: Objective) -> Space:
        """The embedding itself, at its start."""
        starts = batch.starts.to(pipe.device)
        return FreeEmbedding(starts, self.companions(starts))
