"""The ladder of attackers, from what anyone can type to what needs the weights and the inside of the pipeline.

1. ``words``: a text of ordinary words, found without gradients. Anyone with a prompt box can use it.
2. ``hard-tokens``: a text of any tokens, found with gradients. Anyone can type it, only who has the weights finds it.
3. to 5. ``soft-tokens-1/4/16``: vectors in place of words, before the text encoder (a textual-inversion file).
6. ``low-rank``: the text encoder's output, moved by a matrix of low rank.
7. ``norm-bounded``: the text encoder's output, moved by little.
8. ``dori``: the text encoder's output, moved freely. More free numbers than the image's own latents may have.

Below them all stands the caption itself. The report names the weakest rung that succeeds: the lower, the easier the
image is to get, and the less can a trigger have carried the image by itself.
"""

from __future__ import annotations

from collections.abc import Mapping

from diffkit.errors import InputError

CAPTION = "caption"
#: Rungs from the weakest; an attack of somebody else stands where its class attribute ``rung`` says.
RUNGS: tuple[str, ...] = (
    CAPTION,
    "words",
    "hard-tokens",
    "soft-tokens-1",
    "soft-tokens-4",
    "soft-tokens-16",
    "low-rank",
    "norm-bounded",
    "dori",
)


def rung_of(name: str) -> int:
    """Place of an attack on the ladder, 0 for the caption; only unknown names import the attack itself.

    Raises:
        InputError: no attack has that name, or it does not say its rung.
    """
    if name in RUNGS:
        return RUNGS.index(name)
    from memorization.attack import attacks

    rung = getattr(attacks.get(name), "rung", None)
    if not isinstance(rung, int):
        raise InputError(f"The attack {name!r} has no rung on the ladder; give its class an integer `rung`.")
    return rung


def weakest(success: Mapping[str, bool | None]) -> str | None:
    """The weakest rung that succeeded, or None when none did.

    Args:
        success: rung name -> whether it brought the image back; None = not tried or not to be scored, which is
            neither a success nor a failure.

    Example:
        >>> weakest({"dori": True, "soft-tokens-4": True, "words": False})
        'soft-tokens-4'
    """
    found = [name for name, succeeded in success.items() if succeeded]
    return min(found, key=lambda name: (rung_of(name), name)) if found else None
