"""Methods that act on layers do not act on the embedding of a language model with a tied output layer."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from tensordict import TensorDict
from torch import Tensor, nn

from plastibench.config.errors import UserError
from plastibench.config.options import build
from plastibench.config.registry import interventions
from plastibench.interventions.base import Intervention
from plastibench.nn.dataflow import trace
from plastibench.nn.network import Network
from plastibench.nn.units import tied_parameters
from tests.support.networks import changed, drawn, state

WORDS = 12


class Language(nn.Module):
    """Predict the next word; a norm precedes the tied output layer."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, 8)
        self.inner, self.out, self.norm = nn.Linear(8, 16), nn.Linear(16, 8), nn.LayerNorm(8)
        self.transform = nn.Linear(8, 8)
        self.head = nn.Linear(8, WORDS)
        self.head.weight = self.words.weight

    def forward(self, words: Tensor) -> Tensor:
        x = self.words(words)
        x = x + self.out(F.relu(self.inner(x)))
        return self.head(self.norm(F.relu(self.transform(x))))


def loss(module: nn.Module, batch: TensorDict) -> Tensor:
    return F.cross_entropy(module(batch["word"]).flatten(0, 1), batch["next"].flatten())


def language() -> tuple[Network, TensorDict]:
    module = drawn(Language)
    generator = torch.Generator().manual_seed(0)
    drawn_words = [torch.randint(WORDS, (32, 4), generator=generator) for _ in range(2)]
    batch = TensorDict(dict(zip(("word", "next"), drawn_words, strict=True)), batch_size=[32])
    return Network(module, torch.optim.AdamW(module.parameters(), lr=1e-3), loss, fresh=Language), batch


def made(name: str, **options: object) -> Intervention:
    entry = interventions[name]
    return build(entry.load(), {**entry.defaults, **options}, name)


def test_tied_weight_is_found_and_shared_module_is_not() -> None:
    module = Language()
    module.again = module.inner
    assert tied_parameters(module) == {module.words.weight}


def test_units_read_by_a_tied_layer_are_not_hidden_units() -> None:
    network, batch = language()
    assert {unit.name: unit.hidden for unit in trace(network, batch)} == {
        "inner": True, "out": False, "transform": False, "norm": False, "head": False
    }  # fmt: skip


@pytest.mark.parametrize(
    "name",
    [
        *("rnr", "redo", "regrama", "low-gradient-quantile", "reset-mlp", "reset-linear", "dash"),
        *("calibrated-partial-resets", "knowledge-evolution", "reset-layernorm+recouple"),
    ],
)
def test_tied_embedding_is_kept_and_other_layers_change(name: str) -> None:
    network, batch = language()
    method = made(name)
    method.prepare(network)
    before = state(network.module)
    method.intervene(network, batch)
    moved = changed(before, network.module)
    assert moved
    assert not moved & {"words.weight", "head.weight"}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("continual-backprop", {"rate": 0.2, "maturity": 1}),
        ("weight-clipping", {"kappa": 0.01}),
        ("neuroplastic-expansion", {"every": 2}),
        ("parseval", {"strength": 0.1}),
    ],
)
def test_tied_embedding_moves_as_without_the_method(name: str, options: dict[str, object]) -> None:
    network, batch = language()
    plain = copy.deepcopy(network)
    method = made(name, **options)
    method.prepare(network)
    for each in (network, plain):
        for _ in range(4):
            assert each.optimizer is not None
            each.optimizer.zero_grad()
            found = each.module.head(each.module.words.weight).square().mean()  # depends on the embedding only
            extra = method.penalty(each, batch) if each is network else None
            (found if extra is None else found + extra).backward()
            if each is network:
                method.before_update(each)
            each.optimizer.step()
            if each is network:
                method.after_update(each)
    torch.testing.assert_close(network.module.words.weight, plain.module.words.weight)


def test_tied_output_layer_is_not_reset_alone() -> None:
    network, batch = language()
    before = state(network.module)
    made("reset-linear").intervene(network, batch)
    assert not torch.equal(network.module.head.bias, before["head.bias"])
    network.module.head.bias = None
    with pytest.raises(UserError, match="'head' matches no parameter"):
        made("reset-head").intervene(network, batch)


@pytest.mark.parametrize("name", ["parseval", "weight-clipping"])
def test_network_of_unknown_layers_is_a_user_error(name: str) -> None:
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 4))
            self.norm = nn.LayerNorm(4)

    network = Network(Bare(), None, loss)
    with pytest.raises(UserError, match=r"Bare has no .*Linear or Conv2d"):
        made(name).prepare(network)
