"""Labelled texts for probing: what a set of them is, and the reading of tables.

`shipped` reads sets from wheels, `hub` from the hub, and `sets` any of them by its name.

Orders are part of the contract, because probing draws by them: classes stand in the order in which they first appear, texts in that of
their source. Texts stay as they are, to the character. Duplicates (equal but for white space) are dropped on reading, since a text in
both training and test data would be remembered and not recognised; a set whose source fixes its parts is kept exactly as it is.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast, get_args

import numpy as np

from temporallens.activations.language.readers import TABLES, read_rows, refuse_half_character
from temporallens.errors import TemporalLensError, did_you_mean
from temporallens.files import fingerprint, inside, user_path
from temporallens.settings import whole_seed

Part = Literal["train", "test"]
Place = Literal["mean", "last"]

LEAST_TEXTS = 10
"""Texts that a class needs at the least: fewer cannot be divided into training, validation and test texts."""


@dataclass(frozen=True)
class LabelledSet:
    """Texts, each of one class. Raises TemporalLensError where there is one class only, or a text without a word."""

    name: str
    """How results call it; of a file, its name without the ending."""

    texts: list[str]

    labels: list[str]
    """Class of each text."""

    pooling: Place = "mean"
    """Where in a text its label shows: anywhere, so that tokens are averaged, or at the last token."""

    parts: list[Part] | None = None
    """Part to which each text belongs, where the source says so."""

    def __post_init__(self) -> None:
        if len(self.labels) != len(self.texts) or (self.parts is not None and len(self.parts) != len(self.texts)):
            raise TemporalLensError(f"'{self.name}' has {len(self.texts)} texts and {len(self.labels)} labels; each text needs one")
        for number, text in enumerate(self.texts):
            if not isinstance(text, str):
                raise TemporalLensError(f"text {number} of '{self.name}' is of type {type(text).__name__}, it should be a string")
            refuse_half_character(text, f"text {number} of '{self.name}'")
        empty = next((number for number, text in enumerate(self.texts) if not text.strip()), None)
        if empty is not None:
            raise TemporalLensError(f"text {empty} of '{self.name}' is empty; leave it out, or give it words")
        if len(self.classes) < 2:
            only = f"one class only ('{self.classes[0]}')" if self.classes else "no text"
            raise TemporalLensError(f"'{self.name}' has {only}: a probe tells at least two classes apart")

    @property
    def classes(self) -> list[str]:
        """In the order in which they first appear."""
        return list(dict.fromkeys(self.labels))

    @property
    def fingerprint(self) -> str:
        """Of the content, name apart."""
        return fingerprint([self.texts, self.labels, self.pooling, self.parts])

    def by_class(self, part: Part | None = None) -> dict[str, list[str]]:
        """Texts of each class, those of one part or all; order as above."""
        found: dict[str, list[str]] = {name: [] for name in self.classes}
        for number, (text, label) in enumerate(zip(self.texts, self.labels, strict=True)):
            if part is None or (self.parts is not None and self.parts[number] == part):
                found[label].append(text)
        return found

    def selected(self, indices: Iterable[int]) -> "LabelledSet":
        """The texts at these indices, in this order."""
        chosen = list(indices)
        parts = None if self.parts is None else [self.parts[index] for index in chosen]
        return replace(self, texts=[self.texts[index] for index in chosen], labels=[self.labels[index] for index in chosen], parts=parts)

    def without_duplicates(self) -> "LabelledSet":
        """The first of equal texts; none of those that stand in more than one class."""
        return self.selected(first_of_each([" ".join(text.split()) for text in self.texts], self.labels))

    def sample(self, per_class: int, seed: int) -> "LabelledSet":
        """Up to so many texts of each class, drawn at random, in the order that they have here."""
        labels = np.array(self.labels)
        generator = np.random.default_rng(whole_seed(seed))
        drawn = [generator.permutation(np.flatnonzero(labels == name))[:per_class] for name in self.classes]
        return self.selected(np.sort(np.concatenate(drawn)).tolist())

    def require(self, least: int = LEAST_TEXTS) -> "LabelledSet":
        """Itself. Raises TemporalLensError where a class has fewer texts."""
        counts = {name: len(texts) for name, texts in self.by_class().items()}
        smallest = min(counts, key=lambda name: counts[name])
        if counts[smallest] < least:
            count = f"{counts[smallest]} different {'text' if counts[smallest] == 1 else 'texts'}"
            raise TemporalLensError(f"class '{smallest}' of '{self.name}' has {count}: probing needs at least {least} of each class")
        return self


class Columns(NamedTuple):
    """What the columns of a table are called."""

    text: str = "text"
    label: str = "label"
    part: str | None = None  # the one that says `train` or `test`, where there is one


COLUMNS = Columns()


def first_of_each(keys: Sequence[Any], labels: Sequence[str]) -> list[int]:
    """Indices of the first of equal keys, without keys that stand under more than one label."""
    classes: dict[Any, set[str]] = {}
    for key, label in zip(keys, labels, strict=True):
        classes.setdefault(key, set()).add(label)
    seen: set[Any] = set()
    indices = []
    for index, key in enumerate(keys):
        if key not in seen and len(classes[key]) == 1:
            indices.append(index)
        seen.add(key)
    return indices


def read_folder(folder: Path, columns: Columns = COLUMNS, names: Sequence[str] | None = None) -> list[LabelledSet]:
    """The tables of a folder (not of folders in it), in order of name, or those in `names` (with or without their endings).

    Raises TemporalLensError when there is none, and for names and links that lead out of the folder.
    """
    folder = user_path(folder)
    if not folder.is_dir():
        raise TemporalLensError(f"{folder} is no folder; it should hold labelled sets, one table each")
    files = (path for path in folder.iterdir() if path.is_symlink() or not path.is_dir())
    tables = sorted(path for path in files if path.suffix.lower() in TABLES and not path.name.startswith("."))
    if names is not None:
        tables = [_named(folder, name, tables) for name in names]
    if not tables:
        raise TemporalLensError(f"the folder {folder} holds no labelled set: no file ends in {', '.join(TABLES)}")
    return [read_table(inside(folder, path.name), columns) for path in tables]


def _named(folder: Path, name: str, tables: Sequence[Path]) -> Path:
    inside(folder, name)
    found = next((path for path in tables if name in {path.name, path.stem}), None)
    if found is None:
        raise TemporalLensError(f"the folder {folder} holds no labelled set '{name}'{did_you_mean(name, [path.stem for path in tables])}")
    return found


def read_table(path: Path, columns: Columns = COLUMNS, pooling: Place = "mean") -> LabelledSet:
    """The labelled set in a .csv, .jsonl or .parquet file; labels may be words, numbers or truth values.

    Raises TemporalLensError, with file and line, for a missing column, an empty or missing text or label, an unknown part, bytes that
    are not UTF-8; for one class only, and for a class of fewer than LEAST_TEXTS different texts.
    """
    path = user_path(path)
    if path.suffix.lower() not in TABLES:
        raise TemporalLensError(f"{path} is not read as a labelled set: its name should end in {', '.join(TABLES)}")
    wanted = [column for column in columns if column is not None]
    texts, labels, parts = [], [], []
    for where, row in read_rows(path, wanted):
        texts.append(_text(row[columns.text], columns.text, where))
        labels.append(_label(row[columns.label], columns.label, where))
        if columns.part is not None:
            parts.append(_part(row[columns.part], columns.part, where))
    if not texts:
        raise TemporalLensError(f"{path} holds no labelled text: it has no rows")
    whole = LabelledSet(path.stem, texts, labels, pooling, parts or None)
    return (whole if parts else whole.without_duplicates()).require()


def _text(value: Any, column: str, where: str) -> str:
    if not isinstance(value, str) and value is not None:
        raise TemporalLensError(f"{where}: '{column}' holds {type(value).__name__}, it should be text")
    if value is None or not value.strip():
        raise TemporalLensError(f"{where}: '{column}' is empty; leave the row out, or give it a text")
    return value


def _label(value: Any, column: str, where: str) -> str:
    if not isinstance(value, str | int | float) or not str(value).strip() or (isinstance(value, float) and not math.isfinite(value)):
        raise TemporalLensError(f"{where}: '{column}' holds no label; give a word or a number, or leave the row out")
    return str(value)


def _part(value: Any, column: str, where: str) -> Part:
    if value not in get_args(Part):
        raise TemporalLensError(f"{where}: '{column}' is '{value}', it should be train or test")
    return cast(Part, value)
