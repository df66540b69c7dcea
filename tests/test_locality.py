"""A locality study on a tiny real pipeline: every stage, resumed, refused, and with nothing to find."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tiny import tiny_pipeline
from typer.testing import CliRunner

from diffkit.cli import app
from diffkit.errors import InputError, Interrupted
from diffkit.mitigation import Mitigation, apply_mitigation
from memorization.items import Gathered, gather
from memorization.locality.groups import make_groups
from memorization.locality.report import plots
from memorization.locality.settings import LocalitySettings
from memorization.locality.study import study

CAPTIONS = ("cat", "do", "a dog", "dog do cat")
SETTINGS: dict[str, Any] = {
    "starts": 3,
    "attack_steps": 2,
    "draws": 2,
    "group": 3,
    "lines": 1,
    "shares": (0.5,),
    "generations": 1,
    "num_inference_steps": 2,
    "noises": 1,
    "threshold": -1.0,  # whatever comes out counts: random weights hold no image
    "micro_batch": 4,
    "theta": 0.5,
    "ordinary": CAPTIONS,
}


@pytest.fixture
def items(tmp_path: Path) -> Callable[..., Gathered]:
    def make(suspects: int = 3, controls: int = 2) -> Gathered:
        for role, count in (("suspects", suspects), ("controls", controls)):
            folder = tmp_path / role
            folder.mkdir(exist_ok=True)
            for i in range(count):
                shade = (40 * i + 10, 90 if role == "suspects" else 200, 250 - 60 * i)
                image = Image.new("RGB", (64, 64), shade)
                image.paste((255 - shade[0], 0, 0), (8 * i, 8, 8 * i + 20, 40))
                image.save(folder / f"{i}.png")
                (folder / f"{i}.txt").write_text(CAPTIONS[i])
        return gather(tmp_path / "suspects", tmp_path / "controls" if controls else None)

    return make


def run(out: Path, gathered: Gathered, pipe: Any = None, **changed: Any) -> dict[str, Any]:
    keep = changed.pop("save_triggers", False)
    settings = LocalitySettings(**(SETTINGS | changed))
    result = study(pipe or tiny_pipeline(), gathered, out=out, model="tiny", settings=settings, save_triggers=keep)
    return result.summary


def test_every_figure_has_its_nulls(tmp_path: Path, items: Callable[..., Gathered]) -> None:
    summary = run(tmp_path / "run", items())
    assert summary["images"] == {"suspects": 3, "memorized": 3, "controls": 2, "unscored": {}}
    assert (summary["starts"]["suspect"]["k"], summary["starts"]["suspect"]["n"]) == (9, 9)
    distance = summary["embeddings"]["distance"]
    assert [distance[name]["n"] for name in ("same", "control", "others", "starts", "ordinary")] == [3, 2, 3, 3, 3]
    assert distance["against"]["starts"]["value"] == pytest.approx(
        distance["same"]["value"] / distance["starts"]["value"], rel=1e-4
    )
    assert distance["starts"]["value"] == pytest.approx(summary["starts"]["apart"], rel=0.1)
    assert set(summary["weights"]) == {"nemo", "wanda"}
    assert any("attn2.to_v" in layer for layer in summary["activations"])
    assert any("ff.net.2" in layer for layer in summary["weights"]["wanda"])
    assert set(summary["reading"]["weights, nemo"]) == {"others", "control", "starts", "captions", "ordinary", "chance"}
    assert {kind: sum(row["n"] for row in rows.values()) for kind, rows in summary["lines"].items()} == dict.fromkeys(
        ("trigger", "caption", "start", "others", "carried", "mean"), 3
    )
    norm = summary["displacements"]["memorized"]["norm"]["value"]
    assert 0 < norm <= 2 * 0.1 * (16 * 32) ** 0.5 * 1.01  # Adam moves a coordinate by at most its rate a step
    page = (tmp_path / "run" / "report.html").read_text()
    assert "not in agreement" in page
    assert page.count("<svg") == 3  # no curve from one point on each line
    assert not list((tmp_path / "run" / "work").glob("*.safetensors"))  # triggers bring images back


def test_interrupted_anywhere_it_gives_the_same(tmp_path: Path, items: Callable[..., Gathered]) -> None:
    gathered = items()
    whole = run(tmp_path / "whole", gathered)
    for calls in (40, 45):  # let so many calls of the denoiser pass, in each session
        pipe, left = tiny_pipeline(), [calls]

        def stop(*_: object, left: list[int] = left) -> None:
            left[0] -= 1
            if left[0] == 0:
                raise KeyboardInterrupt

        pipe.unet.register_forward_pre_hook(stop)
        with pytest.raises(Interrupted):
            run(tmp_path / "cut", gathered, pipe)
    assert run(tmp_path / "cut", gathered) == whole
    again = (tmp_path / "cut" / "journal.jsonl").read_bytes()
    assert run(tmp_path / "cut", gathered) == whole  # the triggers are gone, and nothing asks for them
    assert (tmp_path / "cut" / "journal.jsonl").read_bytes() == again
    with pytest.raises(InputError, match="theta"):
        run(tmp_path / "cut", gathered, theta=2.0)
    pipe = tiny_pipeline()
    mask = {"unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_v.rows": torch.tensor([1])}
    with (
        apply_mitigation(pipe, Mitigation("by-hand", "mask", "tiny", tensors=mask)),
        pytest.raises(InputError, match="mitigation is null there"),
    ):
        run(tmp_path / "cut", gathered, pipe)


def test_what_nobody_memorized_has_no_locality(tmp_path: Path, items: Callable[..., Gathered]) -> None:
    summary = run(tmp_path / "run", items(2, 0), threshold=1.0, save_triggers=True)
    assert summary["images"]["memorized"] == 0
    assert summary["activations"] == summary["weights"] == summary["reading"] == {}
    assert all(row == {} for row in summary["lines"].values())
    assert summary["displacements"]["memorized"]["norm"]["value"] is None
    assert len(list((tmp_path / "run" / "work").glob("*.safetensors"))) == 2
    assert (tmp_path / "run" / "report.html").is_file()


def test_a_broken_picture_and_a_missing_one_are_unscored(tmp_path: Path, items: Callable[..., Gathered]) -> None:
    items(2, 1)
    (tmp_path / "more.jsonl").write_text(json.dumps({"caption": "dog", "id": "lost"}) + "\n")
    pipe = tiny_pipeline()
    with torch.no_grad():
        pipe.vae.decoder.layers[-1].bias.fill_(float("nan"))
    gathered = gather(tmp_path / "more.jsonl", tmp_path / "controls")
    summary = run(tmp_path / "run", gathered, pipe)
    assert summary["images"]["unscored"]["suspect:lost"] == "no image to compare with"
    assert "not a number" in summary["images"]["unscored"]["control:0"]
    # Nothing can be compared any more with what was compared before: its triggers are gone.
    assert run(tmp_path / "run", gathered)["images"]["unscored"] == summary["images"]["unscored"]
    path = tmp_path / "run" / "journal.jsonl"
    path.write_text("".join(line for line in path.read_text().splitlines(keepends=True) if '"reason"' in line))
    assert set(run(tmp_path / "run", gathered)["images"]["unscored"]) == {"suspect:lost"}


def test_groups_are_of_one_size() -> None:
    triggers = {str(i): torch.full((5, 2, 3), float(i)) + torch.arange(5.0).view(5, 1, 1) / 10 for i in range(4)}
    starts = torch.zeros(5, 2, 3)
    groups = make_groups(triggers, {"c": triggers["0"]}, starts, [torch.ones(2, 3)] * 4, [], members=3)
    assert {name: len(group.embeddings) for name, group in groups.items()} == dict.fromkeys(
        ["same:0", "same:1", "same:2", "same:3", "control:c", "others", "starts", "captions"], 3
    )
    assert [round(float(e[0, 0]), 1) for e in groups["others"].embeddings] == [0.0, 1.1, 2.2]  # image k at start k


def test_the_command_plans_and_refuses(tmp_path: Path) -> None:
    plan = CliRunner().invoke(
        app, ["locality", "--dry-run", "--format", "json", "--limit", "2", "--limit-controls", "1"]
    )
    assert plan.exit_code == 0, plan.output
    assert json.loads(plan.stdout)["searches"] == 3 * 20
    for wrong in (["locality"], ["locality", "--dry-run", "--methods", "nobody"], ["locality", "-m", str(tmp_path)]):
        assert CliRunner().invoke(app, wrong).exit_code == 2


def test_several_points_on_a_line_are_a_curve(tmp_path: Path, items: Callable[..., Gathered]) -> None:
    summary = run(tmp_path / "run", items(2, 0), shares=(0.25, 0.75), methods=())
    figure = plots(summary)["lines"]
    assert [line.get_label() for line in figure.axes[0].lines][:2] == ["to another trigger", "to the caption"]
    assert list(figure.axes[0].lines[0].get_xdata()) == [0.0, 0.25, 0.75]
