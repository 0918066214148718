from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plastibench.config.errors import UserError
from plastibench.interventions.attach import attach
from plastibench.nn.coverage import coverage, expected_coverage, modules_in_part
from plastibench.utils.notices import print_once
from tests.support.moving_rows import tokens_of
from tests.support.networks import agent_builder, changed, images, loss, network_of, small_resnet, small_vit, state


class Mixed(nn.Module):
    """One module of every kind that unit-level methods treat in another way."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1, 1, 8))
        self.embed, self.table = nn.Linear(8, 8), nn.Embedding(8, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.memory = nn.GRU(8, 8, batch_first=True)
        self.fc1, self.fc2 = nn.Linear(8, 6), nn.Linear(6, 8)
        self.grouped = nn.Conv1d(8, 8, 1, groups=2)
        self.rms, self.unused, self.frozen = nn.RMSNorm(8), nn.Linear(3, 4), nn.Linear(8, 8).requires_grad_(False)
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(8, 8))
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(len(x), -1, -1), self.embed(tokens_of(x))], 1)
        x = x + self.table(torch.arange(9) % 8) + self.attention(x, x, x)[0]
        x = self.memory(x)[0] + self.fc2(F.relu(self.fc1(self.rms(x))))
        x = x + self.grouped(x.mT).mT
        return self.head(self.normed(self.frozen(x)).mean(1))


EXPECTED = {
    "": ("Mixed", 8, (), "parameters without a layer"),
    "embed": ("Linear", 72, ("revive",), ""),
    "table": ("Embedding", 64, (), "rows are tokens, not units"),
    "attention": ("MultiheadAttention", 216, (), "packed weights of queries, keys and values"),
    "attention.out_proj": ("NonDynamicallyQuantizableLinear", 72, (), "does not run, or its parent uses its weight"),
    "memory": ("GRU", 432, (), "recurrent: a unit has one row for each gate"),
    "fc1": ("Linear", 54, ("revive", "redo", "refit"), ""),
    "fc2": ("Linear", 56, ("revive", "refit"), ""),
    "grouped": ("Conv1d", 40, ("revive",), "grouped convolution or unusual padding: no closed form for refitting"),
    "rms": ("RMSNorm", 8, (), "norm without units"),
    "unused": ("Linear", 16, (), "does not run, or its parent uses its weight"),
    "frozen": ("Linear", 72, (), "frozen"),
    "normed": ("ParametrizedLinear", 8, (), "weight is computed from other parameters"),
    "normed.parametrizations.weight": ("ParametrizationList", 72, (), "weight is computed from other parameters"),
    "head": ("Linear", 90, ("refit",), "output layer: refitted, but never reinitialized"),
}


def test_every_module_is_listed_with_its_reason():
    network = network_of(Mixed)
    before = state(network.module)
    found = coverage(network, images(4))
    assert {m.name: (m.kind, m.parameters, m.covered_by, m.why_not) for m in found.modules} == EXPECTED
    assert found.parameters == sum(p.numel() for p in network.module.parameters())
    covered = sum(count for _, count, by, _ in EXPECTED.values() if by)
    assert found.fraction == pytest.approx(covered / found.parameters)
    assert found.missing()[0] == ("GRU", "recurrent: a unit has one row for each gate", 1, 432)
    assert f"{100 * 432 / found.parameters:.1f} % (recurrent" in found.summary()
    assert not changed(before, network.module)


@pytest.mark.parametrize("name", ["rnr", "redo", "regrama"])
def test_methods_act_on_exactly_what_is_listed(name):
    network, batch = network_of(Mixed), images(40)
    before = state(network.module)
    handle = attach(name, network, **({"quantile": 0.5} if name == "rnr" else {"tau": 100.0}))
    listed = {module.name: set(module.covered_by) for module in handle.coverage(batch).modules}
    observed = {module.name: set(module.covered_by) for module in coverage(network, batch).modules}
    del observed["normed.parametrizations.weight"]
    assert listed | {"normed": set()} == observed  # a computed weight is an ordinary one while they act
    report = handle.intervene(batch, expect_steps=False)
    wanted = {"rnr": {"revive", "refit"}, "redo": {"redo"}, "regrama": {"revive"}}[name]
    assert set(report.units) == {m for m, by in listed.items() if by & (wanted - {"refit"})}
    touched = {parameter.rpartition(".")[0] for parameter in changed(before, network.module)}
    touched = {name.removesuffix(".parametrizations.weight") for name in touched}
    assert touched <= {m for m, by in listed.items() if by & wanted} | ({"fc2"} if name == "redo" else set())


@pytest.mark.parametrize("builder", [small_vit(), small_vit(variant="hnt"), small_resnet, agent_builder("mlp")])
def test_built_in_networks_are_covered_and_nothing_is_printed(builder, capsys):
    network = network_of(builder)
    found = coverage(network, images(4))
    assert found.fraction > 0.95
    assert {m.name for m in found.modules if m.covered_by} == {
        m.name for m in expected_coverage(network.module).modules if m.covered_by
    } | {m.name for m in found.modules if m.covered_by == ("redo",)}
    attach("rnr", network)
    assert capsys.readouterr().err == ""


def test_a_large_uncovered_share_is_said_once_before_training(capsys):
    print_once.cache_clear()
    for _ in range(2):
        attach("redo", Mixed(), None, loss)
    attach("l2-init", Mixed(), None, loss)
    lines = [line for line in capsys.readouterr().err.splitlines() if "unit-level methods cover" in line]
    assert len(lines) == 1
    assert "GRU 33.8 % (recurrent" in lines[0] and "MultiheadAttention 16.9 %" in lines[0]


def test_parts_are_listed_with_their_parameters():
    network = network_of(small_vit(depth=1))
    fc1, fc2 = (network.module.get_submodule(f"blocks.0.mlp.{name}") for name in ("fc1", "fc2"))
    assert modules_in_part(network, images(4), "mlp") == [
        (f"blocks.0.mlp.{name}", sum(p.numel() for p in layer.parameters()))
        for name, layer in (("fc1", fc1), ("fc2", fc2))
    ]
    parts = {m.name: m.parts for m in coverage(network, images(4)).modules}
    assert parts["blocks.0.mlp.fc1"] == ("mlp",) and parts["head"] == ("head",) and parts["norm"] == ()
    assert parts["blocks.0.attn.proj"] == ("attention",)


@pytest.mark.parametrize("fresh", [True, False])
def test_modules_without_a_known_initialization_are_covered_only_with_a_builder(fresh):
    class Conv1D(nn.Module):
        """Like that of transformers, which has no ``reset_parameters``."""

        def __init__(self) -> None:
            super().__init__()
            self.weight, self.bias = nn.Parameter(torch.randn(8, 6)), nn.Parameter(torch.zeros(6))

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.weight + self.bias

    def build() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), Conv1D(), nn.ReLU(), nn.Linear(6, 10))

    found = {module.name: module for module in coverage(network_of(build, fresh=fresh), images(4)).modules}
    assert found["3"].covered_by == (("revive", "redo", "refit") if fresh else ("refit",))
    assert found["3"].why_not == ("" if fresh else "no initialization is known: pass a builder as fresh")


@pytest.mark.parametrize("name", ["heads", "0"])
def test_outputs_may_be_named(name):
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10), nn.Tanh(), nn.Linear(10, 10))
    handle = attach("rnr", module, None, loss, outputs=["3", "5"])
    assert [m.name for m in handle.coverage(images(4)).modules if m.parts == ("head",)] == ["3", "5"]
    with pytest.raises(UserError, match=f"outputs: this network has no layer '{name}'"):
        attach("rnr", module, None, loss, outputs=[name])


class Linear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(64, 8), nn.Linear(8, 8), nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.second(self.first(x.flatten(1)))))


def test_layers_without_a_visible_activation_are_named():
    found = {module.name: module.why_not for module in coverage(network_of(Linear), images(4)).modules}
    assert "no activation was seen" in found["first"] and not found["second"]
