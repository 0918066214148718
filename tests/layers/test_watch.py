from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from plastibench.layers.watch import Watch, per_unit, whole_neurons
from plastibench.network import Network
from tests.helpers import agent_builder, array, drawn, images, loss, network_of, small_resnet, small_vit


def watched(network: Network) -> tuple[Watch, dict[str, tuple[torch.Tensor, torch.Tensor]]]:
    found: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    watch = Watch(network, lambda unit, rows, columns: found.update({unit.name: (rows, columns)}))
    return watch, found


def test_it_sees_what_the_readers_of_hidden_units_receive_in_training_passes_only():
    network, batch = network_of(agent_builder("mlp", width=8)), images()
    watch, found = watched(network)
    watch.begin(batch)
    assert [unit.name for unit in watch.hidden] == ["1", "3"]
    assert not found  # looking for the units is no training pass
    with torch.no_grad():
        loss(network.module, batch)
    network.module.eval()
    loss(network.module, batch)
    assert not found
    network.module.train()
    loss(network.module, batch)
    first, second = network.module[1], network.module[3]
    hidden = np.maximum(array(batch["image"]).reshape(16, -1) @ array(first.weight).T + array(first.bias), 0)
    np.testing.assert_allclose(array(found["1"][0]), hidden, atol=1e-6)
    np.testing.assert_allclose(
        array(found["3"][0]), np.maximum(hidden @ array(second.weight).T + array(second.bias), 0), atol=1e-6
    )
    assert not found["1"][0].requires_grad


def test_a_vit_shows_its_mlps_and_a_resnet_its_inner_filters():
    for builder, names in ((small_vit(), {"blocks.0.mlp.fc1", "blocks.1.mlp.fc1"}), (small_resnet, None)):
        network = network_of(builder)
        watch, found = watched(network)
        watch.begin(images())
        loss(network.module, images())
        assert set(found) == (names or {"conv1", *(f"layer{n}.{b}.conv1" for n in range(1, 5) for b in range(2))})
        for unit in watch.hidden:
            rows, columns = found[unit.name]
            assert rows.shape[1] == len(columns) == len(unit.module.weight)


def test_columns_of_flattened_filters_are_averaged_by_filter():
    module = drawn(lambda: nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 36, 10)))
    network = Network(module, None, loss)
    watch, found = watched(network)
    watch.begin(images())
    loss(module, images())
    rows, columns = found["0"]
    mean = per_unit(watch.hidden[0], columns, rows.mean(0))
    torch.testing.assert_close(mean, module[:2](images()["image"]).detach().mean((0, 2, 3)))


def test_a_hidden_layernorm_stands_for_the_rows_that_it_normalises():
    module = drawn(lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.LayerNorm(6), nn.ReLU(), nn.Linear(6, 10)))
    network = Network(module, None, loss)
    watch, _ = watched(network)
    watch.begin(images())
    assert [unit.name for unit in watch.hidden] == ["2"]
    mask = torch.arange(6) < 2
    assert {name: found.tolist() for name, found in whole_neurons(watch.units, {"2": mask}).items()} == {
        "1": mask.tolist(),
        "2": mask.tolist(),
    }


def test_what_is_watched_survives_its_state():
    batch, found = images(), {}
    network = network_of(agent_builder("mlp", width=8))
    watch, _ = watched(network)
    watch.begin(batch)
    again = network_of(agent_builder("mlp", width=8))
    restored, found = watched(again)
    restored.load_state_dict(watch.state_dict())
    assert [unit.name for unit in restored.hidden] == ["1", "3"]
    assert [unit.name for unit in restored.units] == ["1", "3", "5"]
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
    assert per_unit(Unit, columns, values).tolist() == pytest.approx(expected)
