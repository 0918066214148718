"""Time the updates of classifiers: plastibench, a plain loop, a loop with a DataLoader, and matrix products alone."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import statistics
from collections.abc import Callable, Collection
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from plastibench.config.errors import UserError
from plastibench.config.spec import RunSpec
from plastibench.sweeps.benchmark.loader_loop import LoaderLoop, mean_batch
from plastibench.sweeps.benchmark.matrix_products import products_of
from plastibench.sweeps.benchmark.plain_loop import plain_loop
from plastibench.sweeps.benchmark.started_trainer import start_trainer
from plastibench.sweeps.benchmark.timing import (
    Clock,
    Quartiles,
    alternate,
    quartiles,
    ratio,
    repeated,
    shown,
    time_block,
)
from plastibench.sweeps.stacking import stack_key
from plastibench.training.supervised import SupervisedTrainer
from plastibench.training.trainer_stack import TrainerStack
from plastibench.utils.machine import cores
from plastibench.utils.tables import text_table
from plastibench.utils.wording import plural

LOOPS = ("plain", "loader", "products")


@dataclasses.dataclass(frozen=True)
class UpdateSpeed:
    """The speed of a run's updates, measured in alternating rounds; each value has quartiles over the rounds.

    Attributes:
        env: Name of the env.
        agent: Name of the agent.
        intervention: Name of the intervention that takes part in the updates of plastibench.
        device: The device.
        threads: CPU threads.
        precision: Precision of the matrix products.
        compile: Mode of ``torch.compile``, or ``no``.
        updates_per_epoch: Updates in an epoch of the first task.
        batch_size: Mean samples per update, rounded; the last batch of an epoch may be smaller than the others.
        clock: ``wall``, or ``cpu`` for CPU time.
        flops: Floating-point operations of the matrix products of an update.
        plastibench: Seconds per update.
        plain: Seconds per update of an equivalent plain, uncompiled PyTorch loop.
        ratio: ``plastibench`` relative to ``plain``.
        loader: Seconds per update of a loop with a DataLoader and torchvision's transforms.
        loader_gain: ``loader`` relative to ``plastibench``: how many times as fast plastibench is.
        workers: Worker processes of the DataLoader.
        products: Seconds that only the matrix products of an update take.
        reached: ``products`` relative to ``plastibench``: 1 if nothing else took time.
        stack: Number of runs that were updated together; 0: not measured.
        stacked: Seconds per update of one of these runs.
        stack_gain: ``plastibench`` relative to ``stacked``.
        intervention_seconds: Time of one intervention; None without one.
    """

    env: str
    agent: str
    intervention: str
    device: str
    threads: int
    precision: str
    compile: str
    updates_per_epoch: int
    batch_size: int
    clock: str
    flops: int
    plastibench: Quartiles
    plain: Quartiles | None = None
    ratio: Quartiles | None = None
    loader: Quartiles | None = None
    loader_gain: Quartiles | None = None
    workers: int = 0
    products: Quartiles | None = None
    reached: Quartiles | None = None
    stack: int = 0
    stacked: Quartiles | None = None
    stack_gain: Quartiles | None = None
    intervention_seconds: float | None = None

    def to_text(self) -> str:
        """A table of at most 80 columns, and what follows from it."""
        together = f"each of {self.stack} together"
        loader = f"DataLoader, {plural(self.workers, 'worker')}"
        rows = {
            "plastibench": self.plastibench,
            "plain PyTorch loop": self.plain,
            loader: self.loader,
            "matrix products alone": self.products,
            together: self.stacked,
        }
        table = [[name, shown(seconds, 1e3)] for name, seconds in rows.items() if seconds is not None]
        compiled = "" if self.compile == "no" else f", compile {self.compile}"
        attached = "" if self.intervention == "none" else f", {self.intervention}"
        time = "ms of CPU time" if self.clock == "cpu" else "ms"
        speed = self.flops / self.plastibench[1] / 1e9
        notes = [f"plastibench: {self.batch_size / self.plastibench[1]:,.0f} samples/s, {speed:,.1f} GFLOP/s"]
        if self.ratio is not None:
            notes.append(f"  takes {shown(self.ratio)} times as long as the plain loop")
        if self.loader_gain is not None:
            notes.append(f"  is {shown(self.loader_gain, digits=2)} times as fast as the loop with a DataLoader")
        if self.reached is not None:
            notes.append(f"  {shown(self.reached, 100, 1)} % of the time is matrix products")
        if self.stack_gain is not None:
            together = plural(self.stack, "run")
            notes.append(f"  {together} together: {shown(self.stack_gain, digits=2)} times as fast as alone")
        if self.intervention_seconds is not None:
            count = self.intervention_seconds / self.plastibench[1]
            each = f"{self.intervention_seconds:.2f} s, the time of {count:.1f} updates"
            notes.append(f"{self.intervention}: one intervention takes {each}")
        return "\n".join(
            [
                f"{self.env}, {self.agent}{attached}",
                f"{self.device}, {plural(self.threads, 'thread')}, {self.precision}{compiled}",
                f"{plural(self.batch_size, 'sample')} per update, {plural(self.updates_per_epoch, 'update')} per epoch",
                "",
                text_table(["loop", f"{time} per update: median (quartiles)"], table),
                "",
                *notes,
            ]
        )


def measure_updates(
    spec: RunSpec,
    data_dir: Path,
    updates: int = 5,
    rounds: int = 20,
    threads: int = 0,
    *,
    loops: Collection[str] = LOOPS,
    workers: int | None = None,
    stack: int = 0,
    clock: Clock = "wall",
) -> UpdateSpeed:
    """Time updates of plastibench and of other loops on the same data, in alternating rounds.

    Args:
        spec: The run to time.
        data_dir: Folder of datasets.
        updates: Updates per measurement.
        rounds: Number of rounds, at least 2. Each loop is measured twice per round.
        threads: CPU threads; 0: as for a run, and PyTorch's default for the loop with a DataLoader.
        loops: What to compare with: names from :data:`LOOPS`.
        workers: Workers of the DataLoader (default: one per core, at most 4).
        stack: Also time this number of runs that are updated together.
        clock: ``wall``, or ``cpu`` for the CPU time of this process, which excludes the loop with a DataLoader.

    Raises:
        UserError: The spec is not a run on a task stream, or cannot be stacked.
        RunError: The process of the loop with a DataLoader failed.
    """
    if stack and stack_key(spec) is None:
        raise UserError(f"runs of {spec.agent[0]} on {spec.run.device} cannot be updated together")
    trainer = start_trainer(spec, data_dir, threads)
    workers = min(4, cores()) if workers is None else workers
    steps: dict[str, Callable[[], object]] = {"plastibench": trainer.learn}
    plain = plain_loop(trainer)
    with FlopCounterMode(display=False) as counter:
        plain()
    flops = counter.get_total_flops()
    if "plain" in loops:
        steps["plain"] = plain
    if "products" in loops:
        steps["products"] = products_of(plain).replay
    if stack:
        seeds = [dataclasses.replace(spec, run=dataclasses.replace(spec.run, seed=seed)) for seed in range(stack)]
        together = [start_trainer(each, data_dir, threads) for each in seeds]
        steps["stacked"] = functools.partial(TrainerStack().learn, together)
    blocks: dict[str, Callable[[], object]] = {name: repeated(step, updates) for name, step in steps.items()}
    with contextlib.ExitStack() as closing:
        if "loader" in loops and clock == "wall":
            loader = closing.enter_context(LoaderLoop(trainer, spec, updates, workers, threads))
            blocks["loader"] = loader.run_epoch
        measured = alternate(blocks, rounds, trainer.device, clock=clock)
    seconds = {name: [value / updates for value in values] for name, values in measured.items()}
    ours, theirs, floor = seconds["plastibench"], seconds.get("plain"), seconds.get("products")
    loaded, stacked = seconds.get("loader"), [value / stack for value in seconds.get("stacked", ())]
    return UpdateSpeed(
        env=spec.env[0],
        agent=spec.agent[0],
        intervention=spec.intervention[0],
        device=spec.run.device,
        threads=torch.get_num_threads(),
        precision=trainer.agent.config.precision,
        compile=trainer.agent.config.compile,
        updates_per_epoch=trainer.updates_per_epoch(),
        batch_size=mean_batch(trainer),
        plastibench=quartiles(ours),
        plain=quartiles(theirs) if theirs else None,
        ratio=ratio(ours, theirs) if theirs else None,
        loader=quartiles(loaded) if loaded else None,
        loader_gain=ratio(loaded, ours) if loaded else None,
        workers=workers,
        products=quartiles(floor) if floor else None,
        reached=ratio(floor, ours) if floor else None,
        stack=stack,
        stacked=quartiles(stacked) if stacked else None,
        stack_gain=ratio(ours, stacked) if stacked else None,
        clock=clock,
        flops=flops,
        intervention_seconds=_intervention_seconds(trainer, clock) if spec.intervention[0] != "none" else None,
    )


def _intervention_seconds(trainer: SupervisedTrainer, clock: Clock) -> float:
    return statistics.median(time_block(trainer.intervene, trainer.device, clock) for _ in range(3))
