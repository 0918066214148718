from __future__ import annotations

import copy

import pytest
import torch
from tensordict import TensorDict
from torch import nn
from torch.utils.checkpoint import checkpoint

from plastibench.config.errors import UserError
from plastibench.interventions.attach import attach
from plastibench.nn.network import Network
from plastibench.utils.notices import print_once
from tests.support.networks import drawn


def build(width: int = 8) -> nn.Sequential:
    return nn.Sequential(nn.Sequential(nn.Linear(4, width), nn.ReLU()), nn.Linear(width, 3))


def loss(module: nn.Module, batch: TensorDict) -> torch.Tensor:
    return module(batch["x"]).square().mean()


BATCH = TensorDict({"x": torch.ones(4, 4)}, [4])


def without_bias() -> nn.Module:
    module = build()
    module[1].bias = None
    return module


@pytest.mark.parametrize("name", ["reset", "rnr", "shrink-perturb"])
def test_a_builder_that_does_not_build_a_new_module_is_refused(name: str) -> None:
    module = drawn(build)
    shared = build()
    shared[1] = module[1]
    before = copy.deepcopy(module.state_dict())
    builders = {
        "nothing would be reinitialized": [
            lambda: module,
            lambda: shared,
            lambda: nn.Sequential(module[0], build()[1]),
        ],
        r"lacks 1.bias \(1 name differs\)": [without_bias],
        r"lacks 0.0.weight and it has an additional 0.weight": [
            lambda: nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 3))
        ],
        r"0.0.weight has shape \(6, 4\) instead of \(8, 4\)": [lambda: build(6)],
        "0.0.weight has no shape yet": [
            lambda: nn.Sequential(nn.Sequential(nn.LazyLinear(8), nn.ReLU()), nn.LazyLinear(3))
        ],
    }
    for message, makers in builders.items():
        for make in makers:
            network = Network(module, None, loss, fresh=make)
            with pytest.raises(UserError, match=message):
                attach(name, network).intervene(BATCH, expect_steps=False)
            assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())


def test_names_of_wrappers_are_understood() -> None:
    """The network, a part of it, or what the builder returns is compiled or data-parallel."""
    plain, part = drawn(build), drawn(build)
    part[0] = torch.compile(part[0])
    wholes = {"plain": plain, "compiled": torch.compile(drawn(build)), "parallel": nn.DataParallel(drawn(build))}
    draws = torch.Generator().manual_seed(0)
    for module in (*wholes.values(), part):
        for make in (build, lambda: torch.compile(build()), lambda: nn.DataParallel(build()), part_compiled):
            draws = torch.Generator().manual_seed(draws.initial_seed() + 1)
            network = Network(module, None, loss, fresh=make, generator=draws)
            before = [p.detach().clone() for p in module.parameters()]
            report = attach("reset", network).intervene(BATCH, expect_steps=False)
            assert report.parameters == sum(p.numel() for p in module.parameters())
            assert not any(torch.equal(a, b) for a, b in zip(module.parameters(), before, strict=True))


def part_compiled() -> nn.Module:
    module = build()
    module[0] = torch.compile(module[0])
    return module


def test_a_rebuilt_network_is_compared_with_its_first_architecture() -> None:
    network = Network(drawn(build), None, loss, fresh=build)
    attach("crelu", network)
    assert network.fresh()[0][0].weight.shape == (4, 4)
    network._fresh = lambda: build(6)
    with pytest.raises(UserError, match="instead of"):
        network.fresh()


def test_a_grown_head_needs_a_builder_of_the_grown_network() -> None:
    network = Network(drawn(build), None, loss, fresh=build)
    network.module[1] = nn.Linear(8, 5)
    with pytest.raises(UserError, match="if the network has grown"):
        attach("reset", network).intervene(BATCH, expect_steps=False)
    network = Network(network.module, None, loss)
    assert attach("reset", network).intervene(BATCH, expect_steps=False).parameters == 4 * 8 + 8 + 8 * 5 + 5


class Checkpointed(nn.Module):
    """Recomputes the activations of its blocks, or not (None)."""

    def __init__(self, reentrant: bool | None) -> None:
        super().__init__()
        self.first, self.second = (
            nn.Sequential(nn.Linear(4, 16), nn.ReLU()),
            nn.Sequential(nn.Linear(16, 16), nn.ReLU()),
        )
        self.head, self.reentrant = nn.Linear(16, 3), reentrant

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in (self.first, self.second):
            x = block(x) if self.reentrant is None else checkpoint(block, x, use_reentrant=self.reentrant)
        return self.head(x)


