from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from plastibench.config.errors import UserError
from plastibench.interventions.self_normalized_resets import SelfNormalizedResets
from plastibench.nn.network import Network
from tests.support.networks import agent_builder, changed, constant, images, loss, network_of, small_vit, state, update
from tests.support.references import array

MLP = agent_builder("mlp", width=8)
SIGNALS = 12


def one_layer() -> nn.Module:
    """Create a network whose unit i fires exactly if feature i is positive."""
    module = nn.Sequential(nn.Flatten(), nn.Linear(8, 8, bias=False), nn.ReLU(), nn.Linear(8, 3))
    with torch.no_grad():
        module[1].weight.copy_(torch.eye(8))
    return module


def firing(pattern: list[bool]):
    """Create a batch in which unit i fires for some samples or for none."""
    batch = images(6, (1, 1, 8), classes=3)
    batch["image"] = -batch["image"].abs() - 0.1
    batch["image"][2, 0, 0] = torch.where(torch.tensor(pattern), 1.0, -1.0)
    return batch


def schedule(updates: int) -> np.ndarray:
    """Generate firing patterns: rarer and rarer; unit 5 stops firing, unit 6 never fires. [updates, 8]."""
    time = np.arange(updates)[:, None]
    fires = time % np.array([1, 2, 3, 5, 8, 1, 1, 13]) == 0
    fires[20:, 5] = False
    fires[:, 6] = False
    return fires


class Reference:
    """Apply the rule of ajozefiak/CL-transformers unit by unit in plain Python."""

    def __init__(self, percentile: float, longest: int, first: int, retune: int, check: int) -> None:
        self.percentile, self.retune, self.check, self.longest = percentile, retune, check, longest
        self.age, self.threshold = [0] * 8, [float(first)] * 8
        self.arrivals: list[list[int]] = [[1] for _ in range(8)]
        self.updates = 0

    def step(self, fires: np.ndarray) -> list[int]:
        self.updates += 1
        gone = []
        for unit in range(8):
            before = self.age[unit]
            self.age[unit] = 0 if fires[unit] else before + 1
            dies = self.updates % self.check == 0 and self.age[unit] >= self.threshold[unit]
            if fires[unit] or dies:
                self.arrivals[unit].append(before + 1)
                self.age[unit] = 0
            if dies:
                gone.append(unit)
        if self.updates % self.retune == 0:
            for unit in range(8):
                typical = -math.log(1 - self.percentile) * np.mean(self.arrivals[unit])
                new = typical if typical < self.threshold[unit] else 2 * self.threshold[unit]
                self.threshold[unit] = min(max(math.ceil(new), 1), self.longest)
            self.arrivals = [[1] for _ in range(8)]
        return gone


@pytest.mark.parametrize("check", [1, 4])
def test_units_silent_for_unusually_long_are_reset(check):
    network = network_of(one_layer, lr=0.0)
    network._fresh = constant(one_layer, 3.0)
    method = SelfNormalizedResets(quantile=0.9, longest=30, first=16, retune=15, check=check)
    method.prepare(network)
    reference = Reference(0.9, 30, 16, 15, check)
    update(network, method, firing([True] * 8))  # the first batch finds the hidden units
    resets = 0
    for fires in schedule(80):
        before = state(network.module)
        update(network, method, firing(list(fires)))
        gone = reference.step(fires)
        rows = (network.module[1].weight != before["1.weight"]).any(1).nonzero().flatten().tolist()
        assert rows == gone
        for unit in gone:
            resets += 1
            assert not network.module[3].weight[:, unit].any()
            with torch.no_grad():
                network.module[1].weight.copy_(torch.eye(8))  # so that the firing patterns still apply
    assert resets >= 3
    assert [float(t) for t in method._units["1"]["threshold"]] == pytest.approx(reference.threshold, rel=1e-5)


def test_reset_unit_gets_fresh_incoming_and_zero_outgoing_weights_and_moments():
    network = network_of(one_layer, lr=1e-3)
    network._fresh = constant(one_layer, 3.0)
    method = SelfNormalizedResets(first=3)
    method.prepare(network)
    for _ in range(4):
        update(network, method, firing([True] * 7 + [False]))
    weights = network.module[1].weight.detach()
    assert (weights[7] == 3).all()
    assert not (weights[:7] == 3).any()
    assert not network.module[3].weight[:, 7].any()
    assert not network.optimizer.state[network.module[1].weight]["exp_avg"][7].any()
    assert network.optimizer.state[network.module[1].weight]["exp_avg"][0].any()


