from __future__ import annotations

import inspect
import math

import pytest
import torch
from torch import Tensor, nn

from plastibench.nn.network import Network
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
    """Keeps the kinds of state found in NAdam and in optimizers of timm."""

    def step(self, closure=None):
        super().step(closure)
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                state["step"] = state.get("step", 0) + 1
                state["mu_product"] = state.get("mu_product", torch.ones(())) * 0.9


@pytest.mark.parametrize(("rule", "rows", "restarts"), [("mean", ROWS, False), ("restart", ROWS, True)])
def test_number_step_counts_and_products_over_steps_restart(rule, rows, restarts):
    parameter = nn.Parameter(torch.randn(5, 4))
    optimizer = Counting([parameter], lr=LR)
    for _ in range(3):
        parameter.grad = torch.ones(5, 4)
        optimizer.step()
    reset_state(optimizer, parameter, rows, rule)
    state = optimizer.state[parameter]
    assert state["step"] == (0 if restarts else 3)
    assert float(state["mu_product"]) == pytest.approx(1.0 if restarts else 0.9**3)
    reset_state(optimizer, parameter, torch.ones(5, 1, dtype=torch.bool), "mean")
    assert optimizer.state[parameter]["step"] == 0 and float(optimizer.state[parameter]["mu_product"]) == 1


def copied(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in optimizer.state[parameter].items() if isinstance(value, Tensor)}


@pytest.mark.parametrize("part", PARTS.values(), ids=PARTS.keys())
@pytest.mark.parametrize("rule", ["mean", "zero", "restart"])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_moments_of_the_changed_part_follow_the_rule_and_the_rest_stays(kind, rule, part):
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
        assert (after[name][inside] != before[name][inside]).all()  # not written into a copy
    assert torch.equal(parameter, weights)


@pytest.mark.parametrize("kind", ["adamw", "fused", "rmsprop"])
@pytest.mark.parametrize(("rule", "steps"), [("mean", 3), ("zero", 3), ("restart", 0)])
def test_step_count_restarts_only_with_restart(kind, rule, steps):
    parameter, optimizer = stepped(kind)
    reset_state(optimizer, parameter, ROWS, rule)
    assert float(optimizer.state[parameter]["step"]) == steps


@pytest.mark.parametrize("rule", ["mean", "zero", "restart"])
def test_state_is_new_if_all_entries_changed(rule):
    parameter, optimizer = stepped("adamw")
    reset_state(optimizer, parameter, torch.ones(5, 1, dtype=torch.bool), rule)
    state = optimizer.state[parameter]
    assert all(float(state[name].abs().sum()) == 0 for name in ("step", "exp_avg", "exp_avg_sq"))


def test_empty_mask_leaves_the_state():
    parameter, optimizer = stepped("adamw")
    before = copied(optimizer, parameter)
    reset_state(optimizer, parameter, torch.zeros(5, 1, dtype=torch.bool), "mean")
    assert all(torch.equal(optimizer.state[parameter][name], value) for name, value in before.items())


def test_biases_are_treated_like_weights():
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
def test_parameters_without_state_are_skipped(optimizer):
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


def test_sgd_without_momentum_has_no_state():
    parameter = nn.Parameter(torch.ones(5, 4))
    optimizer = torch.optim.SGD([parameter], lr=LR)
    parameter.grad = torch.ones(5, 4)
    optimizer.step()
    reset_state(optimizer, parameter, ROWS, "mean")
    optimizer.step()
    torch.testing.assert_close(parameter.detach(), torch.full((5, 4), 1 - 2 * LR))


def test_clear_state_deletes_only_the_given_states():
    first, second = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([first, second], lr=LR)
    first.grad = second.grad = torch.ones(3)
    optimizer.step()
    clear_state(optimizer, [first])
    assert set(optimizer.state) == {second}
    optimizer.step()  # the optimizer still works
    assert float(optimizer.state[first]["step"]) == 1
    assert float(optimizer.state[second]["step"]) == 2


