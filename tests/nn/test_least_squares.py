from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import plastibench.nn.least_squares as solvers
from plastibench.nn.least_squares import Fit, Solver, fit_for
from tests.support.networks import drawn
from tests.support.references import array, delta_ridge, patches, stacked, with_ones

GENERATOR = torch.Generator()
RIDGE = 1e-2


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=GENERATOR.manual_seed(seed))


def solve(module: nn.Module, inputs: Tensor, targets: Tensor, solver: Solver) -> Fit:
    fit = fit_for(module)
    fit.add(inputs, targets)
    return fit.solve(solver)


def solution(fit: Fit) -> np.ndarray:
    matrix = array(fit.weight).reshape(len(fit.weight), -1).T
    return matrix if fit.bias is None else np.vstack([matrix, array(fit.bias)])


def rows_of(module: nn.Linear, inputs: Tensor) -> np.ndarray:
    rows = array(inputs).reshape(-1, inputs.shape[-1])
    return rows if module.bias is None else with_ones(rows)


def linear(inputs: int, outputs: int, bias: bool = True) -> nn.Linear:
    return drawn(lambda: nn.Linear(inputs, outputs, bias=bias), 3)


# --- Linear -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(50, 7), (10, 5, 7)])
def test_pinv_of_full_rank_inputs_matches_numpy_lstsq(shape, bias):
    module, inputs = linear(7, 4, bias), noise(*shape)
    targets = noise(*shape[:-1], 4, seed=1)
    expected = np.linalg.lstsq(rows_of(module, inputs), array(targets).reshape(-1, 4), rcond=None)[0]
    fit = solve(module, inputs, targets, Solver("pinv"))
    np.testing.assert_allclose(solution(fit), expected, rtol=1e-9, atol=1e-11)
    assert fit.weight.shape == module.weight.shape
    assert (fit.bias is None) == (not bias)


@pytest.mark.parametrize("bias", [True, False])
def test_pinv_of_collinear_inputs_matches_numpy_pinv(bias):
    module = linear(8, 3, bias)
    inputs = noise(60, 5) @ noise(5, 8, seed=1)  # rank 5 of 8
    targets = noise(60, 3, seed=2)
    expected = np.linalg.pinv(rows_of(module, inputs), rcond=1e-5) @ array(targets)
    fit = solve(module, inputs, targets, Solver("pinv"))
    np.testing.assert_allclose(solution(fit), expected, rtol=1e-4, atol=1e-5)


def test_pinv_of_fewer_rows_than_columns_is_the_minimum_norm_solution():
    module, inputs, targets = linear(20, 3), noise(6, 20), noise(6, 3, seed=1)
    rows = rows_of(module, inputs)
    fit = solve(module, inputs, targets, Solver("pinv"))
    np.testing.assert_allclose(solution(fit), np.linalg.pinv(rows) @ array(targets), atol=1e-8)
    np.testing.assert_allclose(rows @ solution(fit), array(targets), atol=1e-8)


