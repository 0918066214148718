"""Determine how many runs this machine can execute in parallel."""

from __future__ import annotations

import os
from collections.abc import Sequence

from plastibench.config.spec import RunSpec
from plastibench.utils.machine import available_memory, cores

_MEMORY_FRACTION = 0.8  # fraction of the available memory that runs may use


def gpu_count() -> int:
    """The number of GPUs that runs may be distributed over; 0 if the user has selected GPUs for all runs."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") is not None:
        return 0
    import torch

    return torch.cuda.device_count()


def choose_slots(specs: Sequence[RunSpec], threads: int = 0, memory_each: int = 0) -> int:
    """Choose the number of parallel runs: one per GPU, or without GPUs one per core, as far as memory suffices.

    Args:
        specs: The runs that are not complete.
        threads: CPU threads per run, if the user set a number.
        memory_each: Bytes of memory that the largest run takes; 0: unknown.
    """
    if any(spec.run.device != "cpu" for spec in specs):
        return max(1, min(len(specs), gpu_count()))
    slots = min(len(specs), cores() // max(1, threads))
    available = available_memory()
    if memory_each and available is not None:
        slots = min(slots, int(_MEMORY_FRACTION * available) // memory_each)
    return max(1, slots)
