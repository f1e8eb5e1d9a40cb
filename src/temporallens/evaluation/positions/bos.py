"""What rests on the token that opens a row: the same rows are read as they were harvested, without it, and with another token in its place.

Held-out rows are run through the model three times. `harvested` is the control; `none` leaves BOS (CLS) out, so that every token stands
one place earlier and the first of the text comes to open its row; `other` has an ordinary token of the text at its place. Of a model that
looks back only, the first `tokens` of a row are read: nothing behind them reaches them. What opens a row is left out of all figures, as it
is of every other measurement.

A feature is tied to the first positions where more than half of its firings, in rows as harvested, are at positions 1 to 3. With r the
firings of all tied features per token,

    there    r at positions 1 to 3 of a reading       / r at positions 1 to 3 as harvested
    tokens   r on the tokens that stood at 2 and 3    / r on these tokens as harvested

so that features which follow the place keep `there`, those that follow the text keep `tokens` where it moves, and those that rest on BOS
keep neither. In use at a place are the features that fire on any of its tokens, of which every reading has equally many. Chance turns the
places of every row in a circle. Intervals are by bootstrap over documents.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int
from pydantic import Field, JsonValue

from temporallens.activations.clocks import TokenMarks, TokenRow
from temporallens.activations.manifest import is_store
from temporallens.activations.store import ActivationStore
from temporallens.cache import machine
from temporallens.defaults import own_defaults
from temporallens.dictionaries.base import Dictionary
from temporallens.errors import TemporalLensError
from temporallens.evaluation.clusters.profiles import rotated
from temporallens.evaluation.document_errors import DocumentErrors
from temporallens.evaluation.firings import Firings
from temporallens.evaluation.heldout import errors_by_document, find_firings
from temporallens.evaluation.identity import store_fingerprint
from temporallens.evaluation.model.origin import TokenRows, choose_rows, harvest_of, model_of
from temporallens.evaluation.model.prefixes import read_rows, row_of
from temporallens.evaluation.positions.sinks import EARLY, MAJORITY
from temporallens.evaluation.section import Section, Subject
from temporallens.evaluation.statistics import Estimate, estimate_of, quotient, resampled_documents
from temporallens.files import fingerprint
from temporallens.settings import Seed, Settings
from temporallens.wording import Row, Table, estimated, fixed, span

FORMAT = "temporallens.bos/1"

Opening = Literal["harvested", "none", "other"]
OPENINGS: dict[Opening, str] = {"harvested": "as harvested", "none": "without BOS", "other": "another token for BOS"}
"""How rows are opened, in words."""

OTHERS, CHANCE, RESAMPLES = range(3)
"""Purposes of the generators."""


class BosPolicy(Settings):
    """The `bos` section of a study's evaluation."""

    rows: int = Field(256, ge=2)
    """Held-out rows that are read, evenly spaced: so many tokens has each position."""
    tokens: int = Field(16, ge=6)
    """Tokens of each row; encoders read whole rows."""
    least: int = Field(8, ge=2)
    """Firings that a feature needs, to be asked whether it is tied to the first positions."""
    draws: int = Field(20, ge=1, le=10_000)
    """Circular shifts behind the number that chance gives."""
    resamples: int = Field(400, ge=20, le=100_000)
    """Bootstrap resamples of the documents behind every interval."""
    seed: Seed = 0
    """Of the tokens that take the place of BOS, shifts and resamples."""

    def generator(self, purpose: int) -> np.random.Generator:
        return np.random.default_rng((self.seed, purpose))


class OpenedPlace(NamedTuple):
    """Tokens at positions `first` to `last` of a reading."""

    first: int
    last: int
    fve: Estimate  # n tokens
    l0: Estimate
    in_use: int  # features that fire there


class OpenedReading(NamedTuple):
    """The rows, opened in one way."""

    opening: Opening
    places: list[OpenedPlace]
    there: Estimate  # firings of tied features at positions 1 to 3, in units of those as harvested; n of these
    tokens: Estimate  # the same on the tokens that stood at 2 and 3


class BosMeasures(NamedTuple):
    """One dictionary on rows that are opened in three ways."""

    rows: int
    documents: int
    asked: int  # features that fire often enough
    tied: int  # to positions 1 to 3, in rows as harvested
    chance: float  # mean number over the null
    readings: list[OpenedReading]


class _Read(NamedTuple):
    """What a dictionary does on one reading."""

    firings: Firings
    errors: DocumentErrors


