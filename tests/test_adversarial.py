"""Adversarial fine-tuning: its mathematics against closed forms, its run against an uninterrupted one."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from launch import server
from tiny import SCHEDULERS, tiny_pipeline
from torch import Tensor

from diffkit.errors import InputError
from diffkit.images import save_png
from diffkit.loading import load_pipeline
from diffkit.mitigation import Mitigation, apply_mitigation, load_mitigation
from diffkit.runs.shared import open_shared
from diffkit.suspects import Suspect, read_suspects
from diffkit.training_objective import noised
from memorization.copies.tiled import TiledCorrelation
from memorization.generation import Sampling
from memorization.mitigation.adversarial.method import METHOD
from memorization.mitigation.adversarial.objective import rate_factor, redirected
from memorization.mitigation.adversarial.retention import read_retention
from memorization.mitigation.adversarial.settings import AdversarialSettings
from memorization.mitigation.adversarial.surrogates import Acceptance, make_surrogates, nemo_masks
from memorization.mitigation.adversarial.trainable_weights import trainable
from memorization.mitigation.run import mitigate, parse_settings
from memorization.presets import LAB, NONE

#: A run of seconds on the tiny model.
SMALL = AdversarialSettings(
    updates=6,
    learning_rate=1e-3,
    adversarial_batch=4,
    retention_batch=3,
    searches=2,
    search_batch=3,
    search_draws=2,
    search_length=3,
    surrogates=2,
    surrogate_similarity=0.999,
    retention_examples=9,
    validation=2,
    checkpoint_every=2,
    num_inference_steps=2,
    guidance_scale=3.0,
)


def small(folder: Path, **changes: Any) -> AdversarialSettings:
    captions = folder / "keep.txt"
    captions.write_text("\n".join(f"a cat and {letter}" for letter in "bcdefghijklm"))
    return replace(SMALL, retention=str(captions), **changes)


def two_suspects(folder: Path) -> list[Suspect]:
    folder.mkdir(parents=True, exist_ok=True)
    suspects = []
    for i, caption in enumerate(("do g", "a t b")):
        path = folder / f"{i}.png"
        save_png(torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(i)), path)
        suspects.append(Suspect(f"s{i}", caption, (path,)))
    return suspects


def same(one: Mitigation, other: Mitigation) -> bool:
    keys = set(one.tensors)
    return keys == set(other.tensors) and all(torch.equal(one.tensors[k], other.tensors[k]) for k in keys)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@given(step=st.integers(0, 999))
def test_redirected_noise_shows_the_one_image_and_asks_for_the_other(prediction: str, step: int) -> None:
    scheduler = SCHEDULERS["ddim"]()
    scheduler.register_to_config(prediction_type=prediction)
    generator = torch.Generator().manual_seed(step)
    begin, end, noise = (torch.randn(1, 4, 8, 8, generator=generator).double() for _ in range(3))
    timestep = torch.tensor([step])
    abar = scheduler.alphas_cumprod.double()[timestep]
    shifted = redirected(begin, end, noise, (abar / (1 - abar)).sqrt())
    seen, target = noised(scheduler, end, shifted, timestep)
    shown, _ = noised(scheduler, begin, noise, timestep)
    torch.testing.assert_close(seen, shown, rtol=1e-4, atol=1e-4)
    signal_, spread = abar.sqrt(), (1 - abar).sqrt()
    implied = {  # the clean image that a perfect model's answer stands for
        "epsilon": (seen - spread * target) / signal_,
        "v_prediction": signal_ * seen - spread * target,
        "sample": target,
    }[prediction]
    torch.testing.assert_close(implied, end, rtol=1e-3, atol=2e-3)


def test_redirecting_from_the_surrogate_itself_is_the_plain_loss() -> None:
    noise = torch.randn(3, 4, 8, 8)
    x = torch.randn(3, 4, 8, 8)
    assert torch.equal(redirected(x, x, noise, torch.tensor([0.1, 0.5, 0.9])), noise)


def test_the_learning_rate_warms_up_and_falls_to_a_tenth() -> None:
    factors = [rate_factor(update, 100) for update in range(100)]
    assert factors[0] == pytest.approx(0.05)
    assert max(factors) == pytest.approx(1.0)
    assert factors[19:] == sorted(factors[19:], reverse=True)
    assert factors[-1] == pytest.approx(0.1, abs=0.001)


@pytest.mark.parametrize(
    "assignment",
    [
        "updates=0",
        "learning_rate=0",
        "redirect=1.5",
        "precision=fp16",
        "starts=nowhere",
        "lora_rank=-1",
        "search_batch=-1",
        "nosuch=1",
        "redirect=nan",
        "learning_rate=nan",
    ],
)
def test_settings_that_cannot_be_meant_are_refused(assignment: str) -> None:
    with pytest.raises(InputError):
        parse_settings(METHOD, [assignment], LAB)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Mitigation]:
    folder = tmp_path_factory.mktemp("finished")
    suspects = two_suspects(folder / "images")
    made = mitigate(tiny_pipeline(), suspects, method=METHOD, out=folder / "run", name="tiny", settings=small(folder))
    return folder, made


def test_it_gives_a_delta_and_leaves_the_pipeline_as_it_was(tmp_path: Path) -> None:
    pipe = tiny_pipeline()
    pipe.unet.train()
    before = {name: value.clone() for name, value in pipe.unet.state_dict().items()}
    flags = [parameter.requires_grad for parameter in pipe.unet.parameters()]
    made = mitigate(
        pipe, two_suspects(tmp_path / "i"), method=METHOD, out=tmp_path / "run", name="tiny", settings=small(tmp_path)
    )
    assert all(torch.equal(value, before[name]) for name, value in pipe.unet.state_dict().items())
    assert [parameter.requires_grad for parameter in pipe.unet.parameters()] == flags
    assert pipe.unet.training
    assert made.kind == "delta"
    assert set(made.tensors) == {f"unet.{name}" for name, _ in pipe.unet.named_parameters()}
    with apply_mitigation(pipe, tmp_path / "run"):
        moved = [not torch.equal(value, before[name]) for name, value in pipe.unet.state_dict().items()]
    assert sum(moved) > 0.9 * len(moved)


def test_the_card_tells_losses_surrogates_and_validation(finished: tuple[Path, Mitigation]) -> None:
    figures = load_mitigation(finished[0] / "run").figures
    assert [row["update"] for row in figures["history"]] == [0, 2, 4, 6]
    assert all(row["validation"] > 0 for row in figures["history"])
    assert figures["surrogates"]["accepted"] == 4
    assert figures["surrogates"]["highest similarity"] < 0.999
    assert figures["retention"] == 9
    assert figures["stopped"] is None


def test_the_same_command_on_a_finished_run_gives_the_same(finished: tuple[Path, Mitigation]) -> None:
    folder, made = finished
    again = mitigate(
        tiny_pipeline(),
        two_suspects(folder / "images"),
        method=METHOD,
        out=folder / "run",
        name="tiny",
        settings=small(folder),
    )
    assert same(made, again)


def run_slowly(folder: str, keep: str, out: str) -> None:
    """In a process of its own, until it is killed or through."""
    torch.set_num_threads(1)
    settings = small(Path(keep))
    mitigate(tiny_pipeline(), two_suspects(Path(folder)), method=METHOD, out=out, name="tiny", settings=settings)


def test_kill_9_in_the_middle_loses_nothing_and_changes_nothing(
    finished: tuple[Path, Mitigation], tmp_path: Path
) -> None:
    folder, made = finished
    context = server()
    kept = tmp_path / "run" / "checkpoint.safetensors"
    inodes: set[int] = set()
    for _ in range(1):  # the first checkpoint that was not there before ends the process
        worker = context.Process(target=run_slowly, args=(str(folder / "images"), str(folder), str(tmp_path / "run")))
        worker.start()
        while worker.is_alive() and not (kept.exists() and kept.stat().st_ino not in inodes):
            time.sleep(0.002)
        if worker.is_alive() and worker.pid is not None:
            os.kill(worker.pid, signal.SIGKILL)
        worker.join()
        if worker.exitcode == 0:
            break
        inodes.add(kept.stat().st_ino)
    assert inodes, "the run was never cut"
    run_slowly(str(folder / "images"), str(folder), str(tmp_path / "run"))
    assert same(made, load_mitigation(tmp_path / "run"))


def test_a_loss_budget_stops_the_run_at_the_last_state_within_it(tmp_path: Path) -> None:
    settings = small(tmp_path, learning_rate=5.0, loss_budget=0.5)
    made = mitigate(
        tiny_pipeline(),
        two_suspects(tmp_path / "i"),
        method=METHOD,
        out=tmp_path / "run",
        name="tiny",
        settings=settings,
    )
    assert "validation loss rose" in str(made.figures["stopped"])
    assert made.figures["updates"] == 0
    assert all(not value.any() for value in made.tensors.values())


def test_a_lora_is_trained_and_fits(tmp_path: Path) -> None:
    pipe = tiny_pipeline()
    names = list(pipe.unet.state_dict())
    made = mitigate(
        pipe,
        two_suspects(tmp_path / "i"),
        method=METHOD,
        out=tmp_path / "run",
        name="tiny",
        settings=small(tmp_path, lora_rank=2, search_batch=0),
    )
    assert made.kind == "lora"
    assert made.figures["history"][-1]["search"] is None
    assert list(pipe.unet.state_dict()) == names
    ups = [value for name, value in made.tensors.items() if name.endswith("lora_B.weight")]
    assert ups
    assert all(value.any() for value in ups)
    noise, embeds = torch.randn(1, 4, 16, 16), torch.randn(1, 16, 32)
    plain = pipe.unet(noise, 500, embeds).sample
    with apply_mitigation(pipe, made):
        assert not torch.allclose(pipe.unet(noise, 500, embeds).sample, plain)
    torch.testing.assert_close(pipe.unet(noise, 500, embeds).sample, plain)


def test_half_precision_weights_come_back_to_the_last_bit() -> None:
    pipe = tiny_pipeline()
    pipe.unet.half()
    before = {name: value.clone() for name, value in pipe.unet.state_dict().items()}
    with trainable(pipe, SMALL) as (weights, change):
        assert {value.dtype for value in weights.values()} == {torch.float32}
        with torch.no_grad():
            weights["conv_in.bias"] += 0.5
        changed = change()
    assert torch.equal(changed["unet.conv_in.bias"], torch.full_like(changed["unet.conv_in.bias"], 0.5))
    assert not changed["unet.conv_out.bias"].any()
    assert all(torch.equal(value, before[name]) for name, value in pipe.unet.state_dict().items())
    assert next(pipe.unet.parameters()).dtype == torch.float16


def work(rank: int, folder: str, images: str) -> None:
    """One of two processes; each leaves what it got."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT="0",
                      ACCELERATE_USE_CPU="true")  # fmt: skip
    import torch.distributed as dist
    from safetensors.torch import save_file

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    config = {"model": "tiny", "model_sha256": None, "settings": {}}
    settings = small(Path(folder), updates=2)
    with open_shared(f"{folder}/run", config=config, kind="mitigate", provenance={}) as run:
        made = METHOD.mitigate(tiny_pipeline(), two_suspects(Path(images)), run, settings)
    save_file(dict(made.tensors), f"{folder}/{rank}.safetensors")
    dist.barrier()
    dist.destroy_process_group()


