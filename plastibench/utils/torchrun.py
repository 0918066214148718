"""Whether ``torchrun`` has started this process; known without importing PyTorch."""

from __future__ import annotations

import os


def launched_processes() -> int:
    """Number of processes that torchrun has started together with this one; 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", 1)) if "TORCHELASTIC_RUN_ID" in os.environ else 1


def is_first_process() -> bool:
    """Whether this is rank 0; always true without torchrun."""
    return launched_processes() == 1 or os.environ.get("RANK") == "0"
