"""`plastibench diagnose`: verdicts, loading, reports and errors."""

from __future__ import annotations

import json
import math
import re
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from plastibench.config.errors import UserError
from plastibench.diagnosis.diagnose import diagnose
from plastibench.diagnosis.html_report import write_page
from plastibench.diagnosis.loading import DiagnosisTarget, agent_model, networks_of_run, timm_model
from plastibench.diagnosis.rules import RULES, by_chance, judge_layer, thresholds_text
from plastibench.diagnosis.samples import read_samples
from plastibench.diagnosis.state_dicts import load_weights, read_state, without_prefix
from plastibench.diagnosis.text_report import report
from plastibench.training.runner import run
from tests.support.networks import agent_builder, drawn, images, network_of, small_resnet, small_vit, state
from tests.support.references import array

BY_METRIC = {rule.metric: rule for rule in RULES}
MODEL = "test_vit"  # timm's model for tests: 160 pixels, 0.4 million parameters
DEFAULTS: dict[str, Any] = {"weights": None, "samples": 4, "image_size": 32, "data_dir": Path("data")}


def target_of(network: Any, count: int = 40) -> DiagnosisTarget:
    """A target with random images; its title needs escaping in HTML."""
    return DiagnosisTarget("a <network> & co", network, images(count), "noise", None, [])


# Verdicts ---------------------------------------------------------------------------------------------------------


def test_a_fresh_network_is_ok_and_unchanged() -> None:
    network = network_of(small_vit())
    before, own = state(network.module), network.generator.get_state()
    found = diagnose(target_of(network))
    assert found.verdict == "ok", [(layer.name, layer.reasons) for layer in found.layers]
    assert [layer.name for layer in found.layers][:4] == [
        *("patch_embed.proj", "blocks.0.norm1", "blocks.0.attn.qkv", "blocks.0.attn")
    ]
    assert {layer.kind for layer in found.layers} == {"Conv2d", "LayerNorm", "Linear", "Attention", "Linear, outputs"}
    assert all(torch.equal(value, before[name]) for name, value in state(network.module).items())
    assert torch.equal(network.generator.get_state(), own)


def test_dead_units_and_large_weights_are_located() -> None:
    network = network_of(agent_builder("mlp", width=32))
    with torch.no_grad():
        network.module[1].bias[:20] = -1e3
        network.module[3].weight *= 40
    found = diagnose(target_of(network))
    first, second, _ = found.layers
    assert first.verdict == "sick" and any("dead units 62 % (fresh 0 %)" in reason for reason in first.reasons)
    assert any(reason.startswith("large spectral norm") for reason in second.reasons) and second.verdict == "sick"
    assert found.verdict == "sick" and "layers sick: 1, 3" in found.reasons[0]
    assert first.values["dead-unit-ratio"] == 20 / 32


def test_non_finite_weights_are_sick_and_end_the_examination() -> None:
    network = network_of(small_vit())
    with torch.no_grad():
        network.module.head.weight[0, 0] = math.nan
    found = diagnose(target_of(network))
    assert found.verdict == "sick" and "not finite: head.weight" in found.reasons[0]
    assert json.loads(json.dumps(found.as_json(), allow_nan=False))["layers"] == []


@pytest.mark.parametrize("spoil", ["buffer", "size"])
def test_non_finite_buffers_or_outputs_are_sick(spoil: str) -> None:
    network = network_of(small_resnet)
    with torch.no_grad():
        if spoil == "buffer":
            network.module.bn1.running_var[0] = math.nan
        else:
            network.module.fc.weight *= 1e38
            network.module.bn1.weight *= 1e38
    found = diagnose(target_of(network))
    words = "not finite: bn1.running_var" if spoil == "buffer" else "its loss on these samples is not finite"
    assert found.verdict == "sick" and words in found.reasons[0]


