"""What the command line prints at the end of its work: tables of a plan, of results and of a scan, for a terminal."""

from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from temporallens.study.plan import Plan, readable_bytes, readable_time

UNKNOWN = "?"


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
    """One row per dictionary, on held-out documents, positions 1 and later."""
    numbers = ["FVE", "FVE within\nposition", "L0", "dead\nfeatures", "openness", "seconds"]
    table = _table(f"{results['name']}: held-out documents, position 0 apart", ["activations", "arm", "seed"], numbers)
    for run in results["runs"]:
        table.add_row(
            run["activations"],
            run["arm"],
            str(run["seed"]),
            _number(run["fve"], ".4f"),
            _number(run["fve_within_position"], ".4f"),
            _number(run["l0"], ".1f"),
            _number(run["dead_features"], ",.0f"),
            _number(run["openness"], ".3f"),
            _number(run["seconds"], ",.0f"),
        )
    return table


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
