"""Clocks: small functions from the tokens of one row to integers, the `position` that everything above works with.

A study names a clock, the harvest lets it tell the time of every token and stores the answer as a column; nothing downstream knows
which clock it was. Besides the tokens themselves a clock sees `TokenMarks`, what a tokenizer's vocabulary says about its tokens.
A clock knows the positions 0 to `size - 1`; later times are counted as the last one.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from temporallens.errors import TemporalLensError, did_you_mean

Tokenizer = Any  # a fast tokenizer of transformers, whose import takes seconds

WHITESPACE = {"Ġ": " ", "Ċ": "\n", "č": "\r", "ĉ": "\t", "▁": " ", "<0x0A>": "\n", "<0x0D>": "\r", "<0x09>": "\t"}
SENTENCE_END = re.compile(r"""[.!?…]["'”’»)\]]*\s*$""")
UNSPACED_SENTENCE_END = re.compile(r"[。！？][”’」』）]*$")


@dataclass(frozen=True)
class TokenMarks:
    """What a vocabulary says about its tokens: one entry per token id in every array."""

    sentence_end: Bool[np.ndarray, " V"]  # closes a sentence if a new word follows ("." does, but not within "3.5")
    unspaced_sentence_end: Bool[np.ndarray, " V"]  # closes a sentence whatever follows, as in scripts without spaces
    word_start: Bool[np.ndarray, " V"]  # begins a word, a line or a paragraph
    newline: Bool[np.ndarray, " V"]  # holds a line break
    special: Bool[np.ndarray, " V"]  # stands for no text: BOS, EOS, CLS, SEP, ...
    yields_newlines: bool  # whether the tokenizer turns line breaks into tokens at all

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> "TokenMarks":
        """Read the marks off the spelling of every token in the vocabulary."""
        spellings = [_plain(token or "") for token in tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))]
        continues = any(spelling.startswith("##") for spelling in spellings)  # WordPiece marks these, others what begins a word
        special = np.zeros(len(spellings), dtype=bool)
        special[[token for token in tokenizer.all_special_ids if token < len(spellings)]] = True
        newline = _mark(spellings, lambda spelling: "\n" in spelling) & ~special
        probe = tokenizer.backend_tokenizer.encode("a\n\nb\nc", add_special_tokens=False).ids
        return cls(
            sentence_end=_mark(spellings, lambda spelling: SENTENCE_END.search(spelling) is not None),
            unspaced_sentence_end=_mark(spellings, lambda spelling: UNSPACED_SENTENCE_END.search(spelling) is not None),
            word_start=_mark(spellings, lambda spelling: not spelling.startswith("##") if continues else spelling[:1].isspace()),
            newline=newline,
            special=special,
            yields_newlines=bool(newline[probe].any()),
        )


def _plain(token: str) -> str:
    for sign, whitespace in WHITESPACE.items():
        token = token.replace(sign, whitespace)
    return token


def _mark(spellings: Sequence[str], test: Callable[[str], bool]) -> Bool[np.ndarray, " V"]:
    return np.fromiter((test(spelling) for spelling in spellings), dtype=bool, count=len(spellings))


class TokenRow(NamedTuple):
    """The tokens that one forward pass sees together, in order."""

    tokens: Int[np.ndarray, " S"]  # token ids
    document: Int[np.ndarray, " S"]  # which document each token belongs to, counted from 0
    document_position: Int[np.ndarray, " S"]  # index in that document; an inserted token has that of the token it stands before


def index_in_row(row: TokenRow, marks: TokenMarks) -> Int[np.ndarray, " S"]:
    return np.arange(len(row.tokens))


def index_in_document(row: TokenRow, marks: TokenMarks) -> Int[np.ndarray, " S"]:
    return row.document_position


def since_sentence_end(row: TokenRow, marks: TokenMarks) -> Int[np.ndarray, " S"]:
    """0 at the first token of a sentence; line breaks, special tokens and new documents end a sentence too."""
    before, after = row.tokens[:-1], row.tokens[1:]
    ends = (marks.sentence_end[before] & marks.word_start[after]) | marks.unspaced_sentence_end[before] | marks.newline[before]
    return _since(row, marks, ends)


def since_newline(row: TokenRow, marks: TokenMarks) -> Int[np.ndarray, " S"]:
    """0 at the first token of a line; special tokens and new documents begin a line too."""
    return _since(row, marks, marks.newline[row.tokens[:-1]])


def _since(row: TokenRow, marks: TokenMarks, ends: Bool[np.ndarray, " _"]) -> Int[np.ndarray, " S"]:
    """Tokens since the last restart, where `ends[i]` says that token i ends what it belongs to."""
    restarts = ends | marks.special[row.tokens[:-1]] | (row.document[1:] != row.document[:-1])
    index = np.arange(len(row.tokens))
    last = np.concatenate([np.zeros(1, dtype=index.dtype), np.where(restarts, index[1:], 0)])
    return index - np.maximum.accumulate(last)


@dataclass(frozen=True)
class Clock:
    """A named way to tell a token's position."""

    name: str
    meaning: str  # completes "position is ..." in reports
    tell: Callable[[TokenRow, TokenMarks], Int[np.ndarray, " S"]]
    longest: int | None = None  # positions worth telling apart; None: as many as a row has
    within_row: bool = True  # whether it never exceeds the token's index in its row

    def size(self, context_length: int) -> int:
        """Number of positions this clock knows in rows of `context_length` tokens."""
        if self.longest is None:
            return context_length
        return min(self.longest, context_length) if self.within_row else self.longest

    def position(self, row: TokenRow, marks: TokenMarks, context_length: int) -> Int[np.ndarray, " S"]:
        """What the clock says of every token of `row`, later times counted as the last position."""
        return np.minimum(self.tell(row, marks), self.size(context_length) - 1)


CLOCKS: dict[str, Clock] = {
    clock.name: clock
    for clock in (
        Clock("index", "the token's index in its row", index_in_row),
        Clock("document", "the token's index in its document", index_in_document, longest=1024, within_row=False),
        Clock("sentence", "the number of tokens since the last sentence end", since_sentence_end, longest=64),
        Clock("newline", "the number of tokens since the last line break", since_newline, longest=256),
    )
}


def clock_named(name: str) -> Clock:
    if name not in CLOCKS:
        raise TemporalLensError(f"there is no clock '{name}'{did_you_mean(name, CLOCKS)}")
    return CLOCKS[name]


def usable_clocks(marks: TokenMarks) -> dict[str, Clock]:
    """The clocks that run on this vocabulary: without line breaks among the tokens there is no `newline`."""
    return {name: clock for name, clock in CLOCKS.items() if name != "newline" or marks.yields_newlines}
