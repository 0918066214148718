"""DQN and SAC against reference values from NumPy, torch.distributions and torchrl's losses."""

from __future__ import annotations

import copy
import math
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torch import Tensor

from plastibench.agents.dqn import project
from plastibench.agents.images import random_shift
from plastibench.agents.sac import ContinuousSAC, DiscreteSAC
from plastibench.config.errors import UserError
from plastibench.config.options import build
from plastibench.config.registry import agents, envs
from plastibench.config.spec import RunOptions
from plastibench.interventions.reset import Reset
from plastibench.nn.dataflow import trace
from plastibench.training.learner import Learner
from plastibench.training.offpolicy import OffPolicyTrainer
from tests.support import environments  # noqa: F401 - registers them
from tests.support.rl import drift, make_agent, make_env, outputs, transitions

# DQN --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("double", [True, False])
def test_td_targets_are_reward_plus_discounted_value(double: bool) -> None:
    agent, batch = make_agent("dqn-mlp", double=double), transitions("rl-cartpole")
    drift(agent)
    target = outputs(agent.targets["critic"].module, batch["next_observation"])
    online = outputs(agent.networks["critic"].module, batch["next_observation"])
    choice = (online if double else target).argmax(1)
    expected = batch["reward"].numpy() + batch["discount"].numpy() * target[np.arange(8), choice]
    np.testing.assert_allclose(agent.add_targets(batch)["target"].numpy(), expected, rtol=1e-5)
    assert (online.argmax(1) != target.argmax(1)).any()  # otherwise both variants agree


def test_dqn_loss_equals_that_of_torchrl() -> None:
    from torchrl.modules import QValueActor
    from torchrl.objectives import DQNLoss

    agent, batch = make_agent("dqn-mlp", double=True, gamma=0.9, loss="huber"), transitions("rl-cartpole", 32)
    batch["discount"] = 0.9 * (batch["discount"] > 0)
    drift(agent)
    actor = QValueActor(
        copy.deepcopy(agent.networks["critic"].module), in_keys=["observation"], action_space="categorical"
    )
    theirs = DQNLoss(actor, action_space="categorical", loss_function="smooth_l1", double_dqn=True, delay_value=True)
    theirs.make_value_estimator(gamma=0.9)
    for parameter, own in zip(
        theirs.target_value_network_params.values(True, True),
        dict(agent.targets["critic"].module.named_parameters()).values(),
        strict=False,
    ):
        assert parameter.shape == own.shape
    flat = {".".join(key): value for key, value in theirs.target_value_network_params.items(True, True)}
    for name, own in agent.targets["critic"].module.named_parameters():
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
    ours = agent._loss(agent.networks["critic"].module, agent.add_targets(batch))
    assert float(ours) == pytest.approx(float(theirs(data)["loss"]), rel=1e-5)


def test_projection_matches_algorithm_1_of_c51() -> None:
    rng = np.random.default_rng(0)
    support = np.linspace(-2, 3, 11)
    probability = rng.dirichlet(np.ones(11), 6)
    positions = rng.normal(size=(6, 1)) * 3 + 0.9 * support * rng.integers(0, 2, (6, 1))
    expected = np.zeros((6, 11))
    for row in range(6):
        for atom in range(11):
            position = (np.clip(positions[row, atom], -2, 3) + 2) / 0.5
            low, high = math.floor(position), math.ceil(position)
            if low == high:
                expected[row, low] += probability[row, atom]
            else:
                expected[row, low] += probability[row, atom] * (high - position)
                expected[row, high] += probability[row, atom] * (position - low)
    found = project(torch.tensor(probability), torch.tensor(positions), torch.tensor(support))
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-12)


@pytest.mark.sample(1)
@pytest.mark.parametrize("options", [{}, {"dueling": True}, {"atoms": 11}, {"atoms": 11, "dueling": True}])
def test_all_dqn_variants_learn_the_values_of_a_bandit(options: dict[str, Any]) -> None:
    agent = make_agent("dqn-mlp", lr=3e-3, v_min=-2, v_max=2, target_every=10, **options)
    generator = torch.Generator().manual_seed(0)
    for _ in range(300):
        batch = transitions("rl-cartpole", 32, int(torch.randint(1000, (), generator=generator)))
        batch["reward"] = torch.where(batch["action"] == 1, 1.0, -1.0)
        batch["discount"] = torch.zeros(32)
        agent.update(batch)
    test = transitions("rl-cartpole", 64, 5000)["observation"]
    values = [agent.value(test, torch.full((64,), action)).mean().item() for action in (0, 1)]
    assert values == pytest.approx([-1, 1], abs=0.15)
    assert (agent.act(test, greedy=True) == 1).all()


