"""The picture of codes that are needed when something is known beforehand."""

import json
from pathlib import Path

import pytest

from made_results import ENTRY, make_comparison, make_results, make_run
from temporallens.evaluation.passage import Passage
from temporallens.evaluation.results import Results, StudySettings
from temporallens.figures.known import draw_known, expecting, needs, plain_arm
from temporallens.figures.passage import Reading, draw_passage, parts

LEVELS = (8.0, 16.0, 32.0)
PLAIN, KNOWN = (0.72, 0.76, 0.80), (0.76, 0.80, 0.84)


@pytest.fixture
def results() -> Results:
    """An arm with an expectation explains with 8 codes what the plain one does with 16."""
    runs = [
        make_run(family, seed=seed, arm=f"{family}-k{level:g}-seed{seed}", kind="batchtopk", level=level, l0=level, fve=fve)
        for family, values in {"batchtopk": PLAIN, "pair": KNOWN, "dealt": PLAIN}.items()
        for seed in (0, 1, 2)
        for level, fve in zip(LEVELS, values, strict=True)
    ]
    made = make_results(runs=runs, comparison={ENTRY: make_comparison(runs)})
    arms = {"batchtopk": {"kind": "batchtopk"}, "pair": {"kind": "batchtopk", "expectation": {"token": "pair"}}}
    arms["dealt"] = {"kind": "batchtopk", "expectation": {"token": "pair", "permuted": True}}
    whole = dict(made.study.whole) | {"arms": arms}
    return made.model_copy(update={"study": StudySettings.model_validate(json.loads(json.dumps(whole)))})


def test_codes_needed_are_read_from_curves(results: Results) -> None:
    assert expecting(results) == ["pair"]
    found = needs(results.runs, ENTRY, plain_arm(results), "pair")
    assert [need.plain for need in found] == pytest.approx(LEVELS)
    assert [need.needed.value for need in found] == pytest.approx([8, 8, 16])
    assert [need.beyond for need in found] == [True, True, False]


def test_the_picture_says_what_it_shows(results: Results, tmp_path: Path) -> None:
    figure = draw_known(results)
    figure.savefig(tmp_path / "known.png")
    (axes,) = figure.axes
    assert "at most 16 codes for 32" in axes.get_title(loc="left").replace("\n", " ")
    assert axes.get_xlabel() and axes.get_ylabel()


def read(token: list[float] | None, before: list[float] | None, codes: list[float], fired: list[int]) -> Passage:
    return Passage(3, [8, 9, 10], [" The", " state", "\n"], token, before, codes, fired, [[1], [2], []])


def test_a_passage_shows_shares_that_end_where_they_do_and_the_codes_of_both() -> None:
    known = read([0.5, -0.2, 0.9], [0.2, 0.1, 0.2], [0.1, 0.6, 0.0], [2, 5, 0])
    stacked = parts(known)
    assert [share.tolist() for share in stacked.values()] == [
        pytest.approx([0.5, 0.0, 0.9]),
        pytest.approx([0.2, 0.0, 0.1]),
        pytest.approx([0.1, 0.5, 0.0]),
    ]
    figure = draw_passage(Reading("batchtopk", read(None, None, [0.8, 0.7, 0.9], [7, 9, 8])), Reading("pair", known), "a sentence")
    (axes,) = figure.axes
    assert "2 codes a token, 8 in batchtopk" in axes.get_title(loc="left").replace("\n", " ")
    assert [label.get_text() for label in axes.get_xticklabels()] == ["The", "state", "\u21b5"]
    assert [text.get_text() for text in axes.texts[-6:]] == ["2", "5", "0", "7", "9", "8"]
