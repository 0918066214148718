"""Plasticity probes: train a copy of the network on something new for a fixed number of steps.

Copies keep their output layers unless stated otherwise. Dropout is off, and BatchNorm updates its statistics as in
training. The copy and the fresh network it is compared with train on the same samples in the same order.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn

from plastibench.metrics.metric_inputs import MetricInputs
from plastibench.metrics.plasticity import PlasticityReport
from plastibench.nn.batch_outputs import output_matrix
from plastibench.nn.batches import chunks
from plastibench.nn.branches import merged_outputs
from plastibench.nn.network import Network, as_evaluated
from plastibench.nn.traced_layer import TracedLayer

STEPS, BATCH, LR = 100, 128, 1e-3
TARGETS = 3
FREQUENCY = 1e5


def random_targets(inputs: MetricInputs) -> PlasticityReport:
    """Measure how well the network fits random targets, compared with a freshly initialized network."""
    generator, outputs = inputs.generator(2), _names(inputs.units)
    found = [plasticity_probe(inputs.network, inputs.batch, outputs, generator) for _ in range(TARGETS)]
    own, fresh_outputs, fresh = (sum(losses) / TARGETS for losses in zip(*found, strict=True))
    gaps = {"plasticity-probe-gap": own - fresh, "plasticity-probe-fresh-gap": fresh_outputs - fresh}
    return PlasticityReport(overall={"plasticity-probe-loss": own, **gaps})


def next_task(inputs: MetricInputs) -> PlasticityReport:
    """Measure how well the network learns the current data, compared with a freshly initialized network."""
    outputs = merged_outputs(inputs.network.module, _names(inputs.units))
    return PlasticityReport(overall=next_task_probe(inputs.network, inputs.batch, outputs, inputs.generator(3)))


def _names(units: Sequence[TracedLayer]) -> list[str]:
    return [unit.name for unit in units if unit.output]


def plasticity_probe(
    network: Network, batch: TensorDictBase, outputs: Sequence[str], generator: torch.Generator, steps: int = STEPS
) -> tuple[float, float, float]:
    """Fit one random target with copies of the network and with a fresh network (Lyle et al. 2023).

    The target is ``a + sin(1e5 f(x))``. The fresh network f is the same for all learners; a is the mean output of the
    learner before training, so that its offset does not matter.

    Args:
        network: The network; unchanged.
        batch: Training data.
        outputs: Names of the output layers.
        generator: Draws the target, the fresh networks, and the order of samples.
        steps: Number of updates.

    Returns:
        Mean squared error after training of (1) a copy of the network; (2) a copy with the output layers of the fresh
        network, because large outputs alone take many steps to shrink; (3) the fresh network.
    """
    with use_generator(network, generator):
        target_network, fresh = network.fresh(), network.fresh()
    fresh_outputs = copy.deepcopy(network.module)
    for name in outputs:
        fresh_outputs.get_submodule(name).load_state_dict(fresh.get_submodule(name).state_dict())
    merged = merged_outputs(network.module, outputs)
    pattern = torch.sin(FREQUENCY * _outputs(network, target_network, batch, merged))  # [N, K]
    order = orders(len(batch), steps, generator)
    errors = []
    for learner in (copy.deepcopy(network.module), fresh_outputs, fresh):
        target = pattern + _outputs(network, learner, batch, merged).mean()

        def error(module: nn.Module, rows: Tensor, target: Tensor = target) -> Tensor:
            return (output_matrix(network, module, batch[rows], merged) - target[rows]).square().mean()

        learn(learner, error, order)
        errors.append(float((_outputs(network, learner, batch, merged) - target).double().square().mean()))
    return errors[0], errors[1], errors[2]


def next_task_probe(
    network: Network, batch: TensorDictBase, outputs: Sequence[str], generator: torch.Generator, steps: int = STEPS
) -> dict[str, float]:
    """Train a copy and a fresh network on the batch; compare their loss and accuracy on it, copy minus fresh."""
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
            predicted = _outputs(network, learner, batch, outputs).argmax(1)
            accuracies.append(float((predicted == batch["label"]).double().mean()))
    found = {"next-task-probe-loss-gap": losses[0] - losses[1]}
    if accuracies:
        found["next-task-probe-accuracy-gap"] = accuracies[0] - accuracies[1]
    return found


def learn(module: nn.Module, loss: Callable[[nn.Module, Tensor], Tensor], order: Tensor) -> None:
    """Train a module in place with a new Adam optimizer, one step per row of sample indices in ``order`` [steps, B]."""
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
            loss(module, rows).backward(inputs=trained)  # the loss of an actor also depends on the critic
            optimizer.step()


def orders(count: int, steps: int, generator: torch.Generator, size: int = BATCH) -> Tensor:
    """Draw the sample indices of each step, in passes over all samples. [steps, min(size, count)]."""
    size = min(size, count)
    passes = -(-steps * size // count)
    shuffled = torch.cat([torch.randperm(count, generator=generator) for _ in range(passes)])
    return shuffled[: steps * size].reshape(steps, size)


@contextmanager
def use_generator(network: Network, generator: torch.Generator) -> Iterator[None]:
    """Initialize fresh modules from ``generator`` inside the block; the draws of interventions do not change."""
    own, network.generator = network.generator, generator
    try:
        yield
    finally:
        network.generator = own


@torch.no_grad()
def _outputs(network: Network, module: nn.Module, batch: TensorDictBase, outputs: Sequence[str]) -> Tensor:
    with as_evaluated(module):
        return torch.cat([output_matrix(network, module, part, outputs) for part in chunks(batch)])