@pytest.mark.parametrize("ridge", [1e-4, 1e-2, 1.0])
@pytest.mark.parametrize("bias", [True, False])
def test_delta_ridge_penalizes_the_change_from_the_current_weights(ridge, bias):
    module, inputs, targets = linear(7, 4, bias), noise(40, 7), noise(40, 4, seed=1)
    expected = delta_ridge(rows_of(module, inputs), array(targets), stacked(module), ridge)
    fit = solve(module, inputs, targets, Solver("delta-ridge", ridge))
    np.testing.assert_allclose(solution(fit), expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("ridge", [1e-4, 1e-1])
def test_ridge_penalizes_the_weights(ridge):
    module, inputs, targets = linear(7, 4), noise(40, 7), noise(40, 4, seed=1)
    expected = delta_ridge(rows_of(module, inputs), array(targets), np.zeros((8, 4)), ridge)
    fit = solve(module, inputs, targets, Solver("ridge", ridge))
    np.testing.assert_allclose(solution(fit), expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("ridge", [0.0, 1e-2])
def test_delta_ridge_keeps_the_weights_of_directions_without_inputs(ridge):
    module, inputs, targets = linear(8, 3), noise(60, 8), noise(60, 3, seed=1)
    inputs[:, 5] = 0
    inputs[:, 6] = inputs[:, 7]  # direction (0, …, 1, -1) never occurs
    fit = solve(module, inputs, targets, Solver("delta-ridge", ridge))
    torch.testing.assert_close(fit.weight[:, 5], module.weight[:, 5].double(), rtol=0, atol=1e-9)
    torch.testing.assert_close(
        fit.weight[:, 6] - fit.weight[:, 7], (module.weight[:, 6] - module.weight[:, 7]).double(), rtol=0, atol=1e-7
    )
    assert (fit.weight[:, 0] - module.weight[:, 0]).abs().max() > 0.01  # other directions are fitted


def test_delta_ridge_returns_the_current_weights_if_they_already_fit():
    module, inputs = linear(7, 4), noise(40, 7)
    with torch.no_grad():
        targets = module(inputs)
    fit = solve(module, inputs, targets, Solver(ridge=RIDGE))
    np.testing.assert_allclose(solution(fit), stacked(module), atol=1e-6)


def test_chunks_add_up_to_the_full_batch():
    module, inputs, targets = linear(7, 4), noise(41, 3, 7), noise(41, 3, 4, seed=1)
    full = solve(module, inputs, targets, Solver(ridge=RIDGE))
    fit = fit_for(module)
    for part, wanted in zip(inputs.split(16), targets.split(16), strict=True):
        fit.add(part, wanted)
    parts = fit.solve(Solver(ridge=RIDGE))
    torch.testing.assert_close(parts.weight, full.weight, rtol=1e-10, atol=1e-12)
    assert parts.residual == pytest.approx(full.residual, rel=1e-9)


@pytest.mark.parametrize("kind", ["linear", "conv", "layernorm"])
def test_all_rows_count_if_they_exceed_one_chunk(kind, monkeypatch):
    module = {"linear": linear(5, 4), "conv": nn.Conv2d(2, 3, 3), "layernorm": nn.LayerNorm(4)}[kind]
    inputs = {"linear": noise(9, 7, 5), "conv": noise(9, 2, 6, 6), "layernorm": noise(9, 7, 4)}[kind]
    with torch.no_grad():
        targets = module(inputs) + 0.1 * noise(*module(inputs).shape, seed=1)
    full = solve(module, inputs, targets, Solver(ridge=RIDGE))
    monkeypatch.setattr(solvers, "_CHUNK", 10)
    chunked = solve(module, inputs, targets, Solver(ridge=RIDGE))
    torch.testing.assert_close(chunked.weight, full.weight, rtol=1e-9, atol=1e-11)
    assert chunked.residual == pytest.approx(full.residual, rel=1e-9)
    assert chunked.residual > 0.01


# --- collinear inputs: LayerNorm outputs and the bias column ----------------------------------------------------------


def layer_norm_rows(count: int = 400, width: int = 24) -> Tensor:
    """γ·x̂ + β in float32: Σ_j x_j/γ_j is the same for every row, as the bias column is."""
    gamma, beta = 1 + 0.3 * noise(width, seed=7), 0.2 * noise(width, seed=8)
    return F.layer_norm(noise(count, width), (width,), gamma, beta)


def test_layer_norm_outputs_with_a_bias_column_are_numerically_singular():
    values = np.linalg.svd(with_ones(array(layer_norm_rows())), compute_uv=False)
    assert values[-1] / values[0] < 1e-6  # otherwise the tests below prove nothing
    assert values[-2] / values[0] > 1e-3


@pytest.mark.parametrize("name", ["pinv", "delta-ridge", "ridge"])
@pytest.mark.parametrize("penalty", [0.0, 1e-12, 1e-2])
def test_layer_norm_outputs_give_small_finite_weights_and_a_small_residual(name, penalty):
    module, inputs = linear(24, 12), layer_norm_rows()
    with torch.no_grad():
        targets = module(inputs)
    fit = solve(module, inputs, targets, Solver(name, penalty))
    assert np.isfinite(solution(fit)).all()
    assert fit.norm_ratio < 1.5
    assert fit.residual < (1e-5 if name == "delta-ridge" or penalty < 1e-3 else 0.2)


def test_pinv_of_collinear_inputs_and_noisy_targets_matches_numpy():
    module, inputs, targets = linear(24, 12), layer_norm_rows(), noise(400, 12, seed=1)
    rows = with_ones(array(inputs))
    best = np.linalg.pinv(rows, rcond=1e-5) @ array(targets)
    fit = solve(module, inputs, targets, Solver("pinv"))
    np.testing.assert_allclose(solution(fit), best, atol=1e-5)
    assert np.abs(solution(fit)).max() < 1


@pytest.mark.parametrize("name", ["delta-ridge", "ridge"])
@pytest.mark.parametrize("penalty", [0.0, 1e-18, 1e-15, 1e-12, 1e-10, 1e-6])
def test_tiny_penalty_is_no_worse_than_none_on_collinear_inputs(name, penalty):
    """Float32 rounding gives the null direction a tiny eigenvalue; dividing by it would amplify noise."""
    module, inputs, targets = linear(24, 12), layer_norm_rows(), noise(400, 12, seed=1)
    fit = solve(module, inputs, targets, Solver(name, penalty))
    assert fit.norm_ratio < 2
    best = np.linalg.lstsq(with_ones(array(inputs)), array(targets), rcond=1e-5)[0]
    error = np.linalg.norm(with_ones(array(inputs)) @ best - array(targets)) / np.linalg.norm(array(targets))
    assert fit.residual == pytest.approx(error, rel=1e-3)


@pytest.mark.parametrize("name", ["pinv", "delta-ridge", "ridge"])
def test_duplicated_and_dead_columns_do_not_fail(name):
    module = linear(40, 5)
    column = noise(30, 1)
    inputs = torch.cat([column.expand(30, 20), torch.zeros(30, 20)], dim=1)  # rank 1 of 40: a dead, collapsed layer
    targets = noise(30, 5, seed=1)
    fit = solve(module, inputs, targets, Solver(name, 1e-12))
    assert np.isfinite(solution(fit)).all()
    assert fit.norm_ratio < 10
    best = with_ones(array(inputs)) @ (np.linalg.pinv(with_ones(array(inputs)), rcond=1e-5) @ array(targets))
    np.testing.assert_allclose(with_ones(array(inputs)) @ solution(fit), best, atol=1e-4)


@pytest.mark.parametrize("name", ["pinv", "delta-ridge", "ridge"])
@pytest.mark.parametrize("bias", [True, False])
def test_zero_inputs_give_finite_weights(name, bias):
    module = linear(6, 3, bias)
    fit = solve(module, torch.zeros(10, 6), noise(10, 3), Solver(name, RIDGE))
    assert np.isfinite(solution(fit)).all()
    if name == "delta-ridge":
        torch.testing.assert_close(fit.weight, module.weight.double())
    if bias:
        np.testing.assert_allclose(array(fit.bias), array(noise(10, 3)).mean(0), atol=0.3 if name == "ridge" else 0.2)


def test_eigensolver_failure_is_retried_with_the_same_result(monkeypatch):
    module, inputs, targets = linear(8, 3), noise(60, 5) @ noise(5, 8, seed=1), noise(60, 3, seed=2)
    full = solve(module, inputs, targets, Solver("pinv"))
    calls, eigh = [], torch.linalg.eigh

    def fail_once(matrix: Tensor) -> tuple[Tensor, Tensor]:
        calls.append(matrix)
        if len(calls) == 1:
            raise torch.linalg.LinAlgError("did not converge")
        return eigh(matrix)

    monkeypatch.setattr(torch.linalg, "eigh", fail_once)
    again = solve(module, inputs, targets, Solver("pinv"))
    assert len(calls) == 2
    torch.testing.assert_close(again.weight, full.weight, rtol=1e-6, atol=1e-8)


# --- residual, norm ratio, growth--------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["pinv", "delta-ridge", "ridge"])
@pytest.mark.parametrize("bias", [True, False])
def test_residual_and_norm_ratio_match_numpy(name, bias):
    module, inputs, targets = linear(7, 4, bias), noise(40, 7), noise(40, 4, seed=1)
    fit = solve(module, inputs, targets, Solver(name, 0.1))
    error = rows_of(module, inputs) @ solution(fit) - array(targets)
    assert fit.residual == pytest.approx(np.linalg.norm(error) / np.linalg.norm(array(targets)), rel=1e-8)
    assert fit.norm_ratio == pytest.approx(np.linalg.norm(array(fit.weight)) / np.linalg.norm(array(module.weight)))


def exploding(module: nn.Linear) -> tuple[Tensor, Tensor]:
    """Inputs with a weak direction that the targets depend on: least squares needs huge weights."""
    inputs = noise(100, 7)
    inputs[:, 0] *= 1e-2
    return inputs, 100 * inputs[:, :1] @ noise(1, 4, seed=1)


@pytest.mark.parametrize("name", ["pinv", "delta-ridge", "ridge"])
@pytest.mark.parametrize("limit", [1.5, 3.0])
def test_max_growth_bounds_the_weight_norm(name, limit):
    module = linear(7, 4)
    inputs, targets = exploding(module)
    free = solve(module, inputs, targets, Solver(name, 1e-8))
    bound = solve(module, inputs, targets, Solver(name, 1e-8, max_growth=limit))
    assert free.norm_ratio > 10
    assert np.linalg.norm(array(bound.weight)) <= limit * np.linalg.norm(array(module.weight))
    assert bound.residual > free.residual


def test_max_growth_does_not_change_a_solution_within_the_limit():
    module, inputs, targets = linear(7, 4), noise(40, 7), noise(40, 4, seed=1)
    free = solve(module, inputs, targets, Solver(ridge=RIDGE))
    bound = solve(module, inputs, targets, Solver(ridge=RIDGE, max_growth=1.01 * free.norm_ratio))
    torch.testing.assert_close(bound.weight, free.weight, rtol=0, atol=0)


def test_max_growth_below_one_terminates(monkeypatch):
    module = linear(6, 3, bias=False)
    calls, inverse = [], solvers._apply_inverse

    def counted(gram: Tensor, penalty: float, right: Tensor) -> Tensor:
        calls.append(penalty)
        if len(calls) > 200:
            raise RuntimeError("the penalty is raised without end")
        return inverse(gram, penalty, right)

    monkeypatch.setattr(solvers, "_apply_inverse", counted)
    solve(
        module, noise(10, 6), noise(10, 3, seed=1), Solver(ridge=RIDGE, max_growth=0.5)
    )  # delta-ridge ends at the old weights
    solve(module, torch.zeros(10, 6), noise(10, 3), Solver(ridge=RIDGE, max_growth=0.5))  # a dead layer before it


# --- Conv2d -----------------------------------------------------------------------------------------------------------

CONVOLUTIONS = {
    "plain": {"kernel_size": 3},
    "stride": {"kernel_size": 3, "stride": 2},
    "padding": {"kernel_size": 3, "padding": 1},
    "dilation": {"kernel_size": 2, "dilation": 2},
    "patches": {"kernel_size": 4, "stride": 4},
    "no-bias": {"kernel_size": 3, "bias": False},
    "one-by-one": {"kernel_size": 1, "stride": 2},
    "all": {"kernel_size": (3, 2), "stride": (2, 1), "padding": (1, 2), "dilation": (1, 2), "bias": False},
}


@pytest.mark.parametrize("options", CONVOLUTIONS.values(), ids=CONVOLUTIONS.keys())
@pytest.mark.parametrize("solver", ["pinv", "delta-ridge"])
def test_convolutions_are_fitted_on_their_receptive_fields(options, solver):
    module = drawn(lambda: nn.Conv2d(2, 5, **options), 1)
    inputs = noise(12, 2, 8, 8)
    with torch.no_grad():
        old = module(inputs)
    rows = patches(module, inputs)
    if module.bias is not None:
        rows = with_ones(rows)
    np.testing.assert_allclose(  # the rows cut out by hand are those of the convolution
        rows @ stacked(module), array(old).transpose(0, 2, 3, 1).reshape(-1, 5), atol=1e-5
    )
    targets = old + noise(*old.shape, seed=1)
    wanted = array(targets).transpose(0, 2, 3, 1).reshape(-1, 5)
    expected = (
        np.linalg.lstsq(rows, wanted, rcond=None)[0]
        if solver == "pinv"
        else delta_ridge(rows, wanted, stacked(module), RIDGE)
    )
    fit = solve(module, inputs, targets, Solver(solver, RIDGE))
    assert fit.weight.shape == module.weight.shape
    np.testing.assert_allclose(solution(fit), expected, rtol=1e-7, atol=1e-9)
    error = np.linalg.norm(rows @ expected - wanted) / np.linalg.norm(wanted)
    assert fit.residual == pytest.approx(error, rel=1e-7)


@pytest.mark.parametrize(
    "module",
    [
        nn.Conv2d(4, 4, 3, groups=2),
        nn.Conv2d(4, 4, 3, padding="same"),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"),
        nn.BatchNorm2d(4),
        nn.Embedding(3, 4),
    ],
)
def test_modules_without_closed_form_have_no_fit(module):
    assert fit_for(module) is None


# --- LayerNorm --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("eps", [1e-6, 0.5])
def test_layer_norm_fit_matches_polyfit_per_feature(eps):
    module = nn.LayerNorm(6, eps=eps)
    inputs = noise(30, 4, 6) * torch.arange(1, 7) + torch.arange(6)
    targets = noise(30, 4, 6, seed=1) + 0.5 * inputs
    raw = array(inputs).reshape(-1, 6)
    normed = (raw - raw.mean(1, keepdims=True)) / np.sqrt(raw.var(1, keepdims=True) + eps)
    wanted = array(targets).reshape(-1, 6)
    fit = solve(module, inputs, targets, Solver(ridge=RIDGE))
    for feature in range(6):
        slope, intercept = np.polyfit(normed[:, feature], wanted[:, feature], 1)
        assert float(fit.weight[feature]) == pytest.approx(slope, rel=1e-8, abs=1e-10)
        assert float(fit.bias[feature]) == pytest.approx(intercept, rel=1e-8, abs=1e-10)
    error = normed * array(fit.weight) + array(fit.bias) - wanted
    assert fit.residual == pytest.approx(np.linalg.norm(error) / np.linalg.norm(wanted), rel=1e-8)
    assert fit.norm_ratio == pytest.approx(np.linalg.norm(array(fit.weight)) / np.sqrt(6))


def test_layer_norm_without_bias_is_fitted_through_the_origin():
    module = nn.LayerNorm(6, bias=False)
    inputs = noise(100, 6) + torch.arange(6)
    targets = noise(100, 6, seed=1) + inputs
    raw = array(inputs)
    normed = (raw - raw.mean(1, keepdims=True)) / np.sqrt(raw.var(1, keepdims=True) + module.eps)
    best = (normed * array(targets)).sum(0) / (normed**2).sum(0)
    fit = solve(module, inputs, targets, Solver(ridge=RIDGE))
    assert fit.bias is None
    np.testing.assert_allclose(array(fit.weight), best, rtol=1e-7)
    error = np.linalg.norm(normed * best - array(targets)) / np.linalg.norm(array(targets))
    assert fit.residual == pytest.approx(error, rel=1e-7)


def test_constant_layer_norm_feature_keeps_its_scale_and_matches_the_mean():
    module = nn.LayerNorm(4)
    with torch.no_grad():
        module.weight.copy_(torch.tensor([2.0, 3.0, 4.0, 5.0]))
    sign = torch.tensor([1.0, -1.0]).repeat(10)[:, None]
    inputs = torch.cat([torch.zeros(20, 2), sign, -sign], dim=1)  # features 0 and 1 are always the mean
    targets = noise(20, 4)
    fit = solve(module, inputs, targets, Solver(ridge=RIDGE))
    torch.testing.assert_close(fit.weight[:2], torch.tensor([2.0, 3.0]).double())
    torch.testing.assert_close(fit.bias[:2], targets[:, :2].mean(0).double())
    assert torch.isfinite(fit.weight).all()