def test_a_resnet_with_closed_branches_is_sick() -> None:
    def zeroed() -> Any:
        return small_resnet()  # timm initializes the last BatchNorm scale of each block to 0

    network = network_of(zeroed)
    assert diagnose(target_of(network)).verdict == "ok"  # an untrained one equals a fresh one
    scales = [module.bn2.weight for name, module in network.module.named_modules() if hasattr(module, "bn2")]
    with torch.no_grad():
        for scale in scales:
            scale.fill_(1.0)
    opened = diagnose(target_of(network))
    assert opened.verdict == "ok" and any("scales are initialized to 0" in note for note in opened.notes), (
        opened.reasons
    )
    with torch.no_grad():
        for scale in scales[4:]:
            scale.zero_()
    closed = {layer.name: layer for layer in diagnose(target_of(network)).layers}
    assert closed["layer4.1.conv1"].verdict == "sick" and closed["layer1.0.conv1"].verdict == "ok"


def test_large_outputs_alone_are_not_sick() -> None:
    network = network_of(agent_builder("mlp", width=32))
    with torch.no_grad():
        network.module[5].bias[0] += 30
    found = diagnose(target_of(network), ["plasticity-probe-gap", "plasticity-probe-fresh-gap"])
    assert found.overall["plasticity-probe-gap"] > 1 and found.verdict == "ok", found.reasons


@pytest.mark.parametrize(
    ("metric", "value", "fresh", "verdict"),
    [
        ("dormant-ratio", 0.19, 0.1, 0),
        ("dormant-ratio", 0.2, 0.1, 1),
        ("dormant-ratio", 0.4, 0.1, 2),
        ("layer-rank-fraction", 0.41, 0.8, 0),
        ("layer-rank-fraction", 0.4, 0.8, 1),
        ("layer-rank-fraction", 0.16, 0.8, 2),
        ("spectral-norm", 9.9, 2.0, 0),
        ("spectral-norm", 10.0, 2.0, 1),
        ("spectral-norm", 40.0, 2.0, 2),
        ("spectral-norm", 0.1, 2.0, 0),
        ("spectral-norm", math.inf, 2.0, 2),
    ],
)
def test_thresholds(metric: str, value: float, fresh: float, verdict: int) -> None:
    found, reasons = judge_layer({metric: value}, {metric: fresh}, units=4000)
    assert found == ("ok", "watch", "sick")[verdict]
    assert len(reasons) == (verdict > 0)
    assert BY_METRIC[metric].describe() in thresholds_text()


def test_fractions_of_few_units_differ_by_chance() -> None:
    assert by_chance(0.2, 0.1, 100) and not by_chance(0.2, 0.1, 200)  # 2·sqrt(2·0.15·0.85/n): 0.101 and 0.071
    assert not by_chance(0.2, 0.1, 0)  # the number of heads is unknown


def test_missing_values_are_shown_as_a_dash() -> None:
    values = {"dormant-ratio": 0.256, "dead-unit-ratio": None, "spectral-norm": math.nan}
    assert [BY_METRIC[name].format(value) for name, value in values.items()] == ["26", "–", "nan"]


# Checkpoints ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": {f"module.{k}": v for k, v in state.items()}, "epoch": torch.tensor(3)},
        lambda state: {"model": {"state_dict": {f"_orig_mod.module.{k}": v for k, v in state.items()}}},
        lambda state: {"module": {f"backbone.{k}": v for k, v in state.items()} | {"other.weight": torch.zeros(1)}},
    ],
)
def test_wrapped_and_prefixed_weights_load(wrap: Callable[[dict[str, Any]], Any], tmp_path: Path) -> None:
    source, target = drawn(small_vit(), 1), drawn(small_vit(), 2)
    torch.save(wrap(source.state_dict()), tmp_path / "w.pt")
    notes = load_weights(target, read_state(tmp_path / "w.pt"), tmp_path)
    assert notes in ([], ["ignored 1 tensor of the file that the model does not have: other.weight"])
    assert all(torch.equal(value, state(source)[name]) for name, value in state(target).items())


