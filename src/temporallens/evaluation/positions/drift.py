"""How a dictionary reconstructs beyond the context length that it was trained on (`docs/method.md`, "Drift").

Held-out documents are read again in longer rows, taken from them as the rows of training were, by the same model at the same layer. Other
positions hold other tokens, which are harder or easier: openings of texts are unlike the rest of them. So every token that stands beyond
the trained positions is read once more, in a row of the trained length in which it stands in the later half, and is compared with itself.
With E the squared errors and S the squares about the mean, both summed over tokens, `FVE = 1 - E / S`; L0 is the mean number of codes in
use. An octave ends where training ended, so that each lies on one side. A mask has nothing to say of later positions but what it says of
its last.
"""

from collections.abc import Iterator, Mapping
from itertools import groupby, islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from pydantic import Field

from temporallens.activations.clocks import TokenRow
from temporallens.activations.language.block_stack import Layer
from temporallens.activations.language.corpora import Corpus
from temporallens.activations.language.harvest import HarvestPolicy
from temporallens.activations.language.models import LanguageModel
from temporallens.activations.language.token_rows import RowShape, evenly_spaced, grouped, row_shape, token_rows
from temporallens.activations.manifest import is_store
from temporallens.activations.store import ActivationStore
from temporallens.cache import machine
from temporallens.defaults import own_defaults
from temporallens.dictionaries.base import Dictionary
from temporallens.errors import TemporalLensError
from temporallens.evaluation.bins import octaves
from temporallens.evaluation.document_errors import DocumentErrors
from temporallens.evaluation.heldout import errors_by_document
from temporallens.evaluation.identity import store_fingerprint
from temporallens.evaluation.model.origin import check_origin, harvest_of, model_of, text_of
from temporallens.evaluation.model.prefixes import read_rows
from temporallens.evaluation.section import Section, Subject
from temporallens.evaluation.statistics import Estimate, estimate_of, quotient, resampled_documents
from temporallens.files import fingerprint
from temporallens.settings import Seed, Settings
from temporallens.wording import Row, Table, estimated, span

FORMAT = "temporallens.drift/2"

TIMES = 4
"""So many times the trained context is read where the policy names no length, and the model takes it."""


class DriftPolicy(Settings):
    """The `drift` section of a study's evaluation."""

    context_length: int | None = Field(None, ge=4)
    """Tokens in the longer rows; None: four times those of training, or as many as the model takes."""
    documents: int = Field(32, ge=2)
    """Held-out documents at most, evenly spaced among those that have longer rows."""
    rows_per_document: int = Field(2, ge=1)
    """Longer rows of each document at most, evenly spaced through it, and no more than it has in the store. 64 rows of 512 tokens, with
    what stands beyond 128 once more in short rows, take a 135 M model one to two minutes on two cores as far as its middle; other
    dictionaries of the layer use the same activations."""
    resamples: int = Field(1000, ge=2)
    """Bootstrap resamples of the documents behind every interval."""
    seed: Seed = 0
    """Draws the resamples."""


class Octave(NamedTuple):
    """Tokens at positions `first` to `last`."""

    first: int
    last: int
    beyond: bool  # whether no trained row had these positions
    fve: Estimate  # n tokens
    l0: Estimate


class DriftMeasures(NamedTuple):
    """One dictionary on rows longer than those of its training."""

    trained: int  # positions that training knew
    context_length: int  # of the longer rows
    documents: int
    octaves: list[Octave]  # of the longer rows
    as_trained: Octave  # the tokens beyond, in rows of the trained length
    fve_change: Estimate  # of the tokens beyond, less the same tokens as trained; n tokens
    l0_change: Estimate


