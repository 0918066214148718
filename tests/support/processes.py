"""Run a function in several processes that form a group (gloo, on the CPU), and collect what each returns."""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing

from plastibench.sweeps.run_server import start_server


def together(function: Callable[..., Any], *arguments: Any, folder: Path, count: int = 2) -> list[Any]:
    """Call ``function(*arguments)`` in every process; return what the processes return, by rank.

    The processes are forked from a server that has imported everything. They meet through a file, so no port is needed.

    Args:
        function: A function of a module.
        arguments: What can be pickled.
        folder: A new folder, for the meeting point and the return values.
        count: Number of processes.
    """
    folder.mkdir(exist_ok=True)
    start_server()
    torch.multiprocessing.start_processes(
        _call, (count, folder, function, arguments), nprocs=count, start_method="forkserver"
    )
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(count)]


def _variables(rank: int, count: int) -> dict[str, str]:
    """What torchrun sets; libraries read it. Nothing listens at the address."""
    address = {"MASTER_ADDR": "localhost", "MASTER_PORT": "1", "TORCHELASTIC_RUN_ID": "test", "GROUP_RANK": "0"}
    ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
    return address | {name: str(value) for name, value in ranks.items()}


def _call(rank: int, count: int, folder: Path, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    os.environ.update(_variables(rank, count))
    meeting = (folder / "meeting").as_uri()
    dist.init_process_group(
        "gloo", init_method=meeting, rank=rank, world_size=count, timeout=datetime.timedelta(minutes=10)
    )
    try:
        torch.save(function(*arguments), folder / f"{rank}.pt")
        dist.barrier()  # a process that leaves early would break the others
    finally:
        dist.destroy_process_group()
