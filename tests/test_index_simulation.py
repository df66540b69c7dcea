"""``simulate`` with an index rule: what it shows is what a replay of the rule costs and gains; overruns are said."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from diffkit.cli import app
from diffkit.errors import InputError
from diffkit.ledger import Prices
from ttsnap.alignment import expected_best_of_n
from ttsnap.evaluation.simulate import simulate
from ttsnap.fitting.index_fit import replay_index, replay_total
from ttsnap.reward_tensor import RewardTensor, save_npz
from ttsnap.schedules.index_book import IndexBook
from ttsnap.schedules.index_rule import IndexRule
from ttsnap.schedules.load import load_schedule
from ttsnap.schedules.score_model import ScoreModel

CALLS = 10
PRICES = Prices(2.0, 0.0, 1.0)
FINISHED = CALLS * 2.0 + 1.0


def recorded(prompts: int = 12, pool: int = 40, seed: int = 0) -> RewardTensor:
    """Looks that tell more of the final reward from call to call; prompts differ in mean and spread."""
    rng = np.random.default_rng(seed)
    final = rng.normal(size=(prompts, 1)) + rng.normal(size=(prompts, pool)) * rng.uniform(0.5, 2, size=(prompts, 1))
    noise = rng.normal(size=(prompts, pool, CALLS)) * np.linspace(1, 0.1, CALLS)
    return RewardTensor(final[..., None] + noise, final, "made", prices=PRICES)


@pytest.fixture(scope="module")
def book() -> IndexBook:
    model = ScoreModel.fit(recorded(seed=1), (2, 5))
    return IndexBook(model, model.costs(PRICES), ((2.0, 0.2), (8.0, 0.03)))


@pytest.mark.parametrize("spend", ["total", "mean"])
def test_the_table_shows_the_replay_and_its_total_cost(book: IndexBook, spend: str) -> None:
    tensor = recorded()
    result = simulate(tensor, book, "2x,4x", spend=spend, resamples=3, seed=5)
    points = result.to_dict()[0]["budgets"]
    for stream, (amount, point) in enumerate(zip((2, 4), points, strict=True)):
        how = {"resamples": 3, "seed": 5, "stream": stream}
        mean, total = replay_index(book.at(amount), tensor, **how), replay_total(book.at(amount), tensor, amount, **how)
        run = total if spend == "total" else mean
        best = expected_best_of_n(tensor.final, amount).mean()
        assert point["budget"] == amount * FINISHED
        assert point["best_of_n"]["candidates"] == amount
        assert point["index"]["reward"] == pytest.approx(run.values.mean())
        assert point["index"]["total"] == pytest.approx(FINISHED * run.spent.sum() / 3)
        assert point["index"]["total_budget"] == pytest.approx(12 * amount * FINISHED)
        assert point["index"]["largest"] == pytest.approx(FINISHED * run.spent.max())
        assert point["difference"]["mean"] == pytest.approx(run.values.mean() - best)
        assert point["index"]["overrun"] == (run.spent.mean() > amount * (1 + 1e-6))
        assert f"{100 * run.spent.mean() / amount:.1f} %" in str(result)
    assert len(result.table(result.curves[0])[0]) == len(result.headers)


def test_an_overrun_is_said_and_savings_are_not(book: IndexBook) -> None:
    for price, overrun in ((1e-4, True), (1.0, False)):
        priced = IndexBook(book.model, book.costs, ((4.0, price),), caution=0.0)
        text = str(simulate(recorded(), priced, "4x", spend="mean", resamples=2))
        said = ("spent more than the budget in all", "(overrun)", "not at equal cost")
        assert [words in text for words in said] == [overrun] * 3


def test_the_costs_are_those_of_the_rewards(book: IndexBook) -> None:
    """A rule that was fitted at other prices is charged what its looks cost here."""
    tensor, dear = recorded(), Prices(1.0, 0.0, 5.0)
    point = simulate(tensor, book, "4x", prices=dear, spend="mean", resamples=2).to_dict()[0]["budgets"][0]
    rule = IndexRule(book.model, np.array([3 + 5, 3 + 5, 4 + 5]) / 15, book.at(4.0).price, 8.0)
    run = replay_index(rule, tensor, resamples=2)
    assert point["index"]["total"] == pytest.approx(15 * run.spent.sum() / 2)


def test_the_command_takes_the_file_of_fit(book: IndexBook, tmp_path: Path) -> None:
    save_npz(tmp_path / "t.npz", recorded())
    (tmp_path / "index.json").write_text(book.to_json())
    arguments = ["ttsnap", "simulate", str(tmp_path / "t.npz"), "--schedule", str(tmp_path / "index.json"),
                 "--budgets", "2x,4x", "--resamples", "2"]  # fmt: skip
    table, shown, plotted = (
        CliRunner().invoke(app, [*arguments, *more])
        for more in ([], ["--format", "json", "--spend", "mean"], ["--plot", str(tmp_path / "c.png")])
    )
    assert (table.exit_code, shown.exit_code, plotted.exit_code) == (0, 0, 0), table.output + plotted.output
    assert "of the total budget" in table.stdout
    expected = simulate(recorded(), book, "2x,4x", spend="mean", resamples=2).to_dict()
    assert json.loads(shown.stdout)["rewards"] == json.loads(json.dumps(expected))
    assert (tmp_path / "c.png").stat().st_size > 1000


def test_refusals(book: IndexBook, tmp_path: Path) -> None:
    tensor = recorded()
    (tmp_path / "index.json").write_text(book.to_json())
    with pytest.raises(InputError, match="holds an index rule"):
        load_schedule(tmp_path / "index.json")
    with pytest.raises(InputError, match="by one reward"):
        simulate([tensor, tensor], book, "2x", combine="rank")
    with pytest.raises(InputError, match="counts exactly"):
        simulate(tensor, book, "2x", accounting="published")
    looks = tensor.looks.copy()
    looks[:, :, 5] = np.nan
    with pytest.raises(InputError, match="looks at step 5, but made was recorded at 0, 1, 2, 3, 4, 6"):
        simulate(RewardTensor(looks, tensor.final, "made", prices=PRICES), book, "2x")
    with pytest.raises(InputError, match="is for 10 calls"):
        simulate(RewardTensor(tensor.looks[:, :, :8], tensor.final, "made", prices=PRICES), book, "2x")
    with pytest.raises(InputError, match="must rise"):
        simulate(tensor, book, [84.0, 42.0])
