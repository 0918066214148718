from __future__ import annotations

import inspect
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn

import plastibench as pb
from plastibench.config.errors import UserError
from plastibench.config.options import build
from plastibench.config.registry import interventions
from plastibench.interventions.attach import create
from plastibench.interventions.class_checks import HOOKS, check_method

FILE = Path(__file__).name


def line(cls: type, name: str = "") -> int:
    return inspect.getsourcelines(getattr(cls, name) if name else cls)[1]


@dataclass
class Intervine(pb.Intervention):
    def intervine(self, network, batch):
        return pb.Report()


class Camel(pb.Intervention):
    def afterUpdate(self, network):
        pass


class BesideAHook(pb.Intervention):
    def intervene(self, network, batch):
        return pb.Report()

    def evaluate(self, network):
        return network.module


class State(pb.Intervention):
    def intervene(self, network, batch):
        return pb.Report()

    def load_state(self, state):
        pass


class Few(pb.Intervention):
    def intervene(self, network):
        return pb.Report()


class NotAMethod(pb.Intervention):
    penalty = 0.1


class Empty(pb.Intervention):
    """Looks like a method."""


class Child(Intervine):
    """The mistake is in the parent."""


@pytest.mark.parametrize(
    ("cls", "name", "words"),
    [
        (Intervine, "intervine", "plastibench never calls Intervine.intervine; did you mean 'intervene'?"),
        (Child, "intervine", "did you mean 'intervene'?"),
        (Camel, "afterUpdate", "did you mean 'after_update'?"),
        (BesideAHook, "evaluate", "did you mean 'evaluated'?"),
        (State, "load_state", "did you mean 'load_state_dict'?"),
        (Few, "intervene", "write def intervene(self, network, batch)"),
        (NotAMethod, "", "NotAMethod.penalty is not a method; write def penalty(self, network, batch)"),
        (Empty, "", "overrides no hook, so it would behave like none"),
    ],
)
def test_a_method_that_would_do_nothing_is_refused_with_file_and_line(cls: type, name: str, words: str) -> None:
    with pytest.raises(UserError) as told:
        create(cls())
    message = str(told.value)
    assert words in message and "\n" not in message
    assert f"{FILE}:{line(cls, name)}: " in message
    with pytest.raises(UserError, match=r"did you mean|write def|no hook"):
        create(build_combined(cls()))


def build_combined(part: pb.Intervention) -> pb.Intervention:
    wrapper = build(interventions["recouple"].load(), {}, "recouple")
    wrapper._inner = part
    return wrapper


def test_what_is_no_intervention_is_refused() -> None:
    with pytest.raises(UserError, match=r"Linear must inherit from plastibench.Intervention"):
        create(nn.Linear(1, 1))  # type: ignore[arg-type]


def test_sound_methods_are_accepted() -> None:
    class Sound(pb.Intervention):
        def intervene(self, network, batch, strength=1.0):
            return self.prepared_report()

        def prepared_report(self):  # a helper that resembles no hook closely
            return pb.Report()

        @torch.no_grad()
        def after_update(self, network):
            pass

    check_method(Sound())
    for entry in interventions.builtin().values():
        check_method(build(entry.load(), entry.defaults, entry.name))


def test_every_hook_of_the_interface_is_known() -> None:
    public = {name for name in vars(pb.Intervention) if not name.startswith("_")}
    assert public == {*HOOKS, "wrapped", "state_dict", "load_state_dict", "grows"}


@pytest.mark.parametrize("returned", [None, 3, {"parameters": 1}])
@pytest.mark.parametrize("inside", ["", "l2-init+redo", "recouple"])
def test_what_intervene_returns_must_be_a_report(returned: object, inside: str) -> None:
    @dataclass
    class Returns(pb.Intervention):
        def intervene(self, network, batch):
            return returned

    method: pb.Intervention = Returns()
    if inside == "recouple":
        method = build_combined(method)
    elif inside:
        method = build(interventions[inside].load(), {}, inside)
        method.parts["redo"] = Returns()
    handle = pb.attach(method, nn.Linear(2, 2), None, lambda model, batch: model(batch["x"]).sum())
    with pytest.raises(UserError) as told:
        handle.intervene({"x": torch.zeros(2, 2)})
    where = f"{FILE}:{inspect.unwrap(Returns.intervene).__code__.co_firstlineno}: Returns.intervene returned"
    assert where in str(told.value) and "return Report(" in str(told.value)


def test_options_without_a_dataclass_are_refused_with_file_and_line() -> None:
    class Forgotten(pb.Intervention):
        factor: float = pb.option(0.5, "a factor")

    with pytest.raises(UserError, match=rf"{FILE}:{line(Forgotten)}: Forgotten declares options .* write @dataclass"):
        build(Forgotten, {}, "intervention forgotten")

    class Annotated(pb.Intervention):
        factor: float = 0.5

    with pytest.raises(UserError, match=rf"has no option 'factor' \(.*{FILE}:{line(Annotated)}: is @dataclass missing"):
        build(Annotated, {"factor": 0.2}, "intervention annotated")


@pytest.mark.sample(2)
@pytest.mark.parametrize(
    ("value", "what"),
    [([1.0], "of type list"), ("l2", "of type str"), (torch.ones(3), "of shape (3,)")],
)
@pytest.mark.parametrize("combined", [False, True])
def test_a_penalty_of_the_wrong_type_names_the_line_in_the_users_file(value, what, combined, monkeypatch):
    entries = dict(interventions.all())
    monkeypatch.setattr(interventions, "_entries", entries)

    @pb.register_intervention("wrong-penalty", "returns what cannot be added")
    @dataclass
    class Wrong(pb.Intervention):
        def penalty(self, network, batch):
            return value

    model = torch.nn.Linear(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    handle = pb.attach(
        "l2+wrong-penalty" if combined else "wrong-penalty", model, optimizer, lambda m, b: m(b["x"]).sum()
    )
    with pytest.raises(UserError) as raised:
        handle.penalty({"x": torch.ones(2, 4)})
    assert f"Wrong.penalty returned a value {what}" in str(raised.value)
    assert f"{FILE}:{line(Wrong, 'penalty')}: " in str(raised.value)


@pytest.mark.parametrize("value", [None, 2, 2.5, torch.tensor(2.0), torch.tensor([2.0])])
def test_penalties_that_can_be_added_are_returned_as_they_are(value):
    @dataclass
    class Right(pb.Intervention):
        def penalty(self, network, batch):
            return value

    assert Right().penalty(None, None) is value


@pytest.mark.parametrize("name", ["redo", "rnr", "fire", "selective-weight-reinit"])
def test_a_loss_that_reads_a_missing_key_is_named_with_its_line(name):
    def loss_fn(model, batch):
        return model(batch["inputs"]).sum()

    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    options = {"interval": 0} if name == "selective-weight-reinit" else {}
    with pytest.raises(UserError) as raised:
        pb.apply(name, model, {"x": torch.ones(2, 4)}, loss_fn, **options)
    where = f"{FILE}:{line(loss_fn) + 1}"
    assert f"{name}: " in str(raised.value) and f"{where}: KeyError in loss_fn" in str(raised.value)
    assert "inputs" in str(raised.value) and "['x']" in str(raised.value) and "\n" not in str(raised.value)
