"""``--micro-batch auto``: memory runs out on a real denoiser, and the results are those of the size that fits."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import tiny_pipeline
from tiny_search import brightness
from typer.testing import CliRunner

from diffkit.cli import app
from diffkit.errors import InputError
from diffkit.images import save_png
from diffkit.lab import textures
from diffkit.micro_batch import MicroBatch, OutOfMemory, is_out_of_memory, read_micro_batch
from memorization.auditing.run import audit
from memorization.auditing.settings import AuditSettings
from memorization.detection.run import detect
from memorization.detection.settings import DetectSettings
from memorization.items import Gathered, gather
from ttsnap import TTSnapPipeline
from ttsnap.trajectories.collect import collect
from ttsnap.trajectories.recorder import CollectSettings

WORDS = "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"


@contextmanager
def room_for(pipe: Any, rows: int, error: type[RuntimeError] = RuntimeError) -> Iterator[list[int]]:
    """A denoiser that runs out of memory above so many rows; yields the batches that it was given."""
    given: list[int] = []

    def refuse(_module: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
        given.append(len(inputs[0]))
        if len(inputs[0]) > rows:
            raise error(WORDS)

    handle = pipe.unet.register_forward_pre_hook(refuse)
    try:
        yield given
    finally:
        handle.remove()


@pytest.fixture(scope="module")
def gathered(tmp_path_factory: pytest.TempPathFactory) -> Gathered:
    folder = tmp_path_factory.mktemp("items")
    for index, image in enumerate(textures.dead_leaves(4, generator=torch.Generator().manual_seed(1))):
        save_png(image, folder / f"{index}.png")
    for name, numbers in (("suspects", range(2)), ("controls", range(2, 4))):
        rows = [{"caption": f"a dog {number}", "image": f"{number}.png"} for number in numbers]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return gather(folder / "suspects.jsonl", folder / "controls.jsonl")


def items(folder: Path) -> dict[str, Any]:
    lines = [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]
    return {line["key"]: {name: part for name, part in line["item"].items() if name != "seconds"} for line in lines}


@pytest.mark.parametrize("error", [RuntimeError, torch.OutOfMemoryError])
def test_a_search_ends_like_one_that_was_given_the_size_that_fits(error, monkeypatch, capsys):
    monkeypatch.setenv("DIFFKIT_QUIET", "0")
    options = {"num_inference_steps": 4, "guidance_scale": 3.0, "num_candidates": 7, "seed": 7, "schedule": "1:0.5"}
    pipe = TTSnapPipeline.from_pipe(tiny_pipeline("dpm++"), reward=brightness)
    pipe.set_progress_bar_config(disable=True)
    expected = pipe("a dog", **options, micro_batch=2, output_type="pt")
    capsys.readouterr()
    with room_for(pipe, 5, error) as given:  # guidance doubles the rows, so two candidates fit
        found = pipe("a dog", **options, micro_batch="auto", output_type="pt")
    assert given[:3] == [16, 8, 4]
    assert max(given[2:]) == 4
    assert torch.equal(found.images, expected.images)
    assert [look.to_dict() for look in found.trace] == [look.to_dict() for look in expected.trace]
    assert found.ledger.cost == expected.ledger.cost
    said = capsys.readouterr().err
    assert "Memory ran out with 8 candidates to denoise at once; going on with 4." in said
    assert "going on with 2." in said


def test_steps_lost_in_mid_segment_are_not_charged_to_the_search():
    options = {"num_inference_steps": 4, "guidance_scale": 3.0, "num_candidates": 4, "seed": 7}
    pipe = TTSnapPipeline.from_pipe(tiny_pipeline(), reward=brightness)
    pipe.set_progress_bar_config(disable=True)
    expected = pipe("a dog", **options, micro_batch=4)
    calls = iter(range(100))

    def refuse(_module: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
        if next(calls) == 2:
            raise RuntimeError(WORDS)

    handle = pipe.unet.register_forward_pre_hook(refuse)
    found = pipe("a dog", **options, micro_batch="auto")
    handle.remove()
    assert found.seeds == expected.seeds
    assert found.ledger.calls == expected.ledger.calls == 16
    assert found.ledger.padding_calls == 2 * 4  # eight fit no more in the third step: two steps of four were in vain


def test_decoding_steps_down_on_its_own(monkeypatch):
    pipe = TTSnapPipeline.from_pipe(tiny_pipeline(), reward=brightness)
    pipe.set_progress_bar_config(disable=True)
    real, decoded, denoised = pipe.vae.decode, [], []

    def decode(latents, *args, **kwargs):
        decoded.append(len(latents))
        if len(latents) > 2:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return real(latents, *args, **kwargs)

    monkeypatch.setattr(pipe.vae, "decode", decode)
    pipe.unet.register_forward_pre_hook(lambda _module, inputs: denoised.append(len(inputs[0])))
    options = {"num_inference_steps": 2, "guidance_scale": 3.0, "num_candidates": 8, "seed": 7}
    pipe("a dog", **options, micro_batch="auto")
    assert set(denoised) == {16}
    assert decoded[-4:] == [2, 2, 2, 2]


def test_a_fixed_size_passes_the_error_on():
    pipe = TTSnapPipeline.from_pipe(tiny_pipeline(), reward=brightness)
    pipe.set_progress_bar_config(disable=True)
    with room_for(pipe, 2), pytest.raises(RuntimeError, match="allocate memory"):
        pipe("a dog", num_inference_steps=2, guidance_scale=3.0, num_candidates=4, micro_batch=4)
    with room_for(pipe, 1), pytest.raises(OutOfMemory, match="one of the candidates"):
        pipe("a dog", num_inference_steps=2, guidance_scale=3.0, num_candidates=4, micro_batch="auto")


def test_recordings_are_those_of_the_size_that_fits(tmp_path):
    from diffkit.rewards.base import as_reward

    rewards, pipe = {"bright": as_reward(brightness)}, tiny_pipeline()
    told = {"candidates": 3, "num_inference_steps": 3, "seed": 7}
    collect(pipe, ["a dog", "cat"], rewards, CollectSettings(**told, micro_batch=2), out=tmp_path / "fixed")
    with room_for(pipe, 4) as given:
        collect(pipe, ["a dog", "cat"], rewards, CollectSettings(**told, micro_batch="auto"), out=tmp_path / "auto")
    assert max(given) == 16
    assert items(tmp_path / "auto") == items(tmp_path / "fixed")  # the shards' checksums among them


def test_an_audit_is_that_of_the_size_that_fits(gathered, tmp_path):
    told = {
        "budgets": (0, 1, 2), "starts": ("other",), "generations": 2, "attack_generations": 1, "items_at_once": 2,
        "num_inference_steps": 2, "other_captions": ("a cat",), "draws": 8, "detectors": ("noise_magnitude",),
    }  # fmt: skip
    pipe = tiny_pipeline()
    fixed = audit(pipe, gathered, out=tmp_path / "fixed", settings=AuditSettings(**told, micro_batch=4))
    with room_for(pipe, 8) as given:
        auto = audit(pipe, gathered, out=tmp_path / "auto", settings=AuditSettings(**told, micro_batch="auto"))  # fmt: skip  # noqa: E501
    assert max(given) == 16  # eight images with guidance, and sixteen rows of an attack, do not fit
    assert given.count(8) > 1
    assert set(items(tmp_path / "auto")) == set(items(tmp_path / "fixed"))
    for key, item in items(tmp_path / "auto").items():
        expected = items(tmp_path / "fixed")[key]
        assert item["caption"] == expected["caption"]
        assert item["detectors"] == expected["detectors"]
        for budget, row in enumerate(item["attack"]["dori"]["other"]):
            assert row == pytest.approx(expected["attack"]["dori"]["other"][budget], abs=1e-3)
    assert auto.summary["verdicts"] == fixed.summary["verdicts"]


def test_a_detection_is_that_of_the_size_that_fits(gathered, tmp_path):
    pipe, told = tiny_pipeline(), {"detectors": ("noise_magnitude",), "seeds": 2, "num_inference_steps": 2}
    settings = (DetectSettings(**told, micro_batch=2), DetectSettings(**told, micro_batch="auto"))
    detect(pipe, gathered, out=tmp_path / "fixed", name="tiny", settings=settings[0])
    with room_for(pipe, 4) as given:
        detect(pipe, gathered, out=tmp_path / "auto", name="tiny", settings=settings[1])
    assert max(given) == 16
    assert items(tmp_path / "auto") == items(tmp_path / "fixed")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("x"), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 8.95 GB)"), True),
        (RuntimeError(WORDS), True),
        (MemoryError(), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_what_lack_of_memory_looks_like(error, expected):
    assert is_out_of_memory(error) is expected


def test_every_item_comes_once_and_in_order():
    batches, sizes = MicroBatch(8, adaptive=True), []

    def work(part, size):
        sizes.append((len(part), size))
        if len(part) > 3:
            raise RuntimeError(WORDS)
        return [item * 10 for item in part]

    found = [item for _, part in batches.each(list(range(7)), work) for item in part]
    assert found == [0, 10, 20, 30, 40, 50, 60]
    assert sizes == [(7, 8), (4, 4), (2, 2), (2, 2), (2, 2), (1, 2)]


@pytest.mark.parametrize("text", ["0", "-1", "much", "1.5", ""])
def test_other_words_are_refused(text):
    with pytest.raises(InputError, match="--micro-batch takes"):
        read_micro_batch(text)


def test_the_command_line_says_what_to_do(tmp_path, monkeypatch):
    def fail(*_args: object, **_options: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    tiny_pipeline().save_pretrained(tmp_path / "model")
    monkeypatch.setattr("ttsnap.cli.generate_run.generate", fail)
    arguments = ["ttsnap", "generate", "cat", "--model", str(tmp_path / "model"), "--out", str(tmp_path / "run")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 70
    assert "--micro-batch auto" in result.stderr
    assert read_micro_batch(" AUTO ") == "auto"
