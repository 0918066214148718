from __future__ import annotations

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torch import nn

from plastibench.nn.activation_monitor import ActivationMonitor, mean_per_unit
from plastibench.nn.network import Network
from plastibench.nn.traced_layer import TracedLayer
from tests.helpers import agent_builder, array, drawn, images, loss, network_of, small_resnet, small_vit

Found = dict[str, tuple[torch.Tensor, torch.Tensor]]


def watched(network: Network) -> tuple[ActivationMonitor, Found]:
    """A watch that measures means, and what it measured last: rows and columns by module."""
    found: Found = {}

    def measure(unit: TracedLayer, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        found[unit.name] = rows, columns
        return rows.mean(0)

    return ActivationMonitor(network, measure), found


def hidden_by_hand(module: nn.Sequential, batch: TensorDict) -> tuple[np.ndarray, np.ndarray]:
    rows = array(batch["image"]).reshape(len(batch), -1)
    first = np.maximum(rows @ array(module[1].weight).T + array(module[1].bias), 0)
    return first, np.maximum(first @ array(module[3].weight).T + array(module[3].bias), 0)


def test_it_sees_what_the_readers_of_hidden_units_receive_in_training_passes_only():
    network, batch = network_of(agent_builder("mlp", width=8)), images()
    watch, found = watched(network)
    assert watch.confirm(batch)
    assert [unit.name for unit in watch.hidden] == ["1", "3"]
    assert not found  # looking for the units is no training pass
    with torch.no_grad():
        loss(network.module, batch)
    network.module.eval()
    loss(network.module, batch)
    assert not found
    network.module.train()
    loss(network.module, batch)
    for name, hidden in zip(("1", "3"), hidden_by_hand(network.module, batch), strict=True):
        np.testing.assert_allclose(array(found[name][0]), hidden, atol=1e-6)
    assert not found["1"][0].requires_grad


def test_passes_before_the_same_update_count_by_their_rows_and_those_after_the_penalty_not_at_all():
    network, parts = network_of(agent_builder("mlp", width=8)), [images(4, seed=1), images(12, seed=2)]
    watch, _ = watched(network)
    watch.confirm(parts[0])
    assert watch.pop_means() == {}
    for part in parts:
        loss(network.module, part)
        assert not watch.confirm(part)
    loss(network.module, images(seed=3))  # as an actor's loss runs through the critic
    whole = watch.pop_means()
    for name, hidden in zip(("1", "3"), hidden_by_hand(network.module, torch.cat(parts)), strict=True):
        np.testing.assert_allclose(array(whole[name]), hidden.mean(0), atol=1e-6)
    loss(network.module, parts[0])
    watch.confirm(parts[0])
    again = hidden_by_hand(network.module, parts[0])[0].mean(0)
    np.testing.assert_allclose(array(watch.pop_means()["1"]), again, atol=1e-6)


def test_blind_updates_are_told_once(capsys: pytest.CaptureFixture[str]):
    network, batch = network_of(agent_builder("mlp", width=8)), images()
    watch, _ = watched(network)
    network.module.eval()
    for _ in range(4):
        loss(network.module, batch)
        watch.confirm(batch)
        assert watch.pop_means() == {}
    assert capsys.readouterr().err.count("no pass of the network can be watched") == 1


def test_a_module_that_was_compiled_before_is_seen():
    network, batch = network_of(agent_builder("mlp", width=8)), images()
    compiled = torch.compile(network.module, backend="eager")
    compiled(batch["image"])
    watch, _ = watched(network)
    watch.confirm(batch)
    for _ in range(2):
        compiled(batch["image"]).sum().backward()
        watch.confirm(batch)
        expected = hidden_by_hand(network.module, batch)[1].mean(0)
        np.testing.assert_allclose(array(watch.pop_means()["3"]), expected, atol=1e-6)


def test_a_vit_shows_its_mlps_and_a_resnet_its_inner_filters():
    for builder, names in ((small_vit(), {"blocks.0.mlp.fc1", "blocks.1.mlp.fc1"}), (small_resnet, None)):
        network = network_of(builder)
        watch, found = watched(network)
        watch.confirm(images())
        loss(network.module, images())
        assert set(found) == (names or {"conv1", *(f"layer{n}.{b}.conv1" for n in range(1, 5) for b in range(2))})
        for unit in watch.hidden:
            rows, columns = found[unit.name]
            assert rows.shape[1] == len(columns) == len(unit.module.weight)


def test_columns_of_flattened_filters_are_averaged_by_filter():
    module = drawn(lambda: nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 36, 10)))
    network, batch = Network(module, None, loss), images()
    watch, _ = watched(network)
    watch.confirm(batch)
    loss(module, batch)
    watch.confirm(batch)
    torch.testing.assert_close(watch.pop_means()["0"], module[:2](batch["image"]).detach().mean((0, 2, 3)))


def test_what_is_watched_survives_its_state():
    batch = images()
    network = network_of(agent_builder("mlp", width=8))
    watch, _ = watched(network)
    watch.confirm(batch)
    again = network_of(agent_builder("mlp", width=8))
    restored, found = watched(again)
    restored.load_state_dict(watch.state_dict())
    assert [unit.name for unit in restored.hidden] == ["1", "3"]
    assert [unit.name for unit in restored.layers] == ["1", "3", "5"]
    assert [list(unit.outgoing) for unit in restored.layers] == [["3"], ["5"], []]
    loss(again.module, batch)
    assert set(found) == {"1", "3"}
    assert found["1"][0].shape == (16, 8)


@pytest.mark.parametrize("count", [1, 4])
def test_means_by_unit(count):
    class Unit:
        module = nn.Linear(2, 3)

    columns = torch.arange(3).repeat(count)
    values = torch.arange(3.0 * count)
    expected = [np.mean(values.numpy()[columns.numpy() == unit]) for unit in range(3)]
    assert mean_per_unit(Unit, columns, values).tolist() == pytest.approx(expected)