def moves_after(rule: str, steps: int) -> tuple[list[float], list[float]]:
    """Steps of a reinitialized and a healthy row in learning rates, late in training, at a constant gradient."""
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


def test_zero_makes_the_reinitialized_part_jump():
    reinitialized, healthy = moves_after("zero", 20)
    assert reinitialized[0] == pytest.approx(0.1 / math.sqrt(0.001), rel=1e-3)  # 3.16
    assert max(reinitialized) == pytest.approx(6.57, abs=0.02)
    assert healthy == pytest.approx([1.0] * 20, abs=0.01)


def test_mean_neither_jumps_nor_slows_the_healthy_part():
    reinitialized, healthy = moves_after("mean", 60)
    assert reinitialized[0] == pytest.approx(0.1, rel=1e-3)
    assert max(reinitialized) < 1.01
    assert reinitialized[-1] == pytest.approx(1.0, abs=0.01)
    assert healthy == pytest.approx([1.0] * 60, abs=0.01)


def test_restart_moves_the_reinitialized_part_at_once_and_slows_the_healthy_part():
    reinitialized, healthy = moves_after("restart", 1)
    assert reinitialized[0] == pytest.approx(1.0, rel=1e-3)
    assert healthy[0] == pytest.approx(10 / math.sqrt(1000), rel=1e-3)  # 0.32


# Optimizers of torch and of other libraries ----------------------------------------------------------------------

TORCH = sorted(
    name
    for name, kind in vars(torch.optim).items()
    if inspect.isclass(kind) and issubclass(kind, torch.optim.Optimizer) and kind is not torch.optim.Optimizer
)
TIMM = ["adafactor", "adafactorbv", "adahessian", "adan", "lion", "lookahead_adamw", "lookahead_sgd", "madgrad"]
OTHERS = [
    *(f"schedulefree.{name}" for name in ("AdamWScheduleFree", "RAdamScheduleFree", "SGDScheduleFree")),
    *("lion_pytorch.Lion", "prodigyopt.Prodigy", "bitsandbytes.optim.Adam8bit"),
    *(pytest.param(f"heavyball.{name}", marks=pytest.mark.slow) for name in ("AdamW", "Muon")),  # they compile
    *(f"pytorch_optimizer.{name}" for name in ("SOAP", "CAME", "FlashAdamW", "SPAM", "Shampoo", "ScheduleFreeAdamW")),
]
REVIVED = torch.tensor([True, False, False, True, False, False, False, False])
RATES = {"ASGD": 0.1, "SGD": 0.1, "Adadelta": 1.0, "Muon": 0.3, "Prodigy": 1.0, "madgrad": 0.01, "lookahead_sgd": 0.02}


