from __future__ import annotations

import copy
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from plastibench.config.errors import UserError
from plastibench.config.options import build
from plastibench.interventions.base import Intervention, Report
from plastibench.interventions.plasticity_injection import PlasticityInjection
from plastibench.interventions.recouple import Recouple
from plastibench.interventions.reset import Reset
from plastibench.interventions.revive import Revive
from plastibench.interventions.rnr import RnR
from plastibench.interventions.shrink_perturb import ShrinkPerturb
from plastibench.nn.network import Network
from tests.support.networks import (
    add_noise,
    agent_builder,
    changed,
    constant,
    double,
    drawn,
    images,
    logits,
    network_of,
    parameters_of,
    small_vit,
    state,
    train,
)
from tests.support.references import refitted, seen, write

MLP = agent_builder("mlp", width=16)
RIDGE = 1e-2


def prepared(builder=MLP, source: int = 77) -> Network:
    network = network_of(builder)
    add_noise(network.module, 0.1)
    network._fresh = lambda: drawn(builder, source)
    return network


def distance(network: Network, before: Tensor, batch) -> float:
    return float((logits(network.module, batch) - before).norm())


@dataclass
class Spoil(Intervention):
    """Overwrite one unit of the first layer, report it, and count the calls of hooks."""

    def __post_init__(self) -> None:
        self.calls: list[str] = []

    @torch.no_grad()
    def intervene(self, network: Network, batch: object) -> Report:
        self.calls.append("intervene")
        network.module[1].weight[3] = 5.0
        return Report(units={"1": torch.arange(16) == 3}, parameters=64)

    def prepare(self, network: Network) -> None:
        self.calls.append("prepare")

    def after_update(self, network: Network) -> None:
        self.calls.append("after_update")

    def penalty(self, network: Network, batch: object) -> Tensor:
        return torch.tensor(2.5)

    def evaluated(self, network: Network) -> nn.Module:
        return network.module[1]

    def state_dict(self) -> dict[str, object]:
        return {"calls": list(self.calls)}

    def load_state_dict(self, state: dict[str, object]) -> None:
        self.calls = list(state["calls"])


