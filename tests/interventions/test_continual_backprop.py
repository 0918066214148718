from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from plastibench.config.errors import UserError
from plastibench.interventions.attach import attach
from plastibench.interventions.continual_backprop import ContinualBackprop
from plastibench.nn.network import Network
from plastibench.training.runner import run
from tests.support.networks import (
    agent_builder,
    changed,
    constant,
    images,
    loss,
    network_of,
    small_resnet,
    small_vit,
    state,
    update,
)
from tests.support.references import array
from tests.support.rl import rl_agent_and_batch

MLP = agent_builder("mlp", width=8)


def batches(count: int) -> list:
    return [images(16, seed=seed) for seed in range(count)]


class Reference:
    """Compute utilities in float64 from the formulas, for each layer of an MLP with two hidden layers."""

    def __init__(self, adaptable: bool, decay: float) -> None:
        self.adaptable, self.decay = adaptable, decay
        self.age = np.zeros((2, 8))
        self.mean = np.zeros((2, 8))
        self.utility = np.zeros((2, 8))

    def before(self, module: nn.Sequential, batch) -> None:
        first = np.maximum(array(batch["image"]).reshape(16, -1) @ array(module[1].weight).T + array(module[1].bias), 0)
        second = np.maximum(first @ array(module[3].weight).T + array(module[3].bias), 0)
        self.hidden = first, second

    def after(self, module: nn.Sequential) -> None:
        self.centre = self.mean / np.maximum(1 - self.decay**self.age, 1e-12)
        self.age += 1
        for layer, (own, reader) in enumerate(((module[1], module[3]), (module[3], module[5]))):
            hidden = self.hidden[layer]
            self.mean[layer] = self.decay * self.mean[layer] + (1 - self.decay) * hidden.mean(0)
            size = np.abs(hidden - self.centre[layer] if self.adaptable else hidden).mean(0)
            worth = size * np.abs(array(reader.weight)).mean(0)
            if self.adaptable:
                worth /= np.abs(array(own.weight)).mean(1)
            self.utility[layer] = self.decay * self.utility[layer] + (1 - self.decay) * worth


@pytest.mark.parametrize("utility", ["contribution", "adaptable"])
def test_least_useful_unit_is_replaced_and_its_mean_is_added_to_the_bias(utility):
    network = network_of(MLP, lr=1e-2)
    network._fresh = constant(MLP, 3.0)
    method = ContinualBackprop(rate=0.03, maturity=3, utility=utility, decay=0.9)
    method.prepare(network)
    reference = Reference(utility == "adaptable", 0.9)
    module = network.module
    for number, batch in enumerate(batches(9)):
        reference.before(module, batch)
        twin = copy.deepcopy(network)
        update(network, method, batch)
        if number:  # the first pass finds the hidden units
            plain = twin.module.eval()  # the same update without the method
            twin.optimizer.zero_grad()
            loss(plain, batch).backward()
            twin.optimizer.step()
            reference.after(plain)
            if number < 8:
                assert not changed(state(plain), module), number
    # 8 counted updates; units mature from the 4th on: 5 * 8 * 0.03 = 1.2 units are due, the first at the 8th
    gone = [int(np.argmin(utilities)) for utilities in reference.utility]
    for layer, (own, reader) in enumerate(((1, 3), (3, 5))):
        worst, lost = gone[layer], reference.mean[layer][gone[layer]] / (1 - 0.9**8)
        assert (array(module[own].weight)[worst] == 3).all()
        assert float(module[own].bias.detach()[worst]) == 3
        expected_bias = array(plain[reader].bias) + array(plain[reader].weight)[:, worst] * lost
        expected = array(plain[reader].weight)
        expected[:, worst] = 0
        rows = [row for row in range(len(expected)) if layer == 1 or row != gone[1]]  # rows of the kept units
        np.testing.assert_array_equal(array(module[reader].weight)[rows], expected[rows])
        np.testing.assert_allclose(array(module[reader].bias)[rows], expected_bias[rows], rtol=1e-5, atol=1e-6)
        moments = network.optimizer.state[module[own].weight]["exp_avg"][worst]
        assert not moments.any()


