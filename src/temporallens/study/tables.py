"""What the command line prints at the end of its work: tables of a plan, of results and of a scan, for a terminal."""

from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from temporallens.study.plan import Plan, readable_bytes, readable_time

UNKNOWN = "?"
VERDICTS = {
    "above": "above {baseline}",
    "below": "below {baseline}",
    "no difference": "not told apart from {baseline}",
    "one seed": "one seed, against {baseline}",
}


def _table(title: str, texts: list[str], numbers: list[str]) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    for name in texts:
        table.add_column(name, overflow="fold")
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def plan_table(plan: Plan) -> Table:
    """One row per stage: what it is, how much it handles, and whether it is finished."""
    table = _table("Plan", ["stage"], ["tokens", "disk", "time", "state"])
    for line in plan.lines:
        table.add_row(
            line.stage.name,
            "" if line.tokens is None else f"{line.tokens:,}",
            "" if line.bytes is None else readable_bytes(line.bytes),
            UNKNOWN if line.seconds is None else readable_time(line.seconds),
            "finished" if line.finished else "to do",
        )
    return table


def results_table(results: Mapping[str, Any]) -> Table:
    """On held-out documents, positions 1 and later: one row per arm at equal L0 where the study has levels, else per dictionary."""
    matched = results["study"].get("levels") and any(comparison["l0"] for comparison in results["comparison"].values())
    return comparison_table(results) if matched else dictionaries_table(results)


def dictionaries_table(results: Mapping[str, Any]) -> Table:
    """One row per dictionary, with what earlier records said of its arm."""
    notes = results["study"].get("notes") or {}
    numbers = ["FVE", "FVE within\nposition", "L0", "dead\nfeatures", "openness", "steps", "final\nloss", "seconds"]
    table = _table(_title(results), ["activations", "arm", "seed"], numbers)
    if notes:
        table.add_column("earlier records", overflow="fold")
    for run in results["runs"]:
        cells = [
            run["activations"],
            run["arm"],
            str(run["seed"]),
            _number(run["fve"], ".4f"),
            _number(run["fve_within_position"], ".4f"),
            _number(run["l0"], ".1f"),
            _number(run["dead_features"], ",.0f"),
            _number(run["openness"], ".3f"),
            _number(run["training_steps"], ",.0f"),
            _number(run["final_loss"], ".4g"),
            _number(run["seconds"], ",.0f"),
        ]
        table.add_row(*cells, *([notes.get(run["family"], "")] if notes else []))
    return table


def comparison_table(results: Mapping[str, Any]) -> Table:
    """One row per arm and store: FVE at the common L0 values, and the difference from the first baseline at the middle one."""
    levels = sorted({l0 for comparison in results["comparison"].values() for l0 in comparison["l0"]})
    middle = levels[len(levels) // 2]
    headings = [*(f"FVE at\nL0 {l0:g}" for l0 in levels), f"against baseline\nat L0 {middle:g}", "verdict"]
    table = _table(_title(results), ["activations", "arm", "seeds"], headings)
    for name, comparison in results["comparison"].items():
        families = list(dict.fromkeys(run["family"] for run in results["runs"] if run["activations"] == name))
        for family in families:
            reached = {row["l0"]: row["fve"] for row in comparison["reached"] if row["family"] == family}
            seeds = {run["seed"] for run in results["runs"] if (run["activations"], run["family"]) == (name, family)}
            against = [row for row in comparison["against"] if (row["family"], row["l0"]) == (family, middle)]
            first = against[0]["fve"] if against else None
            table.add_row(
                name,
                family,
                "one seed" if len(seeds) == 1 else str(len(seeds)),
                *(_interval(reached.get(l0), ".4f") for l0 in levels),
                _interval(first, "+.4f"),
                VERDICTS[first["verdict"]].format(baseline=against[0]["baseline"]) if first else "-",
            )
    return table


def _title(results: Mapping[str, Any]) -> str:
    one_seed = len({run["seed"] for run in results["runs"]}) == 1
    return f"{results['name']}: held-out documents, position 0 apart{', one seed' if one_seed else ''}"


def _interval(mean: Mapping[str, Any] | None, form: str) -> str:
    """A value with half of its interval, where it has one."""
    if mean is None:
        return "-"
    value = format(mean["value"], form)
    return value if mean["high"] is None else f"{value} ± {format(mean['high'] - mean['value'], form.removeprefix('+'))}"


def scan_table(scan: Mapping[str, Any]) -> Table:
    """One row per layer: eta^2 of each clock above its noise floor, and the mean norm at position 0 and beyond."""
    clocks = list(scan["clocks"])
    table = _table(f"{scan['model']}: eta² of position above its noise floor", ["layer"], [*clocks, "norm at 0", "norm beyond"])
    for row, layer in enumerate(scan["layers"]):
        norms = [value for value in scan["norm"][row] if value is not None]
        beyond = sum(norms[1:]) / max(1, len(norms) - 1)
        shares = [_excess(scan["clocks"][clock], row) for clock in clocks]
        table.add_row(layer, *(_number(share, ".3f") for share in shares), f"{norms[0]:,.0f}", f"{beyond:,.0f}")
    return table


def _excess(clock: Mapping[str, Any], row: int) -> float | None:
    """eta^2 above its noise floor, not below zero; None where the layer has no variance to explain."""
    share, floor = clock["eta2"][row], clock["floor"][row]
    return None if share is None or floor is None else max(0.0, share - floor)


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
