"""`docs/lab-notes.md`: the lab notes' Runs 0 to 9 and the steps of their experiment, told from finished runs.

    python -m tools.lab_notes RUN LITERAL [--docs docs]

`RUN` and `LITERAL` are the folders of finished runs of `studies/lab-notes.yaml` and `studies/lab-notes-literal.yaml`. Every number and
picture of the page comes from them; the words stand in `tools/lab_notes.md.j2`.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import jinja2
import numpy as np
import torch
from matplotlib.figure import Figure

from temporallens.dictionaries.saving import load_dictionary
from temporallens.errors import TemporalLensError
from temporallens.evaluation.comparison import Point, read_curve
from temporallens.evaluation.model.fidelity import FidelityMeasures
from temporallens.evaluation.positions.section import PositionMeasures
from temporallens.evaluation.results import RunResult, TimedResults, load_results
from temporallens.evaluation.sections import SECTIONS
from temporallens.evaluation.statistics import Difference, Mean, difference_of
from temporallens.figures.cluster_patterns import draw_cluster_patterns
from temporallens.figures.save import save
from temporallens.figures.temporal_clustering import draw_temporal_clustering
from temporallens.files import make_folder, write_text
from temporallens.layout import RunFolder
from temporallens.study.pictures import RunFiles, positions_of, shown
from temporallens.training.snapshots import snapshots_of
from temporallens.wording import Row, Table, average, estimated, fixed, percent, plus, plus_minus
from tools.results import markdown

SHARP = (0.1, 0.9)
"""Entries of a mask below and above these have made up their minds."""
L1 = ("run0", "run1", "run2", "run2_hard", "run2_permuted", "run5", "run6")
"""Arms of the notes' own kind: ReLU codes under a penalty."""
CHOSEN = ("batchtopk", "position_mean", "positional", "positional_soft", "positional_straight", "sliced")
"""Arms of the experiment: a number of codes is chosen."""
TEMPLATE = Path(__file__).with_suffix(".md.j2")
"""The words."""
SPANS = {"1": (1, 2), "2 to 7": (2, 8), "8 to 31": (8, 32), "32 to 127": (32, 128)}


class Story(NamedTuple):
    """A finished run and what is asked of it."""

    folder: Path
    results: TimedResults

    @property
    def entry(self) -> str:
        return next(iter(self.results.activations))

    @property
    def levels(self) -> list[float]:
        return self.results.study.levels["k"]

    def of(self, family: str) -> RunResult:
        """The dictionary of an arm that was measured: its first seed at the middle one of its levels."""
        return next(run for run in shown(self.results.runs) if run.family == family)

    def positions(self, family: str) -> PositionMeasures:
        found = positions_of(self.of(family))
        assert found
        return found

    def at(self, family: str, l0: float) -> dict[int, float]:
        """FVE of each seed's curve at so many codes, where it reaches so far."""
        curves: dict[int, list[Point]] = {}
        for run in self.results.runs:
            if run.family == family:
                curves.setdefault(run.seed, []).append(Point(run.l0, run.fve, run.fve_within_position))
        read = {seed: read_curve(points, l0) for seed, points in curves.items()}
        return {seed: point.fve for seed, point in read.items() if point}

    def fve(self, family: str, l0: float) -> Mean | None:
        """The mean over seeds."""
        reached = self.results.comparison[self.entry].reached
        return next((row.fve for row in reached if (row.family, row.l0) == (family, l0)), None)

    def gap(self, family: str, other: str, l0: float) -> Difference | None:
        """FVE of `family` less that of `other`, paired by seed."""
        ours, theirs = self.at(family, l0), self.at(other, l0)
        pairs = [ours[seed] - theirs[seed] for seed in ours if seed in theirs]
        return difference_of(pairs) if pairs else None

    def said(self, family: str, other: str) -> str:
        """The gap at every level that both reach, in words."""
        found = {l0: gap for l0 in self.levels if (gap := self.gap(family, other, l0))}
        return " and ".join(f"{plus(gap.value, plus_minus(gap, 4))} at L0 {l0:g}" for l0, gap in found.items()) or "not to be told"

    def tables(self, section: str, families: Sequence[str], title: str = "", without: str = "\n") -> str:
        """The section's own tables whose titles begin with `title`, of these arms, without rows whose heads hold `without`."""
        known = SECTIONS[section]
        assert known.tables
        measured = {name: known.read(self.of(name).measures[section]) for name in families}
        found = [table for table in known.tables(measured) if table.title.startswith(title)]
        kept = [table._replace(rows=[row for row in table.rows if without not in row.head]) for table in found]
        return "\n\n".join(markdown(table) for table in kept if table.rows)


