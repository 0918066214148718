"""Measure what interventions cost: time per update, time of one intervention, and memory."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from plastibench.config.spec import RunSpec
from plastibench.sweeps.benchmark.started_trainer import start_trainer
from plastibench.sweeps.benchmark.timing import Clock, Quartiles, alternate, ratio, repeated, time_block
from plastibench.training.checkpoint import tensor_bytes
from plastibench.training.supervised import SupervisedTrainer
from plastibench.utils.tables import text_table

_REPEATED_SECONDS = 5.0  # longer interventions are not repeated


@dataclass
class Cost:
    """The cost of an intervention.

    Attributes:
        update: Time of an update with the intervention, relative to an update without it; quartiles over rounds.
        updates_each: Time of one intervention, in updates without it.
        memory: Bytes that the intervention keeps between updates, relative to those of the parameters.
        seconds_each: Time of one intervention.
    """

    update: Quartiles
    updates_each: float
    memory: float
    seconds_each: float = 0.0


def cost(
    spec: RunSpec,
    data_dir: Path,
    updates: int = 5,
    rounds: int = 12,
    threads: int = 1,
    *,
    repeats: int = 1,
    clock: Clock = "wall",
) -> Cost:
    """Time updates with and without an intervention alternately, each twice per round; then time the intervention.

    Args:
        spec: A run with the intervention.
        data_dir: Folder of datasets.
        updates: Updates per measurement.
        rounds: Number of rounds after the warm-up, at least 2.
        threads: CPU threads; 0: as for a run.
        repeats: Interventions of which the median is taken; fewer if they are slow.
        clock: ``wall``, or ``cpu`` for the CPU time of this process.

    Raises:
        UserError: The spec is not a run on a task stream.
    """
    without, with_it = (start_trainer(each, data_dir, threads) for each in (spec.without_intervention(), spec))
    blocks = {"without": repeated(without.learn, updates), "with": repeated(with_it.learn, updates)}
    seconds = alternate(blocks, rounds, with_it.device, warmup=2, clock=clock)
    acting = [time_block(with_it.intervene, with_it.device, clock)]
    parameters = _parameter_bytes(without)
    kept = tensor_bytes(with_it.learner.intervention_states()) + _parameter_bytes(with_it) - parameters
    while len(acting) < repeats and sum(acting) < _REPEATED_SECONDS:
        acting.append(time_block(with_it.intervene, with_it.device, clock))
    each = statistics.median(acting)
    update = statistics.median(seconds["without"]) / updates
    return Cost(ratio(seconds["with"], seconds["without"]), each / update, kept / parameters, each)


def cost_table(costs: Mapping[str, Cost | str]) -> str:
    """A table of the costs by intervention; a text instead of a cost says why there is none."""
    header = ["intervention", "update time (quartiles)", "one takes", "in updates", "memory"]
    rows = [
        [name, _shown(found.update), f"{1e3 * found.seconds_each:.1f} ms", *_rest(found)]
        for name, found in costs.items()
        if isinstance(found, Cost)
    ]
    failed = [f"{name}: {found}" for name, found in costs.items() if isinstance(found, str)]
    notes = "update time: relative to none; memory: kept, relative to the parameters"
    return "\n".join([text_table(header, rows, 80), notes, *failed])


def _shown(update: Quartiles) -> str:
    low, middle, high = update
    return f"{middle:.2f} ({low:.2f}–{high:.2f})"


def _rest(found: Cost) -> list[str]:
    return [f"{found.updates_each:.1f}", f"{found.memory:.2g}"]


def _parameter_bytes(trainer: SupervisedTrainer) -> int:
    parameters = trainer.learner.networks["classifier"].module.parameters()
    return sum(p.numel() * p.element_size() for p in parameters)
