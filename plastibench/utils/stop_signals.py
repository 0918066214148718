"""Handle signals: the first one requests a stop, a second one of the same kind ends the process."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Iterator
from typing import Any

# Slurm announces the end of a job with a signal of the user's choice, which is usually SIGUSR1 or SIGUSR2.
_NAMES = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2")
SIGNALS = tuple(getattr(signal, name) for name in _NAMES if hasattr(signal, name))
_PR_SET_PDEATHSIG = 1  # from sys/prctl.h


@contextlib.contextmanager
def stop_requests() -> Iterator[list[int]]:
    """Collect SIGINT, SIGTERM, SIGUSR1 and SIGUSR2 in a list inside the block.

    A second signal of the same kind ends the process at once.
    """
    received: list[int] = []

    def handle(number: int, _: Any) -> None:
        received.append(number)
        signal.signal(number, signal.SIG_DFL)

    try:
        previous = {number: signal.signal(number, handle) for number in SIGNALS}
    except ValueError:  # only the main thread may handle signals; elsewhere the caller has to
        yield received
        return
    if hasattr(signal, "pthread_sigmask"):  # a process that Ray starts inherits a mask without SIGINT
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def stop_with_parent(parent: int) -> None:
    """Receive SIGTERM when the parent process ends, even if it is killed; this works on Linux only.

    Args:
        parent: Process id of the parent.

    Raises:
        KeyboardInterrupt: The parent has already ended.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        raise KeyboardInterrupt
