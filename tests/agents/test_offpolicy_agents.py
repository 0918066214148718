"""DQN and SAC against values worked out in numpy, torch.distributions, and torchrl's own losses."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torch import Tensor, nn

from plastibench.agents.dqn import project
from plastibench.agents.images import random_shift
from plastibench.agents.offpolicy_agent import OffPolicyAgent
from plastibench.agents.sac import ContinuousSAC, DiscreteSAC
from plastibench.config.errors import UserError
from plastibench.config.options import build
from plastibench.config.registry import agents, envs
from plastibench.envs.rl_env import RLEnvironment
from plastibench.interventions.reset import Reset
from plastibench.nn.dataflow import trace

SMALL = {"hidden": (16, 16), "batch_size": 8}


def stream(name: str, **options: Any) -> RLEnvironment:
    entry = envs[name]
    return build(entry.load(), {**entry.defaults, **options}, name).make()


def agent(name: str, env: str = "rl-cartpole", **options: Any) -> Any:
    entry = agents[name]
    config = build(entry.load(), {**entry.defaults, **SMALL, **options}, name)
    return config.build(stream(env), 0, torch.device("cpu"))


def transitions(env: str, count: int = 8, seed: int = 0) -> TensorDict:
    one = stream(env)
    generator = torch.Generator().manual_seed(seed)
    shape = (count, *one.observation_shape)
    if one.num_actions:
        action = torch.randint(one.num_actions, (count,), generator=generator, dtype=torch.int32)
    else:
        action = torch.rand(count, len(one.action_low), generator=generator) * 2 - 1
    columns = {
        "observation": torch.randn(shape, generator=generator),
        "next_observation": torch.randn(shape, generator=generator),
        "action": action,
        "reward": 3 * torch.randn(count, generator=generator),
        "discount": 0.9 * (torch.rand(count, generator=generator) < 0.7),
    }
    return TensorDict(columns, batch_size=[count])


def drift(learner: OffPolicyAgent) -> None:
    """Make targets differ from networks."""
    for target in learner.targets.values():
        for number, parameter in enumerate(target.module.parameters()):
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)) * 0.3)


def outputs(module: nn.Module, *inputs: Tensor) -> np.ndarray[Any, Any]:
    with torch.no_grad():
        return module(*inputs).double().numpy()


# DQN --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("double", [True, False])
def test_td_targets_are_reward_plus_discounted_value(double: bool) -> None:
    learner, batch = agent("dqn-mlp", double=double), transitions("rl-cartpole")
    drift(learner)
    target = outputs(learner.targets["critic"].module, batch["next_observation"])
    online = outputs(learner.networks["critic"].module, batch["next_observation"])
    choice = (online if double else target).argmax(1)
    expected = batch["reward"].numpy() + batch["discount"].numpy() * target[np.arange(8), choice]
    np.testing.assert_allclose(learner.add_targets(batch)["target"].numpy(), expected, rtol=1e-5)
    assert (online.argmax(1) != target.argmax(1)).any()  # else both readings agree anyway


def test_the_loss_is_that_of_torchrl() -> None:
    from torchrl.modules import QValueActor
    from torchrl.objectives import DQNLoss

    learner, batch = agent("dqn-mlp", double=True, gamma=0.9, loss="huber"), transitions("rl-cartpole", 32)
    batch["discount"] = 0.9 * (batch["discount"] > 0)
    drift(learner)
    actor = QValueActor(
        copy.deepcopy(learner.networks["critic"].module), in_keys=["observation"], action_space="categorical"
    )
    theirs = DQNLoss(actor, action_space="categorical", loss_function="smooth_l1", double_dqn=True, delay_value=True)
    theirs.make_value_estimator(gamma=0.9)
    for parameter, own in zip(
        theirs.target_value_network_params.values(True, True),
        dict(learner.targets["critic"].module.named_parameters()).values(),
        strict=False,
    ):
        assert parameter.shape == own.shape
    flat = {".".join(key): value for key, value in theirs.target_value_network_params.items(True, True)}
    for name, own in learner.targets["critic"].module.named_parameters():
        match = next(value for key, value in flat.items() if key.endswith(name))
        match.data.copy_(own)
    following = {
        "observation": batch["next_observation"],
        "reward": batch["reward"][:, None],
        "terminated": batch["discount"][:, None] == 0,
        "done": batch["discount"][:, None] == 0,
    }
    data = TensorDict(
        {"observation": batch["observation"], "action": batch["action"].long(), "next": following}, batch_size=[32]
    )
    ours = learner._loss(learner.networks["critic"].module, learner.add_targets(batch))
    assert float(ours) == pytest.approx(float(theirs(data)["loss"]), rel=1e-5)


def test_the_distribution_is_projected_atom_by_atom_as_the_algorithm_says() -> None:
    rng = np.random.default_rng(0)
    support = np.linspace(-2, 3, 11)
    probability = rng.dirichlet(np.ones(11), 6)
    positions = rng.normal(size=(6, 1)) * 3 + 0.9 * support * rng.integers(0, 2, (6, 1))
    expected = np.zeros((6, 11))
    for row in range(6):
        for atom in range(11):
            place = (np.clip(positions[row, atom], -2, 3) + 2) / 0.5
            low, high = math.floor(place), math.ceil(place)
            if low == high:
                expected[row, low] += probability[row, atom]
            else:
                expected[row, low] += probability[row, atom] * (high - place)
                expected[row, high] += probability[row, atom] * (place - low)
    found = project(torch.tensor(probability), torch.tensor(positions), torch.tensor(support))
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-12)


@pytest.mark.parametrize("options", [{}, {"dueling": True}, {"atoms": 11}, {"atoms": 11, "dueling": True}])
def test_every_form_learns_the_values_of_a_bandit(options: dict[str, Any]) -> None:
    learner = agent("dqn-mlp", lr=3e-3, v_min=-2, v_max=2, target_every=10, **options)
    generator = torch.Generator().manual_seed(0)
    for _ in range(300):
        batch = transitions("rl-cartpole", 32, int(torch.randint(1000, (), generator=generator)))
        batch["reward"] = torch.where(batch["action"] == 1, 1.0, -1.0)
        batch["discount"] = torch.zeros(32)
        learner.update(batch)
    test = transitions("rl-cartpole", 64, 5000)["observation"]
    values = [learner.value(test, torch.full((64,), action)).mean().item() for action in (0, 1)]
    assert values == pytest.approx([-1, 1], abs=0.15)
    assert (learner.act(test, greedy=True) == 1).all()


def test_dueling_streams_are_outputs_and_no_unit_of_them_is_scored() -> None:
    learner = agent("dqn-mlp", dueling=True)
    units = trace(learner.networks["critic"], learner.add_targets(transitions("rl-cartpole")))
    assert {unit.name: unit.output for unit in units} == {
        "body.0": False,
        "body.2": False,
        "advantage": True,
        "value": True,
    }


def test_the_share_of_random_actions_declines_linearly() -> None:
    learner = agent("dqn-mlp", epsilon=0.1, exploration=0.5)
    observation = torch.zeros(4000, 4)
    best = learner.act(observation[:1], greedy=True)
    for share, expected in ((0.0, 1.0), (0.25, 0.55), (0.5, 0.1), (1.0, 0.1)):
        learner.set_progress(share)
        assert learner.epsilon == pytest.approx(expected)
        other = (learner.act(observation, greedy=False) != best).float().mean().item()
        assert other == pytest.approx(expected / 2, abs=0.03)  # half of the random actions are the best by chance


# Targets and optimizers -------------------------------------------------------------------------------------------


def test_the_target_follows_by_polyak_averaging() -> None:
    learner = agent("sac-mlp", "rl-pendulum", tau=0.1)
    slow = [p.double().clone() for p in learner.targets["critic"].module.parameters()]
    for seed in range(5):
        learner.update(transitions("rl-pendulum", seed=seed))
        fast = [p.detach().double() for p in learner.networks["critic"].module.parameters()]
        slow = [0.9 * old + 0.1 * new for old, new in zip(slow, fast, strict=True)]
    for expected, found in zip(slow, learner.targets["critic"].module.parameters(), strict=True):
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-7)


def test_the_target_is_copied_every_so_many_updates() -> None:
    learner = agent("dqn-mlp", target_every=3)
    equal = []
    for seed in range(6):
        learner.update(transitions("rl-cartpole", seed=seed))
        pairs = zip(
            learner.networks["critic"].module.parameters(), learner.targets["critic"].module.parameters(), strict=True
        )
        equal.append(all(torch.equal(a, b) for a, b in pairs))
    assert equal == [False, False, True, False, False, True]


def test_weights_of_priorities_scale_the_loss_and_errors_are_written() -> None:
    one, other = agent("dqn-mlp", clip=0.0), agent("dqn-mlp", clip=0.0)
    batch = transitions("rl-cartpole")
    batch["weight"] = torch.zeros(8)
    before = [p.detach().clone() for p in one.networks["critic"].module.parameters()]
    one.update(batch)
    assert all(torch.equal(a, b) for a, b in zip(before, one.networks["critic"].module.parameters(), strict=True))
    assert batch["td_error"].shape == (8,) and (batch["td_error"] > 0).all()
    plain = transitions("rl-cartpole")
    other.update(plain)
    assert "td_error" not in plain


# SAC --------------------------------------------------------------------------------------------------------------


def test_actions_and_their_densities_are_those_of_a_squashed_gaussian() -> None:
    learner = agent("sac-mlp", "rl-pendulum")
    parameters = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(50, 1, generator=torch.Generator().manual_seed(1))
    action, log_probability = learner._draw(parameters, noise)
    mean, spread = parameters.double().chunk(2, 1)
    std = (-5 + 3.5 * (spread.tanh() + 1)).exp()
    policy = torch.distributions.TransformedDistribution(
        torch.distributions.Normal(mean, std),
        [torch.distributions.TanhTransform(cache_size=1), torch.distributions.AffineTransform(0.0, 2.0)],
    )
    torch.testing.assert_close(action.double(), 2 * (mean + std * noise).tanh(), rtol=1e-5, atol=1e-6)
    expected = policy.log_prob((2 * (mean + std * noise).tanh()).clamp(-2 + 1e-12, 2 - 1e-12)).squeeze(1)
    near = (mean + std * noise).abs().squeeze(1) < 8  # beyond, the reference itself has no digits left
    torch.testing.assert_close(log_probability.double()[near], expected[near], rtol=1e-4, atol=1e-4)
    assert near.sum() > 30


def test_continuous_targets_take_the_smaller_critic_and_the_entropy() -> None:
    learner, batch = agent("sac-mlp", "rl-pendulum", temperature=0.3), transitions("rl-pendulum")
    drift(learner)
    state = learner._noise.get_state()
    found = learner.add_targets(batch)["target"]
    learner._noise.set_state(state)
    policy = learner.networks["actor"].module(batch["next_observation"]).detach()
    action, log_probability = learner._draw(policy, learner._normal(policy))
    values = outputs(learner.targets["critic"].module, batch["next_observation"], action)
    soft = values.min(0) - 0.3 * log_probability.numpy()
    np.testing.assert_allclose(found, batch["reward"].numpy() + batch["discount"].numpy() * soft, rtol=1e-4)
    assert (values[0] < values[1]).any() and (values[0] > values[1]).any()


def test_discrete_targets_are_exact_expectations() -> None:
    learner, batch = agent("sac-mlp", temperature=0.3), transitions("rl-cartpole")
    assert isinstance(learner, DiscreteSAC)
    drift(learner)
    logits = outputs(learner.networks["actor"].module, batch["next_observation"])
    policy = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    values = outputs(learner.targets["critic"].module, batch["next_observation"]).min(0)
    soft = (policy * (values - 0.3 * np.log(policy))).sum(1)
    expected = batch["reward"].numpy() + batch["discount"].numpy() * soft
    np.testing.assert_allclose(learner.add_targets(batch)["target"], expected, rtol=1e-4)


@pytest.mark.parametrize("env", ["rl-pendulum", "rl-cartpole"])
def test_the_actor_learns_from_the_critics_without_moving_them(env: str) -> None:
    learner, batch = agent("sac-mlp", env), transitions(env)
    learner.add_targets(batch)
    critic, actor = learner.networks["critic"], learner.networks["actor"]
    before = [p.detach().clone() for p in critic.module.parameters()]
    loss, _ = learner._policy(actor.module, batch)
    was = float(loss)
    for _ in range(30):
        loss, _ = learner._policy(actor.module, batch)
        actor.update(loss, batch)
    assert float(learner._policy(actor.module, batch)[0]) < was - 1e-3
    assert all(torch.equal(a, b) for a, b in zip(before, critic.module.parameters(), strict=True))
    assert all(p.grad is None for p in critic.module.parameters())


def test_the_temperature_starts_anew_with_the_whole_actor_and_with_nothing_less() -> None:
    learner, batch = agent("sac-mlp", "rl-pendulum"), transitions("rl-pendulum")
    actor, log_temperature = learner.networks["actor"], learner._log_temperature
    for _ in range(3):
        learner.update(batch.clone())
    adapted = float(log_temperature)
    assert adapted and log_temperature in actor.optimizer.state
    Reset(select="head").intervene(actor, learner.add_targets(batch.clone()))
    assert float(log_temperature) == adapted and log_temperature in actor.optimizer.state
    Reset().intervene(actor, learner.add_targets(batch.clone()))
    assert float(log_temperature) == 0 and log_temperature not in actor.optimizer.state
    learner.update(batch.clone())
    assert abs(float(log_temperature)) == pytest.approx(learner.config.lr, rel=1e-3)  # Adam's first step
    fixed = agent("sac-mlp", "rl-pendulum", temperature=0.2)
    Reset().intervene(fixed.networks["actor"], fixed.add_targets(batch.clone()))
    assert float(fixed._log_temperature) == pytest.approx(math.log(0.2))


def test_drawn_actions_come_with_what_their_entropy_is_worth() -> None:
    learner, draws = agent("sac-mlp", "rl-cartpole", temperature=0.5), torch.Generator().manual_seed(0)
    observation = transitions("rl-cartpole", 1)["observation"].expand(4000, -1)
    with torch.no_grad():
        log_policy = learner.networks["actor"].module(observation[:1])[0].log_softmax(0)
    before = learner._noise.get_state()
    action, bonus = learner.sample(observation, draws)
    torch.testing.assert_close(bonus, -0.5 * log_policy[action])
    assert float((action == 1).float().mean()) == pytest.approx(float(log_policy[1].exp()), abs=0.03)
    assert torch.equal(before, learner._noise.get_state())
    moving = agent("sac-mlp", "rl-pendulum", temperature=0.5)
    action, bonus = moving.sample(transitions("rl-pendulum", 3)["observation"], draws)
    mean, spread = moving.networks["actor"].module(transitions("rl-pendulum", 3)["observation"]).detach().chunk(2, 1)
    normal = torch.distributions.Normal(mean, (-5 + 3.5 * (spread.tanh() + 1)).exp())
    squashed = torch.distributions.TransformedDistribution(
        normal, [torch.distributions.TanhTransform(), torch.distributions.AffineTransform(0.0, 2.0)]
    )
    torch.testing.assert_close(bonus, -0.5 * squashed.log_prob(action).sum(1), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("aim", "grows"), [(-3.0, True), (3.0, False)])
def test_the_temperature_rises_while_the_entropy_is_below_its_target(aim: float, grows: bool) -> None:
    learner = agent("sac-mlp", "rl-pendulum", target_entropy=aim)  # aims at an entropy of minus the option
    for seed in range(20):
        learner.update(transitions("rl-pendulum", seed=seed))
    assert (float(learner._log_temperature) > 0) == grows
    fixed = agent("sac-mlp", "rl-pendulum", temperature=0.2)
    fixed.update(transitions("rl-pendulum"))
    assert float(fixed._log_temperature) == pytest.approx(math.log(0.2))


def test_drawn_actions_follow_the_policy() -> None:
    learner = agent("sac-mlp")
    observation = torch.ones(20000, 4)
    drawn = learner.act(observation, greedy=False)
    probability = learner.networks["actor"].module(observation[:1]).softmax(1).detach().numpy()[0]
    np.testing.assert_allclose(np.bincount(drawn.numpy()) / 20000, probability, atol=0.015)


def test_every_critic_of_an_ensemble_is_an_output_and_differs() -> None:
    learner = agent("sac-mlp", "rl-pendulum", critics=3)
    assert isinstance(learner, ContinuousSAC)
    units = trace(learner.networks["critic"], learner.add_targets(transitions("rl-pendulum")))
    assert [unit.name for unit in units if unit.output] == ["heads.0.4", "heads.1.4", "heads.2.4"]
    values = outputs(learner.networks["critic"].module, torch.ones(1, 3), torch.ones(1, 1))
    assert len(set(values.flatten().tolist())) == 3


# State and shapes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "env"), [("dqn-mlp", "rl-cartpole"), ("sac-mlp", "rl-pendulum"), ("sac-mlp", "rl-cartpole")]
)
def test_state_comes_back_exactly(name: str, env: str) -> None:
    learner, other = agent(name, env), agent(name, env)
    for seed in range(3):
        learner.update(transitions(env, seed=seed))
    other.load_state_dict(copy.deepcopy(learner.state_dict()))
    for each in (learner, other):
        for seed in range(3, 6):
            each.update(transitions(env, seed=seed))
    assert learner.pop_averages() == other.pop_averages()
    for role, network in learner.networks.items():
        pairs = zip(network.module.parameters(), other.networks[role].module.parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
    test = transitions(env, 16)["observation"]
    assert torch.equal(learner.act(test, greedy=False), other.act(test, greedy=False))


@pytest.mark.parametrize("encoder", ["cnn", "impala", "vit"])
@pytest.mark.parametrize(("shape", "bytes_"), [((4, 10, 10), False), ((4, 84, 84), True)])
def test_encoders_take_cells_and_pixels(encoder: str, shape: tuple[int, int, int], bytes_: bool) -> None:
    from plastibench.agents.encoders import Encoder

    module, features = Encoder(encoder=encoder).encode(shape, bytes_)  # type: ignore[arg-type]
    pixels = torch.full((2, *shape), 200, dtype=torch.uint8) if bytes_ else torch.ones(2, *shape, dtype=torch.bool)
    assert module(pixels).shape == (2, features)
    if bytes_:
        seen: list[Tensor] = []
        module[1].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        module(pixels)
        assert float(seen[0].max()) == pytest.approx(200 / 255)


def test_a_shift_moves_each_image_by_whole_pixels_and_repeats_its_edge() -> None:
    images = torch.arange(36.0).view(1, 1, 6, 6).repeat(200, 2, 1, 1)
    shifted = random_shift(images, 2, torch.Generator().manual_seed(0))
    offsets = set()
    for image in shifted:
        assert torch.equal(image[0], image[1])
        row, column = divmod(int(image[0, 3, 3]), 6)
        down, right = row - 3, column - 3
        rows, columns = (torch.arange(6) + down).clamp(0, 5), (torch.arange(6) + right).clamp(0, 5)
        assert torch.equal(image[0], images[0, 0][rows][:, columns])
        offsets.add((down, right))
    assert len(offsets) == 25


@pytest.mark.parametrize(
    ("name", "env", "words"),
    [
        ("dqn-mlp", "rl-pendulum", "needs discrete actions"),
        ("dqn-cnn", "rl-cartpole", "is for images"),
        ("dqn-mlp", "cl-digits", "need an RL environment"),
        ("mlp", "rl-cartpole", "needs a task stream"),
    ],
)
def test_agents_that_do_not_fit_an_env_say_so(name: str, env: str, words: str) -> None:
    entry, scenario = agents[name], envs[env]
    made = build(scenario.load(), scenario.defaults, env).make()
    with pytest.raises(UserError, match=words):
        build(entry.load(), entry.defaults, name).build(made, 0, torch.device("cpu"))