@own_defaults()
def measure_drift(
    dictionary: Dictionary,
    model: str,
    layer: Layer,
    store: ActivationStore,
    held_out: Int[np.ndarray, " n"],
    policy: DriftPolicy,
    cache: Path,
) -> DriftMeasures:
    """Measure `dictionary`, trained on `layer` of `model`, by octaves on longer rows of held-out documents of `store`; the activations of
    these rows are kept in `cache`.

    Raises TemporalLensError when dictionary, store and model do not belong together, where the model takes no longer rows, positions are
    no indices in the row, or no document is long enough.
    """
    check_origin(dictionary, store, model, layer)
    if (clock := store.manifest.description.policies["clock"]) != "index":
        raise TemporalLensError(f"drift goes by the index in the row, and {store.folder} has the clock '{clock}': leave drift out")
    read, trained = longer_store(store, held_out, policy, cache), store.positions
    table, documents = read.sequence_table, np.unique(read.sequence_table.document)
    resamples = resampled_documents(len(documents), policy.resamples, np.random.default_rng(policy.seed))
    weights = np.concatenate([np.ones((1, len(documents))), resamples])
    long, short = (
        _Errors(errors_by_document(dictionary, read, own, cache), weights[:, np.isin(documents, table.document[own])])
        for own in longer_and_again(read, trained)
    )
    half = later_half(trained)
    beyond, before = long.sums(trained, read.positions), short.sums(half, trained)
    octaves = [_octave(*run, run[0] >= trained, long.sums(*run)) for run in runs_of(trained, read.positions)]
    return DriftMeasures(
        trained=trained,
        context_length=read.positions,
        documents=len(documents),
        octaves=[octave for octave in octaves if octave.fve.n],
        as_trained=_octave(half, trained, False, before),
        fve_change=_estimate(beyond.fve - before.fve, beyond.tokens),
        l0_change=_estimate(beyond.l0 - before.l0, beyond.tokens),
    )


def longer_store(store: ActivationStore, held_out: Int[np.ndarray, " n"], policy: DriftPolicy, cache: Path) -> ActivationStore:
    """Held-out documents in longer rows, and the tokens that stand beyond the trained positions once more in rows that are no longer than
    those of training, all read as the harvest of `store` would have read them."""
    asked = policy.model_dump(include={"context_length", "documents", "rows_per_document"})
    source = {"kind": "longer", "format": FORMAT, "store": store_fingerprint(store), "entries": held_out.tolist(), **asked, **machine()}
    folder = cache / "drift" / fingerprint(source)[:32]
    if is_store(folder):
        return ActivationStore(folder)
    harvest = harvest_of(store)
    network = model_of(store, harvest)
    longer = harvest.model_copy(update={"context_length": _length(policy, harvest, network)})
    rows = _rows(store, held_out, longer, network, policy)
    description = store.manifest.description
    policies = {**description.policies, "context_length": longer.context_length}
    description = description.model_copy(update={"source": source, "policies": policies, "positions": longer.context_length})
    return read_rows(folder, description, network, longer, rows, "longer rows")


def longer_and_again(read: ActivationStore, trained: int) -> tuple[Int[np.ndarray, " l"], Int[np.ndarray, " s"]]:
    """Entries of the longer rows of such a store, and of the rows that hold the same tokens at trained positions."""
    table = read.sequence_table
    longer = np.bincount(table.whole, weights=table.length)[table.whole] > trained
    return np.flatnonzero(longer), np.flatnonzero(~longer)


def _length(policy: DriftPolicy, harvest: HarvestPolicy, network: LanguageModel) -> int:
    most, wanted = network.context_length, policy.context_length or TIMES * harvest.context_length
    length = wanted if most is None or policy.context_length else min(wanted, most)
    if length <= harvest.context_length:
        limit = "" if most is None else f", and {network.title} takes at most {most}"
        raise TemporalLensError(
            f"rows of {length} tokens are no longer than those of training, {harvest.context_length}{limit}: leave drift out"
        )
    return length


def _rows(
    store: ActivationStore, held_out: Int[np.ndarray, " n"], longer: HarvestPolicy, network: LanguageModel, policy: DriftPolicy
) -> list[TokenRow]:
    """Longer rows of held-out documents, each followed by what it holds in rows of the trained length."""
    trained, shape = store.positions, row_shape(network, longer.context_length, longer.bos, longer.rows)
    rows = token_rows(network, _texts(store, held_out, longer, network, policy.documents), shape, longer.rows, starts=False)
    long_enough = [row for row in rows if len(row.tokens) > trained]
    documents = [list(group) for _, group in groupby(long_enough, key=lambda row: row.document[0])]
    if len(documents) < 2:
        raise TemporalLensError(
            f"{len(documents)} of the held-out documents of {store.folder} give rows of more than {trained} tokens, the length of trained "
            "rows: drift needs two that do"
        )
    most = min(policy.rows_per_document, longer.rows_per_document or policy.rows_per_document)
    spread = [document[index] for document in documents for index in evenly_spaced(len(document), most)]
    return [row for long in spread for row in (long, *as_trained(long, shape, trained))]


def as_trained(row: TokenRow, shape: RowShape, trained: int) -> Iterator[TokenRow]:
    """Every token of a longer row that stands beyond the trained positions, in the later half of a row of so many; the half before it
    holds what goes before in the text."""
    opening, closing = int(shape.opening is not None), int(shape.closing is not None)
    half, length = trained - later_half(trained), len(row.tokens)
    for start in range(half, length - closing - trained + half, max(half - closing, 1)):
        text = np.arange(start + opening, min(start + trained, length) - closing)
        chosen = np.r_[0:opening, text, length - closing : length]
        yield row.at(chosen)


