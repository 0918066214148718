"""The machine and the software: what a result must say about where it came from, and set-up of a process."""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path

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
    """Versions of Python, plastibench and the packages that results depend on."""
    from plastibench import __version__

    found = {"python": platform.python_version(), "plastibench": __version__}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "missing"
    return found


def command() -> str:
    """The command line of this process, as one would type it."""
    return shlex.join(["plastibench", *sys.argv[1:]])


def commit() -> str:
    """Git commit of the source tree, with ``+changes`` where it has uncommitted ones; empty outside a checkout."""
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


def hardware(device: str) -> dict[str, str | int]:
    """Processor, cores, memory and the device that a run used."""
    import torch

    found: dict[str, str | int] = {"processor": _processor(), "cores": os.cpu_count() or 0, "device": device}
    if device.startswith("cuda"):
        found["device"] = torch.cuda.get_device_name(device)
    return found


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def keep_freed_memory() -> None:
    """Have glibc reuse large freed blocks instead of returning them to the system.

    By default each training step of a ViT maps and unmaps its activations, over a million page faults a step.
    """
    if sys.platform != "linux":
        return
    try:
        libc = ctypes.CDLL(None)
        trim_threshold, mmap_max = -1, -4  # from malloc.h
        libc.mallopt(trim_threshold, 2**31 - 1)
        libc.mallopt(mmap_max, 0)
    except (OSError, AttributeError):  # another C library
        return
