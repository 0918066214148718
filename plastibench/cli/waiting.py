"""Show in a terminal what a command is waiting for."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def waiting(text: str, quiet: bool = False) -> Iterator[None]:
    """Show a text in the terminal, until the block ends."""
    if quiet or not sys.stderr.isatty():
        yield
        return
    from rich.console import Console  # not needed by --help

    with Console(stderr=True).status(text):
        yield