def test_dueling_heads_are_outputs() -> None:
    agent = make_agent("dqn-mlp", dueling=True)
    units = trace(agent.networks["critic"], agent.add_targets(transitions("rl-cartpole")))
    assert {unit.name: unit.output for unit in units} == {
        "body.0": False,
        "body.2": False,
        "advantage": True,
        "value": True,
    }


def test_epsilon_decays_linearly() -> None:
    agent = make_agent("dqn-mlp", epsilon=0.1, exploration=0.5)
    observation = torch.zeros(4000, 4)
    best = agent.act(observation[:1], greedy=True)
    for progress, expected in ((0.0, 1.0), (0.25, 0.55), (0.5, 0.1), (1.0, 0.1)):
        agent.set_progress(progress)
        assert agent.epsilon == pytest.approx(expected)
        other = (agent.act(observation, greedy=False) != best).float().mean().item()
        assert other == pytest.approx(expected / 2, abs=0.03)  # half of the random actions equal the best one


# Targets and optimizers -------------------------------------------------------------------------------------------


def test_target_is_a_polyak_average() -> None:
    agent = make_agent("sac-mlp", "rl-pendulum", tau=0.1)
    slow = [p.double().clone() for p in agent.targets["critic"].module.parameters()]
    for seed in range(5):
        agent.update(transitions("rl-pendulum", seed=seed))
        fast = [p.detach().double() for p in agent.networks["critic"].module.parameters()]
        slow = [0.9 * old + 0.1 * new for old, new in zip(slow, fast, strict=True)]
    for expected, found in zip(slow, agent.targets["critic"].module.parameters(), strict=True):
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-7)


def test_target_is_copied_every_n_updates() -> None:
    agent = make_agent("dqn-mlp", target_every=3)
    equal = []
    for seed in range(6):
        agent.update(transitions("rl-cartpole", seed=seed))
        pairs = zip(
            agent.networks["critic"].module.parameters(), agent.targets["critic"].module.parameters(), strict=True
        )
        equal.append(all(torch.equal(a, b) for a, b in pairs))
    assert equal == [False, False, True, False, False, True]


def test_importance_weights_scale_the_loss_and_td_errors_are_returned() -> None:
    one, other = make_agent("dqn-mlp", clip=0.0), make_agent("dqn-mlp", clip=0.0)
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


# Bounds of two dimensions: Pendulum's, tiny, asymmetric, very unequal, far from 0, one that cannot be chosen, float64.
RANGES = {
    "two": ([-2.0, -2.0], [2.0, 2.0]),
    "tiny": ([-0.1, -0.1], [0.1, 0.1]),
    "asymmetric": ([0.0, -3.0], [0.2, 1.0]),
    "unequal": ([-1e-4, -1e4], [1e-4, 1e4]),
    "far": ([100.0, -1.0], [101.0, 1.0]),
    "huge": ([-3e38, -1.0], [3e38, 1.0]),
    "constant": ([-0.1, 0.5], [0.1, 0.5]),
}


def target_env(monkeypatch: pytest.MonkeyPatch, low: Any, high: Any, dtype: Any = np.float32) -> str:
    """The id of an environment with these bounds."""
    options = {"low": low, "high": high, "dtype": dtype}
    monkeypatch.setattr(gymnasium.registry["tests/Target-v0"], "kwargs", options)
    return "tests/Target-v0"


def sac_for(env_id: str, **options: Any) -> tuple[Any, Any]:
    """A small agent for a gymnasium environment, and the environment."""
    env = make_env("gym", id=env_id, envs=4)
    entry = agents["sac-mlp"]
    config: Any = build(entry.load(), {**entry.defaults, "hidden": (16, 16), "batch_size": 32, **options}, "sac-mlp")
    return config.build(env, 0, torch.device("cpu")), env