def later_half(trained: int) -> int:
    """The first of the later half of the trained positions."""
    return trained - trained // 2


def _texts(store: ActivationStore, held_out: Int[np.ndarray, " n"], harvest: HarvestPolicy, network: LanguageModel, most: int) -> list[str]:
    """Held-out documents that are longer than a trained row; of packed ones, any."""
    numbers = set(store.documents_of(held_out).tolist())
    read = enumerate(islice(_documents(text_of(store, harvest, "drift"), network), max(numbers) + 1))  # a harvest may have stopped early
    own = [document for number, document in read if number in numbers]
    long_enough = [text for text, length in own if length > store.positions or harvest.rows == "packed"]
    return [long_enough[index] for index in evenly_spaced(len(long_enough), most)]


def _documents(text: Corpus, network: LanguageModel) -> Iterator[tuple[str, int]]:
    """Documents with their numbers of tokens, counted as a store counts them: those without a token have no number."""
    for group in grouped(text):
        for document, tokens in zip(group, network.encode_all(group), strict=True):
            if tokens:
                yield document, len(tokens)


def runs_of(trained: int, positions: int) -> list[tuple[int, int]]:
    """Octaves of the trained positions, and beyond them: first position and the one after the last."""
    beyond, first = [], trained
    while first < positions:
        beyond.append((first, min(2 * first, positions)))
        first *= 2
    return [*octaves(trained), *beyond]


class _Sums(NamedTuple):
    """Of a run of positions, as measured and in every resample."""

    fve: Float[np.ndarray, " B1"]
    l0: Float[np.ndarray, " B1"]
    tokens: int


class _Errors(NamedTuple):
    """Of some rows, with how often each of their documents counts: once, and in every resample."""

    errors: DocumentErrors
    weights: Float[np.ndarray, "B1 D"]

    def sums(self, first: int, end: int) -> _Sums:
        errors = (self.errors.tokens, self.errors.error, self.errors.square, self.errors.active)
        tokens, error, square, active = (values[:, first:end].sum(1) for values in errors)
        fve = 1 - quotient(self.weights @ error, self.weights @ square)
        return _Sums(fve, quotient(self.weights @ active, self.weights @ tokens), int(tokens.sum()))


def _octave(first: int, end: int, beyond: bool, sums: _Sums) -> Octave:
    return Octave(first, end - 1, beyond, _estimate(sums.fve, sums.tokens), _estimate(sums.l0, sums.tokens))


def _estimate(values: Float[np.ndarray, " B1"], tokens: int) -> Estimate:
    return estimate_of(float(values[0]), values[1:], tokens)


def _of_subject(subject: Subject, policy: DriftPolicy) -> DriftMeasures:
    model, layer = subject.source["model"], subject.source["layer"]
    return measure_drift(subject.dictionary, model, layer, subject.store, subject.held_out, policy, subject.cache)


def tables(found: Mapping[str, DriftMeasures]) -> list[Table]:
    """FVE and L0 by octave, and how they change beyond where training ended."""
    rows = []
    for head, measured in found.items():
        rows += [
            Row(f"{head}: {span(octave.first, octave.last)}{' (beyond)' if octave.beyond else ''}", _cells(octave.fve, octave.l0))
            for octave in measured.octaves
        ]
        again = measured.as_trained
        rows.append(Row(f"{head}: the tokens beyond at {span(again.first, again.last)}", _cells(again.fve, again.l0)))
        rows.append(Row(f"{head}: beyond, less the same tokens there", _cells(measured.fve_change, measured.l0_change), summary=True))
    first = next(iter(found.values()))
    note = (
        f"Held-out documents in rows of up to {first.context_length:,} tokens; trained rows had positions up to {first.trained - 1:,}. "
        "What stands beyond is read once more in rows of the trained length. Intervals are over documents."
    )
    return [Table("Beyond the trained context", ["dictionary: positions", "tokens", "FVE", "L0"], rows, note)]


def _cells(fve: Estimate, l0: Estimate) -> list[str]:
    return [f"{fve.n:,}", estimated(fve, 4), estimated(l0, 1)]


SECTION = Section(
    name="drift",
    policy=DriftPolicy,
    version=2,
    measure=_of_subject,
    measures=DriftMeasures,
    reads_model=True,
    tables=tables,
)
