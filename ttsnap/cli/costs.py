"""What a call and a look cost where rewards are replayed: one rule for ``fit`` and ``simulate``."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Literal, NamedTuple

from diffkit.console import say
from diffkit.errors import InputError

if TYPE_CHECKING:
    from diffkit.ledger import Prices
    from ttsnap.reward_tensor import RewardTensor

__all__ = ["Costs", "costs_of"]


class Costs(NamedTuple):
    """Prices, and whether they were given, came with the rewards, or were published with them."""

    prices: Prices
    source: Literal["given", "recorded", "published"]

    def to_json(self) -> dict[str, float | str | None]:
        """As JSON."""
        return {**asdict(self.prices), "source": self.source}


def costs_of(rewards: RewardTensor, call: float | None, verify: float | None) -> Costs:
    """The given costs, else those that came with the rewards; the published ones are said aloud.

    Raises:
        InputError: one of the two is given alone, a call costs nothing, or no costs are given and none came.
    """
    from diffkit.ledger import Prices
    from ttsnap.evaluation.accounting import PUBLISHED_PRICES
    from ttsnap.evaluation.budget_curves import known_prices

    if call is not None and verify is not None:
        if call <= 0:
            raise InputError("A denoiser call must cost something; give --call-cost above 0.")
        return Costs(Prices(call, 0.0, verify), "given")
    if call is not None or verify is not None:
        raise InputError("Give both --call-cost and --verify-cost, in one unit.")
    prices = known_prices(rewards)
    if prices != PUBLISHED_PRICES:
        return Costs(prices, "recorded")
    say(f"Costs as published for FLUX.1-dev at 512 x 512: {prices.call} a call and {prices.verify} a look; "
        "--call-cost and --verify-cost give others.")  # fmt: skip
    return Costs(prices, "published")
