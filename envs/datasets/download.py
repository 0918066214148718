"""Downloads with a timeout and one-line errors, which never leave incomplete files."""

from __future__ import annotations

import http.client
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from plastibench.config.errors import UserError
from plastibench.utils.digests import file_digest

TIMEOUT_S = 20.0


@dataclass(frozen=True)
class MissingData:
    """A dataset that is not in the data folder, for the error message.

    Attributes:
        name: Name of the dataset.
        data_dir: The data folder.
        looked_for: Files and folders that would have been accepted.
        remedy: Files to put there, and their source.
    """

    name: str
    data_dir: Path
    looked_for: str
    remedy: str

    def error(self, reason: str) -> UserError:
        """Return the error, with the reason why nothing was downloaded."""
        return UserError(
            f"{self.name} is not in {self.data_dir} (looked for {self.looked_for}) and {' '.join(reason.split())}: "
            f"put {self.remedy} there, or use cl-digits, which needs no download"
        )


@contextmanager
def download_folder(missing: MissingData) -> Iterator[Path]:
    """Create a temporary folder in the data folder; move complete and verified files out of it.

    Inside the block, sockets of the whole process time out after ``TIMEOUT_S``, because torchvision sets no timeout.

    Raises:
        UserError: The download failed.
    """
    previous_timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT_S)
    try:
        missing.data_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".plastibench-download-", dir=missing.data_dir) as folder:
            yield Path(folder)
    except (OSError, RuntimeError, http.client.HTTPException) as error:  # URLError and timeouts are OSErrors
        raise missing.error(f"the download failed ({type(error).__name__}: {error})") from error
    finally:
        socket.setdefaulttimeout(previous_timeout)


def download_file(url: str, path: Path, sha256: str) -> None:
    """Download a file and check it.

    Raises:
        OSError: The download failed.
        RuntimeError: The file is not the expected one.
    """
    from torchvision.datasets.utils import download_url  # imports torch, which takes seconds

    path.parent.mkdir(parents=True, exist_ok=True)
    download_url(url, str(path.parent), filename=path.name)
    if (found := file_digest(path)) != sha256:
        raise RuntimeError(f"{url} has SHA-256 {found}, expected {sha256}")