@pytest.mark.parametrize("compensate", [True, False])
def test_compensation_preserves_the_mean_output(compensate):
    network, batch = network_of(MLP, lr=0.0), images(64)
    with torch.no_grad():  # almost constant units, so that only their mean matters
        network.module[3].weight.mul_(1e-3)
        network.module[3].bias.copy_(torch.linspace(0.5, 2, 8))
    method = ContinualBackprop(rate=0.05, maturity=1, decay=0.0, compensate=compensate)
    method.prepare(network)
    old = network.module(batch["image"]).detach()
    for _ in range(6):
        update(network, method, batch)
    assert bool((network.module[5].weight == 0).all(0).any())
    error = (network.module(batch["image"]) - old).abs().max().item()
    assert error < 0.02 if compensate else error > 0.1


@pytest.mark.parametrize(("builder", "layer"), [(small_vit(), "blocks.0.mlp.fc1"), (small_resnet, "layer1.0.conv1")])
def test_selects_hidden_mlp_units_in_vits_and_inner_filters_in_resnets(builder, layer):
    network, batch = network_of(builder, lr=1e-3), images(8)
    network._fresh = constant(builder, 3.0)
    method = ContinualBackprop(rate=0.2, maturity=1)
    method.prepare(network)
    for _ in range(5):
        update(network, method, batch)
    drawn = {name for name, p in network.module.named_parameters() if bool((p > 2.5).any())}
    own = ("fc1.weight", "fc1.bias", "conv1.weight", "bn1.weight", "bn1.bias")
    assert f"{layer}.weight" in drawn
    assert not [name for name in drawn if not name.endswith(own)]


@pytest.mark.parametrize("resumed", [False, True])
def test_replaced_filter_gets_fresh_batchnorm_entries(resumed):
    network, batch = network_of(small_resnet, lr=1e-3), images(8)
    network._fresh = constant(small_resnet, 3.0)
    method = ContinualBackprop(rate=0.2, maturity=1)
    method.prepare(network)
    for _ in range(4):
        update(network, method, batch)
    if resumed:
        state, method = method.state_dict(), ContinualBackprop(rate=0.2, maturity=1)
        method.prepare(network)
        method.load_state_dict(state)
    block = network.module.layer1[0]
    conv, norm, other = block.conv1, block.bn1, block.bn2
    for values, number in ((conv.weight.data, 0.0), (norm.weight.data, 1.0), (norm.bias.data, 0.0)):
        values.fill_(number)
    for values in (norm.running_mean, norm.running_var, other.running_var):
        values.fill_(2.0)
    update(network, method, batch)
    new = (conv.weight > 2.5).flatten(1).all(1)
    assert bool(new.any()) and not bool(new.all())
    assert torch.equal(norm.weight > 2.5, new) and torch.equal(norm.bias > 2.5, new)
    assert torch.equal(norm.running_var == 1, new) and torch.equal(norm.running_mean == 0, new)
    assert not network.optimizer.state[norm.bias]["exp_avg"][new].any()
    assert bool((other.weight < 2.5).all()) and bool((other.running_var != 1).all())


def test_layernorm_entry_before_the_activation_is_reinitialized_with_its_row():
    def build() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.LayerNorm(6), nn.ReLU(), nn.Linear(6, 10))

    network = network_of(build, lr=1e-2)
    network._fresh = constant(build, 3.0)
    method = ContinualBackprop(rate=0.1, maturity=1)
    method.prepare(network)
    for _ in range(5):
        update(network, method, images())
    rows = (network.module[1].weight > 2.5).all(1)
    assert bool(rows.any())
    assert torch.equal(rows, network.module[2].weight > 2.5)
    assert network.module[4].weight[:, rows].abs().max().item() < 0.05


def test_utility_uses_readers_behind_a_layernorm():
    def build() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.ReLU(), nn.LayerNorm(6), nn.Linear(6, 10))

    network = network_of(build, lr=1e-3)
    network._fresh = constant(build, 3.0)
    with torch.no_grad():
        network.module[4].weight[:, 2] *= 1e-3
    method = ContinualBackprop(rate=0.05, maturity=1)
    method.prepare(network)
    norm = state(network.module[3])
    for _ in range(6):
        update(network, method, images())
    assert (network.module[1].weight > 2.5).all(1).nonzero().flatten().tolist() == [2]
    assert not network.module[4].weight[:, 2].any()
    assert all((network.module[3].state_dict()[name] - value).abs().max() < 0.01 for name, value in norm.items())