def convolutions() -> nn.Module:
    """A network with BatchNorms, which have no units."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(),
        nn.Conv2d(4, 6, 3, 2, bias=False), nn.BatchNorm2d(6), nn.ReLU(),
        nn.Flatten(), nn.Linear(24, 10),
    )  # fmt: skip


# --- effect -----------------------------------------------------------------------------------------------------------


def test_recoupled_redo_changes_outputs_less_than_redo():
    batch, distances, masks = images(256), [], []
    for method in (
        Recouple("redo", ("tau=0.8",), ridge=RIDGE),
        Revive("redo", tau=0.8, modules="hidden", outgoing="zero"),
    ):
        network = prepared()
        before = logits(network.module, batch)
        masks.append(method.intervene(network, batch).units)
        distances.append(distance(network, before, batch))
    assert all(torch.equal(masks[0][name], masks[1][name]) and masks[0][name].any() for name in ("1", "3"))
    assert distances[0] < 0.9 * distances[1]


def test_recouple_of_revive_equals_rnr():
    batch, states = images(64), []
    for method in (Recouple(Revive(quantile=0.4), ridge=RIDGE), RnR(quantile=0.4, ridge=RIDGE)):
        network = prepared(small_vit())
        method.intervene(network, batch)
        states.append(state(network.module))
    for name in states[0]:
        torch.testing.assert_close(states[0][name], states[1][name], rtol=0, atol=0)


def test_inner_instance_acts_and_refit_matches_a_manual_refit():
    builder = double(MLP)
    network, batch = prepared(builder), images(64)
    batch["image"] = batch["image"].double()
    old = copy.deepcopy(network.module)
    inner = Spoil()
    report = Recouple(inner, ridge=RIDGE).intervene(network, batch)
    assert inner.calls == ["intervene"]
    expected = copy.deepcopy(old)
    with torch.no_grad():
        expected[1].weight[3] = 5.0
    for reader in ("3", "5"):
        place = expected.get_submodule(reader)
        write(place, refitted(place, seen(expected, reader, batch)[0], seen(old, reader, batch)[1], RIDGE))
    for (name, found), wanted in zip(network.module.named_parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-9, msg=name)
    assert {name for name, figures in report.modules.items() if "residual" in figures} == {"3", "5"}
    assert report.parameters == 64 + 16 * 17 + 10 * 17


@pytest.mark.parametrize(
    "builder",
    [MLP, small_vit(), small_vit(variant="hnt"), convolutions],
    ids=["mlp", "vit", "hnt", "batchnorm"],
)
def test_targets_are_the_outputs_of_the_old_network(builder):
    """Position embeddings, class tokens and BatchNorms shrink, but not in the teacher."""
    builder = double(builder)
    network, batch = prepared(builder), images(40)
    batch["image"] = batch["image"].double()
    source = drawn(builder, 77)
    old = copy.deepcopy(network.module)
    report = Recouple(ShrinkPerturb(0.6, 0.4), ridge=RIDGE).intervene(network, batch)
    expected = copy.deepcopy(old)
    with torch.no_grad():
        for parameter, other in zip(expected.parameters(), source.parameters(), strict=True):
            parameter.mul_(0.6).add_(other, alpha=0.4)
    readers = list(report.modules)
    assert len(readers) == sum(isinstance(m, nn.Linear | nn.Conv2d | nn.LayerNorm) for m in old.modules()) - 1
    for reader in readers:
        place = expected.get_submodule(reader)
        write(place, refitted(place, seen(expected, reader, batch)[0], seen(old, reader, batch)[1], RIDGE))
    for (name, found), wanted in zip(network.module.named_parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-8, msg=lambda text, name=name: f"{name}: {text}")


def test_reset_mlp_blocks_keep_their_new_weights_and_the_others_are_refitted():
    network, batch = prepared(small_vit()), images(256)
    network._fresh = constant(small_vit(), 0.125)
    before = state(network.module)
    Recouple("reset-mlp", ridge=RIDGE).intervene(network, batch)
    blocks = parameters_of(network.module, [f"blocks.{b}.mlp.fc{n}" for b in range(2) for n in (1, 2)])
    for name in blocks:
        assert (network.module.get_parameter(name) == 0.125).all()
    moved = changed(before, network.module) - blocks
    assert {"blocks.1.norm1.weight", "blocks.1.attn.qkv.weight", "norm.weight", "head.weight"} <= moved
    assert not {"patch_embed.proj.weight", "pos_embed", "cls_token"} & moved


def test_recoupling_after_a_reset_of_mlp_blocks_restores_part_of_the_outputs():
    batch, distances = images(256), []
    for method in (Recouple("reset-mlp", ridge=RIDGE), Reset("mlp")):
        network = network_of(small_vit(), lr=1e-2)
        train(network, batch, 10)
        before = logits(network.module, batch)
        method.intervene(network, batch)
        distances.append(distance(network, before, batch))
    assert distances[0] < 0.9 * distances[1]


def test_inner_none_changes_nothing():
    network, batch = prepared(small_vit()), images(64)
    before = state(network.module)
    Recouple("none", ridge=RIDGE).intervene(network, batch)
    for name, tensor in state(network.module).items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=1e-6)


def test_refit_restricts_recoupling_by_name():
    batch, after = images(64), {}
    for refit in ("all", "head"):
        network = prepared(small_vit())
        before = state(network.module)
        report = Recouple(Revive(modules="fc1"), refit=refit, ridge=RIDGE).intervene(network, batch)
        refitted_names = {name for name, figures in report.modules.items() if "residual" in figures}
        after[refit] = refitted_names, {name.rpartition(".")[0] for name in changed(before, network.module)}
    assert len(after["all"][0]) == 14
    assert after["head"] == ({"head"}, {"head", "blocks.0.mlp.fc1", "blocks.1.mlp.fc1"})


@pytest.mark.parametrize("refit", ["nothing-like-this", "("])
def test_refit_without_a_match_is_a_user_error_and_changes_nothing(refit):
    network = prepared()
    before = state(network.module)
    with pytest.raises(UserError):
        Recouple("reset", refit=refit).intervene(network, images())
    assert not changed(before, network.module)


@pytest.mark.parametrize("solver", ["pinv", "ridge", "delta-ridge"])
def test_solver_options_are_used(solver):
    batch, residuals = images(256), {}
    for ridge in (1e-6, 1.0):
        network = prepared()
        report = Recouple(Revive(quantile=0.4, modules="^1$"), solver=solver, ridge=ridge).intervene(network, batch)
        residuals[ridge] = report.modules["3"]["residual"]
    if solver == "pinv":
        assert residuals[1.0] == residuals[1e-6]
    else:
        assert residuals[1.0] > 1.02 * residuals[1e-6]


def test_max_growth_is_used():
    grown = {}
    for limit in (0.0, 0.9):
        report = Recouple(Revive(quantile=0.9), solver="pinv", max_growth=limit).intervene(prepared(), images(256))
        grown[limit] = report.modules["5"]["norm_ratio"]
    assert grown[0.0] > 0.9 >= grown[0.9]


# --- options and hooks ------------------------------------------------------------------------------------------------


def test_options_of_the_inner_intervention_start_from_its_registered_name():
    inner = Recouple("redo", ("tau=0.25", "modules=fc1|fc2", "residual-writers=false"))._inner
    assert isinstance(inner, Revive)
    assert (inner.criterion, inner.outgoing, inner.tau) == ("redo", "zero", 0.25)
    assert (inner.modules, inner.residual_writers) == ("fc1|fc2", False)


def test_options_can_be_strings():
    method = build(Recouple, {"inner": "shrink-perturb", "inner_options": "keep=0.5,noise=0.1", "ridge": "0.5"}, "x")
    assert (method._inner.keep, method._inner.noise, method.ridge) == (0.5, 0.1, 0.5)


def test_inner_option_may_contain_an_equals_sign():
    assert Recouple("redo", ("modules=a(?=b)",))._inner.modules == "a(?=b)"


@pytest.mark.parametrize(
    ("inner", "options", "named"),
    [
        ("redoo", (), "redo"),
        ("redo", ("tua=0.1",), "tau"),
        ("redo", ("tau=much",), "tau"),
        ("redo", ("tau=-1",), "tau"),
        ("redo", ("tau",), "tau"),
        ("redo", ("criterion=loud",), "criterion"),
        ("none", ("tau=1",), "tau"),
    ],
)
def test_wrong_inner_options_are_users_errors_that_name_the_culprit(inner, options, named):
    with pytest.raises(UserError, match=named):
        Recouple(inner, options)


def test_hooks_are_forwarded_to_the_inner_intervention():
    network, inner = prepared(), Spoil()
    method = Recouple(inner)
    method.prepare(network)
    method.after_update(network)
    assert inner.calls == ["prepare", "after_update"]
    assert method.state_dict() == {"calls": ["prepare", "after_update"]}
    method.load_state_dict({"calls": ["elsewhere"]})
    assert inner.calls == ["elsewhere"]


def test_penalty_of_the_inner_intervention_is_used():
    assert float(Recouple(Spoil()).penalty(prepared(), images())) == 2.5


def test_evaluated_copy_of_the_inner_intervention_is_used():
    network = prepared()
    assert Recouple(Spoil()).evaluated(network) is network.module[1]


def test_recouple_state_contains_the_initial_weights_of_the_inner_intervention():
    network = prepared()
    initial = state(network.module)
    method = Recouple("shrink-perturb-keep20")
    method.prepare(network)
    add_noise(network.module)
    resumed = Recouple("shrink-perturb-keep20")
    resumed.load_state_dict(method.state_dict())
    jiggled = state(network.module)
    resumed.intervene(network, images())
    expected = 0.2 * jiggled["1.weight"] + 0.8 * initial["1.weight"]  # the first module is not refitted
    torch.testing.assert_close(network.module[1].weight.detach(), expected)


def test_intervention_that_changes_the_architecture_is_a_user_error():
    with pytest.raises(UserError, match="changes the architecture"):
        Recouple(PlasticityInjection()).intervene(prepared(small_vit()), images())


def test_a_network_without_units_is_refused_and_unchanged():
    network = network_of(lambda: nn.Sequential(nn.Flatten(), nn.Bilinear(64, 64, 10)))
    network.loss = lambda module, batch: module[1](batch["image"].flatten(1), batch["image"].flatten(1)).mean()
    before = state(network.module)
    with pytest.raises(UserError, match="recouple: Sequential has no module that can be refitted"):
        Recouple(ShrinkPerturb()).intervene(network, images())
    assert not changed(before, network.module)