def fve_table(story: Story, families: Sequence[str], title: str) -> Table:
    """FVE of arms at equal L0."""
    rows = []
    for family in families:
        runs = [run for run in story.results.runs if run.family == family]
        cells = [str(len({run.seed for run in runs}))]
        cells += [plus_minus(found, 4) if (found := story.fve(family, l0)) else "–" for l0 in story.levels]
        cells += [" to ".join(f"{end:.0f}" for end in (min(run.l0 for run in runs), max(run.l0 for run in runs)))]
        openness = average(run.openness for run in runs)
        rows.append(Row(family, [*cells, fixed(openness, 3)]))
    return Table(title, ["arm", "seeds", *(f"FVE at L0 {l0:g}" for l0 in story.levels), "L0 trained", "openness"], rows)


def probing_table(story: Story, families: Sequence[str]) -> Table:
    """Accuracy of sparse probes on means over texts, as SAEBench has it: of the model's own channels, and of each arm's features."""
    known = SECTIONS["probing"]
    assert known.tables
    (table,) = known.tables({name: known.read(story.of(name).measures["probing"]) for name in families})
    accuracy = {row.head: row.cells[-1] for row in table.rows}
    sizes = [head.split(", ")[-1] for head in accuracy if head.startswith(f"{families[0]}: features, mean, ")]
    sides = {"the model's own activations": f"{families[0]}: channels", **{name: f"{name}: features" for name in families}}
    rows = [Row(title, [accuracy[f"{side}, mean, {size}"].split(" ")[0] for size in sizes]) for title, side in sides.items()]
    return Table("sparse probing, accuracy: mean over six sets", ["", *sizes], rows)


def sharpness_table(story: Story, family: str) -> Table:
    """Shares of a mask's entries that are nearly closed and nearly open, by step."""
    run = story.of(family)
    folder = RunFolder(story.folder).arm(run.id)
    states = {**{f"step {step}": path for step, path in snapshots_of(folder).items()}, "end": folder}
    rows = []
    for name, path in states.items():
        gates = load_dictionary(path).gates_by_position()
        assert gates is not None
        gates = gates[1:]  # no token of position 0 is trained on
        below, above = (gates < SHARP[0]).float().mean(), (gates > SHARP[1]).float().mean()
        rows.append(Row(name, [fixed(float(gates.mean()), 3), percent(float(below)), percent(float(above))]))
    return Table(f"{run.id.title}: how sharp its mask is", ["", "mean gate", "below .1", "above .9"], rows)


def by_span(story: Story, family: str) -> list[tuple[float, float]]:
    """Codes, and share left unexplained, in spans of positions, of the measured dictionary."""
    run = story.of(family)
    found = []
    for first, end in SPANS.values():
        weights = np.array(run.position_count[first:end], dtype=float)
        columns = ([value or 0.0 for value in column[first:end]] for column in (run.position_l0, run.position_fve))
        l0, fve = (float(np.average(column, weights=weights)) for column in columns)
        found.append((l0, 1 - fve))
    return found


def spans_table(story: Story, families: Sequence[str]) -> Table:
    """Where codes are spent, and what is left unexplained."""
    rows = [Row(family, [cell for l0, left in by_span(story, family) for cell in (fixed(l0, 1), fixed(left, 3))]) for family in families]
    title = "codes, and the share of each position's variance left unexplained, by position (first seed, middle level)"
    return Table(title, ["arm", *(f"{span}: {what}" for span in SPANS for what in ("codes", "left"))], rows)


DIFFERENCES = Table(
    "What the notes had, and what the two studies have",
    ["", "the notes", "`lab-notes-literal`", "`lab-notes`"],
    [
        Row("model, layer", ["Gemma 2 2B, layer 19 of 26", "SmolLM2-135M-Instruct (4-bit), block 19 of 30", "the same"]),
        Row("features", ["2304, the width of the stream", "2304, four times the width (576)", "the same"]),
        Row("steps", ["0", "200", "200"]),
        Row("L1 penalty", [".04", ".04, of codes summed over features, inputs of norm √D", "2.5, 3.5 and 5, which bracket 30 to 60 codes"]),
        Row("learning rate", ["3e-4", "3e-4", "2e-3"]),
        Row("mask entries", ["one for each position", "one for each position", "eight groups, for positions are few and tokens fewer"]),
        Row("initial logits", ["random", "0: an entry that no gradient moved opens", "the same"]),
        Row("before masks learn", ["nothing said", "a tenth of the steps, so that features form first", "the same"]),
        Row("their learning rate", ["that of the dictionary", "five times that of the dictionary", "the same"]),
        Row("temperature", ["5.0 to 0.1, exponential", "the same, reached after four fifths of the steps", "the same"]),
        Row("hard masks", ["named as a next step", "none", "`run2_hard`, `positional`"]),
        Row(
            "position weights",
            ["EMA of losses, normalised", "of losses over the position's own variance, between .5 and 2, mean 1", "the same"],
        ),
        Row("a null", ["none", "none", "`run2_permuted`: labels that mean nothing"]),
        Row("seeds", ["none said", "1", "3; Runs 1, 5 and 6 one"]),
    ],
)


