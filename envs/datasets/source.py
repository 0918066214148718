"""Sources of image files: their names, a fingerprint of their state, and how to read them."""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from plastibench.config.errors import UserError


@dataclass(frozen=True)
class FileSource:
    """Files in a folder or an archive.

    Attributes:
        root: The folder or archive.
        names: Sorted names relative to the root, with forward slashes.
        read: Returns the content of the file with a given name.
    """

    root: Path
    names: list[str]
    read: Callable[[str], bytes]

    def content(self, name: str) -> bytes:
        """Read the bytes of a file.

        Raises:
            UserError: The file cannot be read.
        """
        try:
            return self.read(name)
        except (OSError, KeyError, zipfile.BadZipFile) as error:
            reason = getattr(error, "strerror", None) or error
            raise UserError(f"cannot read {self.root / name}: {reason}; check its permissions, or remove it") from error


def scan_folder(root: Path, depth: int) -> tuple[FileSource, str]:
    """List the files of a folder down to ``depth`` levels, excluding hidden files.

    Links are followed, because they are a common way to make subsets, except back to a folder on the way.

    Returns:
        The source, and a fingerprint that changes if a file is added, removed, renamed, resized or modified.

    Raises:
        UserError: A folder cannot be listed, or a link is broken.
    """
    try:
        found = sorted(_walk(root, "", depth, frozenset()))
    except OSError as error:
        raise UserError(f"cannot list {error.filename}: {error.strerror}; check its permissions") from error
    listing = "".join(f"{name}\0{size}\0{mtime}\n" for name, size, mtime in found)
    source = FileSource(root, [name for name, _, _ in found], lambda name: (root / name).read_bytes())
    return source, fingerprint(str(root.resolve()), listing)


def fingerprint(*parts: object) -> str:
    """Hash the parts to 16 hexadecimal digits."""
    return hashlib.sha256("\0".join(map(str, parts)).encode(errors="surrogateescape")).hexdigest()[:16]


def _walk(folder: Path, prefix: str, depth: int, above: frozenset[str]) -> Iterator[tuple[str, int, int]]:
    above |= {os.path.realpath(folder)}
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_symlink() and not os.path.exists(entry.path):
                raise UserError(f"{entry.path} is a broken link; remove it or correct its target")
            if entry.is_file():
                status = entry.stat()
                yield prefix + entry.name, status.st_size, status.st_mtime_ns
            elif depth > 1 and entry.is_dir() and os.path.realpath(entry.path) not in above:
                yield from _walk(folder / entry.name, f"{prefix}{entry.name}/", depth - 1, above)
