"""Run a function that halts in the middle, like a generator, even inside code that does not know about halting."""

from __future__ import annotations

import ctypes
import functools
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack

import torch


class Halting:
    """A function in a thread of its own, which runs only while the caller waits in :meth:`resume`.

    Only one of the two threads runs at a time, so the order of all computations is fixed. The function runs without
    gradients, with the caller's default device and, if ``device`` is a GPU, on the caller's CUDA stream.
    """

    def __init__(self, function: Callable[[], object], device: torch.device) -> None:
        self._function = function
        self._settings: list[AbstractContextManager[object]] = [torch.no_grad()]
        if device.type == "cuda":
            self._settings.append(torch.cuda.stream(torch.cuda.current_stream(device)))
        if (default := torch.get_default_device()).type != "cpu":
            self._settings.append(default)
        self._resumed, self._stopped = threading.Semaphore(0), threading.Semaphore(0)
        self._closed = False
        self._value: object = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def resume(self) -> object:
        """Run until the function halts, and return the value with which it halts; None if it has ended.

        Raises:
            BaseException: What the function raises.
        """
        self._value = None
        if self._thread.ident is None:
            self._thread.start()
        elif self._thread.is_alive():
            self._resumed.release()
        else:
            return None
        self._stopped.acquire()
        _return_freed_memory()
        if self._error is not None:
            raise self._error
        return self._value

    def halt(self, value: object) -> None:
        """Halt until the next :meth:`resume`; the function calls this itself."""
        self._value = value
        self._stopped.release()
        self._resumed.acquire()
        if self._closed:
            raise _Closed

    def close(self) -> None:
        """End the function where it has halted, and free what it holds."""
        self._closed = True
        self._resumed.release()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        try:
            with ExitStack() as stack:
                for setting in self._settings:
                    stack.enter_context(setting)
                self._function()
        except _Closed:
            pass
        except BaseException as error:
            self._error = error
        self._stopped.release()


def _return_freed_memory() -> None:
    """Return freed memory to the system: glibc keeps what each thread frees, and only that thread can use it again."""
    if (trim := _malloc_trim()) is not None:
        trim(0)


@functools.cache
def _malloc_trim() -> Callable[[int], int] | None:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # not glibc
        return None


class _Closed(BaseException):
    """Unwinds the function when it is closed."""
