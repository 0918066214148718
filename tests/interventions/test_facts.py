from __future__ import annotations

import pytest

from plastibench.config.registry import Entry, interventions
from plastibench.interventions.base import Intervention
from plastibench.interventions.facts import HOOKS, Facts, facts
from plastibench.training.checkpoint import tensor_bytes
from tests.support.networks import agent_builder, images, method, network_of, update

VIT = agent_builder("vit-nano")
BUILTIN = list(interventions.builtin())
STORES_INITIAL = {"shrink-perturb-keep20", "l2-init", "l2-init-decoupled", "l2-init-norm"}


@pytest.mark.parametrize("name", BUILTIN)
def test_hooks_read_from_source_are_those_of_the_class(name):
    entry = interventions[name]
    overridden = [hook for hook in HOOKS if getattr(entry.load(), hook) is not getattr(Intervention, hook)]
    assert list(facts(entry).hooks) == overridden


@pytest.mark.parametrize("name", BUILTIN)
def test_facts_read_from_source_are_those_of_the_class(name):
    entry = interventions[name]
    declared = facts(Entry(name, entry.load(), ""))
    assert facts(entry) == Facts(
        declared.kind, declared.hooks, declared.extra_memory, declared.extra_compute.removesuffix("?")
    )


@pytest.mark.sample(8)
@pytest.mark.parametrize("name", BUILTIN)
def test_extra_memory_is_measured_state_and_added_parameters(name):
    network = network_of(VIT, lr=1e-3)
    before = sum(p.numel() * p.element_size() for p in network.module.parameters())
    acting = method(name)
    acting.prepare(network)
    for _ in range(2):
        update(network, acting, images(8))
    acting.intervene(network, images(8))
    update(network, acting, images(8))
    after = sum(p.numel() * p.element_size() for p in network.module.parameters())
    measured = (tensor_bytes(acting.state_dict()) + after - before) / before
    declared = 1.0 if name in STORES_INITIAL else facts(interventions[name]).extra_memory
    assert measured == pytest.approx(declared, rel=0.05, abs=0.002)


def test_facts_of_a_custom_class():
    class Mine(Intervention):
        def intervene(self, network, batch): ...

    class Counted(Mine):
        kind, extra_memory, extra_compute = "units", 1.0, "a pass"

    assert facts(Entry("mine", Mine, "")) == Facts("custom", ("intervene",), 0.0, "?")
    assert facts(Entry("mine", Counted, "")) == Facts("units", ("intervene",), 1.0, "a pass")


def test_costs_in_words():
    assert Facts("x", ()).cost == "–"
    assert Facts("x", (), 1.0, "a pass").cost == "+1× parameters, a pass"
    assert Facts("x", (), -0.16).cost == "-0.2× parameters"
    assert Facts("x", (), 0.001).cost == "–"
    assert Facts("x", (), 1.23).cost == "+1.2× parameters"


def test_list_shows_kind_hooks_cost_and_source(capsys):
    from plastibench.cli.main import main

    with pytest.raises(SystemExit):
        main(["list", "interventions"])
    rows = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.startswith("  ")}
    assert set(BUILTIN) <= set(rows)
    for word in ("optimizer", "before_update", "+1× parameters", "Elsayed & Mahmood 2024"):
        assert word in rows["upgd"]
