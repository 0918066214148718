"""Every method gives bit-identical weights in the harness and in a hand-written loop with ``attach``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import nn

from plastibench.config.errors import UserError
from plastibench.config.registry import interventions
from plastibench.config.spec import RunSpec
from plastibench.interventions.attach import Attached, attach, create
from plastibench.training.learner import Learner
from tests.support.rl import make_agent, transitions

NAMES = [name for name in interventions.all() if not name.endswith("*")]
# Options with which a method acts within a few updates.
BUSY: dict[str, dict[str, Any]] = {
    "continual-backprop": {"rate": 0.1, "maturity": 2},
    "continual-backprop-adaptable": {"rate": 0.1, "maturity": 2},
    "neuroplastic-expansion": {"every": 2},
    "recouple": {"inner": "redo"},
}
UPDATES = 4


def make_classifier(**options: Any) -> Any:
    spec = RunSpec.make("cl-digits", "vit-nano", agent_options=options)
    return spec.create("agent").build(spec.create("env").make(), 0, torch.device("cpu"))


def images(seed: int, count: int = 32) -> TensorDict:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(256, (count, 1, 8, 8), generator=generator, dtype=torch.uint8)
    labels = torch.randint(10, (count,), generator=generator)
    return TensorDict({"image": pixels, "label": labels}, batch_size=[count])


def step(network: Any, handle: Attached, loss: torch.Tensor, batch: TensorDict, clip: float) -> None:
    """Make one update as a user would write it."""
    loss = loss + handle.penalty(batch)
    network.optimizer.zero_grad()
    loss.backward(inputs=[p for p in network.module.parameters() if p.requires_grad])
    if clip:
        nn.utils.clip_grad_norm_(network.module.parameters(), clip)
    network.optimizer.step()


def classifier_loop(agent: Any, handles: dict[str, Attached], batch: TensorDict) -> None:
    network = agent.networks["classifier"]
    for group in network.optimizer.param_groups:
        group["lr"] = agent.config.lr
    step(network, handles["classifier"], network.loss(network.module, batch), batch, agent.config.clip)


def dqn_loop(agent: Any, handles: dict[str, Attached], batch: TensorDict) -> None:
    network = agent.networks["critic"]
    batch = agent.add_targets(batch)
    step(network, handles["critic"], network.loss(network.module, batch), batch, agent.config.clip)
    copy_to_target(agent)


def sac_loop(agent: Any, handles: dict[str, Attached], batch: TensorDict) -> None:
    batch = agent.add_targets(batch)
    for role in ("critic", "actor"):
        network = agent.networks[role]
        step(network, handles[role], network.loss(network.module, batch), batch, agent.config.clip)
    copy_to_target(agent)


@torch.no_grad()
def copy_to_target(agent: Any) -> None:
    """Copy the critic to its target, as with ``tau`` 1 and ``target_every`` 1."""
    agent.targets["critic"].module.load_state_dict(agent.networks["critic"].module.state_dict())


SMALL = {"hidden": (12, 12), "tau": 1.0, "target_every": 1}
CASES: dict[str, tuple[Callable[[], Any], Callable[[int], TensorDict], Callable[..., None]]] = {
    "classifier": (
        lambda: make_classifier(dim=16, depth=2, heads=2, schedule="constant", warmup=0.0),
        images,
        classifier_loop,
    ),
    "dqn": (
        lambda: make_agent("dqn-mlp", "rl-cartpole", **SMALL),
        lambda seed: transitions("rl-cartpole", 32, seed=seed),
        dqn_loop,
    ),
    "sac": (
        lambda: make_agent("sac-mlp", "rl-pendulum", temperature=0.2, **SMALL),
        lambda seed: transitions("rl-pendulum", 32, seed=seed),
        sac_loop,
    ),
}


def weights(agent: Any) -> Iterator[tuple[str, torch.Tensor]]:
    targets = {f"{role}-target": target for role, target in getattr(agent, "targets", {}).items()}
    for role, network in {**agent.networks, **targets}.items():
        for name, tensor in network.module.state_dict().items():
            yield f"{role}.{name}", tensor


def refused(action: Callable[[], Any]) -> bool:
    try:
        action()
    except UserError:
        return True
    return False


@pytest.mark.sample(18)
@pytest.mark.parametrize("kind", CASES)
@pytest.mark.parametrize("name", NAMES)
def test_harness_and_attach_give_the_same_weights(name: str, kind: str) -> None:
    make, batch_of, loop = CASES[kind]
    options = BUSY.get(name, {})
    harness, by_hand = make(), make()
    try:
        learner = Learner(harness, lambda: create(name, **options))
    except UserError:  # unsupported: both ways must refuse it
        assert refused(lambda: [attach(name, network, **options) for network in by_hand.networks.values()])
        return
    handles = {role: attach(name, network, **options) for role, network in by_hand.networks.items()}
    if kind == "classifier":
        harness.begin_task(10**6)
    prepare = getattr(harness, "add_targets", lambda batch, noise: batch)
    prepare_by_hand = getattr(by_hand, "add_targets", lambda batch, noise: batch)
    for round_number in range(2):
        for seed in range(UPDATES):
            batch = batch_of(10 * round_number + seed)
            learner.learn(batch.clone())
            loop(by_hand, handles, batch.clone())
        representative, noise = batch_of(100 + round_number), torch.Generator().manual_seed(round_number)
        try:
            learner.intervene(prepare(representative.clone(), noise))
        except UserError:
            batch = prepare_by_hand(representative.clone(), noise)
            assert refused(lambda: [handle.intervene(batch) for handle in handles.values()])  # noqa: B023
            return
        noise.manual_seed(round_number)
        batch = prepare_by_hand(representative.clone(), noise)
        for handle in handles.values():
            handle.intervene(batch)
        assert learner.updates == handles[next(iter(handles))].steps == UPDATES * (round_number + 1)
    found = dict(weights(by_hand))
    for tensor_name, tensor in weights(harness):
        assert torch.equal(tensor, found[tensor_name]), tensor_name


def test_loops_change_every_network() -> None:
    for make, batch_of, loop in CASES.values():
        agent = make()
        before = {name: tensor.clone() for name, tensor in weights(agent)}
        handles = {role: attach("none", network) for role, network in agent.networks.items()}
        loop(agent, handles, batch_of(0))
        for role in agent.networks:
            assert any(not torch.equal(before[n], t) for n, t in weights(agent) if n.startswith(f"{role}."))
