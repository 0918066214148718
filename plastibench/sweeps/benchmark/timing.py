"""Time functions side by side, in alternating rounds, and report medians and quartiles."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch

Quartiles = tuple[float, float, float]
Block = Callable[[], object]
Clock = Literal["wall", "cpu"]


def alternate(
    blocks: Mapping[str, Block], rounds: int, device: torch.device, *, warmup: int = 1, clock: Clock = "wall"
) -> dict[str, list[float]]:
    """Time blocks of work in alternating rounds, so that a machine that becomes busy affects all of them.

    A round measures every block twice, the second time in reverse order.

    Args:
        blocks: Functions to time, by name.
        rounds: Number of rounds after the warm-up.
        device: The device, which is synchronized before and after each measurement.
        warmup: Rounds that are not counted.
        clock: See :func:`time_block`.

    Returns:
        Seconds of each block in each round, by name.
    """
    seconds: dict[str, list[float]] = {name: [] for name in blocks}
    for number in range(warmup + rounds):
        found = dict.fromkeys(blocks, 0.0)
        for name in (*blocks, *reversed([*blocks])):
            found[name] += time_block(blocks[name], device, clock) / 2
        if number >= warmup:
            for name, value in found.items():
                seconds[name].append(value)
    return seconds


def repeated(step: Callable[[], object], calls: int) -> Block:
    """A block that calls a function several times."""

    def block() -> None:
        for _ in range(calls):
            step()

    return block


def time_block(block: Block, device: torch.device, clock: Clock = "wall") -> float:
    """Seconds that a block takes.

    Args:
        block: The work.
        device: The device, which is synchronized before and after it.
        clock: ``cpu`` counts the CPU time of this process, which depends less on what else runs on the machine.
    """
    now = time.process_time if clock == "cpu" else time.perf_counter
    synchronize(device)
    start = now()
    block()
    synchronize(device)
    return now() - start


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has done all its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def quartiles(values: Sequence[float]) -> Quartiles:
    """Lower quartile, median and upper quartile."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")  # never outside the values
    return low, middle, high


def ratio(above: Sequence[float], below: Sequence[float]) -> Quartiles:
    """Quartiles of the ratio of two lists of measurements, taken round by round."""
    return quartiles([a / b for a, b in zip(above, below, strict=True)])


def shown(values: Quartiles, scale: float = 1.0, digits: int = 3) -> str:
    """Format a median with its quartiles: ``1.030 (0.990 to 1.050)``."""
    low, middle, high = (f"{scale * value:,.{digits}f}" for value in values)
    return f"{middle} ({low} to {high})"
