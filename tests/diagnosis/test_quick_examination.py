"""What makes `plastibench diagnose` fast (one pass, sampled rows, fewer samples), and that reports say so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from plastibench.config.errors import UserError
from plastibench.diagnosis import sample_limit
from plastibench.diagnosis.diagnose import QUICK_GROUPS, diagnose
from plastibench.diagnosis.loading import DiagnosisTarget, timm_model
from plastibench.diagnosis.sample_limit import affordable, spread
from plastibench.diagnosis.text_report import report
from plastibench.metrics.activation_sums import SampledSums, sum_activations
from plastibench.metrics.metric_inputs import MetricInputs
from plastibench.metrics.observation import ACTIVATIONS, ATTENTION, GRADIENT, observe
from plastibench.metrics.weights import spectral_norm, weight_metrics
from plastibench.nn.attention import attention_entropies
from plastibench.nn.dataflow import trace
from plastibench.nn.features import features
from plastibench.nn.mean_gradient import mean_gradient
from plastibench.nn.network import Network
from plastibench.nn.row_sample import RowSample
from plastibench.nn.unit_statistics import measure_units
from tests.support.networks import agent_builder, drawn, images, network_of, small_resnet, small_vit
from tests.support.references import array


def target_of(network: Network, count: int) -> DiagnosisTarget:
    return DiagnosisTarget("a network", network, images(count), "noise", None, [])


def test_each_network_runs_once_over_the_batch() -> None:
    network, sizes = network_of(small_vit()), list[int]()
    loss = network.loss

    def counted(module: nn.Module, batch: Any) -> Any:
        sizes.append(len(batch))
        return loss(module, batch)

    network.loss = counted
    diagnose(target_of(network, 20), QUICK_GROUPS)
    assert sizes.count(20) == 2  # the network and a fresh one
    assert sorted(size for size in sizes if size != 20) == [2, 2, 2, 4]  # structure, of the network only


@pytest.mark.parametrize("build", [small_vit(), small_resnet])
def test_one_pass_equals_a_pass_for_each_metric(build: Any) -> None:
    network, batch = network_of(build), images(12)
    units = trace(network, batch)
    found = observe(network, batch, units, (ACTIVATIONS, GRADIENT, ATTENTION))
    inner = [unit for unit in units if unit.trained and not unit.output]
    for name, values in measure_units(network, batch, inner).items():
        assert all(torch.equal(vars(found.statistics[name])[key], value) for key, value in vars(values).items()), name
    assert found.features is not None and torch.equal(found.features, features(network, batch, units[-1]))
    assert found.mean_gradient is not None and found.attention is not None and found.activation_sums is not None
    assert all(torch.equal(found.mean_gradient[name], grad) for name, grad in mean_gradient(network, batch).items())
    assert all(torch.equal(found.attention[name], e) for name, e in attention_entropies(network, batch).items())
    for name, sums in sum_activations(network, batch, units).items():
        assert (
            torch.equal(found.activation_sums[name].gram, sums.gram) and found.activation_sums[name].rows == sums.rows
        )


@pytest.mark.parametrize("rows", [5, 30])
def test_a_spectrum_is_that_of_the_smaller_gram_matrix(rows: int, monkeypatch: Any) -> None:
    decomposed, eigvalsh = list[int](), torch.linalg.eigvalsh

    def counted(matrix: torch.Tensor) -> torch.Tensor:
        decomposed.append(len(matrix))
        return eigvalsh(matrix)

    monkeypatch.setattr(torch.linalg, "eigvalsh", counted)
    h = torch.randn(rows, 12, generator=torch.Generator().manual_seed(0))
    sums = SampledSums(nn.Linear(2, 12), torch.device("cpu"))
    sums.add(h)
    expected = np.linalg.svd(array(h).astype(np.float64), compute_uv=False)[::-1]
    np.testing.assert_allclose(array(sums.singular_values()), expected, rtol=1e-6)
    assert decomposed == [min(rows, 12)]


def test_decompositions_get_a_limited_number_of_rows(monkeypatch: Any) -> None:
    monkeypatch.setattr("plastibench.metrics.activation_sums.SAMPLED_ROWS", 10)
    sums = SampledSums(nn.Linear(2, 12), torch.device("cpu"))
    sums.add(torch.randn(50, 12))
    assert (sums.rows, sums.thinned_rows, len(sums.singular_values())) == (50, 10, 10)


def test_a_spectral_norm_in_single_precision_has_five_correct_digits() -> None:
    weight = torch.randn(40, 30, 3, 3, generator=torch.Generator().manual_seed(0))
    assert spectral_norm(weight, torch.float32) == pytest.approx(spectral_norm(weight), rel=1e-5)
    network, batch = network_of(small_vit()), images(4)
    units = trace(network, batch)
    found = [
        weight_metrics(MetricInputs.of(network, batch, units=units, observation=observe(network, batch, units, (), s)))
        for s in (None, RowSample(10))
    ]
    norms = [report.overall["spectral-norm"] for report in found]
    assert norms[0] == max(spectral_norm(unit.module.weight) for unit in units if unit.module.weight.ndim > 1)  # type: ignore[arg-type, union-attr]
    assert norms[0] != norms[1] == pytest.approx(norms[0], rel=1e-5)


def test_the_same_rows_of_activations_and_gradients_are_sampled() -> None:
    values = torch.arange(4 * 3 * 5).reshape(4, 3, 5).float()[..., None].expand(-1, -1, -1, 2)
    sample = RowSample(20)
    chosen = sample(values)
    assert chosen.shape == (20, 2) and len(chosen[:, 0].unique()) == 20
    assert torch.equal(chosen, RowSample(20)(values)) and torch.equal(chosen, sample(values.clone()))
    assert torch.equal(RowSample(60)(values), values.flatten(0, -2))


def test_sampled_statistics_are_those_of_the_sampled_rows() -> None:
    module = drawn(lambda: nn.Sequential(nn.Conv2d(1, 6, 3), nn.Flatten(), nn.Linear(216, 10)))
    network, batch = Network(module, None, network_of(small_vit()).loss), images(6)
    found = observe(network, batch, trace(network, batch), (), RowSample(50))
    outputs = array(module[0](batch["image"]).detach())  # type: ignore[operator, index]
    rows = outputs.transpose(0, 2, 3, 1).reshape(-1, 6)
    chosen = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:50].numpy()
    assert found.rows["0"] == 50 < len(rows)
    np.testing.assert_allclose(array(found.statistics["0"].activation), abs(rows[chosen]).mean(0), rtol=1e-5)


def test_large_networks_get_fewer_samples() -> None:
    module = nn.Sequential(nn.Linear(1000, 2000), nn.ReLU())
    cost = 2000 * (1000 + 2 * sample_limit._PER_VALUE)
    assert affordable(module, lambda: module(torch.zeros(1, 1000)), 32) == 32
    for count, expected in ((7, 7), (1, sample_limit.FEWEST)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sample_limit, "COST", cost * count)
            assert affordable(module, lambda: module(torch.zeros(1, 1000)), 32) == expected
    assert spread(32, 4).tolist() == [0, 10, 21, 31]


def test_a_reduced_number_of_samples_is_reported(monkeypatch: Any) -> None:
    monkeypatch.setattr(sample_limit, "COST", 0)
    options: dict[str, Any] = {"weights": None, "samples": 8, "image_size": 32, "data_dir": Path("data")}
    found = timm_model("test_vit", "noise", "cpu", **options, limit=True)
    assert len(found.batch) == 4 and any("4 samples instead of 8" in note for note in found.notes)
    whole = timm_model("test_vit", "noise", "cpu", **options)
    assert len(whole.batch) == 8 and torch.equal(found.batch["image"], whole.batch["image"][spread(8, 4)])


def test_samples_that_are_asked_for_are_used(say: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(sample_limit, "COST", 0)
    command = ("diagnose", "timm:test_vit", "--image-size", "32", "--metrics", "weights", "--json", tmp_path / "a.json")
    for more, expected in ((), 4), (("--samples", 6), 6):
        said = say(*command, *more)
        assert said.status == 0 and json.loads((tmp_path / "a.json").read_text())["samples"] == expected, said.err


def test_duplicates_of_few_rows_are_left_out() -> None:
    network = network_of(agent_builder("mlp", width=32))
    found = diagnose(target_of(network, 8), QUICK_GROUPS, sampled_rows=100)
    assert not any("duplicate-ratio" in layer.values for layer in found.layers)
    assert "duplicate-ratio" not in found.overall
    assert any("duplicate-ratio is left out for 2 layers with fewer than 16 rows (1, 3)" in n for n in found.notes)
    enough = diagnose(target_of(network, 16), QUICK_GROUPS, sampled_rows=100)
    assert "duplicate-ratio" in enough.layers[0].values and "duplicate-ratio" in enough.overall


def test_reports_say_how_many_rows_were_used_and_what_is_missing() -> None:
    network = network_of(small_resnet)
    found = diagnose(target_of(network, 32), QUICK_GROUPS, sampled_rows=1500)
    assert found.layers[0].rows == 1500 and found.layers[-1].rows == 0  # outputs have no statistics of units
    text = report(found)
    assert "1,500" in text.splitlines()[6] and "up to 1,500 random rows" in text
    assert "not computed: gradient-cosine" in text and "ntk-numerical-rank; --thorough" in text


def test_a_large_fault_is_found_with_sampled_rows() -> None:
    network = Network(drawn(small_resnet), None, network_of(small_resnet).loss, fresh=small_resnet)
    with torch.no_grad():
        norm = network.module.get_submodule("layer2.0.bn1")
        norm.weight.zero_()  # type: ignore[operator, union-attr]
        norm.bias.fill_(-1.0)  # type: ignore[operator, union-attr]
    found = diagnose(target_of(network, 8), QUICK_GROUPS, sampled_rows=64)
    broken = next(layer for layer in found.layers if layer.name == "layer2.0.conv1")
    assert broken.verdict == "sick" and broken.values["dead-unit-ratio"] == 1


def test_a_frozen_network_is_reported() -> None:
    network = network_of(agent_builder("mlp", width=8))
    network.module.requires_grad_(False)
    with pytest.raises(UserError, match="are frozen"):
        diagnose(target_of(network, 8), QUICK_GROUPS)
