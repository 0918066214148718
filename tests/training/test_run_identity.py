"""A folder is used for one run only, by whichever id; what identifies a run decides whether it is repeated."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from plastibench.cli.plugins import import_plugins
from plastibench.config import registry
from plastibench.config.errors import UserError
from plastibench.config.spec import RunSpec
from plastibench.leaderboard.settings import by_setting, label
from plastibench.results.files import load_results, read_result
from plastibench.sweeps.jobs import prepare
from plastibench.training.runner import run
from tests.support.runs import Stopped, assert_same_run, crash_at, go, watch_updates, weights

Tiny = Callable[..., RunSpec]
PLUGIN = """
from dataclasses import dataclass
import torch
import plastibench as pb

@pb.register_intervention("shrink-for-identity", "shrink")
@dataclass
class Shrink(pb.Intervention):
    def intervene(self, network, batch):
        with torch.no_grad():
            for parameter in network.module.parameters():
                parameter.mul_(FACTOR)
        return pb.Report()
"""


def small(tiny: Tiny, intervention: str = "none", options: Any = None, **more: Any) -> RunSpec:
    return tiny(intervention, options, env="relabel-digits", agent="mlp", **more)


def make_old(spec: RunSpec, runs_dir: Path) -> Path:
    """Turn the folder of a run into what version 0.1.0 would have left."""
    folder = (runs_dir / spec.id).rename(runs_dir / spec.legacy_ids()[0])
    text = spec.to_toml().replace("tasks = ", "switches = ")
    (folder / "spec.toml").write_text(text)
    if (folder / "result.json").exists():
        content = json.loads((folder / "result.json").read_text())
        content |= {"schema": 3, "id": folder.name, "group": spec.legacy_groups()[0]}
        for part in ("options", "changed"):
            content[part]["env"]["switches"] = content[part]["env"].pop("tasks")
        for key in ("agent_version", "code", "sha256"):
            content.pop(key)
        (folder / "result.json").write_text(json.dumps(content))
    else:
        state = torch.load(folder / "checkpoint.pt", weights_only=True)
        state["spec"] = text
        del state["sessions"]
        torch.save(state, folder / "checkpoint.pt")
    return folder


def interrupt(spec: RunSpec, runs_dir: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> Path:
    crash_at(monkeypatch, 3)
    with pytest.raises(Stopped):
        run(spec, runs_dir=runs_dir, quiet=True, checkpoint_seconds=0, **options)
    assert (runs_dir / spec.id / "checkpoint.pt").exists()
    return runs_dir / spec.id


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[float], RunSpec]:
    """Import a plugin with a factor as a new process would; the spec of a run with it."""
    monkeypatch.setattr(registry.interventions, "_entries", {**registry.interventions.all()})

    def imported(factor: float) -> RunSpec:
        file = tmp_path / "shrink_for_identity.py"
        file.write_text(PLUGIN.replace("FACTOR", str(factor)))
        registry.interventions._entries.pop("shrink-for-identity", None)
        import_plugins([str(file)])
        options = {"tasks": 2, "epochs": 2, "train_size": 40}
        return RunSpec.make("relabel-digits", "mlp", "shrink-for-identity", env_options=options, device="cpu")

    return imported


def test_runs_whose_short_ids_collided_have_their_own_results(tiny: Tiny, tmp_path: Path) -> None:
    budget = {"train_size": 100, "epochs": 3}
    one, other = (
        RunSpec.make(
            "relabel-digits",
            "mlp",
            "rnr",
            env_options={"tasks": 3, **budget},
            intervention_options={"quantile": quantile},
            device="cpu",
        )
        for quantile in (0.1476, 0.472)
    )
    go(one, tmp_path)
    make_old(one, tmp_path)
    assert go(one, tmp_path)["options"]["intervention"]["quantile"] == 0.1476
    assert go(other, tmp_path)["options"]["intervention"]["quantile"] == 0.472
    assert len(list(tmp_path.glob("*/result.json"))) == 2


def test_an_old_folder_is_found_again(tiny: Tiny, tmp_path: Path) -> None:
    spec = small(tiny, "rnr")
    first = go(spec, tmp_path)
    folder = make_old(spec, tmp_path)
    again = run(spec, runs_dir=tmp_path, quiet=True)
    assert again.reused and again.folder == folder
    assert (again.id, again.group, again.content) == (spec.id, spec.group(), spec.content)
    assert again.summary.model_dump() == {**again.summary.model_dump(), **first["summary"]}
    assert [job.state for job in prepare([spec], tmp_path)] == ["complete"]
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]


@pytest.mark.parametrize("by", ["spec", "resume", "sweep"])
def test_an_old_unfinished_run_continues(
    by: str, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, say: Any
) -> None:
    spec = small(tiny, "rnr")
    go(spec, tmp_path / "uninterrupted")
    interrupt(spec, tmp_path / "old", monkeypatch)
    folder = make_old(spec, tmp_path / "old")
    if by == "spec":
        run(spec, runs_dir=tmp_path / "old", quiet=True)
    else:
        name = folder.name
        if by == "sweep":
            (tmp_path / "all.toml").write_text(spec.to_toml())
            name = say("sweep", tmp_path / "all.toml", "--prepare", "--runs-dir", tmp_path / "old").out.strip()
        assert name == folder.name
        assert say("resume", name, "--runs-dir", tmp_path / "old", "--quiet").status == 0
    result = read_result(folder / "result.json")
    assert result.id == spec.id and result.cost.updates == 6
    assert_same_run(tmp_path / "uninterrupted" / spec.id, folder)


def test_old_and_new_results_are_one_group(tiny: Tiny, tmp_path: Path) -> None:
    specs = [small(tiny, "rnr", seed=seed) for seed in range(2)]
    for spec in specs:
        go(spec, tmp_path)
    make_old(specs[0], tmp_path)
    (setting,) = by_setting(load_results(tmp_path))
    (method,) = setting.methods
    assert (method.name, sorted(method.runs)) == ("rnr", [0, 1])


def test_a_copy_of_an_old_result_is_the_same_run(tiny: Tiny, tmp_path: Path) -> None:
    spec = small(tiny)
    go(spec, tmp_path)
    shutil.copytree(tmp_path / spec.id, tmp_path / "copy" / spec.id)
    make_old(spec, tmp_path)
    assert len(load_results(tmp_path)) == 1


@pytest.mark.parametrize("file", ["spec.toml", "result.json"])
def test_a_folder_with_another_run_is_refused(file: str, tiny: Tiny, tmp_path: Path) -> None:
    one, other = small(tiny, "rnr"), small(tiny, "rnr", {"quantile": 0.2})
    for spec in (one, other):
        go(spec, tmp_path)
    shutil.copy(tmp_path / other.id / file, tmp_path / one.id / file)
    for use in (lambda: run(one, runs_dir=tmp_path, quiet=True), lambda: prepare([one], tmp_path)):
        with pytest.raises(UserError, match=r"different run \(.*; delete"):
            use()
    assert go(other, tmp_path)["id"] == other.id


def test_changed_code_of_a_plugin_runs_again(plugin: Callable[[float], RunSpec], tmp_path: Path) -> None:
    found = [run(plugin(factor), runs_dir=tmp_path / "runs", quiet=True) for factor in (0.5, 0.9, 0.5)]
    first, second, _ = found
    assert [result.reused for result in found] == [False, False, True]
    assert weights(tmp_path / "runs" / first.id) != weights(tmp_path / "runs" / second.id)
    assert first.code.keys() == {"intervention"} and first.code != second.code
    assert RunSpec.from_toml((tmp_path / "runs" / first.id / "spec.toml").read_text()).code == first.code
    (setting,) = by_setting(load_results(tmp_path / "runs"))
    names = sorted(method.name for method in setting.methods)
    assert len(names) == 2 and all("code=" in name for name in names)
    assert {label(result) for result in found} == {"shrink-for-identity"}


def test_an_interrupted_run_whose_plugin_changed_starts_afresh(
    plugin: Callable[[float], RunSpec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, say: Any
) -> None:
    before = plugin(0.5)
    folder = interrupt(before, tmp_path / "runs", monkeypatch)
    after = plugin(0.9)
    with pytest.raises(UserError, match="the code of intervention shrink-for-identity has changed"):
        run(before, runs_dir=tmp_path / "runs", quiet=True)
    done = say("resume", before.id, "--runs-dir", tmp_path / "runs", "--quiet")
    assert done.status == 2 and "the code of intervention shrink-for-identity has changed" in done.err
    assert not run(after, runs_dir=tmp_path / "runs", quiet=True).reused
    assert (folder / "checkpoint.pt").exists() and not (folder / "result.json").exists()


def test_a_result_of_another_agent_version_is_another_run(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, say: Any
) -> None:
    from plastibench.agents.mlp import MLP

    before = small(tiny)
    result = run(before, runs_dir=tmp_path, quiet=True)
    unfinished = small(tiny, seed=1)
    interrupt(unfinished, tmp_path, monkeypatch)
    monkeypatch.setattr(MLP, "version", 2)
    done = say("resume", unfinished.id, "--runs-dir", tmp_path, "--quiet")
    assert done.status == 2 and "the code of agent mlp has changed" in done.err and "version 2" in done.err
    after = run(small(tiny), runs_dir=tmp_path, quiet=True)
    assert (result.agent_version, after.agent_version, after.reused) == (1, 2, False)
    one, other = by_setting(load_results(tmp_path))
    assert "agent version" in one.differs and {one.env, other.env} == {
        f"{one.env.partition(' agent')[0]} agent version={version}" for version in (1, 2)
    }


def test_force_runs_again(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = small(tiny, "rnr")
    go(spec, tmp_path / "once")
    go(spec, tmp_path / "twice")
    before = (tmp_path / "twice" / spec.id / "result.json").stat().st_mtime_ns
    assert not run(spec, runs_dir=tmp_path / "twice", quiet=True, force=True).reused
    assert (tmp_path / "twice" / spec.id / "result.json").stat().st_mtime_ns != before
    assert_same_run(tmp_path / "once" / spec.id, tmp_path / "twice" / spec.id)
    interrupt(spec, tmp_path / "again", monkeypatch)
    updates: list[int] = []
    watch_updates(monkeypatch, lambda agent, batch: updates.append(1))
    run(spec, runs_dir=tmp_path / "again", quiet=True, force=True)
    assert len(updates) == 6  # from the beginning
    assert_same_run(tmp_path / "once" / spec.id, tmp_path / "again" / spec.id)


@pytest.mark.parametrize("update", [1, 3])
def test_a_forced_run_that_is_killed_leaves_no_mixture(
    update: int, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = small(tiny, "rnr")
    go(spec, tmp_path / "once")
    go(spec, tmp_path / "forced")
    crash_at(monkeypatch, update)
    with pytest.raises(Stopped):
        run(spec, runs_dir=tmp_path / "forced", quiet=True, force=True, checkpoint_seconds=0)
    folder = tmp_path / "forced" / spec.id
    assert not (folder / "result.json").exists() and not (folder / "final.pt").exists()
    assert not run(spec, runs_dir=tmp_path / "forced", quiet=True).reused
    assert_same_run(tmp_path / "once" / spec.id, folder)


def test_a_complete_run_is_compared_with_its_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import numpy as np
    from PIL import Image

    images = np.random.Generator(np.random.PCG64(0)).integers(0, 255, (8, 8, 8), dtype=np.uint8)
    for number, image in enumerate(images):
        folder = tmp_path / "images" / ("train" if number < 4 else "test") / str(number % 2)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{number}.png")
    options = {"tasks": 1, "epochs": 1, "path": str(tmp_path / "images"), "image_size": 8}
    spec = RunSpec.make("relabel-imagefolder", "mlp", env_options=options, device="cpu")
    go(spec, tmp_path / "runs", data_dir=tmp_path / "data")
    assert run(spec, runs_dir=tmp_path / "runs", data_dir=tmp_path / "data", quiet=True).reused
    assert capsys.readouterr().err == ""
    Image.fromarray(255 - images[0]).save(tmp_path / "images" / "train" / "0" / "0.png")
    from plastibench.training import stored_data

    stored_data._digest.cache_clear()
    assert run(spec, runs_dir=tmp_path / "runs", data_dir=tmp_path / "data", quiet=True).reused
    assert "used different data" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "images")
    stored_data._digest.cache_clear()
    assert run(spec, runs_dir=tmp_path / "runs", data_dir=tmp_path / "data", quiet=True).reused
    assert "is complete; its data was not compared" in capsys.readouterr().err


def test_the_result_names_all_code_that_took_part(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = small(tiny, "rnr")
    monkeypatch.setattr("plastibench.utils.provenance.commit", lambda: "first")
    interrupt(spec, tmp_path, monkeypatch, threads=1)
    monkeypatch.setattr("plastibench.utils.provenance.commit", lambda: "second")
    result = run(spec, runs_dir=tmp_path, quiet=True, threads=1)
    assert [session.commit for session in result.origin.sessions] == ["first", "second"]
    assert result.origin.commit == "second" and result.origin.sessions[0].torch == torch.__version__
    alone = run(dataclasses.replace(spec, run=dataclasses.replace(spec.run, seed=1)), runs_dir=tmp_path, quiet=True)
    assert alone.origin.sessions == []


@pytest.mark.parametrize(("asked", "used"), [(0, 2), (1, 1)])
def test_a_resumed_run_keeps_its_first_thread_count(
    asked: int,
    used: int,
    tiny: Tiny,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    spec = small(tiny, "rnr")
    folder = interrupt(spec, tmp_path, monkeypatch, threads=2)
    seen: list[int] = []
    monkeypatch.setattr(
        "plastibench.training.supervised.SupervisedTrainer.measure", lambda *_: seen.append(torch.get_num_threads())
    )
    result = run(spec, runs_dir=tmp_path, quiet=True, threads=asked)
    assert set(seen) == {used}
    assert [session.threads for session in result.origin.sessions] == [2, used]
    assert ("was started with --threads 2" in capsys.readouterr().err) == (asked == 1)
    assert read_result(folder / "result.json").origin.sessions == result.origin.sessions


@pytest.mark.sample(1)
@pytest.mark.parametrize("arguments", [[], ["--quiet"], ["--quiet", "--jobs", "2"]])
def test_a_command_says_which_results_are_not_its_own(arguments: list[str], tmp_path: Path, say: Any) -> None:
    command = ["run", "relabel-digits", "--agent", "mlp", "--env.tasks", 2, "--env.epochs", 1, "--env.train-size", 20]
    command += ["--runs-dir", tmp_path, "--device", "cpu"]
    first = say(*command, "--intervention", "none,reset", "--quiet")
    assert first.status == 0 and "already complete" not in first.err
    again = say(*command, "--intervention", "none,reset", *arguments)
    (line,) = [line for line in again.err.splitlines() if "were already complete" in line]
    assert "2 of 2 runs" in line and "none, reset" in line and "--force reruns" in line
    forced = say(*command, "--force", "--quiet")
    assert forced.status == 0 and "already complete" not in forced.err


def test_none_is_the_base_under_every_schedule(tmp_path: Path, say: Any) -> None:
    command = ["run", "relabel-digits", "--agent", "mlp", "--env.tasks", 1, "--env.epochs", 1, "--env.train-size", 200]
    command += ["--runs-dir", tmp_path, "--device", "cpu", "--quiet", "--intervention"]
    assert say(*command, "none,rnr", "--every", 2).status == 0
    (setting,) = by_setting(load_results(tmp_path))
    assert sorted(method.name for method in setting.methods) == ["none", "rnr every=2"]
    assert setting.base is not None
    assert "was already complete" in say(*command, "none").err


def test_a_wrong_role_is_reported_before_the_first_run(tmp_path: Path, say: Any) -> None:
    names = ["--agent", "mlp", "--intervention", "none,rnr", "--roles", "critic"]
    done = say("run", "relabel-digits", *names, "--runs-dir", tmp_path, "--quiet")
    assert done.status == 2 and "mlp has no network 'critic'" in done.err
    assert not list(tmp_path.iterdir())


def test_an_old_result_of_none_with_a_schedule_is_the_base(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = small(tiny)
    go(spec, tmp_path)
    folder = make_old(spec, tmp_path)
    content = json.loads((folder / "result.json").read_text())
    scheduled = dataclasses.replace(spec, run=dataclasses.replace(spec.run, every=2, until=10))
    content |= {"every": 2, "schedule": {"until": 10}, "id": scheduled.legacy_ids()[0]}
    content["run"] |= {"every": 2, "until": 10}
    content["summary"]["mean_drop"] = 0.125  # measured within tasks
    (tmp_path / content["id"]).mkdir()
    (tmp_path / content["id"] / "result.json").write_text(json.dumps(content))
    old = read_result(tmp_path / content["id"] / "result.json")
    assert (old.id, old.group, old.every, old.schedule, label(old)) == (spec.id, spec.group(), 0, {}, "none")
    assert len(load_results(tmp_path)) == 1 and capsys.readouterr().err == ""  # one run
