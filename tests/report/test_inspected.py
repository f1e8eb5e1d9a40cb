"""The first lines of a report on dictionaries that were trained elsewhere."""

from typing import Any

from made_results import ENTRY, STUDY, make_results, make_run
from temporallens.evaluation.model.fidelity import SECTION as FIDELITY, Explained, FidelityMeasures, ShiftFidelity
from temporallens.evaluation.positions.closing import SECTION as CLOSING, ClosingMeasures
from temporallens.evaluation.positions.drift import SECTION as DRIFT, DriftMeasures, Octave
from temporallens.evaluation.positions.octaves import SECTION as OCTAVES, OctaveMeasures, PositionOctave
from temporallens.evaluation.positions.sinks import SECTION as SINKS, Place, SinkMeasures
from temporallens.evaluation.section import Section
from temporallens.evaluation.statistics import Estimate
from temporallens.report.answers import answers
from temporallens.report.inspected import asked
from temporallens.serial import as_json


def estimate(value: float, half: float = 0.01, n: int = 1000) -> Estimate:
    return Estimate(value, value - half, value + half, n)


def octaves_of(p: float) -> OctaveMeasures:
    octaves = [PositionOctave(1, 1, estimate(0.4), estimate(30.0)), PositionOctave(2, 3, estimate(0.7), estimate(32.0))]
    return OctaveMeasures(octaves, worst=0, best=1, gap=estimate(0.3), chance_gap=0.02, p=p)


def places() -> SinkMeasures:
    return SinkMeasures(
        200,
        [
            Place("first", 50, 12.0, 4, estimate(0.02), 0.0),
            Place("sink", 0, 0.0, 0, estimate(0.0, 0.0), 0.0),
            Place("early", 150, 30.0, 1, estimate(0.005, 0.005), 0.001),
        ],
        None,
    )


def pushed() -> FidelityMeasures:
    fve = Explained(estimate(0.7), estimate(0.69), estimate(-0.01), [], [])
    share = {"follows_index": estimate(0.1, n=50), "follows_text": estimate(0.6, n=50)}
    means = dict.fromkeys(("absolute_index", "index_correlation", "content_correlation", "absolute_index_distance"), estimate(0.1))
    none = dict.fromkeys(("feature_absolute_index", "feature_distance", "feature_q", "feature_content", "open_fve", "mask_change"))
    counts = dict.fromkeys(("tied_to_index", "tied_to_content", "undecided"), 0)
    shift = ShiftFidelity(
        shift=32, content=estimate(0.9), fve=fve, position_content=[], position_count=[], **share, **means, **none, **counts
    )
    return FidelityMeasures([shift], estimate(1.0), estimate(0.0), None, None, [], 1, 1, 100)


def closed() -> ClosingMeasures:
    return ClosingMeasures(8, 900, closed=0.4, chance=0.35, cuts=[0.05, 0.1], codes=estimate(0.01), fve_change=estimate(-0.0008, 0.0001))


def beyond(change: float) -> DriftMeasures:
    octaves = [Octave(64, 127, False, estimate(0.7), estimate(32.0)), Octave(128, 255, True, estimate(0.65), estimate(33.0))]
    return DriftMeasures(128, 256, 8, octaves, octaves[0], estimate(change, 0.001), estimate(0.5))


def results_of(context: int | None, *measured: dict[Section, Any]) -> Any:
    names = ["theirs", "others"][: len(measured)]
    runs = [
        make_run("batchtopk", arm=name, family=name, kind="pretrained", measures={key.name: as_json(value) for key, value in found.items()})
        for name, found in zip(names, measured, strict=True)
    ]
    origin = {} if context is None else {"origin": {"context_length": context}}
    return make_results(runs=runs, study=STUDY | {"arms": {name: {"kind": "pretrained", **origin} for name in names}})


EVERYTHING = {OCTAVES: octaves_of(0.002), SINKS: places(), FIDELITY: pushed(), CLOSING: closed(), DRIFT: beyond(-0.02)}


def test_every_question_has_its_number_interval_and_chance() -> None:
    lines = [line.answers for line in asked(results_of(128, EVERYTHING), ENTRY)]
    assert lines[0] == [
        "Yes: FVE is lowest at position 1, 0.400 (0.390 to 0.410), and highest at positions 2 to 3, 0.700 (0.690 to 0.710). The gap is "
        "0.300 (0.290 to 0.310); chance gives 0.020 (p = 0.002)."
    ]
    assert lines[1] == ["Not measured: the study left positions out."]
    assert (
        "Of 200 that fire 20 times or more, 4 live on first tokens of rows, 2.0 % (1.0 to 3.0), by chance 0.0 % (50 tokens, L0 12)"
        in lines[2][0]
    )
    assert "; none on sinks further on, as no token is one; 1 at positions 1 to 3, 0.50 % (0.00 to 1.00), by chance 0.10 %" in lines[2][0]
    assert "of 50 features that fire 200 times or more 5 follow the index, 10.0 % (9.0 to 11.0), and 30 the text, 60.0 %" in lines[3][0]
    assert "40.0 % of the entries" in lines[4][0] and "so 5.0 points of it are due to position" in lines[4][0]
    assert lines[5][0].startswith("FVE falls: at positions 128 to 255, FVE of the same tokens changes by −0.0200 (−0.0210 to −0.0190)")
    assert "guess" not in lines[5][0]


def test_no_more_is_said_than_was_found() -> None:
    unsure = {OCTAVES: octaves_of(0.2), DRIFT: beyond(0.0)}
    first, *_, last = asked(results_of(None, unsure), ENTRY)
    assert first.answers[0].startswith("No more than by chance: FVE is lowest")
    assert last.answers[0].startswith("FVE stays: ") and last.answers[0].endswith("128 tokens is a guess.)")
    (*_, untold) = asked(results_of(4096, {OCTAVES: octaves_of(0.2)}), ENTRY)
    assert untold.answers == ["Not measured: it was trained on rows of 4,096 tokens, and these have 128."]


def test_two_stand_beside_each_other() -> None:
    for line in asked(results_of(128, EVERYTHING, {OCTAVES: octaves_of(0.2)}), ENTRY):
        assert [answer.partition(":")[0] for answer in line.answers] == ["theirs", "others"]


def test_what_was_trained_here_is_asked_other_questions() -> None:
    results = make_results(runs=[make_run("batchtopk", measures={OCTAVES.name: as_json(octaves_of(0.2))})])
    assert asked(results, ENTRY) == [] and answers(results)[0].asked == []
