"""The effect of the intervention on a small network."""

import torch
from plastibench_shrink import Shrink

from plastibench import Network


def test_matrices_shrink_and_biases_stay():
    module = torch.nn.Linear(3, 2)
    weight, bias = module.weight.detach().clone(), module.bias.detach().clone()
    report = Shrink(factor=0.25).intervene(Network(module, None, loss=None), batch=None)
    assert torch.equal(module.weight, 0.25 * weight) and torch.equal(module.bias, bias)
    assert report.parameters == 6
