"""The order of work from end to end on a tiny real pipeline: what is not attacked, the reference, the triage."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from schemas import validate_run
from tiny import tiny_pipeline

from diffkit.images import save_png
from diffkit.lab import textures
from diffkit.seeds import generators, item_seed
from diffkit.suspects import Suspect
from memorization.auditing.attack_suite import Ladder
from memorization.auditing.effort import Effort
from memorization.auditing.models import AuditedModel, Reference
from memorization.auditing.run import AuditResult, audit
from memorization.auditing.settings import AuditSettings
from memorization.auditing.verify import verify_audit
from memorization.copies.references import load_references
from memorization.copies.tiled import TiledCorrelation
from memorization.generation import image_size
from memorization.items import Gathered, gather
from memorization.text_embeddings import empty_text, encoded

SETTINGS = AuditSettings(
    budgets=(0, 1, 2),
    starts=("other",),
    generations=1,
    attack_generations=3,
    num_inference_steps=2,
    draws=1,
    items_at_once=4,
    micro_batch=8,
    threshold=0.9,
    detectors=(),
    other_captions=("a cat",),
)


@pytest.fixture(scope="module")
def gathered(tmp_path_factory: pytest.TempPathFactory) -> Gathered:
    """Four suspects, of which the pipeline draws the first from its caption, and 20 controls."""
    folder = tmp_path_factory.mktemp("order")
    images = textures.dead_leaves(24, generator=torch.Generator().manual_seed(1))
    pipe, seed = tiny_pipeline(), item_seed(0, "suspect:drawn", "caption", 0)
    pipe.set_progress_bar_config(disable=True)
    images[0] = pipe(
        "a dog", num_inference_steps=2, guidance_scale=3.0, generator=generators([seed]), output_type="pt"
    ).images[0]
    for index, image in enumerate(images):
        save_png(image, folder / f"{index}.png")
    names = ["drawn", *(f"s{i}" for i in range(1, 4)), *(f"c{i}" for i in range(20))]
    items = [Suspect(name, "a dog", (folder / f"{index}.png",)) for index, name in enumerate(names)]
    return gather(items[:4], items[4:])


def run(gathered: Gathered, out: Path, settings: AuditSettings) -> AuditResult:
    reference = Reference("other", lambda: tiny_pipeline(seed=1), "checksum")
    return audit(AuditedModel("tiny", tiny_pipeline, reference=reference), gathered, out=out, settings=settings)


def journal(folder: Path) -> dict[str, dict[str, Any]]:
    return {line["key"]: line["item"] for line in map(json.loads, (folder / "journal.jsonl").read_text().splitlines())}


def test_what_the_caption_gives_is_not_attacked(gathered: Gathered, tmp_path: Path) -> None:
    part = run(gathered, tmp_path / "part", SETTINGS)
    whole = run(gathered, tmp_path / "whole", replace(SETTINGS, attack_all=True))
    records = journal(part.folder)
    assert records["suspect:drawn"]["stopped"] == {"dori": "caption"}
    assert records["suspect:drawn"]["attack"] is None
    assert records["suspect:drawn"]["sample_gradients"] == 0
    assert [key for key in records if key.startswith("reference:")] == ["reference:drawn"]
    assert records["reference:drawn"]["attack"] is None
    assert list(records)[:20] == [f"control:c{i}" for i in range(20)]
    all_of_it = journal(whole.folder)
    assert len(all_of_it) == 48
    assert all_of_it["suspect:drawn"]["attack"] is not None
    for key in ("suspect:s1", "control:c3"):
        looks, all_looks = (part["attack"]["dori"]["other"] for part in (records[key], all_of_it[key]))
        assert [len(look) for look in all_looks] == [3, 3, 3]
        assert [len(look) for look in looks] == ([3, 3, 3] if key.startswith("control") else [0, 2, 2])
        for look, all_of_look in zip(looks, all_looks, strict=True):
            np.testing.assert_allclose(look, all_of_look[: len(look)], atol=2e-5)
    verdicts = [[finding["verdict"] for finding in result.summary["findings"]] for result in (part, whole)]
    assert verdicts[0] == verdicts[1]
    assert verdicts[0][0] == "replicated"
    assert part.summary["cost"]["stopped"] == {"caption": 2}
    assert part.summary["cost"]["sample_gradients"] == 43 * 2  # three suspects, and the controls on both models
    images = 3 * 2 * 2 + 20 * 3 * 3 + 20 * 2 * 3  # no start but the controls' own, a third image only where it counts
    assert part.summary["cost"]["trigger_images"] == images
    for result in (part, whole):
        assert verify_audit(result.folder)["result"] == "ok"
    validate_run(part.folder, "audit")


def test_an_attack_may_end_for_all_of_a_group_at_once(gathered: Gathered) -> None:
    """At the second of four looks, which all reach: the third is never searched."""
    pipe, settings = tiny_pipeline(), replace(SETTINGS, budgets=(0, 1, 2, 3))
    pipe.set_progress_bar_config(disable=True)
    items = [item for item in gathered.items if item.role == "suspect"][:2]
    own = [encoded(pipe, [item.suspect.caption]) for item in items]
    references = [load_references(item, image_size(pipe)) for item in items]
    suite = Ladder(pipe, settings, TiledCorrelation(), empty_text(pipe))
    attempts = suite.attack(items, own, references, Effort({"dori": 3}, {"dori": -1.0}, settled={"dori": 0.9}))
    for key in (item.key for item in items):
        (attacked,) = attempts[key]["dori"].values()
        assert [len(look) for look in attacked.similarity] == [0, 2]
        assert attacked.triggers.budgets == (0, 1)
        assert attacked.images.shape == (2, 3, *image_size(pipe))


def test_the_triage_attacks_its_share_and_says_what_it_left(gathered: Gathered, tmp_path: Path) -> None:
    settings = replace(SETTINGS, triage="seed_agreement:0.5")
    result = run(gathered, tmp_path / "run", settings)
    scored = journal(result.folder / "triage")
    assert list(scored) == ["suspect:drawn", "suspect:s1", "suspect:s2", "suspect:s3"]
    ranked = sorted(scored, key=lambda key: scored[key]["scores"]["seed_agreement"]["value"], reverse=True)
    verdicts = {finding["key"]: finding["verdict"] for finding in result.summary["findings"]}
    attacked = {key for key, record in journal(result.folder).items() if record["attack"] is not None}
    left = [key for key in ranked[2:] if key != "suspect:drawn"]
    assert left
    assert verdicts["suspect:drawn"] == "replicated"
    assert [key for key in scored if verdicts[key] == "not attacked"] == sorted(left)
    assert attacked & set(scored) == set(scored) - set(left) - {"suspect:drawn"}
    assert result.summary["verdicts"]["not attacked"] == len(left)
    assert "what the detector does not see is missed" in (result.folder / "report.html").read_text()
    assert verify_audit(result.folder)["result"] == "ok"
    before = (result.folder / "journal.jsonl").read_bytes()
    assert run(gathered, result.folder, settings).summary == result.summary
    assert (result.folder / "journal.jsonl").read_bytes() == before
