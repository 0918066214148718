from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
IGNORED = {line.strip("/") for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").split()}


def instructions() -> list[tuple[str, str]]:
    lines = [line for line in (ROOT / "Dockerfile").read_text(encoding="utf-8").splitlines() if line.strip()]
    return [tuple(line.split(maxsplit=1)) for line in lines if not line.startswith("#")]  # type: ignore[misc]


def test_the_dockerfile_follows_the_rules() -> None:
    found = instructions()
    assert {word for word, _ in found} <= {
        "FROM",
        "COPY",
        "RUN",
        "USER",
        "ENV",
        "WORKDIR",
        "VOLUME",
        "ENTRYPOINT",
        "CMD",
    }
    assert re.fullmatch(r"python:3\.1\d-slim", dict(found)["FROM"])  # a pinned Python
    assert dict(found)["USER"] != "root"
    positions = [word for word, _ in found]
    assert positions.index("USER") > max(n for n, word in enumerate(positions) if word == "RUN")
    for word, rest in found:
        if word == "RUN" and "pip install" in rest:
            assert "--no-cache-dir" in shlex.split(rest)


def test_the_image_gets_the_sources_and_no_more() -> None:
    needed = ["pyproject.toml", "README.md", "LICENSE", "plastibench", "envs", "agents"]
    assert not IGNORED & set(needed)
    assert {".git", "runs", "data", ".venv"} <= IGNORED


@pytest.mark.slow
def test_the_image_builds_and_runs(tmp_path: Path) -> None:
    if shutil.which("docker") is None or subprocess.run(["docker", "info"], capture_output=True).returncode:
        pytest.skip("there is no Docker daemon")
    subprocess.run(["docker", "build", "-t", "plastibench-test", str(ROOT)], check=True)
    run = ["docker", "run", "--rm", "-v", f"{tmp_path}:/work", "--user", "0:0", "plastibench-test", "run"]
    options = ["relabel-digits", "--agent", "mlp", "--env.epochs", "1", "--device", "cpu"]
    subprocess.run([*run, *options], check=True)
    assert list((tmp_path / "runs").glob("*/result.json"))
