from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plastibench.interventions.attach import attach
from plastibench.interventions.recouple import Recouple
from plastibench.interventions.revive import Revive
from plastibench.nn.dataflow import trace
from plastibench.nn.least_squares import Solver
from plastibench.nn.memory import MemoryPlan
from plastibench.nn.refit import refit, refit_in_one_pass, snapshot
from plastibench.nn.row_order import RowsMoved, row_order
from plastibench.utils.notices import print_once
from tests.support import moving_rows
from tests.support.networks import (
    add_noise,
    agent_builder,
    changed,
    double,
    drawn,
    images,
    loss,
    method,
    network_of,
    small_vit,
    state,
    train,
)
from tests.support.references import copy_units, refitted, seen, write

RIDGE = 1e-2
EXPERTS = {f"experts.{number}.{name}" for number in range(3) for name in ("fc1", "fc2")}
# network, whether both halves stay apart, layers whose rows depend on routing
NETWORKS = {
    "vit": (small_vit(), True, set()),
    "mlp": (agent_builder("mlp", width=8), True, set()),
    "top-1": (moving_rows.Experts, False, EXPERTS),
    "top-2": (partial(moving_rows.Experts, 2), False, EXPERTS),
    "capacity": (partial(moving_rows.Experts, 1, 1.0), False, EXPERTS),
    "capacity without drops": (partial(moving_rows.Experts, 1, 3.0), False, EXPERTS),
    "packed": (moving_rows.Packed, False, set()),
    "pruned": (moving_rows.Pruned, False, {"mlp.fc1", "mlp.fc2"}),
    "pruned by threshold": (partial(moving_rows.Pruned, False), False, {"mlp.fc1", "mlp.fc2"}),
    "pruned before attention": (
        moving_rows.PrunedTransformer,
        False,
        {"q", "k", "v", "norm", "mlp.fc1", "mlp.fc2"},
    ),
    "pruned keys": (moving_rows.PrunedKeys, True, set()),
    "merged": (moving_rows.Merged, False, {"mlp.fc1", "mlp.fc2"}),
    "sorted": (partial(moving_rows.Merged, True), False, {"mlp.fc1", "mlp.fc2"}),
    "some tokens": (moving_rows.SomeTokens, False, {"mlp.fc1", "mlp.fc2"}),
    "all experts": (moving_rows.AllExperts, True, set()),
    "all experts, flattened": (partial(moving_rows.AllExperts, True), True, set()),
    "mean over the batch": (moving_rows.BatchMean, False, set()),
    "batch norm": (partial(moving_rows.batch_norm, True), True, set()),
    "batch norm of the batch": (partial(moving_rows.batch_norm, False), False, set()),
    "time first": (moving_rows.TimeFirst, True, set()),
    "time first, flattened": (partial(moving_rows.TimeFirst, True), False, set()),
}
each = pytest.mark.parametrize(("builder", "one_pass", "moving"), NETWORKS.values(), ids=NETWORKS.keys())


def batch_of(count: int = 24):
    batch = images(count)
    batch["image"] = batch["image"].double()
    return batch


@each
def test_rows_that_move_are_found_and_nothing_changes(builder, one_pass, moving):
    network, batch = network_of(builder), images(24)
    network.module.train()
    before, random = state(network.module), torch.get_rng_state()
    order = row_order(network, batch, trace(network, batch))
    assert (order.one_pass, order.moving) == (one_pass, moving)
    assert bool(order.note()) == (not one_pass)
    assert not changed(before, network.module)
    assert torch.equal(torch.get_rng_state(), random)
    assert all("forward" not in child.__dict__ and child.training for child in network.module.modules())


@pytest.mark.parametrize("seed", range(1, 4))
@pytest.mark.parametrize("name", [name for name, (_, one_pass, _) in NETWORKS.items() if not one_pass])
def test_what_is_found_does_not_depend_on_the_weights(name, seed):
    builder, _, moving = NETWORKS[name]
    network, batch = network_of(builder, seed=seed), images(24, seed=seed)
    order = row_order(network, batch, trace(network, batch))
    assert (order.one_pass, order.moving) == (False, moving)


@pytest.mark.parametrize("streamed", [False, True], ids=["held", "streamed"])
@each
def test_refit_is_that_of_the_paper(builder, one_pass, moving, streamed):
    """A float64 reference: reinitialize, then refit each layer to its own outputs before, in execution order."""
    network, batch = network_of(double(builder)), batch_of()
    add_noise(network.module, 0.2)
    layers = trace(network, batch)
    source, teacher = drawn(double(builder), 77), copy.deepcopy(network.module)
    masks = {layer.name: torch.arange(len(layer.module.weight)) % 3 == 1 for layer in layers[:-1]}
    order, before = row_order(network, batch, layers), snapshot(layers)
    for name, mask in masks.items():
        copy_units(network.module.get_submodule(name), source.get_submodule(name), mask)
    student = copy.deepcopy(network.module)
    plan = MemoryPlan(10 if one_pass else 24, streamed)  # rows that influence each other need the whole batch
    refit(network, batch, layers, before, masks, lambda _: True, Solver(ridge=RIDGE), order, plan)
    for layer in layers[1:]:
        if layer.name in moving:
            continue
        target, kept = student.get_submodule(layer.name), copy.deepcopy(student.get_submodule(layer.name))
        inputs, targets = seen(student, layer.name, batch)[0], seen(teacher, layer.name, batch)[1]
        write(target, refitted(target, inputs, targets, RIDGE))
        copy_units(target, kept, masks.get(layer.name, torch.zeros(len(target.weight), dtype=torch.bool)))
    for (name, found), wanted in zip(network.module.named_parameters(), student.parameters(), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-8, msg=lambda text, name=name: f"{name}: {text}")


