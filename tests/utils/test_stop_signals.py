from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest

from plastibench.utils.stop_signals import SIGNALS, stop_requests, stop_with_parent


def test_signals_are_collected_and_handlers_restored() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with stop_requests() as received:
        signal.raise_signal(signal.SIGTERM)
        assert received == [signal.SIGTERM]
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL  # a second signal ends the process
    assert signal.getsignal(signal.SIGTERM) == before


def test_other_threads_do_not_handle_signals() -> None:
    before, seen = signal.getsignal(signal.SIGTERM), []

    def work() -> None:
        with stop_requests() as received:
            seen.append((received, signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [([], before)]


def test_signals_of_schedulers_are_stop_requests_even_if_they_were_blocked() -> None:
    if not hasattr(signal, "pthread_sigmask"):
        pytest.skip("needs POSIX signals")
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # as in a process that Ray has started
    try:
        with stop_requests() as received:
            for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT):
                signal.raise_signal(number)
            assert received == [signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT]
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@pytest.mark.skipif(sys.platform != "linux", reason="needs prctl")
def test_a_process_can_end_with_its_parent() -> None:
    child = (
        "import sys, time; from plastibench.utils.stop_signals import *; stop_with_parent(int(sys.argv[1]))\n"
        "with stop_requests() as stop:\n"
        "    print('ready', flush=True)\n"
        "    while not stop: time.sleep(0.01)\n"
        "    print('stopped', flush=True)"
    )
    parent = f"import os, subprocess, sys\nsubprocess.Popen([sys.executable, '-c', {child!r}, str(os.getpid())]).wait()"
    process = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.kill()
    assert process.stdout.read() == "stopped\n"  # to the end: no process has the pipe open
    process.wait()
    with pytest.raises(KeyboardInterrupt):
        stop_with_parent(os.getpid())  # which is not the parent
