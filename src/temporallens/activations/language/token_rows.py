"""Documents to rows of tokens, under an explicit policy: what a forward pass sees together, and what each token remembers.

A row begins with BOS (CLS) and, for encoders, ends with SEP, when the policy says so; such tokens count towards the context
length. They belong to the document that they stand beside and do not advance its positions: an inserted token has the document
position of the token that it stands before. Attention between documents that are packed into one row is not masked: most models are
trained on such rows without a mask, and few architectures take one by blocks. Documents are tokenised lazily, a few at a time on all
cores, but never in pieces: what a normalizer puts before a text or strips off it would come at every seam. So memory is bounded by the
longest document, of which every character takes a tokenizer 70 to 150 bytes.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Int

from temporallens.activations.clocks import Reader, TokenRow
from temporallens.activations.language.boundaries import starts_in
from temporallens.activations.language.models import LanguageModel
from temporallens.errors import TemporalLensError

RowPolicy = Literal["document", "split", "packed"]
GROUP_CHARACTERS = 1 << 20  # documents are tokenised together until they have this many


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
    model: LanguageModel,
    documents: Iterable[str],
    shape: RowShape,
    rows: RowPolicy,
    rows_per_document: int | None = None,
    *,
    starts: bool = True,
    readers: Sequence[Reader] = (),
) -> Iterator[TokenRow]:
    """Rows of `documents` in order, lazily. With `rows_per_document`, that many of each document's rows, evenly spaced through it;
    without `starts`, what begins a sentence or a line is not told, and rows come sooner. `readers` tell more of the text."""
    texts = (text for text in tokenised(model, documents, starts, readers) if text.shape[1])
    if rows == "packed":
        yield from _packed(texts, shape)
        return
    for document, text in enumerate(texts):
        columns = _columns(text, document)
        count = 1 if rows == "document" else -(-text.shape[1] // shape.room)
        for row in evenly_spaced(count, rows_per_document):
            yield _enclosed(columns[:, row * shape.room : (row + 1) * shape.room], shape)


def tokenised(
    model: LanguageModel, documents: Iterable[str], starts: bool = True, readers: Sequence[Reader] = ()
) -> Iterator[Int[np.ndarray, "C T"]]:
    """All tokens of each document, without special ones, (with `starts`) whether each is the first of a sentence, and of a line, and what
    readers say of it."""
    for group in grouped(documents):
        if starts or readers:
            for text, (ids, spans) in zip(group, model.encode_with_spans(group), strict=True):
                begins = starts_in(text, spans) if starts else np.zeros((2, len(ids)), dtype=bool)
                yield np.stack([ids, *begins, *(reader(text, spans.start) for reader in readers)])
        else:
            for tokens in model.encode_all(group):
                yield np.pad(np.array([tokens], dtype=np.int32), ((0, 2), (0, 0)))


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


def evenly_spaced(count: int, wanted: int | None) -> Iterator[int]:
    """The middles of `wanted` equal parts of 0 .. count - 1; all of them when there are no more than that."""
    if wanted is None or count <= wanted:
        yield from range(count)
    else:
        yield from ((2 * part + 1) * count // (2 * wanted) for part in range(wanted))


def _columns(text: Int[np.ndarray, "_ T"], document: int) -> Int[np.ndarray, "C T"]:
    """The columns of a TokenRow: tokens, documents, positions in the document, what begins there, and what is read of it."""
    length = text.shape[1]
    return np.stack([text[0], np.full(length, document), np.arange(length), *text[1:]]).astype(np.int32)


def _inserted(token: int | None, document: int, position: int, columns: int) -> Int[np.ndarray, "C 1"]:
    """A token that stands for no text, and begins nothing."""
    return np.array([[token], [document], [position], *([0] for _ in range(columns - 3))], dtype=np.int32)


def _packed(texts: Iterable[Int[np.ndarray, "_ T"]], shape: RowShape) -> Iterator[TokenRow]:
    """Join the documents with separators and cut the stream into rows; the last row may be short."""
    stream = None
    length = 0  # of the document before, whose end a separator marks
    for document, text in enumerate(texts):
        columns = _columns(text, document)
        if stream is None:
            stream = columns
        else:
            separator = _inserted(shape.separator, document - 1, length, len(columns))
            stream = np.concatenate([stream, separator, columns], axis=1)
        length = text.shape[1]
        whole = stream.shape[1] // shape.room * shape.room
        for start in range(0, whole, shape.room):
            yield _enclosed(stream[:, start : start + shape.room], shape)
        stream = stream[:, whole:]
    if stream is not None and stream.size:
        yield _enclosed(stream, shape)


def _enclosed(text: Int[np.ndarray, "C S"], shape: RowShape) -> TokenRow:
    """Put the opening and closing tokens around the text of a row."""
    parts = [text]
    if shape.opening is not None:
        document, position = text[1:3, 0].tolist()
        parts.insert(0, _inserted(shape.opening, document, position, len(text)))
    if shape.closing is not None:
        document, position = text[1:3, -1].tolist()
        parts.append(_inserted(shape.closing, document, position + 1, len(text)))
    tokens, documents, positions, sentence_start, line_start, *read = np.concatenate(parts, axis=1)
    told = np.stack(read) if read else np.zeros((0, len(tokens)), dtype=np.int32)
    return TokenRow(tokens, documents, positions, sentence_start.astype(bool), line_start.astype(bool), told)
