"""Users who add classes or layers after `attach`: a method follows, or says in one line what has changed."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from plastibench import Intervention, attach
from plastibench.config.errors import UserError
from plastibench.config.registry import interventions
from plastibench.interventions.attach import Attached
from tests.support.networks import drawn, vector_loss, vectors

OFTEN = {
    "continual-backprop": {"rate": 0.5, "maturity": 1},
    "continual-backprop-adaptable": {"rate": 0.5, "maturity": 1},
    "self-normalized-resets": {"first": 1},
    "neuroplastic-expansion": {"every": 1},
    "calibrated-partial-resets": {"every": 2},
    "weight-clipping": {"bound": "initial"},
}


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        first, second = nn.Linear(10, 16), nn.Linear(16, 16)
        layers = {"first": first, "norm": nn.LayerNorm(16), "relu": nn.ReLU(), "second": second, "relu2": nn.ReLU()}
        self.body = nn.Sequential(OrderedDict(layers))
        self.more, self.head = nn.Identity(), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.more(self.body(x)))


def larger_head(model: Classifier) -> None:
    """Add two classes, and keep the weights of the others."""
    old, model.head = model.head, drawn(lambda: nn.Linear(16, 5), seed=1)
    with torch.no_grad():
        for new, values in zip(model.head.parameters(), old.parameters(), strict=True):
            new[:3] = values


def another_layer(model: Classifier) -> None:
    model.more = drawn(lambda: nn.Sequential(nn.Linear(16, 16), nn.ReLU()), seed=1)


CHANGES: dict[str, tuple[Callable[[Classifier], None], str]] = {
    "larger head": (larger_head, "head.weight now has shape (5, 16) instead of (3, 16)"),
    "another layer": (another_layer, "more.0.weight is new"),
}


def steps(handle: Attached, count: int = 3) -> None:
    """Train in a hand-written loop."""
    model, optimizer, batch = handle.network.module, handle.optimizer, vectors()
    for _ in range(count):
        loss = vector_loss(model, batch) + handle.penalty(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def attached(name: str | Intervention, **options: object) -> Attached:
    model = drawn(Classifier)
    return attach(name, model, torch.optim.Adam(model.parameters(), lr=1e-2), vector_loss, **options)


def changed(handle: Attached, change: Callable[[Classifier], None]) -> None:
    """Change the model, and continue with a new optimizer."""
    change(handle.network.module)
    trained = [p for p in handle.network.module.parameters() if p.requires_grad]
    handle.optimizer = torch.optim.Adam(trained, lr=1e-2)


@pytest.mark.sample(16)
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize(
    "name",
    [
        *(name for name in interventions.names() if name not in ("plasticity-injection", "rnr-attention")),
        *("layernorm+redo", "crelu+reset", "crelu+upgd", "layernorm+continual-backprop", "layernorm+ema"),
    ],
)
def test_methods_follow_a_changed_network_or_name_the_change(name, change, capsys):
    """Of the two that are left out, one replaces the head itself, and the other finds no attention here."""
    make, message = CHANGES[change]
    handle, batch = attached(name, **OFTEN.get(name, {})), vectors()
    steps(handle)
    handle.intervene(batch)
    changed(handle, make)
    if name in ("layernorm+redo", "crelu+reset"):  # fresh weights of a rebuilt architecture are known only as it was
        with pytest.raises(UserError, match="before you attach") as raised:
            handle.intervene(batch)
        assert message in str(raised.value)
    else:
        steps(handle)
        handle.intervene(batch)
        steps(handle)
        assert all(bool(value.isfinite().all()) for value in handle.evaluated.state_dict().values())
    assert "train mode" not in capsys.readouterr().err
    assert [p.shape for p in handle.evaluated.parameters()] == [p.shape for p in handle.network.module.parameters()]


@pytest.mark.parametrize("change", CHANGES)
def test_average_continues_and_starts_for_new_weights(change):
    handle = attached("ema", momentum=0.9)
    steps(handle)
    expected = {name: value.clone() for name, value in handle.evaluated.state_dict().items()}
    changed(handle, CHANGES[change][0])
    for _ in range(2):
        steps(handle, 1)
        now = handle.network.module.state_dict()
        seen = {n for n, v in now.items() if n in expected and expected[n].shape == v.shape}
        expected = {n: 0.9 * expected[n] + 0.1 * v if n in seen else v.clone() for n, v in now.items()}
    found = handle.evaluated.state_dict()
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)


def test_utilities_start_again_where_the_shape_changes():
    handle = attached("upgd", beta=0.9)
    steps(handle)
    before = handle.intervention._utility["body.first.weight"].clone()
    changed(handle, larger_head)
    steps(handle, 1)
    assert handle.intervention._counts["head.weight"] == 1 and handle.intervention._counts["body.first.weight"] == 4
    model = handle.network.module
    gradient = model.body.first.weight.grad
    assert handle.intervention._utility["head.weight"].shape == (5, 16)
    change = handle.intervention._utility["body.first.weight"] - 0.9 * before
    assert gradient is not None and bool((change != 0).any())


@pytest.mark.parametrize("name", ["continual-backprop", "self-normalized-resets"])
def test_units_are_found_again_with_what_is_known_of_them(name):
    handle = attached(name, **({"rate": 0.0} if name == "continual-backprop" else {"first": 10_000}))
    steps(handle, 4)
    count = "age" if name == "continual-backprop" else "silence"
    known = {unit: state[count].clone() for unit, state in handle.intervention._units.items()}
    changed(handle, another_layer)
    steps(handle, 1)  # finds the layers again
    watch = handle.intervention._watch
    assert [layer.name for layer in watch.hidden] == ["body.norm", "body.second", "more.0"]
    assert watch.layers[[layer.name for layer in watch.layers].index("body.second")].readers == ["more.0"]
    for unit, before in known.items():
        assert torch.equal(handle.intervention._units[unit][count], before)
    steps(handle, 2)
    assert name != "continual-backprop" or handle.intervention._units["body.second"]["age"].tolist() == [5.0] * 16
    assert name != "continual-backprop" or handle.intervention._units["more.0"]["age"].tolist() == [2.0] * 16


def test_continual_backprop_replaces_units_of_the_new_architecture():
    handle = attached("continual-backprop", rate=0.5, maturity=1)
    steps(handle, 4)
    changed(handle, larger_head)
    head = handle.network.module.head.weight
    steps(handle, 8)
    assert head.shape == (5, 16) and bool((head == 0).all(0).any())  # outgoing weights of a replaced unit


def test_new_matrices_stay_dense_under_neuroplastic_expansion():
    handle = attached("neuroplastic-expansion", every=2, sparsity=0.5)
    steps(handle, 2)
    changed(handle, larger_head)
    steps(handle, 4)
    model = handle.network.module
    assert bool((model.head.weight != 0).all()) and bool((model.body.second.weight == 0).any())
    state = handle.state_dict()
    again = attach("neuroplastic-expansion", drawn(Classifier), every=2, sparsity=0.5)
    again.load_state_dict(state)
    assert (
        again.intervention._masks.keys()
        == state["intervention"]["masks"].keys()
        == {"body.first.weight", "body.second.weight"}
    )


def test_kept_weights_stay_kept_and_new_ones_are_split():
    handle, batch = attached("knowledge-evolution", split=0.5), vectors()
    handle.intervene(batch)
    before = handle.intervention._stays["body.second"]
    larger_head(handle.network.module)
    head = handle.network.module.head.weight.detach().clone()
    handle.intervene(batch, expect_steps=False)
    stays = handle.intervention._stays
    assert torch.equal(stays["body.second"], before) and stays["head"].shape == (5, 16)
    same = handle.network.module.head.weight == head
    assert torch.equal(same, stays["head"])


def test_projection_keeps_the_norm_of_the_new_matrix():
    handle = attached("normalize-and-project")
    steps(handle, 2)
    norm = float(handle.network.module.body.first.weight.norm())
    first = handle.network.module.body.first = nn.Linear(20, 16)
    nn.init.constant_(first.weight, 7.0)
    handle.optimizer = torch.optim.SGD(handle.network.module.parameters(), lr=0.0)
    batch = vectors()
    batch["x"] = torch.cat([batch["x"], batch["x"]], 1)
    vector_loss(handle.network.module, batch).backward()
    handle.optimizer.step()
    assert norm < 5 and abs(float(first.weight.norm()) - 7 * 320**0.5) < 1e-2


@dataclass
class Anchored(Intervention):
    """A user's own pull towards the weights at the start, which knows nothing of larger heads."""

    def prepare(self, network):
        self.start = [p.detach().clone() for p in network.module.parameters()]

    def penalty(self, network, batch):
        return sum((p - s).square().sum() for p, s in zip(network.module.parameters(), self.start, strict=True))


@pytest.mark.parametrize("change", CHANGES)
def test_own_methods_that_do_not_follow_name_the_change(change):
    make, message = CHANGES[change]
    handle = attached(Anchored())
    steps(handle)
    changed(handle, make)
    with pytest.raises(UserError) as raised:
        steps(handle)
    assert f"Anchored cannot act on a network that has changed since attach: {message}" in str(raised.value)
    assert "\n" not in str(raised.value)
    handle.detach()
    steps(attach(Anchored(), handle.network.module, handle.optimizer, vector_loss))


def test_errors_of_an_unchanged_network_are_not_blamed_on_a_change():
    handle = attached(Anchored())
    handle.intervention.start.pop()
    with pytest.raises(ValueError, match="zip"):
        handle.penalty(vectors())
