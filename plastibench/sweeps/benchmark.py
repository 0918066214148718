"""Benchmark the harness against a plain PyTorch loop, and measure what an intervention costs."""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from plastibench.agents.images import crop_and_flip
from plastibench.config.errors import UserError
from plastibench.config.spec import RunSpec
from plastibench.envs.task_stream import TaskStream
from plastibench.training.checkpoint import tensor_bytes
from plastibench.training.runner import check_options, choose_threads, make_trainer
from plastibench.training.supervised import SupervisedTrainer
from plastibench.training.task_buffer import all_samples
from plastibench.utils.runtime import set_up_torch


def benchmark(spec: RunSpec, data_dir: Path, updates: int, rounds: int, threads: int) -> str:
    """Time updates of the harness and of a plain PyTorch loop alternately, then the intervention once.

    Both do the same work: data on the device, augmentation, normalization, forward, backward, clipping, and fused AdamW
    whose learning rate is set at every update. The plain loop has no replay buffer, hooks, schedule or metrics.

    Args:
        spec: The run to time.
        data_dir: Folder of datasets.
        updates: Updates per measurement.
        rounds: Number of rounds, at least 2. Both loops are measured twice per round; medians are reported.
        threads: CPU threads, as for a run.

    Returns:
        A report of a few lines.

    Raises:
        UserError: The spec is not a run on a task stream.
    """
    trainer = _started(spec, data_dir, threads)
    epoch = trainer.updates_per_epoch()
    plain = plain_loop(trainer)
    ours, theirs = [], []
    for round_number in range(rounds + 1):
        pair = [_seconds(trainer, step, updates) for step in (plain, trainer.learn, trainer.learn, plain)]
        if round_number:  # the first round warms up
            theirs.append((pair[0] + pair[3]) / 2)
            ours.append((pair[1] + pair[2]) / 2)
    low, ratio, high = statistics.quantiles((a / b for a, b in zip(ours, theirs, strict=True)), n=4)
    start = time.perf_counter()
    trainer.intervene()
    _wait(trainer)
    intervention = time.perf_counter() - start
    update = statistics.median(ours) / updates
    total, boundaries = trainer.length, trainer.env_config.task_count - 1
    scale = epoch / updates
    fraction = boundaries * intervention / (total * update + boundaries * intervention)
    rate = trainer.agent.batch_size / update
    return "\n".join(
        [
            f"{spec.env[0]}, {spec.agent[0]}, {spec.run.device}, {torch.get_num_threads()} threads, "
            f"{trainer.agent.config.precision}",
            f"seconds per epoch of the first task ({epoch} updates), {rounds} rounds of {updates} updates "
            "(plain, plastibench, plastibench, plain); medians and quartiles:",
            f"  plain PyTorch loop  {statistics.median(theirs) * scale:.3f}",
            f"  plastibench         {statistics.median(ours) * scale:.3f}   ratio {ratio:.3f} "
            f"({low:.3f} to {high:.3f})   {rate:,.0f} samples/s",
            f"{spec.intervention[0]} on {spec.run.representative} samples: {intervention:.2f} s, the time of "
            f"{intervention / update:.0f} updates; {100 * fraction:.2f} % of a run of {total:,} updates with "
            f"{boundaries} task boundaries",
        ]
    )


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
    """Time updates with and without an intervention alternately, each twice per round.

    Args:
        spec: A run with the intervention.
        data_dir: Folder of datasets.
        updates: Updates per measurement.
        rounds: Number of rounds after the warm-up, at least 2.
        threads: CPU threads.

    Raises:
        UserError: The spec is not a run on a task stream.
    """
    base = dataclasses.replace(spec, intervention=RunSpec.make(spec.env[0], spec.agent[0]).intervention)
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


def _seconds(trainer: SupervisedTrainer, step: Callable[[], None], updates: int) -> float:
    _wait(trainer)
    start = time.perf_counter()
    for _ in range(updates):
        step()
    _wait(trainer)
    return time.perf_counter() - start


def _wait(trainer: SupervisedTrainer) -> None:
    if trainer.device.type == "cuda":
        torch.cuda.synchronize()