@pytest.mark.parametrize("bounds", RANGES)
def test_density_target_and_critics_belong_to_actions_in_minus_one_to_one(
    monkeypatch: pytest.MonkeyPatch, bounds: str
) -> None:
    low, high = (np.array(each) for each in RANGES[bounds])
    agent, _ = sac_for(target_env(monkeypatch, low, high))
    free = torch.from_numpy(high > low)
    parameters = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(200, 2, generator=torch.Generator().manual_seed(1))
    action, log_probability = agent._draw(parameters, noise)
    mean, spread = parameters.double().chunk(2, 1)
    std = (-5 + 3.5 * (spread.tanh() + 1)).exp()
    expected = (mean + std * noise).tanh() * free
    torch.testing.assert_close(action.double(), expected, rtol=1e-5, atol=1e-6)
    policy = torch.distributions.TransformedDistribution(
        torch.distributions.Normal(mean, std), [torch.distributions.TanhTransform(cache_size=1)]
    )
    density = (policy.log_prob((mean + std * noise).tanh().clamp(-1 + 1e-12, 1 - 1e-12)) * free).sum(1)
    near = ((mean + std * noise).abs() < 8).all(1)  # beyond this range the reference loses precision
    torch.testing.assert_close(log_probability.double()[near], density[near], rtol=1e-4, atol=1e-4)
    assert near.sum() > 100
    assert agent.target_entropy == -int(free.sum())
    # Actions of the environment lie within its bounds, and are what the closed form says.
    real = agent._unscaled(action).double().numpy()
    assert (real >= agent._low.numpy()).all() and (real <= agent._high.numpy()).all()
    wanted = expected.numpy() * (high / 2 - low / 2) + (high / 2 + low / 2)
    np.testing.assert_allclose(real, wanted, rtol=2e-6, atol=2e-6 * (high / 2 - low / 2).max())
    scaled = agent._scaled(agent._unscaled(action))
    torch.testing.assert_close(scaled, action, rtol=1e-4, atol=2e-5)  # float32 near 100 has steps of 8e-6
    values = outputs(agent.networks["critic"].module, torch.ones(200, 1), scaled).min(0)
    found = agent.value(torch.ones(200, 1), agent._unscaled(action))
    np.testing.assert_allclose(found, values, rtol=1e-5, atol=1e-6)


def train_on_target(monkeypatch: pytest.MonkeyPatch, low: Any, high: Any, steps: int = 400) -> tuple[Any, float]:
    """Train on the environment with these bounds; return the agent, and the mean reward of its greedy actions."""
    agent, env = sac_for(target_env(monkeypatch, low, high), learning_starts=100, lr=3e-3, tau=0.05, buffer_size=2000)
    trainer = OffPolicyTrainer(env, Learner(agent), RunOptions(device="cpu"))
    trainer._enter(0)
    while trainer.steps < steps:
        trainer.advance()
    chosen = agent._scaled(agent.act(torch.ones(1, 1), greedy=True))[:, agent._free > 0]
    trainer.close()
    return agent, -float((chosen - 0.6).square().mean())


@pytest.mark.slow
def test_learning_does_not_depend_on_the_range_of_actions(monkeypatch: pytest.MonkeyPatch) -> None:
    one, reward = train_on_target(monkeypatch, [-1.0], [1.0])
    assert reward > -0.05  # a random policy gets -0.69 on average
    eighth, _ = train_on_target(monkeypatch, [-0.125], [0.125])
    for role, network in one.networks.items():  # a power of two: every number but the actions is the same
        pairs = zip(network.module.parameters(), eighth.networks[role].module.parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs), role
    for low, high in (([-0.1], [0.1]), ([0.0, 0.5], [0.02, 0.5])):
        agent, found = train_on_target(monkeypatch, low, high)
        assert found > -0.05
        assert float(agent._log_temperature) == pytest.approx(float(one._log_temperature), abs=0.3)


def test_actions_stay_within_the_bounds_of_float64_spaces(monkeypatch: pytest.MonkeyPatch) -> None:
    low, high = [-0.1, 0.1], [0.1, 0.7]
    agent, env = sac_for(target_env(monkeypatch, low, high, np.float64))
    assert (env.action_low >= np.array(low)).all() and (env.action_high <= np.array(high)).all()
    extreme = torch.tensor([[-1.0, -1.0], [1.0, 1.0]])
    real = agent._unscaled(extreme).double().numpy()
    assert (real >= low).all() and (real <= high).all()


def test_an_action_space_without_a_choice_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    env_id = target_env(monkeypatch, [0.5, 1.0], [0.5, 1.0])
    with pytest.raises(UserError, match="only one action is possible"):
        sac_for(env_id)


