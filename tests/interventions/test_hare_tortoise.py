from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from tests.support.networks import (
    agent_builder,
    changed,
    images,
    method,
    network_of,
    small_resnet,
    small_vit,
    state,
    train,
)
from tests.support.references import array
from tests.support.rl import make_agent, transitions

MLP = agent_builder("mlp", width=8)
NETWORKS = {"vit": small_vit(), "mlp": MLP, "resnet": small_resnet}
each_network = pytest.mark.parametrize("builder", NETWORKS.values(), ids=NETWORKS.keys())


def floating(module: nn.Module) -> dict[str, np.ndarray]:
    return {key: array(value) for key, value in state(module).items() if value.is_floating_point()}


def update(network, batch, acting) -> None:
    """Make an update in train mode, which changes BatchNorm statistics."""
    network.optimizer.zero_grad()
    with torch.random.fork_rng(devices=[]):
        network.loss(network.module, batch).backward()
    network.optimizer.step()
    acting.after_update(network)


@pytest.mark.parametrize("name", ["ema", "hare-tortoise"])
@each_network
def test_average_covers_weights_and_statistics(builder, name):
    network, batch = network_of(builder, lr=1e-2), images(8)
    acting = method(name, momentum=0.7)
    acting.prepare(network)
    expected = floating(network.module)
    for _ in range(3):
        update(network, batch, acting)
        now = floating(network.module)
        expected = {key: 0.7 * value + 0.3 * now[key] for key, value in expected.items()}
    for key, value in floating(acting._slow.module_for(network)).items():
        np.testing.assert_allclose(value, expected[key], rtol=1e-5, atol=1e-6)
    assert builder is not small_resnet or any("running_mean" in key for key in expected)
    for value in state(acting._slow.module_for(network)).values():
        assert value.is_floating_point() or int(value) == 0  # num_batches_tracked is not averaged


@each_network
def test_sync_copies_the_tortoise_and_keeps_optimizer_state(builder):
    network, batch = network_of(builder, lr=1e-2), images(8)
    acting = method("hare-tortoise", momentum=0.7)
    acting.prepare(network)
    for _ in range(3):
        update(network, batch, acting)
    slow, fast = floating(acting._slow.module_for(network)), floating(network.module)
    counts = {key: value for key, value in state(network.module).items() if not value.is_floating_point()}
    optimizer = copy.deepcopy(network.optimizer.state_dict())
    report = acting.intervene(network, batch)
    assert report.parameters == sum(p.numel() for p in network.module.parameters())
    for key, value in floating(network.module).items():
        np.testing.assert_array_equal(value, slow[key])
    assert any((slow[key] != fast[key]).any() for key in slow)
    assert all(bool((state(network.module)[key] == value).all()) for key, value in counts.items())
    for index, moments in optimizer["state"].items():
        for key, value in moments.items():
            assert torch.equal(network.optimizer.state_dict()["state"][index][key], value)

    storage = {t.data_ptr() for t in (*network.module.parameters(), *network.module.buffers())}
    copies = acting._slow.module_for(network)
    assert not storage & {t.data_ptr() for t in (*copies.parameters(), *copies.buffers())}
    train(network, batch, 1)  # train the hare only
    for key, value in floating(copies).items():
        np.testing.assert_array_equal(value, slow[key])


def test_sync_every_disables_sync_at_interventions():
    network, batch = network_of(MLP, lr=1e-2), images(8)
    acting = method("hare-tortoise", momentum=0.7, sync_every=3)
    acting.prepare(network)
    same = []
    for _ in range(7):
        update(network, batch, acting)
        same.append(not changed(state(acting._slow.module_for(network)), network.module))
    assert same == [False, False, True] * 2 + [False]
    before = state(network.module)
    assert acting.intervene(network, batch).parameters == 0
    assert not changed(before, network.module)


@pytest.mark.parametrize(("name", "options", "slow"), [
    ("ema", {}, True), ("hare-tortoise", {}, False), ("hare-tortoise", {"evaluate": "tortoise"}, True)
])  # fmt: skip
def test_who_is_evaluated(name, options, slow):
    network, batch = network_of(MLP, lr=1e-2), images(8)
    acting = method(name, **options)
    acting.prepare(network)
    update(network, batch, acting)
    evaluated = acting.evaluated(network)
    assert (evaluated is not network.module) == slow
    assert (evaluated is acting._slow.module_for(network)) == slow


def test_ema_changes_neither_training_nor_interventions():
    network, batch = network_of(MLP, lr=1e-2), images(8)
    acting = method("ema")
    acting.prepare(network)
    update(network, batch, acting)
    before = state(network.module)
    assert acting.intervene(network, batch).parameters == 0
    assert not changed(before, network.module)


def test_critic_is_synced_and_untrained_target_is_kept():
    agent = make_agent()
    network, target, batch = (
        agent.networks["critic"],
        agent.targets["critic"],
        agent.add_targets(transitions("rl-cartpole")),
    )
    hare, of_target = method("hare-tortoise", momentum=0.7), method("hare-tortoise", momentum=0.7)
    hare.prepare(network)
    of_target.prepare(target)
    expected = floating(network.module)
    train(network, batch, 1, hare)
    expected = {key: 0.7 * value + 0.3 * floating(network.module)[key] for key, value in expected.items()}
    with torch.no_grad():
        for parameter in target.module.parameters():
            parameter.add_(1.0)
    before = state(target.module)
    assert hare.intervene(network, batch).parameters > 0
    assert of_target.intervene(target, batch).parameters == 0
    for key, value in floating(network.module).items():
        np.testing.assert_allclose(value, expected[key], rtol=1e-5, atol=1e-6)
    assert not changed(before, target.module)


def test_rebuilt_architecture_is_averaged_and_resumed(tmp_path):
    def widen(module: nn.Module) -> None:
        module[5] = nn.Linear(8, 10, bias=False)

    network, batch = network_of(MLP, lr=1e-2), images(8)
    acting = method("ema", momentum=0.7)
    acting.prepare(network)
    update(network, batch, acting)
    network.rebuild(widen)
    slow = acting.evaluated(network)
    assert set(state(slow)) == set(state(network.module))
    assert "5.weight" not in changed(state(slow), network.module)  # the new layer was initialized once for both
    update(network, batch, acting)
    torch.save(acting.state_dict(), tmp_path / "state.pt")

    resumed = network_of(MLP, lr=1e-2)
    again = method("ema", momentum=0.7)
    again.prepare(resumed)
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    resumed.rebuild(widen)  # as another intervention does when its state is loaded
    assert not changed(state(acting.evaluated(network)), again.evaluated(resumed))