def optimizer_of(name: str, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """An optimizer of torch or timm, or of another library, which may be missing."""
    rate = RATES.get(name.rpartition(".")[2], 0.05)
    if name in TORCH:
        return getattr(torch.optim, name)(parameters, lr=rate)
    if "." not in name:
        import timm.optim

        return timm.optim.create_optimizer_v2(parameters, opt=name, lr=rate)
    module, _, kind = name.rpartition(".")
    return getattr(pytest.importorskip(module), kind)(parameters, lr=rate)


def descend(optimizer: torch.optim.Optimizer, parameter: nn.Parameter, target: Tensor, steps: int) -> None:
    """Minimize the squared distance to the target."""
    if hasattr(optimizer, "train"):
        optimizer.train()

    def closure() -> Tensor:
        optimizer.zero_grad()
        distance = (parameter - target).square().sum()
        distance.backward(create_graph=getattr(optimizer, "is_second_order", False))
        if isinstance(optimizer, torch.optim.SparseAdam):
            parameter.grad = parameter.grad.to_sparse()
        return distance

    for _ in range(steps):
        if isinstance(optimizer, torch.optim.LBFGS):
            optimizer.step(closure)
        else:
            closure()
            optimizer.step()


def revived(name: str) -> tuple[nn.Parameter, Tensor, torch.optim.Optimizer, dict[str, Tensor]]:
    """A parameter after 15 steps, of which two rows have new weights since then; its optimizer and the old state."""
    generator = torch.Generator().manual_seed(0)
    parameter = nn.Parameter(torch.randn(8, 6, generator=generator))
    target = torch.randn(8, 6, generator=generator)
    optimizer = optimizer_of(name, [parameter])
    descend(optimizer, parameter, target, 15)
    before = copied(optimizer, parameter) if parameter in optimizer.state else {}
    with torch.no_grad():
        parameter[REVIVED] = target[REVIVED] + 3.0
    reset_state(optimizer, parameter, REVIVED[:, None])
    return parameter, target, optimizer, before


def check_that_revived_rows_train(name: str) -> None:
    """They move towards the target about as far as with a new optimizer, instead of back to the old weights or to 0."""
    parameter, target, optimizer, before = revived(name)
    after = optimizer.state.get(parameter, {})
    for key, value in before.items():
        if value.ndim and value.shape[0] == 8 and key in after:
            assert torch.equal(after[key][~REVIVED], value[~REVIVED]), key
    other = nn.Parameter(parameter.detach().clone())
    new = optimizer_of(name, [other])
    steps = 20
    distances = []
    for _ in range(steps):
        descend(optimizer, parameter, target, 1)
        descend(new, other, target, 1)
        distances.append([float((p.detach() - target)[REVIVED].mean()) for p in (parameter, other)])
    ours, theirs = (3.0 - distances[-1][0], 3.0 - distances[-1][1])
    assert max(d for d, _ in distances) <= max(3.0 + 1e-4, *(d for _, d in distances))  # always towards the target
    assert theirs > 1e-4
    assert 0.05 * min(theirs, 3) < ours < 6, (ours, theirs)  # a new RAdam first takes steps of SGD
    assert float((parameter.detach() - target)[~REVIVED].abs().mean()) < 1.5


@pytest.mark.parametrize("name", TORCH)
def test_revived_rows_train_with_every_optimizer_of_torch(name):
    check_that_revived_rows_train(name)


@pytest.mark.parametrize("name", [*TIMM, *OTHERS])
def test_revived_rows_train_with_optimizers_of_other_libraries(name):
    check_that_revived_rows_train(name)


class Quantized(torch.optim.Optimizer):
    """Momentum SGD whose momentum is stored in 8 bits with one scale, as 8-bit optimizers do."""

    def __init__(self, parameters: list[nn.Parameter], lr: float = 0.1) -> None:
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                if not state:
                    state["code"] = torch.full(parameter.shape, 128, dtype=torch.uint8)
                    state["scale"] = torch.ones(())
                momentum = 0.9 * (state["code"].float() - 128) / 127 * state["scale"] + parameter.grad
                state["scale"] = momentum.abs().max()
                state["code"] = (momentum / state["scale"] * 127 + 128).round().to(torch.uint8)
                parameter.sub_(momentum, alpha=group["lr"])


class Slow(torch.optim.Optimizer):
    """Lookahead: every fifth step goes halfway back to slow weights, which it keeps in a state of its own."""

    def __init__(self, inner: torch.optim.Optimizer) -> None:
        self.optimizer = inner
        super().__init__(inner.param_groups, {})
        self.count = 0
        for parameter in inner.param_groups[0]["params"]:
            self.state[parameter]["slow_params"] = parameter.detach().clone()

    @torch.no_grad()
    def step(self) -> None:
        self.optimizer.step()
        self.count += 1
        for parameter, state in self.state.items() if self.count % 5 == 0 else ():
            state["slow_params"].lerp_(parameter, 0.5)
            parameter.copy_(state["slow_params"])


def test_quantized_state_is_deleted_and_this_is_said_once(capsys):
    for parameter in (nn.Parameter(torch.randn(8, 6)), nn.Parameter(torch.randn(8, 6))):
        other = nn.Parameter(torch.randn(3))
        optimizer = Quantized([parameter, other])
        other.grad = torch.ones(3)
        parameter.grad = torch.randn(8, 6)
        optimizer.step()
        kept = copied(optimizer, other)
        reset_state(optimizer, parameter, REVIVED[:, None])
        assert parameter not in optimizer.state
        assert all(torch.equal(value, optimizer.state[other][name]) for name, value in kept.items())
        optimizer.step()
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "Quantized" in said and "code" in said


@pytest.mark.parametrize("whole", [False, True])
def test_slow_weights_of_a_wrapper_become_the_new_weights(whole):
    parameter, target = nn.Parameter(torch.zeros(8, 6)), torch.ones(8, 6)
    network = Network(nn.ParameterList([parameter]), Slow(torch.optim.SGD([parameter], lr=0.01, momentum=0.9)), None)
    descend(network.optimizer, parameter, target, 4)
    slow, momentum = network.optimizer.state[parameter]["slow_params"], network.optimizer.optimizer.state[parameter]
    before = slow.clone()
    with torch.no_grad():
        parameter[REVIVED] = 7.0
    if whole:
        clear_state(network.optimizer, [parameter])
        assert torch.equal(slow, parameter) and not network.optimizer.optimizer.state
    else:
        reset_state(network.optimizer, parameter, REVIVED[:, None])
        assert (slow[REVIVED] == 7).all() and torch.equal(slow[~REVIVED], before[~REVIVED])
        assert not momentum["momentum_buffer"][REVIVED].any() and momentum["momentum_buffer"][~REVIVED].any()
    descend(network.optimizer, parameter, target, 1)  # takes the slow weights
    assert (parameter[REVIVED] > 6).all()


class Wrapper:
    """Lookahead as it is often written: not an optimizer itself, with slow weights in lists per group."""

    def __init__(self, inner: torch.optim.Optimizer) -> None:
        self.optimizer, self.param_groups = inner, inner.param_groups
        self.slow_weights = [[p.detach().clone() for p in group["params"]] for group in inner.param_groups]


class Master(torch.optim.SGD):
    """Steps float32 copies of the weights, which it then writes to the parameters."""

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        super().__init__(parameters, lr=0.01, momentum=0.9)
        self.master_params = [parameter.detach().clone().double() for parameter in parameters]


class Averaging(torch.optim.SGD):
    def __init__(self, parameters: list[nn.Parameter]) -> None:
        super().__init__(parameters, lr=0.01)
        self.state["ema"] = [parameter.detach().clone() for parameter in parameters]


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("kind", ["wrapper", "master", "averaging"])
def test_copies_of_weights_outside_of_the_state_become_the_new_weights(kind, whole):
    first, parameter = nn.Parameter(torch.ones(8, 6)), nn.Parameter(torch.zeros(8, 6))
    if kind == "wrapper":
        optimizer = Wrapper(torch.optim.SGD([first, parameter], lr=0.01))
        copies = optimizer.slow_weights[0]
    else:
        optimizer = (Master if kind == "master" else Averaging)([first, parameter])
        copies = optimizer.master_params if kind == "master" else optimizer.state["ema"]
    network = Network(nn.ParameterList([first, parameter]), optimizer, None)
    before = [each.clone() for each in copies]
    with torch.no_grad():
        parameter[REVIVED] = 7.0
    if whole:
        clear_state(network.optimizer, [parameter])
    else:
        reset_state(network.optimizer, parameter, REVIVED[:, None])
    assert torch.equal(copies[0], before[0]) and (copies[1] == parameter).all()


@pytest.mark.parametrize(
    ("name", "copied"),
    [("fp32_from_fp16_groups", True), ("_shadow", True), ("ema_grads", False), ("weight_masks", False)],
)
def test_a_list_is_a_copy_of_the_weights_according_to_its_name(name, copied):
    parameter = nn.Parameter(torch.zeros(8, 6))
    optimizer = torch.optim.SGD([parameter], lr=0.01)
    setattr(optimizer, name, [[torch.ones(8, 6)]])
    reset_state(optimizer, parameter, REVIVED[:, None])
    assert bool((getattr(optimizer, name)[0][0][REVIVED] == 0).all()) == copied


def test_lists_of_unknown_meaning_are_kept_and_this_is_said_once(capsys):
    parameter = nn.Parameter(torch.zeros(8, 6))
    optimizer = torch.optim.SGD([parameter], lr=0.01)
    optimizer.things = [torch.ones(8, 6)]
    for _ in range(2):
        reset_state(optimizer, parameter, REVIVED[:, None])
    assert (optimizer.things[0] == 1).all()
    assert capsys.readouterr().err == "plastibench: SGD.things holds tensors that interventions do not reset\n"


@pytest.mark.parametrize(
    ("name", "entry"), [("ASGD", "ax"), ("schedulefree.AdamWScheduleFree", "z"), ("schedulefree.SGDScheduleFree", "z")]
)
def test_copies_of_weights_get_the_new_weights(name, entry):
    parameter, _, optimizer, before = revived(name)
    copy_ = optimizer.state[parameter][entry]
    assert torch.equal(copy_[REVIVED], parameter[REVIVED])
    assert torch.equal(copy_[~REVIVED], before[entry][~REVIVED])


def test_step_sizes_of_rprop_restart_at_the_rate_of_their_group():
    first, second = nn.Parameter(torch.ones(4, 3)), nn.Parameter(torch.ones(4, 3))
    optimizer = torch.optim.Rprop([{"params": [first], "lr": 0.5}, {"params": [second], "lr": 0.25}])
    for _ in range(5):
        first.grad = second.grad = torch.ones(4, 3)
        optimizer.step()
    row = torch.tensor([[True], [False], [False], [False]])
    grown = float(optimizer.state[second]["step_size"][1, 0])
    reset_state(optimizer, second, row)
    assert optimizer.state[second]["step_size"][:, 0].tolist() == [0.25, grown, grown, grown]
    assert grown != 0.25 and not optimizer.state[second]["prev"][0].any()


def test_factored_second_moments_of_changed_rows_become_the_mean_of_the_others():
    parameter, _, optimizer, before = revived("Adafactor")
    after = optimizer.state[parameter]
    assert torch.equal(after["col_var"], before["col_var"])  # every column has weights that stay
    torch.testing.assert_close(after["row_var"][REVIVED], before["row_var"][~REVIVED].mean().expand(2, 1))


def test_the_history_of_lbfgs_covers_all_parameters():
    first, second = nn.Parameter(torch.ones(3)), nn.Parameter(torch.full((2, 3), 2.0))
    for act in (lambda o: clear_state(o, [second]), lambda o: reset_state(o, second, torch.tensor([[True], [False]]))):
        optimizer = torch.optim.LBFGS([first, second], lr=0.1)

        def closure(optimizer: torch.optim.Optimizer = optimizer) -> Tensor:
            optimizer.zero_grad()
            total = first.square().sum() + second.pow(4).sum()
            total.backward()
            return total

        optimizer.step(closure)
        assert optimizer.state[first]["old_dirs"]
        act(optimizer)
        assert not optimizer.state
        optimizer.step(closure)


def test_a_parameter_of_adagrad_can_be_cleared():
    parameter = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.Adagrad([parameter], lr=0.1, initial_accumulator_value=0.5)
    for _ in range(2):
        parameter.grad = torch.ones(3)
        optimizer.step()
        clear_state(optimizer, [parameter])
        assert optimizer.state[parameter]["sum"].tolist() == [0.5] * 3
        assert float(optimizer.state[parameter]["step"]) == 0
