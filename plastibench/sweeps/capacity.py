"""What this machine can run at a time: cores, memory, GPUs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from plastibench.config.spec import RunSpec

_CGROUP = Path("/sys/fs/cgroup")
_MEMORY_FRACTION = 0.8  # of the available memory that runs may take


def cores() -> int:
    """The number of cores that this process may use; a container's limit counts."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = (_CGROUP / "cpu.max").read_text().split()
        return max(1, min(allowed, round(int(quota) / int(period))))
    except (OSError, ValueError):  # no such file, or "max": no limit
        return allowed


def available_memory() -> int | None:
    """Bytes of memory that are free or can be freed; a container's limit counts. None if the system does not say."""
    found = []
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        found += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    except OSError:
        return None
    try:
        limit = int((_CGROUP / "memory.max").read_text())
        found.append(limit - int((_CGROUP / "memory.current").read_text()))
    except (OSError, ValueError):  # no such file, or "max": no limit
        pass
    return max(0, min(found)) if found else None


def gpu_count() -> int:
    """The number of GPUs that runs may be spread over; 0 if the user has chosen some for all runs."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") is not None:
        return 0
    import torch

    return torch.cuda.device_count()


def choose_slots(specs: Sequence[RunSpec], threads: int = 0, memory_each: int = 0) -> int:
    """Choose how many runs share the machine: one per core that has the memory; on GPUs, one per GPU.

    Args:
        specs: The runs that are not complete.
        threads: CPU threads per run, if the user asked for a number.
        memory_each: Bytes of memory that the largest run takes; 0: unknown.
    """
    if any(spec.run.device != "cpu" for spec in specs):
        return max(1, min(len(specs), gpu_count()))
    slots = min(len(specs), cores() // max(1, threads))
    available = available_memory()
    if memory_each and available is not None:
        slots = min(slots, int(_MEMORY_FRACTION * available) // memory_each)
    return max(1, slots)
