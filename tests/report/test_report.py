"""The report says what the numbers say and no more, escapes what comes from data, and loads nothing."""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from made_firings import box, sampled
from made_results import ENTRY, STUDY, make_comparison, make_entry, make_results, make_run, make_scan
from temporallens.errors import TemporalLensError
from temporallens.evaluation.bits.section import BitsPolicy, bits_of
from temporallens.evaluation.clusters.chance import Chance
from temporallens.evaluation.clusters.section import SECTION as CLUSTERS, ClustersPolicy, cluster_firings
from temporallens.evaluation.clusters.stability import Agreement, Bootstraps
from temporallens.evaluation.clusters.table import ClusterRow, Telling
from temporallens.evaluation.clusters.worlds import Recovered, Recovery
from temporallens.evaluation.model.splicing import Spliced, SplicingMeasures
from temporallens.evaluation.order.scores import OrderGain
from temporallens.evaluation.positions.correlations import PositionCorrelations
from temporallens.evaluation.positions.section import SECTION as POSITIONS, PositionMeasures
from temporallens.evaluation.results import TimedResults, TimedRun
from temporallens.evaluation.statistics import Estimate, Verdict
from temporallens.figures.frontier import draw_frontier
from temporallens.figures.save import save
from temporallens.report import answers, closed, measured, page, tables
from temporallens.report.next_steps import next_steps
from temporallens.report.side_by_side import Compared, arms_table, settings_table, write_side_by_side
from temporallens.serial import as_json

HOSTILE = "<script>alert('x')</script>\"><img src=x onerror=alert(1)>&amp;{{ 7*7 }}"
NAME = f"x{HOSTILE.replace('/', '')}"
"""As hostile as a name may be that has a folder of its own."""
STUDY_FILE = """name: quickstart
scans:
  - model: m # not a reason
training:
  learning_rate: 0.001 # this short run needs a larger one
arms: {a: '<b>'}
"""


def render(results: TimedResults, study_text: str = STUDY_FILE) -> str:
    return page.render(results, [], study_text)


def answer_to(*runs: TimedRun, levels: Sequence[float] = (), **entry: Any) -> str:
    """The answer's sentence, findings and remarks, with ordinary spaces."""
    found = answers.answer("a", make_entry(**entry), runs, make_comparison(runs, levels))
    return " ".join([found.sentence, *found.findings, *found.remarks]).replace("\u00a0", " ")


