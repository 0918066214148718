"""A streamed refit gives the result of one pass, holds less, and changes nothing if it fails."""

from __future__ import annotations

import copy
import functools
import subprocess
import sys
import threading
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tensordict import TensorDict
from torch import Tensor, nn

from plastibench.interventions.attach import attach
from plastibench.nn.dataflow import trace
from plastibench.nn.fitted_parameters import fitted_parameters
from plastibench.nn.least_squares import Solver
from plastibench.nn.memory import MemoryPlan
from plastibench.nn.network import Network
from plastibench.nn.refit import refit, refit_in_one_pass, snapshot
from plastibench.nn.refit_streamed import refit_streamed
from plastibench.nn.repeatable import repeatable_modules
from plastibench.nn.row_order import RowOrder, RowsMoved, row_order
from tests.support.networks import (
    add_noise,
    agent_builder,
    double,
    drawn,
    images,
    network_of,
    small_resnet,
    small_vit,
    state,
    train,
)
from tests.support.references import copy_units

ROOT = Path(__file__).resolve().parents[2]
SOLVER = Solver(ridge=1e-2)


class InPlace(nn.Module):
    """A block that changes its input in place."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        x.tanh_()
        return x.add_(self.two(F.relu(self.one(x))))


class Skips(nn.Module):
    """The output of the first block is read by the last one, as in a U-Net."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(64, 16)
        self.down, self.middle = InPlace(), InPlace()
        self.up = nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 10))

    def forward(self, x: Tensor) -> Tensor:
        early = self.down(self.stem(x.flatten(1)))
        return self.up(torch.cat([early, self.middle(early.clone())], 1))


class Cache:
    def __init__(self) -> None:
        self.seen: list[Tensor] = []