@own_defaults()
def measure_bos(
    dictionary: Dictionary, store: ActivationStore, held_out: Int[np.ndarray, " n"], policy: BosPolicy, cache: Path
) -> BosMeasures:
    """Measure `dictionary` on held-out rows of `store` that are opened in three ways; their activations are kept in `cache`.

    Raises TemporalLensError where rows do not open with BOS, or positions are no indices in the row.
    """
    _check(store)
    chosen = choose_rows(store, held_out, policy.rows, EARLY + 3, "bos")
    read = {opening: _read(dictionary, opened, cache) for opening, opened in _opened_stores(store, held_out, chosen, policy, cache).items()}
    own = read["harvested"].firings
    numbers = np.unique(own.document)
    resamples = resampled_documents(len(numbers), policy.resamples, policy.generator(RESAMPLES))
    weights = np.concatenate([np.ones((1, len(numbers))), resamples])
    asked, tied = own.counts >= policy.least, _tied(own, own.index, policy.least)
    generator = policy.generator(CHANCE)
    chance = [_tied(own, rotated(own.index, own.stretch, generator), policy.least).sum() for _ in range(policy.draws)]
    rates = _Rates(own, tied, numbers, weights)
    readings = [
        OpenedReading(
            opening=opening,
            places=_places(one, weights),
            there=rates.there(one.firings),
            tokens=rates.on_tokens(one.firings, moved=int(opening == "none")),
        )
        for opening, one in read.items()
    ]
    return BosMeasures(len(chosen.length), len(numbers), int(asked.sum()), int(tied.sum()), float(np.mean(chance)), readings)


def _check(store: ActivationStore) -> None:
    policies = store.manifest.description.policies
    if not policies["bos"]:
        raise TemporalLensError(f"rows of {store.folder} do not open with BOS, so nothing rests on it: leave bos out")
    if policies["clock"] != "index":
        raise TemporalLensError(f"bos goes by the index in the row, and {store.folder} has the clock '{policies['clock']}': leave bos out")


# The readings


def _opened_stores(
    store: ActivationStore, held_out: Int[np.ndarray, " n"], chosen: TokenRows, policy: BosPolicy, cache: Path
) -> dict[Opening, ActivationStore]:
    """The rows opened in each way, read as the harvest of `store` read them, or out of the cache."""
    harvest = harvest_of(store)
    asked: dict[str, JsonValue] = {**policy.model_dump(include={"rows", "tokens", "seed"})}
    found: dict[Opening, ActivationStore] = {}
    for opening, words in OPENINGS.items():
        source: dict[str, JsonValue] = {"kind": "opened", "format": FORMAT, "store": store_fingerprint(store), "opening": opening}
        source |= {"entries": held_out.tolist(), **asked, **machine()}
        folder = cache / "bos" / fingerprint(source)[:32]
        if is_store(folder):
            found[opening] = ActivationStore(folder)
            continue
        network = model_of(store, harvest)
        rows = _first_tokens(chosen, None if network.is_encoder else policy.tokens)
        opened = _opened(rows, opening, TokenMarks.of(network.tokenizer), policy.generator(OTHERS))
        description = store.manifest.description.model_copy(update={"source": source})
        found[opening] = read_rows(folder, description, network, harvest, opened, f"rows {words}")
    return found


def _first_tokens(chosen: TokenRows, tokens: int | None) -> list[TokenRow]:
    rows = [row_of(chosen.of(part)) for part in chosen.parts(1)]
    return [row.at(np.arange(len(row.tokens))[:tokens]) for row in rows]


def _opened(rows: Sequence[TokenRow], opening: Opening, marks: TokenMarks, generator: np.random.Generator) -> list[TokenRow]:
    if opening == "none":
        return [row.at(np.arange(1, len(row.tokens))) for row in rows]
    if opening == "harvested":
        return list(rows)
    text = np.concatenate([row.tokens for row in rows])
    drawn = generator.choice(text[~marks.special[text]], len(rows))
    return [row._replace(tokens=np.append(token, row.tokens[1:])) for row, token in zip(rows, drawn, strict=True)]


def _read(dictionary: Dictionary, opened: ActivationStore, cache: Path) -> _Read:
    entries = np.arange(opened.sequences)
    return _Read(find_firings(dictionary, opened, entries, cache), errors_by_document(dictionary, opened, entries, cache))


# What a dictionary does on them


def _tied(firings: Firings, index: Int[np.ndarray, " N"], least: int) -> Bool[np.ndarray, " F"]:
    """Features more than half of whose firings are at the first positions."""
    early = np.bincount(firings.feature[_is_early(index)[firings.row]], minlength=firings.features)
    return np.asarray((firings.counts >= least) & (early > MAJORITY * firings.counts))


def _is_early(index: Int[np.ndarray, " N"]) -> Bool[np.ndarray, " N"]:
    return np.asarray((index >= 1) & (index <= EARLY))


