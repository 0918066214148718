"""What each row of ``bench gpu`` measures."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from plastibench.config.spec import RunSpec
from plastibench.sweeps.benchmark.gpu_rows import Row, Sizes
from plastibench.sweeps.benchmark.intervention_cost import cost
from plastibench.sweeps.benchmark.rl_speed import start_rl_trainer
from plastibench.sweeps.benchmark.stacked_reference import stacked_reference
from plastibench.sweeps.benchmark.started_trainer import start_trainer
from plastibench.sweeps.benchmark.timing import alternate, quartiles, ratio, repeated
from plastibench.sweeps.benchmark.update_speed import measure_updates
from plastibench.sweeps.stacking import stack_key

Values = dict[str, Any]


class NotSupported(Exception):
    """A row cannot be measured; the message says why."""


def update(row: Row, sizes: Sizes) -> Values:
    """Updates of plastibench, of a plain eager loop, and of their matrix products."""
    found = measure_updates(sizes.spec(row), Path("data"), sizes.updates, sizes.rounds, loops=("plain", "products"))
    return dataclasses.asdict(found)


def loader(row: Row, sizes: Sizes) -> Values:
    """Updates of plastibench, and of a loop with a DataLoader."""
    found = measure_updates(sizes.spec(row), Path("data"), sizes.updates, sizes.rounds, loops=("loader",))
    return dataclasses.asdict(found)


def stack(row: Row, sizes: Sizes) -> Values:
    """Several networks updated together: by plastibench if it stacks them, otherwise by plain PyTorch with vmap."""
    spec = sizes.spec(row)
    if stack_key(spec) is not None:
        found = measure_updates(spec, Path("data"), sizes.updates, sizes.rounds, loops=(), stack=row.stack)
        return {**dataclasses.asdict(found), "by": "plastibench"}
    if row.mode != "eager":
        raise NotSupported(f"plastibench does not stack {row.agent}; the reference with vmap is measured eagerly only")
    trainer = start_trainer(spec, Path("data"))
    steps = {"alone": trainer.learn, "stacked": stacked_reference(trainer, row.stack)}
    blocks = {name: repeated(step, sizes.updates) for name, step in steps.items()}
    seconds = alternate(blocks, sizes.rounds, trainer.device)
    alone = [value / sizes.updates for value in seconds["alone"]]
    each = [value / sizes.updates / row.stack for value in seconds["stacked"]]
    gain = ratio(alone, each)
    return {
        "plastibench": quartiles(alone),
        "stacked": quartiles(each),
        "stack_gain": gain,
        "by": "plain PyTorch, vmap",
    }


def rnr(row: Row, sizes: Sizes) -> Values:
    """The cost of one RnR intervention on 2,048 images."""
    spec = sizes.spec(row, "rnr")
    found = cost(spec, Path("data"), sizes.updates, sizes.rounds, threads=0, repeats=3)
    return {**dataclasses.asdict(found), "images": spec.run.representative}


def logits(row: Row, sizes: Sizes) -> Values:
    """The largest difference between the logits of a CPU and of the device after the same RnR intervention."""
    specs = [sizes.spec(row, "rnr", device) for device in ("cpu", sizes.device)]
    if row.agent != "vit-nano":  # slow on a CPU
        specs = [dataclasses.replace(s, run=dataclasses.replace(s.run, representative=256)) for s in specs]
    here, there = (start_trainer(spec, Path("data")) for spec in specs)
    for _ in range(sizes.updates):
        there.learn()
    trained = there.learner.networks["classifier"].module.state_dict()
    here.learner.networks["classifier"].module.load_state_dict(trained)
    batch = here.representative()
    report = here.learner.intervene(batch)["classifier"]
    other = there.learner.intervene(batch.to(there.device))["classifier"]
    same = [(mask.cpu() == other.units[name].cpu()).float().mean() for name, mask in report.units.items()]
    ours = here.agent.logits(here.eval_set.images)
    theirs = there.agent.logits(there.eval_set.images).cpu()
    return {
        "largest_difference": float((ours - theirs).abs().max()),
        "standard_deviation": float(ours.std()),
        "equal_predictions": float((ours.argmax(1) == theirs.argmax(1)).float().mean()),
        "equal_units": float(torch.stack(same).mean()),
        "images": specs[0].run.representative,
    }


def sync(row: Row, sizes: Sizes) -> Values:
    """Count the operations of an update that wait for the GPU, with the lines that start them."""
    if not sizes.device.startswith("cuda"):
        raise NotSupported("only a GPU has operations that wait for it")
    step, calls = _updating(row, sizes)
    for _ in range(3):
        step()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(calls):
                step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    places = [f"{Path(each.filename).name}:{each.lineno}" for each in caught if "synchroniz" in str(each.message)]
    return {"updates": calls, "syncs": len(places), "places": sorted(set(places))}


def _updating(row: Row, sizes: Sizes) -> tuple[Callable[[], object], int]:
    """A function that makes an update, and how often to call it: for classifiers across the end of an epoch."""
    if row.agent != "dqn-mlp":
        trainer = start_trainer(sizes.spec(row), Path("data"))
        return trainer.learn, trainer.updates_per_epoch() + sizes.updates
    spec = RunSpec.make("rl-cartpole", "dqn-mlp", agent_options={"learning_starts": 256}, device=sizes.device)
    rl = start_rl_trainer(spec, Path("data"))

    def step() -> None:
        for batch in rl.buffer.sample():
            rl.learner.learn(batch)

    return step, sizes.updates


MEASURES: dict[str, Callable[[Row, Sizes], Values]] = {
    "update": update,
    "loader": loader,
    "stack": stack,
    "rnr": rnr,
    "logits": logits,
    "sync": sync,
}
