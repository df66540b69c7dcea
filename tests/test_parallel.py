"""Two real processes share the items and agree on the results."""

from __future__ import annotations

import os
from pathlib import Path

from launch import server

from diffkit.parallel import gather, shard


def test_alone_everything_is_mine():
    assert shard([1, 2, 3]) == gather([1, 2, 3]) == [1, 2, 3]


def work(rank: int, folder: str) -> None:
    store = Path(folder, "store")
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT="0",
                      ACCELERATE_USE_CPU="true")  # fmt: skip
    import torch.distributed as dist

    # A file, not a port, brings the processes together: no test opens a network connection by a port of its own.
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    mine = shard(list(range(5)))
    Path(folder, f"{rank}.txt").write_text(f"{mine} {gather([item * 10 for item in mine])}")
    dist.barrier()
    dist.destroy_process_group()  # else gloo's threads may outlive the interpreter, which aborts


def test_two_processes_share_and_agree(tmp_path):
    context = server()
    workers = [context.Process(target=work, args=(rank, str(tmp_path))) for rank in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert (tmp_path / "0.txt").read_text() == "[0, 2, 4] [0, 10, 20, 30, 40]"
    assert (tmp_path / "1.txt").read_text() == "[1, 3] [0, 10, 20, 30, 40]"
