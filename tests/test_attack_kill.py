"""A trigger search killed by SIGKILL in the middle of an image goes on to the same bits, in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from attack_table import targets
from safetensors.torch import load_file
from tiny import tiny_pipeline

from memorization.attack.checkpoint import Checkpoints
from memorization.attack.dori import Dori

SEARCH = """
import sys
import torch
from attack_table import targets
from tiny import tiny_pipeline
from memorization.attack.checkpoint import Checkpoints
from memorization.attack.dori import Dori

torch.set_num_threads(1)
Dori(budgets=(0, 20, 60), micro_batch=2, draws=2)(
    tiny_pipeline(), targets(2), checkpoints=Checkpoints(sys.argv[1], every=2)
)
"""


def test_kill_9_inside_an_image(tmp_path: Path, one_thread: None) -> None:
    folder = tmp_path / "checkpoints"
    environment = dict(os.environ, OMP_NUM_THREADS="1", PYTHONPATH=str(Path(__file__).parent))
    search = subprocess.Popen([sys.executable, "-c", SEARCH, str(folder)], env=environment)
    states: list[Path] = []
    while not states and search.poll() is None:
        time.sleep(0.01)
        states = list(folder.glob("*.safetensors"))
    search.send_signal(signal.SIGKILL)
    assert search.wait() == -signal.SIGKILL
    (state,) = states
    reached = int(load_file(state)["step"])
    assert 0 < reached < 60

    pipe, checkpoints = tiny_pipeline(), Checkpoints(folder, every=2)
    attack = Dori(budgets=(0, 20, 60), micro_batch=2, draws=2)
    steps = 0

    def count(*_: object) -> None:
        nonlocal steps
        steps += torch.is_grad_enabled()

    pipe.unet.register_forward_hook(count)
    resumed = attack(pipe, targets(2), checkpoints=checkpoints)
    assert steps == 60 - reached
    whole = attack(pipe, targets(2))
    assert all(torch.equal(a.embeddings, b.embeddings) for a, b in zip(resumed, whole, strict=True))
    assert list(folder.glob("*.safetensors")) == [state]
    checkpoints.clear()
    assert not folder.exists()


@pytest.fixture
def one_thread() -> Iterator[None]:
    """The last bits may depend on the number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
