from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from tensordict import TensorDict
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

from plastibench.config.errors import UserError
from plastibench.interventions.attach import apply, attach
from plastibench.nn.computed_weights import computed_parameters, copied, describe, plain_weights
from plastibench.nn.network import Network
from tests.support.networks import drawn

pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
NORMS = {"new": parametrizations.weight_norm, "old": nn.utils.weight_norm}
each_norm = pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS.keys())


def build(norm) -> nn.Sequential:
    return nn.Sequential(norm(nn.Linear(6, 12)), nn.ReLU(), norm(nn.Linear(12, 12)), nn.ReLU(), nn.Linear(12, 3))


def loss(module: nn.Module, batch: TensorDict) -> Tensor:
    return F.cross_entropy(module(batch["x"]), batch["y"])


def data(seed: int = 0) -> TensorDict:
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randn(64, 6, generator=generator), torch.randint(3, (64,), generator=generator)
    return TensorDict({"x": x, "y": y}, [64])


def trained(norm) -> Network:
    module = drawn(lambda: build(norm))
    network = Network(module, torch.optim.AdamW(module.parameters(), lr=1e-2), loss, fresh=lambda: build(norm))
    for seed in range(3):
        network.update(loss(module, data(seed)), data(seed))
    loss(module, data())  # the old form computes its attribute in a pass
    return network


def weights(module: nn.Module) -> list[Tensor]:
    """The weights that the network computes with."""
    return [module[index].weight.detach().clone() for index in (0, 2, 4)]


@each_norm
def test_resets_draw_the_effective_weights(norm):
    network = trained(norm)
    names, before, identities = [*network.module.state_dict()], weights(network.module), [*network.module.parameters()]
    generator = network.generator.get_state()
    attach("reset-linear", network).intervene(data())
    network.generator.set_state(generator)
    fresh = network.fresh()
    loss(fresh, data())
    for old, new, wanted in zip(before, weights(network.module), weights(fresh), strict=True):
        torch.testing.assert_close(new, wanted)
        assert not torch.isclose(old, new).any(1).all()
    assert [*network.module.state_dict()] == names
    assert all(a is b for a, b in zip(network.module.parameters(), identities, strict=True))


