from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from plastibench.config.errors import UserError
from plastibench.config.spec import RunSpec
from plastibench.results.files import load_results
from plastibench.results.object_storage import is_url
from plastibench.results.tags import add_tags
from plastibench.training.runner import run

fsspec = pytest.importorskip("fsspec")


def test_results_in_object_storage_are_read_as_from_a_folder(
    tmp_path: Path, tiny: Callable[..., RunSpec], say: Callable[..., Any]
) -> None:
    for seed in (0, 1):
        spec = tiny(agent="mlp", seed=seed)
        run(spec, runs_dir=tmp_path / "r", quiet=True)
    add_tags([tmp_path / "r" / spec.id], ["good"])
    storage = fsspec.filesystem("memory")
    storage.put(f"{tmp_path}/r/", "/bucket/runs/", recursive=True)
    storage.pipe("/bucket/runs/broken/result.json", b"{")
    storage.pipe("/bucket/other/result.json", b"{")

    found = load_results("memory://bucket/runs")
    assert [result.summary for result in found] == [result.summary for result in load_results(tmp_path / "r")]
    assert [sorted(result.tags) for result in found] == [[], ["good"]]

    here = say("leaderboard", "--runs-dir", tmp_path / "r", "--format", "json")
    there = say("leaderboard", "--runs-dir", "memory://bucket/runs", "--format", "json")
    assert there.status == 0 and there.out == here.out
    assert there.err.count("skipped") == 1 and "broken" in there.err


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["leaderboard", "--runs-dir", "memory://nothing"], "no finished run in memory://nothing"),
        (["leaderboard", "--runs-dir", "what://bucket"], "cannot read what://bucket"),
        (["leaderboard", "add", "x.json", "--runs-dir", "memory://b"], "memory://b is read-only"),
        (["leaderboard", "--tensorboard", "--runs-dir", "memory://b"], "memory://b is read-only"),
        (["run", "cl-digits", "--agent", "mlp", "--runs-dir", "s3://b"], "only leaderboard reads URLs"),
    ],
)
def test_what_cannot_be_read_or_written_there_is_refused(
    say: Callable[..., Any], words: list[str], reason: str
) -> None:
    said = say(*words)
    assert said.status == 2 and said.err.count("\n") == 1 and reason in said.err


def test_a_storage_that_fails_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(fsspec.filesystem("memory"), "find", fail)
    with pytest.raises(UserError, match=r"cannot read memory://b: ConnectionError: no route$"):
        load_results("memory://b")


def test_paths_are_not_urls() -> None:
    assert is_url("s3://bucket/runs") and not is_url("runs") and not is_url(Path("s3://bucket"))
