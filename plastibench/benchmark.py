"""How fast the harness is: against the plainest loop that does the same work, and what an intervention costs."""

from __future__ import annotations

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
from plastibench.replay import everything
from plastibench.runner import Run
from plastibench.spec import RunSpec
from plastibench.supervised import Supervised


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
    env = spec.create("env").make(data_dir)
    agent = spec.create("agent").build(env, spec.run.seed, torch.device(spec.run.device))
    with tempfile.TemporaryDirectory() as folder:
        run = Run(spec, env, agent, Path(folder), [], quiet=True, threads=threads, checkpoint_seconds=math.inf)
        course = run.course
        assert isinstance(course, Supervised)
        course.begin()
        epoch = course.updates_per_epoch()
        plain = plain_loop(course)
        ours, theirs = [], []
        for round_number in range(rounds + 1):
            pair = [_seconds(course, step, updates) for step in (plain, course.learn, course.learn, plain)]
            if round_number:  # the first warms up
                theirs.append((pair[0] + pair[3]) / 2)
                ours.append((pair[1] + pair[2]) / 2)
        low, ratio, high = statistics.quantiles((a / b for a, b in zip(ours, theirs, strict=True)), n=4)
        start = time.perf_counter()
        run.intervene()
        _wait(course)
        intervention = time.perf_counter() - start
        update = statistics.median(ours) / updates
        total, switches = course.length, course.scenario.task_count - 1
        run.close()
    scale = epoch / updates
    share = switches * intervention / (total * update + switches * intervention)
    rate = course.agent.batch_size / update
    return "\n".join(
        [
            f"{spec.env[0]}, {spec.agent[0]}, {spec.run.device}, {torch.get_num_threads()} threads, "
            f"{course.agent.label}",
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


def plain_loop(course: Supervised) -> Callable[[], None]:
    """One update as a person would write it who needs nothing else."""
    recipe, device = course.agent.recipe, course.device
    data = everything(course.replay)
    images, labels = data["image"].clone(), data["label"].clone()
    model = course.run.networks[0].fresh()
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay, fused=True)
    mean = torch.tensor(course.env.dataset.mean, device=device)[:, None, None]
    std = torch.tensor(course.env.dataset.std, device=device)[:, None, None]
    generator = torch.Generator(device).manual_seed(0)
    pad, batch_size = course.env.augment_pad, recipe.batch_size
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
            group["lr"] = recipe.lr
        with torch.autocast(device.type, torch.bfloat16, enabled=recipe.precision == "bfloat16"):
            loss = F.cross_entropy(model(x), labels[index])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), recipe.clip or math.inf)
        optimizer.step()

    return update


def _seconds(course: Supervised, step: Callable[[], None], updates: int) -> float:
    _wait(course)
    start = time.perf_counter()
    for _ in range(updates):
        step()
    _wait(course)
    return time.perf_counter() - start


def _wait(course: Supervised) -> None:
    if course.device.type == "cuda":
        torch.cuda.synchronize()