def test_safetensors_load_and_missing_weights_are_noted(tmp_path: Path) -> None:
    source, target = drawn(small_vit(), 1), drawn(small_vit(), 2)
    saved = {name: value for name, value in source.state_dict().items() if not name.startswith("head")}
    save_file({**saved, "extra": torch.zeros(2)}, tmp_path / "w.safetensors")
    notes = load_weights(target, read_state(tmp_path / "w.safetensors"), tmp_path)
    assert "2 parameters not in the file, so not changed: head.bias, head.weight" in notes[0]
    assert "ignored 1 tensor of the file that the model does not have: extra" in notes[1]
    assert torch.equal(target.norm.weight, source.norm.weight)


def test_missing_batchnorm_statistics_are_noted(tmp_path: Path) -> None:
    source = drawn(small_resnet)
    saved = {name: value for name, value in source.state_dict().items() if not name.startswith("bn1.running")}
    notes = load_weights(drawn(small_resnet, 2), saved, tmp_path)
    assert notes == ["2 buffers not in the file, so not changed: bn1.running_mean, bn1.running_var"]
    del saved["bn1.num_batches_tracked"]
    assert load_weights(drawn(small_resnet, 2), saved, tmp_path) == notes  # does not affect the output


def test_a_recursive_dict_is_rejected(tmp_path: Path) -> None:
    content: dict[str, Any] = {}
    content["state_dict"] = content
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(UserError, match="contains no state dict"):
        read_state(tmp_path / "w.pt")


@pytest.mark.parametrize("kind", ["pt", "safetensors"])
def test_the_number_of_classes_is_read_from_the_head(kind: str, tmp_path: Path) -> None:
    module = drawn(agent_builder("mlp", (1, 8, 8), 7, hidden=11, width=16))
    path = tmp_path / f"w.{kind}"
    saved = {f"model.{name}": value for name, value in module.state_dict().items()}
    save_file(saved, path) if kind == "safetensors" else torch.save(saved, path)
    options = {**DEFAULTS, "weights": path, "image_size": 0}
    found = agent_model("mlp", {"hidden": 11, "width": 16}, "digits", "cpu", **options)
    assert all(torch.equal(v, module.state_dict()[k]) for k, v in found.network.module.state_dict().items())


def test_a_prefix_is_removed_only_if_more_names_match() -> None:
    known = {"a.weight", "b.weight"}
    assert set(without_prefix({"a.weight": torch.zeros(1), "b.weight": torch.zeros(1)}, known)) == known
    assert set(without_prefix({"x.y.a.weight": torch.zeros(1), "z": torch.zeros(1)}, known)) == {"a.weight", "z"}
    assert set(without_prefix({"q.w": torch.zeros(1)}, known)) == {"q.w"}
    mixed = {"backbone.a.weight": torch.zeros(1), "b.weight": torch.ones(1)}
    assert without_prefix(mixed, known) == {"a.weight": mixed["backbone.a.weight"], "b.weight": mixed["b.weight"]}


def test_one_of_two_networks_in_a_file_is_loaded(tmp_path: Path) -> None:
    one, other = drawn(small_vit(), 1).state_dict(), drawn(small_vit(), 2).state_dict()
    target = drawn(small_vit(), 3)
    saved = {f"teacher.{name}": value for name, value in other.items()}
    notes = load_weights(target, saved | {f"student.{name}": value for name, value in one.items()}, tmp_path)
    assert all(torch.equal(value, one[name]) for name, value in state(target).items())
    assert len(notes) == 1 and f"ignored {len(other)} tensors of the file" in notes[0] and "teacher" in notes[0]


def _mlp(head: torch.Tensor) -> dict[str, torch.Tensor]:
    """Weights of an MLP with another last layer."""
    state = drawn(agent_builder("mlp")).state_dict()
    return {**state, [name for name in state if name.endswith("weight")][-1]: head}