class Caching(nn.Module):
    """A block that remembers its inputs during a forward pass, as a language model caches keys and values."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x: Tensor, cache: Cache) -> Tensor:
        cache.seen.append(x)
        return self.two(F.relu(self.one(torch.stack(cache.seen).sum(0))))


class Reusing(Caching):
    """A block that computes something only once per forward pass, as cross-attention computes keys and values."""

    def forward(self, x: Tensor, cache: Cache) -> Tensor:
        if not cache.seen:
            cache.seen.append(self.one(x))
        return self.two(F.relu(cache.seen[0]))


class Cached(nn.Module):
    def __init__(self, block: type[nn.Module] = Caching) -> None:
        super().__init__()
        self.stem, self.block, self.head = nn.Linear(64, 16), block(), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(self.stem(x.flatten(1)), Cache()))


def compiled_part() -> nn.Module:
    block = torch.compile(nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16)), backend="eager")
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), block, nn.Linear(16, 10))


NETWORKS = {
    "vit": small_vit(),
    "mlp": agent_builder("mlp", width=12, hidden=3),
    "resnet": small_resnet,
    "skips": Skips,
    "cached": Cached,
    "reusing": functools.partial(Cached, Reusing),
    "compiled": compiled_part,
}
each_network = pytest.mark.parametrize("builder", NETWORKS.values(), ids=NETWORKS.keys())


def batch_of(count: int = 40) -> TensorDict:
    batch = images(count)
    batch["image"] = batch["image"].double()
    return batch


def revived(builder) -> tuple[Network, dict, dict[str, Tensor], dict[str, Tensor]]:
    """A float64 network after revive: its layers, their parameters before, and the masks."""
    network = network_of(double(builder), lr=1e-3)
    add_noise(network.module, 0.2)
    layers, source = trace(network, batch_of(4)), drawn(double(builder), 77)
    before = snapshot(layers)
    masks = {layer.name: torch.arange(len(layer.module.weight)) % 3 == 1 for layer in layers[:-1]}
    order = row_order(network, batch_of(), layers)
    for name, mask in masks.items():
        copy_units(network.module.get_submodule(name), source.get_submodule(name), mask)
    return network, (batch_of(), layers, before, masks, lambda _: True, SOLVER, order)


def assert_close(one: nn.Module, other: nn.Module) -> None:
    for (name, a), (_, b) in zip(one.state_dict().items(), other.state_dict().items(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10, msg=lambda text, name=name: f"{name}: {text}")


@each_network
def test_the_result_is_that_of_one_pass(builder):
    network, arguments = revived(builder)
    streamed = copy.deepcopy(network)
    held = refit_in_one_pass(network, *arguments)
    layers = trace(streamed, arguments[0])
    fits = refit_streamed(streamed, arguments[0], layers, *arguments[2:], chunk_size=16)  # two chunks and a part
    assert_close(streamed.module, network.module)
    assert list(fits) == list(held)
    for name, fit in fits.items():
        assert fit.residual == pytest.approx(held[name].residual, rel=1e-6, abs=1e-9)
        assert fit.norm_ratio == pytest.approx(held[name].norm_ratio, rel=1e-6)


def test_the_result_is_the_same_every_time():
    found = []
    for _ in range(2):
        network, arguments = revived(small_vit())
        refit_streamed(network, *arguments, chunk_size=16)
        found.append(state(network.module))
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())


def test_modules_of_a_few_layers_run_again_unless_they_remember():
    names = {}
    for name, builder in NETWORKS.items():
        network = network_of(builder)
        before = state(network.module)
        found = repeatable_modules(network, images(), trace(network, images()))
        known = {module: name for name, module in network.module.named_modules()}
        names[name] = [known[module] for module in found]
        assert all(torch.equal(before[key], value) for key, value in state(network.module).items())
    assert names["vit"] == ["blocks.0", "blocks.1"]
    assert names["resnet"] == ["layer1", "layer2", "layer3", "layer4"]
    assert names["skips"] == ["down", "middle", "up"]
    assert names["compiled"] == ["2._orig_mod"]
    assert names["mlp"] == names["cached"] == names["reusing"] == []


def test_a_pass_holds_only_the_inputs_of_a_module():
    """At the second layer of an MLP block, the wide activations of finished chunks are free."""
    network, arguments = revived(small_vit())
    wide: list[weakref.ref[Tensor]] = []
    alive: list[int] = []

    def note(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        wide.append(weakref.ref(output))
        alive.append(sum(each() is not None for each in wide))

    network.module.blocks[1].mlp.act.register_forward_hook(note)
    refit_streamed(network, *arguments, chunk_size=4)
    assert len(alive) >= 2 * 10 and max(alive) <= 2  # ten chunks, at least twice


PEAK = """
import torch, re, pathlib, sys
from torch import nn
from plastibench.nn.dataflow import trace
from plastibench.nn.least_squares import Solver
from plastibench.nn.memory import MemoryPlan
from plastibench.nn.refit import refit, snapshot
from plastibench.nn.row_order import row_order
from tests.support.networks import images, network_of

class Wide(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(64, 64), nn.Linear(64, 64)
    def forward(self, x):
        return x + self.two(self.one(x).repeat(1, 64).sin().reshape(len(x), 64, 64).mean(1))  # 16 KiB per row

def resident(name):
    return int(re.search(name + r":\\s+(\\d+) kB", pathlib.Path("/proc/self/status").read_text())[1]) // 1024

network = network_of(lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 64), Wide(), Wide(), nn.Linear(64, 10)))
batch = images(4096)
layers = trace(network, batch)
order, before = row_order(network, batch, layers), snapshot(layers)
with torch.no_grad():
    layers[0].module.weight[:9].neg_()
for plan in (MemoryPlan(64, True), MemoryPlan()):
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    start = resident("VmHWM")
    refit(network, batch, layers, before, {}, lambda _: True, Solver(), order, plan)
    print(resident("VmHWM") - start)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of the resident memory from /proc")
def test_a_process_needs_less_memory():
    """The allocator must not keep for each pass what it has freed."""
    found = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    streamed, held = map(int, found.split())
    assert held > 128  # MiB: twice 4,096 rows of 16 KiB
    assert streamed < held / 3


