"""What the end of a process means for its job, also if others use the same folders or these are gone."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

import pytest

from plastibench.config.errors import RunError, UserError
from plastibench.config.spec import RunSpec
from plastibench.sweeps import jobs as jobs_module
from plastibench.sweeps.engine import run_all
from plastibench.sweeps.jobs import FAILURE_FILE, RunArguments, end, prepare, startable
from plastibench.sweeps.local_engine import LocalEngine
from plastibench.training.runner import run
from plastibench.utils.folder_lock import lock_folder

TINY = {"env_options": {"epochs": 1, "stop_after": 1, "train_size": 40}, "agent_options": {"width": 8}}


@pytest.fixture
def spec() -> RunSpec:
    return RunSpec.make("cl-digits", "mlp", device="cpu", **TINY)


@pytest.mark.parametrize("harm", ["removed folder", "full disk"])
def test_a_reason_that_cannot_be_written_fails_only_its_job(
    tmp_path: Path, spec: RunSpec, monkeypatch: pytest.MonkeyPatch, harm: str
) -> None:
    (job,) = prepare([spec], tmp_path)
    folder = tmp_path / spec.id
    if harm == "removed folder":
        shutil.rmtree(folder)
    else:

        def full(path: Path, text: str) -> None:
            raise RunError(f"cannot write {path}: No space left on device")

        monkeypatch.setattr(jobs_module.atomic_io, "write_text", full)
    end(job, folder, 1, ["a traceback"], stopped=False)
    assert job.state == "failed" and "a traceback (cannot write" in job.message
    for status, stopped, state in ((0, False, "complete"), (130, False, "stopped"), (1, True, "stopped")):
        end(job, folder, status, [], stopped)
        assert job.state == state


def test_a_run_of_another_process_is_waited_for_and_not_called_failed(tmp_path: Path, spec: RunSpec) -> None:
    pytest.importorskip("fcntl")
    (job,) = prepare([spec], tmp_path)
    folder = tmp_path / spec.id
    assert startable([job], tmp_path) == [job]
    with lock_folder(folder):
        with pytest.raises(UserError) as refused:
            run(spec, runs_dir=tmp_path, quiet=True)
        end(job, folder, 2, [f"plastibench: {refused.value}"], stopped=False)
        assert job.state == "waiting" and not (folder / FAILURE_FILE).exists()
        assert startable([job], tmp_path) == []
    assert startable([job], tmp_path) == [job]
    run(spec, runs_dir=tmp_path, quiet=True)
    assert startable([job], tmp_path) == [] and job.state == "complete"


@pytest.mark.slow
def test_a_sweep_waits_for_a_run_of_another_process(tmp_path: Path, spec: RunSpec) -> None:
    pytest.importorskip("fcntl")
    polls: list[str] = []
    (job,) = prepare([spec], tmp_path)
    with contextlib.ExitStack() as held:
        held.enter_context(lock_folder(tmp_path / spec.id))

        def release() -> None:
            polls.append(job.state)
            if len(polls) == 4:
                held.close()

        LocalEngine(1, tmp_path, RunArguments(tmp_path, threads=1)).run([job], stop=[], on_poll=release)
    assert polls[:4] == ["waiting"] * 4 and job.state == "complete"
    assert [
        other.state for other in run_all([spec], LocalEngine(1, tmp_path, RunArguments(tmp_path)), tmp_path, quiet=True)
    ] == ["complete"]
