"""How fast the harness is: against the plainest loop that does the same work, and what an intervention costs."""

from __future__ import annotations

import dataclasses
import math
import statistics
import tempfile
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
from plastibench.training.runner import Run, check_options
from plastibench.training.supervised import SupervisedTrainer
from plastibench.training.task_buffer import all_samples
from plastibench.utils.runtime import set_up_torch


def benchmark(spec: RunSpec, data_dir: Path, updates: int, rounds: int, threads: int) -> str:
    """Time updates of the harness and of a plain PyTorch loop in turn, then the intervention once.

    Both do the same work: data on the device, augmentation, normalisation, forward, backward, clipping, fused AdamW
    with its learning rate set at every update. The plain loop knows no replay buffer, hooks, schedule or metrics.

    Args:
        spec: What is timed.
        data_dir: Where data sets are.
        updates: Updates per measurement.
        rounds: Rounds, in each of which both are measured twice; medians count. At least 2.
        threads: CPU threads, as for a run.
    """
    with tempfile.TemporaryDirectory() as folder:
        trainer = _begun(spec, Path(folder), data_dir, threads)
        run = trainer.run
        epoch = trainer.updates_per_epoch()
        plain = plain_loop(trainer)
        ours, theirs = [], []
        for round_number in range(rounds + 1):
            pair = [_seconds(trainer, step, updates) for step in (plain, trainer.learn, trainer.learn, plain)]
            if round_number:  # the first warms up
                theirs.append((pair[0] + pair[3]) / 2)
                ours.append((pair[1] + pair[2]) / 2)
        low, ratio, high = statistics.quantiles((a / b for a, b in zip(ours, theirs, strict=True)), n=4)
        start = time.perf_counter()
        run.intervene()
        _wait(trainer)
        intervention = time.perf_counter() - start
        update = statistics.median(ours) / updates
        total, switches = trainer.length, trainer.config.task_count - 1
        run.close()
    scale = epoch / updates
    share = switches * intervention / (total * update + switches * intervention)
    rate = trainer.agent.batch_size / update
    return "\n".join(
        [
            f"{spec.env[0]}, {spec.agent[0]}, {spec.run.device}, {torch.get_num_threads()} threads, "
            f"{trainer.agent.label}",
            f"seconds per epoch of the first task ({epoch} updates), {rounds} rounds of {updates} updates "
            "plain, ours, ours, plain; medians and quartiles:",
            f"  plain PyTorch loop  {statistics.median(theirs) * scale:.3f}",
            f"  plastibench         {statistics.median(ours) * scale:.3f}   ratio {ratio:.3f} "
            f"({low:.3f} to {high:.3f})   {rate:,.0f} samples/s",
            f"{spec.intervention[0]} on {spec.run.representative} samples: {intervention:.2f} s, as long as "
            f"{intervention / update:.0f} updates; at {switches} switches of a run of {total:,} updates "
            f"{100 * share:.2f} % of the time",
        ]
    )


@dataclasses.dataclass
class Cost:
    """What an intervention costs.

    Attributes:
        update: Time of an update with it over that of one without, as quartiles over rounds.
        updates_each: How many updates without it take as long as one time that it acts.
        memory: Bytes that it keeps between updates, over those of the parameters.
    """

    update: tuple[float, float, float]
    updates_each: float
    memory: float


def cost(spec: RunSpec, data_dir: Path, updates: int = 5, rounds: int = 12, threads: int = 1) -> Cost:
    """Time updates with and without an intervention in turn, without and with it twice a round.

    Args:
        spec: A run with the intervention.
        data_dir: Where data sets are.
        updates: Updates per measurement.
        rounds: Rounds that count; at least 2.
        threads: CPU threads.
    """
    base = dataclasses.replace(spec, intervention=RunSpec.make(spec.env[0], spec.agent[0]).intervention)
    with tempfile.TemporaryDirectory() as folder:
        trainers = [_begun(each, Path(folder) / name, data_dir, threads) for name, each in (("a", base), ("b", spec))]
        plain, with_it = trainers
        ratios, seconds = [], []
        for round_number in range(rounds + 2):
            pair = [_seconds(trainer, trainer.learn, updates) for trainer in (plain, with_it, with_it, plain)]
            if round_number > 1:  # the first warm up, and find what they work on
                ratios.append((pair[1] + pair[2]) / (pair[0] + pair[3]))
                seconds.append((pair[0] + pair[3]) / 2 / updates)
        start = time.perf_counter()
        with_it.run.intervene()
        _wait(with_it)
        acting = time.perf_counter() - start
        module = with_it.run.networks[0].module
        bought = sum(p.numel() * p.element_size() for p in module.parameters())
        bought -= sum(p.numel() * p.element_size() for p in plain.run.networks[0].module.parameters())
        parameters = sum(p.numel() * p.element_size() for p in plain.run.networks[0].module.parameters())
        kept = tensor_bytes([intervention.state_dict() for intervention in with_it.run.interventions])
        for trainer in trainers:
            trainer.run.close()
    low, middle, high = statistics.quantiles(ratios, n=4)
    return Cost((low, middle, high), acting / statistics.median(seconds), (kept + bought) / parameters)


def _begun(spec: RunSpec, folder: Path, data_dir: Path, threads: int) -> SupervisedTrainer:
    env = spec.create("env").make(data_dir)
    if not isinstance(env, TaskStream):
        raise UserError(f"{spec.env[0]}: only updates on supervised streams (cl-*, relabel-*, …) are timed")
    set_up_torch(spec)
    agent = spec.create("agent").build(env, spec.run.seed, torch.device(spec.run.device))
    check_options(spec, env, agent)
    folder.mkdir(exist_ok=True)
    run = Run(spec, env, agent, folder, [], quiet=True, threads=threads, checkpoint_seconds=math.inf)
    assert isinstance(run.trainer, SupervisedTrainer)  # as of every stream
    run.trainer.begin()
    return run.trainer


def plain_loop(trainer: SupervisedTrainer) -> Callable[[], None]:
    """One update as a person would write it who needs nothing else."""
    config, device = trainer.agent.config, trainer.device
    data = all_samples(trainer.replay)
    images, labels = data["image"].clone(), data["label"].clone()
    model = trainer.run.networks[0].fresh()
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
