from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from plastibench import load_results, plotting
from plastibench.config.errors import RunError, UserError
from plastibench.metrics.plasticity import plasticity_report
from plastibench.plotting import layernorm_gradients as gradients
from plastibench.results.files import write_result
from plastibench.results.result import Result
from plastibench.training.runner import run
from plastibench.training.saved_run import trained_and_fresh
from tests.plotting.made import rl_result, supervised_result
from tests.support.networks import double, images, network_of, small_vit


def by_autograd(module: nn.Module, loss, batch, names: list[str]) -> dict[str, np.ndarray]:
    """E[∂L/∂z_i] sample by sample, from hooks on the outputs of each LayerNorm."""
    sums: dict[str, Any] = dict.fromkeys(names, 0.0)
    rows = dict.fromkeys(names, 0)
    for number in range(len(batch)):
        outputs: dict[str, torch.Tensor] = {}

        def keep(layer: nn.Module, args: Any, output: torch.Tensor, outputs: dict = outputs) -> None:
            output.retain_grad()
            outputs[layer.name] = output

        hooks = []
        for name in names:
            module.get_submodule(name).name = name
            hooks.append(module.get_submodule(name).register_forward_hook(keep))
        loss(module, batch[number : number + 1]).backward()
        for hook in hooks:
            hook.remove()
        for name, output in outputs.items():
            sums[name] = sums[name] + output.grad.flatten(0, -2).sum(0)
            rows[name] += output.numel() // output.shape[-1]
    return {name: (sums[name] / rows[name]).numpy() for name in names}


def test_gradients_of_the_last_two_layernorms_match_autograd() -> None:
    network = network_of(double(small_vit()))
    batch = images(300)  # more than one chunk
    batch["image"] = batch["image"].double()
    found = gradients.layernorm_gradients(network, batch)
    assert list(found) == ["blocks.1.norm2", "norm"]
    expected = by_autograd(network.module.eval(), network.loss, batch, list(found))
    for name, values in found.items():
        np.testing.assert_allclose(values, expected[name], rtol=1e-9, atol=1e-15)
    measured = plasticity_report(network, batch).layernorm_gradients  # as runs record it
    np.testing.assert_allclose(found["norm"], measured["norm"], rtol=1e-9, atol=1e-15)


