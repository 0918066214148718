"""Downloads that end, leave nothing half-written, and fail with one helpful line."""

from __future__ import annotations

import http.client
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from plastibench.config.errors import UserError

TIMEOUT_S = 20.0


@dataclass(frozen=True)
class Wanted:
    """What was looked for, for the message when it is not there.

    Attributes:
        name: The data set's name.
        data_dir: Where it was looked for.
        looked_for: The files and folders that would have done.
        remedy: What to put there, and where it comes from.
    """

    name: str
    data_dir: Path
    looked_for: str
    remedy: str

    def missing(self, reason: str) -> UserError:
        """Word the error, with the reason why nothing was downloaded."""
        return UserError(
            f"{self.name} is not in {self.data_dir} (looked for {self.looked_for}) and {' '.join(reason.split())}: "
            f"put {self.remedy} there, or take the scenario cl-digits, which needs no data"
        )


@contextmanager
def download_stage(wanted: Wanted) -> Iterator[Path]:
    """Make a temporary folder in the data folder to download into; move what is complete and checked out of it.

    Inside, sockets time out: torchvision sets no limit of its own. That holds for the whole process meanwhile.
    """
    previous_timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT_S)
    try:
        wanted.data_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".plastibench-download-", dir=wanted.data_dir) as stage:
            yield Path(stage)
    except (OSError, RuntimeError, http.client.HTTPException) as error:  # URLError and timeouts are OSErrors
        raise wanted.missing(f"the download failed ({type(error).__name__}: {error})") from error
    finally:
        socket.setdefaulttimeout(previous_timeout)
