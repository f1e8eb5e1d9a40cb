"""How a dictionary reconstructs beyond the context length that it was trained on (`docs/method.md`, "Drift").

The first tokens of held-out documents are read again in one longer row each, by the same model at the same layer. With E the squared
errors and S the squares about the mean, both summed over the tokens of an octave of positions, `FVE = 1 - E / S`; L0 is the mean number of
codes in use. An octave ends where training ended, so that each lies on one side. A mask has nothing to say of later positions but what it
says of its last.
"""

from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from pydantic import Field

from temporallens.activations.language.block_stack import Layer
from temporallens.activations.language.corpora import Corpus, open_corpus
from temporallens.activations.language.harvest import HarvestPolicy, harvest_policy
from temporallens.activations.language.models import LanguageModel
from temporallens.activations.language.token_rows import evenly_spaced, grouped
from temporallens.activations.store import ActivationStore
from temporallens.defaults import own_defaults
from temporallens.dictionaries.base import Dictionary
from temporallens.errors import TemporalLensError
from temporallens.evaluation.bins import octaves
from temporallens.evaluation.document_errors import DocumentErrors
from temporallens.evaluation.heldout import HeldOut
from temporallens.evaluation.identity import store_fingerprint
from temporallens.evaluation.model.origin import check_origin, check_unchanged, harvest_of
from temporallens.evaluation.model.passes import open_model
from temporallens.evaluation.section import Section, Subject
from temporallens.evaluation.statistics import Estimate, estimate_of, quotient, resampled_documents
from temporallens.files import fingerprint
from temporallens.settings import Seed, Settings
from temporallens.wording import Row, Table, estimated, span

GIVEN = "given"
"""What a store calls the text that it was handed in Python."""

TIMES = 4
"""So many times the trained context is read where the policy names no length, and the model takes it."""


class DriftPolicy(Settings):
    """The `drift` section of a study's evaluation."""

    context_length: int | None = Field(None, ge=4)
    """Tokens in the longer rows; None: four times those of training, or as many as the model takes."""
    documents: int = Field(32, ge=2)
    """Held-out documents at most, evenly spaced among those that are longer than a trained row. 32 rows of 512 tokens take a 135 M
    model about half a minute on two cores as far as its middle; other dictionaries of the layer use the same activations."""
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
    octaves: list[Octave]
    fve_change: Estimate  # beyond the trained positions less their last octave; n tokens beyond
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
    longer, trained = longer_store(store, held_out, policy, cache), store.positions
    seen = HeldOut(longer, np.arange(longer.sequences), cache)
    errors = seen.errors(seen.encoded(dictionary))
    documents = len(errors.tokens)
    resamples = resampled_documents(documents, policy.resamples, np.random.default_rng(policy.seed))
    weights = np.concatenate([np.ones((1, documents)), resamples])
    runs = _runs(trained, longer.positions)
    found = {run: _sums(errors, weights, *run) for run in (*runs, (trained, longer.positions))}
    last, beyond = found[max(run for run in runs if run[1] <= trained)], found[trained, longer.positions]
    return DriftMeasures(
        trained=trained,
        context_length=longer.positions,
        documents=documents,
        octaves=[
            Octave(first, end - 1, first >= trained, _estimate(sums.fve, sums.tokens), _estimate(sums.l0, sums.tokens))
            for (first, end), sums in ((run, found[run]) for run in runs)
            if sums.tokens
        ],
        fve_change=_estimate(beyond.fve - last.fve, beyond.tokens),
        l0_change=_estimate(beyond.l0 - last.l0, beyond.tokens),
    )


def longer_store(store: ActivationStore, held_out: Int[np.ndarray, " n"], policy: DriftPolicy, cache: Path) -> ActivationStore:
    """The first tokens of held-out documents in one longer row each, as the harvest of `store` would have read them."""
    key = {"store": store_fingerprint(store), "entries": held_out.tolist(), **policy.model_dump(include={"context_length", "documents"})}
    folder = cache / "drift" / fingerprint(key)[:32]
    if (folder / "manifest.json").exists():
        return ActivationStore(folder)
    harvest = harvest_of(store)
    network = open_model(harvest.model, harvest.layer, harvest.compute_dtype, harvest.revision)
    check_unchanged(network, store)
    length = _length(policy, harvest, network)
    texts = _texts(store, held_out, harvest, network, policy.documents)
    as_read = {"context_length": length, "rows": "document", "rows_per_document": None, "max_tokens": None}
    return harvest_policy([harvest.model_copy(update=as_read)], [folder], texts)[0]


