"""The ladder of attackers, by the access they need: from a prompt box to the weights and the inside of the pipeline.

1. ``words``: a text of ordinary words, searched without gradients. Anyone with a prompt box can use it.
2. ``hard-tokens``: a text of any tokens, searched with gradients. Anyone can type it; the search needs the weights.
3. to 5. ``soft-tokens-1/4/16``: vectors in place of words, before the text encoder (a textual-inversion file).
6. ``low-rank``: the text encoder's output, displaced by a matrix of low rank.
7. ``norm-bounded``: the text encoder's output, displaced within a ball.
8. ``dori``: the text encoder's output, free. It may have more numbers than the image's own latents.

Rung 0 is the caption itself. The report names the weakest rung that succeeds: the lower it is, the easier the image is
to extract, and the less of the image the trigger itself can hold.
"""

from __future__ import annotations

from collections.abc import Mapping

from diffkit.errors import InputError

CAPTION = "caption"


def ladder() -> tuple[str, ...]:
    """The caption and all registered attacks, from the weakest to the strongest."""
    from memorization.attack import attacks

    return (CAPTION, *sorted(attacks.names(), key=lambda name: (rung_of(name), name)))


def rung_of(name: str) -> int:
    """Place of an attack on the ladder, from its class attribute ``rung``; 0 for the caption.

    Raises:
        InputError: no attack has that name, or it has no rung.
    """
    if name == CAPTION:
        return 0
    from memorization.attack import attacks

    rung = getattr(attacks.get(name), "rung", None)
    if not isinstance(rung, int):
        raise InputError(f"The attack {name!r} has no rung on the ladder; give its class an integer `rung`.")
    return rung


def weakest(success: Mapping[str, bool | None]) -> str | None:
    """The weakest rung that succeeded, or None when none did.

    Args:
        success: rung name -> whether it brought the image back; None = not tried or not scored, which is neither a
            success nor a failure.

    Example:
        >>> weakest({"dori": True, "soft-tokens-4": True, "words": False})
        'soft-tokens-4'
    """
    successful = [name for name, succeeded in success.items() if succeeded]
    return min(successful, key=lambda name: (rung_of(name), name)) if successful else None
