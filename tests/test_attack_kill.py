"""A trigger search killed by SIGKILL in the middle of an image goes on to the same bits, in a process of its own."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import torch
from attack_table import targets
from launch import server
from safetensors.torch import load_file
from tiny import tiny_pipeline

from memorization.attack.checkpoint import Checkpoints
from memorization.attack.dori import Dori


def search(folder: Path) -> None:
    torch.set_num_threads(1)
    attack = Dori(budgets=(0, 10, 24), micro_batch=2, draws=2)
    attack(tiny_pipeline(), targets(2), checkpoints=Checkpoints(folder, every=2))


def test_kill_9_inside_an_image(tmp_path: Path, one_thread: None) -> None:
    folder = tmp_path / "checkpoints"
    process = server().Process(target=search, args=(folder,))
    process.start()
    states: list[Path] = []
    while not states and process.is_alive():
        time.sleep(0.01)
        states = list(folder.glob("*.safetensors"))
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    (state,) = states
    reached = int(load_file(state)["step"])
    assert 0 < reached < 24

    pipe, checkpoints = tiny_pipeline(), Checkpoints(folder, every=2)
    attack = Dori(budgets=(0, 10, 24), micro_batch=2, draws=2)
    steps = 0

    def count(*_: object) -> None:
        nonlocal steps
        steps += torch.is_grad_enabled()

    pipe.unet.register_forward_hook(count)
    resumed = attack(pipe, targets(2), checkpoints=checkpoints)
    assert steps == 24 - reached
    whole = attack(pipe, targets(2))
    assert all(torch.equal(a.embeddings, b.embeddings) for a, b in zip(resumed, whole, strict=True))
    assert list(folder.glob("*.safetensors")) == [state]
    checkpoints.clear()
    assert not folder.exists()