def test_separate_passes_equal_one_pass():
    found = []
    for one_pass in (True, False):
        network, batch = network_of(double(small_vit())), batch_of()
        add_noise(network.module, 0.2)
        layers = trace(network, batch)
        order, before = row_order(network, batch, layers), snapshot(layers)
        copy_units(
            network.module.patch_embed.proj, drawn(double(small_vit()), 7).patch_embed.proj, torch.arange(16) < 5
        )
        order = order if one_pass else type(order)(False)
        refit(network, batch, layers, before, {}, lambda _: True, Solver(ridge=RIDGE), order, MemoryPlan())
        found.append(network.module)
    for one, other in zip(*(module.parameters() for module in found), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-8)


def test_a_mixture_of_experts_keeps_its_outputs_better_with_recoupling(capsys):
    """Mixing both halves of a doubled batch would instead spoil them."""
    print_once.cache_clear()
    drift = []
    for recouple in (False, True):
        network, batch = network_of(partial(moving_rows.Experts, 2)), images(64)
        before = network.module(batch["image"]).detach()
        inner = Revive("low-gradient-quantile", quantile=0.3)
        (Recouple(inner) if recouple else inner).intervene(network, batch)
        drift.append(float((network.module(batch["image"]) - before).detach().norm()))
    assert drift[1] < 0.8 * drift[0]
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and "separate passes" in lines[0] and "experts.0.fc1" in lines[0]


class Late(nn.Module):
    """Routes only large batches, so that a test with few samples does not see it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.inner, self.head = nn.Linear(64, 8), nn.Linear(8, 8), nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x.flatten(1))
        if len(x) <= 512:
            return self.head(self.inner(x))
        kept = x[:, 0] > 0
        return self.head(torch.where(kept[:, None], x.index_add(0, kept.nonzero()[:, 0], self.inner(x[kept])), x))


def test_rows_that_move_in_a_large_batch_only_leave_nothing_half_written():
    network, batch = network_of(Late), images(300)
    layers = trace(network, batch)
    order, before = row_order(network, batch, layers), snapshot(layers)
    assert order.one_pass
    copy_units(network.module.first, drawn(Late, 7).first, torch.arange(8) < 3)
    revived = state(network.module)
    arguments = (network, batch, layers, before, {}, lambda _: True, Solver(ridge=RIDGE), order)
    with pytest.raises(RowsMoved, match="inner"):
        refit_in_one_pass(*arguments)
    assert not changed(revived, network.module)
    fits = refit(*arguments, MemoryPlan())
    assert "inner" not in fits and "head" in fits


class Picky(nn.Module):
    """Refuses weights that are not its first ones, in a pass after the test of the row order."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.inner, self.head = nn.Linear(64, 8), nn.Linear(8, 8), nn.Linear(8, 10)
        self.known: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.known is not None and not torch.equal(self.first.weight, self.known):
            raise ArithmeticError("other weights")
        return self.head(F.relu(self.inner(F.relu(self.first(x.flatten(1))))))


@pytest.mark.parametrize("scoring", ["once", "per-layer", "recouple"])
def test_an_error_in_the_middle_changes_nothing(scoring):
    network, batch = network_of(Picky, lr=1e-2, fresh=False), images(24)
    train(network, batch)
    network.module.known = network.module.first.weight.detach().clone()
    before, slots = state(network.module), copy.deepcopy(network.optimizer.state_dict())
    made = Recouple(Revive()) if scoring == "recouple" else method("rnr", scoring=scoring)
    with pytest.raises(ArithmeticError):
        attach(made, network).intervene(batch)
    assert not changed(before, network.module)
    after = network.optimizer.state_dict()["state"]
    assert all(torch.equal(after[key][name], value) for key, s in slots["state"].items() for name, value in s.items())


@pytest.mark.parametrize(("name", "scoring"), [("rnr", "once"), ("rnr", "per-layer"), ("recouple", "")])
@pytest.mark.parametrize("top", [1, 2])
def test_no_method_raises_on_a_mixture_of_experts(name, scoring, top):
    network, batch = network_of(partial(moving_rows.Experts, top)), images(32)
    made = Recouple(Revive()) if name == "recouple" else method(name, scoring=scoring)
    before = state(network.module)
    made.intervene(network, batch)
    assert changed(before, network.module)
    assert torch.isfinite(loss(network.module, batch))
