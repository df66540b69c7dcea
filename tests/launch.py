"""Commands on several real processes of this machine, forked from one that has imported the libraries once.

As a script it is ``diffkit`` with the rewards of these tests, for a launcher to start:
``torchrun --nproc-per-node 2 tests/launch.py ttsnap generate ...``.
"""

from __future__ import annotations

import functools
import importlib
import multiprocessing
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

HEAVY = [
    "torch", "torch.distributed", "accelerate", "transformers", "matplotlib.figure", "typer.main", "rich.table",
    "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion", "transformers.models.clip.modeling_clip",
    "diffusers.schedulers.scheduling_ddim", "diffusers.models.autoencoders.autoencoder_tiny", "scipy.stats",
    "diffkit.cli", "ttsnap.pipeline", "ttsnap.noise_aware.distill", "ttsnap.trajectories.collect", "tiny_trajectories",
    "memorization.auditing.run", "memorization.detection.run", "memorization.mitigation.run", "attack_table",
]  # fmt: skip
PATIENCE = 240  # seconds


class Trouble(NamedTuple):
    """On process ``rank`` the ``call``-th call of ``module.name`` ends the process: by an error, or by a kill.

    ``node``: the kill is of its launcher too, as when a machine is gone.
    """

    rank: int
    module: str
    name: str
    call: int
    kill: bool
    node: bool = False

    def arm(self) -> None:
        owner: Any = importlib.import_module(self.module)
        *path, last = self.name.split(".")
        for part in path:
            owner = getattr(owner, part)
        real, calls = getattr(owner, last), iter(range(1, 10_000))

        @functools.wraps(real)
        def troubled(*args: Any, **kwargs: Any) -> Any:
            if next(calls) == self.call:
                if self.node:
                    os.kill(os.getppid(), signal.SIGKILL)
                if self.kill:
                    os.kill(os.getpid(), signal.SIGKILL)
                raise RuntimeError("this process was told to fail")
            return real(*args, **kwargs)

        setattr(owner, last, troubled)


class Ended(NamedTuple):
    """Exit codes, stdout and stderr of the processes, in their order."""

    codes: list[int | None]
    out: list[str]
    err: list[str]


@functools.cache
def server() -> ForkServerContext:
    """Makes processes that have the libraries, the packages and the tiny models: importing them takes ten seconds."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(HEAVY)
    here = os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    with mock.patch.dict(os.environ, {"PYTHONPATH": here, "OMP_NUM_THREADS": "1"}):
        forkserver.ensure_running()
    return context


def launch(
    processes: int, work: Callable[..., object], *args: object, folder: Path, trouble: Trouble | None = None
) -> Ended:
    """Call ``work(*args)`` on so many processes that know of each other; alone it is no launch at all."""
    folder.mkdir(parents=True)
    return _ended(folder, [(_child, (rank, processes, str(folder), work, args, trouble)) for rank in range(processes)])


def launch_nodes(
    nodes: int, work: Callable[..., object], *args: object, folder: Path, trouble: Trouble | None = None
) -> Ended:
    """Call ``work(*args)`` on so many nodes of one process each, every node with a torchrun of its own, over loopback.

    The exit codes are those of the launchers.
    """
    folder.mkdir(parents=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return _ended(folder, [(_node, (rank, nodes, port, str(folder), work, args, trouble)) for rank in range(nodes)])


def _ended(folder: Path, calls: Sequence[tuple[Callable[..., None], tuple[object, ...]]]) -> Ended:
    """The calls, each in a process, after all have ended."""
    context = server()
    started = [context.Process(target=target, args=args) for target, args in calls]
    for one in started:
        one.start()
    for one in started:
        one.join(PATIENCE)
        if one.is_alive():
            one.kill()
            one.join()
    texts = [[(folder / f"{rank}.{kind}").read_text() for rank in range(len(started))] for kind in ("out", "err")]
    return Ended([one.exitcode for one in started], *texts)


def command(*arguments: str) -> None:
    """The command line, as `diffkit` is started."""
    from diffkit.cli import main

    sys.argv = ["diffkit", *arguments]
    main()


def _child(
    rank: int, processes: int, folder: str, work: Callable[..., object], args: tuple[object, ...], trouble: Any
) -> None:
    _redirect(folder, str(rank))
    import torch.distributed as dist

    if processes > 1:
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
        os.environ.update({name: str(value) for name, value in place.items()})
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="0", ACCELERATE_USE_CPU="true", OMP_NUM_THREADS="1")
        # A file, not a port, brings the processes together: only nodes open a network connection, over loopback.
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=processes)
    _work(rank, work, args, trouble)


def _node(
    rank: int, nodes: int, port: int, folder: str, work: Callable[..., object], args: tuple[object, ...], trouble: Any
) -> None:
    """``torchrun --nnodes ...`` for one node; its process is forked, since importing the libraries takes long."""
    _redirect(folder, f"torchrun-{rank}")
    from torch.distributed import run
    from torch.distributed.launcher.api import elastic_launch

    os.environ.update(ACCELERATE_USE_CPU="true", OMP_NUM_THREADS="1")
    place = ["--nnodes", str(nodes), "--node-rank", str(rank), "--nproc-per-node", "1", "--master-addr", "127.0.0.1"]
    more = ["--master-port", str(port), "--log-dir", f"{folder}/torchrun", __file__]
    config, _, _ = run.config_from_args(run.parse_args([*place, *more]))
    config.start_method = "fork"
    elastic_launch(config, _worker)(folder, work, args, trouble)


def _worker(folder: str, work: Callable[..., object], args: tuple[object, ...], trouble: Any) -> None:
    rank = int(os.environ["RANK"])
    _redirect(folder, str(rank))
    try:
        _work(rank, work, args, trouble)
    except SystemExit as end:
        if end.code:
            os._exit(int(end.code))


def _redirect(folder: str, name: str) -> None:
    for number, kind in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{folder}/{name}.{kind}", os.O_WRONLY | os.O_CREAT), number)


def _work(rank: int, work: Callable[..., object], args: tuple[object, ...], trouble: Any) -> None:
    import torch

    torch.set_num_threads(1)
    register()
    if trouble is not None and trouble.rank == rank:
        trouble.arm()
    work(*args)
    from diffkit.parallel import leave

    leave()


def register() -> None:
    """The reward of these tests."""
    from diffkit.rewards import REWARDS
    from diffkit.rewards.base import as_reward

    def brightness(images: Any, prompts: Any) -> Any:
        return images.mean((1, 2, 3)) * 10

    if "test-launch-brightness" not in REWARDS.names():
        REWARDS.register("test-launch-brightness")(lambda: as_reward(brightness))


if __name__ == "__main__":
    register()
    if (told := os.environ.get("LAUNCH_TROUBLE")) and os.environ["RANK"] == told:
        Trouble(int(told), "ttsnap.search.scorer", "score_checked", 3, kill=True).arm()
    command(*sys.argv[1:])
