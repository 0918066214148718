from __future__ import annotations

import copy
import io
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor, nn

from plastibench import Intervention, Report, attach
from plastibench.config.errors import UserError
from plastibench.config.options import build
from plastibench.config.registry import interventions
from plastibench.interventions.attach import Attached
from plastibench.nn.network import Network
from tests.support import networks

MLP = networks.agent_builder("mlp", width=16, hidden=2)


@dataclass
class Pull(Intervention):
    """A penalty with a known gradient, and a note of all that is called."""

    strength: float = 0.5
    calls: list[str] = field(default_factory=list)
    gradients: list[Tensor] = field(default_factory=list)

    def penalty(self, network: Network, batch: TensorDict) -> Tensor:
        self.calls.append("penalty")
        return 0.5 * self.strength * sum(p.square().sum() for p in network.module.parameters())

    def before_update(self, network: Network) -> None:
        self.calls.append("before")
        self.gradients.append(next(network.module.parameters()).grad.clone())

    def after_update(self, network: Network) -> None:
        self.calls.append("after")

    def intervene(self, network: Network, batch: TensorDict) -> Report:
        self.calls.append("intervene")
        return Report(parameters=len(batch))


class Quiet(Intervention):
    """Only hears of updates."""

    def __init__(self) -> None:
        self.gradients: list[Tensor] = []
        self.updates = 0

    def before_update(self, network: Network) -> None:
        self.gradients += [p.grad.clone() for p in network.module.parameters()]

    def after_update(self, network: Network) -> None:
        self.updates += 1


def batches(count: int) -> list[TensorDict]:
    return [networks.images(seed=seed) for seed in range(count)]


def step(attached: Attached, batch: TensorDict) -> None:
    """One update as a user writes it."""
    network = attached.network
    loss = network.loss(network.module, batch) + attached.penalty(batch)
    network.optimizer.zero_grad()
    loss.backward()
    network.optimizer.step()


# What runs when ---------------------------------------------------------------------------------------------------


BUSY = {"continual-backprop": {"rate": 0.2, "maturity": 1}}  # something happens within a few updates


@pytest.mark.parametrize("name", ["upgd-adam", "continual-backprop", "neuroplastic-expansion", "upgd+redo"])
def test_a_plain_loop_does_what_an_agent_does(name: str) -> None:
    """The reference calls every hook by hand, in the agent's order."""
    by_hand, attached = (networks.network_of(MLP, lr=1e-2) for _ in range(2))
    handle = attach(name, attached, **BUSY.get(name, {}))
    entry = interventions[name]
    method = build(entry.load(), {**entry.defaults, **BUSY.get(name, {})}, name)
    method.prepare(by_hand)
    for batch in batches(4):
        networks.update(by_hand, method, batch)
        step(handle, batch)
    method.intervene(by_hand, networks.images(64, seed=9))
    handle.intervene(networks.images(64, seed=9))
    assert not networks.changed(networks.state(by_hand.module), attached.module)
    assert torch.equal(by_hand.generator.get_state(), attached.generator.get_state())
    plain = networks.network_of(MLP, lr=1e-2)
    for batch in batches(4):
        networks.update(plain, Intervention(), batch)
    assert networks.changed(networks.state(plain.module), attached.module), "the method must have done something"


@pytest.mark.parametrize("fused", [False, True])
def test_hooks_run_around_each_step_of_a_scheduled_optimizer(fused: bool) -> None:
    network = networks.network_of(MLP)
    network.optimizer = torch.optim.AdamW(network.module.parameters(), lr=0.1, fused=fused)
    schedule = torch.optim.lr_scheduler.LinearLR(network.optimizer)  # wraps optimizer.step
    method = Pull()
    attached = attach(method, network)
    for batch in batches(2):
        step(attached, batch)
        schedule.step()
    assert method.calls == ["penalty", "before", "after"] * 2
    assert attached.steps == 2


def test_the_penalty_adds_its_gradient() -> None:
    network, batch = networks.network_of(MLP, lr=0.0), networks.images()
    weights = next(network.module.parameters())
    network.loss(network.module, batch).backward()
    plain = weights.grad.clone()
    method = Pull(strength=0.25)
    step(attach(method, network), batch)
    torch.testing.assert_close(method.gradients[0], plain + 0.25 * weights.detach())


def test_no_penalty_is_zero() -> None:
    assert attach("rnr", networks.network_of(MLP, lr=1e-3)).penalty(networks.images()) == 0


