"""The ledger's arithmetic, and FLOP against counting by hand."""

from __future__ import annotations

import pytest
import torch
from tiny import tiny_pipeline
from torch.utils.flop_counter import FlopCounterMode

from diffkit.conditioning import encode_prompts
from diffkit.errors import InputError
from diffkit.flops import count_flops, pipeline_flops
from diffkit.ledger import Budget, Cost, Ledger, Prices, parse_budget


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("16x", (16, "x")),
        ("2.5X", (2.5, "x")),
        ("3.2TFLOP", (3.2e12, "FLOP")),
        ("800 GFLOPs", (8e11, "FLOP")),
        ("40s", (40, "s")),
        ("1.5min", (90, "s")),
    ],
)
def test_budgets_are_read(text, budget):
    assert parse_budget(text) == Budget(*budget)


@pytest.mark.parametrize("text", ["", "16", "x", "-3x", "0x", "3 parsecs", "1e3x", "nanx"])
def test_other_budgets_are_refused(text):
    with pytest.raises(InputError, match="Cannot read the budget"):
        parse_budget(text)


def test_flop_of_a_linear_layer_by_hand():
    layer = torch.nn.Linear(5, 7)
    assert count_flops(layer, ("a",), lambda: layer(torch.empty(3, 5))) == 2 * 3 * 5 * 7
    assert count_flops(layer, ("a",), lambda: 1 / 0) == 2 * 3 * 5 * 7  # measured once for each shape


@pytest.mark.parametrize("guidance", [True, False])
def test_prices_are_what_real_calls_cost(guidance):
    pipe = tiny_pipeline()
    embeds, rows = encode_prompts(pipe, ["a"]).prompt_embeds, 2 if guidance else 1
    prices = pipeline_flops(pipe, (4, 16, 16), embeds, guidance=guidance, verify=3.0)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        pipe.unet(torch.zeros(rows, 4, 16, 16), torch.tensor(1), embeds.repeat(rows, 1, 1))
    assert prices.call == counter.get_total_flops() > 0
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        pipe.vae.decode(torch.zeros(1, 4, 16, 16))
    assert prices.decode == counter.get_total_flops() > 0
    assert prices.verify == 3.0


def test_unknown_is_not_zero():
    assert Cost(1, 1, 1).at(Prices(1.0, 1.0, None)) is None
    assert Cost(3, 2, 1).at(Prices(10.0, 5.0, 2.0)) == 42
    assert Cost(3, 2, 5, 4).at(Prices(10.0, 5.0, 2.0)) is None
    assert Cost(3, 2, 5, 4).at(Prices(10.0, 5.0, 2.0, preview=0.5)) == 52
    assert Cost(1, 2, 3, 4).plus(Cost(10, 20, 30, 40)) == (11, 22, 33, 44)
    assert Ledger(rows_per_call=2).to_dict()["flop"] is None


def test_ledger_counts_rows_and_time():
    ledger = Ledger(rows_per_call=2, calls=10, padding_calls=2, calibration_calls=1)
    assert ledger.denoiser_rows == 26
    with pytest.raises(KeyError), ledger.clock("decoder"):
        raise KeyError
    assert ledger.seconds["decoder"] >= 0
