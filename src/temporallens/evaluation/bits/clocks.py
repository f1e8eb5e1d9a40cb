"""What clocks that read a text say of rows that are stored already: the text is tokenised again as its harvest did, and nothing is run.

A store holds the positions of one clock. What others would have said is told by the same rows of the same text; so the text has to be
there still, the tokenizer the same, and every token is compared with the stored one.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from temporallens.activations.clocks import Clock, TokenMarks, TokenRow
from temporallens.activations.expressions import clock_of
from temporallens.activations.language.corpora import GIVEN
from temporallens.activations.language.token_rows import row_shape, token_rows
from temporallens.activations.loader import sequential
from temporallens.activations.store import ActivationStore
from temporallens.errors import TemporalLensError
from temporallens.evaluation.model.origin import harvest_of, model_of, text_of


def reads_text(store: ActivationStore) -> bool:
    """Whether the rows of a store were harvested from a text that can be read again."""
    source = store.manifest.description.source
    return source.get("kind") == "model" and source.get("text") != GIVEN


def text_positions(store: ActivationStore, entries: Int[np.ndarray, " n"], clocks: Sequence[str]) -> dict[str, Int[np.ndarray, " N"]]:
    """Positions by each of the clocks, of all rows of these entries that no rule excludes, in the order of the entries.

    Raises TemporalLensError where the store is of no text, or text or tokenizer have changed since.
    """
    if not reads_text(store):
        raise TemporalLensError(f"{store.folder} was not harvested from a text that can be read again: leave bits.clocks empty")
    known = {name: clock_of(name) for name in clocks}
    said = _of_sequences(store, set(store.sequence_table.sequence[entries].tolist()), list(known.values()))
    parts: list[Int[np.ndarray, "C _"]] = []
    for rows in sequential(store, entries):
        sequence, index = rows.sequence.numpy(), rows.index.numpy()
        first = np.flatnonzero(np.diff(sequence, prepend=-1))
        columns = np.concatenate(
            [said[int(sequence[start])][:, index[start:end]] for start, end in zip(first, [*first[1:], len(index)], strict=True)], axis=1
        )
        if not np.array_equal(columns[-1], rows.token.numpy()):
            raise TemporalLensError(f"the text of {store.folder} gives other tokens than it holds; remove that folder and harvest again")
        parts.append(columns[:-1, rows.excluded.numpy() == 0])
    return dict(zip(known, np.concatenate(parts, axis=1).astype(np.int64), strict=True))


def _of_sequences(store: ActivationStore, wanted: set[int], clocks: Sequence[Clock]) -> dict[int, Int[np.ndarray, "C1 S"]]:
    """Of each wanted sequence of the text what the clocks say of its tokens, and last its tokens."""
    harvest = harvest_of(store)
    network = model_of(store, harvest)
    marks, shape = TokenMarks.of(network.tokenizer), row_shape(network, harvest.context_length, harvest.bos, harvest.rows)
    readers = [reader for clock in clocks for reader in clock.readers]
    starts = any(clock.reads_text for clock in clocks)
    rows = token_rows(
        network, text_of(store, harvest, "bits"), shape, harvest.rows, harvest.rows_per_document, starts=starts, readers=readers
    )
    said, last = {}, max(wanted)
    for number, row in enumerate(rows):
        if number in wanted:
            own = [clock.position(_read_by(row, clocks, order), marks, harvest.context_length) for order, clock in enumerate(clocks)]
            said[number] = np.stack([*own, row.tokens]).astype(np.int32)
        if number == last:
            break
    if len(said) < len(wanted):
        raise TemporalLensError(f"the text of {store.folder} gives fewer rows than it holds; remove that folder and harvest again")
    return said


def _read_by(row: TokenRow, clocks: Sequence[Clock], order: int) -> TokenRow:
    """A row with what the readers of one of the clocks say of it."""
    first = sum(len(clock.readers) for clock in clocks[:order])
    return row._replace(read=row.read[first : first + len(clocks[order].readers)])