class Evil:
    def __reduce__(self) -> Any:
        return (print, ("executed",))


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("w.pt", lambda path: path.write_bytes(b"rubbish"), "cannot load weights safely from"),
        ("w.pt", lambda path: torch.save(Evil(), path), "cannot load weights safely from"),
        ("w.pt", lambda path: torch.save(torch.nn.Linear(2, 2), path), "save model.state_dict(), not the model itself"),
        ("w.pt", lambda path: torch.save({"epoch": 3}, path), "contains no state dict"),
        ("w.pt", lambda path: torch.save({"networks": []}, path), "for a run of plastibench, pass its folder"),
        ("w.pt", lambda path: torch.save([1, 2], path), "contains no state dict"),
        ("w.safetensors", lambda path: path.write_bytes(b"rubbish"), "cannot load weights safely from"),
        ("w.pt", lambda path: torch.save({"a.b": torch.zeros(2)}, path), "contains only 0 of the model's"),
        ("w.pt", lambda path: torch.save(_mlp(torch.tensor(1.0)), path), "has shape [], but the model has"),
        ("w.pt", lambda path: torch.save(_mlp(torch.zeros(0, 128)), path), "has shape [0, 128], but the model has"),
        ("w.pt", lambda path: torch.save(_mlp(torch.eye(128).to_sparse()), path), "is sparse; save a state dict of"),
        ("w.pt", lambda path: torch.save(_mlp(torch.zeros(10, 128, device="meta")), path), "is without values; save"),
        ("w.pt", lambda path: torch.save(_mlp(torch.zeros(10, 128) + 1j), path), "is complex; save"),
    ],
)
def test_invalid_weights_are_reported_in_one_line(
    name: str, write: Callable[[Path], Any], message: str, tmp_path: Path, say: Any
) -> None:
    write(tmp_path / name)
    said = say("diagnose", tmp_path / name, "--agent", "mlp", "--data", "digits")
    assert said.status == 2 and message in said.err and said.err.count("\n") == 1, said
    assert "executed" not in said.out + said.err


def test_weights_of_another_shape_are_rejected(tmp_path: Path) -> None:
    torch.save(drawn(agent_builder("mlp", width=32)).state_dict(), tmp_path / "w.pt")
    with pytest.raises(UserError, match=r"'1.weight' has shape \[32, 64\], but the model has \[128, 64\]"):
        agent_model("mlp", {}, "digits", "cpu", **{**DEFAULTS, "weights": tmp_path / "w.pt", "image_size": 0})


# Data -------------------------------------------------------------------------------------------------------------


def test_digits_have_labels_and_are_resized() -> None:
    found = read_samples("digits", 20, (3, 16, 16), Path("data"))
    assert found.images.shape == (20, 3, 16, 16) and found.classes == 10 and found.labels is not None
    assert abs(float(found.images.mean())) < 0.2 and bool((found.images[:, 0] == found.images[:, 2]).all())


def test_arrays_are_read_from_an_npz_file(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3)).astype(np.uint8)
    np.savez(tmp_path / "a.npz", x=pixels, y=np.array([0, 1, 2, 0, 1, 2]))
    found = read_samples(str(tmp_path / "a.npz"), 5, (3, 8, 8), Path("data"))
    chosen = [0, 1, 2, 4, 5]  # evenly spaced, because data may be sorted
    values = pixels[chosen].transpose(0, 3, 1, 2) / 255
    expected = (values - values.mean((0, 2, 3), keepdims=True)) / values.std((0, 2, 3), keepdims=True)
    np.testing.assert_allclose(array(found.images), expected, atol=1e-5)
    assert found.labels is not None and found.labels.tolist() == [0, 1, 2, 1, 2] and found.classes == 3


