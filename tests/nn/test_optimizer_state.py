from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from plastibench.nn.optimizer_state import clear_state, reset_state

LR = 1e-3
ROWS = torch.tensor([True, False, True, False, False])[:, None]
COLUMNS = torch.tensor([False, True, True, False])[None]
PARTS = {"rows": ROWS, "columns": COLUMNS}
OPTIMIZERS = {
    "adamw": (lambda p: torch.optim.AdamW(p, lr=LR), {"exp_avg"}, {"exp_avg_sq"}),
    "amsgrad": (lambda p: torch.optim.AdamW(p, lr=LR, amsgrad=True), {"exp_avg"}, {"exp_avg_sq", "max_exp_avg_sq"}),
    "fused": (lambda p: torch.optim.AdamW(p, lr=LR, fused=True), {"exp_avg"}, {"exp_avg_sq"}),
    "sgd": (lambda p: torch.optim.SGD(p, lr=LR, momentum=0.9), {"momentum_buffer"}, set()),
    "rmsprop": (
        lambda p: torch.optim.RMSprop(p, lr=LR, momentum=0.9, centered=True),
        {"momentum_buffer", "grad_avg"},
        {"square_avg"},
    ),
}


def stepped(kind: str, steps: int = 3) -> tuple[nn.Parameter, torch.optim.Optimizer]:
    """A 5 x 4 parameter and an optimizer whose state differs in every entry."""
    generator = torch.Generator().manual_seed(0)
    parameter = nn.Parameter(torch.randn(5, 4, generator=generator))
    optimizer = OPTIMIZERS[kind][0]([parameter])
    for _ in range(steps):
        parameter.grad = torch.randn(5, 4, generator=generator)
        optimizer.step()
    return parameter, optimizer


class Counting(torch.optim.SGD):
    """Keeps the state that timm's and torch's less usual optimizers keep."""

    def step(self, closure=None):
        super().step(closure)
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                state["step"] = state.get("step", 0) + 1
                state["mu_product"] = state.get("mu_product", torch.ones(())) * 0.9


@pytest.mark.parametrize(("rule", "rows", "begins_anew"), [("mean", ROWS, False), ("restart", ROWS, True)])
def test_counts_that_are_no_tensors_and_products_over_steps_begin_anew(rule, rows, begins_anew):
    parameter = nn.Parameter(torch.randn(5, 4))
    optimizer = Counting([parameter], lr=LR)
    for _ in range(3):
        parameter.grad = torch.ones(5, 4)
        optimizer.step()
    reset_state(optimizer, parameter, rows, rule)
    state = optimizer.state[parameter]
    assert state["step"] == (0 if begins_anew else 3)
    assert float(state["mu_product"]) == pytest.approx(1.0 if begins_anew else 0.9**3)
    reset_state(optimizer, parameter, torch.ones(5, 1, dtype=torch.bool), "mean")
    assert optimizer.state[parameter]["step"] == 0 and float(optimizer.state[parameter]["mu_product"]) == 1


def copied(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in optimizer.state[parameter].items() if isinstance(value, Tensor)}


@pytest.mark.parametrize("part", PARTS.values(), ids=PARTS.keys())
@pytest.mark.parametrize("rule", ["mean", "zero", "restart"])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_moments_of_the_changed_part_follow_the_rule_and_the_others_stay(kind, rule, part):
    parameter, optimizer = stepped(kind)
    _, first, squared = OPTIMIZERS[kind]
    before, weights = copied(optimizer, parameter), parameter.detach().clone()
    reset_state(optimizer, parameter, part, rule)
    after = optimizer.state[parameter]
    inside = part.expand(5, 4)
    assert first | squared <= set(after)
    for name in first | squared:
        assert torch.equal(after[name][~inside], before[name][~inside])
        expected = before[name][~inside].mean() if rule == "mean" and name in squared else torch.tensor(0.0)
        torch.testing.assert_close(after[name][inside], expected.expand(int(inside.sum())))
        assert (after[name][inside] != before[name][inside]).all()  # no write into a copy
    assert torch.equal(parameter, weights)


@pytest.mark.parametrize("kind", ["adamw", "fused", "rmsprop"])
@pytest.mark.parametrize(("rule", "steps"), [("mean", 3), ("zero", 3), ("restart", 0)])
def test_the_step_count_starts_again_only_with_restart(kind, rule, steps):
    parameter, optimizer = stepped(kind)
    reset_state(optimizer, parameter, ROWS, rule)
    assert float(optimizer.state[parameter]["step"]) == steps


@pytest.mark.parametrize("rule", ["mean", "zero", "restart"])
def test_when_everything_changed_the_state_is_as_new(rule):
    parameter, optimizer = stepped("adamw")
    reset_state(optimizer, parameter, torch.ones(5, 1, dtype=torch.bool), rule)
    state = optimizer.state[parameter]
    assert all(float(state[name].abs().sum()) == 0 for name in ("step", "exp_avg", "exp_avg_sq"))


