"""Benchmark the harness against a plain PyTorch loop, and measure what an intervention costs."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from plastibench.agents.images import crop_and_flip
from plastibench.config.errors import UserError
from plastibench.config.spec import RunSpec
from plastibench.envs.task_stream import TaskStream
from plastibench.sweeps.matrix_products import products_of
from plastibench.sweeps.stacking import stack_key
from plastibench.training.assembly import check_options, choose_threads, make_trainer
from plastibench.training.checkpoint import tensor_bytes
from plastibench.training.supervised import SupervisedTrainer
from plastibench.training.task_buffer import all_samples
from plastibench.training.trainer_stack import TrainerStack
from plastibench.utils.runtime import set_up_torch
from plastibench.utils.wording import plural

Quartiles = tuple[float, float, float]


@dataclasses.dataclass(frozen=True)
class Speed:
    """The speed of a run's updates, measured in alternating rounds; each value has quartiles over the rounds.

    Attributes:
        env: Name of the env.
        agent: Name of the agent.
        device: The device.
        threads: CPU threads.
        precision: Precision of the matrix products.
        updates_per_epoch: Updates in an epoch of the first task.
        batch_size: Samples per update.
        plastibench: Seconds per update.
        plain: Seconds per update of an equivalent plain PyTorch loop.
        ratio: ``plastibench`` relative to ``plain``.
        products: Seconds that only the matrix products of an update take.
        reached: ``products`` relative to ``plastibench``: 1 if nothing else took time.
        intervention: Name of the intervention.
        intervention_seconds: Time of one intervention.
        intervention_fraction: Fraction of the run's time that interventions take at task boundaries.
        stack: Number of runs that were updated together; 0: not measured.
        stacked: Seconds per update of one of these runs.
        stack_gain: ``plastibench`` relative to ``stacked``.
    """

    env: str
    agent: str
    device: str
    threads: int
    precision: str
    updates_per_epoch: int
    batch_size: int
    plastibench: Quartiles
    plain: Quartiles
    ratio: Quartiles
    products: Quartiles
    reached: Quartiles
    intervention: str
    intervention_seconds: float
    intervention_fraction: float
    stack: int = 0
    stacked: Quartiles | None = None
    stack_gain: Quartiles | None = None

    def to_json(self) -> str:
        """The values as JSON."""
        return json.dumps(dataclasses.asdict(self), indent=1)

    def to_text(self) -> str:
        """A report of a few lines."""

        def line(name: str, seconds: Quartiles, note: str) -> str:
            low, middle, high = (1e3 * each for each in seconds)
            return f"  {name:21} {middle:9.3f} ms  ({low:.3f} to {high:.3f})   {note}"

        def relative(found: Quartiles) -> str:
            return f"{found[1]:.3f} ({found[0]:.3f} to {found[2]:.3f})"

        update = self.plastibench[1]
        stacked = []
        if self.stacked is not None and self.stack_gain is not None:
            note = f"{relative(self.stack_gain)} times as fast as alone"
            stacked = [line(f"each of {self.stack} together", self.stacked, note)]
        lines = [
            f"{self.env}, {self.agent}, {self.device}, {plural(self.threads, 'thread')}, {self.precision}",
            f"time per update of {plural(self.batch_size, 'sample')} ({self.updates_per_epoch} per epoch); "
            "median (quartiles):",
            line("plastibench", self.plastibench, f"{self.batch_size / update:,.0f} samples/s"),
            line("plain PyTorch loop", self.plain, f"plastibench takes {relative(self.ratio)} times as long"),
            line("matrix products alone", self.products, f"fraction of plastibench's time: {relative(self.reached)}"),
            *stacked,
            f"{self.intervention}: {self.intervention_seconds:.2f} s per intervention, the time of "
            f"{self.intervention_seconds / update:.0f} updates; {100 * self.intervention_fraction:.2f} % of the run",
        ]
        return "\n".join(lines)


def benchmark(spec: RunSpec, data_dir: Path, updates: int, rounds: int, threads: int, stack: int = 0) -> Speed:
    """Time updates of the harness and of a plain PyTorch loop, their matrix products alone, and one intervention.

    All except the intervention are measured in alternation. The harness and the plain loop do the same
    work: data on the device,
    augmentation, normalization, forward, backward, clipping, and fused AdamW whose learning rate is set at every
    update. The plain loop has no replay buffer, hooks, schedule or metrics.

    Args:
        spec: The run to time.
        data_dir: Folder of datasets.
        updates: Updates per measurement.
        rounds: Number of rounds, at least 2. Each loop is measured twice per round.
        threads: CPU threads, as for a run.
        stack: Also time this number of runs that are updated together.

    Raises:
        UserError: The spec is not a run on a task stream, or cannot be stacked.
    """
    if stack and stack_key(spec) is None:
        raise UserError(f"runs of {spec.agent[0]} on {spec.run.device} cannot be updated together; remove --stack")
    trainer = _started(spec, data_dir, threads)
    plain = plain_loop(trainer)
    trainer.learn()
    products = products_of(trainer.learn).replay
    steps: list[Callable[[], object]] = [plain, trainer.learn, products]
    if stack:
        seeds = [dataclasses.replace(spec, run=dataclasses.replace(spec.run, seed=seed)) for seed in range(stack)]
        together = [_started(each, data_dir, threads) for each in seeds]
        steps.append(functools.partial(TrainerStack().learn, together))
    measured: list[list[float]] = []
    for _ in range(rounds + 1):
        seconds = [_seconds(trainer, step, updates) / updates for step in (*steps, *reversed(steps))]
        measured.append([(seconds[index] + seconds[-1 - index]) / 2 for index in range(len(steps))])
    theirs, ours, floor, *stacked = zip(*measured[1:], strict=True)  # the first round warms up
    each = [seconds / stack for seconds in stacked[0]] if stack else []
    start = time.perf_counter()
    trainer.intervene()
    _wait(trainer)
    acting = time.perf_counter() - start
    boundaries = trainer.env_config.task_count - 1
    return Speed(
        env=spec.env[0],
        agent=spec.agent[0],
        device=spec.run.device,
        threads=torch.get_num_threads(),
        precision=trainer.agent.config.precision,
        updates_per_epoch=trainer.updates_per_epoch(),
        batch_size=trainer.agent.batch_size,
        plastibench=_quartiles(ours),
        plain=_quartiles(theirs),
        ratio=_quartiles([a / b for a, b in zip(ours, theirs, strict=True)]),
        products=_quartiles(floor),
        reached=_quartiles([a / b for a, b in zip(floor, ours, strict=True)]),
        intervention=spec.intervention[0],
        intervention_seconds=acting,
        intervention_fraction=boundaries * acting / (trainer.length * statistics.median(ours) + boundaries * acting),
        stack=stack,
        stacked=_quartiles(each) if stack else None,
        stack_gain=_quartiles([a / b for a, b in zip(ours, each, strict=True)]) if stack else None,
    )


def _quartiles(values: Sequence[float]) -> Quartiles:
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")  # never outside the values
    return low, middle, high


@dataclasses.dataclass
class Cost:
    """The cost of an intervention.

    Attributes:
        update: Time of an update with the intervention, relative to an update without it; quartiles over rounds.
        updates_each: Time of one intervention, in updates without it.
        memory: Bytes that the intervention keeps between updates, relative to those of the parameters.
    """

    update: tuple[float, float, float]
    updates_each: float
    memory: float


def cost(spec: RunSpec, data_dir: Path, updates: int = 5, rounds: int = 12, threads: int = 1) -> Cost:
    """Time updates with and without an intervention, in alternation, each twice per round.

    Args:
        spec: A run with the intervention.
        data_dir: Folder of datasets.
        updates: Updates per measurement.
        rounds: Number of rounds after the warm-up, at least 2.
        threads: CPU threads.

    Raises:
        UserError: The spec is not a run on a task stream.
    """
    base = spec.without_intervention()
    without, with_it = (_started(each, data_dir, threads) for each in (base, spec))
    ratios, seconds = [], []
    for round_number in range(rounds + 2):
        pair = [_seconds(each, each.learn, updates) for each in (without, with_it, with_it, without)]
        if round_number > 1:  # the first two rounds warm up
            ratios.append((pair[1] + pair[2]) / (pair[0] + pair[3]))
            seconds.append((pair[0] + pair[3]) / 2 / updates)
    start = time.perf_counter()
    with_it.intervene()
    _wait(with_it)
    acting = time.perf_counter() - start
    parameters = _parameter_bytes(without)
    kept = tensor_bytes(with_it.learner.intervention_states()) + _parameter_bytes(with_it) - parameters
    low, middle, high = statistics.quantiles(ratios, n=4)
    return Cost((low, middle, high), acting / statistics.median(seconds), kept / parameters)


def _started(spec: RunSpec, data_dir: Path, threads: int) -> SupervisedTrainer:
    """A trainer at the start of its first task, without a run folder."""
    env = spec.create("env").make(data_dir)
    if not isinstance(env, TaskStream):
        raise UserError(
            f"{spec.env[0]} is not a task stream; only runs on task streams (cl-*, relabel-*, …) can be timed"
        )
    set_up_torch(spec)
    agent = spec.create("agent").build(env, spec.run.seed, torch.device(spec.run.device))
    check_options(spec, env, agent)
    choose_threads(agent, threads)
    trainer = make_trainer(spec, env, agent)
    assert isinstance(trainer, SupervisedTrainer)
    trainer.begin()
    return trainer


def _parameter_bytes(trainer: SupervisedTrainer) -> int:
    parameters = trainer.learner.networks["classifier"].module.parameters()
    return sum(p.numel() * p.element_size() for p in parameters)


def plain_loop(trainer: SupervisedTrainer) -> Callable[[], None]:
    """Create a function that makes one update in plain PyTorch."""
    config, device = trainer.agent.config, trainer.device
    data = all_samples(trainer.buffer)
    images, labels = data["image"].clone(), data["label"].clone()
    model = trainer.learner.networks["classifier"].fresh()
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr, weight_decay=config.weight_decay, fused=True)
    mean = torch.tensor(trainer.env.dataset.mean, device=device)[:, None, None]
    std = torch.tensor(trainer.env.dataset.std, device=device)[:, None, None]
    generator = torch.Generator(device).manual_seed(0)
    pad, batch_size = trainer.env.augment_pad, config.batch_size
    batches: list[torch.Tensor] = []

    def update() -> None:
        if not batches:
            batches.extend(torch.randperm(len(images), device=device).split(batch_size))
        index = batches.pop(0)
        x = images[index]
        if pad:
            x = crop_and_flip(x, pad, generator)
        x = (x.float() / 255 - mean) / std
        for group in optimizer.param_groups:
            group["lr"] = config.lr
        with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
            loss = F.cross_entropy(model(x), labels[index])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), config.clip or math.inf)
        optimizer.step()

    return update


def _seconds(trainer: SupervisedTrainer, step: Callable[[], object], updates: int) -> float:
    _wait(trainer)
    start = time.perf_counter()
    for _ in range(updates):
        step()
    _wait(trainer)
    return time.perf_counter() - start


def _wait(trainer: SupervisedTrainer) -> None:
    if trainer.device.type == "cuda":
        torch.cuda.synchronize()
