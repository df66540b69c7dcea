"""Prompts longer than a text encoder reads are named, with what is not read of them."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from tiny_families import family_pipeline
from typer.testing import CliRunner

from diffkit.cli import app
from diffkit.loading import load_pipeline
from diffkit.truncation import tokens_beyond, truncated_prompts, truncation_sentence


def words(tokenizer: Any, count: int) -> str:
    """A prompt of that many tokens besides the special ones."""
    special, one = (len(tokenizer(text).input_ids) for text in ("", "cat"))
    return " ".join(["cat"] * -(-count // (one - special)))


@pytest.mark.parametrize(
    ("family", "limits"),
    [
        ("sdxl", {"tokenizer": 77, "tokenizer_2": 77}),
        ("sd3", {"tokenizer": 77, "tokenizer_2": 77, "tokenizer_3": 256}),
        ("flux", {"tokenizer": 77, "tokenizer_2": 512}),
    ],
)
def test_each_encoder_has_its_own_limit(family: str, limits: dict[str, int]) -> None:
    pipe = family_pipeline(family)
    limits = {name: min(limit, int(getattr(pipe, name).model_max_length)) if limit == 77 else limit
              for name, limit in limits.items()}  # fmt: skip
    assert tokens_beyond(pipe, "cat") == {}
    prompt = words(pipe.tokenizer, 1000)
    for name, beyond in tokens_beyond(pipe, prompt).items():
        whole = getattr(pipe, name)(prompt).input_ids
        cut = getattr(pipe, name)(prompt, truncation=True, max_length=limits[name]).input_ids
        assert beyond == len(whole) - len(cut) > 0
    assert set(tokens_beyond(pipe, prompt)) == set(limits)


def test_a_sentence_names_prompts_and_limits() -> None:
    pipe = load_pipeline("lab")
    prompts = {"short": "a red circle", **{f"p{index}": "a red circle on gray " * 40 for index in range(12)}}
    truncated = truncated_prompts(pipe, prompts)
    read = pipe.tokenizer.model_max_length
    assert truncated["p0"] == {"tokenizer": len(pipe.tokenizer(prompts["p0"]).input_ids) - read}
    names = ", ".join(f"p{index}" for index in range(10))
    assert truncation_sentence(pipe, truncated) == (
        f"Longer than a text encoder reads: 12 captions ({names} and 2 more). "
        f"Only the first {read} tokens of tokenizer count."
    )


def test_a_detection_says_it_once_and_keeps_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("DIFFKIT_QUIET")
    (tmp_path / "captions.txt").write_text("a red circle on gray\n" + "a red circle on gray " * 40 + "\n")
    small = ["--controls", "none", "--detectors", "seed_agreement", "--seeds", "2", "--steps", "1"]
    line = ["audit", "detect", "--suspects", str(tmp_path / "captions.txt"), *small, "--out", str(tmp_path / "run")]
    result = CliRunner().invoke(app, line)
    assert result.exit_code == 0, result.output
    (key,) = json.loads((tmp_path / "run" / "summary.json").read_text())["truncated"]
    assert result.stderr.count(f"Longer than a text encoder reads: 1 captions ({key})") == 1
    assert "was truncated" not in capfd.readouterr().err + result.stderr
    assert any(handler.filters for handler in logging.getLogger("diffusers").handlers)
