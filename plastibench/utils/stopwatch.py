"""Measure how long a block of code takes: wall-clock, CPU and GPU time."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch


@dataclass
class Elapsed:
    """Times in seconds.

    Attributes:
        wall: Wall-clock time, which increases if other programs use the machine.
        cpu: CPU time of this process, summed over its threads.
        gpu: Time between the first and the last kernel on the GPU; None without a GPU.
    """

    wall: float = 0.0
    cpu: float = 0.0
    gpu: float | None = None


@contextlib.contextmanager
def stopwatch(device: torch.device) -> Iterator[Elapsed]:
    """Measure a block; on a GPU, wait for its kernels before and after, so that earlier ones are not counted."""
    found = Elapsed()
    on_gpu = device.type == "cuda"
    if on_gpu:
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(device)
        first.record(torch.cuda.current_stream(device))
    wall, cpu = time.perf_counter(), time.process_time()
    yield found
    if on_gpu:
        last.record(torch.cuda.current_stream(device))
        torch.cuda.synchronize(device)
        found.gpu = first.elapsed_time(last) / 1000
    found.wall, found.cpu = time.perf_counter() - wall, time.process_time() - cpu
