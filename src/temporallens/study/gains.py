"""What dictionaries gain over an ordinary one in the sections that compare (`Section.gains`): each one's partner, and by how much."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from temporallens.dictionaries.kinds import kinds_of
from temporallens.evaluation.section import Section
from temporallens.evaluation.sections import SECTIONS
from temporallens.files import read_json
from temporallens.layout import RunId
from temporallens.serial import as_json
from temporallens.study.config import Variant

COMPARED = tuple(name for name, section in SECTIONS.items() if section.gains)


def partners(measured: Sequence[tuple[RunId, Variant]]) -> dict[str, str]:
    """For each dictionary of one activations entry the ordinary one that it is compared with, by name: of the first ordinary arm, one
    without an expectation, that of its own level and seed, or the only one that there is. Dictionaries without such a partner are left
    out, and so are all where no arm is ordinary."""
    plain = [variant for _, variant in measured if variant.arm.expectation is None]
    family = next((variant.family for kind in kinds_of("ordinary") for variant in plain if variant.arm.kind == kind), None)
    ordinary = [(run, variant) for run, variant in measured if variant.family == family]
    found = {}
    for run, variant in measured:
        alike = [other for other, its in ordinary if len(ordinary) == 1 or _level(other, its) == _level(run, variant)]
        if variant.family != family and alike:
            found[run.name] = alike[0].name
    return found


def _level(run: RunId, variant: Variant) -> tuple[Any, ...]:
    """Equal for dictionaries that differ in their kind only."""
    level = variant.arm.level
    return run.seed, level, getattr(variant.arm, level) if level else None


def gains(against: Mapping[str, str], files: Mapping[str, Mapping[str, Path]], cache: Path) -> dict[str, Any]:
    """What each dictionary has over its partner, by section; `files` are the measurements by section and dictionary.

    Raises TemporalLensError where two were not measured alike.
    """
    found: dict[str, Any] = {"against": dict(against)}
    for name, paths in files.items():
        section = SECTIONS[name]
        read = {run: section.read(read_json(path, "a measurement of a dictionary")) for run, path in paths.items()}
        found[name] = {run: _compared(section, read[run], read[partner], cache) for run, partner in against.items()}
    return found


def _compared(section: Section, measured: Any, ordinary: Any, cache: Path) -> list[Any]:
    assert section.gains is not None
    return [as_json(gain) for gain in section.gains.compare(measured, ordinary, cache)]
