"""`--set training.steps=500`: settings that are changed on the command line, by their place in the study file."""

from collections.abc import Sequence
from copy import deepcopy
from typing import Any, NamedTuple

from temporallens.errors import TemporalLensError


class Change(NamedTuple):
    """One `--set`."""

    written: str  # `training.steps=500`
    key: str  # keys of mappings and numbers in lists, with dots between
    value: Any  # as YAML has it


def changed(content: dict[str, Any], changes: Sequence[Change]) -> dict[str, Any]:
    """The values of a study file with these in place of others, or beside them. Raises TemporalLensError for a place that cannot be."""
    made = deepcopy(content)
    for change in changes:
        _put(made, change.key.split("."), change)
    return made


def _put(inside: Any, names: Sequence[str], change: Change) -> None:
    key, rest = _first_key(inside, names, change)
    if not rest:
        inside[key] = change.value
        return
    if isinstance(inside, dict) and inside.get(key) is None:
        inside[key] = {}
    _put(inside[key], rest, change)


def _first_key(inside: Any, names: Sequence[str], change: Change) -> tuple[Any, Sequence[str]]:
    """The first key on the way, and what is left of it; keys of a mapping may hold dots themselves."""
    if isinstance(inside, dict):
        count = next((count for count in range(len(names), 0, -1) if ".".join(names[:count]) in inside), 1)
        return ".".join(names[:count]), names[count:]
    if not isinstance(inside, list):
        raise TemporalLensError(f"--set {change.written}: what stands before .{'.'.join(names)} is {inside!r}, which holds nothing")
    if not names[0].isdecimal() or int(names[0]) >= len(inside):
        raise TemporalLensError(f"--set {change.written}: '{names[0]}' is no entry of a list whose entries are 0 to {len(inside) - 1}")
    return int(names[0]), names[1:]
