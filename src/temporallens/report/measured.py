"""The report's tables of what a study measured beyond reconstruction (`evaluation:`), one group per section.

A cell is an estimate with its 95 % interval in parentheses; how many things it rests on stands in the first columns. What an interval
does not tell from chance is called so, and what was not measured has no table.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from temporallens.evaluation.results import RunResult as Run
from temporallens.report.answers import average
from temporallens.report.tables import Arms, score_at
from temporallens.wording import UNKNOWN, Row, Table, counted, fixed, known

Measure = Mapping[str, Any]
Tables = Callable[[Sequence[Run]], list[Table]]


def measured_sections(activations: Mapping[str, Any], runs: Sequence[Run], gains: Mapping[str, Any]) -> list[Arms]:
    """The tables of every activations entry of which something was measured."""
    found = []
    for name in activations:
        own = [run for run in runs if run.activations == name]
        tables = [table for section, make in SECTIONS.items() if (having := _having(own, section)) for table in make(having)]
        tables += gains_tables(name, gains.get(name))
        if tables:
            found.append(Arms(name, tables))
    return found


def _having(runs: Sequence[Run], section: str) -> list[Run]:
    return [run for run in runs if section in run.measures]


def _of(run: Run, section: str) -> Measure:
    return cast(Measure, run.measures[section])


def _head(run: Run) -> str:
    return f"{run.arm}, seed {run.seed}"


def estimate(value: Any, digits: int = 3, scale: float = 1.0, unit: str = "") -> str:
    """`0.123 (0.101 to 0.144)`; without the parentheses where there is no interval, a dash where there is no value."""
    if not isinstance(value, Mapping) or not known(value.get("value")):
        return UNKNOWN
    middle, low, high = (value[key] for key in ("value", "low", "high"))
    said = fixed(middle * scale, digits) + unit
    if not (known(low) and known(high)):
        return said
    return f"{said} ({fixed(low * scale, digits)} to {fixed(high * scale, digits)})"


# Positions


def position_tables(runs: Sequence[Run]) -> list[Table]:
    """Which features depend on position; what of it hardening and other seeds keep; what masks and weights follow."""
    found = {_head(run): _of(run, "positions") for run in runs}
    depend = [
        Row(
            head,
            [
                f"{measure['specialised']['n']:,}",
                estimate(measure["specialised"], 1, 100, " %"),
                estimate(measure["information"], 2, 1000),
                estimate(measure["specialisation"]),
                estimate(measure["eta2"], 2, 100, " %"),
                estimate(measure["reliability"], 2),
            ],
        )
        for head, measure in found.items()
    ]
    return [
        Table(
            "Features that depend on position",
            [
                "dictionary",
                "features measured",
                "specialised",
                "information, millibits",
                "specialisation (PSI)",
                "η²",
                "split-half reliability",
            ],
            depend,
            "Specialised: the circular-shift null is rejected, q < .05. Means over measured features, what chance gives taken off.",
        ),
        *_kept_tables(found),
        *_following_tables(found),
    ]


def _kept_tables(found: Mapping[str, Measure]) -> list[Table]:
    rows = []
    for head, measure in found.items():
        if measure["hardening"]:
            rows.append(_kept_row(f"{head}: soft to hard", measure["hardening"]["pattern"], measure["hardening"]))
        rows += [_kept_row(f"{head}: step {step} to the end", change["pattern"], change) for step, change in measure["annealing"].items()]
        rows += [_kept_row(f"{head}: other seed, {number}", other["pattern"], None) for number, other in enumerate(measure["seeds"], 1)]
    columns = ["from, to", "pairs", "profiles alike (ρ)", "specialised that stay so", "by chance", "firings in common", "FVE gap", "L0 gap"]
    note = (
        "Profiles alike: Spearman's correlation of mean activations by position, mean over features. Another seed's features are "
        "matched by their decoder rows."
    )
    return [Table("Position specialisation retention", columns, rows, note)] if rows else []


def _kept_row(head: str, pattern: Measure, change: Measure | None) -> Row:
    cells = [
        f"{pattern['pairs']:,}",
        estimate(pattern["profile"], 2),
        estimate(pattern["set_retention"], 1, 100, " %"),
        UNKNOWN if pattern["set_chance"] is None else f"{fixed(100 * pattern['set_chance'], 1)} %",
    ]
    if change is None:
        return Row(head, [*cells, UNKNOWN, UNKNOWN, UNKNOWN])
    return Row(
        head,
        [*cells, estimate(change["firing_overlap"], 1, 100, " %"), estimate(change["fve_gap"], 4), estimate(change["l0_gap"], 2)],
    )


def _following_tables(found: Mapping[str, Measure]) -> list[Table]:
    rows = []
    for head, measure in found.items():
        correlations, mask = measure["correlations"], measure["mask"]
        if mask is None and not known(correlations["weight_unexplained"]["value"]):
            continue
        rows.append(
            Row(
                head,
                [
                    f"{correlations['openness_unexplained']['n']:,}",
                    estimate(correlations["openness_unexplained"], 2),
                    estimate(correlations["weight_unexplained"], 2),
                    fixed(score_at(mask, "auroc_ungated"), 3),
                    UNKNOWN if mask is None or mask["closed_mass"] is None else f"{fixed(100 * mask['closed_mass'], 2)} %",
                ],
            )
        )
    columns = ["dictionary", "positions", "openness, unexplained (ρ)", "weight, unexplained (ρ)", "mask AUROC", "closed mass"]
    note = (
        "Correlations over positions with the share of their variance that is left unexplained. Mask AUROC: open where the feature "
        "would fire if the mask were open everywhere."
    )
    return [Table("What masks and position weights follow", columns, rows, note)] if rows else []


# Clusters


def cluster_tables(runs: Sequence[Run]) -> list[Table]:
    """How many temporal clusters stand out from chance, how well they hold, and what each is."""
    found = {_head(run): _of(run, "clusters") for run in runs}
    each = [_each_cluster(head, measure) for head, measure in found.items() if len(measure["rows"]) > 1]
    return [_held_table(found), *_worlds_tables(found), *each]


def _held_table(found: Mapping[str, Measure]) -> Table:
    rows = []
    for head, measure in found.items():
        ari, low, high = (fixed(score_at(measure, f"documents_drawn.{key}"), 2) for key in ("ari", "low", "high"))
        seeds = [other["ari"] for other in measure["seeds"] if known(other["ari"])]
        cells = [
            f"{measure['kept']:,} of {measure['features']:,}",
            fixed(measure["clusters"], 0),
            fixed(measure["silhouette"], 2),
            fixed(measure["p"], 3),
            f"{fixed(measure['cophenetic'], 2)} ({fixed(score_at(measure, 'chance.shuffled.cophenetic.mean'), 2)})",
            ari if ari == UNKNOWN else f"{ari} ({low} to {high})",
            fixed(sum(seeds) / len(seeds), 2) if seeds else UNKNOWN,
        ]
        rows.append(Row(head, cells))
    columns = [
        "dictionary",
        "features",
        "clusters",
        "silhouette",
        "p against chance",
        "cophenetic (shuffled)",
        "ARI over documents",
        "ARI over seeds",
    ]
    note = (
        "Features that fire often enough to have a profile. One cluster: nothing stands out from chance. ARI: adjusted Rand index with "
        "the clusters of other draws of the documents, and of other seeds."
    )
    return Table("Temporal clusters", columns, rows, note)


def _worlds_tables(found: Mapping[str, Measure]) -> list[Table]:
    """What is made of the classes of a world with known answers, by each distance."""
    rows = []
    for head, measure in found.items():
        for distance, recovered in (score_at(measure, "world.by_distance") or {}).items():
            cells = [f"{measure['world']['features']:,}", f"{recovered['clusters']:,}", fixed(recovered["ari"], 2)]
            rows.append(Row(f"{head}: {distance.replace('_', '-')}", [*cells, fixed(recovered["ari_at_classes"], 2)]))
    columns = ["dictionary: distance", "true features", "clusters", "ARI with the classes", "at as many clusters as classes"]
    note = "Of the true features that the dictionary has found and that fire often enough."
    return [Table("Temporal clusters and the classes of this world", columns, rows, note)] if rows else []


def _each_cluster(head: str, measure: Measure) -> Table:
    rows = []
    for number, cluster in enumerate(measure["rows"], 1):
        first, last = cluster["peak"]
        periods = [f"{period} ({count:,})" for period, count in cluster["periods"].items()]
        cells = [
            f"{cluster['features']:,}",
            str(first) if first == last else f"{first} to {last}",
            f"{fixed(100 * cluster['width'], 0)} %",
            fixed(cluster["trend"], 2),
            ", ".join(periods) or UNKNOWN,
            fixed(cluster["silhouette"], 2),
            ", ".join(str(telling["feature"]) for telling in cluster["telling"]),
        ]
        rows.append(Row(str(number), cells))
    columns = ["cluster", "features", "peak at positions", "width", "trend", "periods (features)", "silhouette", "most telling features"]
    note = (
        "Peak: where the mean profile is highest. Width: share of the bins of positions that a feature is spread over; trend: "
        "correlation of its level and the bin; medians. The feature browser shows each feature."
    )
    return Table(f"Clusters of {head}", columns, rows, note)


# The model


def splicing_tables(runs: Sequence[Run]) -> list[Table]:
    """What the model loses when it goes on from reconstructions."""
    rows = []
    for run in runs:
        measure = _of(run, "splicing")
        headline, everything = measure["headline"], measure["everything"]
        rows.append(
            Row(
                _head(run),
                [
                    f"{measure['tokens']:,}",
                    estimate(headline["clean"]),
                    estimate(headline["spliced"]),
                    estimate(headline["recovered_zero"]),
                    estimate(headline["recovered_mean"]),
                    estimate(headline["kl"]),
                    estimate(everything["recovered_zero"]),
                ],
            )
        )
    first = _of(runs[0], "splicing")
    loss = "cross-entropy" if first["loss"] == "cross-entropy" else "share of the last hidden states' variance lost"
    columns = ["dictionary", "tokens", "clean", "spliced", "recovered (zeros)", "recovered (mean)", "KL, nats", "recovered, position 0 too"]
    note = f"Loss: {loss}. Recovered: share of what zeros, or the mean activation, in place of the layer would cost."
    return [Table("Spliced into the model", columns, rows, f"{note} {first['reason']}." if first["reason"] else note)]


def fidelity_tables(runs: Sequence[Run]) -> list[Table]:
    """What features follow when a prefix pushes the text to later positions."""
    rows = []
    for run in runs:
        for shift in _of(run, "fidelity")["shifts"]:
            rows.append(
                Row(
                    f"{_head(run)}: {counted(shift['shift'], 'token', 'tokens')}",
                    [
                        estimate(shift["absolute_index"], 2),
                        f"{shift['tied_to_index']:,} / {shift['tied_to_content']:,} / {shift['undecided']:,}",
                        estimate(shift["content"], 1, 100, " %"),
                        estimate(score_at(shift, "fve.change"), 4),
                        estimate(shift["mask_change"], 4),
                    ],
                )
            )
    columns = [
        "dictionary, prefix",
        "absolute index (AI)",
        "tied to index / content / neither",
        "firings that stay",
        "FVE change",
        "of it by the mask",
    ]
    note = "AI above 0: a feature's profile stays with the index; below: it moves with the text."
    return [Table("Positional fidelity", columns, rows, note)]


# Probes


def order_tables(runs: Sequence[Run]) -> list[Table]:
    """Accuracy on order-sensitive tasks: the best of each dictionary's ways by pooling, beside what needs no dictionary."""
    tables = []
    for run in runs:
        rows = [_order_row(task) for task in _of(run, "order")["tasks"]]
        columns = [
            "task",
            "items",
            "chance",
            "bag of words",
            "bigrams",
            "surprisal",
            "channels, bins",
            "codes, mean",
            "codes, last",
            "codes, bins",
        ]
        note = (
            "Dense probes; accuracy on folds that the probe did not see. An arm gains only where it beats an ordinary dictionary "
            "pooled by bins."
        )
        tables.append(Table(f"Order-sensitive tasks: {_head(run)}", columns, rows, note))
    return tables


