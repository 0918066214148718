"""Notes for the user on stderr, each printed once per process."""

from __future__ import annotations

import functools
import sys


@functools.cache
def print_once(text: str) -> None:
    """Print a line on stderr, unless the same line was printed before."""
    print(text, file=sys.stderr)
