"""Commands in forked processes that are killed, or find the disk full, at a chosen file call."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FORKS = multiprocessing.get_context("forkserver") if hasattr(os, "fork") else None
_PRELOADED = [  # imported once for all processes
    *("plastibench.training.runner", "plastibench.leaderboard", "plastibench.agents.mlp", "plastibench.agents.vit"),
    *("plastibench.agents.dqn", "plastibench.envs.growing", "plastibench.envs.rl_env", "plastibench.interventions.rnr"),
    *("plastibench.interventions.revive", "sklearn.datasets", "torch._dynamo", __name__),
]
_CALLS = ("open", "os.rename", "os.remove", "os.link", "os.truncate", "os.mkdir", "os.rmdir")


@dataclass
class Fault:
    """What happens at a file call.

    Attributes:
        call: Number of the call, from 1; 0: never.
        kill: Send this signal to the process.
        full: From this call on, the disk is full.
    """

    call: int = 0
    kill: int = 0
    full: bool = False


@dataclass
class Ended:
    """How a process ended: exit status or minus the signal, what it wrote to stderr, and its number of file calls."""

    status: int
    err: str
    calls: int


class Process:
    """A command in a forked process, with a fault; it checkpoints after every update."""

    def __init__(self, words: list[str], folder: Path, log: Path, fault: Fault | None = None) -> None:
        """Start the process.

        Args:
            words: The command, without ``plastibench``.
            folder: File calls below this folder are counted.
            log: File for stderr; the number of file calls goes to another one beside it.
            fault: What happens to it.
        """
        assert FORKS is not None
        FORKS.set_forkserver_preload(_PRELOADED)
        self._log = log
        self._process = FORKS.Process(target=_child, args=(words, folder, log, fault or Fault()))
        self._process.start()

    def end(self) -> Ended:
        """Wait for the end."""
        self._process.join()
        status = self._process.exitcode
        assert status is not None
        calls = self._log.with_suffix(".calls")
        return Ended(
            status, self._log.read_text(errors="replace"), int(calls.read_text() or 0) if calls.exists() else 0
        )


def _child(words: list[str], folder: Path, log: Path, fault: Fault) -> None:
    import torch

    from plastibench.cli.main import main
    from plastibench.training import runner

    torch.set_num_threads(1)
    with open(log, "w") as err, open(os.devnull, "w") as out:
        os.dup2(err.fileno(), 2)
        os.dup2(out.fileno(), 1)
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False, buffering=1)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.alarm(120)
    runner.run.__kwdefaults__["checkpoint_seconds"] = 0.0
    calls = [0]

    def count() -> None:
        calls[0] += 1
        if calls[0] == fault.call and fault.kill:
            os.kill(os.getpid(), fault.kill)
        if fault.call and calls[0] >= fault.call and fault.full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in _CALLS and isinstance(arguments[0], str | os.PathLike):
            writes = event != "open" or arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            if writes and os.fspath(arguments[0]).startswith(str(folder)):
                if fault.full and event == "os.remove":
                    return  # deleting is possible on a full disk
                count()

    fsync = os.fsync

    def counted(descriptor: int) -> None:
        count()
        fsync(descriptor)

    sys.addaudithook(hook)
    os.fsync = counted  # type: ignore[assignment]
    status = 98
    try:
        main(words)
    except SystemExit as ended:
        status = int(ended.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        fault.call = 0
        sys.stderr.flush()
        log.with_suffix(".calls").write_text(str(calls[0]))
        os._exit(status)
