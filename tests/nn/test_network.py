"""Architectures that change: who owns what afterwards, what fresh draws are, and what followers become."""

from __future__ import annotations

import copy

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor, nn

from plastibench.interventions.attach import apply
from plastibench.nn.network import Network, eval_mode
from tests.support.networks import agent_builder, images, logits, loss, network_of, state, train
from tests.support.rl import make_agent, transitions

MLP = agent_builder("mlp", width=8)


def replace_first(module: nn.Module) -> None:
    """The first layer becomes two; draws at random, keeps nothing."""
    module.set_submodule("1", nn.Sequential(nn.Linear(64, 4), nn.Linear(4, 8)))


def freeze_first(module: nn.Module) -> None:
    module[1].requires_grad_(False)


def test_the_optimizer_steps_on_what_is_there_in_the_modules_order_and_forgets_what_is_gone() -> None:
    network, batch = network_of(MLP, lr=1e-2), images()
    train(network, batch)
    kept = {id(p): network.optimizer.state[p]["exp_avg"].clone() for p in network.module[3].parameters()}
    network.rebuild(replace_first)
    parameters = list(network.module.parameters())
    assert [id(p) for p in network.optimizer.param_groups[0]["params"]] == [id(p) for p in parameters]
    assert {id(p) for p in network.optimizer.state} == {id(p) for p in parameters[4:]}
    assert all(torch.equal(network.optimizer.state[p]["exp_avg"], kept[id(p)]) for p in network.module[3].parameters())
    before = state(network.module)
    train(network, batch, 1)
    assert all(not torch.equal(before[n], p) for n, p in network.module.named_parameters())


def test_groups_stay_apart_and_parameters_of_others_are_kept() -> None:
    module, other = MLP(), nn.Parameter(torch.zeros(3))
    groups = [{"params": [module[5].bias, module[5].weight], "lr": 0.5}, {"params": [other, *module[1].parameters()]}]
    network = Network(module, torch.optim.SGD(groups, lr=0.1), loss, fresh=MLP)
    network.rebuild(replace_first)
    network.rebuild(lambda module: module[5].bias.requires_grad_(False))
    owned = [[id(p) for p in group["params"]] for group in network.optimizer.param_groups]
    new = [id(p) for p in module[1].parameters()]
    assert owned == [[*new, id(module[5].weight)], [id(other)]]  # layer 3 was left out on purpose, and stays out
    assert network.optimizer.param_groups[0]["lr"] == 0.5


def test_frozen_parameters_leave_the_optimizer_with_state_and_gradient() -> None:
    network, batch = network_of(MLP, lr=1e-2), images()
    train(network, batch)
    network.loss(network.module, batch).backward()
    network.rebuild(freeze_first)
    assert all(p.grad is None and p not in network.optimizer.state for p in network.module[1].parameters())
    assert all(p.grad is not None for p in network.module[3].parameters())
    assert len(network.optimizer.param_groups[0]["params"]) == 4
    assert not any(p.requires_grad for p in network.fresh()[1].parameters())


