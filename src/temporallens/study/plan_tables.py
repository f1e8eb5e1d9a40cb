"""A study's plan as a table for a terminal, and as JSON values."""

from typing import Any

from rich.table import Table as Printed

from temporallens.study.plan import ALONE, Plan, PlanLine
from temporallens.study.tables import printed
from temporallens.wording import Row, Table, readable_bytes, readable_time

NOT_KNOWN = "?"


def plan_table(plan: Plan) -> Printed:
    """One row per stage: what it is, how much it handles, and whether it is finished; of several processes, or another device, what each
    holds and exchanges too."""
    shared = plan.company != ALONE
    rows = [
        Row(
            line.stage.title,
            [
                "" if line.tokens is None else f"{line.tokens:,}",
                "" if line.bytes is None else readable_bytes(line.bytes),
                NOT_KNOWN if line.seconds is None else readable_time(line.seconds),
                *(_shared_cells(line) if shared else ()),
                "finished" if line.finished else "to do",
            ],
        )
        for line in plan.lines
    ]
    more = ["memory", "exchanged a step"] if shared else []
    return printed(Table("Plan", ["stage", "tokens", "disk", "time", *more, "state"], rows), ["stage"])


def _shared_cells(line: PlanLine) -> list[str]:
    return ["" if size is None else readable_bytes(size) for size in (line.memory, line.traffic and sum(line.traffic))]


def plan_data(plan: Plan) -> dict[str, Any]:
    """The plan's stages, in order, with numbers where they are known."""
    stages = [line._asdict() | {"stage": line.stage.name, **_parts(line)} for line in plan.lines]
    return {"processes": plan.company.processes, "stages": stages, "notes": plan.notes}


def _parts(line: PlanLine) -> dict[str, dict[str, float] | None]:
    return {name: None if part is None else part._asdict() for name, part in (("traffic", line.traffic), ("course", line.course))}
