"""Any input is accepted, or refused in one line: specs, arguments, results, weights, arrays, images, archives."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save as safetensors_bytes

from plastibench.config import registry
from plastibench.config.errors import RunError, UserError
from plastibench.config.spec import RunSpec
from plastibench.diagnosis.loading import agent_model
from plastibench.diagnosis.samples import read_samples
from plastibench.envs.datasets import load_dataset
from plastibench.leaderboard.standings import standings
from plastibench.leaderboard.text import markdown
from plastibench.leaderboard.validation import add
from plastibench.results.files import load_results
from plastibench.sweeps.grid import read_grid
from plastibench.training import runner
from plastibench.training.opened_run import Interrupted
from tests.leaderboard.made import result, submitted, submitted_acting, written
from tests.support.attack import Attack
from tests.support.mutations import HOSTILE, harmed, mutated, mutated_text

PARTS = [("cl-digits", "vit-nano", "rnr"), ("rl-cartpole", "sac-mlp", "redo"), ("relabel-digits", "mlp", "reset+l2")]


def refused(call: Callable[[], Any]) -> bool:
    """Whether a call raises an error for users; any other error fails the test."""
    try:
        call()
    except (UserError, RunError):
        return True
    return False


def test_specs(attack: Attack) -> None:
    texts = [RunSpec.make(*parts, device="cpu").to_toml() for parts in PARTS]
    for dice in attack.trials(150):
        text = mutated_text(dice.choice(texts), dice)
        attack.note("refused" if refused(lambda text=text: RunSpec.from_toml(text)) else "accepted")


def test_sweep_files(attack: Attack, tmp_path: Path) -> None:
    text = RunSpec.make(*PARTS[0], device="cpu").to_toml() + "[[grid]]\nagent = {lr = [0.1, 0.2]}\n"
    path = tmp_path / "sweep.toml"
    for dice in attack.trials(50):
        path.write_text(mutated_text(text, dice), encoding="utf-8")
        attack.note("refused" if refused(lambda: read_grid(path)) else "accepted")


def test_arguments(attack: Attack, tmp_path: Path, say: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(spec: RunSpec, **options: Any) -> None:
        raise Interrupted(f"{spec.id} stopped before its start")

    monkeypatch.setattr(runner, "run", stopped)  # what is attacked ends where training begins
    monkeypatch.setattr("plastibench.cli.run.slots_for", lambda *_: 1)  # also of several runs
    words = ["run", "cl-digits", "--agent", "mlp", "--intervention", "rnr", "--seed", "0", "--every", "5"]
    words += ["--agent.lr", "0.1", "--env.epochs", "2", "--intervention.quantile", "0.5", "--representative", "64"]
    words += ["--device", "cpu", "--runs-dir", str(tmp_path / "runs"), "--quiet"]
    hostile = ["", "-1", "0", "nan", "inf", "1e308", "x", "ä", "--", "-", "--agent.lr", "../x", "a,b", "0..1", "\0"]
    for dice in attack.trials(40):
        given = list(words)
        for _ in range(dice.choice([1, 1, 2])):
            place = dice.randrange(1, len(given))
            if dice.random() < 0.3:
                del given[place]
            else:
                given[place] = dice.choice([*hostile, str(dice.choice(HOSTILE[:15]))])
        said = say(*given)
        assert said.status in (2, 130) and "Traceback" not in said.err, (given, said)
        assert said.err.count("\n") == 1, (given, said)
        attack.note("refused" if said.status == 2 else "accepted")


def test_results(attack: Attack, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    valid = [made.to_dict() for made in (submitted("reset", drop=0.2), submitted("rnr", every=9), submitted_acting())]
    valid = json.loads(json.dumps(valid))
    runs = written(tmp_path / "runs", [result("none", seed) for seed in range(2)])
    bad = runs / "bad" / "result.json"
    bad.parent.mkdir()
    for number, dice in enumerate(attack.trials(100)):
        text = json.dumps(mutated(dice.choice(valid), dice))
        if dice.random() < 0.1:
            text = harmed(text.encode(), dice)[0].decode(errors="replace")
        bad.write_text(text)
        markdown(standings(load_results(runs)))  # whatever it contains, the others are shown
        skipped = capsys.readouterr().err
        assert skipped.count("\n") <= 1, skipped
        same = json.dumps(json.loads(text)) in map(json.dumps, valid) if not skipped else False  # 1 is not True
        accepted = not refused(lambda number=number: add(bad, tmp_path / f"others{number}"))
        attack.note("accepted" if accepted else "skipped" if skipped else "shown, but not admitted")
        assert accepted or not same


def test_weights(attack: Attack, tmp_path: Path) -> None:
    usual = registry.agents["mlp"].load()().module((1, 8, 8), 9).state_dict()
    options = {"samples": 4, "image_size": 0, "data_dir": Path("data")}
    for dice in attack.trials(40):
        state: dict[Any, Any] = {**usual, dice.choice(list(usual)): _odd_tensor(dice)} if dice.random() < 0.6 else usual
        stream, path = io.BytesIO(), tmp_path / "w.pt"
        torch.save(
            dice.choice([state, {"state_dict": state}, {"model": {f"module.{k}": v for k, v in state.items()}}]), stream
        )
        data = stream.getvalue()
        if dice.random() < 0.2:
            path, data = tmp_path / "w.safetensors", safetensors_bytes(usual)
        if state is usual and dice.random() < 0.8:
            data = harmed(data, dice)[0]
        path.write_bytes(data)
        call = lambda path=path: agent_model("mlp", {}, "digits", "cpu", weights=path, **options)  # noqa: E731
        attack.note("refused" if refused(call) else "accepted")


def _odd_tensor(dice: Random) -> Any:
    shape = dice.choice([(), (0,), (1,), (9, 128), (128,), (2**20,), (1, 1, 1, 1, 1)])
    made = torch.zeros(
        shape, dtype=dice.choice([torch.float32, torch.float16, torch.int8, torch.bool, torch.complex64])
    )
    return dice.choice(
        [made, made.to("meta"), made.float().to_sparse() if made.ndim else made, made + torch.nan, "text", None, [made]]
    )


def test_arrays(attack: Attack, tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    shapes = [
        (),
        (0,),
        (3,),
        (3, 4, 4),
        (3, 0, 4),
        (3, 1, 4, 4),
        (3, 4, 4, 3),
        (0, 4, 4),
        (2, 2, 2, 2, 2),
        (3, 60_000, 1),
    ]
    dtypes = ["u1", ">u2", "<i8", ">f4", "f2", "f8", "g", "?", "c8", "S3", "U2", "M8[s]", "u8"]
    for dice in attack.trials(60):
        images = np.zeros(dice.choice(shapes), dice.choice(dtypes))
        labels = np.full(dice.choice([(), (3,), (0,), (3, 1)]), dice.choice([0, 9, 255]), dice.choice(dtypes[:8]))
        np.savez(path, **{dice.choice(["x", "images", "arr_0"]): images, dice.choice(["y", "z"]): labels})
        if dice.random() < 0.3:
            path.write_bytes(harmed(path.read_bytes(), dice)[0])
        attack.note("refused" if refused(lambda: read_samples(str(path), 2, (3, 8, 8), Path("data"))) else "accepted")


def test_images(attack: Attack, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    root = tmp_path / "images"
    for name in ("train/a/0", "test/a/0"):
        (root / name).parent.mkdir(parents=True)
        Image.fromarray(rng.integers(0, 256, (9, 9, 3), np.uint8)).save(root / f"{name}.png")
    for dice in attack.trials(40):
        size = dice.choice([(9, 9), (1, 1), (300, 2), (2, 300), (5000, 1)])
        image = Image.new(dice.choice(["RGB", "L", "P", "1", "RGBA", "LA"]), size)
        stream = io.BytesIO()
        image.save(stream, dice.choice(["PNG", "GIF", "TIFF"]))
        (root / "train/a/0.png").write_bytes(harmed(stream.getvalue(), dice)[0])
        call = lambda: load_dataset("imagefolder", tmp_path / "data", path=root, image_size=8)  # noqa: E731
        attack.note("refused" if refused(call) else "accepted")


def test_archives(attack: Attack, tmp_path: Path) -> None:
    stream, image = io.BytesIO(), io.BytesIO()
    Image.new("RGB", (64, 64)).save(image, "JPEG")
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as made:
        root = "tiny-imagenet-200/"
        for name in ("train/n01/images/n01_0.JPEG", "val/images/val_0.JPEG"):
            made.writestr(root + name, image.getvalue())
        made.writestr(root + "val/val_annotations.txt", "val_0.JPEG\tn01\n")
        made.writestr(root + "wnids.txt", "n01\n")
        made.writestr(root + "words.txt", "n01\tcat\n")
    for number, dice in enumerate(attack.trials(40)):
        data_dir = tmp_path / str(number)
        data_dir.mkdir()
        (data_dir / "tiny-imagenet-200.zip").write_bytes(harmed(stream.getvalue(), dice)[0])
        call = lambda folder=data_dir: load_dataset("tiny-imagenet", folder, download=False)  # noqa: E731
        attack.note("refused" if refused(call) else "accepted")
