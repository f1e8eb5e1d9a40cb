"""SAEBench's eight labelled sets, built from the hub's data sets as its `sparse_probing` builds them, to the text and its place.

Every set gives `train_size // 2` training and `test_size // 2` test texts of each class. Biographies (three sets of professions) and
reviews by product are balanced on gender and rating: half of a class's texts from each value. Reviews by rating and news are plain
samples. Code keeps files longer than 534 characters and drops their first 150, where licences stand; languages are the first sentences
of one side of a Europarl pair. Draws are NumPy's and Python's frozen generators, seeded for each draw and each set as they are there.
Duplicates stay: the parts are SAEBench's own. Nothing that a data set's folder brings along is run: code is read from its Parquet files.
"""

import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
from huggingface_hub.errors import HTTPError

from temporallens.activations.language.shipped import first_line
from temporallens.errors import TemporalLensError, did_you_mean
from temporallens.evaluation.texts.labelled import LabelledSet, Part

TRAIN_SIZE, TEST_SIZE, SEED = 4000, 1000, 42
"""SAEBench's defaults; sizes are of a binary task, both classes together."""

LICENCE_CHARACTERS = 150
CODE_CHARACTERS = 384
"""Characters that a file of code must have beyond the licence: 128 tokens of 3."""

Texts = dict[str, list[str]]
Row = dict[str, Any]


@dataclass(frozen=True)
class _Sizes:
    """How many texts are drawn, and by which seed."""

    train: int  # of a binary task
    test: int
    seed: int

    @property
    def parts(self) -> list[tuple[Part, int]]:
        return [("train", self.train), ("test", self.test)]


@dataclass(frozen=True)
class _HubSet:
    """How one set is built."""

    classes: tuple[str, ...]
    build: Callable[[tuple[str, ...], _Sizes], dict[Part, Texts]]


def hub_set(name: str, train_size: int = TRAIN_SIZE, test_size: int = TEST_SIZE, seed: int = SEED) -> LabelledSet:
    """The set that SAEBench calls `name`: classes in its order, the training texts of all classes before the test texts.

    Raises TemporalLensError for an unknown name, where the hub is out of reach, and where a class has too few texts for the sizes.
    """
    if name not in HUB_SETS:
        raise TemporalLensError(f"SAEBench has no labelled set '{name}'{did_you_mean(name, HUB_SETS)}")
    chosen = HUB_SETS[name]
    built = chosen.build(chosen.classes, _Sizes(train_size, test_size, seed))
    texts, labels, parts = [], [], []
    for part, found in built.items():
        for label in chosen.classes:
            texts += found[label]
            labels += [label] * len(found[label])
            parts += [part] * len(found[label])
    return LabelledSet(name, texts, labels, parts=parts)


def _rows(
    path: str, columns: Sequence[str], configuration: str | None = None, *, split: str = "train", files: str | None = None
) -> Iterator[Row]:
    """Stream one split of a data set from the hub, or the Parquet `files` of one."""
    try:
        from datasets import load_dataset
    except ImportError as error:
        remedy = "needs the package datasets: pip install 'temporallens[hub]'"
        raise TemporalLensError(f"reading the labelled set {path} from the hub {remedy}") from error
    try:
        if files is None:
            rows = load_dataset(path, configuration, split=split, streaming=True)
        else:
            rows = load_dataset("parquet", data_files=files, split=split, streaming=True)
        for row in rows:
            missing = next((column for column in columns if column not in row), None)
            if missing is not None:
                raise TemporalLensError(f"the hub data set {path} has no column '{missing}'{did_you_mean(missing, row)}")
            yield row
    except (OSError, ValueError, RuntimeError, HTTPError) as error:
        raise TemporalLensError(f"the hub data set {path} cannot be read: {first_line(error)}") from error


