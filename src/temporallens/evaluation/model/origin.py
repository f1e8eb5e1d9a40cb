"""Where a store came from: the model that it was harvested from, opened again as the harvest had it, and rows of it to run anew.

What is measured in the model itself (fidelity under shifts, splicing) starts from token rows that the store holds already, so that
model, tokens, dtype and what is left out are those under which the dictionary was trained.
"""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from temporallens.activations.language.block_stack import Layer
from temporallens.activations.language.corpora import GIVEN, Corpus, open_corpus
from temporallens.activations.language.harvest import HarvestPolicy
from temporallens.activations.language.model_files import same_content
from temporallens.activations.language.models import LanguageModel
from temporallens.activations.language.token_rows import evenly_spaced
from temporallens.activations.store import ACROSS_DOCUMENTS, ActivationStore
from temporallens.activations.writer import Rows
from temporallens.dictionaries.base import Dictionary
from temporallens.errors import TemporalLensError
from temporallens.evaluation.model.passes import open_model


class TokenRows(NamedTuple):
    """Some sequences of a store with all their rows, excluded ones too, longest first, and which parts of them are selected: of packed
    sequences, some documents only. R sequences, N rows, E parts."""

    length: Int[np.ndarray, " R"]
    rows: Rows  # sequence after sequence
    selected: Bool[Tensor, " N"]  # the rows of the parts
    entry: Int[np.ndarray, " E"]  # of each part, sequence after sequence, in the store's sequence table
    number: Int[np.ndarray, " E"]  # which of the R sequences it is of
    document: Int[np.ndarray, " E"]
    target: Float[Tensor, "N D"] | None = None  # what is to be given back of the rows, where that is something else

    def parts(self, size: int) -> list[slice]:
        """The sequences in batches of so many."""
        return [slice(first, min(first + size, len(self.length))) for first in range(0, len(self.length), size)]

    def of(self, part: slice) -> Rows:
        """The rows of some consecutive sequences."""
        first, last = int(self.length[: part.start].sum()), int(self.length[: part.stop].sum())
        return Rows(*(column[first:last] for column in self.rows))


def check_origin(dictionary: Dictionary, store: ActivationStore, model: str, layer: Layer) -> None:
    """Raise TemporalLensError unless the store holds `layer` of `model`, and the dictionary fits it."""
    source = store.manifest.description.source
    if source.get("kind") != "model":
        raise TemporalLensError(f"{store.folder} was not harvested from a language model on text, so there is no model to run again")
    if source["layer"] != layer or source["model"] != model:
        raise TemporalLensError(f"{store.folder} holds layer {source['layer']} of {source['model']}, not layer {layer} of {model}")
    if dictionary.width != store.width:
        raise TemporalLensError(
            f"a dictionary of width {dictionary.width} does not fit layer {layer} of {model}, whose activations have width {store.width}"
        )


def harvest_of(store: ActivationStore) -> HarvestPolicy:
    """The policy under which the store was harvested, at the very revision that its model had. Before version 0.2 a model computed in what
    its store held."""
    description = store.manifest.description
    no_choices = {"position_zero", "text_rule", ACROSS_DOCUMENTS}  # of every harvest, of some clocks, and of packed rows: no choices
    chosen = {name: value for name, value in description.policies.items() if name not in no_choices}
    policies = {"compute_dtype": description.dtype} | chosen
    source = {name: description.source[name] for name in ("model", "layer", "revision", "text", "column", "split")}
    return HarvestPolicy(**source, **policies, dtype=description.dtype)


def check_unchanged(model: LanguageModel, store: ActivationStore) -> None:
    """Raise TemporalLensError where the opened model has not the weights or the tokenizer that the store was harvested with."""
    source = store.manifest.description.source
    if not same_content(source["revision"], model.name, model.revision) or model.tokenizer_sha256 != source["tokenizer_sha256"]:
        raise TemporalLensError(
            f"{model.title} has changed since {store.folder} was harvested from it; remove that folder and harvest again"
        )


def model_of(store: ActivationStore, harvest: HarvestPolicy) -> LanguageModel:
    """The model of a store, as it was read for it. Raises TemporalLensError as `check_unchanged` does."""
    model = open_model(harvest.model, harvest.deepest, harvest.compute_dtype, harvest.revision, harvest.loading)
    check_unchanged(model, store)
    return model


def text_of(store: ActivationStore, harvest: HarvestPolicy, what: str) -> Corpus:
    """The text that the store was harvested from, which `what` reads again. Raises TemporalLensError unless it is there still."""
    if harvest.text == GIVEN:
        raise TemporalLensError(f"{store.folder} was harvested from texts given in Python: {what} reads texts again; harvest from a file")
    text = open_corpus(harvest.text, harvest.column, harvest.split)
    if text.fingerprint is None or text.fingerprint != store.manifest.description.source["text_fingerprint"]:
        raise TemporalLensError(f"the text '{harvest.text}' has changed since {store.folder} was harvested from it; harvest again")
    return text


def choose_rows(store: ActivationStore, entries: Int[np.ndarray, " n"], wanted: int, least: int, purpose: str) -> TokenRows:
    """About `wanted` of the sequences of these entries of the sequence table, evenly spaced among those of at least `least` tokens, which
    `purpose` needs; longest first. Sequences are whole, as the model read them; the entries say which parts are selected.

    Raises TemporalLensError where no sequence is as long.
    """
    table, documents = store.sequence_table, store.documents_of(np.arange(store.sequences))
    whole, length = table.whole, np.bincount(table.whole, weights=table.length).astype(np.int64)
    sequences = whole[entries][np.sort(np.unique(whole[entries], return_index=True)[1])]  # each once, in the order of the entries
    long_enough = sequences[length[sequences] >= least]
    if not len(long_enough):
        longest = int(length[sequences].max()) if len(sequences) else 0
        raise TemporalLensError(f"the rows of {store.folder} have at most {longest} tokens, and {purpose} needs {least}")
    chosen = long_enough[list(evenly_spaced(len(long_enough), wanted))]
    chosen = chosen[np.argsort(-length[chosen], kind="stable")]
    parts = np.bincount(whole)[chosen]
    every = np.concatenate([np.arange(first, first + count) for first, count in zip(np.searchsorted(whole, chosen), parts, strict=True)])
    selected = np.isin(every, entries)
    return TokenRows(
        length=length[chosen],
        rows=store.read(every),
        selected=torch.from_numpy(np.repeat(selected, table.length[every])),
        entry=every[selected],
        number=np.repeat(np.arange(len(chosen)), parts)[selected],
        document=documents[every[selected]],
        target=None if store.target is None else store.target.read(every).x,
    )


def padded(values: Tensor, lengths: Int[np.ndarray, " B"]) -> Tensor:
    """Rows `[N, ...]`, sequence after sequence, as `[B, S, ...]` with zeros behind the shorter sequences."""
    return torch.nn.utils.rnn.pad_sequence(list(values.split(lengths.tolist())), batch_first=True)