def test_a_network_without_layernorms_has_no_gradients() -> None:
    network = network_of(lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10)))
    assert gradients.layernorm_gradients(network, images()) == {}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two small runs of none and two of reset."""
    from plastibench.config.spec import RunSpec

    folder = tmp_path_factory.mktemp("runs")
    for name in ("none", "reset"):
        for seed in (0, 1):
            spec = RunSpec.make(
                *("cl-digits", "vit-nano", name),
                env_options={"epochs": 2, "train_size": 40, "stop_after": 2},
                agent_options={"depth": 1, "dim": 16},
                seed=seed,
                device="cpu",
            )
            run(spec, runs_dir=folder, data_dir=Path("data"), quiet=True)
    return folder


def draw(found: list[Result]):
    return plotting.draw("fig3", found, device="cpu")


def test_gradients_are_computed_from_runs_once_and_then_read_from_their_folders(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "runs"
    shutil.copytree(runs, here)
    found = load_results(here)
    figure = draw(found)
    above = figure.axes[:2]
    assert [axis.get_title().rpartition(": ")[2] for axis in above] == ["blocks.0.norm2", "norm"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["none", "reset", "fresh"]

    kept = {path.parent.name: json.loads(path.read_text()) for path in here.glob(f"*/{gradients.FILE}")}
    assert len(kept) == 4
    one = next(run for run in found if run.intervention == "reset" and run.seed == 1)
    trained, fresh, data = trained_and_fresh(here / one.id, "cpu", data_dir=Path("data"))
    assert len(data) == 8 and kept[one.id]["samples"] == 8  # two of ten chunks of 40 images
    expected = {
        side: by_autograd(network.module.eval(), network.loss, data, ["norm"])["norm"]
        for side, network in {"trained": trained, "fresh": fresh}.items()
    }
    assert not np.allclose(expected["trained"], expected["fresh"])
    for side, values in expected.items():
        np.testing.assert_allclose(kept[one.id]["layers"]["norm"][side], values, rtol=1e-4, atol=1e-8)
    (reset,) = [line for line in figure.axes[3].lines if (line.get_color(), line.get_marker()) == ("#0072B2", ".")]
    assert np.isclose(reset.get_xdata(), expected["trained"].std(), rtol=1e-3).any()

    for path in here.glob("*/*"):  # as published: only results and gradients
        if path.name not in ("result.json", gradients.FILE):
            path.unlink()
    monkeypatch.setattr(gradients, "layernorm_gradients", None)
    again = draw(load_results(here))
    assert plotting.png(again, 60) == plotting.png(figure, 60)


def test_fresh_is_the_initial_network_of_the_run(runs: Path) -> None:
    found = {run.intervention: run for run in load_results(runs) if run.seed == 0}
    begun = [trained_and_fresh(run.folder, "cpu", data_dir=Path("data"))[1] for run in found.values()]
    for one, other in zip(*(network.module.parameters() for network in begun), strict=True):
        assert torch.equal(one, other)
    trained = trained_and_fresh(found["none"].folder, "cpu", data_dir=Path("data"))[0]
    start = torch.cat([p.detach().flatten() for p in begun[0].module.parameters()])
    now = torch.cat([p.detach().flatten() for p in trained.module.parameters()])
    (end,) = [m.metrics["weight-distance"] for m in found["none"].plasticity if (m.task, m.phase) == (1, "end")]
    assert float((now - start).norm() / start.norm()) == pytest.approx(end, rel=1e-4)  # as measured during the run


def test_runs_in_a_read_only_folder_can_be_plotted(runs: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    def refuse(path: Path, text: str) -> None:
        raise RunError("read-only")

    monkeypatch.setattr(gradients, "write_text", refuse)
    assert len(draw(load_results(runs)).axes) == 4
    assert "cannot be written" in capsys.readouterr().err and not list(runs.glob(f"*/{gradients.FILE}"))


def published(tmp_path: Path, name: str, seed: int, width: float, layers: int = 2) -> Result:
    result = supervised_result(name, seed)
    result.plasticity = []  # as in an old file, which does not say whether there are LayerNorms
    folder = tmp_path / f"{name}{seed}"
    folder.mkdir()
    write_result(folder, result)
    draw = np.random.default_rng(seed)
    content = {
        f"norm{n}": {"trained": (width * draw.normal(size=50)).tolist(), "fresh": draw.normal(size=50).tolist()}
        for n in range(layers)
    }
    (folder / gradients.FILE).write_text(json.dumps({"schema": 1, "id": result.id, "layers": content}))
    return result


def test_histograms_share_their_bins_and_sum_to_100_percent(tmp_path: Path) -> None:
    figure = draw(
        [published(tmp_path, name, seed, width) for name, width in (("none", 0.2), ("reset", 0.8)) for seed in range(3)]
    )
    axis = figure.axes[0]
    assert axis.get_xscale() == "linear" and axis.get_ylabel() == "features per bin (%)"
    for line in axis.lines:
        assert line.get_ydata()[::2].sum() == pytest.approx(100)
    none, reset, fresh = axis.lines
    assert none.get_xdata().tolist() == reset.get_xdata().tolist() == fresh.get_xdata().tolist()
    edges = np.unique(none.get_xdata())
    stored = [
        json.loads((tmp_path / f"none{s}" / gradients.FILE).read_text())["layers"]["norm0"]["trained"] for s in range(3)
    ]
    percentages = np.mean([np.histogram(row, edges)[0] for row in stored], 0) * 2  # 50 features: 2 % each
    np.testing.assert_allclose(none.get_ydata()[::2], percentages)
    assert len(axis.collections) == 3  # bands
    assert "signed mean" in figure.texts[0].get_text().replace("\n", " ")


def test_widths_that_differ_by_decades_give_cumulative_distributions(tmp_path: Path) -> None:
    figure = draw([published(tmp_path, "none", seed, 1e-4) for seed in range(3)])
    axis, below = figure.axes[0], figure.axes[2]
    assert axis.get_xscale() == "symlog" and "logarithmic" in figure.texts[0].get_text().replace("\n", " ")
    none, _ = axis.lines
    assert none.get_ydata()[0] == 0 and none.get_ydata()[-1] == 100 and np.all(np.diff(none.get_ydata()) >= 0)
    stored = [
        json.loads((tmp_path / f"none{s}" / gradients.FILE).read_text())["layers"]["norm0"]["trained"] for s in range(3)
    ]
    position, value = none.get_xdata()[220], none.get_ydata()[220]
    assert value == pytest.approx(100 * np.mean(np.array(stored) <= position)) and 0 < value < 100
    spreads = {tuple(line.get_xdata()) for line in below.lines if line.get_marker() == "."}
    assert tuple(np.std(stored, axis=1)) in spreads


def test_missing_gradients_raise_an_error_with_the_command_that_creates_them(tmp_path: Path) -> None:
    other = published(tmp_path, "rnr", 0, 1.0)
    known = [supervised_result(), supervised_result(folder=tmp_path)]
    for result in known:
        result.plasticity = []
    for result in (*known, rl_result(), other):
        with pytest.raises(UserError, match=r"layernorm-gradients\.json or final\.pt.*plastibench sweep fig3"):
            draw([result])


def test_saved_gradients_of_another_run_or_corrupt_ones_are_rejected(tmp_path: Path) -> None:
    result = published(tmp_path, "none", 0, 1.0)
    with pytest.raises(UserError, match=r"cannot be read .*delete it"):
        draw([result.model_copy(update={"id": "another"})])
    (tmp_path / "none0" / gradients.FILE).write_text("[")
    with pytest.raises(UserError, match="cannot be read"):
        draw([result])


def test_networks_without_layernorm_are_refused_before_any_data_is_loaded(tmp_path: Path, monkeypatch: Any) -> None:
    def load(*arguments: Any, **options: Any) -> None:
        raise AssertionError("loaded a network")

    monkeypatch.setattr("plastibench.plotting.fig3.gradients_of_run", load)
    (tmp_path / "final.pt").touch()
    found = [supervised_result("none", agent="mlp", folder=tmp_path)]  # its metrics lack the spread of a LayerNorm
    with pytest.raises(UserError, match=r"the networks of mlp have none; .* plastibench sweep fig3"):
        plotting.draw("fig3", found, data_dir=tmp_path)