@each_norm
@pytest.mark.parametrize("name", ["redo", "rnr", "low-gradient-quantile"])
def test_unit_level_methods_act_as_on_the_same_network_without_normalization(norm, name):
    """One with the effective weights as ordinary parameters, and the same draws."""
    network, batch = trained(norm), data()
    plain = copied(network.module)
    with plain_weights(plain, None):
        plain = copy.deepcopy(plain)
    fresh = lambda: drawn(lambda: build(lambda layer: layer), 7)  # noqa: E731

    def normalized() -> nn.Module:
        module = drawn(lambda: build(norm), 7)
        with plain_weights(module, None):
            module.load_state_dict(fresh().state_dict())
        return module

    options = {"tau": 0.9} if name == "redo" else {}
    twin = Network(plain, None, loss, fresh=fresh)
    network._fresh = normalized
    report = attach(name, network, **options).intervene(batch)
    expected = attach(name, twin, **options).intervene(batch)
    assert all(torch.equal(mask, expected.units[key]) for key, mask in report.units.items()) and expected.units
    assert any(bool(mask.any()) for mask in expected.units.values())
    loss(network.module, batch)
    for found, wanted in zip(weights(network.module), weights(plain), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(network.module(batch["x"]), plain(batch["x"]), rtol=1e-4, atol=1e-5)


@each_norm
def test_rows_that_stay_keep_their_bits_and_their_optimizer_state(norm):
    network = trained(norm)
    layer = network.module[2]
    originals = [p for name, p in network.module.named_parameters() if name in computed_parameters(layer_of(network))]
    before = [p.detach().clone() for p in originals]
    states = [{k: v.clone() for k, v in network.optimizer.state[p].items()} for p in originals]
    with network.plain_weights(), torch.no_grad():
        assert isinstance(layer.weight, nn.Parameter) and network.fresh()[2].weight.is_leaf
        layer.weight[3] = 2.0
        layer.weight[5] = 0.0
    rows = torch.tensor([index in (3, 5) for index in range(12)])
    loss(network.module, data())
    torch.testing.assert_close(layer.weight[3], torch.full((12,), 2.0))
    assert not layer.weight[5].any() and layer.weight.isfinite().all()
    for parameter, old, state in zip(originals, before, states, strict=True):
        now = network.optimizer.state[parameter]
        assert torch.equal(parameter[~rows], old[~rows])
        assert torch.equal(now["exp_avg"][~rows], state["exp_avg"][~rows])
        assert not now["exp_avg"][3].any() and float(now["step"]) == 3
    network.update(loss(network.module, data()), data())
    assert layer.weight[5].isfinite().all()


def layer_of(network: Network) -> nn.Module:
    """The module without its first layer, so that names stay."""
    rest = copied(network.module)
    rest[0] = nn.Identity()
    return rest


@each_norm
def test_nothing_changes_without_writes_and_after_an_error(norm):
    network = trained(norm)
    before = {name: value.clone() for name, value in network.module.state_dict().items()}
    with network.plain_weights():
        pass

    def fail() -> None:
        with network.plain_weights(), torch.no_grad():
            network.module[0].weight.zero_()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert all(torch.equal(value, before[name]) for name, value in network.module.state_dict().items())
    attached = attach("reset-linear", network)
    network.loss = None  # the trace of the network fails
    with pytest.raises(TypeError):
        attached.intervene(data())
    assert all(torch.equal(value, before[name]) for name, value in network.module.state_dict().items())


def test_parametrizations_that_cannot_represent_every_weight_are_named(capsys):
    for norm in (parametrizations.spectral_norm, parametrizations.orthogonal, nn.utils.spectral_norm):
        module = drawn(lambda norm=norm: build(norm))
        assert "2 modules (0, 2)" in describe(module)
        before = {name: value.clone() for name, value in module.named_parameters()}
        apply("low-gradient-quantile", nn.Sequential(nn.Linear(6, 6), nn.ReLU(), module), data(), loss)
        said = capsys.readouterr().err
        assert said.count("2 modules (2.0, 2.2)") == 1 and "skip" in said
        assert torch.equal(dict(module.named_parameters())["0.bias"], before["0.bias"])
    assert not describe(drawn(lambda: build(parametrizations.weight_norm)))


def test_any_parametrization_with_a_right_inverse_is_written():
    class Doubled(nn.Module):
        def forward(self, original: Tensor) -> Tensor:
            return 2 * original

        def right_inverse(self, value: Tensor) -> Tensor:
            return value / 2

    class OneWay(nn.Module):
        def forward(self, original: Tensor) -> Tensor:
            return original.exp()

    module = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3))
    parametrize.register_parametrization(module[0], "weight", Doubled())
    with plain_weights(module, None), torch.no_grad():
        module[0].weight.fill_(3.0)
    assert (module[0].weight == 3).all() and (module[0].parametrizations.weight.original == 1.5).all()
    parametrize.register_parametrization(module[2], "weight", OneWay())
    assert "(2)" in describe(module)


