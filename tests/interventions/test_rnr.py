from __future__ import annotations

import copy
import itertools

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

from plastibench.config.errors import UserError
from plastibench.interventions.revive import Revive
from plastibench.interventions.rnr import RnR
from plastibench.nn.dataflow import trace
from plastibench.nn.network import Network
from plastibench.nn.units import has_units
from tests.support.networks import (
    add_noise,
    agent_builder,
    changed,
    constant,
    double,
    drawn,
    images,
    logits,
    loss,
    network_of,
    small_resnet,
    small_vit,
    state,
    train,
)
from tests.support.references import array, copy_units, gradient_scores, lowest, refitted, seen, write

MLP = agent_builder("mlp", width=12, hidden=3)


def grouped() -> nn.Module:
    middle = nn.Conv2d(4, 4, 3, groups=2)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), middle, nn.ReLU(), nn.Flatten(), nn.Linear(64, 10))


class Encoder(nn.Module):
    """PyTorch's encoder, which runs as one fused kernel in evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(16, 16)
        self.encoder = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.head = nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(self.embed(x.reshape(-1, 4, 16)))[:, 0])


NETWORKS = {"vit": small_vit(), "hnt": small_vit(variant="hnt"), "mlp": MLP, "resnet": small_resnet, "grouped": grouped}
each_network = pytest.mark.parametrize("builder", NETWORKS.values(), ids=NETWORKS.keys())


def off_start(builder, **options: object) -> Network:
    """A network with non-identity LayerNorms and nonzero biases."""
    network = network_of(builder, **options)
    add_noise(network.module, 0.1)
    return network


def difference(module: nn.Module, before: torch.Tensor, batch) -> float:
    return float((logits(module, batch) - before).abs().max())


# --- acceptance tests -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ridge", [1e-2, 10.0])
@each_network
def test_reviving_nothing_preserves_parameters_with_delta_ridge(builder, ridge):
    network, batch = off_start(builder), images(48)
    before = state(network.module)
    report = RnR(quantile=0.0, ridge=ridge).intervene(network, batch)
    assert report.revived_fraction == 0
    assert any("residual" in figures for figures in report.modules.values())  # some module was refitted
    for name, tensor in state(network.module).items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=1e-6, msg=lambda text, name=name: name + text)


@each_network
def test_reviving_nothing_preserves_outputs_with_pinv(builder):
    network, batch = off_start(builder), images(48)
    before, weights = logits(network.module, batch), state(network.module)
    RnR(quantile=0.0, solver="pinv").intervene(network, batch)
    assert difference(network.module, before, batch) < 1e-4
    assert changed(weights, network.module)  # null directions change, so a system was solved


def between(middle) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.ReLU(), middle, nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 10)
    )


UNUSUAL = {
    "standardised convolution": lambda: between(timm.layers.StdConv2d(8, 8, 3)),
    "convolution padded as it runs": lambda: between(timm.layers.Conv2dSame(8, 8, 3, stride=2)),
    "layernorm over channels": lambda: between(timm.layers.LayerNorm2d(8)),
    "fused encoder": Encoder,
}


@pytest.mark.parametrize("builder", [*NETWORKS.values(), *UNUSUAL.values()], ids=[*NETWORKS, *UNUSUAL])
def test_last_layer_restores_outputs_exactly_with_fewer_samples_than_inputs(builder):
    """The last layer is fitted on its actual inputs, however many units are revived before it."""
    network, batch = off_start(builder), images(6)
    before = logits(network.module, batch)
    RnR(quantile=0.5, solver="pinv").intervene(network, batch)
    assert difference(network.module, before, batch) < 2e-3


def test_modules_inside_a_fused_encoder_are_refitted():
    network, batch = off_start(Encoder), images(48)
    report = RnR(quantile=0.4).intervene(network, batch)
    refits = {name for name, figures in report.modules.items() if "residual" in figures}
    assert refits == {f"encoder.{part}" for part in ("linear1", "linear2", "norm1", "norm2")} | {"head"}


@pytest.mark.parametrize("quantile", [0.4, 1.0])
def test_readers_compensate_revived_norms_exactly(quantile):
    network, batch = off_start(small_vit()), images(64)
    before, weights = logits(network.module, batch), state(network.module)
    report = RnR(modules="norm", quantile=quantile, solver="pinv").intervene(network, batch)
    assert set(report.units) == {"norm", *(f"blocks.{b}.norm{n}" for b in range(2) for n in (1, 2))}
    for name, mask in report.units.items():
        norm = network.module.get_submodule(name)
        assert int(mask.sum()) == int(quantile * 16)
        assert (norm.weight[mask] == 1).all()
        assert (norm.bias[mask] == 0).all()
        assert not (weights[f"{name}.weight"][mask] == 1).any()
    assert difference(network.module, before, batch) < 1e-4
    held_out = images(64, seed=9)
    assert difference(network.module, logits(off_start(small_vit()).module, held_out), held_out) < 1e-3


def test_revived_norms_without_recoupling_change_outputs():
    network, batch = off_start(small_vit()), images(64)
    before = logits(network.module, batch)
    Revive(modules="norm", quantile=0.4).intervene(network, batch)
    assert difference(network.module, before, batch) > 1e-2


@pytest.mark.sample(2)
@pytest.mark.parametrize("held_out", [False, True])
@pytest.mark.parametrize("options", [{"solver": "pinv"}, {"ridge": 1e-2}, {}], ids=str)
def test_recoupling_changes_outputs_less_than_reviving_alone_or_zeroing(options, held_out):
    batch, seen_later = images(256), images(256, seed=9 if held_out else 0)
    methods = {
        "rnr": RnR(modules="fc1", quantile=0.4, **options),
        "revive": Revive(modules="fc1", quantile=0.4),
        "zeroed": Revive(modules="fc1", quantile=0.4, outgoing="zero"),
    }
    changes, masks = {}, {}
    for name, method in methods.items():
        network = train(off_start(small_vit(), lr=1e-2), batch, 10)
        before = logits(network.module, seen_later)
        masks[name] = method.intervene(network, batch).units
        changes[name] = float((logits(network.module, seen_later) - before).norm())
    assert set(masks["rnr"]) == {"blocks.0.mlp.fc1", "blocks.1.mlp.fc1"}
    for name in masks["rnr"]:  # the same units, for a fair comparison
        assert int(masks["rnr"][name].sum()) == 25
        assert torch.equal(masks["rnr"][name], masks["revive"][name])
        assert torch.equal(masks["rnr"][name], masks["zeroed"][name])
    assert changes["rnr"] < 0.9 * changes["revive"]
    assert changes["rnr"] < 0.9 * changes["zeroed"]
    assert changes["rnr"] > 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("solver", ["delta-ridge", "pinv"])
def test_cuda_and_cpu_agree(solver):
    outputs = []
    for device in ("cpu", "cuda"):
        network, batch = off_start(small_vit()), images(128)
        network.module.to(device)
        RnR(quantile=0.4, ridge=1e-2, solver=solver).intervene(network, batch.to(device))
        outputs.append(logits(network.module.cpu(), batch))
    torch.testing.assert_close(outputs[1], outputs[0], rtol=0, atol=1e-5)


# --- manual Algorithm 1 -----------------------------------------------------------------------------------------------


def by_hand(network: Network, fresh: nn.Module, names, batch, *, ridge, local, per_layer):
    """Run the algorithm of the paper on a copy of the module. Return the copy and the masks."""
    student, teacher = copy.deepcopy(network.module), copy.deepcopy(network.module)
    masks = {name: lowest(gradient_scores(student, name, batch), 0.4) for name in names[:-1]}
    for name, reader in itertools.pairwise(names):
        if per_layer:
            masks[name] = lowest(gradient_scores(student, name, batch), 0.4)
        if local:
            teacher = copy.deepcopy(student)
        copy_units(student.get_submodule(name), fresh.get_submodule(name), masks[name])
        inputs, targets = seen(student, reader, batch)[0], seen(teacher, reader, batch)[1]
        place = student.get_submodule(reader)
        write(place, refitted(place, inputs, targets, ridge))
    return student, masks


PARTS = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
MODULES = {
    "mlp": (double(MLP), ["1", "3", "5", "7"]),
    "vit": (double(small_vit(depth=1)), ["patch_embed.proj", *(f"blocks.0.{part}" for part in PARTS), "norm", "head"]),
}


@pytest.mark.parametrize("targets", ["global", "local"])
@pytest.mark.parametrize("scoring", ["once", "per-layer"])
@pytest.mark.parametrize(("builder", "names"), MODULES.values(), ids=MODULES.keys())
def test_each_targets_and_scoring_variant_matches_a_manual_implementation(builder, names, scoring, targets):
    network, batch = off_start(builder), images(48)
    batch["image"] = batch["image"].double()
    source = drawn(builder, 77)
    network._fresh = lambda: copy.deepcopy(source)
    expected, masks = by_hand(
        network, source, names, batch, ridge=0.3, local=targets == "local", per_layer=scoring == "per-layer"
    )
    report = RnR(quantile=0.4, ridge=0.3, targets=targets, scoring=scoring).intervene(network, batch)
    for name, mask in masks.items():
        np.testing.assert_array_equal(report.units[name].numpy(), mask.numpy(), err_msg=name)
    for (name, found), wanted in zip(network.module.named_parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-8, msg=lambda text, name=name: f"{name}: {text}")


def after(**options: object) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    network = off_start(MLP)
    network._fresh = lambda: drawn(MLP, 77)
    report = RnR(quantile=0.4, ridge=1e-2, **options).intervene(network, images(64))
    return state(network.module), report.units


def test_variants_agree_on_the_first_pair_and_differ_later():
    base, masks = after()
    local, _ = after(targets="local")
    rescored, new_masks = after(scoring="per-layer")
    for other in (local, rescored):
        kept = ~masks["3"]
        torch.testing.assert_close(other["1.weight"], base["1.weight"], rtol=0, atol=0)
        if other is local:
            torch.testing.assert_close(other["3.weight"][kept], base["3.weight"][kept], rtol=1e-4, atol=1e-5)
        assert not torch.allclose(other["7.weight"], base["7.weight"], atol=1e-3)
    assert torch.equal(new_masks["1"], masks["1"])
    assert any(not torch.equal(new_masks[name], masks[name]) for name in masks)


def test_global_targets_preserve_outputs_better_than_local_targets():
    distances = {}
    for targets in ("global", "local"):
        network, batch = off_start(MLP), images(256)
        network._fresh = lambda: drawn(MLP, 77)
        before = logits(network.module, batch)
        RnR(quantile=0.4, solver="pinv", targets=targets).intervene(network, batch)
        distances[targets] = float((logits(network.module, batch) - before).norm())
    assert distances["global"] < distances["local"]


# --- options ----------------------------------------------------------------------------------------------------------


@pytest.mark.sample(4)
@pytest.mark.parametrize("reading", [{}, {"targets": "local"}], ids=str)
@pytest.mark.parametrize(
    "options",
    [
        {"criterion": "redo", "tau": 0.7},
        {"criterion": "regrama", "tau": 0.9},
        {"criterion": "weight-norm", "quantile": 0.2},
        {"split_qkv": True},
        {"residual_writers": False},
        {"modules": "hidden"},
        {"modules": "norm|qkv", "quantile": 0.7},
    ],
    ids=str,
)
def test_rnr_selects_the_same_units_as_revive(options, reading):
    chosen = Revive(**options).intervene(off_start(small_vit()), images(24)).units
    found = RnR(**options, **reading).intervene(off_start(small_vit()), images(24)).units
    assert list(found) == list(chosen)
    assert all(torch.equal(found[name], chosen[name]) for name in chosen)
    plain = Revive().intervene(off_start(small_vit()), images(24)).units
    assert list(plain) != list(chosen) or any(not torch.equal(plain[name], chosen[name]) for name in chosen)


@each_network
def test_revived_units_keep_their_new_weights(builder):
    network, batch = off_start(builder), images(24)
    network._fresh = constant(builder, 0.125)
    before = state(network.module)
    report = RnR(quantile=0.4, ridge=1e-2).intervene(network, batch)
    names = list(report.units)
    for name, mask in report.units.items():
        for key, parameter in network.module.get_submodule(name).named_parameters(prefix=name):
            assert (parameter[mask] == 0.125).all()
            if name == names[0]:
                assert torch.equal(parameter[~mask], before[key][~mask])  # the first module is not refitted


def test_report_describes_the_intervention():
    network, batch = off_start(MLP), images(64)
    report = RnR(quantile=0.5).intervene(network, batch)
    assert list(report.units) == ["1", "3", "5"]
    assert report.revived_fraction == pytest.approx(0.5)
    assert report.modules["1"] == {"revived": 6, "units": 12}
    for name in ("3", "5", "7"):
        assert {"residual", "norm_ratio"} <= set(report.modules[name])
        assert 0 < report.modules[name]["residual"] < 1
    revived = 6 * (64 + 1) + 2 * 6 * (12 + 1)
    refit = 2 * 6 * 13 + 10 * 13
    assert report.parameters == revived + refit


@pytest.mark.parametrize("options", [{}, {"targets": "local"}, {"scoring": "per-layer"}], ids=str)
def test_max_growth_bounds_refitted_weights(options):
    norms = {}
    for limit in (0.0, 1.2):
        network = train(off_start(small_vit(depth=1), lr=1e-2), images(32), 5)
        before = state(network.module)
        report = RnR(quantile=0.6, solver="pinv", max_growth=limit, **options).intervene(network, images(32))
        ratios = [f["norm_ratio"] for n, f in report.modules.items() if "norm_ratio" in f and "norm" not in n]
        norms[limit] = max(ratios)
        head = network.module.head.weight
        assert report.modules["head"]["norm_ratio"] == pytest.approx(
            float(head.detach().double().norm() / before["head.weight"].double().norm()), rel=1e-4
        )
    assert norms[0.0] > 1.2
    assert norms[1.2] <= 1.2 + 1e-9


@pytest.mark.parametrize("options", [{}, {"targets": "local"}, {"scoring": "per-layer"}], ids=str)
def test_optimizer_state_of_refitted_modules_is_reset_and_of_the_first_follows_the_rule(options):
    batch = images(64)
    network = train(network_of(MLP, lr=1e-2), batch)
    first = network.module[1].weight
    moments = network.optimizer.state[first]["exp_avg"].clone()
    mask = RnR(quantile=0.4, **options).intervene(network, batch).units["1"]
    stateful = {name for name, p in network.module.named_parameters() if network.optimizer.state.get(p)}
    assert stateful == {"1.weight", "1.bias"}
    assert torch.equal(network.optimizer.state[first]["exp_avg"][~mask], moments[~mask])
    assert (network.optimizer.state[first]["exp_avg"][mask] == 0).all()
    train(network, batch)  # training continues
    assert all(torch.isfinite(p).all() for p in network.module.parameters())


@pytest.mark.parametrize("options", [{}, {"targets": "local"}], ids=str)
def test_modules_without_a_match_are_a_user_error(options):
    with pytest.raises(UserError, match="matches no module"):
        RnR(modules="nothing-like-this", **options).intervene(off_start(MLP), images())


def test_repeated_interventions_stay_finite_and_bounded():
    network, batch = off_start(small_vit()), images(64)
    before = float(sum(p.detach().square().sum() for p in network.module.parameters()).sqrt())
    for _ in range(5):
        RnR(quantile=0.4).intervene(network, batch)
    parameters = list(network.module.parameters())
    assert all(torch.isfinite(p).all() for p in parameters)
    assert float(sum(p.detach().square().sum() for p in parameters).sqrt()) < 10 * before
    assert np.isfinite(array(logits(network.module, batch))).all()


# --- decay and refit --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("criterion", "quantile", "tau"), [("low-gradient-quantile", 0.5, 1.0), ("regrama", 0.4, 1.5)])
def test_quantile_or_tau_decays_with_each_intervention(criterion, quantile, tau, tmp_path):
    method = RnR(criterion, quantile=quantile, tau=tau, decay=0.5)
    network, batch = network_of(agent_builder("mlp", width=16)), images(32)
    for number in range(3):
        twin = copy.deepcopy(network.module)
        reference = Network(twin, None, network.loss, fresh=network._fresh)
        reference.generator.set_state(network.generator.get_state())
        plain = RnR(criterion, quantile=quantile * 0.5**number, tau=tau * 0.5**number)
        expected = plain.intervene(reference, batch)
        torch.save(method.state_dict(), tmp_path / "state.pt")
        method = RnR(criterion, quantile=quantile, tau=tau, decay=0.5)  # as after a resume
        method.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
        report = method.intervene(network, batch)
        assert not changed(state(twin), network.module)
        assert all(torch.equal(mask, expected.units[name]) for name, mask in report.units.items())
        if criterion == "low-gradient-quantile":
            assert [int(mask.sum()) for mask in report.units.values()] == [16 // 2 ** (number + 1)] * 2


def test_without_decay_the_share_stays_and_old_checkpoints_load():
    method = RnR(quantile=0.5)
    method.load_state_dict({})
    network, batch = network_of(agent_builder("mlp", width=16)), images(32)
    for _ in range(2):
        report = method.intervene(network, batch)
        assert [int(mask.sum()) for mask in report.units.values()] == [8, 8]


BLOCKS = [f"blocks.{number}" for number in range(2)]
PARTS = {
    "mlp": [f"{block}.mlp.{layer}" for block in BLOCKS for layer in ("fc1", "fc2")],
    "attention": [f"{block}.attn.{layer}" for block in BLOCKS for layer in ("qkv", "proj")],
    "layernorm": [f"{block}.{norm}" for block in BLOCKS for norm in ("norm1", "norm2")] + ["norm"],
    r"^head$": ["head"],
}


@pytest.mark.parametrize("targets", ["global", "local"])
@pytest.mark.parametrize("refit", PARTS)
def test_refit_restricts_recoupling_but_not_reviving(refit, targets):
    network, batch = off_start(small_vit()), images(32)
    fresh = copy.deepcopy(network)
    revived = Revive(quantile=0.25).intervene(fresh, batch)
    before = state(network.module)
    report = RnR(quantile=0.25, refit=refit, targets=targets).intervene(network, batch)
    assert {name for name, figures in report.modules.items() if "residual" in figures} == set(PARTS[refit])
    assert {name: int(mask.sum()) for name, mask in report.units.items()} == {
        name: int(mask.sum()) for name, mask in revived.units.items()
    }
    for name, mask in report.units.items():
        if name not in PARTS[refit]:  # rows that were not revived are bit-identical
            weight = network.module.get_parameter(f"{name}.weight")
            assert torch.equal(weight[~mask], before[f"{name}.weight"][~mask])


@pytest.mark.parametrize("refit", [*PARTS])
def test_what_is_recoupled_is_what_recouple_recouples(refit):
    """Refitting one part equals Recouple with a regular expression of the same modules."""
    from plastibench.interventions.recouple import Recouple

    outcomes = []
    pattern = "|".join(f"^{name}$".replace(".", r"\.") for name in PARTS[refit])
    for method in (RnR(quantile=0.25, refit=refit), Recouple(Revive(quantile=0.25), refit=pattern)):
        network, batch = off_start(small_vit()), images(32)
        method.intervene(network, batch)
        outcomes.append(state(network.module))
    assert all(torch.equal(value, outcomes[1][name]) for name, value in outcomes[0].items())


def test_mlp_selects_every_hidden_linear_in_a_network_without_blocks():
    network, batch = network_of(MLP), images(32)
    report = RnR(refit="mlp").intervene(network, batch)
    assert {name for name, figures in report.modules.items() if "residual" in figures} == {"3", "5"}


@pytest.mark.parametrize("refit", ["attention", "layernorm", "nothing-like-this", "("])
def test_missing_part_is_a_user_error_and_changes_nothing(refit):
    network, batch = network_of(MLP), images(32)
    before = state(network.module)
    with pytest.raises(UserError):
        RnR(refit=refit).intervene(network, batch)
    assert not changed(before, network.module)


@pytest.mark.parametrize("solver", ["delta-ridge", "pinv"])
@pytest.mark.parametrize("builder", [MLP, small_vit(depth=1)])
def test_report_describes_the_refitted_units(builder, solver):
    network, batch = off_start(builder), images(64)
    teacher, before = copy.deepcopy(network.module), state(network.module)
    seen: dict[str, list[Tensor]] = {}

    def outputs_of(module: nn.Module) -> None:
        names = {child: name for name, child in module.named_modules()}
        hooks = [
            child.register_forward_hook(lambda m, args, out: seen.setdefault(names[m], []).append(out.detach()))
            for child in module.modules()
            if has_units(child)
        ]
        with torch.no_grad():
            loss(module.eval(), batch)
        for hook in hooks:
            hook.remove()

    report = RnR(quantile=0.4, solver=solver).intervene(network, batch)
    outputs_of(teacher)
    outputs_of(network.module)
    for name, figures in report.modules.items():
        if "residual" not in figures:
            continue
        mask = report.units.get(name)
        rows = slice(None) if mask is None else ~mask
        axis = 1 if seen[name][0].ndim == 4 else -1
        wanted, found = (values.double().movedim(axis, -1)[..., rows] for values in seen[name])
        assert figures["residual"] == pytest.approx(float((found - wanted).norm() / wanted.norm()), rel=1e-2, abs=1e-3)
        new, old = network.module.get_submodule(name).weight.detach()[rows], before[f"{name}.weight"][rows]
        assert figures["norm_ratio"] == pytest.approx(float(new.norm() / old.norm()), rel=1e-3)


def test_reviving_nothing_keeps_optimizer_state():
    network, batch = train(off_start(MLP, lr=1e-2), images(32), 3), images(32)
    before = {p: dict(network.optimizer.state[p]) for p in network.module.parameters()}
    RnR(quantile=0.0).intervene(network, batch)
    for parameter, was in before.items():
        assert network.optimizer.state[parameter].keys() == was.keys()
        assert torch.equal(network.optimizer.state[parameter]["exp_avg"], was["exp_avg"])


@pytest.mark.parametrize("options", [{}, {"targets": "local"}], ids=str)
def test_frozen_modules_are_not_refitted(options):
    network, batch = off_start(MLP), images(64)
    network.module.get_submodule("3").requires_grad_(False)
    before = state(network.module)
    report = RnR(quantile=0.4, **options).intervene(network, batch)
    moved = {name.rpartition(".")[0] for name in changed(before, network.module)}
    assert moved == {"1", "5", "7"} and "3" not in report.modules
    assert not any("3" in unit for unit in report.units)


def test_parametrized_weight_is_skipped_and_not_reported():
    def build() -> nn.Module:
        module = MLP()
        nn.utils.parametrizations.weight_norm(module.get_submodule("3"))
        return module

    network, batch = off_start(build), images(64)
    report = RnR(quantile=0.4).intervene(network, batch)
    assert "3" not in report.modules and set(report.units) == {"1", "5"}


def test_readers_with_grouped_convolutions_are_skipped():
    network, batch = off_start(lambda: between(nn.Conv2d(8, 8, 3, groups=2))), images(32)
    unit = trace(network, batch)[0]
    assert not unit.columns
    Revive("redo", tau=10.0, outgoing="zero").intervene(network, batch)  # every hidden unit; no error
