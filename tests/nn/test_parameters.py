from __future__ import annotations

import pytest
import torch
from torch import nn

from plastibench.config.errors import UserError
from plastibench.nn.network import Network
from plastibench.nn.parameters import initial_values, learning_rates, trainable_layers, trainable_parameters
from tests.support.networks import loss, network_of, small_resnet, small_vit


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.second = nn.Linear(4, 4), nn.RMSNorm(4), nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.first.bias.requires_grad_(False)


def test_tied_parameters_count_once_and_norms_can_be_excluded():
    module = Tied()
    assert list(trainable_parameters(module)) == ["first.weight", "norm.weight", "second.bias"]
    assert list(trainable_parameters(module, norms=False)) == ["first.weight", "second.bias"]
    assert trainable_parameters(module)["first.weight"] is module.second.weight


def test_trainable_layers_are_linear_and_conv2d():
    assert list(trainable_layers(network_of(small_vit(depth=1)), output=False)) == [
        "patch_embed.proj",
        *(f"blocks.0.{name}" for name in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")),
    ]
    resnet = network_of(small_resnet)
    assert set(trainable_layers(resnet, output=True)) - set(trainable_layers(resnet, output=False)) == {"fc"}
    assert "layer2.0.downsample.0" in trainable_layers(resnet, output=False)
    named = Network(small_vit(depth=1)(), None, loss, outputs=["blocks.0.mlp"])
    assert {"blocks.0.mlp.fc1", "blocks.0.mlp.fc2"} == set(trainable_layers(named, output=True)) - set(
        trainable_layers(named, output=False)
    )


def test_initial_values_are_copies_from_the_first_call_with_each_shape():
    store: dict[str, torch.Tensor] = {}
    tensor = torch.arange(3.0)
    assert initial_values(store, {"a": tensor})[0].data_ptr() != tensor.data_ptr()
    tensor.add_(1)
    assert initial_values(store, {"a": tensor, "b": tensor})[0].tolist() == [0, 1, 2]
    assert store["b"].tolist() == [1, 2, 3]
    assert initial_values(store, {"a": tensor[:2]})[0].tolist() == [1, 2]
    assert initial_values(store, {"c": tensor}, torch.neg)[0].tolist() == [-1, -2, -3]


def test_learning_rates_are_those_of_the_parameter_groups():
    module = Tied()
    optimizer = torch.optim.SGD(
        [{"params": [module.first.weight], "lr": 0.5}, {"params": [module.norm.weight]}], lr=0.1
    )
    network = Network(module, optimizer, loss)
    assert learning_rates(network, trainable_parameters(module).values()) == [0.5, 0.1, 0.0]
    with pytest.raises(UserError, match="no optimizer"):
        learning_rates(Network(module, None, loss), trainable_parameters(module).values())


def test_norms_of_other_libraries_are_recognized_by_name() -> None:
    class LlamaRMSNorm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4))

    class WeightNorm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4, 4))

    module = nn.Sequential(nn.Linear(4, 4), LlamaRMSNorm(), WeightNorm())
    assert list(trainable_parameters(module, norms=False)) == ["0.weight", "0.bias", "2.weight"]
