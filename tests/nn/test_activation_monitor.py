from __future__ import annotations

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torch import nn

from plastibench.nn.activation_monitor import ActivationMonitor, mean_per_unit
from plastibench.nn.network import Network
from plastibench.nn.traced_layer import TracedLayer
from tests.support.networks import agent_builder, drawn, images, loss, network_of, small_resnet, small_vit
from tests.support.references import array

Found = dict[str, tuple[torch.Tensor, torch.Tensor]]


def monitored(network: Network) -> tuple[ActivationMonitor, Found]:
    """A monitor of means, and the rows and columns by layer that it measured last."""
    found: Found = {}

    def measure(layer: TracedLayer, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        found[layer.name] = rows, columns
        return rows.mean(0)

    return ActivationMonitor(network, measure), found


def hidden_by_hand(module: nn.Sequential, batch: TensorDict) -> tuple[np.ndarray, np.ndarray]:
    rows = array(batch["image"]).reshape(len(batch), -1)
    first = np.maximum(rows @ array(module[1].weight).T + array(module[1].bias), 0)
    return first, np.maximum(first @ array(module[3].weight).T + array(module[3].bias), 0)


def test_only_training_passes_are_measured():
    network, batch = network_of(agent_builder("mlp", width=8)), images()
    monitor, found = monitored(network)
    assert monitor.confirm(batch)
    assert [layer.name for layer in monitor.hidden] == ["1", "3"]
    assert not found  # tracing is not a training pass
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


def test_accumulated_passes_count_by_rows_and_unconfirmed_passes_do_not_count():
    network, parts = network_of(agent_builder("mlp", width=8)), [images(4, seed=1), images(12, seed=2)]
    monitor, _ = monitored(network)
    monitor.confirm(parts[0])
    assert monitor.pop_means() == {}
    for part in parts:
        loss(network.module, part)
        assert not monitor.confirm(part)
    loss(network.module, images(seed=3))  # as when an actor's loss runs through the critic
    full = monitor.pop_means()
    for name, hidden in zip(("1", "3"), hidden_by_hand(network.module, torch.cat(parts)), strict=True):
        np.testing.assert_allclose(array(full[name]), hidden.mean(0), atol=1e-6)
    loss(network.module, parts[0])
    monitor.confirm(parts[0])
    again = hidden_by_hand(network.module, parts[0])[0].mean(0)
    np.testing.assert_allclose(array(monitor.pop_means()["1"]), again, atol=1e-6)


def test_updates_without_pass_are_reported_once(capsys: pytest.CaptureFixture[str]):
    network, batch = network_of(agent_builder("mlp", width=8)), images()
    monitor, _ = monitored(network)
    network.module.eval()
    for _ in range(4):
        loss(network.module, batch)
        monitor.confirm(batch)
        assert monitor.pop_means() == {}
    assert capsys.readouterr().err.count("no training forward pass of the network was observed") == 1


def test_compiled_modules_are_monitored():
    network, batch = network_of(agent_builder("mlp", width=8)), images()
    compiled = torch.compile(network.module, backend="eager")
    compiled(batch["image"])
    monitor, _ = monitored(network)
    monitor.confirm(batch)
    for _ in range(2):
        compiled(batch["image"]).sum().backward()
        monitor.confirm(batch)
        expected = hidden_by_hand(network.module, batch)[1].mean(0)
        np.testing.assert_allclose(array(monitor.pop_means()["3"]), expected, atol=1e-6)


def test_hidden_layers_of_vit_and_resnet():
    for builder, names in ((small_vit(), {"blocks.0.mlp.fc1", "blocks.1.mlp.fc1"}), (small_resnet, None)):
        network = network_of(builder)
        monitor, found = monitored(network)
        monitor.confirm(images())
        loss(network.module, images())
        assert set(found) == (names or {"conv1", *(f"layer{n}.{b}.conv1" for n in range(1, 5) for b in range(2))})
        for layer in monitor.hidden:
            rows, columns = found[layer.name]
            assert rows.shape[1] == len(columns) == len(layer.module.weight)


def test_columns_of_flattened_filters_are_averaged_by_filter():
    module = drawn(lambda: nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 36, 10)))
    network, batch = Network(module, None, loss), images()
    monitor, _ = monitored(network)
    monitor.confirm(batch)
    loss(module, batch)
    monitor.confirm(batch)
    torch.testing.assert_close(monitor.pop_means()["0"], module[:2](batch["image"]).detach().mean((0, 2, 3)))


def test_state_dict_restores_the_monitored_layers():
    batch = images()
    network = network_of(agent_builder("mlp", width=8))
    monitor, _ = monitored(network)
    monitor.confirm(batch)
    again = network_of(agent_builder("mlp", width=8))
    restored, found = monitored(again)
    restored.load_state_dict(monitor.state_dict())
    assert [layer.name for layer in restored.hidden] == ["1", "3"]
    assert [layer.name for layer in restored.layers] == ["1", "3", "5"]
    assert [list(layer.outgoing) for layer in restored.layers] == [["3"], ["5"], []]
    loss(again.module, batch)
    assert set(found) == {"1", "3"}
    assert found["1"][0].shape == (16, 8)


@pytest.mark.parametrize("count", [1, 4])
def test_mean_per_unit(count):
    class Unit:
        module = nn.Linear(2, 3)

    columns = torch.arange(3).repeat(count)
    values = torch.arange(3.0 * count)
    expected = [np.mean(values.numpy()[columns.numpy() == unit]) for unit in range(3)]
    assert mean_per_unit(Unit, columns, values).tolist() == pytest.approx(expected)