def _order_row(task: Measure) -> Row:
    def best(basis: str, pooling: str | None) -> str:
        own = [score for score in task["scores"] if score["basis"] == basis and (pooling is None or score["pooling"] == pooling)]
        dense = [score for score in own if score["probe"] == "dense"] or own
        return estimate(dense[0]["accuracy"], 2) if dense else UNKNOWN

    head = task["name"].replace("_", " ") + ("" if task["about_order"] else " (control)")
    cells = [f"{task['items']:,}", fixed(task["chance"], 2)]
    ways = (("bag of words", None), ("bigrams", None), ("surprisal", None), ("activations", "bins"))
    cells += [best(basis, pooling) for basis, pooling in ways]
    cells += [best("dictionary", pooling) for pooling in ("mean", "last", "bins")]
    return Row(head, cells)


def probing_tables(runs: Sequence[Run]) -> list[Table]:
    """AUC of sparse probes, mean over sets."""
    rows = []
    for run in runs:
        for score in _of(run, "probing")["scores"]:
            if score["set"] is None:
                size = "all columns" if score["k"] is None else f"k = {score['k']}"
                rows.append(
                    Row(
                        f"{_head(run)}: {score['subject']}, {score['pooling']}, {size}",
                        [estimate(score["auc"]), estimate(score["accuracy"])],
                    )
                )
    note = "Means over labelled sets; regularisation chosen by validation, bootstrap over tested texts. Mean pooling is blind to order."
    return [Table("Sparse probing", ["probe", "AUC", "accuracy"], rows, note)]


