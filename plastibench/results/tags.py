"""Tags of a run: words in ``tags.txt`` in its folder, one per line. They are not part of its spec or result."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from plastibench.config.errors import UserError
from plastibench.utils.atomic_io import write_text

TAGS_FILE = "tags.txt"
TRIAL = "trial"  # runs with this tag are left out of the table over all settings


def check_tag(tag: str) -> str:
    """Check and return a tag.

    Raises:
        UserError: It is empty or contains characters other than letters, digits and ``._+-``.
    """
    if not re.fullmatch(r"[\w.+-]{1,64}", tag):
        raise UserError(f"tag '{tag}': expected up to 64 letters, digits, and the characters . _ + -")
    return tag


def read_tags(folder: Path | None) -> frozenset[str]:
    """The tags of the run in a folder; none if there is no such file or it cannot be read."""
    try:
        text = "" if folder is None else (folder / TAGS_FILE).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return frozenset()
    return frozenset(word for word in text.split() if re.fullmatch(r"[\w.+-]{1,64}", word))


def write_tags(folder: Path, tags: Iterable[str]) -> None:
    """Replace the tags of a run; the file is deleted if there are none.

    Raises:
        RunError: The folder cannot be written.
    """
    if words := sorted(set(tags)):
        write_text(folder / TAGS_FILE, "".join(f"{word}\n" for word in words))
    else:
        (folder / TAGS_FILE).unlink(missing_ok=True)


def add_tags(folders: Iterable[Path], tags: Iterable[str]) -> None:
    """Add tags to the runs in these folders; folders that do not exist are skipped.

    Raises:
        RunError: A folder cannot be written.
    """
    if words := set(tags):
        for folder in folders:
            if folder.is_dir():
                write_tags(folder, words | read_tags(folder))