def test_optimizer_state_of_refitted_layers_is_cleared_as_in_one_pass():
    found = []
    for chunk in (None, 16):
        network = train(network_of(small_vit(), lr=1e-2), images(40))
        layers = trace(network, images(40))
        order, before = row_order(network, images(40), layers), snapshot(layers)
        copy_units(network.module.patch_embed.proj, drawn(small_vit(), 7).patch_embed.proj, torch.arange(16) < 5)
        plan = MemoryPlan() if chunk is None else MemoryPlan(chunk, True)
        refit(network, images(40), layers, before, {}, lambda name: "blocks.1" in name, SOLVER, order, plan)
        found.append({name for name, p in network.module.named_parameters() if network.optimizer.state.get(p)})
    assert found[0] == found[1] < set(dict(network.module.named_parameters()))


# --- failures ---------------------------------------------------------------------------------------------------------


def assert_untouched(network: Network, before: dict[str, Tensor], threads: int) -> None:
    assert threading.active_count() == threads
    assert all(torch.equal(before[name], value) for name, value in state(network.module).items())
    for child in network.module.modules():
        assert "forward" not in child.__dict__ and not child._forward_hooks and child.training


@pytest.mark.parametrize("call", [1, 2, 5, 9])
def test_nothing_changes_when_a_pass_raises(call, monkeypatch):
    network, arguments = revived(small_vit())
    before, threads, random = state(network.module), threading.active_count(), torch.get_rng_state()
    calls = []

    def fail(module: nn.Module, x: Tensor) -> Tensor:
        calls.append(x)
        if len(calls) == call:
            raise ArithmeticError
        return F.gelu(x)

    monkeypatch.setattr(type(network.module.blocks[0].mlp.act), "forward", fail)
    with pytest.raises(ArithmeticError):
        refit_streamed(network, *arguments, chunk_size=16)
    assert_untouched(network, before, threads)
    assert torch.equal(torch.get_rng_state(), random)


def test_nothing_changes_when_it_is_interrupted_between_layers(monkeypatch):
    network, arguments = revived(small_vit())
    before, threads, calls = state(network.module), threading.active_count(), []

    def interrupted(*given: Any) -> Any:
        calls.append(given)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return fitted_parameters(*given)

    monkeypatch.setattr("plastibench.nn.refit_streamed.fitted_parameters", interrupted)
    with pytest.raises(KeyboardInterrupt):
        refit_streamed(network, *arguments, chunk_size=16)
    assert_untouched(network, before, threads)


class Branching(nn.Module):
    """Skips a layer in some chunks."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.inner, self.head = nn.Linear(64, 8), nn.Linear(8, 8), nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x.flatten(1))
        return self.head(x if len(x) == 16 else self.inner(x))


def test_a_layer_that_does_not_run_in_a_chunk_is_reported():
    network, arguments = revived(Branching)
    before, threads = state(network.module), threading.active_count()
    with pytest.raises(RowsMoved, match="inner"):
        refit_streamed(network, *arguments, chunk_size=16)  # 16, 16 and 8 samples, doubled
    assert_untouched(network, before, threads)


# --- through the methods ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["rnr", "recouple"])
def test_a_method_streams_above_its_limit(name, monkeypatch):
    """The limit changes rounding only; the units and the decisions stay the same."""
    found, reports, calls = [], [], []
    monkeypatch.setattr(
        "plastibench.nn.refit.refit_streamed", lambda *given: calls.append(given[-1]) or refit_streamed(*given)
    )
    for memory in (None, 0.001):
        network = network_of(double(small_vit(dim=32, depth=1)))
        add_noise(network.module, 0.1)
        options = {"inner": "low-gradient-quantile"} if name == "recouple" else {}
        with attach(name, network, memory=memory, **options) as attached:
            reports.append(attached.intervene(batch_of(256)))
        found.append(network.module)
    assert len(calls) == 1 and calls[0] < 64
    assert reports[0].parameters == reports[1].parameters
    assert all(torch.equal(mask, reports[1].units[key]) for key, mask in reports[0].units.items())
    for one, other in zip(found[0].parameters(), found[1].parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-8)


def test_networks_whose_rows_move_are_refitted_in_separate_passes():
    network, arguments = revived(small_vit())
    other = copy.deepcopy(network)
    refit_in_one_pass(network, *arguments)
    batch, layers = arguments[0], trace(other, arguments[0])
    refit(other, batch, layers, *arguments[2:6], RowOrder(False), MemoryPlan(16, True))
    for one, two in zip(network.module.parameters(), other.module.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-8)
