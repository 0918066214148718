from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.run_page import blocks

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
SNIPPETS = {str(page.relative_to(ROOT)): blocks(page) for page in PAGES}
TUTORIALS = ("diagnose", "first_experiment", "off_policy", "own_data", "own_method", "sweep")
SLOW = ["docs/start.md", *(f"docs/tutorials/{name}.md" for name in TUTORIALS)]
RUN = [page for page, found in SNIPPETS.items() if any(block.mark == "run" for block in found)]


def run_page(page: str, folder: Path, *options: str) -> None:
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment = {
        **os.environ,
        "PYTHON": sys.executable,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "MPLBACKEND": "agg",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, str(ROOT / "tests" / "docs" / "run_page.py"), str(ROOT / page), *options]
    found = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert found.returncode == 0, f"{page}:\n{found.stdout[-2000:]}\n{found.stderr[-4000:]}"


@pytest.mark.parametrize("page", [pytest.param(page, marks=[pytest.mark.slow] * (page in SLOW)) for page in RUN])
def test_marked_snippets_run_as_printed(page: str, tmp_path: Path) -> None:
    run_page(page, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page, found in SNIPPETS.items() if any(b.mark == "run slow" for b in found)])
def test_slow_snippets_run_as_printed(page: str, tmp_path: Path) -> None:
    run_page(page, tmp_path, "--slow")


def test_every_mark_belongs_to_a_block() -> None:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        marks = text.count("<!-- run") + text.count("<!-- file")
        assert marks == len(SNIPPETS[str(page.relative_to(ROOT))]), page


def test_readme_is_short_and_shows_python_early() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 150
    assert lines.index("```python") < 60


def test_images_and_links_of_the_readme_exist() -> None:
    import re

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", text):
        assert (ROOT / target).exists(), target
