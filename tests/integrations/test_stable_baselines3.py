from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from plastibench.config.errors import UserError
from plastibench.nn.network import Network
from tests.integrations.methods import PULL, Pull, Recording
from tests.support.networks import state

sb3 = pytest.importorskip("stable_baselines3")
from plastibench.integrations.sb3_networks import draw_batch  # noqa: E402
from plastibench.integrations.stable_baselines3 import PlasticityCallback  # noqa: E402

ALGORITHMS = ["DQN", "SAC", "TD3", "DDPG", "PPO", "A2C"]
ON_POLICY = {"PPO": {"n_steps": 32, "batch_size": 16, "n_epochs": 1}, "A2C": {"n_steps": 16}}
OFF_POLICY = {"learning_starts": 20, "batch_size": 8, "train_freq": 4}


def algorithm(name: str, **options: Any) -> Any:
    env = "CartPole-v1" if name in ("DQN", "PPO", "A2C") else "Pendulum-v1"
    fixed = {"policy_kwargs": {"net_arch": [12, 12]}, "seed": 0, "device": "cpu"}
    return getattr(sb3, name)("MlpPolicy", env, **{**fixed, **ON_POLICY.get(name, OFF_POLICY), **options})


def trained(name: str, callback: Any = None, steps: int = 64, **options: Any) -> Any:
    model = algorithm(name, **options)
    return model.learn(steps, callback=callback)


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_training_does_not_notice_an_intervention_that_does_nothing(name: str) -> None:
    callback = PlasticityCallback("none", every=32)
    model = trained(name, callback)
    assert same(model.policy.state_dict(), trained(name).policy.state_dict())
    assert all(attached.report is not None for attached in callback.attached.values())


@pytest.mark.parametrize("name", ALGORITHMS)
def test_losses_are_those_of_the_algorithm(name: str) -> None:
    """The gradient that the algorithm computes for a batch is that of our loss on the same transitions."""
    callback = PlasticityCallback("none", metrics=False)
    model = trained(name, callback)
    taken: list[Any] = []
    buffer = model.rollout_buffer if name in ON_POLICY else model.replay_buffer
    draw = "get" if name in ON_POLICY else "sample"
    original = getattr(buffer, draw)

    def spied(*args: Any, **kwargs: Any) -> Any:
        if name in ON_POLICY:
            taken.append(next(iter(original(*args, **kwargs))))
            return iter(taken[-1:])
        taken.append(original(*args, **kwargs))
        return taken[-1]

    for attached in callback.attached.values():
        attached.network.optimizer.param_groups[0]["lr"] = 0.0  # so that every loss sees the same weights
    setattr(buffer, draw, spied)
    gradients: dict[str, list[torch.Tensor]] = {}
    clipping = {"max_grad_norm": 1e9} if hasattr(model, "max_grad_norm") else {}
    vars(model).update(clipping, lr_schedule=lambda _: 0.0, target_policy_noise=0.0, policy_delay=1, tau=0.0)
    for role, attached in callback.attached.items():

        def keep(optimizer: Any, *_: Any, role: str = role) -> None:
            found = [p.grad.clone() for group in optimizer.param_groups for p in group["params"]]
            gradients.setdefault(role, found)

        attached.network.optimizer.register_step_pre_hook(keep)
    model.train() if name in ON_POLICY else model.train(1, 8)
    buffer.__dict__.pop(draw)
    assert gradients.keys() == callback.attached.keys()
    for role, attached in callback.attached.items():
        if name == "SAC":
            continue  # its targets and actions are random: see the next test
        setattr(buffer, draw, lambda *_, **__: iter(taken) if name in ON_POLICY else taken[0])
        batch = draw_batch(model, 8, torch.Generator().manual_seed(0))
        buffer.__dict__.pop(draw)
        network: Network = attached.network
        parameters = [p for group in network.optimizer.param_groups for p in group["params"]]
        expected = torch.autograd.grad(network.loss(network.module, batch), parameters)
        for found, wanted in zip(gradients[role], expected, strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)


def test_sacs_actions_and_densities_are_those_of_its_policy() -> None:
    from plastibench.integrations.sb3_networks import _sample

    model = trained("SAC")
    observation = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(3)
    expected, log_probability = model.actor.action_log_prob(observation)
    torch.manual_seed(3)
    action, density = _sample(model.actor, observation, torch.randn(5, 1))
    torch.testing.assert_close(action, expected)
    torch.testing.assert_close(density.flatten(), log_probability)


