from __future__ import annotations

import pytest

from plastibench.config.registry import Entry, interventions
from plastibench.interventions.base import Intervention
from plastibench.interventions.catalogue import FACTS, Facts, facts
from plastibench.training.checkpoint import tensor_bytes
from tests.helpers import agent_builder, images, method, network_of, update

VIT = agent_builder("vit-nano")
BUILTIN = [name for name, entry in interventions.all().items() if facts(entry)]
HOOKS = ("prepare", "penalty", "before_update", "after_update", "intervene", "evaluated")
STORES_INITIAL = {"shrink-perturb-keep20", "l2-init", "l2-init-decoupled", "l2-init-norm"}


def test_every_built_in_method_has_its_facts_and_no_other():
    targets = {entry.target for entry in interventions.all().values() if isinstance(entry.target, str)}
    assert {f"plastibench.interventions.{key}" for key in FACTS} == targets
    assert facts(Entry("mine", Intervention, "")) is None


@pytest.mark.parametrize("name", BUILTIN)
def test_hooks_are_those_of_the_class(name):
    entry = interventions[name]
    overridden = [hook for hook in HOOKS if getattr(entry.load(), hook) is not getattr(Intervention, hook)]
    assert list(facts(entry).hooks) == overridden


@pytest.mark.parametrize("name", BUILTIN)
def test_memory_is_what_is_kept_and_added(name):
    network = network_of(VIT, lr=1e-3)
    before = sum(p.numel() * p.element_size() for p in network.module.parameters())
    acting = method(name)
    acting.prepare(network)
    for _ in range(2):
        update(network, acting, images(8))
    acting.intervene(network, images(8))
    update(network, acting, images(8))
    after = sum(p.numel() * p.element_size() for p in network.module.parameters())
    kept = (tensor_bytes(acting.state_dict()) + after - before) / before
    assert kept == pytest.approx(
        1.0 if name in STORES_INITIAL else facts(interventions[name]).memory, rel=0.05, abs=0.002
    )


def test_costs_in_words():
    assert Facts("x", ()).cost == "–"
    assert Facts("x", (), 1.0, "a pass").cost == "+1 parameters, a pass"
    assert Facts("x", (), -0.16).cost == "-0.2 parameters"
    assert Facts("x", (), 0.001).cost == "–"


def test_the_list_shows_kind_hooks_cost_and_source(capsys):
    from plastibench.cli.main import main

    with pytest.raises(SystemExit):
        main(["list", "interventions"])
    rows = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.startswith("  ")}
    assert set(BUILTIN) <= set(rows)
    for word in ("optimizer", "before_update", "+1 parameters", "Elsayed & Mahmood 2024"):
        assert word in rows["upgd"]
