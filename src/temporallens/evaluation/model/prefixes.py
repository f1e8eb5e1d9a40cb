"""Token rows of a store behind a neutral prefix, and what the model makes of them: the model's side of positional fidelity.

Behind the token that opens a row stand `s` tokens of a prefix (rows take several passages in turn), then the row's own text without its
last `s` tokens, then the token that closes an encoder's row. So the row keeps its length, within the model's context and the clock's
range, and every token of the text stands `s` places further on. The rows run through the model as the harvest ran them (layer, dtype,
batches, padding, clock, what is excluded), and their activations are a store of their own, kept in a cache.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int
from pydantic import JsonValue

from temporallens.activations.clocks import CLOCKS, TokenMarks, TokenRow
from temporallens.activations.expressions import clock_of
from temporallens.activations.language.harvest import (
    HarvestPolicy,
    columns_of,
    read_streams,
    rows_together,
    schedule,
    store_rows,
)
from temporallens.activations.language.hooks import Layer
from temporallens.activations.language.models import LanguageModel
from temporallens.activations.manifest import StoreDescription, is_store
from temporallens.activations.store import ActivationStore
from temporallens.activations.writer import Rows, StoreWriter, pair_of_writers, target_of
from temporallens.errors import TemporalLensError
from temporallens.evaluation.identity import store_fingerprint
from temporallens.evaluation.model.origin import TokenRows, harvest_of
from temporallens.files import fingerprint, locked
from temporallens.progress import progress

FORMAT = "temporallens.prefixes/3"

NEUTRAL = (
    "What follows is a part of a longer text. It was written down by somebody, for others to read at some time, "
    "and it is given here just as it stands, with nothing added to it and nothing left out.",
    "Most days in that town went by in the same way. People got up early, drank their coffee, opened the shops along the river, "
    "and by the evening nobody could have said how one of them had differed from another.",
    "The box had been on the upper shelf for years. Inside it were a ball of string, two old keys, some photographs without a date, "
    "and a letter that somebody had folded carefully and then never sent.",
    "Water boils sooner on a mountain than it does at the shore. Those who cook up there know that beans take longer, "
    "that bread rises faster, and that it is better to begin an hour before one would at home.",
    "She asked him whether the train had already left. He looked at the clock above the door, then at the empty platform, "
    "and answered that he did not know, but that there would surely be another one before the night.",
)
"""Five passages of ordinary words that say nothing about what follows. The last tokens of one are inserted, so that whatever their number
the text comes after a sentence that has ended, much as after the opening token; repeated or rare tokens are sinks in some models."""

Prefixes = Sequence[Sequence[int]]
"""Tokens of passages, all as long; row `r` of the chosen ones stands behind passage `r` modulo their number."""


def enclosing(store: ActivationStore) -> tuple[int, int]:
    """How many tokens open a row of the store, and how many close it."""
    description = store.manifest.description
    bos = bool(description.policies["bos"])
    return int(bos), int(bos and bool(description.source["encoder"]))


def prefix_tokens(model: LanguageModel, text: str, length: int) -> list[int]:
    """The last `length` tokens of `text`, which is repeated where it has fewer."""
    tokens = model.encode(text)
    if not tokens:
        raise TemporalLensError(f"the prefix {text!r} has no tokens for {model.title}; give some words")
    return (tokens * -(-length // len(tokens)))[-length:] if length else []


def shifted_store(model: LanguageModel, store: ActivationStore, chosen: TokenRows, prefixes: Prefixes, cache: Path) -> ActivationStore:
    """The chosen rows behind their prefixes, as a store whose sequences have the rows' numbers; made where `cache` has none."""
    description = _describe(model, store, chosen, prefixes)
    folder = cache / "prefixes" / fingerprint(description.model_dump(mode="json"))[:32]
    if is_store(folder):
        return ActivationStore(folder)
    return read_rows(folder, description, model, harvest_of(store), _shifted_rows(store, chosen, prefixes), "shifted rows")


def parts_in(shifted: ActivationStore, chosen: TokenRows) -> Int[np.ndarray, " E"]:
    """Where in a shifted store each part of the chosen rows is; -1 where the prefix has pushed a packed document out of its row."""
    table = shifted.sequence_table
    places = {part: entry for entry, part in enumerate(zip(table.sequence.tolist(), table.document.tolist(), strict=True))}
    return np.array([places.get(part, -1) for part in zip(chosen.number.tolist(), chosen.document.tolist(), strict=True)])


