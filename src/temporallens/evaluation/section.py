"""What a section of the evaluation is: one kind of measurement of a trained dictionary, declared once, in the file that makes it.

`sections.py` lists them all. Everything that knows about sections (the study file, stages, plan, results, report) goes through that list.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from temporallens.activations.language.loading import Loading, loading_of
from temporallens.activations.store import ActivationStore
from temporallens.dictionaries.base import Dictionary
from temporallens.dictionaries.saving import load_dictionary
from temporallens.evaluation.statistics import Verdict
from temporallens.serial import from_json
from temporallens.settings import Settings
from temporallens.wording import Row, Table, average, fixed


class Subject(NamedTuple):
    """One trained dictionary with what it is measured on."""

    folder: Path  # of the trained arm
    dictionary: Dictionary
    store: ActivationStore
    held_out: Int[np.ndarray, " n"]  # entries of the store's sequence table
    others: list[Path]  # folders of the same arm from other seeds
    cache: Path  # what is made once for several sections or dictionaries: passes of the model, baselines, encoded held-out documents

    @property
    def source(self) -> Mapping[str, Any]:
        """Where the activations came from: `model`, `layer`, `revision`."""
        return self.store.manifest.description.source

    @property
    def loading(self) -> Loading:
        """How their model was held, and is to be held again."""
        return loading_of(self.store.manifest.description.policies)

    def other_seeds(self) -> list[Dictionary]:
        return [load_dictionary(folder) for folder in self.others]


class Gains(NamedTuple):
    """How a dictionary's measurement is compared with that of an ordinary one."""

    kind: type  # a named tuple: one comparison
    compare: Callable[[Any, Any, Path], list[Any]]  # both measurements and the cache
    table: Callable[[str, Mapping[str, Sequence[Any]]], Table]  # with whom, and the comparisons of each dictionary


@dataclass(frozen=True)
class Section:
    """One entry of a study's `evaluation:`."""

    name: str  # its key in the study and in results.json, and its folder under measures/
    policy: type[Settings]
    version: int  # raise it when the measurement gives other output for the same settings: finished ones are then made again
    measure: Callable[[Subject, Any], Any]  # with its policy; gives `measures`
    measures: type  # a named tuple
    details: tuple[str, ...] = ()
    """Dotted paths of what has an entry for every feature: it stays out of `results.json`, and is None when read from there."""
    in_results: bool = True  # False: nothing of it stands in results.json
    reads_model: bool = False  # reads the language model again; activations of another source have no such section
    apart: bool = False  # takes every row by itself, which codes of arms that look back do not allow
    from_codes: bool = False  # decodes codes that it made up, which arms in open loop cannot do
    across_seeds: bool = False  # compares with the same arm trained from other seeds
    tables: Callable[[Mapping[str, Any]], list[Table]] | None = None  # for the report, of measurements by dictionary
    gains: Gains | None = None
    fits: Callable[[ActivationStore, Int[np.ndarray, " n"], Any], None] = lambda store, held_out, policy: None
    """Raises TemporalLensError where held-out entries are too few for its policy: what can be known before anything is trained."""
    content: Callable[[Any], str | None] = lambda policy: None  # what pins the content of files that its policy names

    def summary(self, content: dict[str, Any]) -> dict[str, Any]:
        """What `results.json` holds of a measurement: all but the details."""
        for path in self.details:
            content = _without(content, path.split("."))
        return content

    def read(self, content: dict[str, Any]) -> Any:
        """A measurement from its JSON, with or without its details. Raises pydantic's ValidationError where it is none."""
        for path in self.details:
            content = _with_none(content, path.split("."))
        return from_json(self.measures, content)


def _without(content: Any, path: list[str]) -> Any:
    return _changed(content, path, lambda mapping, name: {key: value for key, value in mapping.items() if key != name})


def _with_none(content: Any, path: list[str]) -> Any:
    return _changed(content, path, lambda mapping, name: {name: None} | mapping)


def _changed(content: Any, path: list[str], change: Callable[[dict[str, Any], str], dict[str, Any]]) -> Any:
    """`content` with the last key of `path` changed, in every entry of a list on the way."""
    if isinstance(content, list):
        return [_changed(entry, path, change) for entry in content]
    if len(path) == 1:
        return change(content, path[0])
    return content | {path[0]: _changed(content[path[0]], path[1:], change)}


COUNTED: tuple[Verdict, ...] = ("above", "no difference", "below")


class Tally(NamedTuple):
    """One comparison of a dictionary with an ordinary one, as tables count it."""

    run: str
    pooling: str
    probe: str
    verdict: Verdict
    difference: float | None


def gains_table(what: str, unit: str, rule: str, against: str, tallies: Sequence[Tally]) -> Table:
    """How often each dictionary, pooled and probed in each way, lies above or below the ordinary one; without rows where nothing is
    compared."""
    rows = []
    for run, pooling, probe in dict.fromkeys(tally[:3] for tally in tallies):
        alike = [tally for tally in tallies if tally[:3] == (run, pooling, probe)]
        verdicts = [tally.verdict for tally in alike]
        counts = [str(verdicts.count(verdict)) for verdict in COUNTED]
        rows.append(Row(f"{run}: {pooling}, {probe}", [*counts, fixed(average(tally.difference for tally in alike), 3)]))
    columns = ["dictionary, pooling, probe", *COUNTED, f"{unit} difference, mean"]
    note = (
        f"Against {against}, with probes of the same size on the same items; counts of {what}. {rule} The difference is to its codes "
        "pooled by position bins, which a dictionary that knows positions has to beat."
    )
    return Table(f"gains on {what}", columns, rows, note)