def _length(policy: DriftPolicy, harvest: HarvestPolicy, network: LanguageModel) -> int:
    most, wanted = network.context_length, policy.context_length or TIMES * harvest.context_length
    length = wanted if most is None or policy.context_length else min(wanted, most)
    if length <= harvest.context_length:
        limit = "" if most is None else f", and {network.title} takes at most {most}"
        raise TemporalLensError(
            f"rows of {length} tokens are no longer than those of training, {harvest.context_length}{limit}: leave drift out"
        )
    return length


def _texts(store: ActivationStore, held_out: Int[np.ndarray, " n"], harvest: HarvestPolicy, network: LanguageModel, most: int) -> Corpus:
    """Held-out documents that are longer than a trained row."""
    numbers = set(store.documents_of(held_out).tolist())
    read = enumerate(islice(_documents(_text_of(store, harvest), network), max(numbers) + 1))  # a harvest may have stopped early
    own = [document for number, document in read if number in numbers]
    long_enough = [text for text, length in own if length > harvest.context_length]
    if len(long_enough) < 2:
        longest = max((length for _, length in own), default=0)
        raise TemporalLensError(
            f"the longest held-out document of {store.folder} has {longest} tokens: drift needs two of more than "
            f"{harvest.context_length}, the length of trained rows"
        )
    return open_corpus([long_enough[index] for index in evenly_spaced(len(long_enough), most)])


def _documents(text: Corpus, network: LanguageModel) -> Iterator[tuple[str, int]]:
    """Documents with their numbers of tokens, counted as a store counts them: those without a token have no number."""
    for group in grouped(text):
        for document, tokens in zip(group, network.encode_all(group), strict=True):
            if tokens:
                yield document, len(tokens)


def _text_of(store: ActivationStore, harvest: HarvestPolicy) -> Corpus:
    """The text that the store was harvested from, which has to be there still."""
    if harvest.text == GIVEN:
        raise TemporalLensError(f"{store.folder} was harvested from texts given in Python: drift reads texts again; harvest from a file")
    text = open_corpus(harvest.text, harvest.column, harvest.split)
    if text.fingerprint is None or text.fingerprint != store.manifest.description.source["text_fingerprint"]:
        raise TemporalLensError(f"the text '{harvest.text}' has changed since {store.folder} was harvested from it; harvest again")
    return text


def _runs(trained: int, positions: int) -> list[tuple[int, int]]:
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


def _sums(errors: DocumentErrors, weights: Float[np.ndarray, "B1 D"], first: int, end: int) -> _Sums:
    tokens, error, square, active = (values[:, first:end].sum(1) for values in (errors.tokens, errors.error, errors.square, errors.active))
    fve = 1 - quotient(weights @ error, weights @ square)
    return _Sums(fve, quotient(weights @ active, weights @ tokens), int(tokens.sum()))


def _estimate(values: Float[np.ndarray, " B1"], tokens: int) -> Estimate:
    return estimate_of(float(values[0]), values[1:], tokens)


def _of_subject(subject: Subject, policy: DriftPolicy) -> DriftMeasures:
    model, layer = subject.source["model"], subject.source["layer"]
    return measure_drift(subject.dictionary, model, layer, subject.store, subject.held_out, policy, subject.cache)


def tables(found: Mapping[str, DriftMeasures]) -> list[Table]:
    """FVE and L0 by octave, and how they change where training ended."""
    rows = []
    for head, measured in found.items():
        rows += [
            Row(f"{head}: {span(octave.first, octave.last)}{' (beyond)' if octave.beyond else ''}", [*_cells(octave.fve, octave.l0)])
            for octave in measured.octaves
        ]
        rows.append(Row(f"{head}: beyond, less the last trained octave", _cells(measured.fve_change, measured.l0_change), summary=True))
    first = next(iter(found.values()))
    note = (
        f"Held-out documents in rows of up to {first.context_length:,} tokens; trained rows had positions up to {first.trained - 1:,}. "
        "Intervals are over documents."
    )
    return [Table("Beyond the trained context", ["dictionary: positions", "tokens", "FVE", "L0"], rows, note)]


def _cells(fve: Estimate, l0: Estimate) -> list[str]:
    return [f"{fve.n:,}", estimated(fve, 4), estimated(l0, 1)]


SECTION = Section(
    name="drift",
    policy=DriftPolicy,
    version=1,
    measure=_of_subject,
    measures=DriftMeasures,
    reads_model=True,
    tables=tables,
)