def test_samples_of_sorted_data_cover_all_classes(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.arange(16000, dtype=np.uint16).reshape(1000, 4, 4), y=np.arange(1000) // 100)
    found = read_samples(str(tmp_path / "a.npz"), 64, (1, 4, 4), Path("data"))
    assert found.labels is not None and set(found.labels.tolist()) == set(range(10))
    for label in range(5):
        (tmp_path / "f" / str(label)).mkdir(parents=True)
        for number in range(1 + label):
            Image.new("L", (4, 4), 10 * label + number).save(tmp_path / "f" / str(label) / f"{number}.png")
    for count, expected in ((4, [1, 1, 1, 1, 0]), (7, [1, 2, 2, 1, 1]), (15, [1, 2, 3, 4, 5])):
        labels = read_samples(str(tmp_path / "f"), count, (1, 4, 4), Path("data")).labels
        assert labels is not None and np.bincount(labels.numpy(), minlength=5).tolist() == expected


def test_images_are_read_from_a_folder(tmp_path: Path) -> None:
    for label, colour in (("cat", 10), ("dog", 200)):
        (tmp_path / label).mkdir()
        for number in range(3):
            Image.new("RGB", (9, 7), (colour, number, 0)).save(tmp_path / label / f"{number}.png")
    found = read_samples(str(tmp_path), 4, (3, 8, 8), Path("data"))
    assert found.labels is not None and found.labels.tolist() == [0, 1, 0, 1] and found.classes == 2
    flat = read_samples(str(tmp_path / "cat"), 4, (3, 8, 8), Path("data"))
    assert flat.labels is None and len(flat.images) == 3
    (tmp_path / "cat" / "0.png").write_bytes(b"rubbish")
    with pytest.raises(UserError, match="not a readable image"):
        read_samples(str(tmp_path), 4, (3, 8, 8), Path("data"))


def raw_member(path: Path) -> None:
    """An archive whose array has lost its first bytes, which numpy returns as bytes."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", b"no header")


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: path.write_bytes(b"rubbish"), "cannot load arrays safely from"),
        (lambda path: np.savez(path, x=np.array([{}, []], dtype=object)), "cannot load arrays safely from"),
        (lambda path: raw_member(path), r"cannot load arrays safely from .*: a part of the archive is not an array"),
        (lambda path: np.savez(path, q=np.zeros(3)), r"no images .*; it has q float64\[3\]"),
        (
            lambda path: np.savez(path, x=np.zeros((2, 4, 4)), y=np.zeros(3, int)),
            r"labels must be integers of shape \[2\]",
        ),
        (lambda path: np.savez(path, x=np.full((2, 4, 4), np.nan)), "not finite"),
        (lambda path: np.savez(path, x=np.full((2, 4, 4), 1e300)), "not finite"),
        (lambda path: np.savez(path, x=np.zeros((2, 0, 4, 4))), r"no images .*; it has x float64\[2, 0, 4, 4\]"),
        (lambda path: np.savez(path, x=np.zeros(())), "no images of shape"),
        (lambda path: np.savez(path, x=np.zeros((2, 4, 4), complex)), "no images of shape"),
    ],
)
def test_invalid_arrays_are_rejected(write: Callable[[Path], Any], message: str, tmp_path: Path) -> None:
    write(tmp_path / "a.npz")
    with pytest.raises(UserError, match=message):
        read_samples(str(tmp_path / "a.npz"), 2, (1, 4, 4), Path("data"))


@pytest.mark.parametrize("dtype", [">f8", "<f2", np.longdouble, ">i4", "<u2", bool])
def test_arrays_of_any_byte_order_and_size_are_read(dtype: Any, tmp_path: Path) -> None:
    pixels = np.arange(2 * 16).reshape(2, 4, 4) % 5
    expected, found = [], []
    usual = np.float32 if np.dtype(dtype).kind == "f" else np.int64
    for kind, target in ((dtype, found), (usual, expected)):
        values = pixels.astype(dtype).astype(kind)
        np.savez(tmp_path / "a.npz", x=values, y=np.array([0, 1], ">u2"))
        target.append(read_samples(str(tmp_path / "a.npz"), 2, (1, 4, 4), Path("data")))
    assert torch.equal(found[0].images, expected[0].images) and found[0].labels.tolist() == [0, 1]


def test_predictions_replace_missing_labels() -> None:
    found = agent_model("mlp", {"width": 8}, "noise", "cpu", **DEFAULTS)
    predicted = found.network.module(found.batch["image"]).argmax(1)
    assert torch.equal(found.batch["label"], predicted)
    assert any("predictions are the labels" in note for note in found.notes)
    labelled = agent_model("mlp", {"width": 8}, "digits", "cpu", **DEFAULTS)
    assert not any("predictions" in note for note in labelled.notes)


# Targets ----------------------------------------------------------------------------------------------------------


def test_timm_classes_and_channels_follow_from_the_weights(tmp_path: Path) -> None:
    import timm

    source = timm.create_model(MODEL, num_classes=7, in_chans=1, img_size=32)
    torch.save({"state_dict": {f"module.{k}": v for k, v in source.state_dict().items()}}, tmp_path / "w.pth")
    found = timm_model(MODEL, "noise", "cpu", **{**DEFAULTS, "weights": tmp_path / "w.pth"})
    assert found.batch["image"].shape == (4, 1, 32, 32)
    assert all(torch.equal(v, source.state_dict()[k]) for k, v in found.network.module.state_dict().items())
    with pytest.raises(UserError, match="'vit_tny'"):
        timm_model("vit_tny", "noise", "cpu", **DEFAULTS)


def test_the_diagnosis_of_a_run_equals_its_own_metrics(tiny: Any, tmp_path: Path) -> None:
    result = run(tiny("rnr", agent="vit-nano", metrics=("fau", "weight-cosine")), runs_dir=tmp_path, quiet=True)
    (found,) = networks_of_run(tmp_path / result.id, None, "cpu", samples=0, data_dir=Path("data"))
    report = diagnose(found, ["fau", "weight-cosine"])
    last = result.plasticity[-1]
    assert last.phase == "end"
    for name, value in report.overall.items():
        assert value == pytest.approx(last.metrics[name], rel=1e-5, abs=1e-7), name


def test_a_run_with_a_changed_architecture_is_rebuilt(tiny: Any, tmp_path: Path) -> None:
    result = run(tiny("plasticity-injection", agent="vit-nano"), runs_dir=tmp_path, quiet=True)
    (found,) = networks_of_run(tmp_path / result.id, None, "cpu", samples=0, data_dir=Path("data"))
    state = torch.load(tmp_path / result.id / "final.pt", weights_only=True)["networks"][0]
    assert any("branches" in name for name in state)
    loaded = found.network.module.state_dict()
    assert list(loaded) == list(state)
    assert all(torch.equal(loaded[name], value) for name, value in state.items())


def test_every_network_of_an_rl_agent_is_examined(tmp_path: Path) -> None:
    from plastibench.config.spec import RunSpec

    spec = RunSpec.make(
        *("rl-pendulum", "sac-mlp", "redo"),
        env_options={"steps": 120, "evaluate_every": 60, "envs": 2, "evaluation_episodes": 1},
        agent_options={"hidden": (8, 8), "learning_starts": 40, "batch_size": 16},
        device="cpu",
        every=30,
    )
    result = run(spec, runs_dir=tmp_path, quiet=True)
    found = networks_of_run(tmp_path / result.id, None, "cpu", samples=32, data_dir=Path("data"))
    assert [target.network.role for target in found] == ["critic", "actor"]
    for target in found:
        report = diagnose(target)
        assert report.samples == 32 and len(report.layers) >= 3 and "gradient-cosine" in report.overall


@pytest.mark.parametrize("name", ["spec.toml", "final.pt"])
def test_a_damaged_run_is_reported_in_one_line(name: str, tiny: Any, tmp_path: Path, say: Any) -> None:
    result = run(tiny(agent="mlp"), runs_dir=tmp_path, quiet=True)
    folder = tmp_path / result.id
    (folder / name).write_bytes(b"rubbish")
    said = say("diagnose", folder)
    assert said.status == 2 and said.err.count("\n") == 1 and name in said.err, said.err


def test_the_command_writes_all_reports(tmp_path: Path, say: Any) -> None:
    pytest.importorskip("matplotlib")
    torch.save(drawn(agent_builder("mlp", width=16)).state_dict(), tmp_path / "<w>.pt")
    said = say(
        *("diagnose", tmp_path / "<w>.pt", "--agent", "mlp", "--agent.width", 16, "--data", "digits", "--samples", 20),
        *("--metrics", "weights,fau", "--json", tmp_path / "a.json", "--png", tmp_path / "a.png"),
        *("--html", tmp_path / "a.html"),
    )
    assert said.status == 0, said.err
    assert "spectral norm" in said.out and "verdict: ok" in said.out and "fau" in said.out
    content = json.loads((tmp_path / "a.json").read_text())
    assert content["verdict"] == "ok" and [layer["name"] for layer in content["layers"]] == ["1", "3", "5"]
    assert content["layers"][0]["figures"]["fau"] == pytest.approx(0.5, abs=0.2)
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.size[0] > 300
    page = (tmp_path / "a.html").read_text()
    assert "&lt;w&gt;.pt" in page and "<w>" not in page
    assert "http" not in page  # self-contained


def test_structure_is_reported_and_outputs_may_be_named(tmp_path: Path, say: Any) -> None:
    torch.save(drawn(agent_builder("mlp", width=16)).state_dict(), tmp_path / "a.pt")
    command = ("diagnose", tmp_path / "a.pt", "--agent", "mlp", "--agent.width", 16, "--data", "digits")
    command += ("--samples", 20, "--metrics", "weights", "--json", tmp_path / "a.json", "--html", tmp_path / "a.html")
    said = say(*command, "--selector", "head", "--outputs", "3,5")
    assert said.status == 0, said.err
    assert "selected: 2 modules, 442 parameters\n  3  272\n  5  170\n" in said.out
    assert "coverage: unit-level methods act on 100.0 % of the parameters" in said.out
    content = json.loads((tmp_path / "a.json").read_text())
    assert [layer["kind"] for layer in content["layers"]] == ["Linear", "Linear, outputs", "Linear, outputs"]
    assert [module["covered_by"] for module in content["coverage"]["modules"]] == [
        ["revive", "redo"],
        ["refit"],
        ["refit"],
    ]
    page = (tmp_path / "a.html").read_text()
    assert '<td class="text">revive, redo</td>' in page and "never reinitialized" in page


def test_what_is_not_covered_is_reported(tmp_path: Path) -> None:
    network = network_of(lambda: _Attending(torch.nn.MultiheadAttention(8, 2)))
    text = report(diagnose(target_of(network)))
    assert re.search(r"MultiheadAttention +1 +216 +packed weights of queries, keys and values", text)


class _Attending(torch.nn.Module):
    def __init__(self, attention: torch.nn.Module) -> None:
        super().__init__()
        self.attention, self.head = attention, torch.nn.Linear(8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.reshape(len(x), 8, 8).transpose(0, 1)
        head: torch.Tensor = self.head(self.attention(x, x, x)[0].mean(0))
        return head


def test_the_html_report_escapes_text_and_colours_severity(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # not needed
    network = network_of(agent_builder("mlp", width=32))
    with torch.no_grad():
        network.module[1].bias[:20] = -1e3
    write_page([diagnose(target_of(network))], tmp_path / "a.html")
    page = (tmp_path / "a.html").read_text()
    assert "<h1>a &lt;network&gt; &amp; co</h1>" in page and "<network>" not in page
    assert re.search(r'class="compared dark" style="--severity: 100" title="fresh: 0">62</td>', page)
    assert "dead units 62 % (fresh 0 %)" in page and "rules of thumb" in page


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["nowhere"],
            "not a run's folder, a checkpoint file, a folder of save_pretrained, timm:MODEL or module:function",
        ),
        (["timm:resnet"], "no timm model 'resnet'; did you mean"),
        (["timm:test_vit", "--data", "digit"], "did you mean 'digits'?"),
        (["timm:test_vit", "--metrics", "rank"], "did you mean 'ranks'?"),
        (["timm:test_vit", "--png", "a.gif"], "use a name that ends in .png"),
        (["timm:test_vit", "--json", "no/where/a.json"], "the folder no/where does not exist"),
        (["timm:test_vit", "--weights", "nowhere.pt"], "nowhere.pt: no such file"),
        (["timm:test_vit", "--agent", "mlp"], "--agent needs a checkpoint file"),
        (["timm:test_vit", "--agent.width", "4"], "--agent.OPTION needs --agent"),
        (["timm:test_vit", "--pretrained", "--weights", "x.pt"], "--pretrained and --weights cannot be combined"),
        (["x.pt", "--pretrained"], "--pretrained needs timm:MODEL"),
        (["timm:test_vit2.no_such_tag", "--pretrained"], "timm has no pretrained weights of"),
        (["timm:test_vit", "--samples", "1"], "--samples: '1' is not an integer from 2 to 1,000,000"),
        (["."], "not a run's folder"),
        (["timm:test_vit", "--selector", "mpl"], "--selector: unknown 'mpl'; did you mean 'mlp'?"),
        (["timm:test_vit", "--outputs", "heads", "--samples", "2"], "no layer 'heads'; did you mean 'head'?"),
    ],
)
def test_invalid_arguments_are_reported_in_one_line(arguments: list[str], message: str, say: Any) -> None:
    said = say("diagnose", *arguments)
    assert said.status == 2 and message in said.err and said.err.count("\n") == 1, said.err


def test_help_shows_the_thresholds(say: Any) -> None:
    said = say("diagnose", "--help")
    assert said.status == 0 and "dead-unit-ratio: 10 / 30 percentage points above fresh" in said.out


def test_a_run_is_found_by_its_id_below_the_runs(tiny: Any, tmp_path: Path, say: Any) -> None:
    spec = tiny("none", env="relabel-digits", agent="mlp")
    run(spec, runs_dir=tmp_path / "mine", quiet=True, threads=1)
    by_id = say("diagnose", spec.id, "--runs-dir", tmp_path / "mine", "--metrics", "weights")
    by_folder = say("diagnose", tmp_path / "mine" / spec.id, "--metrics", "weights")
    assert by_id.status == 0 and by_id.out == by_folder.out
    wrong = say("diagnose", spec.id[:-1], "--runs-dir", tmp_path / "mine")
    assert wrong.status == 2 and f"did you mean '{spec.id}'?" in wrong.err and str(tmp_path / "mine") in wrong.err


def test_a_timm_model_is_diagnosed_without_gradients_of_single_samples(
    say: Any, monkeypatch: Any, tmp_path: Path
) -> None:
    monkeypatch.setattr("plastibench.cli.diagnose._LARGE", 0)
    size = ("--image-size", "32", "--json", tmp_path / "a.json")
    quick = say("diagnose", "timm:test_vit", *size)
    assert quick.status == 0, quick.err
    found = json.loads((tmp_path / "a.json").read_text())
    assert found["samples"] == 32 and {"dormant-ratio", "dead-unit-ratio"} & set(found["overall"])
    assert not {"gradient-cosine", "ntk-effective-rank"} & set(found["overall"])
    told = quick.err.splitlines()
    assert len(told) > 5 and told[0].startswith("plastibench: network: ") and "fresh network: " in quick.err
    monkeypatch.setattr("plastibench.diagnosis.loading.THOROUGH_SAMPLES", 6)
    thorough = say("diagnose", "timm:test_vit", "--thorough", *size)
    found = json.loads((tmp_path / "a.json").read_text())
    assert thorough.status == 0 and found["samples"] == 6 and "gradient-cosine" in found["overall"]


def test_pretrained_weights_are_compared_with_fresh_ones(say: Any, monkeypatch: Any) -> None:
    import timm

    create = timm.create_model
    monkeypatch.setattr(timm.models, "is_model_pretrained", lambda name: True)

    def downloaded(name: str, *, pretrained: bool = False, **options: Any) -> Any:
        made = create(name, **options)
        if pretrained:
            torch.nn.init.constant_(made.head.bias, 7.0)
        return made

    monkeypatch.setattr(timm, "create_model", downloaded)
    target = timm_model(
        "test_vit", "noise", "cpu", weights=None, samples=4, image_size=32, data_dir=Path(), pretrained=True
    )
    assert "(pretrained)" in target.title and target.network.module.head.bias.eq(7).all()
    assert not target.network.fresh().head.bias.any() and not any("untrained" in note for note in target.notes)

    def offline(name: str, **options: Any) -> Any:
        raise OSError("no route to host")

    monkeypatch.setattr(timm, "create_model", offline)
    said = say("diagnose", "timm:test_vit", "--pretrained", "--image-size", "32")
    assert said.status == 2 and "no route to host" in said.err and "--weights FILE" in said.err
