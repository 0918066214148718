"""Run the marked blocks of a Markdown page in the current folder: ``python run_page.py PAGE [--slow]``.

A block is marked by an HTML comment on the line before it:

- ``<!-- run -->`` runs a ``python`` or ``bash`` block. Python blocks of a page share a namespace.
- ``<!-- run slow -->`` does so only with ``--slow``.
- ``<!-- file NAME -->`` writes the block to a file.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

_BLOCK = re.compile(r"^<!-- (run|run slow|file (\S+)) -->\n```(\w+)\n(.*?)^```$", re.M | re.S)
_SHELL = 'set -eu\nplastibench() { "$PYTHON" -m plastibench "$@"; }\npython() { "$PYTHON" "$@"; }\n'
_SHELL += 'torchrun() { "$PYTHON" -m torch.distributed.run "$@"; }\n'


class Block(NamedTuple):
    """A marked block: what to do with it, its file name if it is a file, language, text and line."""

    mark: str
    file: str
    language: str
    text: str
    line: int


def blocks(page: Path) -> list[Block]:
    """The marked blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    return [Block(m[1], m[2] or "", m[3], m[4], text.count("\n", 0, m.start()) + 1) for m in _BLOCK.finditer(text)]


def main(page: Path, slow: bool) -> None:
    """Run the blocks of a page."""
    sys.path[0] = ""  # as in an interactive session
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks(page):
        if block.file:
            Path(block.file).write_text(block.text, encoding="utf-8")
        elif block.mark == "run slow" and not slow:
            continue
        elif block.language == "python":
            # Empty lines in front, so that a traceback shows the line of the page.
            exec(compile("\n" * (block.line + 1) + block.text, str(page), "exec"), namespace)
        else:
            subprocess.run(["bash", "-c", _SHELL + block.text], check=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), "--slow" in sys.argv[2:])
