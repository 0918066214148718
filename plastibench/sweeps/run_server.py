"""The server that forks the processes of runs; this module imports little, so that the server can start early."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Mapping

_VARIABLES = {
    "OPENBLAS_NUM_THREADS": "1",  # importing numpy would start threads, which a forked process does not have
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",  # asking for GPUs would initialize CUDA, which a forked process cannot use
}


def start_server() -> None:
    """Start the server unless it is already running; return immediately, while it is still importing."""
    if "forkserver" not in multiprocessing.get_all_start_methods():  # Windows
        return
    from multiprocessing import forkserver

    multiprocessing.set_forkserver_preload(["plastibench.sweeps.preload"])
    with _environment({**os.environ, **_VARIABLES}), _ignoring_interrupts():
        forkserver.ensure_running()


@contextlib.contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextlib.contextmanager
def _ignoring_interrupts() -> Iterator[None]:
    """Let a process that starts inside the block ignore Ctrl-C, which reaches it until it has its own session."""
    if threading.current_thread() is not threading.main_thread():  # only that one may handle signals
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
