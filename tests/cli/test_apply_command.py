from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from plastibench.cli.main import main

OWN = """
import torch
from torch import nn
import torch.nn.functional as F

def build():
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    generator = torch.Generator().manual_seed(0)
    batch = {"x": torch.randn(32, 6, generator=generator), "y": torch.randint(3, (32,), generator=generator)}
    return model, batch, lambda model, batch: F.cross_entropy(model(batch["x"]), batch["y"])

def images():
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 16), nn.ReLU(), nn.Linear(16, 4))

class Scaled(nn.Linear):
    def get_extra_state(self):
        return {"recipe": "delayed"}

    def set_extra_state(self, state):
        assert state == {"recipe": "delayed"}

def scaled():
    return nn.Sequential(nn.Flatten(), Scaled(3 * 8 * 8, 16), nn.ReLU(), nn.Linear(16, 4))

def broken():
    raise KeyError("weights")

def wrong():
    return 3

class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = images()

    def forward(self, x):
        return self.body(x), self.body(x)

def two():
    return Two()

def ragged():
    model, batch, loss = build()
    return model, {**batch, "y": batch["y"][:-1]}, loss

def unreduced():
    model, batch, _ = build()
    return model, batch, lambda model, batch: model(batch["x"])

def number():
    model, batch, _ = build()
    return model, batch, lambda model, batch: 0

def raising():
    model, batch, _ = build()
    return model, batch, lambda model, batch: model(batch["z"])
"""


def plastibench(*words: object) -> int:
    with pytest.raises(SystemExit) as stopped:
        main([str(word) for word in words])
    return int(stopped.value.code or 0)


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / f"own_{tmp_path.name}.py"
    path.write_text(OWN, encoding="utf-8")
    return path


