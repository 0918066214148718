from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.support.networks import add_noise, agent_builder, double, images, method, network_of, small_resnet, small_vit
from tests.support.references import array
from tests.support.rl import make_agent

MLP = agent_builder("mlp", width=8)
NETWORKS = {"vit": (small_vit(), "head"), "mlp": (MLP, "5"), "resnet": (small_resnet, "fc")}
each_network = pytest.mark.parametrize(("builder", "output"), NETWORKS.values(), ids=NETWORKS.keys())


def spectra(module: torch.nn.Module, output: str) -> dict[str, np.ndarray]:
    """Compute the singular values of every hidden matrix; a filter is a row."""
    return {
        key: np.linalg.svd(array(p).reshape(len(p), -1), compute_uv=False)
        for key, p in module.named_parameters()
        if p.ndim > 1 and key.endswith(".weight") and not key.startswith(f"{output}.")
    }


@pytest.mark.parametrize("scale", [None, 2.0])
@each_network
def test_term_is_the_squared_distance_of_squared_singular_values_from_s(builder, output, scale):
    network = network_of(double(builder))
    start = {key: (values**2).mean() for key, values in spectra(network.module, output).items()}
    acting = method("parseval", strength=0.01, scale=scale)
    acting.prepare(network)
    add_noise(network.module)
    now = spectra(network.module, output)
    aims = {key: start[key] if scale is None else scale for key in now}
    expected = 0.01 * sum(((values**2 - aims[key]) ** 2).sum() for key, values in now.items())
    term = acting.penalty(network, images(2))
    assert term.item() == pytest.approx(expected, rel=1e-9)
    term.backward()
    assert {key for key, p in network.module.named_parameters() if p.grad is not None} == set(now)
    for key in now:  # the gradient 4 (W Wᵀ − s I) W
        parameter = network.module.get_parameter(key)
        matrix = array(parameter).reshape(len(parameter), -1)
        matrix = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
        expected_gradient = 0.04 * (matrix @ matrix.T - aims[key] * np.eye(len(matrix))) @ matrix
        found = array(parameter.grad).reshape(len(parameter), -1)
        found = found if found.shape[0] <= found.shape[1] else found.T
        np.testing.assert_allclose(found, expected_gradient, rtol=1e-8, atol=1e-10)


def test_minimizing_the_term_makes_every_hidden_layer_orthogonal():
    network = network_of(double(MLP))
    acting = method("parseval", strength=1.0)
    acting.prepare(network)
    aims = {key: (values**2).mean() for key, values in spectra(network.module, "5").items()}
    optimizer = torch.optim.SGD(network.module.parameters(), lr=0.2)
    for _ in range(400):
        optimizer.zero_grad()
        acting.penalty(network, images(2)).backward()
        optimizer.step()
    for key, values in spectra(network.module, "5").items():
        np.testing.assert_allclose(values**2, aims[key], rtol=1e-3)


def test_output_layers_named_by_the_network_are_excluded():
    critic = make_agent(dueling=True).networks["critic"]
    acting = method("parseval")
    acting.prepare(critic)
    assert list(acting.state_dict()["initial"]) == ["body.0", "body.2"]


def test_half_precision_does_not_hide_the_distance_from_orthogonality():
    def gradient(half: bool) -> torch.Tensor:
        network = network_of(lambda: torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 2)))
        with torch.no_grad():
            torch.nn.init.orthogonal_(network.module[0].weight, generator=torch.Generator().manual_seed(0))
            network.module[0].weight += 1e-3 * torch.randn(64, 64, generator=torch.Generator().manual_seed(1))
        parseval = method("parseval", scale=1.0)
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            parseval.penalty(network, None).backward()
        return network.module[0].weight.grad

    torch.testing.assert_close(gradient(True), gradient(False))
