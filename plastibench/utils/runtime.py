"""What a run needs of its process: a device, PyTorch's settings, a folder to itself, and word of stop requests."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import torch

from plastibench.config.errors import UserError
from plastibench.config.spec import RunSpec
from plastibench.utils import provenance

GPU_SHARE = "PLASTIBENCH_GPU_SHARE"  # of a GPU's memory, for a process that shares it with others


def resolve_device(name: str) -> str:
    """The device that ``auto`` stands for, or the one named.

    Raises:
        UserError: It does not exist here.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
        torch.Generator(name)
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"device '{name}' is not available here ({str(error).partition(chr(10))[0]}); try cpu"
        ) from error
    return name


def set_up_torch(spec: RunSpec) -> None:
    """Memory, precision and determinism of this process, as a spec wants them."""
    provenance.keep_freed_memory()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = (
        spec.agent[1].get("precision", "float32") != "float32"
    )
    share = os.environ.get(GPU_SHARE)
    if share and spec.run.device.startswith("cuda"):  # a run that wants more fails by itself, not its neighbours
        torch.cuda.set_per_process_memory_fraction(float(share), torch.device(spec.run.device).index)
    torch.use_deterministic_algorithms(spec.run.deterministic)
    if spec.run.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cuda.enable_flash_sdp(False)
        torch.backends.cuda.enable_mem_efficient_sdp(False)


@contextlib.contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Make the folder, and refuse to run where another process runs the same spec."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / "lock", "w")  # noqa: SIM115 - closed below, and open during the whole run
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"cannot use {folder}: {reason}; choose another place with --runs-dir") from error
    with file:
        _lock(file, folder)
        yield


def remove_if_unused(folder: Path) -> None:
    """Delete the folder of a run that could not begin, unless there is more in it than its spec and lock."""
    with contextlib.suppress(OSError):
        if {path.name for path in folder.iterdir()} == {"lock", "spec.toml"}:
            (folder / "spec.toml").unlink()
            (folder / "lock").unlink()
            folder.rmdir()


def _lock(file: IO[str], folder: Path) -> None:
    try:
        import fcntl
    except ImportError:  # Windows: no such protection
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(
            f"{folder.name} is being run by another process; wait for it or choose another --runs-dir"
        ) from None


@contextlib.contextmanager
def stop_requests() -> Iterator[list[int]]:
    """A list that SIGINT and SIGTERM are appended to; a second signal ends the process at once."""
    received: list[int] = []

    def note(number: int, _: Any) -> None:
        received.append(number)
        signal.signal(number, signal.SIG_DFL)

    try:
        previous = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not in the main thread: whoever runs us there handles signals
        yield received
        return
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