def trained() -> dict[str, torch.Tensor]:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    with torch.no_grad():
        model[0].bias[:4] = -100.0  # four dead units
    return model.state_dict()


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_weights_of_own_code_are_repaired(suffix: str, own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = trained()
    save_file(before, "old.safetensors")
    command = ["apply", f"{own.name}:build", "--weights", "old.safetensors", "--intervention", "redo"]
    assert plastibench(*command, "--out", f"new{suffix}", "--intervention.tau", "0") == 0
    after = load_file("new.safetensors") if suffix == ".safetensors" else torch.load("new.pt", weights_only=True)
    assert after.keys() == before.keys()
    assert (after["0.bias"][:4] > -100).all() and torch.equal(after["0.bias"][4:], before["0.bias"][4:])
    assert torch.equal(after["2.weight"][:, :4], torch.zeros(3, 4))
    out = capsys.readouterr().out
    assert "50 % of units reinitialized" in out and "100 % of predictions unchanged" in out
    assert torch.equal(load_file("old.safetensors")["0.bias"], before["0.bias"])


def test_images_go_to_a_model_of_own_code(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["apply", f"{own.name}:images", "--image-size", "8", "--samples", "16", "--out", "new.pt"]
    assert plastibench(*command, "--intervention", "shrink-perturb-keep80") == 0
    assert "on 16 samples of noise" in capsys.readouterr().out
    assert torch.load("new.pt", weights_only=True).keys() == {"1.weight", "1.bias", "3.weight", "3.bias"}


def test_state_that_is_not_a_tensor_is_kept_in_a_file_of_torch(
    own: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(own.parent)
    command = ["apply", f"{own.name}:scaled", "--image-size", "8", "--intervention", "shrink-perturb-keep80"]
    assert plastibench(*command, "--out", "new.pt") == plastibench(*command, "--out", "new.safetensors") == 0
    module = importlib.import_module(own.stem).scaled()
    state = torch.load("new.pt", weights_only=True)
    module.load_state_dict(state)
    tensors = load_file("new.safetensors")
    assert (
        state.keys() - tensors.keys() == {"1._extra_state"} and tensors.keys() == dict(module.named_parameters()).keys()
    )
    assert plastibench("diagnose", f"{own.name}:scaled", "--image-size", "8", "--weights", "new.pt") == 0
    assert "verdict" in capsys.readouterr().out


def test_nothing_is_written_if_nothing_changed(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["apply", f"{own.name}:build", "--intervention", "redo", "--intervention.tau", "0", "--out", "new.pt"]
    assert plastibench(*command) == 1
    assert "changed nothing" in capsys.readouterr().err and not Path("new.pt").exists()


def test_a_model_of_hugging_face_becomes_a_new_folder(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.BertConfig(**sizes, vocab_size=20, max_position_embeddings=32)
    transformers.BertForMaskedLM(config).save_pretrained("bert")
    assert plastibench("apply", "bert", "--samples", "8", "--intervention", "rnr", "--out", "new") == 0
    old, new = (transformers.BertForMaskedLM.from_pretrained(folder).state_dict() for folder in ("bert", "new"))
    assert old.keys() == new.keys() and any(not torch.equal(old[name], new[name]) for name in old)
    assert "random tokens" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["FILE:build", "--out", "x.pt"], "needs --intervention"),
        (["FILE:build", "--intervention", "redo"], "needs --out"),
        (["FILE:build", "--intervention", "rodo", "--out", "x.pt"], "unknown intervention"),
        (["FILE:build", "--intervention", "redo", "--out", "x.exe"], "--out x.exe"),
        (["FILE:build", "--intervention", "redo", "--out", "nowhere/x.pt"], "the folder nowhere does not exist"),
        (["FILE:build", "--intervention", "redo", "--out", "x"], "--out x"),
        (["FILE:missing", "--intervention", "redo", "--out", "x.pt"], "has no 'missing'"),
        (["FILE:broken", "--intervention", "redo", "--out", "x.pt"], "broken() failed (KeyError"),
        (["FILE:wrong", "--intervention", "redo", "--out", "x.pt"], "it returned int"),
        (["FILE:two", "--intervention", "redo", "--out", "x.pt", "--image-size", "8"], "the network returns a tuple"),
        (["FILE:ragged", "--intervention", "redo", "--out", "x.pt"], "ragged() returns a batch that cannot be used"),
        (["FILE:unreduced", "--intervention", "redo", "--out", "x.pt"], "loss_fn returns a tensor of shape [2, 3]"),
        (["FILE:number", "--intervention", "redo", "--out", "x.pt"], "loss_fn returns 0; return the mean loss"),
        (["FILE:raising", "--intervention", "redo", "--out", "x.pt"], "loss_fn fails on its batch: "),
        (["FILE:build", "--intervention", "upgd-adam", "--out", "x.pt"], "works only during training"),
        (["FILE:build", "--intervention", "plasticity-injection", "--out", "x.pt"], "changes the architecture"),
        (["FILE:build", "--intervention", "redo", "--out", "x.pt", "--role", "critic"], "no network 'critic'"),
        (
            ["FILE:images", "--intervention", "redo", "--out", "x.pt", "--image-size", "-3"],
            "--image-size: '-3' is not an integer from 1",
        ),
        (
            ["FILE:images", "--intervention", "redo", "--out", "x.pt", "--samples", "1"],
            "--samples: '1' is not an integer from 2",
        ),
        (
            ["FILE:build", "--intervention", "redo", "--out", "x.pt", "--agent.depth", "2"],
            "--agent.OPTION needs --agent",
        ),
        (["timm:test_vit", "--intervention", "redo", "--out", "x.pt", "--pretrained", "--weights", "y.pt"], "combined"),
    ],
)
def test_mistakes_are_reported_and_nothing_is_written(
    words: list[str], message: str, own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert plastibench("apply", *(word.replace("FILE", own.name) for word in words)) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.strip().splitlines()) == 1
    assert [path.name for path in Path.cwd().iterdir() if path.name != "__pycache__"] == [own.name]
