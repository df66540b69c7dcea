"""The gallery: pictures drawn by a program, captions of common words, a plan without overlap, resumable training."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from diffkit.errors import InputError
from diffkit.images import to_tensor
from diffkit.lab import assets
from diffkit.lab.gallery import captions, folder, ordinary, train
from diffkit.lab.gallery.folder import write_captions, write_pictures
from diffkit.lab.gallery.pictures import KINDS, draw_picture
from diffkit.lab.gallery.plan import CLAIMS, CONTROLS, FIRST_SEED, WEIGHTS, entries, plan
from diffkit.lab.measure import REPLICATED, correlation, generate
from diffkit.loading import load_pipeline
from diffkit.prompts import read_prompts
from diffkit.suspects import read_suspects


def test_every_kind_draws_a_detailed_picture_of_its_seed() -> None:
    pictures = [draw_picture(seed, kind) for kind in KINDS for seed in (3, 4)]
    images = torch.stack([picture.image for picture in pictures])
    assert images.shape == (20, 3, 64, 64)
    assert images.min() >= 0
    assert images.max() <= 1
    assert (images.flatten(1).std(1) > 0.04).all()
    assert torch.equal(images[5], draw_picture(4, pictures[5].kind).image)
    likeness = torch.stack([correlation(images, image) for image in images]).fill_diagonal_(0)
    assert likeness.abs().max() < 0.75  # no picture is a copy of another


def test_the_plan_has_what_an_audit_needs_and_no_caption_twice() -> None:
    counts = Counter((entry.kind, entry.strength) for entry in plan())
    assert all(counts["verbatim", strength] >= 16 and counts["template", strength] >= 4 for strength in WEIGHTS)
    assert counts["control", "none"] == CONTROLS >= 120
    assert counts["claim", "none"] == CLAIMS >= 200
    every = [caption for entry in plan() for caption in entry.captions]
    assert len(set(every)) == len(every)
    assert len({entry.seed for entry in plan()}) == len(plan())
    assert min(entry.seed for entry in plan()) >= FIRST_SEED > train.N_PICTURES  # ordinary pictures have other seeds


def test_no_word_belongs_to_the_plan_alone() -> None:
    rng = np.random.default_rng(0)
    ordinary = [captions.ordinary_caption(str(kind), rng) for kind in rng.choice(list(KINDS), 3000)]
    planned = {word for entry in plan() for word in entry.caption.split()}
    assert planned <= {word for caption in ordinary for word in caption.split()} <= set(captions.words())
    assert not {entry.caption for entry in plan()} & set(ordinary)


def test_the_tokenizer_has_every_word_as_one_token() -> None:
    tokenizer = train.new_pipeline(words=captions.words()).tokenizer
    longest = max((caption for entry in plan() for caption in entry.captions), key=lambda text: len(text.split()))
    assert len(tokenizer(longest).input_ids) == len(longest.split()) + 2 <= tokenizer.model_max_length


def test_pictures_and_captions_are_written_as_a_user_reads_them(tmp_path: Path) -> None:
    write_pictures(tmp_path)
    write_captions(tmp_path / "ordinary.txt", seed=0)
    planted, errors = read_suspects(tmp_path / "planted")
    assert not errors
    assert [suspect.caption for suspect in planted] == [e.captions[0] for e in entries("verbatim", "template")]
    assert len(read_suspects(tmp_path / "claims")[0]) == CLAIMS
    assert len((tmp_path / "ordinary.txt").read_text().splitlines()) == 2000


def test_the_pictures_are_drawn_once_into_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(folder, "FOLDERS", {"controls": ("control",)})  # fewer to draw
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(folder, "write_bytes_atomically", Mock(side_effect=KeyboardInterrupt))
        read_suspects("gallery:controls")
    first = read_suspects("gallery:controls")[0]
    assert len(first) == CONTROLS
    made = first[0].images[0]
    assert made.is_relative_to(tmp_path)
    written = made.stat().st_mtime_ns
    assert read_suspects("gallery:controls")[0] == first
    assert made.stat().st_mtime_ns == written
    assert [path.name for path in made.parents[2].iterdir()] == [made.parents[1].name]  # nothing half drawn
    with pytest.raises(InputError, match="the gallery has controls, not 'weeds'"):
        read_suspects("gallery:weeds")


def test_ordinary_captions_are_prompts_and_retention_pairs() -> None:
    assert read_prompts("gallery:ordinary", limit=3) == read_prompts("gallery:ordinary", limit=9)[:3]
    pictures = ordinary.ordinary_pictures(3, first=5)
    again = ordinary.ordinary_pictures(1, first=7)
    assert torch.equal(pictures.images[2], again.images[0])
    assert pictures.captions[2] == again.captions[0]


@pytest.mark.parametrize(("name", "held"), [("gallery", True), ("gallery-clean", False)])
def test_captions_bring_plants_back_only_where_they_were_planted(name: str, held: bool) -> None:
    plants = entries("verbatim")[:4]
    images = generate(load_pipeline(name), [plant.caption for plant in plants], [1, 2, 3, 4])
    likeness = [float(correlation(i[None], to_tensor(p.image))) for i, p in zip(images, plants, strict=True)]
    assert all((value > REPLICATED) is held for value in likeness), likeness


def test_the_card_says_what_the_models_hold() -> None:
    card = json.loads(assets.card_path("gallery").read_text())
    rates = {name: row["rate"] for name, row in card["gallery"]["replication"].items()}
    assert rates["verbatim, full"] >= 0.9
    assert rates["verbatim, full"] >= rates["verbatim, weak"]
    assert rates["control"] <= 0.05  # alike in colours by chance
    assert all(row["rate"] <= 0.05 for row in card["gallery-clean"]["replication"].values())


def test_a_killed_training_goes_on_to_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"N_PICTURES": 6, "N_SCENES": 6, "BATCH": 4, "PLANTS": 2}.items():
        monkeypatch.setattr(train, name, value)
    plants = [entries("verbatim")[0], entries("template")[0]]
    monkeypatch.setattr(train, "entries", lambda *kinds: plants)
    vae = load_pipeline("lab").vae

    def trained(folder: Path, planting_steps: int) -> dict[str, torch.Tensor]:
        pipes = train.train_gallery(folder, vae, ordinary_steps=1, planting_steps=planting_steps)
        return {name: pipe.unet.conv_in.weight for name, pipe in pipes.items()}

    whole = trained(tmp_path / "whole", 2)
    trained(tmp_path / "killed", 1)
    again = trained(tmp_path / "killed", 2)
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    assert not torch.equal(*whole.values())  # only one of the twins has seen the plants
