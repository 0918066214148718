"""Plasticity put to the test: copies of the network learn something new for a fixed number of steps.

Copies keep their output layers unless a name says otherwise. Dropout is off, BatchNorm learns its statistics as
in training. The copy and the fresh network that it is compared with see the same samples in the same order.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn

from plastibench.metrics.plasticity import PlasticityReport
from plastibench.nn.batch_outputs import output_matrix
from plastibench.nn.batches import chunks
from plastibench.nn.branches import merged_outputs
from plastibench.nn.network import Network, as_evaluated
from plastibench.nn.traced_layer import TracedLayer

STEPS, BATCH, LR = 100, 128, 1e-3
TARGETS = 3
FREQUENCY = 1e5


def random_targets(
    network: Network, batch: TensorDictBase, units: Sequence[TracedLayer], generator: torch.Generator
) -> PlasticityReport:
    """How well the network fits targets that nothing has prepared it for, beside a fresh one."""
    found = [plasticity_probe(network, batch, _names(units), generator) for _ in range(TARGETS)]
    own, redrawn, fresh = (sum(losses) / TARGETS for losses in zip(*found, strict=True))
    gaps = {"plasticity-probe-gap": own - fresh, "plasticity-probe-fresh-gap": redrawn - fresh}
    return PlasticityReport(overall={"plasticity-probe-loss": own, **gaps})


def next_task(
    network: Network, batch: TensorDictBase, units: Sequence[TracedLayer], generator: torch.Generator
) -> PlasticityReport:
    """How well it learns the present data, beside a fresh one."""
    outputs = merged_outputs(network.module, _names(units))
    return PlasticityReport(overall=next_task_probe(network, batch, outputs, generator))


def _names(units: Sequence[TracedLayer]) -> list[str]:
    return [unit.name for unit in units if unit.output]


def plasticity_probe(
    network: Network, batch: TensorDictBase, outputs: Sequence[str], generator: torch.Generator, steps: int = STEPS
) -> tuple[float, float, float]:
    """What copies, and what a fresh network, leave of the squared error to one random target (Lyle et al. 2023).

    The target is ``a + sin(1e5 f(x))`` with f another fresh network, the same for both, and a the mean output of the
    learner itself before it learns, so that no learner is judged by its offset.

    Args:
        network: The network; left as it was.
        batch: What is learned from.
        outputs: Names of its output layers.
        generator: Draws the target, the fresh networks, and the order of samples.
        steps: Updates.

    Returns:
        Mean squared error after the last step: of the copy; of one with the fresh network's output layers, for large
        outputs alone take many steps to shrink; and of the fresh network.
    """
    with use_generator(network, generator):
        target_network, fresh = network.fresh(), network.fresh()
    redrawn = copy.deepcopy(network.module)
    for name in outputs:
        redrawn.get_submodule(name).load_state_dict(fresh.get_submodule(name).state_dict())
    whole = merged_outputs(network.module, outputs)
    pattern = torch.sin(FREQUENCY * _outputs(network, target_network, batch, whole))  # [N, K]
    order = orders(len(batch), steps, generator)
    left = []
    for learner in (copy.deepcopy(network.module), redrawn, fresh):
        target = pattern + _outputs(network, learner, batch, whole).mean()

        def error(module: nn.Module, rows: Tensor, target: Tensor = target) -> Tensor:
            wanted = target[rows]
            return (output_matrix(network, module, batch[rows], whole) - wanted).square().mean()

        learn(learner, error, order)
        left.append(float((_outputs(network, learner, batch, whole) - target).double().square().mean()))
    return left[0], left[1], left[2]


def next_task_probe(
    network: Network, batch: TensorDictBase, outputs: Sequence[str], generator: torch.Generator, steps: int = STEPS
) -> dict[str, float]:
    """Loss and accuracy on the batch after some steps of the training loss on it, copy minus fresh network."""
    with use_generator(network, generator):
        fresh = network.fresh()
    order = orders(len(batch), steps, generator)
    losses, accuracies = [], []
    for learner in (copy.deepcopy(network.module), fresh):
        learn(learner, lambda module, rows: network.loss(module, batch[rows]), order)
        with as_evaluated(learner), torch.no_grad():
            total = sum(float(network.loss(learner, part)) * len(part) for part in chunks(batch))
        losses.append(total / len(batch))
        if "label" in batch.keys() and len(outputs) == 1:  # noqa: SIM118 - a TensorDict iterates over rows
            answers = _outputs(network, learner, batch, outputs).argmax(1)
            accuracies.append(float((answers == batch["label"]).double().mean()))
    found = {"next-task-probe-loss-gap": losses[0] - losses[1]}
    if accuracies:
        found["next-task-probe-accuracy-gap"] = accuracies[0] - accuracies[1]
    return found


def learn(module: nn.Module, loss: Callable[[nn.Module, Tensor], Tensor], order: Tensor) -> None:
    """Train a module in place with a fresh Adam, a step for each row of sample numbers in ``order`` [steps, B]."""
    module.eval()
    for child in module.modules():
        if isinstance(child, nn.modules.batchnorm._BatchNorm):
            child.train()
    device = next(module.parameters()).device
    trained = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=LR)
    with torch.enable_grad(), torch.autocast(device.type, enabled=False):
        for rows in order.to(device):
            optimizer.zero_grad(set_to_none=True)
            loss(module, rows).backward(inputs=trained)  # an actor's loss runs through the critic
            optimizer.step()


def orders(count: int, steps: int, generator: torch.Generator, size: int = BATCH) -> Tensor:
    """Which samples each step sees, passes over all of them one after the other. [steps, min(size, count)]."""
    size = min(size, count)
    passes = -(-steps * size // count)
    shuffled = torch.cat([torch.randperm(count, generator=generator) for _ in range(passes)])
    return shuffled[: steps * size].reshape(steps, size)


@contextmanager
def use_generator(network: Network, generator: torch.Generator) -> Iterator[None]:
    """Fresh modules are drawn from another generator inside the block: interventions must not notice a look."""
    own, network.generator = network.generator, generator
    try:
        yield
    finally:
        network.generator = own


@torch.no_grad()
def _outputs(network: Network, module: nn.Module, batch: TensorDictBase, outputs: Sequence[str]) -> Tensor:
    with as_evaluated(module):
        return torch.cat([output_matrix(network, module, part, outputs) for part in chunks(batch)])