def _places(read: _Read, weights: Float64[np.ndarray, "B D"]) -> list[OpenedPlace]:
    """Each of the first positions, and all that are behind them."""
    firings, errors = read.firings, read.errors
    last = int(firings.index.max())
    found = []
    for first, end in [*((position, position + 1) for position in range(1, EARLY + 1)), (EARLY + 1, last + 1)]:
        columns = (errors.tokens, errors.error, errors.square, errors.active)
        tokens, error, square, active = (weights @ column[:, first:end].sum(1) for column in columns)
        count = int(tokens[0])
        inside = (firings.index[firings.row] >= first) & (firings.index[firings.row] < end)
        found.append(
            OpenedPlace(
                first=first,
                last=end - 1,
                fve=_estimate(1 - quotient(error, square), count),
                l0=_estimate(quotient(active, tokens), count),
                in_use=len(np.unique(firings.feature[inside])),
            )
        )
    return found


class _Rates:
    """Firings of tied features per token, in units of those as harvested."""

    def __init__(
        self, own: Firings, tied: Bool[np.ndarray, " F"], documents: Int[np.ndarray, " D"], weights: Float64[np.ndarray, "B D"]
    ) -> None:
        self._own, self._tied, self._documents, self._weights = own, tied, documents, weights

    def there(self, firings: Firings) -> Estimate:
        """At the first positions."""
        return self._against(firings, _is_early(firings.index), _is_early(self._own.index))

    def on_tokens(self, firings: Firings, moved: int) -> Estimate:
        """On the tokens that stand at the first positions but one, which are there too where all stand `moved` places earlier."""
        stood = (self._own.index >= 2) & (self._own.index <= EARLY)
        return self._against(firings, (firings.index >= 2 - moved) & (firings.index <= EARLY - moved), stood)

    def _against(self, firings: Firings, rows: Bool[np.ndarray, " N"], own_rows: Bool[np.ndarray, " M"]) -> Estimate:
        rate, own = self._rate(firings, rows), self._rate(self._own, own_rows)
        count = int((self._tied[self._own.feature] & own_rows[self._own.row]).sum())
        return _estimate(quotient(rate, own), count)

    def _rate(self, firings: Firings, rows: Bool[np.ndarray, " N"]) -> Float64[np.ndarray, " B"]:
        document = np.searchsorted(self._documents, firings.document)
        fired = self._tied[firings.feature] & rows[firings.row]
        numbers = len(self._documents)
        found = np.bincount(document[firings.row[fired]], minlength=numbers)
        return quotient(self._weights @ found, self._weights @ np.bincount(document[rows], minlength=numbers))


def _estimate(values: Float64[np.ndarray, " B"], n: int) -> Estimate:
    return estimate_of(float(values[0]), values[1:], n)


def _of_subject(subject: Subject, policy: BosPolicy) -> BosMeasures:
    return measure_bos(subject.dictionary, subject.store, subject.held_out, policy, subject.cache)


def tables(found: Mapping[str, BosMeasures]) -> list[Table]:
    """How the first positions do, and what becomes of features that are tied to them, by what opens the row."""
    places, tied = [], []
    for head, measured in found.items():
        for reading in measured.readings:
            name = f"{head}: {OPENINGS[reading.opening]}"
            cells = [[estimated(place.fve), estimated(place.l0, 1), f"{place.in_use:,}"] for place in reading.places]
            places.append(Row(name, [cell for triple in cells for cell in triple]))
            number = f"{measured.tied:,} of {measured.asked:,} ({fixed(measured.chance, 1)})"
            tied.append(Row(name, [number, estimated(reading.there, 2), estimated(reading.tokens, 2)]))
    at = [span(place.first, place.last) for measured in found.values() for place in measured.readings[0].places][: EARLY + 1]
    columns = ["dictionary: row opened", *(f"{what} at {where}" for where in at for what in ("FVE", "L0", "features in use"))]
    note = (
        "Of the first positions each has equally many tokens in every reading. Without BOS the first token of the text opens the row and "
        "is left out, so that the token at a position is the one that stood one place further on."
    )
    tied_note = (
        "Tied are features more than half of whose firings are at positions 1 to 3. Their firings per token, in units of those as "
        "harvested: at these positions, and on the tokens that stood at positions 2 and 3, wherever they stand now."
    )
    tied_columns = ["dictionary: row opened", "tied to positions 1 to 3 (by chance)", "firings there", "firings on the same tokens"]
    return [
        Table("What rests on BOS: the first positions", columns, places, note),
        Table("What rests on BOS: features of the first positions", tied_columns, tied, tied_note),
    ]


SECTION = Section(
    name="bos",
    policy=BosPolicy,
    version=1,
    measure=_of_subject,
    measures=BosMeasures,
    tables=tables,
    reads_model=True,
)