class Tags(HTMLParser):
    """Collects tags, and whatever is left open."""

    VOID = frozenset({"meta", "img", "br", "link", "input"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    return save(Figure(figsize=(4, 3)), tmp_path / "figure.png")


def test_the_sentence_gives_eta_squared_masks_and_reconstruction_and_claims_no_gain() -> None:
    sentence = answer_to(make_run("standard"), make_run("batchtopk"), make_run("positional"))
    assert "Position (index clock) explains 1.0 % of the variance above its noise floor of 0.2 %" in sentence
    assert "close 45 % of the dictionary at position 1, 9.0 % at positions 2 to 3 and 2.0 % from position 4 on" in sentence
    assert "batchtopk explains a fraction of 0.778 (L0 32.0), positional 0.772 (L0 32.1) and standard 0.650 (L0 61.2)" in sentence
    assert "no reconstruction gain of positional over batchtopk, in one seed (−0.0060 FVE at L0 32)" in sentence
    assert "One seed: no interval" in sentence


def test_a_higher_value_from_one_seed_is_no_gain() -> None:
    assert "no gain is claimed" in answer_to(make_run("batchtopk"), make_run("positional", fve=0.9))


def test_arms_of_different_l0_or_seed_are_not_compared() -> None:
    apart = answer_to(make_run("batchtopk"), make_run("positional", fve=0.9, l0=40.0))
    assert "positional (L0 40.0) and batchtopk (L0 32.0) are not compared: L0 are equal within 1.0 %, and theirs are not." in apart
    seeds = answer_to(make_run("batchtopk"), make_run("positional", seed=1))
    assert "positional and batchtopk have no seed in common, so they are not compared." in seeds


def make_levels(arm: str, seed: int = 0, gain: float = 0.0) -> list[TimedRun]:
    fve = {16.0: 0.70 + gain, 32.0: 0.78 + gain, 64.0: 0.85}
    return [make_run(arm, seed, arm=f"{arm}-k{level:g}", l0=level, level=level, fve=value + 0.01 * seed) for level, value in fve.items()]


def test_with_levels_arms_are_told_once_and_each_l0_has_its_verdict() -> None:
    runs = [run for seed in range(3) for run in (*make_levels("batchtopk", seed), *make_levels("positional", seed, 0.01 + 0.001 * seed))]
    sentence = answer_to(*runs, levels=(16, 32, 64))
    assert "at L0 32, the fraction of the variance explained is, of positional 0.8010 and batchtopk 0.7900" in sentence
    assert "positional reconstructs better than batchtopk (+0.0110 FVE at L0 16, 95 % interval" in sentence
    assert "no reconstruction gain of positional over batchtopk is shown (0.0000 FVE at L0 64, 95 % interval" in sentence
    assert sentence.count("the masks of positional") == 1


@pytest.mark.parametrize("levels", [(1, 2), (15, 16, 200)])
def test_levels_that_no_arm_reaches_are_no_levels_to_tell_of(levels: Sequence[float]) -> None:
    runs = [*make_levels("batchtopk"), *make_levels("positional", gain=0.01)]
    sentence = answer_to(*runs, levels=levels)
    assert "positional stands above batchtopk" in sentence and "at L0 1," not in sentence and "at L0 200," not in sentence
    apart = [run.model_copy(update={"l0": 8 * run.l0}) if run.family == "positional" else run for run in runs]
    missed = "positional (L0 128.0 to 512.0) and batchtopk (L0 16.0 to 64.0) are not compared: their curves do not both reach any L0"
    assert missed in answer_to(*apart, levels=levels)
    drawn = draw_frontier(make_results(levels, runs=apart, comparison={ENTRY: make_comparison(apart, levels)}))
    assert ("no arm reaches an L0" in drawn.axes[0].get_title(loc="left")) is (levels == (1, 2))


def test_what_rests_on_one_seed_among_several_is_named() -> None:
    runs = [*(run for seed in range(2) for run in make_levels("batchtopk", seed)), *make_levels("standard")]
    assert "One seed only, so nothing is established, for standard." in answer_to(*runs, levels=(16, 32, 64))


def test_the_comparison_has_a_row_per_arm_marked_where_it_is_one_seed() -> None:
    runs = [*(run for seed in range(2) for run in make_levels("batchtopk", seed)), *make_levels("positional", gain=0.01)]
    reached, against, _ = tables.comparison_tables(
        "a", runs, make_comparison(runs, (16, 32, 64)).model_copy(update={"baselines": ["batchtopk", "none"]})
    )
    rows = {row.head: dict(zip(reached.columns[1:], row.cells, strict=True)) for row in reached.rows}
    assert rows["batchtopk"]["seeds"] == "2" and rows["positional"]["seeds"] == "one seed"
    assert rows["batchtopk"]["FVE at L0 32"] == "0.7850 ± 0.0635" and rows["positional"]["FVE at L0 32"] == "0.7900 (one seed)"
    (row,) = against.rows
    cells = dict(zip(against.columns[1:], row.cells, strict=True))
    assert cells["FVE difference at L0 16"] == "+0.0100 (one seed)" and cells["unexplained, share at L0 32"] == "0.955 (one seed)"
    assert tables.comparison_tables("a", [], make_comparison([])) == []


def test_openness_is_told_by_octaves_of_positions_with_its_interval() -> None:
    runs = [
        make_run("positional", seed, openness_by_position=[1.0, *[0.5 + 0.1 * seed] * 4, 1.0], position_count=[0, *[9] * 5])
        for seed in range(2)
    ]
    table = tables.openness_table("a", [make_run(), *runs], make_entry())
    assert table.columns == ["arm", "seeds", "1", "2 to 3", "4 to 5"]
    assert table.rows[0].cells[:2] == ["2", "0.550 ± 0.635"]


def test_what_positions_say_of_features_stands_beside_masks() -> None:
    firings = sampled(np.stack([box(8, 15, 0.5), box(1, 9, 0.5)]), 60)
    nothing = np.zeros(len(firings.position), dtype=bool)
    found = bits_of(firings, {}, nothing, BitsPolicy(draws=1, resamples=20))
    share = found.saved["position"]
    assert share is not None and share.over_null.value is not None and share.over_null.value > 0.2
    runs = [make_run("batchtopk"), make_run("positional", measures={"bits": as_json(found)})]
    reached, _ = tables.comparison_tables("a", runs, make_comparison(runs))
    assert reached.columns[-1] == "bits known by position"
    assert [row.cells[-1].partition(" ")[0] for row in reached.rows] == ["–", f"{100 * share.over_null.value:.2f}"]
    masked = tables.openness_table(
        "a", [runs[1].model_copy(update={"openness_by_position": [1.0, 0.5], "position_count": [0, 9]})], make_entry()
    )
    assert masked.columns[-1] == "bits known by position" and masked.rows[0].cells[-1] == reached.rows[1].cells[-1]


def test_scores_of_a_world_are_averaged_over_seeds_and_missing_ones_have_no_column() -> None:
    scores = [{"mcc": value, "mask": {"matched": {"f1": None, "auroc": 0.5}}, "list": [1]} for value in (0.8, 0.9)]
    runs = [make_run("positional", seed, world=world) for seed, world in enumerate(scores)]
    (table,) = tables.score_tables("a", [*runs, make_run("batchtopk", world={"mcc": 0.7})])
    assert table.columns == ["arm", "seeds", "MCC", "mask AUROC"]
    assert [row.cells for row in table.rows] == [["2", "0.8500 ± 0.6353", "0.5000 ± 0.0000"], ["one seed", "0.7000", "–"]]
    assert tables.score_tables("a", [make_run()]) == []


def test_notes_stand_beside_their_own_arms() -> None:
    table = tables.dictionaries_table("a", [make_run("standard"), make_run("batchtopk")], {"standard": "training_steps: 0"})
    assert table.columns[-1] == tables.NOTE
    assert [row.cells[-1] for row in table.rows] == ["training_steps: 0", "–"]


def make_seeds(differences: list[float]) -> list[TimedRun]:
    blind = [make_run("batchtopk", seed, fve=0.77 + 0.01 * seed) for seed in range(len(differences))]
    return blind + [make_run("positional", seed, fve=0.77 + 0.01 * seed + more) for seed, more in enumerate(differences)]


@pytest.mark.parametrize(
    ("differences", "verdict"),
    [
        ([0.010, 0.011, 0.012], "positional reconstructs better than batchtopk"),
        ([0.010, -0.008, 0.004], "no reconstruction gain of positional over batchtopk is shown"),
        ([-0.010, -0.011, -0.012], "but a loss"),
    ],
)
def test_several_seeds_are_paired_and_carry_an_interval(differences: list[float], verdict: str) -> None:
    sentence = answer_to(*make_seeds(differences))
    assert verdict in sentence and "95 % interval" in sentence and "3 seeds" in sentence
    assert "One seed" not in sentence


def verdict_of(*runs: TimedRun, levels: Sequence[float] = (), **entry: Any) -> list[str]:
    found = answers.answer("a", make_entry(**entry), runs, make_comparison(runs, levels))
    return [sentence.replace("\u00a0", " ") for sentence in found.verdict]


def test_the_verdict_of_one_seed_claims_nothing() -> None:
    position, knowing, masks = verdict_of(make_run("batchtopk"), make_run("positional"))
    assert position == "Where a token stands tells little of what the activation is: 1.0 % of how activations differ, beyond chance."
    assert knowing.startswith("A dictionary that knows the position (positional) left 2.7 % more unexplained than one that does not")
    assert knowing.endswith("that is one seed, so it may be luck.")
    assert masks == "The masks of positional keep 45 % of the features shut at position 1, and 2.1 % elsewhere."


@pytest.mark.parametrize(
    ("differences", "said"),
    [
        ([0.010, 0.011, 0.012], " less unexplained than one that does not (batchtopk), in 3 seeds."),
        ([0.010, -0.008, 0.004], " did as well as one that does not (batchtopk), as far as 3 seeds can tell."),
        ([-0.010, -0.011, -0.012], " more unexplained than one that does not (batchtopk), in 3 seeds."),
    ],
)
def test_the_verdict_of_several_seeds_is_that_of_their_interval(differences: list[float], said: str) -> None:
    assert verdict_of(*make_seeds(differences))[1].endswith(said)


def test_masks_are_held_against_knowing_the_mean_of_each_position() -> None:
    runs = [make_run("batchtopk"), make_run("position_mean", fve=0.79), make_run("positional", fve=0.80)]
    sentences = verdict_of(*runs)
    assert "A dictionary whose features may fire at some positions only (positional) left 4.8 % less unexplained" in sentences[2]
    assert "one that knows no more than the mean of each position (position_mean)" in sentences[2]


def test_the_verdict_says_where_position_is_noise_and_masks_stay_open() -> None:
    sentences = verdict_of(make_run("positional", openness_by_position=[1.0] * 128), eta2=0.001, eta2_floor=0.002)
    assert sentences[0] == "Where a token stands tells no more of what the activation is than chance would."
    assert sentences[-1] == "The masks of positional stay open: it shut no feature out from any position."
    clock = verdict_of(make_run(), clock="newline", model=None)[0]
    assert clock.startswith("What the newline clock says of an activation tells little")


def test_what_comes_next_suits_the_run_and_is_quoted_for_the_shell() -> None:
    steps = next_steps(make_results(), Path("runs/my run"))
    assert [step.command for step in steps] == [
        "temporallens run 'runs/my run' --set 'seeds=[0,1,2]'",
        "temporallens run 'runs/my run' --set 'evaluation.positions={}'",
        "temporallens run 'runs/my run' --set 'evaluation.features={}'",
    ]
    study = STUDY | {"seeds": [0, 1], "evaluation": {"positions": {}, "features": {}}}
    steps = next_steps(make_results(study=study), Path("runs/q"))
    assert [step.command.removeprefix("temporallens ") for step in steps] == [
        "run runs/q --set 'evaluation.interventions={}'",
        "run runs/q --set training.steps=4000 --out runs/q-longer",
        "figures runs/q --format pdf",
    ]
    (page_steps,) = re.findall(r'<ol class="steps">(.*?)</ol>', render(make_results()), re.DOTALL)
    assert page_steps.count("<code>temporallens run . --set") == 3


def test_position_no_better_than_noise_is_said_to_be_so() -> None:
    assert "no more of the variance than noise" in answer_to(make_run(), eta2=0.001, eta2_floor=0.002)


def test_the_last_digit_of_a_sum_is_no_share() -> None:
    assert "(0 %, noise floor 0 %)" in answer_to(make_run("batchtopk"), eta2=-2.2e-16, eta2_floor=0.0)


def test_masks_that_do_nothing_are_said_to_do_nothing() -> None:
    assert "stay open everywhere: they do nothing here" in answer_to(make_run("positional", openness_by_position=[1.0] * 128))
    assert "as much at every position" in answer_to(make_run("positional", openness_by_position=[0.9] * 128))


def test_closed_shares_are_told_in_a_few_runs_of_positions_that_cover_all() -> None:
    segments = closed.closed_by_position([p / 128 for p in range(128)], start=1)
    assert 1 < len(segments) <= closed.SEGMENTS
    assert segments[0].first == 1 and segments[-1].last == 127
    assert all(left.last + 1 == right.first for left, right in pairwise(segments))
    assert closed.closed_by_position([], start=1) == []


def test_every_number_of_the_table_is_there_and_unknown_ones_are_dashes() -> None:
    table = tables.dictionaries_table("a", [make_run("batchtopk")], {})
    cells = dict(zip(table.columns[1:], table.rows[0].cells, strict=True))
    assert cells["FVE"] == "0.7782" and cells["L0"] == "32.0" and cells["dead features"] == "12 of 1,152"
    assert cells["tokens"] == "1,024,000" and cells["steps"] == "1,000" and cells["seconds"] == "42"
    assert cells["final loss"] == "139" and cells["openness"] == "–" and "FVE at index 0 alone" not in cells
    assert "FVE at index 0 alone" in tables.dictionaries_table("a", [make_run("batchtopk", fve_first=0.5)], {}).columns


def test_several_seeds_get_a_row_each_and_their_mean() -> None:
    table = tables.dictionaries_table("a", [make_run(seed=0, fve=0.7), make_run(seed=1, fve=0.8)], {})
    assert [row.head for row in table.rows] == ["batchtopk, seed 0", "batchtopk, seed 1", "batchtopk, mean of 2"]
    assert table.rows[-1].summary and table.rows[-1].cells[0] == "0.7500"


def test_defaults_name_what_was_changed_and_why() -> None:
    rows = {row.head: row.cells for row in page.default_table(STUDY, STUDY_FILE).rows}
    assert rows["learning rate"][:2] == ["0.0003", "0.001"] and "this short run needs a larger one" in rows["learning rate"][2]
    assert rows["dictionary size"][:2] == ["2304", "1152"] and "width of the notes' model" in rows["dictionary size"][2]
    assert rows["sparsity penalty"][2] == rows["temperature at last"][2] == "as in the notes"
    assert rows["model"][1] == "smollm2-135m" and "not a reason" not in rows["model"][2]
    assert page.default_table({"activations": {}, "arms": {}, "training": {}}, "").rows[0].cells == [
        "google/gemma-2-2b",
        "–",
        "not used in this study",
    ]


def test_a_scan_tells_which_clock_is_kept_past_the_first_tokens() -> None:
    scan = make_scan("m", 3)
    index, sentence = (
        replace(scan.clocks[name], late_eta2=[None, 0.002, value], late_floor=[None, 0.003, 0.001])
        for name, value in (("index", 0.002), ("sentence", 0.016))
    )
    table = page.scan_table(replace(scan, clocks={"index": index, "sentence": sentence}))
    said = table.note.replace("\u00a0", " ")
    assert "m: from index 8 on (late), the sentence clock explains most: 1.5 % above its noise floor of 0.1 % after layer 1" in said
    assert table.columns[3:5] == ["index, late", "sentence, late"] and table.rows[0].cells[2] == "–"
    silent = replace(index, late_eta2=[0.0] * 3)
    assert "no clock rises above its noise floor" in page.scan_table(replace(scan, clocks={"index": silent})).note


def test_policies_count_what_was_left_out() -> None:
    rows = {
        row.head: row.cells for row in page.policy_table({"a": make_entry(), "b": make_entry(rows=3908, policies={"rows": "split"})}).rows
    }
    assert rows["rows"] == ["split", "split"] and rows["bos"] == ["true", "–"] and rows["padding"][0] == "–"
    assert rows["left out: index 0"] == ["1,954 (0.8\u00a0%)", "1,954 (50\u00a0%)"]


def test_it_is_said_of_packed_rows_and_of_no_others_that_documents_see_each_other() -> None:
    sentence = "attention across documents is not masked"
    assert sentence not in render(make_results())
    packed = make_entry(policies={"rows": "packed", "attention_across_documents": True})
    runs = [make_run(activations=entry) for entry in (ENTRY, "joined", "also")]
    text = render(make_results(activations={ENTRY: make_entry(), "joined": packed, "also": packed}, runs=runs))
    assert f"In the packed rows of joined and also {sentence}" in text


def only_its_own_script(text: str, parsed: Tags) -> None:
    """One script, the one that the page's policy names by its digest."""
    code, digest = page.script()
    assert [attributes for tag, attributes in parsed.tags if tag == "script"] == [{}]
    assert f"<script>{code}</script>" in text
    assert f"script-src '{digest}'" in text


def test_the_page_is_well_formed_and_self_contained(tmp_path: Path, picture: Path) -> None:
    out = tmp_path / "new" / "report.html"
    page.write_report(make_results(), {"smollm2-middle / positional, seed 0": picture}, STUDY_FILE, out)
    text = out.read_text("utf-8")
    parsed = Tags(text)
    assert parsed.open == []
    for tag, attributes in parsed.tags:
        assert tag not in {"link", "iframe", "object"}
        for name in ("src", "href"):
            target = attributes.get(name)
            assert target is None or target.startswith(("data:image/png;base64,", "#"))
    assert "default-src 'none'" in text and "url(" not in text and "@import" not in text
    only_its_own_script(text, parsed)
    images = [attributes for tag, attributes in parsed.tags if tag == "img"]
    assert [image["alt"] for image in images] == ["smollm2-middle / positional, seed 0"]
    assert int(images[0]["width"] or 0) >= 1200
    anchors = {attributes["href"] for tag, attributes in parsed.tags if tag == "a"}
    assert anchors <= {f"#{attributes['id']}" for _, attributes in parsed.tags if "id" in attributes}
    assert "prefers-color-scheme: dark" in text and 'name="viewport"' in text


def test_the_study_file_is_shown_verbatim() -> None:
    shown = re.search(r'aria-label="Study file"><code>(.*)</code></pre>', render(make_results()), re.DOTALL)
    assert shown is not None
    assert shown.group(1) == STUDY_FILE.replace("<b>", "&lt;b&gt;").replace("'", "&#39;")


def hostile_results(where: str) -> TimedResults:
    if where == "run":
        return make_results(runs=[make_run(NAME, kind=HOSTILE)])
    if where == "entry":
        entry = make_entry(model=HOSTILE, clock=HOSTILE, policies={HOSTILE: HOSTILE})
        return make_results(activations={NAME: entry}, runs=[make_run("positional", activations=NAME)])
    if where == "scan":
        scan = make_scan(HOSTILE)
        clocks = {HOSTILE: scan.clocks["index"]}
        return make_results(scans={HOSTILE: replace(scan, layers=[HOSTILE, *scan.layers[1:]], clocks=clocks)})
    if where == "environment":
        return make_results(environment={HOSTILE: [HOSTILE, {HOSTILE: None}]})
    study = STUDY | {"arms": {HOSTILE: {"features": HOSTILE}}, "notes": {"batchtopk": HOSTILE}}
    return make_results(name=HOSTILE, study_fingerprint=HOSTILE, study=study)


@pytest.mark.parametrize("where", ["run", "entry", "scan", "environment", "study"])
def test_hostile_strings_stay_text(where: str) -> None:
    text = render(hostile_results(where), HOSTILE + "\nname: 1 # " + HOSTILE)
    parsed = Tags(text)
    assert "img" not in {tag for tag, _ in parsed.tags}
    only_its_own_script(text, parsed)
    assert not any(name.startswith("on") for _, attributes in parsed.tags for name in attributes)
    assert "&lt;script&gt;" in text and "{{ 7*7 }}" in text


def test_a_hostile_caption_stays_inside_its_attribute(tmp_path: Path, picture: Path) -> None:
    text = page.render(make_results(), [page.read_picture(HOSTILE, picture)], STUDY_FILE)
    assert [attributes["alt"] for tag, attributes in Tags(text).tags if tag == "img"] == [HOSTILE]


def test_results_of_which_little_was_asked_make_a_page() -> None:
    entry = make_entry(model=None, layer=None, policies={})
    text = render(make_results(scans={}, environment={}, activations={ENTRY: entry}, runs=[make_run()]), "")
    assert Tags(text).open == [] and "None" not in text and "nan" not in text.lower()


def test_the_same_arguments_give_the_same_bytes(tmp_path: Path, picture: Path) -> None:
    pages = []
    for name in ("a.html", "b.html"):
        page.write_report(make_results(), {"a": picture}, STUDY_FILE, tmp_path / name)
        pages.append((tmp_path / name).read_bytes())
    assert pages[0] == pages[1]


def remove(path: Path) -> None:
    path.unlink()


def spoil(path: Path) -> None:
    path.write_text("not a picture")


@pytest.mark.parametrize(("harm", "sentence"), [(remove, "cannot be read"), (spoil, "is not a PNG")])
def test_a_missing_or_broken_picture_is_one_sentence_and_no_report(
    tmp_path: Path, picture: Path, harm: Callable[[Path], None], sentence: str
) -> None:
    harm(picture)
    with pytest.raises(TemporalLensError, match=sentence):
        page.write_report(make_results(), {"a": picture}, STUDY_FILE, tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def estimate(value: float | None, low: float | None = None, high: float | None = None, n: int = 10) -> Estimate:
    return Estimate(value, low, high, n)


def test_what_was_measured_has_its_table_with_intervals_and_dashes() -> None:
    headline = Spliced(
        clean=estimate(3.0, 2.9, 3.1),
        spliced=estimate(3.5),
        zero=estimate(9.0),
        mean=estimate(8.0),
        recovered_zero=estimate(0.93, 0.9, 0.95),
        recovered_mean=estimate(None),
        kl=estimate(0.4, 0.3, 0.5),
        kl_zero=None,
        kl_mean=None,
    )
    measure = SplicingMeasures("cross-entropy", None, headline, headline, bins=[], rows=2, documents=2, tokens=1234)
    run = make_run("positional", measures={"splicing": as_json(measure)})
    (section,) = measured.measured_sections(make_results(runs=[make_run(), run]))
    (table,) = section.tables
    assert [row.head for row in table.rows] == ["positional, seed 0"]
    cells = dict(zip(table.columns[1:], table.rows[0].cells, strict=True))
    assert cells["tokens"] == "1,234"
    assert cells["clean"] == "3.000 (2.900 to 3.100)"
    assert cells["spliced"] == "3.500"
    assert cells["recovered (mean)"] == "–"
    assert "Spliced into the model" in render(make_results(runs=[make_run(), run]))


def test_clusters_are_listed_one_by_one_where_several_stand_out_from_chance() -> None:
    def cluster(first: int, last: int, periods: dict[str, int]) -> ClusterRow:
        telling = [Telling(10 * first + place, 0.5, 300, first, 0.2, 0.1, 0, [], []) for place in range(2)]
        return ClusterRow(7, [1.0], [1.0], [1.0], (first, last), 0.25, -0.5, (-0.6, -0.4), periods, None, None, [0], telling)

    few = cluster_firings(sampled(np.full((20, 16), 0.2)), ClustersPolicy(least_firings=100_000))
    shuffled = {"cophenetic": Chance(0.9, 0.4, 0.5, 0.01, 99)}
    seeds = [Agreement(f"other seed {number}", None, 14, 2, 0.5, 0.9, ari, []) for number, ari in enumerate([0.5, None])]
    several = few._replace(
        kept=14,
        clusters=2,
        silhouette=0.6,
        p=0.01,
        cophenetic=0.9,
        documents_drawn=Bootstraps(0.9, 0.8, 1.0, [], 20),
        chance={"shuffled": shuffled},
        seeds=seeds,
        rows=[cluster(1, 1, {}), cluster(4, 7, {"4": 5})],
        world=Recovery(14, ["flat", "window"], {"jensen_shannon": Recovered(2, 0.75, 0.5, [])}),
    )
    held, classes, each = CLUSTERS.tables({"positional, seed 0": several, "batchtopk, seed 0": few})
    cells = ["14 of 20", "2", "0.60", "0.010", "0.90 (0.40)", "0.90 (0.80 to 1.00)", "0.50"]
    assert [row.cells for row in held.rows] == [cells, ["0 of 20", "–", "–", "–", "– (–)", "–", "–"]]
    assert [(row.head, row.cells) for row in classes.rows] == [("positional, seed 0: jensen-shannon", ["14", "2", "0.75", "0.50"])]
    assert each.title == "Clusters of positional, seed 0"
    assert [row.cells[1:5] for row in each.rows] == [["1", "25 %", "−0.50", "–"], ["4 to 7", "25 %", "−0.50", "4 (5)"]]
    assert [row.cells[-1] for row in each.rows] == ["10, 11", "40, 41"]


def test_several_runs_stand_side_by_side_with_what_differs(tmp_path: Path, picture: Path) -> None:
    one, other = make_results(), make_results(study=STUDY | {"training": STUDY["training"] | {"steps": 77}})
    compared = [Compared("first", one, {"FVE": picture}), Compared(HOSTILE, other, {})]
    write_side_by_side(compared, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text("utf-8")
    parsed = Tags(text)
    assert parsed.open == []
    only_its_own_script(text, parsed)
    assert [attributes["alt"] for tag, attributes in parsed.tags if tag == "img"] == ["first: FVE"]
    settings = {row.head: row.cells for row in settings_table(compared).rows}
    assert settings["training.steps"][1] == "77"
    assert "seeds" not in settings
    heads = [row.head for row in arms_table(compared).rows]
    assert len(heads) == 2 * len({run.family for run in one.runs})
    assert any(head.startswith("first, smollm2-middle: ") for head in heads)


def test_gains_are_counted_by_verdict_against_the_ordinary_dictionary() -> None:
    def gain(task: str, value: float, verdict: Verdict) -> OrderGain:
        return OrderGain(task, "bins", "dense", estimate(value), estimate(value), 0.5, 0.5, verdict)

    gains = {"positional-seed0": [as_json(gain("a", 0.2, "above")), as_json(gain("b", 0.0, "no difference"))]}
    content = {"against": {"positional-seed0": "batchtopk-seed0"}, "order": gains}
    entry = next(iter(make_results().activations))
    ((table,),) = [arms.tables for arms in measured.measured_sections(make_results(gains={entry: content}))]
    assert table.title == f"{entry}: gains on order-sensitive tasks"
    assert [(row.head, row.cells) for row in table.rows] == [("positional-seed0: bins, dense", ["1", "1", "0", "0.100"])]
    assert "Against batchtopk-seed0" in table.note
    several = content | {"against": {"positional-seed0": "batchtopk-seed0", "positional-seed1": "batchtopk-seed1"}}
    (arms,) = measured.measured_sections(make_results(gains={entry: several}))
    assert "of the same level and seed" in arms.tables[0].note
    assert measured.measured_sections(make_results()) == []


def test_a_dictionary_worse_than_the_mean_is_said_so_first_and_trained_longer_first() -> None:
    results = make_results(runs=[make_run("batchtopk", fve=-0.3), make_run("positional")])
    (found,) = answers.answers(results)
    assert found.verdict[0] == (
        "batchtopk (FVE \u22120.30) reconstructs worse than the mean activation would (too few steps, or too high a learning rate): what "
        "is said of codes and features below says nothing of the model."
    )
    assert "--set training.steps=4000" in next_steps(results, Path("runs/q"))[0].command
    (theirs,) = answers.answers(make_results(runs=[make_run("batchtopk", kind="pretrained", fve=-0.3)]))
    assert "most likely another model, layer, scale or kind of text" in theirs.verdict[0]
    assert not any("seed" in remark for remark in theirs.remarks)
    assert not any("worse than" in line for line in answers.answers(make_results())[0].verdict)


def test_arms_that_are_not_compared_are_told_how_they_would_be() -> None:
    study = STUDY | {"arms": {"batchtopk": {"kind": "batchtopk", "k": 32}, "positional": {"kind": "positional", "k": 32}}}
    runs = [make_run("batchtopk"), make_run("positional", l0=33.0)]
    (first, *_) = next_steps(make_results(runs=runs, study=study), Path("runs/q"))
    assert first.command == "temporallens run runs/q --set 'levels={k: [24, 40]}'"
    alike = next_steps(make_results(runs=[make_run("batchtopk"), make_run("positional")], study=study), Path("runs/q"))
    assert not any("levels" in step.command for step in alike)


def test_how_often_a_feature_has_to_fire_is_said_where_none_does() -> None:
    none = Estimate(None, None, None, 0)
    apart = PositionCorrelations(none, none, none, none, 9)
    nothing = PositionMeasures(900, 128, 10, 9, none, none, none, none, none, None, {}, [], apart, None, None)
    results = make_results(runs=[make_run("batchtopk", measures={POSITIONS.name: as_json(nothing)})])
    assert answers.answers(results)[0].verdict[-1] == (
        "Whether features of batchtopk prefer some positions to others is not known: none fires 200 times or more on 900 held-out tokens, "
        "so hold out more of them, or give more."
    )


def test_a_page_of_what_others_trained_speaks_of_no_training() -> None:
    theirs = make_results(runs=[make_run("batchtopk", kind="pretrained")])
    page = render(theirs)
    assert "that this project began with" not in page and "final loss" not in page and "One seed" not in page
    assert "that this project began with" in render(make_results()) and "final loss" in render(make_results())


def test_runs_side_by_side_have_their_own_l0_and_fve() -> None:
    table = arms_table([Compared(name, make_results(), {}) for name in ("one", "other")])
    rows = {row.head: dict(zip(table.columns[1:], row.cells, strict=True)) for row in table.rows}
    assert rows["one, smollm2-middle: batchtopk"]["L0"] == "32.0" and rows["other, smollm2-middle: standard"]["FVE"] == "0.6500"
    assert "FVE at L0 32" in table.columns
    lone = arms_table([Compared("one", make_results(), {}), Compared("other", make_results(runs=[make_run("batchtopk", l0=9.0)]), {})])
    assert not any(column.startswith("FVE at") for column in lone.columns)


def share_of(low: float, high: float) -> list[str]:
    """The verdict on a masked dictionary of which `positions` found a tenth of the features to be specialised."""
    share = Estimate(0.1, low, high, 300)
    apart = PositionCorrelations(share, share, share, share, 9)
    found = PositionMeasures(900, 128, 10, 9, share, share, share, share, share, None, {}, [], apart, None, None)
    return answers.answers(make_results(runs=[make_run("batchtopk", measures={POSITIONS.name: as_json(found)})]))[0].verdict


def test_a_share_with_an_interval_as_wide_as_everything_is_not_told() -> None:
    assert share_of(0.05, 0.2)[-1].endswith("fire 200 times or more, 10\u00a0% prefer some positions to others.")
    assert share_of(0.0, 0.8)[-1].endswith("it cannot be said how many prefer some positions to others: 9 held-out documents are too few.")


def test_the_verdict_says_at_which_l0_and_where_the_sign_turns() -> None:
    def arm(name: str, *fves: float) -> list[TimedRun]:
        return [
            make_run(name, arm=f"{name}-k{level:g}", level=level, l0=level, fve=fve) for level, fve in zip((2.0, 4.0), fves, strict=True)
        ]

    runs = [*arm("batchtopk", 0.5, 0.6), *arm("position_mean", 0.6, 0.7), *arm("positional", 0.65, 0.65)]
    results = make_results((2, 4), runs=runs)
    said = " ".join(answers.answers(results)[0].verdict).replace("\u00a0", " ")
    assert (
        "A dictionary that knows the position (position_mean) left 25 % less unexplained than one that does not (batchtopk) at L0 4;"
        in said
    )
    assert "left 17 % more unexplained than one that knows no more than the mean of each position (position_mean) at L0 4" in said
    assert "(and 13 % less at L0 2)" in said


def test_what_is_left_out_is_said_as_it_is() -> None:
    kept = make_results(scans={}, activations={ENTRY: make_entry(excluded={"first": 0, "norm": 3, "special": 0})})
    assert "index 0 and other sinks" not in render(kept) and "Index 0 is kept here" in render(kept)
    assert "index 0 and other sinks" in render(make_results()) and "Index 0 is kept here" not in render(make_results())
    assert "FVE at index 0 alone" not in render(make_results())
    assert 'href="#scan"' not in render(make_results(scans={})) and 'href="#scan"' in render(make_results())