def test_continuous_targets_use_the_smallest_critic_and_the_entropy() -> None:
    agent, batch = make_agent("sac-mlp", "rl-pendulum", temperature=0.3), transitions("rl-pendulum")
    drift(agent)
    state = agent._noise.get_state()
    found = agent.add_targets(batch)["target"]
    agent._noise.set_state(state)
    policy = agent.networks["actor"].module(batch["next_observation"]).detach()
    action, log_probability = agent._draw(policy, agent._normal(policy))
    values = outputs(agent.targets["critic"].module, batch["next_observation"], action)
    soft = values.min(0) - 0.3 * log_probability.numpy()
    np.testing.assert_allclose(found, batch["reward"].numpy() + batch["discount"].numpy() * soft, rtol=1e-4)
    assert (values[0] < values[1]).any() and (values[0] > values[1]).any()


def test_discrete_targets_are_exact_expectations() -> None:
    agent, batch = make_agent("sac-mlp", temperature=0.3), transitions("rl-cartpole")
    assert isinstance(agent, DiscreteSAC)
    drift(agent)
    logits = outputs(agent.networks["actor"].module, batch["next_observation"])
    policy = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    values = outputs(agent.targets["critic"].module, batch["next_observation"]).min(0)
    soft = (policy * (values - 0.3 * np.log(policy))).sum(1)
    expected = batch["reward"].numpy() + batch["discount"].numpy() * soft
    np.testing.assert_allclose(agent.add_targets(batch)["target"], expected, rtol=1e-4)


@pytest.mark.parametrize("env", ["rl-pendulum", "rl-cartpole"])
def test_actor_updates_do_not_change_the_critics(env: str) -> None:
    agent, batch = make_agent("sac-mlp", env), transitions(env)
    agent.add_targets(batch)
    critic, actor = agent.networks["critic"], agent.networks["actor"]
    before = [p.detach().clone() for p in critic.module.parameters()]
    loss, _ = agent._policy(actor.module, batch)
    was = float(loss)
    for _ in range(30):
        loss, _ = agent._policy(actor.module, batch)
        actor.update(loss, batch)
    assert float(agent._policy(actor.module, batch)[0]) < was - 1e-3
    assert all(torch.equal(a, b) for a, b in zip(before, critic.module.parameters(), strict=True))
    assert all(p.grad is None for p in critic.module.parameters())


def test_temperature_is_reset_only_with_the_whole_actor() -> None:
    agent, batch = make_agent("sac-mlp", "rl-pendulum"), transitions("rl-pendulum")
    actor, log_temperature = agent.networks["actor"], agent._log_temperature
    for _ in range(3):
        agent.update(batch.clone())
    adapted = float(log_temperature)
    assert adapted and log_temperature in actor.optimizer.state
    Reset(select="head").intervene(actor, agent.add_targets(batch.clone()))
    assert float(log_temperature) == adapted and log_temperature in actor.optimizer.state
    Reset().intervene(actor, agent.add_targets(batch.clone()))
    assert float(log_temperature) == 0 and log_temperature not in actor.optimizer.state
    agent.update(batch.clone())
    assert abs(float(log_temperature)) == pytest.approx(agent.config.lr, rel=1e-3)  # Adam's first step
    fixed = make_agent("sac-mlp", "rl-pendulum", temperature=0.2)
    Reset().intervene(fixed.networks["actor"], fixed.add_targets(batch.clone()))
    assert float(fixed._log_temperature) == pytest.approx(math.log(0.2))


def test_sampled_actions_have_an_entropy_bonus() -> None:
    agent, draws = make_agent("sac-mlp", "rl-cartpole", temperature=0.5), torch.Generator().manual_seed(0)
    observation = transitions("rl-cartpole", 1)["observation"].expand(4000, -1)
    with torch.no_grad():
        log_policy = agent.networks["actor"].module(observation[:1])[0].log_softmax(0)
    before = agent._noise.get_state()
    action, bonus = agent.sample(observation, draws)
    torch.testing.assert_close(bonus, -0.5 * log_policy[action])
    assert float((action == 1).float().mean()) == pytest.approx(float(log_policy[1].exp()), abs=0.03)
    assert torch.equal(before, agent._noise.get_state())
    continuous = make_agent("sac-mlp", "rl-pendulum", temperature=0.5)
    action, bonus = continuous.sample(transitions("rl-pendulum", 3)["observation"], draws)
    mean, spread = (
        continuous.networks["actor"].module(transitions("rl-pendulum", 3)["observation"]).detach().chunk(2, 1)
    )
    normal = torch.distributions.Normal(mean, (-5 + 3.5 * (spread.tanh() + 1)).exp())
    squashed = torch.distributions.TransformedDistribution(normal, [torch.distributions.TanhTransform()])
    torch.testing.assert_close(bonus, -0.5 * squashed.log_prob(action / 2).sum(1), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("aim", "grows"), [(-3.0, True), (3.0, False)])
