"""Adversarial fine-tuning: train the model against its own triggers until no embedding brings the image back.

"Finding Dori: Memorization in Text-to-Image Diffusion Models Is Not Local" (arXiv 2507.16880): pruning hides a memory
from its caption, but text embeddings still reproduce it, so all weights of the denoiser are trained on

    L = E || target - model(x_t, t, y_keep) ||^2  +  E || target - model(s_t, t, y_adv) ||^2,

x and y_keep from retention data, y_adv triggers by DoRI on the current model, s surrogates (:mod:`.surrogates`). The
authors' code was not public when this was written. Our choices, measured on the lab:

- Triggers come from a pool of searches that goes on between updates (:mod:`.trigger_pool`), not from full searches
  once an epoch; the plain caption and fresh starts are always included.
- A share of the adversarial samples begins at the *memorized* image: its noisy latents with the surrogate as the
  target, which is the same loss with shifted noise, see :func:`redirected`. It removes the attraction to the image
  for every embedding; without it a new search soon succeeds. Only at medium noise: at low noise every denoiser must
  keep its input, at high noise the input does not identify the image. Their target is the mean of the image's
  surrogates, since a random one would only add variance, and their weight is 1 - abar (sigma^2 of a flow model),
  which is the error of x0 for a model of velocity.
- Retention includes the unconditional branch: a tenth of its captions are empty.

The paper reports that LoRA failed; ``lora_rank`` trains one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from memorization.mitigation import Method
from memorization.mitigation.adversarial.settings import AdversarialSettings

if TYPE_CHECKING:
    from diffkit.families import Pipeline
    from diffkit.mitigation import Mitigation
    from diffkit.runs import Run
    from diffkit.suspects import Suspect

__all__ = ["METHOD", "mitigate"]


def mitigate(pipe: Pipeline, suspects: Sequence[Suspect], run: Run | None, settings: AdversarialSettings) -> Mitigation:
    """Train a copy of the denoiser's weights against the suspects and return the difference.

    The run keeps surrogates, drawn retention images and a checkpoint: a killed run loses at most
    ``settings.checkpoint_every`` updates and ends with the same numbers as an uninterrupted one.

    Raises:
        InputError: no retention data, an image that cannot be read, or a mask made for another model.
    """
    from memorization.mitigation.adversarial.trainer import train

    return train(pipe, suspects, run, settings)


METHOD = Method("adversarial", "delta", AdversarialSettings, mitigate, needs_images=True, shared=True)
