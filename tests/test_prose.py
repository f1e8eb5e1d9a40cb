"""Numbers in prose are those of the results that they come from. A number is marked by a comment behind it:

    .655<!-- records/records: positional / position_mean at 8 -->

what `positional` leaves unexplained as a share of what `position_mean` leaves, at L0 8 (without digits, also where it was measured with
some). `a - b` is the difference of their FVE, `a` alone the FVE of a family, `low` or `high` in front an end of the interval, `half` half
of its width. The number is compared at the digits that it has; its sign, and a zero before its point, are as they are written.
"""

import json
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "docs/results.md")
MARKED = re.compile(r"(?P<sign>[+−±]?)\s?(?P<number>\d*\.\d+)<!-- (?P<about>[^>]*?) -->")
ABOUT = re.compile(
    r"(?P<study>[\w-]+)/(?P<entry>[\w-]+): (?:(?P<end>low|high|half) )?(?P<family>[\w-]+)"
    r"(?: (?P<how>[-/]) (?P<baseline>[\w-]+))? at (?P<l0>\d+)"
)


def marked() -> list[tuple[str, str, str, str]]:
    found = [(page, match) for page in PAGES for match in MARKED.finditer((ROOT / page).read_text())]
    return [(page, match["sign"], match["number"], match["about"]) for page, match in found]


def stated(about: str) -> float:
    """What the results say of it."""
    asked = ABOUT.fullmatch(about)
    assert asked, f"'{about}' is not of the form that this file describes"
    comparison = json.loads((ROOT / "docs" / "results" / f"{asked['study']}.json").read_text())["comparison"][asked["entry"]]

    def only(rows: list[dict[str, Any]]) -> dict[str, Any]:
        names = {name: asked[name] for name in ("family", "baseline") if asked[name]}
        (row,) = [row for row in rows if f"{row['l0']:.0f}" == asked["l0"] and all(row[name] == value for name, value in names.items())]
        return row

    if asked["how"] is None:
        mean = only(comparison["reached"])["fve"]
    else:
        mean = only(comparison["against"])["fve" if asked["how"] == "-" else "unexplained"]
    if asked["end"] == "half":
        return float((mean["high"] - mean["low"]) / 2)
    return float(mean[asked["end"] or "value"])


@pytest.mark.parametrize(("page", "sign", "number", "about"), marked())
def test_a_marked_number_is_the_result(page: str, sign: str, number: str, about: str) -> None:
    value, digits = stated(about), len(number.partition(".")[2])
    assert f"{abs(value):.{digits}f}".lstrip("0") == number.lstrip("0"), f"{page}: {about} is {value}"
    assert sign != "+" or value >= 0
    assert sign != "−" or value <= 0


def test_headlines_are_marked() -> None:
    pages = [page for page, *_ in marked()]
    assert pages.count("README.md") >= 10 and pages.count("docs/results.md") >= 25


def test_every_study_with_results_has_its_tables_and_is_told_of() -> None:
    told = (ROOT / "docs" / "results.md").read_text()
    studies = sorted(path.stem for path in (ROOT / "docs" / "results").glob("*.json"))
    assert studies == sorted(path.stem for path in (ROOT / "docs" / "results").glob("*.md"))
    assert [study for study in studies if f"](results/{study}.md)" not in told] == []


@pytest.mark.parametrize("about", ["records/records: positional / position_mean at 8", "known/smollm2-middle: high pair - batchtopk at 8"])
def test_another_number_would_be_found_out(about: str) -> None:
    assert 0 < stated(about) < 1
    with pytest.raises(AssertionError):
        test_a_marked_number_is_the_result("README.md", "", f"{stated(about) + 0.01:.3f}", about)