def _describe(model: LanguageModel, store: ActivationStore, chosen: TokenRows, prefixes: Prefixes) -> StoreDescription:
    """Everything that shapes the activations."""
    source: dict[str, JsonValue] = {
        "kind": "prefixed",
        "format": FORMAT,
        "store": store_fingerprint(store),
        "sequences": chosen.entry.tolist(),
        "prefixes": [[*prefix] for prefix in prefixes],
        "device": model.device.type,
        "torch": torch.__version__,
    }
    return store.manifest.description.model_copy(update={"source": source})


def _shifted_rows(store: ActivationStore, chosen: TokenRows, prefixes: Prefixes) -> list[TokenRow]:
    asked = str(store.manifest.description.policies["clock"])
    if asked not in CLOCKS and clock_of(asked).is_read:
        raise TemporalLensError(
            f"{store.folder} has the clock '{clock_of(asked).name}', and where it begins anew in a text that is pushed on is not known: "
            "leave fidelity out"
        )
    opening, closing = enclosing(store)
    rows = [row_of(chosen.of(part)) for part in chosen.parts(1)]
    return [_shifted(row, list(prefixes[number % len(prefixes)]), opening, closing) for number, row in enumerate(rows)]


def row_of(rows: Rows) -> TokenRow:
    """A row as the store has it. Where its clock restarts, a sentence (or line) begins: what the clock reads, if it reads any."""
    begins = rows.position.numpy() == 0
    return TokenRow(rows.token.numpy(), rows.document.numpy(), rows.document_position.numpy(), begins, begins)


def _shifted(row: TokenRow, prefix: list[int], opening: int, closing: int) -> TokenRow:
    """One row behind the prefix, which counts as text of the document that the row begins with.

    With the prefix a sentence has ended, but no line.
    """
    shift, length = len(prefix), len(row.tokens)
    remaining = np.r_[0 : length - closing - shift, length - closing : length]  # all but the last of the text
    document, place = row.document[remaining], row.document_position[remaining]
    place[opening:] += shift * (document[opening:] == row.document[0])
    sentence_start, line_start = row.sentence_start[remaining], row.line_start[remaining]
    sentence_start[opening], line_start[opening] = True, False
    return TokenRow(
        np.insert(row.tokens[remaining], opening, prefix).astype(np.int32),
        np.insert(document, opening, [row.document[0]] * shift).astype(np.int32),
        np.insert(place, opening, row.document_position[opening] + np.arange(shift)).astype(np.int32),
        np.insert(sentence_start, opening, [False] * shift),
        np.insert(line_start, opening, [False] * shift),
    )


def read_rows(
    folder: Path, description: StoreDescription, model: LanguageModel, policy: HarvestPolicy, rows: Sequence[TokenRow], title: str
) -> ActivationStore:
    """Run rows through the model as a harvest would, from where an interruption left them, into a store; sequences have their numbers."""
    marks, left = TokenMarks.of(model.tokenizer), policy.padding == "left"
    tokens = sum(len(row.tokens) for row in rows)
    with locked(folder, wait=True), progress(f"Reading {title} with {model.title}", tokens, "tokens") as advance:
        if is_store(folder):  # another process has made it meanwhile
            return ActivationStore(folder)
        writers = _writers(folder, description, policy)
        layers, done = list(writers), [writer.appends_done for writer in writers.values()]
        for number, batch in enumerate(schedule(rows, rows_together(policy.batch_size), model.padding_token, left)):
            if number >= min(done):
                streams = read_streams(model, batch, layers, policy.batch_size)
                columns = columns_of(batch, clock_of(policy.clock), marks, policy.context_length)
                for (layer, writer), finished in zip(writers.items(), done, strict=True):
                    if number >= finished:
                        beside = [stream for other, stream in streams.items() if other != layer]
                        writer.append(store_rows(streams[layer], batch, columns, policy.norm_multiple, beside))
            advance(batch.size)
        for writer in writers.values():
            writer.finish()
        return ActivationStore(folder)


def _writers(folder: Path, description: StoreDescription, policy: HarvestPolicy) -> dict[Layer, StoreWriter]:
    """By what is read: that of the target, where there is one, first."""
    if policy.target is None:
        return {policy.layer: StoreWriter(folder, description)}
    return dict(zip((policy.target, policy.layer), pair_of_writers(folder, description, target_of(description)), strict=True))