def test_temperature_rises_if_the_entropy_is_below_its_target(aim: float, grows: bool) -> None:
    agent = make_agent("sac-mlp", "rl-pendulum", target_entropy=aim)  # aims at an entropy of minus the option
    for seed in range(20):
        agent.update(transitions("rl-pendulum", seed=seed))
    assert (float(agent._log_temperature) > 0) == grows
    fixed = make_agent("sac-mlp", "rl-pendulum", temperature=0.2)
    fixed.update(transitions("rl-pendulum"))
    assert float(fixed._log_temperature) == pytest.approx(math.log(0.2))


def test_sampled_actions_follow_the_policy() -> None:
    agent = make_agent("sac-mlp")
    observation = torch.ones(20000, 4)
    drawn = agent.act(observation, greedy=False)
    probability = agent.networks["actor"].module(observation[:1]).softmax(1).detach().numpy()[0]
    np.testing.assert_allclose(np.bincount(drawn.numpy()) / 20000, probability, atol=0.015)


def test_critics_of_an_ensemble_are_different_outputs() -> None:
    agent = make_agent("sac-mlp", "rl-pendulum", critics=3)
    assert isinstance(agent, ContinuousSAC)
    units = trace(agent.networks["critic"], agent.add_targets(transitions("rl-pendulum")))
    assert [unit.name for unit in units if unit.output] == ["heads.0.4", "heads.1.4", "heads.2.4"]
    values = outputs(agent.networks["critic"].module, torch.ones(1, 3), torch.ones(1, 1))
    assert len(set(values.flatten().tolist())) == 3


# State and shapes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "env"), [("dqn-mlp", "rl-cartpole"), ("sac-mlp", "rl-pendulum"), ("sac-mlp", "rl-cartpole")]
)
def test_resume_from_state_dict_is_bit_identical(name: str, env: str) -> None:
    agent, other = make_agent(name, env), make_agent(name, env)
    for seed in range(3):
        agent.update(transitions(env, seed=seed))
    other.load_state_dict(copy.deepcopy(agent.state_dict()))
    for each in (agent, other):
        for seed in range(3, 6):
            each.update(transitions(env, seed=seed))
    assert agent.pop_averages() == other.pop_averages()
    for role, network in agent.networks.items():
        pairs = zip(network.module.parameters(), other.networks[role].module.parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
    test = transitions(env, 16)["observation"]
    assert torch.equal(agent.act(test, greedy=False), other.act(test, greedy=False))


@pytest.mark.parametrize("encoder", ["cnn", "impala", "vit"])
@pytest.mark.parametrize(("shape", "uint8"), [((4, 10, 10), False), ((4, 84, 84), True)])
def test_encoders_accept_cells_and_pixels(encoder: str, shape: tuple[int, int, int], uint8: bool) -> None:
    from plastibench.agents.encoders import Encoder

    module, features = Encoder(encoder=encoder).encode(shape, uint8)  # type: ignore[arg-type]
    pixels = torch.full((2, *shape), 200, dtype=torch.uint8) if uint8 else torch.ones(2, *shape, dtype=torch.bool)
    assert module(pixels).shape == (2, features)
    if uint8:
        seen: list[Tensor] = []
        module[1].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        module(pixels)
        assert float(seen[0].max()) == pytest.approx(200 / 255)


def test_random_shift_moves_images_by_whole_pixels_and_repeats_the_edge() -> None:
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
        ("dqn-cnn", "rl-cartpole", "needs images"),
        ("dqn-mlp", "cl-digits", "need an RL environment"),
        ("mlp", "rl-cartpole", "needs a task stream"),
    ],
)
def test_agents_refuse_unsuitable_envs(name: str, env: str, words: str) -> None:
    entry, env_entry = agents[name], envs[env]
    created = build(env_entry.load(), env_entry.defaults, env).make()
    with pytest.raises(UserError, match=words):
        build(entry.load(), entry.defaults, name).build(created, 0, torch.device("cpu"))
