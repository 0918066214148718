from __future__ import annotations

from torch import nn

from plastibench.nn.units import has_units, modules_with_units, output_layers, tied_parameters


def test_modules_with_units_are_linear_conv2d_and_affine_layer_norm():
    yes = [nn.Linear(2, 3), nn.Conv2d(1, 2, 3), nn.LayerNorm(4), nn.LayerNorm(4, bias=False)]
    no = [
        nn.LayerNorm((2, 4)),
        nn.LayerNorm(4, elementwise_affine=False),
        nn.BatchNorm2d(3),
        nn.GroupNorm(1, 3),
        nn.Embedding(3, 4),
        nn.Sequential(nn.Linear(2, 3)),
    ]
    assert all(map(has_units, yes))
    assert not any(map(has_units, no))


def test_output_layer_is_the_last_module_with_units_by_default():
    module = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2), nn.BatchNorm1d(2))
    assert output_layers(module, ()) == ("2",)
    assert output_layers(module, ["0"]) == ("0",)
    assert list(modules_with_units(module).values()) == ["0", "2"]


def test_tied_parameters_have_several_owners():
    module = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 5))
    assert tied_parameters(module) == set()
    module[1].weight = module[0].weight
    assert tied_parameters(module) == {module[0].weight}