@pytest.mark.parametrize("with_builder", [True, False])
def test_fresh_draws_have_every_change_and_differ(with_builder: bool) -> None:
    network = network_of(MLP, fresh=with_builder)
    network.rebuild(replace_first)
    network.rebuild(lambda module: module.append(nn.Linear(10, 10)))
    one, two = network.fresh(), network.fresh()
    assert state(one).keys() == state(two).keys() == state(network.module).keys()
    assert len(one) == 7 and isinstance(one[1], nn.Sequential)
    assert all(not torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert all(not torch.equal(a, b) for a, b in zip(one.parameters(), network.module.parameters(), strict=True))


@pytest.mark.parametrize("with_builder", [True, False])
def test_a_change_may_draw_modules_of_the_architecture_before_it(with_builder: bool) -> None:
    network = network_of(MLP, fresh=with_builder)
    for count in (1, 2):
        draw = network.builder()

        def change(module: nn.Module, draw=draw) -> None:
            module.append(nn.Sequential(*draw()[6:], nn.Linear(10, 10)))

        network.rebuild(change)
        assert len(network.module) == len(network.fresh()) == 6 + count
    assert [len(extra) for extra in network.fresh()[6:]] == [len(extra) for extra in network.module[6:]] == [1, 2]


def test_a_rebuild_draws_from_the_networks_generator_alone() -> None:
    outcomes = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        network = network_of(MLP)
        before = torch.get_rng_state()
        network.rebuild(replace_first)
        assert torch.equal(torch.get_rng_state(), before)
        outcomes.append(state(network.module))
    assert all(torch.equal(outcomes[0][name], outcomes[1][name]) for name in outcomes[0])


def test_replicas_draw_the_same_weights_keep_their_own_and_stay_frozen() -> None:
    network, replica = network_of(MLP, lr=1e-2), network_of(MLP, seed=1)
    replica.module.requires_grad_(False)
    network.add_replica(replica)
    own = state(replica.module)
    network.rebuild(replace_first)
    mine, its = state(network.module), state(replica.module)
    assert mine.keys() == its.keys()
    assert all(torch.equal(mine[name], its[name]) for name in mine if name.startswith("1."))
    assert all(torch.equal(own[name], its[name]) for name in own if not name.startswith("1."))
    assert not any(p.requires_grad for p in replica.module.parameters())
    assert all(p.requires_grad for p in network.module.parameters())
    assert state(replica.fresh()).keys() == its.keys()
    replica.rebuild(freeze_first)  # not by itself
    assert state(replica.module).keys() == its.keys()
    assert len(replica._changes) == 1


def test_a_compiled_forward_follows_the_change() -> None:
    network, batch = network_of(MLP), images()
    compiled = torch.compile(network.module, backend="eager")
    compiled(batch["image"])
    network.rebuild(replace_first)
    torch.testing.assert_close(compiled(batch["image"]), logits(network.module, batch))


def test_an_agent_learns_with_a_changed_network_and_its_target_follows() -> None:
    learner = make_agent("dqn-mlp", target_every=1, tau=0.5)
    network, target = learner.networks["critic"], learner.targets["critic"]
    for seed in range(2):
        learner.update(transitions("rl-cartpole", seed=seed))

    def widen(module: nn.Module) -> None:
        module.body.append(nn.Linear(16, 16))

    network.rebuild(widen)
    new, old = network.module.body[-1].weight, target.module.body[-1].weight
    before = new.detach().clone()
    assert torch.equal(new, old)
    learner.update(transitions("rl-cartpole", seed=3))
    assert not torch.equal(new, before)
    torch.testing.assert_close(old, (before + new) / 2)
    other = make_agent("dqn-mlp", target_every=1, tau=0.5)
    other.networks["critic"].rebuild(widen)
    other.load_state_dict(copy.deepcopy(learner.state_dict()))
    for each in (learner, other):
        each.update(transitions("rl-cartpole", seed=4))
    assert all(torch.equal(a, b) for a, b in zip(network.module.parameters(),
               other.networks["critic"].module.parameters(), strict=True))  # fmt: skip


@pytest.mark.parametrize("seed", [0, 1, 42])
def test_interventions_draw_other_numbers_than_the_initialization(seed: int) -> None:
    """With the same numbers, Knowledge Evolution reinitializes only the weights that were drawn last in a uniform."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4))
    before = model[0].weight.detach().clone()
    apply("knowledge-evolution", model, TensorDict({"x": torch.zeros(4, 64)}, [4]), split=0.5)
    moved = model[0].weight != before
    assert 0.45 < float(moved.float().mean()) < 0.55
    assert 0.45 < float((before[moved] > 0).float().mean()) < 0.55


class Merging(nn.Module):
    """Merges a low-rank update into its weight in eval mode and takes it out in train mode, as LoRA layers do."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.update = nn.Parameter(torch.ones(3, 3)), nn.Parameter(torch.ones(3, 3))
        self.merged = False

    def train(self, mode: bool = True) -> Merging:
        super().train(mode)
        if self.merged == mode:
            self.weight.data += -self.update if mode else self.update
            self.merged = not mode
        return self

    def forward(self, x: Tensor) -> Tensor:
        return x @ (self.weight if self.merged else self.weight + self.update)


class Caching(nn.Module):
    """Caches a function of its weight in eval mode, with the graph of the pass that computed it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.cache: Tensor | None = None

    def train(self, mode: bool = True) -> Caching:
        super().train(mode)
        if mode:
            self.cache = None
        return self

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            return x * self.weight.exp()
        if self.cache is None:
            self.cache = self.weight.exp()
        return x * self.cache


@pytest.mark.parametrize("training", [True, False])
def test_eval_mode_leaves_nothing_merged_or_cached(training):
    module = nn.Sequential(Merging(), Caching()).train(training)
    module[1].eval()
    weight, x = module[0].weight.detach().clone(), torch.ones(2, 3)
    with torch.no_grad():
        expected = module(x)
    for _ in range(2):
        with eval_mode(module):
            for _ in range(2):  # a graph in the cache could be used only once
                torch.autograd.grad(module(x).sum(), module[1].weight)
    assert torch.equal(module[0].weight, weight) and module[0].merged == (not training)
    assert [child.training for child in module] == [training, False]
    with torch.no_grad():
        torch.testing.assert_close(module(x), expected)
        module[1].weight.fill_(2.0)
        with eval_mode(module):
            torch.testing.assert_close(module(x), expected * torch.tensor(1.0).exp())
