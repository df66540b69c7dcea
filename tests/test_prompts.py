"""Prompts to generate from, from files and from the lab's world."""

from __future__ import annotations

import json

import pytest

from diffkit.errors import InputError
from diffkit.lab.trio import parse_trio
from diffkit.lab.world import is_held_out, parse
from diffkit.prompts import LAB_SCENES, read_prompts


def test_files_of_each_kind(tmp_path):
    (tmp_path / "a.txt").write_text("a dog\n\ncat \n")
    (tmp_path / "a.json").write_text(json.dumps(["a dog", "cat"]))
    (tmp_path / "a.csv").write_text("prompt,note\na dog,x\ncat,y\n")
    (tmp_path / "a.jsonl").write_text('{"prompt": "a dog"}\n{"caption": "cat"}\n')
    assert read_prompts(tmp_path / "a.txt") == ["a dog", "cat "]
    for kind in ("json", "csv", "jsonl"):
        assert read_prompts(tmp_path / f"a.{kind}") == ["a dog", "cat"]
        assert read_prompts(str(tmp_path / f"a.{kind}"), limit=1) == ["a dog"]


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.json", "[1]", "row 1: expected an object or a caption, got 1"),
        ("a.json", "[]", "no row with a caption"),
        ("a.json", "{", "as JSON"),
        ("a.json", '{"a": 1}', "must be a JSON list"),
        ("a.txt", "Prompt\tCategory\na dog\tx\n", "name it .tsv"),
        ("a.txt", "Prompt\na dog\n", "row 1: 'Prompt' is a column name"),
        ("a.txt", "a caf\u00e9".encode("latin-1"), "not UTF-8"),
        ("a.csv", "prompt,note\na dog,x\n,y\n", "row 3: the caption is missing"),
        ("a.txt", "\n", "no row with a caption"),
    ],
)
def test_files_without_prompts_are_refused(tmp_path, name, content, sentence):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=sentence):
        read_prompts(tmp_path / name)


def test_scenes_are_different_and_held_out_ones_are():
    train, held_out = read_prompts("lab:train"), read_prompts("lab:held-out")
    assert len(train) == len(set(train)) == len(held_out) == len(set(held_out)) == LAB_SCENES
    assert all(is_held_out(parse(caption)) for caption in held_out)
    assert not any(is_held_out(parse(caption)) for caption in train)


def test_scenes_of_three_are_different_and_held_out_ones_are():
    train, held_out = read_prompts("lab:trio-train", 200), read_prompts("lab:trio", 200)
    assert len({*train, *held_out}) == 400
    assert all(is_held_out(parse_trio(caption)) for caption in held_out)
    assert not any(is_held_out(parse_trio(caption)) for caption in train)


def test_a_longer_list_begins_with_the_shorter_one():
    for source in ("lab:train", "lab:held-out", "lab:trio-train", "lab:trio"):
        assert read_prompts(source, 500)[:7] == read_prompts(source, 7)


def test_more_scenes_than_there_are_is_refused():
    with pytest.raises(InputError, match="different scenes, not 100000"):
        read_prompts("lab:held-out", 100_000)
    with pytest.raises(InputError, match="at most 10000 different scenes, not 10001"):
        read_prompts("lab:trio", 10_001)
    with pytest.raises(InputError, match="lab:train, lab:held-out, lab:trio-train"):
        read_prompts("lab:tests")
    with pytest.raises(InputError, match="at least 1"):
        read_prompts("lab:train", 0)
