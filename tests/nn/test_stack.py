"""A stack of networks makes the same updates as each network by itself."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn

from plastibench.interventions.attach import Attached
from plastibench.interventions.base import Intervention
from plastibench.nn.network import Network
from plastibench.nn.stack import NetworkStack, stackable

COUNT, BATCH = 5, 12


def loss_of(module: nn.Module, batch: TensorDictBase) -> Tensor:
    return F.cross_entropy(module(batch["x"]), batch["y"])


def module(seed: int, bias: bool = True) -> nn.Module:
    torch.manual_seed(seed)
    inner = nn.Sequential(nn.Linear(8, 16, bias=bias), nn.Tanh())
    return nn.Sequential(nn.Flatten(), nn.Linear(6, 8), nn.ReLU(), inner, nn.Linear(16, 4))


def batches(step: int) -> list[TensorDict]:
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(COUNT, BATCH, 2, 3, generator=generator)
    y = torch.randint(4, (COUNT, BATCH), generator=generator)
    return [TensorDict({"x": x[s], "y": y[s]}, batch_size=[BATCH]) for s in range(COUNT)]


def together(networks: list[Network], step: int) -> Tensor:
    members = [stackable(network) for network in networks]
    assert all(members)
    stack = NetworkStack([member for member in members if member is not None])
    drawn = batches(step)
    logits = stack(torch.stack([batch["x"] for batch in drawn]))
    losses = torch.stack([F.cross_entropy(own, batch["y"]) for own, batch in zip(logits, drawn, strict=True)])
    return stack.update(losses, lambda index: drawn[index])


def check(make: Callable[[int], Network], attach: Callable[[Network], Any] = lambda network: None) -> None:
    """Update networks together and copies of them one by one; compare weights, optimizer states and norms."""
    stacked, single = [make(seed) for seed in range(COUNT)], [make(seed) for seed in range(COUNT)]
    for network in (*stacked, *single):
        attach(network)
    for step in range(6):
        norms = together(stacked, step)
        for number, (network, batch) in enumerate(zip(single, batches(step), strict=True)):
            norm = network.update(loss_of(network.module, batch), batch)
            torch.testing.assert_close(norms[number], norm)
    for one, other in zip(stacked, single, strict=True):
        assert one.optimizer is not None and other.optimizer is not None
        for mine, theirs in zip(one.module.parameters(), other.module.parameters(), strict=True):
            torch.testing.assert_close(mine, theirs)
            for name, value in one.optimizer.state[mine].items():
                torch.testing.assert_close(value, other.optimizer.state[theirs][name])


def network(seed: int, clip: float = 0.5, optimizer: type = torch.optim.AdamW, bias: bool = True, **options: Any):
    made = module(seed, bias)
    return Network(made, optimizer(made.parameters(), **{"lr": 0.01, **options}), loss_of, clip=clip)


@pytest.mark.parametrize(
    "make",
    [
        lambda seed: network(seed, fused=True),
        lambda seed: network(seed, fused=True, bias=False),
        lambda seed: network(seed, fused=True, clip=0.0),
        lambda seed: network(seed, fused=True, clip=0.1 * seed),  # 0: not clipped
        lambda seed: network(seed, fused=True, lr=0.01 * (1 + seed % 2), weight_decay=0.1),
        lambda seed: network(seed, optimizer=torch.optim.SGD, momentum=0.9),
        lambda seed: network(seed, optimizer=torch.optim.AdamW if seed % 2 else torch.optim.Adam),
    ],
    ids=["adamw", "no bias", "no clip", "mixed clip", "mixed lr", "sgd", "mixed optimizers"],
)
def test_same_as_each_network_by_itself(make: Callable[[int], Network]) -> None:
    check(make)


class Busy(Intervention):
    """Uses every hook around an update."""

    def penalty(self, network: Network, batch: TensorDictBase) -> Tensor:
        return 0.1 * network.module(batch["x"]).square().mean()

    def before_update(self, network: Network) -> None:
        for parameter in network.module.parameters():
            assert parameter.grad is not None
            parameter.grad.mul_(0.5)

    def after_update(self, network: Network) -> None:
        with torch.no_grad():
            network.module[1].weight[0].zero_()  # type: ignore[index, union-attr, operator]


def test_hooks_of_each_network() -> None:
    check(lambda seed: network(seed, fused=True), lambda made: Attached(Busy(), made))
    check(lambda seed: network(seed, fused=True, clip=0.0), lambda made: Attached(Busy(), made))


class Constant(Intervention):
    """A penalty that depends on no parameter."""

    def penalty(self, network: Network, batch: TensorDictBase) -> Tensor:
        return torch.ones(())


def test_constant_penalty() -> None:
    check(lambda seed: network(seed, fused=True), lambda made: Attached(Constant(), made))


def test_only_the_networks_with_a_hook_see_it() -> None:
    plain, hooked = network(0, fused=True), network(0, fused=True)
    Attached(Busy(), hooked)
    together([plain, hooked, *(network(seed, fused=True) for seed in range(2, COUNT))], 0)
    assert bool((plain.module[1].weight[0] != 0).all())  # type: ignore[index]
    assert bool((hooked.module[1].weight[0] == 0).all())  # type: ignore[index]


def test_a_diverged_network_does_not_affect_the_others() -> None:
    stacked, single = [network(seed, fused=True) for seed in range(COUNT)], network(1, fused=True)
    with torch.no_grad():
        stacked[0].module[1].weight.fill_(float("nan"))  # type: ignore[index, operator, union-attr]
    for step in range(3):
        together(stacked, step)
        batch = batches(step)[1]
        single.update(loss_of(single.module, batch), batch)
    for mine, theirs in zip(stacked[1].module.parameters(), single.module.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize(
    "change",
    [
        lambda made: made.append(nn.LayerNorm(4)),
        lambda made: made.append(nn.Dropout(0.1)),
        lambda made: made[1].requires_grad_(False),
        lambda made: made[3][0].register_forward_hook(lambda *_: None),
        lambda made: made.register_forward_pre_hook(lambda *_: None),
        lambda made: nn.utils.parametrizations.weight_norm(made[1]),
        lambda made: setattr(made[0], "start_dim", 0),
    ],
    ids=["norm", "dropout", "frozen", "hook", "hook of the root", "weight norm", "flatten"],
)
def test_what_cannot_be_stacked(change: Callable[[Any], Any]) -> None:
    made = module(0)
    assert stackable(Network(made, torch.optim.AdamW(made.parameters()), loss_of)) is not None
    change(made)
    trained = [p for p in made.parameters() if p.requires_grad]
    assert stackable(Network(made, torch.optim.AdamW(trained), loss_of)) is None


def test_a_network_that_has_changed_is_noticed() -> None:
    def described() -> tuple[Network, Any]:
        made = network(0)
        found = stackable(made)
        assert found is not None and found.is_current()
        return made, found

    made, found = described()
    made.module[1].register_forward_hook(lambda *_: None)  # type: ignore[index, operator, union-attr]
    assert not found.is_current()
    made, found = described()
    made.optimizer = torch.optim.SGD(made.module.parameters(), lr=0.1)
    assert not found.is_current()
    made, found = described()
    made.rebuild(lambda root: setattr(root, "1", nn.Linear(6, 8)))
    assert not found.is_current() and (again := stackable(made)) is not None and again.key == found.key


def test_keys_of_different_architectures_differ() -> None:
    def key(made: nn.Module) -> Any:
        found = stackable(Network(made, torch.optim.AdamW(made.parameters()), loss_of))
        assert found is not None
        return found.key

    wide = copy.deepcopy(module(0))
    wide[4] = nn.Linear(16, 5)  # type: ignore[operator]
    gelu, tanh = nn.Sequential(nn.Linear(2, 2), nn.GELU()), nn.Sequential(nn.Linear(2, 2), nn.GELU("tanh"))
    assert key(module(0)) == key(module(1))
    assert len({key(module(0)), key(module(0, bias=False)), key(wide), key(gelu), key(tanh)}) == 5
