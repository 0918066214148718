"""The page of a diagnosis on a phone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from plastibench.diagnosis.diagnose import diagnose
from plastibench.diagnosis.html_report import write_page
from plastibench.diagnosis.loading import timm_model

pytestmark = pytest.mark.browser


def test_a_phone_shows_every_layer_without_scrolling_sideways(browser: Any, tmp_path: Path) -> None:
    target = timm_model("test_vit", "noise", "cpu", weights=None, samples=8, image_size=32, data_dir=tmp_path)
    found = diagnose(target, ["activity", "ranks", "weights", "zero-gradient-ratio"])
    write_page([found], tmp_path / "page.html")
    browser.resize(390, 844, phone=True)
    browser.open(f"file://{tmp_path}/page.html")
    browser.wait("h1", "test_vit")
    browser.keep("diagnosis-390")
    widest = browser.driver.execute_script(
        "return Math.max(...[...document.querySelectorAll('*')].map(one => one.getBoundingClientRect().right))"
    )
    assert widest <= 391
    rows = browser.texts(".layers tbody tr")
    assert len(rows) == len(found.layers)
    for layer, row in zip(found.layers, rows, strict=True):
        assert layer.name in row.replace(" ", "") and layer.verdict in row
    browser.resize(1400, 900)
    assert browser.texts(".layers thead th")[:3] == ["layer", "verdict", "kind"]