@pytest.mark.parametrize("name", ["redo", "regrama", "rnr", "dash"])
@pytest.mark.parametrize("how", ["reentrant", "not reentrant", "compile()", "a compiled part"])
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_methods_see_through_checkpoints_and_compiled_code(how: str, name: str) -> None:
    """They give the weights that they give to the plain module."""
    generator = torch.Generator().manual_seed(0)
    batch = TensorDict({"x": torch.randn(32, 4, generator=generator)}, [32])
    plain = drawn(lambda: Checkpointed(None))
    module = drawn(lambda: Checkpointed({"reentrant": True, "not reentrant": False}.get(how)))
    if how == "compile()":
        module.compile(backend="eager")
    elif how == "a compiled part":
        module.first = torch.compile(module.first, backend="eager")
    results = []
    for each in (plain, module):
        network = Network(each, None, loss, fresh=lambda: Checkpointed(None))
        report = attach(name, network).intervene(batch, expect_steps=False)
        results.append((report.parameters, [p.detach().clone() for p in each.parameters()]))
    assert results[0][0] == results[1][0] > 0
    assert all(torch.equal(a, b) for a, b in zip(results[0][1], results[1][1], strict=True))
    assert "apply" not in vars(torch.utils.checkpoint.CheckpointFunction)  # training checkpoints as before


def copied_weights(module: nn.Module) -> nn.Module:
    fresh = build()
    fresh.load_state_dict(module.state_dict())
    return fresh


@pytest.mark.parametrize("copy_of", [copy.deepcopy, copied_weights])
def test_a_builder_that_copies_the_current_weights_is_reported(copy_of, capsys: pytest.CaptureFixture[str]) -> None:
    print_once.cache_clear()
    module = drawn(build)
    attach("reset", Network(module, None, loss, fresh=lambda: copy_of(module))).intervene(BATCH, expect_steps=False)
    assert "fresh= returns the current weights" in capsys.readouterr().err
    attach("reset", Network(module, None, loss, fresh=build)).intervene(BATCH, expect_steps=False)
    assert "fresh=" not in capsys.readouterr().err


def sharing_memory(module: nn.Module) -> nn.Module:
    fresh = build()
    for new, old in zip(fresh.parameters(), module.parameters(), strict=True):
        new.data = old.data
    return fresh


WRONG = {
    "shared memory": (sharing_memory, "nothing would be reinitialized"),
    "none": (lambda module: None, "fresh= returns None; it must return a new module"),
    "a class": (lambda module: nn.Linear, "fresh= returns <class .*>; it must return a new module"),
    "a state dict": (lambda module: module.state_dict(), "it must return a new module"),
    "a tuple": (lambda module: (build(), 1), "it must return a new module"),
    "meta device": (lambda module: build().to("meta"), "fresh= returns a module on the meta device"),
    "an error": (lambda module: build(1 // 0), r"fresh= failed: .*ZeroDivisionError"),
}


@pytest.mark.parametrize(("make", "message"), WRONG.values(), ids=WRONG.keys())
def test_a_builder_that_returns_no_new_module_is_refused(make, message: str) -> None:
    module = drawn(build)
    before = copy.deepcopy(module.state_dict())
    with pytest.raises(UserError, match=message):
        attach("reset", Network(module, None, loss, fresh=lambda: make(module))).intervene(BATCH, expect_steps=False)
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())


@pytest.mark.parametrize("fresh", [build(), lambda width: build(width)])
def test_a_builder_that_cannot_be_called_is_refused(fresh) -> None:
    with pytest.raises(UserError, match=r"fresh= failed: .*TypeError"):
        attach("reset", Network(drawn(build), None, loss, fresh=fresh)).intervene(BATCH, expect_steps=False)


def small_norm() -> nn.Module:
    norm = nn.BatchNorm1d(8)
    norm.running_mean = torch.zeros(1)
    return norm


NORMS = {
    "lacks the buffer 1.running_mean": lambda: nn.BatchNorm1d(8, track_running_stats=False),
    r"the buffer 1.running_mean has shape \(1,\) instead of \(8,\)": small_norm,
}


@pytest.mark.parametrize(("message", "norm"), NORMS.items(), ids=["missing", "shape"])
def test_a_builder_with_other_buffers_is_refused(message: str, norm) -> None:
    def make(norm: nn.Module) -> nn.Module:
        return nn.Sequential(nn.Linear(4, 8), norm, nn.ReLU(), nn.Linear(8, 3))

    network = Network(make(nn.BatchNorm1d(8)), None, loss, fresh=lambda: make(norm()))
    with pytest.raises(UserError, match=message):
        attach("reset", network).intervene(BATCH, expect_steps=False)
