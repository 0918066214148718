"""``failure.txt`` in the folder of a run that failed: the traceback of the error, and the line that was printed."""

from __future__ import annotations

import contextlib
import traceback
from pathlib import Path

from plastibench.config.errors import RunError, UserError
from plastibench.config.own_code import describe, is_own, location, passed_own_code
from plastibench.config.registry import REGISTRIES
from plastibench.config.spec import RunSpec
from plastibench.utils import atomic_io

FAILURE_FILE = "failure.txt"


def describe_failure(spec: RunSpec, error: BaseException) -> str:
    """Describe an unexpected error in one line, which names the run's plugins if none of them raised it."""
    line = describe(error)
    names = {"env": spec.env[0], "agent": spec.agent[0], "intervention": spec.intervention[0]}
    classes = [entry.load() for noun, name in names.items() for entry in REGISTRIES[noun].parts(name)]
    used = ", ".join(location(cls) for cls in classes if is_own(cls.__module__))
    return f"{line} (the run uses {used})" if used and not passed_own_code(error) else line


def record_failure(folder: Path, error: BaseException, line: str) -> None:
    """Write the file; a full disk must not hide the error itself.

    Args:
        folder: The run's folder.
        error: Why the run failed. An expected error is recorded without a traceback, unless another error caused it.
        line: The message for the user; the last line of the file.
    """
    cause = error.__cause__ if isinstance(error, RunError | UserError) else error
    details = "".join(traceback.format_exception(cause)) if cause is not None else ""
    text = f"{details}{line}\n".encode(errors="backslashreplace").decode()
    with contextlib.suppress(OSError, RunError):
        atomic_io.write_text(folder / FAILURE_FILE, text)


def failure_line(folder: Path) -> str:
    """The last line of the file in a run's folder, which says why the run failed; empty without the file."""
    try:
        text = (folder / FAILURE_FILE).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    return text.strip().rpartition("\n")[2].removeprefix("plastibench: ")
