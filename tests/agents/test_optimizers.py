"""The optimizer as an option: the same steps as PyTorch's, exact resume, and groups that survive a rebuild."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor, nn

from plastibench.agents.classifier import Classifier
from plastibench.agents.optimizers import NAMES, OptimizerOptions, grouping, make_optimizer
from plastibench.config.errors import UserError
from plastibench.config.options import build
from plastibench.config.registry import agents
from plastibench.config.spec import RunSpec
from plastibench.envs.task_stream import TaskStream
from plastibench.envs.task_stream_config import make_task_stream
from plastibench.interventions.plasticity_injection import PlasticityInjection
from plastibench.training.learner import Learner
from tests.support.rl import make_agent, tiny_rl, transitions
from tests.support.runs import Stopped, assert_same_run, crash_at, go

OWN = "tests.support.own_optimizer:Signs"
ALL = [*NAMES, OWN]


@pytest.fixture(scope="module")
def env() -> TaskStream:
    return make_task_stream("cl-digits", train_size=40, augment="none")


def classifier(env: TaskStream, name: str = "mlp", **options: Any) -> Classifier:
    size: dict[str, Any] = {"mlp": {"width": 8}, "vit-nano": {"depth": 1, "dim": 16}}[name]
    entry = agents[name]
    return build(entry.load(), {**entry.defaults, **size, **options}, name).build(env, 0, torch.device("cpu"))


def batch(env: TaskStream, seed: int = 0) -> TensorDict:
    images, labels = torch.from_numpy(env.dataset.train_images), torch.from_numpy(env.dataset.train_labels)
    chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:16]
    return TensorDict({"image": images[chosen], "label": labels[chosen]}, batch_size=[16])


def weights(module: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in module.parameters()]


def assert_equal(one: list[Tensor], other: list[Tensor]) -> None:
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def reference(name: str, module: nn.Module, momentum: float | None) -> list[torch.optim.Optimizer]:
    """The optimizers that a user would create."""
    more = {} if momentum is None else {"momentum": momentum}
    if name == OWN:
        from tests.support.own_optimizer import Signs

        return [Signs(module.parameters(), lr=0.01, **more)]
    if name == "muon":
        matrices = [p for p in module.parameters() if p.ndim == 2]
        rest = [p for p in module.parameters() if p.ndim != 2]
        scale: Any = {"adjust_lr_fn": "match_rms_adamw", "weight_decay": 0.0}
        return [torch.optim.Muon(matrices, lr=0.01, **scale, **more), torch.optim.AdamW(rest, lr=0.01, weight_decay=0)]
    kind = {each.__name__.lower(): each for each in vars(torch.optim).values() if isinstance(each, type)}[name]
    decay = {} if name == "rprop" else {"weight_decay": 0.0}
    return [kind(module.parameters(), lr=0.01, **decay, **more)]


@pytest.mark.parametrize(
    ("name", "momentum"), [*((name, None) for name in ALL), ("sgd", 0.7), ("rmsprop", 0.7), ("muon", 0.7), (OWN, 0.7)]
)
def test_steps_are_those_of_the_optimizer(env: TaskStream, name: str, momentum: float | None) -> None:
    agent = classifier(env, lr=0.01, optimizer=name, momentum=momentum, clip=0.0)
    module = copy.deepcopy(agent.networks["classifier"].module)
    optimizers = reference(name, module, momentum)
    agent.begin_task(10)
    for seed in range(4):
        agent.update(batch(env, seed))
        data = batch(env, seed)
        module.zero_grad()
        nn.functional.cross_entropy(module(agent.normalize(data["image"])), data["label"]).backward()
        for optimizer in optimizers:
            optimizer.step()
    for found, expected in zip(agent.networks["classifier"].module.parameters(), module.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["adamw", None])
def test_the_default_is_adamw_and_adds_nothing_to_a_spec(env: TaskStream, name: str | None) -> None:
    one, other = classifier(env, "vit-nano"), classifier(env, "vit-nano", optimizer=name, decay="all")
    for seed, agent in itertools.product(range(3), (one, other)):
        agent.begin_task(3)
        agent.update(batch(env, seed))
    assert_equal(*(weights(agent.networks["classifier"].module) for agent in (one, other)))
    for made in (RunSpec.make("cl-digits", "vit-nano"), RunSpec.make("rl-cartpole", "dqn-mlp")):
        assert not {"optimizer", "momentum", "decay", "restart_optimizer"} & set(made.agent[1])
    assert "weight_decay" not in RunSpec.make("rl-cartpole", "sac-mlp").agent[1]


@pytest.mark.parametrize("name", ["adamw", "muon", "sgd"])
def test_decay_of_matrices_leaves_everything_else(env: TaskStream, name: str) -> None:
    module = classifier(env, "vit-nano").networks["classifier"].module
    before = dict(zip([n for n, _ in module.named_parameters()], weights(module), strict=True))
    options = OptimizerOptions(optimizer=name, decay="matrices")
    optimizer = make_optimizer(options, module, "adamw", lr=0.1, weight_decay=0.5)
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for key, parameter in module.named_parameters():
        matrix = parameter.ndim in (2, 4)
        assert torch.equal(parameter, before[key]) != (matrix and bool(before[key].any())), key
        if matrix:
            torch.testing.assert_close(parameter.detach(), 0.95 * before[key])
    assert module.pos_embed.ndim == 3  # a position embedding is no matrix, although it has more than one axis


@pytest.mark.parametrize("name", ALL)
def test_resume_in_mid_task_is_bit_identical(env: TaskStream, name: str) -> None:
    options: dict[str, Any] = {"optimizer": name, "restart_optimizer": False, "lr": 0.01}
    agents_ = [classifier(env, **options) for _ in range(2)]
    for agent in agents_[:1]:
        agent.begin_task(20)
        for seed in range(3):
            agent.update(batch(env, seed))
        agent.begin_task(20)
        agent.update(batch(env, 3))
    agents_[1].load_state_dict(copy.deepcopy(agents_[0].state_dict()))
    for agent, seed in itertools.product(agents_, range(4, 7)):
        agent.update(batch(env, seed))
    assert_equal(*(weights(agent.networks["classifier"].module) for agent in agents_))


@pytest.mark.parametrize("name", ALL)
def test_a_restart_forgets_and_no_restart_keeps_the_state(env: TaskStream, name: str) -> None:
    def second_task(restart: bool | None) -> list[Tensor]:
        agent = classifier(env, optimizer=name, restart_optimizer=restart, lr=0.01)
        network = agent.networks["classifier"]
        agent.begin_task(20)
        before = weights(network.module)
        for seed in range(3):
            agent.update(batch(env, seed))
        agent.begin_task(20)
        with torch.no_grad():  # the same weights again: only the state differs
            for parameter, value in zip(network.module.parameters(), before, strict=True):
                parameter.copy_(value)
        for seed in range(2):
            agent.update(batch(env, seed))
        return weights(network.module)

    fresh = classifier(env, optimizer=name, lr=0.01)
    fresh.begin_task(20)
    for seed in range(2):
        fresh.update(batch(env, seed))
    assert_equal(second_task(None), weights(fresh.networks["classifier"].module))
    assert_equal(second_task(True), second_task(None))
    kept, renewed = second_task(False), second_task(True)
    if name not in ("sgd", "asgd"):  # without momentum they have no state that matters
        assert not all(torch.equal(a, b) for a, b in zip(kept, renewed, strict=True))


@pytest.mark.sample(1)
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("muon", {"momentum": 0.8, "restart_optimizer": False}),
        ("sgd", {"momentum": 0.9, "restart_optimizer": False}),
        ("adamw", {"decay": "matrices", "weight_decay": 0.1, "restart_optimizer": False}),
        (OWN, {}),
    ],
)
def test_an_interrupted_run_ends_like_an_uninterrupted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, options: dict[str, Any]
) -> None:
    spec = RunSpec.make(
        "relabel-digits",
        "mlp",
        "redo+plasticity-injection",
        env_options={"stop_after": 3, "epochs": 2, "train_size": 40},
        agent_options={"width": 8, "batch_size": 20, "optimizer": name, **options},
        device="cpu",
        representative=32,
    )
    go(spec, tmp_path / "one")
    crash_at(monkeypatch, 7)
    with pytest.raises(Stopped):
        go(spec, tmp_path / "other", checkpoint_seconds=0)
    go(spec, tmp_path / "other")
    assert_same_run(tmp_path / "one" / spec.id, tmp_path / "other" / spec.id)


@pytest.mark.parametrize(("name", "decay"), [("muon", None), ("muon", "matrices"), ("adamw", "matrices")])
def test_rebuilt_parameters_join_the_groups_of_their_kind(env: TaskStream, name: str, decay: str | None) -> None:
    agent = classifier(env, optimizer=name, decay=decay, weight_decay=0.1)
    network = agent.networks["classifier"]
    agent.update(batch(env))
    PlasticityInjection().intervene(network, batch(env))
    assert network.optimizer is not None
    expected = grouping(agent.config)
    assert expected is not None
    found = [[id(p) for p in group["params"]] for group in network.optimizer.param_groups]
    assert found == [[id(p) for p in group] for group in expected(network.module)]
    agent.update(batch(env))  # Muon refuses vectors


@pytest.mark.parametrize("name", ["muon", "sgd", OWN])
def test_sac_learns_its_temperature_with_every_optimizer(name: str) -> None:
    options: dict[str, Any] = {"optimizer": name, "lr": 0.01, "clip": 1e-6, "momentum": 0.5}
    agent, other = (make_agent("sac-mlp", "rl-pendulum", **options) for _ in range(2))
    for seed in range(3):
        agent.update(transitions("rl-pendulum", seed=seed))
    assert abs(agent._log_temperature.item()) > 1e-3  # it is not clipped with the actor
    other.load_state_dict(copy.deepcopy(agent.state_dict()))
    for seed, each in itertools.product(range(3, 5), (agent, other)):
        each.update(transitions("rl-pendulum", seed=seed))
    assert torch.equal(agent._log_temperature, other._log_temperature)
    for role, network in agent.networks.items():
        assert_equal(weights(network.module), weights(other.networks[role].module))
    for network in agent.networks.values():
        assert network.optimizer.state
    agent.begin_task()
    assert agent.networks["actor"].optimizer.state
    renewed = make_agent("sac-mlp", "rl-pendulum", **options, restart_optimizer=True)
    renewed.update(transitions("rl-pendulum"))
    renewed.begin_task()
    assert not renewed.networks["actor"].optimizer.state
    assert renewed.networks["actor"].optimizer.param_groups[-1]["params"][0] is renewed._log_temperature


def test_rl_optimizers_restart_at_task_boundaries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bandit: dict[str, Any] = {"tasks": 2, "steps": 160, "evaluate_every": 160, "images": 20, "evaluation_episodes": 8}
    spec = tiny_rl(
        env="rl-bandit-digits",
        agent_options={"optimizer": "rmsprop", "momentum": 0.5, "restart_optimizer": True, "weight_decay": 0.01},
        env_options={**bandit, "max_episode_steps": 0},
    )
    go(spec, tmp_path / "one")
    crash_at(monkeypatch, 55, Learner, "learn")
    with pytest.raises(Stopped):
        go(spec, tmp_path / "other", checkpoint_seconds=0)
    go(spec, tmp_path / "other")
    assert_same_run(tmp_path / "one" / spec.id, tmp_path / "other" / spec.id)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"optimizer": "adamv"}, "unknown optimizer 'adamv'; did you mean 'adam'?"),
        ({"optimizer": "lbfgs"}, "unknown optimizer 'lbfgs'"),
        ({"optimizer": "adam", "momentum": 0.9}, "optimizer adam has no momentum; leave it out: --agent.momentum"),
        ({"optimizer": "rprop", "weight_decay": 0.1}, "optimizer rprop has no weight-decay; set it to 0"),
        ({"optimizer": OWN, "weight_decay": 0.1}, "has no weight-decay; set it to 0"),
        ({"decay": "matrices"}, "decay has no effect without weight decay"),
        ({"optimizer": "no_such_module:A"}, r"cannot import no_such_module \(ModuleNotFoundError"),
        ({"optimizer": "tests.support.own_optimizer:Sings"}, "has no 'Sings'; did you mean 'Signs'?"),
        ({"optimizer": "tests.support.own_optimizer:NeedsClosure"}, "cannot be used .TypeError.*without a closure"),
        ({"optimizer": "tests.support.own_optimizer:OwnState"}, "cannot be used .*tensors and numbers"),
        ({"optimizer": "tests.support.own_optimizer:function"}, "int is not a torch.optim.Optimizer"),
    ],
)
def test_wrong_optimizers_are_one_line(env: TaskStream, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        classifier(env, **options)
    assert "\n" not in str(caught.value)
