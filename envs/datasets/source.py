"""Image files of a folder: what is there, whether it changed, and how to read it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from plastibench.config.errors import UserError


@dataclass(frozen=True)
class FileSource:
    """Files under one root, be it a folder or an archive.

    Attributes:
        where: The root, for messages.
        names: Names relative to the root with forward slashes, sorted.
        read: Gives the bytes of one of the names.
    """

    where: Path
    names: list[str]
    read: Callable[[str], bytes]


def scan_folder(root: Path, depth: int) -> tuple[FileSource, str]:
    """List a folder's files down to ``depth`` levels, without hidden ones.

    Links to folders are followed, since people make subsets of a data set that way; the depth ends any circle.

    Returns:
        The source, and a fingerprint that differs if a file was added, removed, renamed, resized or written to.
    """
    try:
        found = sorted(_walk(root, "", depth))
    except OSError as error:
        raise UserError(f"cannot list {error.filename}: {error.strerror}; make it readable") from error
    listing = "".join(f"{name}\0{size}\0{mtime}\n" for name, size, mtime in found)
    source = FileSource(root, [name for name, _, _ in found], lambda name: (root / name).read_bytes())
    return source, fingerprint(str(root.resolve()), listing)


def fingerprint(*parts: object) -> str:
    """16 hexadecimal digits that stand for the parts."""
    return hashlib.sha256("\0".join(map(str, parts)).encode(errors="surrogateescape")).hexdigest()[:16]


def _walk(folder: Path, prefix: str, depth: int) -> Iterator[tuple[str, int, int]]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_file():
                status = entry.stat()
                yield prefix + entry.name, status.st_size, status.st_mtime_ns
            elif depth > 1 and entry.is_dir():
                yield from _walk(folder / entry.name, f"{prefix}{entry.name}/", depth - 1)
