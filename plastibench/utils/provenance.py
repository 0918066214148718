"""Provenance of a result: software versions, command line, git commit, hardware."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

PACKAGES = (
    "torch",
    "torchvision",
    "timm",
    "gymnasium",
    "tensordict",
    "torchrl",
    "tensorboard",
    "numpy",
    "scikit-learn",
)


def versions() -> dict[str, str]:
    """Versions of Python, plastibench, and the packages that affect results."""
    from plastibench import __version__

    found = {"python": platform.python_version(), "plastibench": __version__}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "missing"
    return found


def command() -> str:
    """The command line of this process, quoted for a shell."""
    words = shlex.join(["plastibench", *sys.argv[1:]])
    return words.encode(errors="replace").decode()  # paths may contain bytes that are not UTF-8


def commit() -> str:
    """Git commit of the source tree, with ``+changes`` if it has uncommitted changes; empty outside a checkout."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return ""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10)
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        revision = git("rev-parse", "--short=12", "HEAD")
        return f"{revision}+changes" if revision and git("status", "--porcelain", "-uno") else revision
    except (OSError, subprocess.TimeoutExpired):
        return ""


def session(device: str) -> dict[str, Any]:
    """Return what may differ when another process continues a run: code, torch, CPU threads, hardware."""
    import torch

    from plastibench import __version__

    return {
        "commit": commit(),
        "version": __version__,
        "torch": str(torch.__version__),
        "threads": torch.get_num_threads(),
        "hardware": hardware(device),
    }


def now() -> str:
    """Date and time in UTC, such as ``2026-01-31T12:00:00+00:00``."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def hardware(device: str) -> dict[str, str | int]:
    """Processor, number of cores, and the device of a run, with the number of its processes if there are several."""
    import torch

    from plastibench.utils import distributed

    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else device
    count = distributed.world_size()
    name = f"{count} × {name}" if count > 1 else name
    return {"processor": _processor(), "cores": os.cpu_count() or 0, "device": name}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