def pictures(story: Story) -> dict[str, Callable[[], Figure]]:
    """The notes' pictures, each of the run that it belongs to."""
    files = RunFiles(story.folder, story.results)
    run2, run5, run6 = (story.of(name) for name in ("run2", "run5", "run6"))
    clusters, heading = files.clusters(run6), run6.id.title
    return {
        "run2-masks": lambda: files.masks(run2),
        "run4-position-analysis": lambda: files.position_analysis(run2),
        "run5-position-weights": lambda: files.position_weights(run5),
        "run6-comparison": lambda: files.comparative_analysis(story.entry, story.results.runs),
        "run7-position-weights": lambda: files.position_weights(run6),
        "run8-sparsity": lambda: files.sparsity_analysis(run6),
        "run9-clusters": lambda: draw_temporal_clustering(clusters, heading),
        "run9-patterns": lambda: draw_cluster_patterns(clusters, heading),
    }


def losses(run: RunResult) -> dict[str, str | int]:
    """Squared error per token over positions, as the notes' Run 3 asks."""
    loss = np.array([np.nan if value is None else value for value in run.position_loss])
    worst, best = int(np.nanargmax(loss)), int(np.nanargmin(loss))
    mean, most, least = (fixed(float(value), 2) for value in (np.nanmean(loss), loss[worst], loss[best]))
    return {"mean": mean, "most": most, "least": least, "worst": worst, "best": best}


def kept(story: Story, family: str) -> dict[str, str | int]:
    """Shares of firings that stay behind the longest prefix, and behind another passage as long in its place."""
    measured: FidelityMeasures = SECTIONS["fidelity"].read(story.of(family).measures["fidelity"])
    longest = measured.shifts[-1]
    of_all = {"pushed": longest.content, "other": measured.control_passage}
    return {"tokens": longest.shift, **{name: estimated(share, 1, 100, " %") for name, share in of_all.items()}}


def literal_table(results: TimedResults) -> Table:
    """Runs of the notes' own setting."""
    rows = [Row(run.family, [fixed(run.l0, 0), fixed(run.fve, 4), fixed(run.openness, 3)]) for run in results.runs]
    return Table("runs of the notes' own setting", ["arm", "L0", "FVE", "openness"], rows)


def page(story: Story, literal: TimedResults, images: Path) -> str:
    """The whole page, whose pictures are drawn into `images`."""
    drawn, dense = pictures(story), [run.l0 for run in literal.runs]

    def picture(name: str, alt: str) -> str:
        save(drawn[name](), images / f"{name}.png")
        return f"![{alt}](images/{images.name}/{name}.png)"

    correlations = story.positions("run2").correlations
    template = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True, autoescape=False).from_string(
        TEMPLATE.read_text("utf-8")
    )
    return template.render(
        seeds=len(story.results.study.seeds),
        differences=markdown(DIFFERENCES),
        tables=story.tables,
        said=story.said,
        picture=picture,
        l1=markdown(fve_table(story, L1, "Runs 0 to 6, and two controls")),
        chosen=markdown(fve_table(story, CHOSEN, "a number of codes is chosen")),
        sharpness=markdown(sharpness_table(story, "run2")),
        probing=markdown(probing_table(story, ["run0", "run2_hard", "batchtopk", "positional"])),
        loss=losses(story.of("run2")),
        correlations={name: estimated(value, 2) for name, value in correlations._asdict().items() if name.startswith("openness")},
        weights=estimated(story.positions("run5").correlations.weight_unexplained, 2),
        spans=markdown(spans_table(story, ["run0", "run2", "run5", "run6", "positional"])),
        dense=f"{min(dense):,.0f} to {max(dense):,.0f}",
        kept=kept(story, "batchtopk"),
        literal=markdown(literal_table(literal)),
    )


def main(arguments: Sequence[str] | None = None) -> Path:
    """Write the page and its pictures; returns the page."""
    parser = argparse.ArgumentParser(prog="python -m tools.lab_notes", description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("run", type=Path, help="folder of a finished run of studies/lab-notes.yaml")
    parser.add_argument("literal", type=Path, help="folder of a finished run of studies/lab-notes-literal.yaml")
    parser.add_argument("--docs", type=Path, default=Path(__file__).parents[1] / "docs", help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    torch.set_grad_enabled(False)
    images = chosen.docs / "images" / "lab-notes"
    make_folder(images)
    story = Story(chosen.run, load_results(chosen.run))
    write_text(chosen.docs / "lab-notes.md", page(story, load_results(chosen.literal), images))
    return chosen.docs / "lab-notes.md"


if __name__ == "__main__":
    try:
        print(main())
    except TemporalLensError as error:
        raise SystemExit(f"error: {error}") from None
