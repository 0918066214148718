"""Read finished results from object storage, such as ``s3://bucket/runs``, through fsspec."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from pathlib import Path, PurePosixPath

from plastibench.config.errors import UserError
from plastibench.results.tags import TAGS_FILE

_FILES = ("result.json", TAGS_FILE, "REFERENCE")
_LARGEST = 64 << 20  # bytes of a file; a larger one is not a result


def is_url(location: str | Path) -> bool:
    """Whether a location is a URL such as ``s3://bucket/runs`` rather than a path."""
    return isinstance(location, str) and "://" in location


def fetch_results(url: str) -> Path:
    """Copy the results and tags of all runs below a URL to a temporary folder, which is deleted when the process ends.

    Args:
        url: A URL of any protocol of fsspec.

    Returns:
        The folder, with the same folders of runs in it.

    Raises:
        UserError: The protocol needs another library, or the storage cannot be read.
    """
    import fsspec

    folder = Path(tempfile.mkdtemp(prefix="plastibench-results-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    try:
        system, root = fsspec.core.url_to_fs(url)
        found = system.find(root, detail=True)
        wanted = [
            path
            for path, entry in found.items()
            if PurePosixPath(path).name in _FILES and (entry.get("size") or 0) <= _LARGEST
        ]
        contents = system.cat(wanted) if wanted else {}
    except ImportError as error:  # fsspec says which library
        raise UserError(f"cannot read {url}: {error}") from error
    except Exception as error:  # the libraries of the protocols have no common class of errors
        raise UserError(f"cannot read {url}: {type(error).__name__}: {str(error).partition(chr(10))[0]}") from error
    for path, content in contents.items():
        target = folder / PurePosixPath(path).relative_to(root)
        if ".." in target.parts:
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    return folder