def test_filter_silenced_by_its_batchnorm_fires_again():
    def build() -> nn.Module:
        layers = nn.Conv2d(1, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, 10)
        return nn.Sequential(*layers)

    network, batch = network_of(build, lr=1e-3), images(8)
    norm = network.module[1]
    norm.bias.data[2] = -20.0
    method = SelfNormalizedResets(first=3)
    method.prepare(network)
    for _ in range(4):
        assert norm.bias[2] < -19
        update(network, method, batch)
    assert norm.bias[2] == 0 and norm.weight[2] == 1 and norm.running_var[2] == 1
    assert bool((norm.bias[[0, 1, 3, 4, 5]] != 0).all())
    assert bool((network.module[:3](batch["image"])[:, 2] > 0).any())


def test_gelu_network_prints_a_warning(capsys):
    network, batch = network_of(small_vit(), lr=1e-3), images(8)
    method = SelfNormalizedResets()
    method.prepare(network)
    for _ in range(3):
        update(network, method, batch)
    assert capsys.readouterr().err.count("not a ReLU") == 1
    network = network_of(MLP, lr=1e-3)
    method = SelfNormalizedResets()
    method.prepare(network)
    update(network, method, batch)
    update(network, method, batch)
    assert capsys.readouterr().err == ""


def test_resume_is_bit_identical():
    options = {"longest": 6, "first": 5, "retune": 7, "check": 2, "quantile": 0.5}
    network = network_of(MLP, lr=3e-2)
    with torch.no_grad():
        network.module[1].bias[:3] = -2.0
    method = SelfNormalizedResets(**options)
    method.prepare(network)
    for seed in range(13):
        update(network, method, images(seed=seed))
    twin, other = network_of(MLP, seed=3, lr=3e-2), SelfNormalizedResets(**options)
    other.prepare(twin)
    other.load_state_dict(copy.deepcopy(method.state_dict()))
    twin.module.load_state_dict(network.module.state_dict())
    twin.optimizer.load_state_dict(copy.deepcopy(network.optimizer.state_dict()))
    twin.generator.set_state(network.generator.get_state())
    before = network.generator.get_state()
    randomness = torch.get_rng_state()
    for seed in range(13, 40):
        update(network, method, images(seed=seed))
        update(twin, other, images(seed=seed))
    assert not changed(state(network.module), twin.module)
    assert not torch.equal(network.generator.get_state(), before)  # some units were reset
    assert torch.equal(torch.get_rng_state(), randomness)


def test_network_without_hidden_units_is_a_user_error():
    network = Network(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), None, loss)
    method = SelfNormalizedResets()
    method.prepare(network)
    with pytest.raises(UserError, match="no hidden units to monitor"):
        method.penalty(network, images())


def test_thresholds_follow_the_moments():
    method = SelfNormalizedResets(quantile=0.99, longest=1000)
    unit = {
        "silence": torch.zeros(4),
        "threshold": torch.tensor([1000.0, 5.0, 100.0, 900.0]),
        "sum": torch.tensor([20.0, 20.0, 1.0, 900.0]),
        "number": torch.tensor([10.0, 10.0, 1.0, 1.0]),
    }
    method._renew(unit)
    assert array(unit["threshold"]).tolist() == [math.ceil(2 * math.log(100)), 10, math.ceil(math.log(100)), 1000]
    assert unit["sum"].tolist() == unit["number"].tolist() == [1] * 4


@pytest.mark.parametrize("fires_before", [True, False])
def test_a_unit_that_dies_is_reset_within_a_few_updates_and_one_that_never_fires_after_the_first_threshold(
    fires_before,
):
    """With the source's percentile of 0.95, an always firing unit has the threshold ceil(-ln 0.05) = 3."""
    network = network_of(one_layer, lr=0.0)
    network._fresh = constant(one_layer, 3.0)
    method = SelfNormalizedResets(quantile=0.95, retune=20)
    method.prepare(network)
    dead = [True] * 6 + [False] + [True]
    update(network, method, firing([True] * 8))  # finds the hidden units
    for _ in range(20 if fires_before else 0):
        update(network, method, firing([True] * 8))
    count = 0
    while not (network.module[1].weight[6] == 3).all():
        update(network, method, firing(dead))
        count += 1
        assert count < 100
    assert count == (3 if fires_before else 16)
    assert (network.module[1].weight == 3).all(1).tolist() == [not fires for fires in dead]
