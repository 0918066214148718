"""The table of model families: every entry is a result or one sentence, and what is refused changes nothing."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
spec = importlib.util.spec_from_file_location("model_families", ROOT / "docs" / "model_families.py")
assert spec is not None and spec.loader is not None
model_families = sys.modules["model_families"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(model_families)


def test_the_page_lists_every_family() -> None:
    counts = Counter(family.library for family in model_families.FAMILIES.values())
    assert counts == {"timm": 12, "torchvision": 8, "transformers": 12}
    page = (ROOT / "docs" / "reference" / "models.md").read_text(encoding="utf-8")
    table = page.split(model_families.MARKS[0])[1].split(model_families.MARKS[1])[0]
    rows = [line.split(" | ") for line in table.splitlines() if line.startswith("| ") and "| :--" not in line][1:]
    assert [row[0].removeprefix("| ") for row in rows] == list(model_families.FAMILIES)
    refused = {int(number) for number in re.findall(r"refused \((\d+)\)", table)}
    assert refused == {int(number) for number in re.findall(r"^(\d+)\. `", table, re.MULTILINE)}


@pytest.mark.slow
@pytest.mark.parametrize("name", model_families.FAMILIES)
def test_every_entry_is_a_result_or_one_sentence(name: str) -> None:
    family = model_families.FAMILIES[name]
    pytest.importorskip(family.library)
    cells = model_families.examine(family)  # raises for anything but a UserError, and for a half-changed model
    assert len(cells) == len(model_families.COLUMNS)
    assert re.fullmatch(r"\d+ %", cells[0]) and cells[1] == cells[4] == "✓"
    for cell in cells:
        assert "\n" not in cell and not re.search(r"0x[0-9a-f]{6}|object at|nan|inf\b", cell), cell
    before, after = map(float, cells[3].split(" → "))
    assert after <= before, "recoupling must not increase the change of the outputs"
