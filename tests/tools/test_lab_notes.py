"""The page of the lab notes tells what their run found."""

import json
import re
from pathlib import Path

import pytest
from tools.lab_notes import CHOSEN, L1

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("family", [*L1, *CHOSEN])
def test_fve_at_equal_l0_is_the_run_s(family: str) -> None:
    (comparison,) = json.loads((DOCS / "results" / "lab-notes.json").read_text("utf-8"))["comparison"].values()
    found = {row["l0"]: row["fve"]["value"] for row in comparison["reached"] if row["family"] == family}
    page = (DOCS / "lab-notes.md").read_text("utf-8")
    row = next(line for line in page.splitlines() if re.match(rf"\| {family} \| \d \| 0\.", line))
    assert [cell.split(" ")[0] for cell in row.split(" | ")[2:4]] == [f"{found[l0]:.4f}" for l0 in (32.0, 48.0)]


def test_its_pictures_are_there() -> None:
    shown = re.findall(r"\(images/(lab-notes/[\w-]+\.png)\)", (DOCS / "lab-notes.md").read_text("utf-8"))
    assert len(shown) == 8
    assert sorted(shown) == sorted(f"lab-notes/{path.name}" for path in (DOCS / "images" / "lab-notes").iterdir())
