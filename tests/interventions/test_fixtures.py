"""The numeric fixtures for authors of other implementations, and our own methods against them."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torch import nn

from plastibench.interventions.base import Intervention
from plastibench.nn.network import Network
from tests.support.networks import loss, method, state, update
from tests.support.references import array

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "reference" / "fixtures"
WRITE = runpy.run_path(str(FOLDER / "write.py"))
NAMES = list(WRITE["FIXTURES"])
WEIGHTS = {"w1": "0.weight", "b1": "0.bias", "w2": "2.weight", "b2": "2.bias", "w3": "4.weight", "b3": "4.bias"}
Arrays = dict[str, np.ndarray]


def load(name: str) -> Arrays:
    with np.load(FOLDER / f"{name}.npz", allow_pickle=False) as file:
        return dict(file)


def module_of(values: Arrays, prefix: str = "") -> nn.Sequential:
    """The network of a fixture in float64."""
    module = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3)).double()
    module.load_state_dict({WEIGHTS[name]: torch.from_numpy(values[prefix + name]) for name in WEIGHTS})
    return module


def network_of(values: Arrays, lr: float = 0.0) -> Network:
    module = module_of(values)
    fresh = (lambda: module_of(values, "fresh_")) if "fresh_w1" in values else None
    return Network(module, torch.optim.SGD(module.parameters(), lr=lr), loss, fresh=fresh)


def batch_of(x: np.ndarray, y: np.ndarray) -> TensorDict:
    return TensorDict({"image": torch.from_numpy(x), "label": torch.from_numpy(y)}, batch_size=[len(x)])


def assert_weights(network: Network, values: Arrays, step: int | None = None) -> None:
    for name, full in WEIGHTS.items():
        expected = values[f"new_{name}"] if step is None else values[f"new_{name}"][step]
        np.testing.assert_allclose(array(network.module.get_parameter(full)), expected, rtol=1e-9, atol=1e-12)


def test_every_file_has_a_function() -> None:
    assert sorted(path.stem for path in FOLDER.glob("*.npz")) == sorted(NAMES)
    assert sum(path.stat().st_size for path in FOLDER.glob("*.npz")) < 100_000


@pytest.mark.parametrize("name", NAMES)
def test_the_script_writes_the_same_bits_again(name: str) -> None:
    stored, made = load(name), WRITE["FIXTURES"][name]()
    assert stored.keys() == made.keys()
    for key, value in made.items():
        assert (stored[key].dtype, stored[key].shape) == (value.dtype, value.shape), key
        assert stored[key].tobytes() == value.tobytes(), key


@pytest.mark.parametrize("name", NAMES)
def test_the_page_describes_every_array(name: str) -> None:
    page = (FOLDER.parent / "fixtures.md").read_text(encoding="utf-8")
    section = page.partition(f"## `{name}.npz`")[2].partition("\n## ")[0]
    common = page.partition("## Arrays in every file")[2].partition("\n## ")[0]
    assert section and common
    for key, value in load(name).items():
        rows = [line for line in (common + section).splitlines() if f"`{key}`" in line and line.startswith("|")]
        assert rows, f"{key} of {name}"
        shape = " × ".join(map(str, value.shape)) or "scalar"
        stem = key.removeprefix("new_").removeprefix("fresh_").removeprefix("xi_").removeprefix("revived_")
        assert any(f"| {shape} " in row or (stem in WEIGHTS and "as the weights" in row) for row in rows), (key, shape)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("redo", ("tau",)),
        ("regrama", ("tau",)),
        ("low-gradient-quantile", ("quantile",)),
        ("rnr", ("quantile", "ridge")),
        ("shrink-perturb", ("keep", "noise")),
    ],
)
def test_our_method_gives_the_stored_weights(name: str, options: tuple[str, ...]) -> None:
    values = load(name)
    network = network_of(values)
    ours = method(name, **{option: values[option].item() for option in options})
    ours.prepare(network)
    report = ours.intervene(network, batch_of(values["x"], values["y"]))
    for layer, module in ((1, "0"), (2, "2")):
        if f"mask{layer}" in values:
            np.testing.assert_array_equal(report.units[module].numpy(), values[f"mask{layer}"])
    assert_weights(network, values)


def start(ours: Intervention, network: Network, values: Arrays) -> None:
    """Let a method find the hidden units in its first update, which it does not count and which changes nothing."""
    ours.prepare(network)
    for group in network.optimizer.param_groups:
        rate, group["lr"] = group["lr"], 0.0
    update(network, ours, batch_of(values["x"][0], values["y"][0]))
    for group in network.optimizer.param_groups:
        group["lr"] = rate


def test_our_continual_backprop_gives_the_stored_weights() -> None:
    values = load("continual-backprop")
    network = network_of(values, float(values["lr"]))
    ours = method("continual-backprop", **{name: values[name].item() for name in ("rate", "maturity", "decay")})
    start(ours, network, values)
    for step, (x, y) in enumerate(zip(values["x"], values["y"], strict=True)):
        update(network, ours, batch_of(x, y))
        assert_weights(network, values, step)
        for layer, reader in ((1, "2.weight"), (2, "4.weight")):
            zeroed = (network.module.get_parameter(reader) == 0).all(0)
            assert zeroed.tolist() == values[f"mask{layer}"][step].tolist()


def test_our_self_normalized_resets_give_the_stored_weights() -> None:
    values = load("self-normalized-resets")
    network = network_of(values, float(values["lr"]))
    options = {name: values[name].item() for name in ("quantile", "longest", "first", "retune")}
    ours = method("self-normalized-resets", **options)
    start(ours, network, values)
    for step, (x, y) in enumerate(zip(values["x"], values["y"], strict=True)):
        before = state(network.module)
        update(network, ours, batch_of(x, y))
        assert_weights(network, values, step)
        for layer, module in ((1, "0"), (2, "2")):
            fresh, name = torch.from_numpy(values[f"fresh_w{layer}"]), f"{module}.weight"
            renewed = ((network.module.get_parameter(name) == fresh) & (before[name] != fresh)).all(1)
            assert renewed.tolist() == values[f"mask{layer}"][step].tolist()
            assert ours._units[module]["threshold"].tolist() == values[f"threshold{layer}"][step].tolist()


def test_our_upgd_gives_the_stored_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    values = load("upgd")
    network = network_of(values, float(values["lr"]))
    ours = method("upgd", lr_factor=1.0, **{name: values[name].item() for name in ("decay", "noise", "beta")})
    ours.prepare(network)
    for step, (x, y) in enumerate(zip(values["x"], values["y"], strict=True)):
        noise = iter([torch.from_numpy(values[f"xi_{name}"][step]) for name in WEIGHTS])

        def stored(shape: torch.Size, noise: Any = noise, **_: Any) -> torch.Tensor:
            drawn = next(noise)
            assert drawn.shape == shape
            return drawn

        with monkeypatch.context() as patch:
            patch.setattr(torch, "randn", stored)
            update(network, ours, batch_of(x, y))
        assert_weights(network, values, step)