def test_gradients_are_seen_after_a_closure_has_made_them() -> None:
    network, batch = networks.network_of(MLP), networks.images()
    network.optimizer = torch.optim.SGD(network.module.parameters(), lr=0.1)
    network.loss(network.module, batch).backward()
    expected = [p.grad.clone() for p in network.module.parameters()]
    network.optimizer.zero_grad()
    method = Quiet()
    attach(method, network)

    def closure() -> Tensor:
        loss = network.loss(network.module, batch)
        loss.backward()
        return loss

    for way in ((closure,), ()):
        before = copy.deepcopy(network.module.state_dict())
        returned = network.optimizer.step(*way, **({} if way else {"closure": closure}))
        assert returned is not None and returned.ndim == 0
        network.module.load_state_dict(before)
        network.optimizer.zero_grad()
    assert method.updates == 2 and len(method.gradients) == 2 * len(expected)
    for seen, wanted in zip(method.gradients, expected * 2, strict=True):
        torch.testing.assert_close(seen, wanted)


# Mixed precision --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("unscale", [False, True])
def test_gradients_of_a_grad_scaler_are_seen_unscaled(fused: bool, unscale: bool) -> None:
    def train(scaled: bool) -> tuple[Quiet, nn.Module]:
        network = networks.network_of(MLP)
        network.optimizer = torch.optim.AdamW(network.module.parameters(), lr=1e-2, fused=fused)
        scaler = torch.amp.GradScaler("cpu", enabled=scaled, init_scale=1024.0)
        method = Quiet()
        attach(method, network)
        for batch in batches(3):
            network.optimizer.zero_grad()
            scaler.scale(network.loss(network.module, batch)).backward()
            if unscale:
                scaler.unscale_(network.optimizer)
                nn.utils.clip_grad_norm_(network.module.parameters(), 0.1)
            scaler.step(network.optimizer)
            scaler.update()
        return method, network.module

    (scaled, module), (plain, reference) = train(True), train(False)
    assert scaled.updates == plain.updates == 3
    for seen, wanted in zip(scaled.gradients, plain.gradients, strict=True):
        torch.testing.assert_close(seen, wanted)
    for ours, theirs in zip(module.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_the_scaler_skips_is_none(fused: bool) -> None:
    network = networks.network_of(MLP)
    network.optimizer = torch.optim.AdamW(network.module.parameters(), lr=1e-2, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    method = Quiet()
    attached = attach(method, network)
    scaler.scale(network.loss(network.module, networks.images())).backward()
    next(network.module.parameters()).grad[0] = torch.inf
    before = networks.state(network.module)
    scaler.step(network.optimizer)
    scaler.update()
    assert not networks.changed(before, network.module)
    assert attached.steps == method.updates == 0 and not method.gradients


# A new optimizer, and none ----------------------------------------------------------------------------------------


def test_a_new_optimizer_is_followed_and_the_old_one_is_not() -> None:
    network = networks.network_of(MLP, lr=1e-3)
    old, method = network.optimizer, Pull()
    attached = attach(method, network)
    attached.optimizer = torch.optim.SGD(network.module.parameters(), lr=0.1)
    assert network.optimizer is attached.optimizer is not old
    step(attached, networks.images())
    assert method.calls == ["penalty", "before", "after"]
    old.step()
    assert method.calls == ["penalty", "before", "after"]


def test_a_wrapped_optimizer_is_unwrapped() -> None:
    class Wrapper:
        def __init__(self, optimizer: torch.optim.Optimizer) -> None:
            self.optimizer = optimizer

    network = networks.network_of(MLP, lr=1e-3)
    inner, network.optimizer = network.optimizer, Wrapper(network.optimizer)
    assert attach(Pull(), network).optimizer is inner


def test_a_forgotten_optimizer_is_noticed(capsys: pytest.CaptureFixture[str]) -> None:
    network = networks.network_of(MLP, lr=1e-3)
    attached = attach(Pull(), network)
    step(attached, networks.images())
    attached.intervene(networks.images())
    assert capsys.readouterr().err == ""
    torch.optim.SGD(network.module.parameters(), lr=0.1).step()
    attached.intervene(networks.images())
    error = capsys.readouterr().err
    assert "attached.optimizer = optimizer" in error and error.count("\n") == 1


def test_detached_it_follows_no_more() -> None:
    network = networks.network_of(MLP, lr=1e-3)
    method = Pull()
    with attach(method, network) as attached:
        step(attached, networks.images())
    method.calls.clear()
    network.optimizer.step()
    assert method.calls == [] and attached.steps == 1


# Interventions ----------------------------------------------------------------------------------------------------


def test_intervene_reports_what_was_done_and_how_long_it_took() -> None:
    attached = attach("reset", networks.network_of(MLP, lr=1e-3), select="head")
    network = attached.network
    before = networks.state(network.module)
    report = attached.intervene(dict(networks.images().items()))  # a plain dict of tensors
    changed = networks.changed(before, network.module)
    assert changed and report.parameters == sum(before[name].numel() for name in changed)
    assert report is attached.report and report.seconds > 0


@pytest.mark.parametrize("name", ["rnr", "rnr-mlp", "recouple"])
def test_a_diverged_network_is_reported_and_left_as_it_is(name: str) -> None:
    network = networks.network_of(MLP, lr=1e-3)
    with torch.no_grad():
        next(network.module.parameters()).fill_(torch.nan)
    before = networks.state(network.module)
    with pytest.raises(UserError) as caught:
        attach(name, network).intervene(networks.images())
    assert "not finite" in str(caught.value) and "\n" not in str(caught.value)
    for key, value in networks.state(network.module).items():
        torch.testing.assert_close(value, before[key], rtol=0, atol=0, equal_nan=True)


def test_the_schedule_counts_steps() -> None:
    method = Pull()
    attached = attach(method, networks.network_of(MLP, lr=1e-3))
    attached.schedule(2, lambda: networks.images(7))
    for batch in batches(5):
        step(attached, batch)
    update = ["penalty", "before", "after"]
    assert method.calls == [*update, *update, "intervene", *update, *update, "intervene", *update]
    assert attached.report.parameters == 7


def test_the_evaluated_module_is_the_methods() -> None:
    slow = nn.Linear(1, 1)

    class Slow(Intervention):
        def evaluated(self, network: Network) -> nn.Module:
            return slow

    assert attach(Slow(), networks.network_of(MLP)).evaluated is slow
    attached = attach("none", networks.network_of(MLP))
    assert attached.evaluated is attached.network.module


# Going on after an interruption -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["rnr", "continual-backprop", "upgd", "neuroplastic-expansion", "upgd+redo"])
def test_a_resumed_loop_ends_bit_identical(name: str) -> None:
    def begin() -> Attached:
        attached = attach(name, networks.network_of(MLP, lr=1e-2), **BUSY.get(name, {}))
        attached.schedule(3, lambda: networks.images(64, seed=attached.steps))
        return attached

    whole, first = begin(), begin()
    for batch in batches(7):
        step(whole, batch)
    for batch in batches(4):
        step(first, batch)
    kept = io.BytesIO()
    module, optimizer = first.network.module, first.network.optimizer
    torch.save([module.state_dict(), optimizer.state_dict(), first.state_dict()], kept)
    kept.seek(0)
    states = torch.load(kept, weights_only=True)
    second = begin()
    second.network.module.load_state_dict(states[0])
    second.network.optimizer.load_state_dict(states[1])
    second.load_state_dict(states[2])
    for batch in batches(7)[4:]:
        step(second, batch)
    assert not networks.changed(networks.state(whole.network.module), second.network.module)
    assert second.steps == 7


def test_a_keeper_that_is_restored_does_not_warn_of_steps_that_it_has_seen(capsys: pytest.CaptureFixture[str]) -> None:
    first, second = (attach("upgd-adam+reset", networks.network_of(MLP, lr=1e-3)) for _ in range(2))
    step(first, networks.images())
    second.load_state_dict(first.state_dict())
    second.intervene(networks.images())
    assert capsys.readouterr().err == ""
    second.intervene(networks.images())
    assert "no optimizer step was seen" in capsys.readouterr().err


# Mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["continual-backprop", "rnr+continual-backprop"])
def test_a_method_that_sees_batches_asks_for_its_penalty(name: str) -> None:
    network = networks.network_of(MLP, lr=1e-3)
    attach(name, network)
    network.loss(network.module, networks.images()).backward()
    with pytest.raises(UserError, match=r"attached\.penalty\(batch\)"):
        network.optimizer.step()


@pytest.mark.parametrize("name", ["rnr", "rnr+upgd", "recouple"])
def test_a_method_without_a_penalty_does_not(name: str) -> None:
    network = networks.network_of(MLP, lr=1e-3)
    attach(name, network)
    network.loss(network.module, networks.images()).backward()
    network.optimizer.step()


def _mistakes() -> dict[str, tuple[Callable[[Network], Any], str]]:
    return {
        "name": (lambda network: attach("rmr", network), "did you mean 'rnr'"),
        "option": (lambda network: attach("rnr", network, quantil=0.1), "did you mean 'quantile'"),
        "options of an instance": (lambda network: attach(Pull(), network, strength=1.0), "given by name"),
        "interval": (lambda network: attach("rnr", network).schedule(0, networks.images), "at least 1"),
    }


@pytest.mark.parametrize("mistake", _mistakes())
def test_mistakes_are_told_in_one_line(mistake: str) -> None:
    act, reason = _mistakes()[mistake]
    with pytest.raises(UserError) as caught:
        act(networks.network_of(MLP, lr=1e-3))
    assert reason in str(caught.value) and "\n" not in str(caught.value)


def test_options_of_a_combination_are_reached() -> None:
    attached = attach("upgd+redo", networks.network_of(MLP, lr=1e-3), redo__tau=0.3)
    assert attached.intervention.parts["redo"].tau == 0.3
