"""Documents to rows of tokens, under an explicit policy: what a forward pass sees together, and what each token remembers.

A row begins with BOS (CLS) and, for encoders, ends with SEP, when the policy says so; such tokens count towards the context
length. They belong to the document that they stand beside and do not advance its positions: an inserted token has the document
position of the token that it stands before. Attention between documents that are packed into one row is not masked: most models are
trained on such rows without a mask, and few architectures take one by blocks. Documents are tokenised lazily, a few at a time on all
cores, and very long ones in pieces, so memory is bounded by the longest document.
"""

import itertools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Int

from temporallens.activations.clocks import TokenRow
from temporallens.activations.models import LanguageModel
from temporallens.errors import TemporalLensError

RowPolicy = Literal["document", "split", "packed"]
PIECE_CHARACTERS = 1 << 20  # a longer document is tokenised in pieces of at least this many characters
GROUP_CHARACTERS = 1 << 20  # documents are tokenised together until they have this many
BETWEEN_WORDS = re.compile(r"(?<=[a-z])(?= [a-z])")  # no tokenizer's token reaches over this from the word before


@dataclass(frozen=True)
class RowShape:
    """What surrounds the text of a row."""

    context_length: int
    opening: int | None  # BOS or CLS, None for none
    closing: int | None  # SEP of an encoder, None for none
    separator: int | None  # between packed documents

    @property
    def room(self) -> int:
        """Tokens of text that fit into a row."""
        return self.context_length - (self.opening is not None) - (self.closing is not None)


def row_shape(model: LanguageModel, context_length: int, bos: bool, rows: RowPolicy) -> RowShape:
    """The shape of rows for `model`. Raises TemporalLensError when the tokenizer lacks a token that the policy asks for."""
    model.check_context(context_length)
    if bos and model.bos is None:
        raise TemporalLensError(f"the tokenizer of {model.title} has no BOS token to open rows with; set bos: false")
    if rows == "packed" and model.separator is None:
        raise TemporalLensError(f"the tokenizer of {model.title} has no EOS, SEP or BOS token to join documents with; set rows: split")
    shape = RowShape(context_length, model.bos if bos else None, model.closing if bos else None, model.separator)
    if shape.room < 1:
        raise TemporalLensError(f"context length {context_length} leaves no room for text beside the tokens that open and close a row")
    return shape


def token_rows(
    model: LanguageModel, documents: Iterable[str], shape: RowShape, rows: RowPolicy, rows_per_document: int | None = None
) -> Iterator[TokenRow]:
    """Rows of `documents` in order, lazily. With `rows_per_document`, that many of each document's rows, evenly spaced through it."""
    tokenised = (tokens for tokens in tokens_of(model, documents) if len(tokens))
    if rows == "packed":
        yield from _packed(tokenised, shape)
        return
    for document, tokens in enumerate(tokenised):
        count = 1 if rows == "document" else -(-len(tokens) // shape.room)
        for row in evenly_spaced(count, rows_per_document):
            start = row * shape.room
            body = tokens[start : start + shape.room]
            yield _enclosed(np.stack([body, np.full(len(body), document), np.arange(start, start + len(body))]), shape)


def tokens_of(model: LanguageModel, documents: Iterable[str]) -> Iterator[Int[np.ndarray, " T"]]:
    """All tokens of each document, without special ones."""
    for group in grouped(documents):
        cut = [list(pieces(document)) for document in group]
        encoded = iter(model.encode_all(list(itertools.chain.from_iterable(cut))))
        for parts in cut:
            yield np.concatenate([np.asarray(next(encoded), dtype=np.int32) for _ in parts])


def grouped(documents: Iterable[str]) -> Iterator[list[str]]:
    """Documents in order, in groups of about GROUP_CHARACTERS characters."""
    group: list[str] = []
    characters = 0
    for document in documents:
        group.append(document)
        characters += len(document)
        if characters >= GROUP_CHARACTERS:
            yield group
            group, characters = [], 0
    if group:
        yield group


def pieces(text: str) -> Iterator[str]:
    """Cut a very long text between words; together the pieces are the text, and so are their tokens."""
    start = 0
    while start < len(text):
        cut = BETWEEN_WORDS.search(text, start + PIECE_CHARACTERS)
        end = cut.start() if cut else len(text)
        yield text[start:end]
        start = end


def evenly_spaced(count: int, wanted: int | None) -> Iterator[int]:
    """The middles of `wanted` equal parts of 0 .. count - 1; all of them when there are no more than that."""
    if wanted is None or count <= wanted:
        yield from range(count)
    else:
        yield from ((2 * part + 1) * count // (2 * wanted) for part in range(wanted))


def _packed(tokenised: Iterable[Int[np.ndarray, " T"]], shape: RowShape) -> Iterator[TokenRow]:
    """Join the documents with separators and cut the stream into rows; the last row may be short."""
    stream = np.empty((3, 0), dtype=np.int32)  # tokens, documents, positions in the document
    length = 0  # of the document before, whose end a separator marks
    for document, text in enumerate(tokenised):
        separator = np.array([[shape.separator], [document - 1], [length]] if document else [[], [], []], dtype=np.int32)
        stream = np.concatenate([stream, separator, [text, np.full(len(text), document), np.arange(len(text))]], axis=1)
        length = len(text)
        whole = stream.shape[1] // shape.room * shape.room
        for start in range(0, whole, shape.room):
            yield _enclosed(stream[:, start : start + shape.room], shape)
        stream = stream[:, whole:]
    if stream.size:
        yield _enclosed(stream, shape)


def _enclosed(text: Int[np.ndarray, "3 S"], shape: RowShape) -> TokenRow:
    """Put the opening and closing tokens around the text of a row (its tokens, documents and positions in them)."""
    parts = [text]
    if shape.opening is not None:
        parts.insert(0, np.array([[shape.opening], [text[1, 0]], [text[2, 0]]]))
    if shape.closing is not None:
        parts.append(np.array([[shape.closing], [text[1, -1]], [text[2, -1] + 1]]))
    return TokenRow(*np.concatenate(parts, axis=1).astype(np.int32))
