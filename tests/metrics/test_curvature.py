from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tensordict import TensorDict
from torch import Tensor, nn

from plastibench.metrics import GROUPS
from plastibench.metrics.compute import compute_metrics
from plastibench.metrics.curvature import hessian_product, hutchinson, lanczos, sam_sharpness
from plastibench.nn.mean_gradient import mean_gradient
from plastibench.nn.network import Network
from tests.support.networks import add_noise, double, images, network_of, small_resnet, small_vit


def seed(number: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(number)


@pytest.fixture
def logistic() -> tuple[Network, TensorDict, Tensor]:
    """Softmax regression on 5 inputs with 3 classes, a batch of two pieces, and its Hessian. [15, 15]."""
    batch = images(100, (5,), classes=3).double()
    batch["label"] = batch["label"].long()
    network = network_of(double(lambda: nn.Linear(5, 3, bias=False)))

    def of(flat: Tensor) -> Tensor:
        return F.cross_entropy(batch["image"] @ flat.reshape(3, 5).T, batch["label"])

    return network, batch, torch.autograd.functional.hessian(of, network.module.weight.detach().flatten())


def test_the_product_is_that_with_the_hessian(logistic: tuple[Network, TensorDict, Tensor]) -> None:
    network, batch, hessian = logistic
    vector = torch.randn(3, 5, dtype=torch.float64, generator=seed())
    (found,) = hessian_product(network, batch, [vector])
    torch.testing.assert_close(found.flatten(), hessian @ vector.flatten())
    p = (batch["image"] @ network.module.weight.detach().T).softmax(1).numpy()  # E[(diag(p) - p pᵀ) ⊗ x xᵀ]
    x = batch["image"].numpy()
    inner = np.einsum("nk,kl->nkl", p, np.eye(3)) - np.einsum("nk,nl->nkl", p, p)
    expected = np.einsum("nkl,ni,nj->kilj", inner, x, x).reshape(15, 15) / len(x)
    np.testing.assert_allclose(hessian.numpy(), expected, atol=1e-12)


def test_eigenvalue_and_trace_are_those_of_the_hessian(logistic: tuple[Network, TensorDict, Tensor]) -> None:
    network, batch, hessian = logistic
    found = compute_metrics(network, batch, GROUPS["curvature"], seed()).overall
    assert found["hessian-top-eigenvalue"] == pytest.approx(float(torch.linalg.eigvalsh(hessian)[-1]), rel=1e-6)
    trace = float(hessian.trace())
    error = found["hessian-trace-error"] * abs(found["hessian-trace"])
    assert abs(found["hessian-trace"] - trace) < 4 * error < trace
    like = [network.module.weight]
    many, error = hutchinson(lambda v: hessian_product(network, batch, v), like, seed(1), signs=400)
    assert many == pytest.approx(trace, rel=4 * error) and error < 0.02


def test_lanczos_finds_the_largest_and_not_the_longest() -> None:
    values = torch.tensor([-9.0, 1.0, 2.0, 3.5, 4.0], dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64, generator=seed())).Q
    matrix = turn @ torch.diag(values) @ turn.T
    like = [torch.zeros(2, dtype=torch.float64), torch.zeros(3, 1, dtype=torch.float64)]

    def product(vector: list[Tensor]) -> list[Tensor]:
        out = matrix @ torch.cat([v.flatten() for v in vector])
        return [out[:2], out[2:, None]]

    assert lanczos(product, like, seed()) == pytest.approx(4.0, rel=1e-9)
    ranks_one = torch.outer(turn[0], turn[0])
    matrix.copy_(3 * ranks_one)  # the space is exhausted after two steps
    assert lanczos(product, like, seed()) == pytest.approx(3.0, rel=1e-6)
    matrix.zero_()
    assert lanczos(product, like, seed()) == 0.0


def test_a_large_spectrum_is_found_without_reorthogonalisation() -> None:
    values = torch.linspace(0, 1, 400)
    values[-1] = 3.0
    assert lanczos(lambda v: [values * v[0]], [values], seed()) == pytest.approx(3.0, rel=1e-4)


@pytest.mark.parametrize("builder", [small_vit(), small_resnet])
def test_the_product_is_the_change_of_the_gradient(builder: object) -> None:
    network, batch = network_of(double(builder)), images(6).double()
    batch["label"] = batch["label"].long()
    add_noise(network.module, 0.1)  # away from the kinks where residual branches begin at exactly 0
    names = [name for name, _ in network.module.named_parameters()]
    vector = {n: torch.randn(p.shape, dtype=p.dtype, generator=seed()) for n, p in network.module.named_parameters()}
    found = dict(zip(names, hessian_product(network, batch, list(vector.values())), strict=True))
    step, sides = 1e-9, []
    for sign in (1, -1):
        with torch.no_grad():
            for name, p in network.module.named_parameters():
                p.add_(vector[name], alpha=sign * step)
        sides.append(mean_gradient(network, batch))
        with torch.no_grad():
            for name, p in network.module.named_parameters():
                p.sub_(vector[name], alpha=sign * step)
    expected = torch.cat([((sides[0][n] - sides[1][n]) / (2 * step)).flatten() for n in names])
    product = torch.cat([found[n].flatten() for n in names])
    assert float((product - expected).norm() / expected.norm()) < 1e-4


def test_the_rise_one_step_up_the_gradient_of_a_quadratic() -> None:
    def squared(module: nn.Module, batch: TensorDict) -> Tensor:
        return module(batch["image"]).square().sum(1).mean() / 2

    batch = images(100, (3,)).double()
    network = Network(network_of(double(lambda: nn.Linear(3, 1, bias=False))).module, None, squared)
    weight, x = network.module.weight.detach()[0].numpy(), batch["image"].numpy()
    hessian = x.T @ x / len(x)
    gradient = hessian @ weight
    step = 0.05 * gradient / np.linalg.norm(gradient)
    expected = gradient @ step + step @ hessian @ step / 2
    assert sam_sharpness(network, batch) == pytest.approx(expected, rel=1e-9)
    found = compute_metrics(network, batch, GROUPS["curvature"], seed()).overall
    assert found["hessian-top-eigenvalue"] == pytest.approx(np.linalg.eigvalsh(hessian)[-1])
    rows = (x @ weight)[:64, None] * x[:64]
    squares = np.linalg.svd(rows, compute_uv=False) ** 2
    assert found["curvature-rank-proxy"] == 1 + (np.cumsum(squares) / squares.sum() < 0.99).sum()
