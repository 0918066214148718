from __future__ import annotations

import copy
import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plastibench.nn.dataflow import trace
from plastibench.nn.least_squares import Solver
from plastibench.nn.network import Network
from plastibench.nn.refit import frozen_copy, refit_in_one_pass, refit_pair, snapshot
from plastibench.nn.traced_layer import TracedLayer
from tests.support.networks import (
    add_noise,
    agent_builder,
    double,
    drawn,
    images,
    logits,
    network_of,
    small_vit,
    state,
    train,
)
from tests.support.references import copy_units, refitted, seen, write

RIDGE = 1e-2


class Convolutions(nn.Module):
    """Stride, padding, BatchNorm, no bias, a grouped convolution without closed form, in-place ReLUs, flattening."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.act = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(4, 6, 3, stride=2)
        self.grouped = nn.Conv2d(6, 6, 1, groups=2)
        self.conv3 = nn.Conv2d(6, 4, 2, dilation=2)
        self.head = nn.Linear(4, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.norm(self.conv1(x)))
        x = self.grouped(self.act(self.conv2(x)))
        return self.head(F.relu(self.conv3(x)).flatten(1))


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(64, 8)
        self.shared = nn.Linear(8, 8)
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.shared(F.relu(self.shared(F.relu(self.first(x.flatten(1))))))))


NETWORKS = {
    "vit": small_vit(),
    "hnt": small_vit(variant="hnt"),
    "mlp": agent_builder("mlp", width=12, hidden=3),
    "conv": Convolutions,
    "shared": Shared,
}
each_network = pytest.mark.parametrize("builder", NETWORKS.values(), ids=NETWORKS.keys())


def doubled_batch(count: int = 40):
    batch = images(count)
    batch["image"] = batch["image"].double()
    return batch


def make_case(builder, lr: float | None = None) -> tuple[Network, nn.Module, dict[str, Tensor]]:
    """A noisy float64 network, another initialization, and masks of a third of the units except in the last layer."""
    network = network_of(double(builder), lr=lr)
    add_noise(network.module, 0.2)
    source = drawn(double(builder), 77)
    units = trace(network, doubled_batch(4))
    masks = {unit.name: torch.arange(len(unit.module.weight)) % 3 == 1 for unit in units[:-1]}
    return network, source, masks


def by_hand(module: nn.Module, source: nn.Module, names: list[str], masks: dict[str, Tensor], batch) -> nn.Module:
    """Algorithm 1 on a copy: reinitialize units of a layer, refit the next one to the outputs of the old network."""
    teacher, student = copy.deepcopy(module), copy.deepcopy(module)
    for name, reader in itertools.pairwise(names):
        copy_units(student.get_submodule(name), source.get_submodule(name), masks[name])
        target = student.get_submodule(reader)
        if not (isinstance(target, nn.Conv2d) and target.groups > 1):
            inputs, targets = seen(student, reader, batch)[0], seen(teacher, reader, batch)[1]
            write(target, refitted(target, inputs, targets, RIDGE))
    return student


def assert_same(module: nn.Module, expected: nn.Module) -> None:
    for (name, found), wanted in zip(module.named_parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-8, msg=lambda text, name=name: f"{name}: {text}")


@each_network
def test_one_pass_matches_the_algorithm_by_hand(builder):
    network, source, masks = make_case(builder)
    batch = doubled_batch()
    units = trace(network, batch)
    names = [unit.name for unit in units]
    expected = by_hand(network.module, source, names, masks, batch)
    before = snapshot(units)
    for name, mask in masks.items():
        copy_units(network.module.get_submodule(name), source.get_submodule(name), mask)
    fits = refit_in_one_pass(network, batch, units, before, masks, lambda _: True, Solver(ridge=RIDGE))
    assert_same(network.module, expected)
    assert set(fits) == set(names[1:]) - {"grouped"}


@each_network
def test_pairs_match_the_algorithm_by_hand(builder, monkeypatch):
    monkeypatch.setattr("plastibench.nn.refit.CHUNK_SIZE", 16)  # 40 samples: two full chunks and a partial one
    network, source, masks = make_case(builder)
    batch = doubled_batch()
    units = trace(network, batch)
    expected = by_hand(network.module, source, [unit.name for unit in units], masks, batch)
    teacher = frozen_copy(network)
    for unit, reader in itertools.pairwise(units):
        copy_units(unit.module, source.get_submodule(unit.name), masks[unit.name])
        fit = refit_pair(network, batch, teacher, reader, Solver(ridge=RIDGE))
        assert (fit is None) == (reader.name == "grouped")
    assert_same(network.module, expected)


def test_frozen_copy_does_not_change_with_the_network():
    network = network_of(agent_builder("mlp", width=8))
    teacher = frozen_copy(network)
    assert not any(p.requires_grad for p in teacher.parameters())
    assert all(p.requires_grad for p in network.module.parameters())
    before = logits(teacher, images())
    add_noise(network.module)
    assert torch.equal(logits(teacher, images()), before)


def test_only_selected_layers_are_refitted_and_lose_their_optimizer_state():
    builder, batch = agent_builder("mlp", width=8, hidden=3), images(64)
    network = train(network_of(builder, lr=1e-2), batch)
    units = trace(network, batch)
    before, old = snapshot(units), state(network.module)
    copy_units(network.module[1], drawn(builder, 77)[1], torch.arange(8) < 3)
    steps = {p: network.optimizer.state[p] for p in network.module.parameters()}
    fits = refit_in_one_pass(network, batch, units, before, {}, lambda name: name == "5", Solver(ridge=RIDGE))
    assert set(fits) == {"5"}
    moved = {name for name, p in network.module.named_parameters() if not torch.equal(p, old[name])}
    assert moved == {"1.weight", "1.bias", "5.weight", "5.bias"}
    kept = {name for name, p in network.module.named_parameters() if network.optimizer.state.get(p) is steps[p]}
    assert kept == set(dict(network.module.named_parameters())) - {"5.weight", "5.bias"}


def test_revived_rows_of_a_reader_are_kept():
    builder, batch = agent_builder("mlp", width=8), images(64)
    network = network_of(builder)
    units = trace(network, batch)
    before, old = snapshot(units), state(network.module)
    masks = {"1": torch.arange(8) < 3, "3": torch.arange(8) > 5}
    for name, mask in masks.items():
        copy_units(network.module.get_submodule(name), drawn(builder, 77).get_submodule(name), mask)
    revived = state(network.module)
    refit_in_one_pass(network, batch, units, before, masks, lambda _: True, Solver(ridge=RIDGE))
    for name in ("3.weight", "3.bias"):
        after = network.module.get_parameter(name)
        assert torch.equal(after[masks["3"]], revived[name][masks["3"]])
        assert not torch.isclose(after[~masks["3"]], old[name][~masks["3"]]).any(dim=-1).all()
    assert torch.equal(network.module[1].weight, revived["1.weight"])  # the first layer is never refitted


def test_reported_residual_is_that_of_the_outputs():
    builder, batch = agent_builder("mlp", width=8), images(64)
    network = network_of(builder)
    units, teacher = trace(network, batch), frozen_copy(network)
    before = snapshot(units)
    copy_units(network.module[1], drawn(builder, 77)[1], torch.arange(8) < 4)
    fits = refit_in_one_pass(network, batch, units, before, {}, lambda _: True, Solver(ridge=RIDGE))
    for name in ("3", "5"):
        new, old = seen(network.module, name, batch)[1], seen(teacher, name, batch)[1]
        assert fits[name].residual == pytest.approx(float((new - old).norm() / old.norm()), rel=1e-4)
        assert fits[name].residual > 0.01
        ratio = network.module.get_submodule(name).weight.detach().norm() / teacher.get_submodule(name).weight.norm()
        assert fits[name].norm_ratio == pytest.approx(float(ratio), rel=1e-5)


# --- no side effects --------------------------------------------------------------------------------------------------


def assert_clean(module: nn.Module) -> None:
    for child in module.modules():
        assert "forward" not in child.__dict__
        assert not child._forward_hooks
        assert not child._forward_pre_hooks


def one_pass(network: Network, batch, units: list[TracedLayer]) -> None:
    refit_in_one_pass(network, batch, units, snapshot(units), {}, lambda _: True, Solver(ridge=RIDGE))


def last_pair(network: Network, batch, units: list[TracedLayer]) -> None:
    refit_pair(network, batch, frozen_copy(network), units[-1], Solver(ridge=RIDGE))


@pytest.mark.parametrize("refit", [one_pass, last_pair])
def test_refitting_has_no_side_effects(refit):
    network, batch = network_of(small_vit(dropout=0.4)), images()
    network.module.blocks[0].eval()
    for parameter in network.module.parameters():
        parameter.grad = torch.ones_like(parameter)
    modes, random = [c.training for c in network.module.modules()], torch.get_rng_state()
    refit(network, batch, trace(network, batch))
    assert_clean(network.module)
    assert [c.training for c in network.module.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random)
    assert all(p.requires_grad and bool((p.grad == 1).all()) for p in network.module.parameters())


class Failing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


@pytest.mark.parametrize(("refit", "call"), [(one_pass, 1), (last_pair, 1), (last_pair, 2)])
def test_refitting_has_no_side_effects_when_a_pass_raises(refit, call, monkeypatch):
    def builder() -> nn.Module:
        module = small_vit()()
        module.blocks[0].mlp.act = nn.Sequential(module.blocks[0].mlp.act, Failing())
        return module

    network, batch = network_of(builder), images()
    units, modes = trace(network, batch), [c.training for c in network.module.modules()]
    calls = []

    def fail(self: Failing, x: Tensor) -> Tensor:
        calls.append(len(x))
        if len(calls) == call:
            raise ArithmeticError
        return x

    monkeypatch.setattr(Failing, "forward", fail)
    with pytest.raises(ArithmeticError):
        refit(network, batch, units)
    assert len(calls) == call
    assert_clean(network.module)
    assert [c.training for c in network.module.modules()] == modes