def test_two_processes_share_the_images_and_end_on_the_same_weights(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    two_suspects(tmp_path / "images")
    context = server()
    workers = [context.Process(target=work, args=(i, str(tmp_path), str(tmp_path / "images"))) for i in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert [worker.exitcode for worker in workers] == [0, 0]
    one, other = (load_file(tmp_path / f"{rank}.safetensors") for rank in range(2))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert any(value.any() for value in one.values())


def test_retention_without_data_is_refused_for_a_model_that_is_not_the_lab(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="retention="):
        mitigate(tiny_pipeline(), two_suspects(tmp_path / "i"), method=METHOD, out=tmp_path / "run", name="tiny")


def test_retention_leaves_the_suspects_captions_out_and_refuses_too_little(tmp_path: Path) -> None:
    suspects = two_suspects(tmp_path / "images")
    listed = tmp_path / "keep.jsonl"
    (tmp_path / "images/damaged.png").write_bytes((tmp_path / "images/1.png").read_bytes()[:60])
    rows = [
        f'{{"caption": "c {i}", "image": "images/{name}.png"}}' for i, name in enumerate(["damaged", *"1111111111"])
    ]
    listed.write_text("\n".join([*rows, '{"caption": "do g", "image": "images/0.png"}']))
    with open_shared(tmp_path / "run", config={}, kind="mitigate", provenance={}) as run:
        known: dict[str, Any] = {"source": str(listed), "preset": NONE, "size": (64, 64), "limit": 20}
        rest: dict[str, Any] = {"sampling": Sampling(2, 3.0, 4), "seed": 0}
        assert run is not None
        found = read_retention(tiny_pipeline(), suspects, run, validation=2, **known, **rest)
        assert (len(found.latents), len(found.validation), found.left_out) == (8, 2, 2)
        assert "do g" not in [*found.captions, *found.all_captions]
        with pytest.raises(InputError, match="2 left out"):
            read_retention(tiny_pipeline(), suspects, run, validation=3, **known, **rest)


def surrogates_of(limit: float, score: Any = None) -> Any:
    pipe = load_pipeline("lab")
    pipe.set_progress_bar_config(disable=True)
    suspects = read_suspects("lab:planted")[0]
    from diffkit.images import load_image
    from diffkit.lab.world import training_scenes

    references = torch.stack([load_image(s.images[0]) for s in suspects])
    pruned = nemo_masks(pipe, suspects, [scene.caption for scene in training_scenes(64, seed=1)])
    accept = Acceptance(TiledCorrelation(), references, limit, score)
    ((_, made),) = make_surrogates(
        pipe,
        suspects[1:2],
        lambda hard: pruned(2 * hard) if hard < 2 else None,
        accept,
        n=2,
        sampling=Sampling(8, 3.0, 2),
        seed=0,
    )
    return made


def test_surrogates_are_no_copies_of_any_suspect_and_say_how_alike_they_are() -> None:
    made = surrogates_of(0.5)
    assert 1 <= len(made.images) <= 2
    assert (made.similarity < 0.5).all()
    assert made.copies > 0, "the mildest pruning leaves the copy, which must have been refused"
    assert made.off_topic == 0


def test_off_topic_surrogates_are_refused() -> None:
    calls: list[int] = []

    def score(images: Tensor, captions: Any) -> Tensor:
        calls.append(len(images))
        return torch.full((len(images),), 1.0 if len(calls) == 1 else 0.0)  # the model's own drawing comes first

    made = surrogates_of(0.5, score)
    assert len(made.images) == 0
    assert made.off_topic > 0


def test_a_memory_of_the_lab_goes_and_the_scenes_stay(tmp_path: Path) -> None:
    """Two dozen updates against one full-strength image: its caption no longer gives it."""
    pipe = load_pipeline("lab")
    pipe.set_progress_bar_config(disable=True)
    suspects = [s for s in read_suspects("lab:planted")[0] if s.id == "cat"]
    settings = AdversarialSettings(
        updates=24,
        learning_rate=2.5e-4,
        adversarial_batch=4,
        adversarial_weight=0.5,
        retention_batch=6,
        search_batch=1,
        surrogates=2,
        surrogate_similarity=0.6,
        retention_examples=60,
        validation=8,
        num_inference_steps=8,
        guidance_scale=3.0,
        checkpoint_every=40,
    )
    made = mitigate(pipe, suspects, method=METHOD, out=tmp_path / "run", name="lab", settings=settings)
    from diffkit.images import load_image
    from diffkit.lab.measure import generate

    reference = load_image(suspects[0].images[0])[None]

    def likeness() -> float:
        return float(
            TiledCorrelation().similarity(generate(pipe, [suspects[0].caption] * 3, [1, 2, 3]), reference).median()
        )

    assert likeness() > 0.75
    with apply_mitigation(pipe, made):
        assert likeness() < 0.6
    first, last = made.figures["history"][0], made.figures["history"][-1]
    assert last["validation"] < 1.15 * first["validation"], (first, last)