@pytest.mark.parametrize("name", ["DQN", "SAC", "TD3", "PPO"])
def test_an_intervention_changes_the_chosen_networks_and_nothing_else(name: str) -> None:
    callback = PlasticityCallback("reset", roles=None if name in ("DQN", "PPO") else ["critic"], metrics=False)
    model = trained(name, callback)
    before = copy.deepcopy(model.policy.state_dict())
    optimizer = next(iter(callback.attached.values())).network.optimizer
    assert optimizer.state
    callback.intervene()
    chosen = {id(tensor) for each in callback.attached.values() for tensor in state_tensors(each.network.module)}
    changed = 0
    for key, tensor in model.policy.state_dict(keep_vars=True).items():
        if id(tensor) not in chosen:
            assert torch.equal(tensor, before[key]), key
        changed += not torch.equal(tensor, before[key])
    assert changed >= 6
    assert all(float(s["exp_avg"].abs().sum()) == 0 for s in optimizer.state.values())


def state_tensors(module: torch.nn.Module) -> list[torch.Tensor]:
    return [*module.state_dict(keep_vars=True).values()]


@pytest.mark.parametrize("policy", ["keep", "copy", "same"])
def test_targets_follow_the_policy(policy: Any) -> None:
    callback = PlasticityCallback("shrink-perturb-keep80", target_policy=policy, metrics=False)
    model = trained("TD3", callback, tau=0.5)
    before = state(model.critic_target)
    callback.intervene()
    after, critic = state(model.critic_target), state(model.critic)
    assert same(after, before) == (policy == "keep")
    assert same(after, critic) == (policy == "copy")
    model.train(2, 8)  # the targets still follow
    assert not same(state(model.critic_target), after)


def test_the_schedule_counts_timesteps() -> None:
    callback = PlasticityCallback(Recording(), every=32, timesteps=[44], metrics=False)
    trained("DQN", callback, steps=100)
    recording = callback.attached["critic"].intervention
    assert [updates for updates, _ in recording.seen] == [2, 5, 10, 18]  # before the updates of steps 32, 44, 64, 96
    assert recording.seen[0][1]["observation"].shape == (512, 4)


def test_a_penalty_adds_its_gradient_to_every_update() -> None:
    callback = PlasticityCallback(Pull(), metrics=False)
    model = algorithm("DQN", max_grad_norm=1e-9)  # the algorithm's own gradient vanishes
    callback.attach(model)
    seen: list[float] = []

    def compare(optimizer: Any, *_: Any) -> None:
        seen.extend(float((p.grad - 2 * PULL * p.detach()).abs().max()) for p in model.q_net.parameters())

    model.policy.optimizer.register_step_pre_hook(compare)
    model.learn(32, callback=callback)
    assert len(seen) == 6 * callback.attached["critic"].steps > 0
    assert max(seen) < 1e-6


def test_metrics_go_to_the_logger(capsys: pytest.CaptureFixture[str]) -> None:
    callback = PlasticityCallback("redo", every=48, verbose=1)
    model = trained("DQN", callback)
    values = model.logger.name_to_value
    assert 0 <= values["plasticity/critic/dormant-ratio"] <= 1
    assert values["intervention/critic/parameters"] == callback.attached["critic"].report.parameters
    assert "timestep 48: critic:" in capsys.readouterr().out


@pytest.mark.parametrize("intervention", ["hare-tortoise", "plasticity-injection"])
def test_saving_and_loading_continue_exactly(intervention: str, tmp_path: Path) -> None:
    def callback() -> PlasticityCallback:
        return PlasticityCallback(intervention, every=32, target_policy="same", metrics=False)

    first = callback()
    model = trained("DQN", first)
    model.save(tmp_path / "model.zip")
    model.save_replay_buffer(tmp_path / "buffer.pkl")
    first.save(tmp_path / "callback.pt")
    again, loaded = callback(), algorithm("DQN")
    again.load(tmp_path / "callback.pt", loaded)
    loaded.set_parameters(tmp_path / "model.zip")
    loaded.load_replay_buffer(tmp_path / "buffer.pkl")
    assert same(state(loaded.policy), state(model.policy))
    for each, algo in ((first, model), (again, loaded)):
        algo.set_logger(sb3.common.logger.configure(None, []))
        each.init_callback(algo)
        algo._total_timesteps = algo._current_progress_remaining = 1
        np.random.seed(0)  # noqa: NPY002
        algo.train(3, 8)
        each.intervene()
        algo.train(3, 8)
    assert same(state(loaded.policy), state(model.policy))


def test_errors_are_told_before_anything_changes() -> None:
    model = algorithm("DQN")
    before = copy.deepcopy(model.policy.state_dict())
    with pytest.raises(UserError, match="has no network 'actr'"):
        PlasticityCallback("redo", roles=["actr"]).attach(algorithm("SAC"))
    with pytest.raises(UserError, match="every is -1"):
        PlasticityCallback("redo", every=-1)
    with pytest.raises(UserError, match="target_policy"):
        PlasticityCallback("redo", target_policy="follow")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="unknown intervention"):
        PlasticityCallback("rodo").attach(model)
    callback = PlasticityCallback("reset-layernorm", metrics=False)
    model.learn(32, callback=callback)
    before = copy.deepcopy(model.policy.state_dict())
    with pytest.raises(UserError, match="matches no parameter"):
        callback.intervene()
    assert same(model.policy.state_dict(), before)