def test_modules_that_keep_tensors_with_a_graph_can_be_copied():
    class Keeps(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            self.last = super().forward(x)
            return self.last

    module = Keeps(nn.Linear(6, 3))
    network = Network(module, torch.optim.SGD(module.parameters(), lr=0.1), loss)
    found = loss(module, data())
    attached = attach("ema", network)  # copies the module
    assert module.last.requires_grad and not attached.evaluated.last.requires_grad
    network.update(found, data())
    attached.intervene(data())


class Twice(nn.Module):
    """A parametrization of any tensor that can be written back."""

    def forward(self, value: Tensor) -> Tensor:
        return 2 * value

    def right_inverse(self, value: Tensor) -> Tensor:
        return value / 2


def with_bias(layer: nn.Linear) -> nn.Linear:
    parametrize.register_parametrization(layer, "bias", Twice())
    return parametrizations.weight_norm(layer)


OTHERS = {
    "one norm for the whole matrix": lambda layer: parametrizations.weight_norm(layer, dim=None),
    "bias": with_bias,
    "weight without a scale": lambda layer: parametrize.register_parametrization(layer, "weight", Twice()),
}


@pytest.mark.parametrize("name", ["reset", "redo", "rnr", "shrink-perturb", "fire", "distil"])
@pytest.mark.parametrize("kind", OTHERS.values(), ids=OTHERS.keys())
def test_methods_act_on_the_effective_weights_of_other_parametrizations(kind, name: str) -> None:
    network, plain = trained(kind), drawn(lambda: build(lambda layer: layer))
    with plain_weights(network.module, None):
        plain.load_state_dict(network.module.state_dict())
    reference = Network(plain, torch.optim.AdamW(plain.parameters(), lr=1e-2), loss, generator=torch.Generator())
    options = {"tau": 1.0} if name == "redo" else {"steps": 5} if name == "distil" else {}
    names = [*network.module.state_dict()]
    reports = []
    for each in (network, reference):
        each.generator.manual_seed(3)
        reports.append(attach(name, each, **options).intervene(data(), expect_steps=False))
    assert [*network.module.state_dict()] == names
    for key in reports[0].units:
        assert torch.equal(reports[0].units[key], reports[1].units[key])
    if name == "redo":  # draws nothing but the revived rows
        for index, mask in ((0, "0"), (2, "2")):
            old, new = reference.module[index], network.module[index]
            rows = ~reports[0].units[mask]
            torch.testing.assert_close(new.weight[rows], old.weight[rows], rtol=1e-4, atol=1e-6)
        following = network.module[2].weight[:, reports[0].units["0"]]
        assert (following == 0).all() and following.numel()


def test_weight_and_bias_of_one_layer_are_written_separately() -> None:
    module = drawn(lambda: build(with_bias))
    weight, bias = module[0].weight.detach().clone(), module[0].bias.detach().clone()
    with plain_weights(module, None), torch.no_grad():
        module[0].bias[0] = 5.0
        module[0].weight[1] = 2.0
    assert module[0].bias[0] == 5.0 and torch.equal(module[0].bias[1:], bias[1:])
    torch.testing.assert_close(module[0].weight[1], torch.full((6,), 2.0))
    others = torch.arange(12) != 1
    assert torch.equal(module[0].weight[others], weight[others])


@pytest.mark.parametrize("failing", [1, 2])
def test_an_error_while_weights_are_written_back_restores_all(failing: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from plastibench.nn import computed_weights

    network = trained(parametrizations.weight_norm)
    before = copy.deepcopy(network.module.state_dict())
    written: list[int] = []
    real = computed_weights._write

    def fails_once(*args: object) -> None:
        written.append(1)
        if len(written) == failing:
            raise RuntimeError("full")
        real(*args)

    monkeypatch.setattr(computed_weights, "_write", fails_once)
    with pytest.raises(Exception, match="full"):
        attach("reset", network).intervene(data(), expect_steps=False)
    after = network.module.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[key], before[key]) for key in before)


def pruned(seed: int = 0) -> nn.Sequential:
    module = drawn(lambda: build(lambda layer: layer), seed)
    for index in (0, 2):
        prune.l1_unstructured(module[index], "weight", amount=0.3)
    return module


def test_pruned_weights_are_reset_by_a_builder_only(capsys):
    module, batch = pruned(), data()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with pytest.raises(UserError, match=r"cannot reinitialize 0\.weight_orig: unknown initialization; pass a builder"):
        attach("reset", module, torch.optim.SGD(module.parameters(), lr=0.1), loss).intervene(batch)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert "the weights of 2 modules (0, 2) are computed from other parameters" in capsys.readouterr().err
    network = Network(module, None, loss, fresh=lambda: pruned(7))
    attach("reset", network).intervene(batch)
    loss(module, batch)
    for index in (0, 2):
        layer, fresh = module[index], pruned(7)[index]
        torch.testing.assert_close(layer.weight_orig, fresh.weight_orig)
        assert torch.equal(layer.weight_mask, fresh.weight_mask)
        assert torch.equal(layer.weight, layer.weight_orig * layer.weight_mask)