def test_micro_batches_count_like_one_batch():
    whole, parts = network_of(MLP, lr=1e-2), network_of(MLP, lr=1e-2)
    methods = [ContinualBackprop(rate=0.05, maturity=1, utility=utility) for utility in ("adaptable", "adaptable")]
    for network, method in zip((whole, parts), methods, strict=True):
        method.prepare(network)
        update(network, method, images(16))
    for seed in range(1, 5):
        batch = images(16, seed=seed)
        update(whole, methods[0], batch)
        parts.optimizer.zero_grad()
        for rows in (slice(0, 4), slice(4, 16)):
            (loss(parts.module, batch[rows]) * len(batch[rows]) / 16).backward()
            methods[1].penalty(parts, batch[rows])
        parts.optimizer.step()
        methods[1].after_update(parts)
    for name in ("1", "3"):
        for key, value in methods[0]._units[name].items():
            torch.testing.assert_close(methods[1]._units[name][key], value, rtol=1e-4, atol=1e-6)


def test_critic_is_scored_on_its_own_batch_not_on_the_pass_of_the_actor():
    learner, batch = rl_agent_and_batch("sac-mlp", hidden=(8,), critics=1)
    critic, method = learner.networks["critic"], ContinualBackprop(decay=0.0)
    attach(method, critic)
    learner.update(batch.clone())
    name = method._watch.hidden[0].name
    inputs = torch.cat([batch["observation"], learner._scaled(batch["action"])], 1)
    expected = critic.module.get_submodule(name)(inputs).relu().mean(0)
    learner.update(batch.clone())
    torch.testing.assert_close(method._units[name]["mean"], expected.detach())


def test_each_fresh_row_is_used_once_and_random_state_is_kept():
    network, batch = network_of(MLP, lr=1e-2), images()
    drawn: list[nn.Module] = []
    fresh = network.fresh
    network.fresh = lambda: drawn.append(fresh()) or drawn[-1]
    method = ContinualBackprop(rate=0.1, maturity=4)
    method.prepare(network)
    randomness = torch.get_rng_state()
    taken = []
    for _ in range(40):
        before = network.module[1].weight.detach().clone()
        update(network, method, batch)
        for source in drawn:
            rows = (network.module[1].weight == source[1].weight).all(1) & (before != source[1].weight).all(1)
            taken += [(id(source), int(row)) for row in rows.nonzero()]
    assert len(drawn) > 2
    assert len(taken) > 10
    assert len(set(taken)) == len(taken)
    assert torch.equal(torch.get_rng_state(), randomness)


def test_resume_is_bit_identical():
    network = network_of(MLP, lr=1e-2)
    method = ContinualBackprop(rate=0.05, maturity=4, utility="adaptable")
    method.prepare(network)
    stream = batches(30)
    for batch in stream[:15]:
        update(network, method, batch)
    twin = network_of(MLP, seed=3, lr=1e-2)
    other = ContinualBackprop(rate=0.05, maturity=4, utility="adaptable")
    other.prepare(twin)
    other.load_state_dict(copy.deepcopy(method.state_dict()))
    twin.module.load_state_dict(network.module.state_dict())
    twin.optimizer.load_state_dict(copy.deepcopy(network.optimizer.state_dict()))
    twin.generator.set_state(network.generator.get_state())
    for batch in stream[15:]:
        update(network, method, batch)
        update(twin, other, batch)
    assert not changed(state(network.module), twin.module)
    assert int((method._units["1"]["age"] < 15).sum()) > 0  # some units were replaced


def test_network_without_hidden_units_is_a_user_error():
    network = Network(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), None, loss)
    method = ContinualBackprop()
    method.prepare(network)
    with pytest.raises(UserError, match="no hidden units to monitor"):
        method.penalty(network, images())


@pytest.mark.parametrize("name", ["continual-backprop", "self-normalized-resets"])
def test_units_are_monitored_in_half_precision(name, tiny, tmp_path):
    spec = tiny(name, env="relabel-digits", agent="mlp", agent_options={"precision": "bfloat16"})
    assert run(spec, runs_dir=tmp_path, quiet=True).final >= 0