GAINED = (
    ("order", "order-sensitive tasks", "accuracy", "Above: better than its codes pooled by bins and than those pooled alike, q < .05."),
    ("probing", "labelled sets", "AUC", "Above: the interval of the difference lies above zero."),
)
"""Sections, what they probe, by which measure, and when an arm counts as above."""


def gains_tables(name: str, told: Measure | None) -> list[Table]:
    """What each dictionary's probes have over those of an ordinary one that is pooled by position bins."""
    if not told:
        return []
    tables, partners = [], sorted(set(told["against"].values()))
    against = partners[0] if len(partners) == 1 else "the ordinary dictionary of the same level and seed"
    for section, what, unit, rule in GAINED:
        rows = [row for run, gains in (told.get(section) or {}).items() for row in _gain_rows(run, gains, section)]
        columns = ["dictionary, pooling, probe", "above", "no difference", "below", f"{unit} difference, mean"]
        note = (
            f"Against {against}, with probes of the same size on the same items; counts of {what}. {rule} The difference is to its "
            "codes pooled by position bins, which a dictionary that knows positions has to beat."
        )
        if rows:
            tables.append(Table(f"{name}: gains on {what}", columns, rows, note))
    return tables


def _gain_rows(run: str, gains: Sequence[Measure], section: str) -> list[Row]:
    key, size = ("against_bins", "probe") if section == "order" else ("auc", "k")
    own = [gain for gain in gains if section == "order" or (gain["set"] is not None and gain["against"] == "bins")]
    rows = []
    for pooling, probe in dict.fromkeys((gain["pooling"], gain[size]) for gain in own):
        alike = [gain for gain in own if (gain["pooling"], gain[size]) == (pooling, probe)]
        verdicts = [gain["verdict"] for gain in alike]
        mean = average(gain[key]["value"] for gain in alike)
        sized = probe if section == "order" else "all columns" if probe is None else f"k = {probe}"
        counts = [str(verdicts.count(verdict)) for verdict in ("above", "no difference", "below")]
        rows.append(Row(f"{run}: {pooling}, {sized}", [*counts, fixed(mean, 3)]))
    return rows


SECTIONS: dict[str, Tables] = {
    "positions": position_tables,
    "clusters": cluster_tables,
    "splicing": splicing_tables,
    "fidelity": fidelity_tables,
    "order": order_tables,
    "probing": probing_tables,
}