def _balanced(path: str, columns: tuple[str, str, str], classes: tuple[str, ...], sizes: _Sizes) -> dict[Part, Texts]:
    """For each class as many texts of either value of a second column."""
    text, label, balance = columns
    built: dict[Part, Texts] = {}
    for part, size in sizes.parts:
        cells: dict[str, dict[Any, list[str]]] = defaultdict(lambda: defaultdict(list))
        for row in _rows(path, columns, split=part):
            if str(row[label]) in classes:
                cells[str(row[label])][row[balance]].append(row[text])
        built[part] = {}
        for name in classes:
            groups = cells[name]
            if len(groups) < 2:
                raise TemporalLensError(f"class '{name}' of {path} ({part}) has texts of one {balance} only: it cannot be balanced")
            drawn = [_sample(groups[value], size // 4, sizes.seed, f"class '{name}' of {path} ({part})") for value in sorted(groups)]
            built[part][name] = [each for group in drawn for each in group]
    return built


def _sampled(path: str, columns: tuple[str, str], classes: tuple[str, ...], sizes: _Sizes) -> dict[Part, Texts]:
    """For each class a plain sample of its texts."""
    text, label = columns
    built: dict[Part, Texts] = {}
    for part, size in sizes.parts:
        found: Texts = defaultdict(list)
        for row in _rows(path, columns, split=part):
            if str(row[label]) in classes:
                found[str(row[label])].append(row[text])
        built[part] = {name: _sample(found[name], size // 2, sizes.seed, f"class '{name}' of {path} ({part})") for name in classes}
    return built


def _sample(texts: list[str], size: int, seed: int, what: str) -> list[str]:
    """As pandas draws without replacement from a seed."""
    if len(texts) < size:
        raise TemporalLensError(f"{what} has {len(texts)} texts where {size} are to be drawn; ask for smaller sizes")
    indices = np.random.RandomState(seed).choice(len(texts), size, replace=False)
    return [texts[index] for index in indices]


def _code(path: str, classes: tuple[str, ...], sizes: _Sizes) -> dict[Part, Texts]:
    """The first files of each language that are long enough, without the characters in which licences stand."""
    enough = sizes.train // 2 + sizes.test // 2
    found: Texts = defaultdict(list)
    for row in _rows(path, ["path"], files=f"hf://datasets/{path}/data/train-*.parquet"):
        language = next((name for name in classes if row["path"].endswith(ENDINGS[name])), None)
        code = row.get("code") or row.get("content") or ""  # what the Parquet files and the data set's own reader call it
        if language is None or len(code) <= LICENCE_CHARACTERS + CODE_CHARACTERS:
            continue
        found[language].append(code[LICENCE_CHARACTERS:])
        if all(len(found[name]) > enough for name in classes):
            break
    return _divided(path, {name: found[name] for name in classes}, sizes)


def _translations(path: str, pairs: dict[str, str], classes: tuple[str, ...], sizes: _Sizes) -> dict[Part, Texts]:
    """The first sentences of each language, from one pair in which it stands."""
    enough = sizes.train // 2 + sizes.test // 2
    found = {}
    for language in classes:
        first = islice(_rows(path, ["translation"], pairs[language]), enough + 1)
        found[language] = [row["translation"][language] for row in first]
    return _divided(path, found, sizes)


def _divided(path: str, texts: Texts, sizes: _Sizes) -> dict[Part, Texts]:
    """Shuffled class by class with one generator; training texts first, then test texts."""
    train, test = sizes.train // 2, sizes.test // 2
    generator = random.Random(sizes.seed)
    for name, of_class in texts.items():
        if len(of_class) < train + test:
            raise TemporalLensError(
                f"class '{name}' of {path} has {len(of_class)} texts where {train + test} are needed; ask for smaller sizes"
            )
        generator.shuffle(of_class)
    return {
        "train": {name: of_class[:train] for name, of_class in texts.items()},
        "test": {name: of_class[train : train + test] for name, of_class in texts.items()},
    }


BIOGRAPHIES, REVIEWS = "LabHC/bias_in_bios", "canrager/amazon_reviews_mcauley_1and5"
CODE, NEWS, EUROPARL = "codeparrot/github-code", "fancyzhx/ag_news", "Helsinki-NLP/europarl"
BY_GENDER = partial(_balanced, BIOGRAPHIES, ("hard_text", "profession", "gender"))
PAIRS = {"en": "en-fr", "fr": "fr-it", "de": "de-en", "es": "es-fr", "nl": "nl-pt"}
ENDINGS = {
    "C": (".c", ".h"),
    "Python": (".py",),
    "HTML": (".html",),
    "Java": (".java",),
    "PHP": (".php", ".php3", ".php4", ".php5", ".phps", ".phpt"),
}
"""Of file names, by which the data set tells its languages."""

HUB_SETS = {
    f"{BIOGRAPHIES}_class_set1": _HubSet(("0", "1", "2", "6", "9"), BY_GENDER),
    f"{BIOGRAPHIES}_class_set2": _HubSet(("11", "13", "14", "18", "19"), BY_GENDER),
    f"{BIOGRAPHIES}_class_set3": _HubSet(("20", "21", "22", "25", "26"), BY_GENDER),
    REVIEWS: _HubSet(("1", "2", "3", "5", "6"), partial(_balanced, REVIEWS, ("text", "category", "rating"))),
    f"{REVIEWS}_sentiment": _HubSet(("1.0", "5.0"), partial(_sampled, REVIEWS, ("text", "rating"))),
    CODE: _HubSet(("C", "Python", "HTML", "Java", "PHP"), partial(_code, CODE)),
    NEWS: _HubSet(("0", "1", "2", "3"), partial(_sampled, NEWS, ("text", "label"))),
    EUROPARL: _HubSet(("en", "fr", "de", "es", "nl"), partial(_translations, EUROPARL, PAIRS)),
}
"""SAEBench's eight sets in its order, with the classes that it chooses, in their order."""
