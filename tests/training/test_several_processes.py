"""Two processes that train one network do what one process does, and only the first writes files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from plastibench.cli.main import main
from plastibench.config.errors import RunError, UserError
from plastibench.config.spec import RunSpec
from plastibench.nn.agreement import check_equal
from plastibench.training import checkpoint, runner
from plastibench.training.assembly import build_agent, check_options, make_trainer
from plastibench.training.opened_run import Interrupted
from plastibench.utils import distributed
from tests.support.processes import together

METHODS: dict[str, dict[str, Any]] = {  # options with which methods act within a few updates
    "none": {},
    "shrink-perturb": {},
    "redo": {"tau": 0.5},
    "rnr": {},
    "continual-backprop": {"rate": 0.1, "maturity": 2},
    "upgd": {},
    "l2-init": {"strength": 0.1},
    "hare-tortoise": {"momentum": 0.5},
    "spectral-decoupling": {"strength": 0.1},
    "self-normalized-resets": {"longest": 2, "retune": 3},
    "plasticity-injection": {},
}
# Of 27 images, the last batch of each epoch has a single one, which is fewer than there are processes.
SPEC = {"env_options": {"epochs": 2, "train_size": 27, "tasks": 2}, "agent_options": {"batch_size": 13, "width": 8}}


def spec_of(name: str, agent: str = "mlp", **options: Any) -> RunSpec:
    merged = {**SPEC, **options}
    return RunSpec.make("relabel-digits", agent, name, intervention_options=METHODS[name], device="cpu", **merged)


def train(spec: RunSpec) -> dict[str, Any]:
    """Train to the end; return everything that must not depend on the number of processes."""
    env = spec.create("env").make("data")
    agent = build_agent(spec, env)
    check_options(spec, env, agent)
    trainer = make_trainer(spec, env, agent)
    masks: list[dict[str, torch.Tensor]] = []
    intervene = trainer.intervene

    def intervene_and_note() -> Any:
        reports = intervene()
        masks.append(reports["classifier"].units)
        return reports

    trainer.intervene = intervene_and_note  # type: ignore[method-assign]
    trainer.begin()
    losses = []
    while not trainer.finished:
        trainer.advance()
        losses.append(agent.pop_averages().get("loss"))
    attached = trainer.learner.attached["classifier"]
    return {
        "weights": dict(attached.network.module.state_dict()),
        "evaluated": dict(attached.evaluated.state_dict()),
        "state": attached.intervention.state_dict(),
        "masks": masks,
        "losses": losses,
        "curve": [record.curve for record in trainer.records],
    }


def train_all() -> dict[str, Any]:
    return {name: train(spec_of(name)) for name in METHODS}


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """All methods in one process, and in two."""
    return train_all(), together(train_all, folder=tmp_path_factory.mktemp("both"))


@pytest.mark.parametrize("name", METHODS)
def test_two_processes_equal_one(name: str, both: tuple[dict[str, Any], list[dict[str, Any]]]) -> None:
    alone, (first, second) = both[0][name], (found[name] for found in both[1])
    assert_equal(first, second, exactly=True)
    assert_equal(alone, first, exactly=False)


def assert_equal(one: Any, other: Any, *, exactly: bool) -> None:
    """Compare nested values: floats within rounding unless ``exactly``, and everything else exactly."""
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_equal(one[key], other[key], exactly=exactly)
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert_equal(a, b, exactly=exactly)
    elif isinstance(one, torch.Tensor) and one.is_floating_point() and not exactly:
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, float) and not exactly:
        assert one == pytest.approx(other, rel=1e-3, abs=1e-4)
    else:
        assert one == other


def test_methods_act_in_these_runs(both: tuple[dict[str, Any], list[dict[str, Any]]]) -> None:
    alone, _ = both
    for name in METHODS.keys() - {"none"}:
        assert any(
            not torch.equal(value, alone["none"]["weights"][key])
            for key, value in alone[name]["weights"].items()
            if key in alone["none"]["weights"]
        ), name
    for name in ("redo", "rnr"):
        assert any(bool(mask.any()) for masks in alone[name]["masks"] for mask in masks.values())


# Files and resume -------------------------------------------------------------------------------------------------


class Stops(list[int]):
    """A stop request that arrives in one process only, after some updates."""

    def __init__(self, updates: int, rank: int) -> None:
        super().__init__()
        self.left, self.rank = updates, rank

    def __bool__(self) -> bool:
        self.left -= 1
        return self.left < 0 and distributed.rank() == self.rank


def run_until(updates: int, spec: RunSpec, folder: Path) -> str:
    """Run until a stop request arrives in the last process; return what is said."""
    last = distributed.world_size() - 1
    try:
        runner.run(spec, runs_dir=folder, quiet=True, stop=Stops(updates, last))
    except Interrupted as stopped:
        return str(stopped)
    return "finished"


def begin_and_end(spec: RunSpec, folder: Path) -> tuple[list[str], str]:
    """Start two runs and stop the first; return what was said, and the files that this process has opened to write."""
    said = [run_until(5, spec, folder / "stopped"), run_until(10**6, spec, folder / "complete")]
    opened = [run_until(0, spec, folder / "complete")]
    return said, opened[0]


def final(folder: Path) -> dict[str, torch.Tensor]:
    (path,) = folder.glob("*/final.pt")
    return dict(checkpoint.load(path)["networks"][0])


def test_runs_resume_with_another_number_of_processes(tmp_path: Path) -> None:
    spec = spec_of("rnr")
    for said, again in together(begin_and_end, spec, tmp_path, folder=tmp_path / "group"):
        assert "stopped in task 2 after 6 updates" in said[0] and said[1] == again == "finished"
    runner.run(spec, runs_dir=tmp_path / "alone", quiet=True)
    resumed = runner.run(spec, runs_dir=tmp_path / "stopped", quiet=True)
    for name, value in final(tmp_path / "alone").items():
        torch.testing.assert_close(final(tmp_path / "stopped")[name], value, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(final(tmp_path / "complete")[name], value, rtol=1e-3, atol=1e-4)
    devices = [session.hardware.device for session in resumed.origin.sessions]
    assert devices == ["2 × cpu", "cpu"] and resumed.cost.cpu_seconds is None
    first, second = (read_metrics(tmp_path / name) for name in ("alone", "complete"))
    assert first == second and len(first) > 10  # one writer: no line is missing or written twice
    assert not list((tmp_path / "complete").rglob("failure.txt"))


def run_command(words: list[str]) -> int:
    with pytest.raises(SystemExit) as ended:
        main(words)
    return int(ended.value.code or 0)


def test_a_command_with_several_runs(tmp_path: Path) -> None:
    words = "run relabel-digits --agent mlp --agent.width 8 --intervention none,reset --env.tasks 2 --env.epochs 1"
    words += f" --env.train-size 40 --device cpu --quiet --no-plot --runs-dir {tmp_path / 'runs'}"
    assert together(run_command, words.split(), folder=tmp_path / "group") == [0, 0]
    assert len([*(tmp_path / "runs").glob("*/result.json")]) == 2


def read_metrics(folder: Path) -> list[list[str]]:
    """The columns of ``metrics.csv`` that say what was recorded when."""
    (path,) = folder.glob("*/metrics.csv")
    return [line.split(",")[:5] for line in path.read_text().splitlines()]


# Mistakes ---------------------------------------------------------------------------------------------------------


def complaint(call: Callable[[], Any]) -> str:
    try:
        call()
    except (UserError, RunError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def wrong_uses(folder: Path) -> list[str]:
    rl = RunSpec.make("rl-cartpole", "dqn-mlp", "none", env_options={"steps": 20_000}, device="cpu")
    norms = spec_of("none", "resnet18", agent_options={})
    (folder / f"{distributed.rank()}").mkdir()
    spec = spec_of("none")
    network = build_agent(spec, spec.create("env").make("data")).networks["classifier"]
    if distributed.rank():
        next(network.module.parameters()).data.add_(1.0)

    def fail() -> None:
        raise UserError("only the first process knows")

    rows = torch.zeros(4, 2 + distributed.rank())
    return [
        complaint(lambda: runner.run(rl, runs_dir=folder / "runs", quiet=True)),
        complaint(lambda: runner.run(norms, runs_dir=folder / "runs", quiet=True)),
        complaint(lambda: distributed.check_device("cuda:1")),
        complaint(lambda: check_equal(network)),
        complaint(lambda: distributed.on_first_process(fail)),
        complaint(lambda: distributed.broadcast_from_first({"w": rows})),
    ]


def test_mistakes_are_reported_in_one_line_by_every_process(tmp_path: Path) -> None:
    first, second = together(wrong_uses, tmp_path, folder=tmp_path / "group")
    assert first == second
    rl, norms, device, weights, decision, other = first
    assert rl == "UserError: rl-cartpole trains in one process, not in 2; start it without torchrun"
    assert norms.startswith("UserError: resnet18 has BatchNorm (bn1), whose statistics would differ")
    assert device == "UserError: --device cuda:1 is one device for 2 processes; use --device cuda"
    assert weights.startswith("RunError: the weights of the classifier differ between processes")
    assert decision == "UserError: only the first process knows"
    assert other.startswith(
        "RunError: the processes hold different networks or optimizers (first difference: w); build"
    )
    assert not (tmp_path / "runs").exists()
