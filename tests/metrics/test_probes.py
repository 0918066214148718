from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from plastibench.interventions.plasticity_injection import PlasticityInjection
from plastibench.metrics.gradients import ntk_ranks
from plastibench.metrics.metric_inputs import MetricInputs
from plastibench.metrics.probes import learn, next_task, next_task_probe, orders, plasticity_probe, random_targets
from plastibench.metrics.spectra import effective_rank
from plastibench.nn.batch_outputs import output_matrix
from plastibench.nn.branches import merged_outputs
from plastibench.nn.dataflow import trace
from plastibench.nn.network import Network
from tests.support.networks import agent_builder, drawn, images, loss, network_of
from tests.support.references import array

LINEAR = lambda: nn.Sequential(nn.Flatten(), nn.Linear(4, 2))  # noqa: E731
BATCH = images(40, (1, 2, 2), classes=2)


def seed(number: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def adam(x: np.ndarray, y: np.ndarray, w: np.ndarray, b: np.ndarray, order: np.ndarray) -> float:
    """What a linear model leaves of the squared error after a step of Adam for each row of the order."""
    theta, m, v = np.hstack([w, b[:, None]]), np.zeros((2, 5)), np.zeros((2, 5))
    ones = np.hstack([x, np.ones((len(x), 1))])
    for t, rows in enumerate(order, 1):
        g = 2 * (ones[rows] @ theta.T - y[rows]).T @ ones[rows] / (len(rows) * 2)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        theta = theta - 1e-3 * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
    return float(((ones @ theta.T - y) ** 2).mean())


def test_the_probe_fits_shifted_sines_of_a_fresh_network_as_numpy_does() -> None:
    network = network_of(LINEAR)
    own, fresh_outputs, fresh = plasticity_probe(network, BATCH, ["1"], seed(7), steps=6)
    generator = seed(7)  # two fresh networks first, then the order
    sources = [drawn(LINEAR, int(torch.randint(2**62, (), generator=generator))) for _ in range(2)]
    order = orders(40, 6, generator).numpy()
    x = array(BATCH["image"]).reshape(40, 4)
    with torch.no_grad():
        pattern = array(torch.sin(1e5 * sources[0](BATCH["image"])))
    for found, module in ((own, network.module), (fresh, sources[1])):
        w, b = array(module[1].weight), array(module[1].bias)
        target = pattern + (x @ w.T + b).mean()
        assert found == pytest.approx(adam(x, target, w, b, order), rel=1e-4)
    assert own != fresh and fresh_outputs == fresh  # the output layer is all there is


def test_a_network_without_a_gradient_is_less_plastic_than_a_fresh_one() -> None:
    builder = agent_builder("mlp", (1, 2, 2), 2, width=32)
    network = network_of(builder)
    with torch.no_grad():
        network.module[1].bias.fill_(-100.0)  # the whole first layer is dead
    own, fresh_outputs, fresh = plasticity_probe(network, BATCH, ["5"], seed(), steps=60)
    assert own > fresh + 0.1 and fresh_outputs > fresh + 0.1
    found = next_task_probe(network, BATCH, ["5"], seed(), steps=200)
    assert found["next-task-probe-loss-gap"] > 0.05 and found["next-task-probe-accuracy-gap"] < -0.05


def test_a_fresh_network_is_as_plastic_as_another() -> None:
    builder = agent_builder("mlp", (1, 2, 2), 2, width=64)
    own, fresh_outputs, fresh = plasticity_probe(network_of(builder), BATCH, ["5"], seed(), steps=60)
    assert own == pytest.approx(fresh, abs=0.1) == fresh_outputs


def test_large_outputs_alone_are_no_loss_of_plasticity() -> None:
    network = network_of(agent_builder("mlp", (1, 2, 2), 2, width=64))
    with torch.no_grad():
        network.module[5].weight *= 1000
    own, fresh_outputs, fresh = plasticity_probe(network, BATCH, ["5"], seed(), steps=60)
    assert own > fresh + 1 and fresh_outputs == pytest.approx(fresh, abs=0.1)


@pytest.mark.parametrize("part", ["head", "tail"])
def test_branches_of_plasticity_injection_are_one_output(part: str) -> None:
    network = network_of(agent_builder("mlp", (1, 2, 2), 2, width=16))
    plain = next_task_probe(network, BATCH, ["5"], seed(), steps=2)
    PlasticityInjection(part=part).intervene(network, BATCH)
    names = [unit.name for unit in trace(network, BATCH) if unit.output]
    (whole,) = merged_outputs(network.module, names)
    assert len(names) == 3 and whole == ("5" if part == "head" else whole)
    with torch.no_grad():
        found = output_matrix(network, network.module, BATCH, [whole])
        assert torch.equal(found, network.module(BATCH["image"]))
    inputs = MetricInputs.of(network, BATCH)
    assert set(next_task(inputs).overall) == set(plain)  # the accuracy is there as before
    assert math.isfinite(random_targets(inputs).overall["plasticity-probe-fresh-gap"])
    rows = []
    for number in range(32):
        network.module.zero_grad()
        network.module.eval()(BATCH["image"][number : number + 1]).sum().backward()
        rows.append(torch.cat([p.grad.flatten() for p in network.module.parameters() if p.requires_grad]))
    gram = torch.stack(rows).double() @ torch.stack(rows).double().T
    expected = effective_rank(torch.linalg.eigvalsh(gram).clamp_min(0).sqrt())
    assert ntk_ranks(inputs).overall["ntk-effective-rank"] == pytest.approx(expected, rel=1e-3)


def test_the_gradients_of_other_modules_stay_as_they_are() -> None:
    critic = drawn(lambda: nn.Linear(2, 1))
    actor = Network(
        drawn(LINEAR), None, lambda module, batch: critic(module(batch["image"])).mean(), fresh=LINEAR, role="actor"
    )
    next_task_probe(actor, BATCH, ["1"], seed(), steps=1)
    assert all(p.grad is None for p in critic.parameters())


def test_the_next_task_is_learned_on_the_training_loss() -> None:
    network = network_of(LINEAR)
    found = next_task_probe(network, BATCH, ["1"], seed(3), steps=4)
    generator = seed(3)
    fresh = drawn(LINEAR, int(torch.randint(2**62, (), generator=generator)))
    order, figures = orders(40, 4, generator), []
    for module in (drawn(LINEAR), fresh):
        optimizer = torch.optim.Adam(module.parameters(), lr=1e-3)
        for rows in order:
            optimizer.zero_grad()
            loss(module, BATCH[rows]).backward()
            optimizer.step()
        right = (module(BATCH["image"]).argmax(1) == BATCH["label"]).double().mean()
        figures.append((float(loss(module, BATCH).detach()), float(right)))
    assert found["next-task-probe-loss-gap"] == pytest.approx(figures[0][0] - figures[1][0], rel=1e-4)
    assert found["next-task-probe-accuracy-gap"] == pytest.approx(figures[0][1] - figures[1][1])


def test_without_labels_there_is_no_accuracy() -> None:
    batch = BATCH.clone()
    batch["target"] = batch.pop("label").float()[:, None].expand(-1, 2).clone()
    squared = Network(drawn(LINEAR), None, lambda m, b: (m(b["image"]) - b["target"]).square().mean(), fresh=LINEAR)
    assert set(next_task_probe(squared, batch, ["1"], seed(), steps=1)) == {"next-task-probe-loss-gap"}


def test_orders_pass_over_all_samples_before_one_comes_again() -> None:
    found = orders(10, 5, seed(), size=4).flatten()
    assert found.shape == (20,) and sorted(found[:10].tolist()) == list(range(10)) == sorted(found[10:].tolist())
    assert orders(3, 2, seed()).shape == (2, 3)


def test_what_is_frozen_stays_and_batchnorm_learns_its_statistics() -> None:
    module = drawn(
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Dropout(0.5), nn.Linear(3, 2))
    )
    module[1].requires_grad_(False)
    before = [p.detach().clone() for p in module.parameters()]
    state = torch.get_rng_state()
    learn(module, lambda m, rows: loss(m, BATCH[rows]), orders(40, 3, seed()))
    assert [torch.equal(a, b) for a, b in zip(module.parameters(), before, strict=True)] == [True] * 2 + [False] * 4
    assert bool((module[2].running_mean != 0).all())
    assert torch.equal(torch.get_rng_state(), state)
