"""Clocks: small functions from the tokens of one row to integers, the `position` that everything above works with.

A study names a clock, the harvest lets it tell the time of every token and stores the answer as a column; nothing downstream knows
which clock it was. What a clock needs to know of a text (where its sentences and lines begin) is told from the text and stands in the
row (`boundaries`); of the vocabulary it knows only which tokens are special.
A clock knows the positions 0 to `size - 1`; later times are counted as the last one.

Beside the named ones there are clocks by expression, which are made of others or of what a text says: `expressions.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int, Shaped
from torch import Tensor

Tokenizer = Any  # a fast tokenizer of transformers, whose import takes seconds

TEXT_RULE = 2
"""Raised when sentences or lines are told otherwise: positions by such a clock are then others. 1 told them from spellings of tokens."""


@dataclass(frozen=True)
class TokenMarks:
    """What a vocabulary says for certain about its tokens: one entry per token id in every array."""

    special: Bool[np.ndarray, " V"]  # BOS, EOS, CLS, SEP, UNK, ..., and whatever the table of added tokens calls so
    parting: Bool[np.ndarray, " V"]  # the special ones that part what is before from what is behind; UNK stands for some text

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> "TokenMarks":
        """Read the marks off the tokenizer's tables. Ids may have gaps, so the largest one says how many there are."""
        added = {token for token, entry in tokenizer.added_tokens_decoder.items() if entry.special}
        special = {*tokenizer.all_special_ids, *added}
        ids = tokenizer.get_vocab()
        tokens = np.arange(max({*special, *ids.values()}) + 1)
        return cls(np.isin(tokens, list(special)), np.isin(tokens, list(special - {ids.get(_unknown_token(tokenizer))})))


def _unknown_token(tokenizer: Tokenizer) -> str | None:
    """What stands for text that the vocabulary has no tokens for; None where it has tokens for all, even if it names one."""
    unknown: str | None = getattr(tokenizer.backend_tokenizer.model, "unk_token", tokenizer.unk_token)  # Unigram models do not tell
    return None if unknown in (tokenizer.bos_token, tokenizer.eos_token) else unknown


class TokenRow(NamedTuple):
    """The tokens that one forward pass sees together, in order."""

    tokens: Int[np.ndarray, " S"]  # token ids
    document: Int[np.ndarray, " S"]  # which document each token belongs to, counted from 0
    document_position: Int[np.ndarray, " S"]  # index in that document; an inserted token has that of the token it stands before
    sentence_start: Bool[np.ndarray, " S"]  # whether it is the first token of a sentence; False where no clock asks
    line_start: Bool[np.ndarray, " S"]  # whether it is the first token of a line; False where no clock asks
    read: Int[np.ndarray, "K _"] = np.zeros((0, 0), dtype=np.int64)  # what each reader of the clock says of it

    def at(self, chosen: Int[np.ndarray, " n"]) -> "TokenRow":
        """Some of its tokens."""
        tokens, document, position, sentence_start, line_start = (column[chosen] for column in self[:5])
        return TokenRow(tokens, document, position, sentence_start, line_start, self.read[:, chosen] if len(self.read) else self.read)


def index_in_row(row: TokenRow, marks: TokenMarks) -> Int[np.ndarray, " S"]:
    return np.arange(len(row.tokens))


def index_in_document(row: TokenRow, marks: TokenMarks) -> Int[np.ndarray, " S"]:
    return row.document_position


def since_sentence_start(row: TokenRow, marks: TokenMarks) -> Int[np.ndarray, " S"]:
    """0 at the first token of a sentence; one begins behind special tokens and in new documents too."""
    return _since(row, marks, row.sentence_start)


def since_line_start(row: TokenRow, marks: TokenMarks) -> Int[np.ndarray, " S"]:
    """0 at the first token of a line; one begins behind special tokens and in new documents too."""
    return _since(row, marks, row.line_start)


def _since(row: TokenRow, marks: TokenMarks, starts: Bool[np.ndarray, " S"]) -> Int[np.ndarray, " S"]:
    """Tokens since the last of `starts`, behind a special token, or of a new document."""
    restarts = starts[1:] | marks.parting[row.tokens[:-1]] | (row.document[1:] != row.document[:-1])
    index = np.arange(len(row.tokens))
    last = np.concatenate([np.zeros(1, dtype=index.dtype), np.where(restarts, index[1:], 0)])
    return index - np.maximum.accumulate(last)


Reader = Callable[[str, Int[np.ndarray, " T"]], Int[np.ndarray, " T"]]
"""Tells a number of each token of a text, from the text and the places at which its tokens begin."""


@dataclass(frozen=True)
class Clock:
    """A way to tell a token's position."""

    name: str
    label: str  # in figures
    times: Callable[[TokenRow, TokenMarks], Int[np.ndarray, " S"]]
    longest: int | None = None  # positions worth telling apart; None: as many as a row has
    within_row: bool = True  # whether it never exceeds the token's index in its row
    reads_text: bool = False  # whether rows must know for it where sentences and lines begin
    readers: tuple[Reader, ...] = ()  # what else of the text rows must know, in the order of `TokenRow.read`

    @property
    def rule(self) -> dict[str, int]:
        """What pins how a text is read for it, where one is."""
        return {"text_rule": TEXT_RULE} if self.reads_text else {}

    @property
    def is_read(self) -> bool:
        """Whether anything but tokens is read for it."""
        return self.reads_text or bool(self.readers)

    def size(self, context_length: int) -> int:
        """Number of positions this clock knows in rows of `context_length` tokens."""
        if self.longest is None:
            return context_length
        return min(self.longest, context_length) if self.within_row else self.longest

    def position(self, row: TokenRow, marks: TokenMarks, context_length: int) -> Int[np.ndarray, " S"]:
        """What the clock says of every token of `row`, later times counted as the last position."""
        return np.minimum(self.times(row, marks), self.size(context_length) - 1)


CLOCKS: dict[str, Clock] = {
    clock.name: clock
    for clock in (
        Clock("index", "index in the row", index_in_row),
        Clock("document", "index in the document", index_in_document, longest=1024, within_row=False),
        Clock("sentence", "since the last sentence end", since_sentence_start, longest=64, reads_text=True),
        Clock("newline", "since the last newline", since_line_start, longest=256, reads_text=True),
    )
}


MOST_POSITIONS = 1 << 20
"""That positions of one's own, and clocks by expression, can tell apart."""

GIVEN = "given"
"""In place of a clock: positions that came with the activations."""


def at_positions(table: Shaped[Tensor, "P ..."], positions: Int[Tensor, "..."]) -> Shaped[Tensor, "..."]:
    """Rows of a table by position; positions later than it knows have its last row."""
    known = positions.long().clamp(max=len(table) - 1)
    return table.index_select(0, known.reshape(-1)).view(*positions.shape, *table.shape[1:])


def over_positions(table: Shaped[np.ndarray, "K ..."], positions: int) -> Shaped[np.ndarray, "P ..."]:
    """A table by position for positions 0 to `positions - 1`; those later than it knows have its last row."""
    return table[np.minimum(np.arange(positions), len(table) - 1)]