def test_nothing_changed_leaves_the_state():
    parameter, optimizer = stepped("adamw")
    before = copied(optimizer, parameter)
    reset_state(optimizer, parameter, torch.zeros(5, 1, dtype=torch.bool), "mean")
    assert all(torch.equal(optimizer.state[parameter][name], value) for name, value in before.items())


def test_biases_are_treated_as_weights_are():
    parameter = nn.Parameter(torch.zeros(4))
    optimizer = torch.optim.AdamW([parameter], lr=LR)
    parameter.grad = torch.tensor([1.0, 2.0, 3.0, 4.0])
    optimizer.step()
    before = copied(optimizer, parameter)
    reset_state(optimizer, parameter, torch.tensor([True, False, False, True]), "mean")
    state = optimizer.state[parameter]
    assert state["exp_avg"].tolist() == [0, *before["exp_avg"][1:3].tolist(), 0]
    assert float(state["exp_avg_sq"][0]) == pytest.approx(float(before["exp_avg_sq"][1:3].mean()))


@pytest.mark.parametrize("optimizer", [None, "unstepped", "foreign"])
def test_without_state_there_is_nothing_to_do(optimizer):
    parameter = nn.Parameter(torch.zeros(5, 4))
    if optimizer == "unstepped":
        optimizer = torch.optim.AdamW([parameter])
    elif optimizer == "foreign":
        _, optimizer = stepped("adamw")
        before = {name: value.clone() for name, value in next(iter(optimizer.state.values())).items()}
    reset_state(optimizer, parameter, ROWS, "mean")
    clear_state(optimizer, [parameter])
    if optimizer is not None:
        assert parameter not in optimizer.state
    if optimizer is not None and optimizer.state:
        assert all(torch.equal(next(iter(optimizer.state.values()))[name], value) for name, value in before.items())


def test_sgd_without_momentum_has_nothing_to_forget():
    parameter = nn.Parameter(torch.ones(5, 4))
    optimizer = torch.optim.SGD([parameter], lr=LR)
    parameter.grad = torch.ones(5, 4)
    optimizer.step()
    reset_state(optimizer, parameter, ROWS, "mean")
    optimizer.step()
    torch.testing.assert_close(parameter.detach(), torch.full((5, 4), 1 - 2 * LR))


def test_forget_all_drops_the_named_states_and_no_other():
    first, second = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([first, second], lr=LR)
    first.grad = second.grad = torch.ones(3)
    optimizer.step()
    clear_state(optimizer, [first])
    assert set(optimizer.state) == {second}
    optimizer.step()  # and the optimizer goes on
    assert float(optimizer.state[first]["step"]) == 1
    assert float(optimizer.state[second]["step"]) == 2


def moves_after(rule: str, steps: int) -> tuple[list[float], list[float]]:
    """How many learning rates a re-drawn and a healthy row move at each step, late in training, constant gradient."""
    parameter = nn.Parameter(torch.zeros(4, 3))
    optimizer = torch.optim.AdamW([parameter], lr=LR, betas=(0.9, 0.999), weight_decay=0.0)
    parameter.grad = torch.full((4, 3), 0.7)
    optimizer.step()
    state = optimizer.state[parameter]
    state["step"].fill_(1e6)
    state["exp_avg"].fill_(0.7)
    state["exp_avg_sq"].fill_(0.49)
    reset_state(optimizer, parameter, torch.tensor([[True], [False], [False], [False]]), rule)
    moves = []
    for _ in range(steps):
        before = parameter.detach().clone()
        optimizer.step()
        moves.append(((before - parameter.detach()) / LR)[:2, 0].tolist())
    return [m[0] for m in moves], [m[1] for m in moves]


def test_zero_makes_the_redrawn_part_jump():
    redrawn, healthy = moves_after("zero", 20)
    assert redrawn[0] == pytest.approx(0.1 / math.sqrt(0.001), rel=1e-3)  # 3.16
    assert max(redrawn) == pytest.approx(6.57, abs=0.02)
    assert healthy == pytest.approx([1.0] * 20, abs=0.01)


def test_mean_neither_jumps_nor_slows_the_healthy_part():
    redrawn, healthy = moves_after("mean", 60)
    assert redrawn[0] == pytest.approx(0.1, rel=1e-3)
    assert max(redrawn) < 1.01
    assert redrawn[-1] == pytest.approx(1.0, abs=0.01)
    assert healthy == pytest.approx([1.0] * 60, abs=0.01)


def test_restart_steps_the_redrawn_part_at_once_and_slows_the_healthy_part():
    redrawn, healthy = moves_after("restart", 1)
    assert redrawn[0] == pytest.approx(1.0, rel=1e-3)
    assert healthy[0] == pytest.approx(10 / math.sqrt(1000), rel=1e-3)  # 0.32
