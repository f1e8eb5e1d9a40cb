"""Plain text as sentences that order tasks can be made of.

A sentence ends where a word of three letters or more ends in `.`, `!` or `?` and the next begins with a capital, so abbreviations end
none. What is kept of a document is what tasks ask for: sentences without any punctuation inside, neighbouring sentences, sentences of
two clauses that a conjunction joins, and the running words with the indices at which sentences begin. A sentence that stands in several
documents counts for the first alone, so that no test document repeats one that was trained on.
"""

import re
from collections.abc import Iterable, Iterator
from itertools import islice, pairwise
from typing import NamedTuple

MOST_DOCUMENTS = 400
DOCUMENT_CHARACTERS = 40_000
"""What is read of a text: tasks need a few sentences of each document, and a hub data set may never end."""

SHORTEST, LONGEST = 8, 20
"""Words of a sentence that tasks are made of; sentences of two clauses may have half as many again."""

SHORTEST_CLAUSE = 3

PARAGRAPH = re.compile(r"\n\s*\n")
WORD = r"[^\W\d_]+(?:['’-][^\W\d_]+)*"
SENTENCE = re.compile(rf"{WORD}(?:,? {WORD})*\.")
ENDS = re.compile(r"[^\W\d_]{3}[.!?][\"”’')\]]*$")
BEGINS = re.compile(r"[\"“‘'(\[]*[^\W\d_]")
CONJUNCTION = re.compile(r"and|but")

Sentence = tuple[str, ...]
"""Words without the full stop that ends them."""


class Clauses(NamedTuple):
    """`first, joint second.`"""

    first: Sentence
    joint: str
    second: Sentence


class Document(NamedTuple):
    """What tasks are made of; all lists in the order of the text."""

    words: list[str]  # as they stand between white space, punctuation included
    vocabulary: set[str]  # those of them that tasks may be about: in lower case, three letters or more, nothing else
    begins: list[int]  # indices in `words` at which a sentence begins, after another that ended in a full stop
    plain: list[Sentence]  # no punctuation inside; no word twice between the first and the last
    neighbours: list[tuple[Sentence, Sentence]]  # one after the other in a paragraph; words may end in a comma
    clauses: list[Clauses]  # no other punctuation; the first word is one that the document also writes in lower case


def read_documents(texts: Iterable[str]) -> list[Document]:
    """The first `MOST_DOCUMENTS` documents, as far as `DOCUMENT_CHARACTERS` each."""
    seen: set[Sentence] = set()
    return [_read(text[:DOCUMENT_CHARACTERS], seen) for text in islice(texts, MOST_DOCUMENTS)]


def _read(text: str, seen: set[Sentence]) -> Document:
    written = set(text.split())
    vocabulary = {word for word in written if word.isalpha() and word.islower() and len(word) > 2}
    document = Document([], vocabulary, [], [], [], [])
    for paragraph in PARAGRAPH.split(text):
        before: Sentence | None = None
        for sentence in _sentences(paragraph.split()):
            if document.words and document.words[-1].endswith("."):
                document.begins.append(len(document.words))
            document.words.extend(sentence)
            whole = _whole(sentence)
            if whole is None or whole in seen:
                before = None
                continue
            seen.add(whole)
            _add(document, whole, before, written)
            before = whole
    return document


def _sentences(words: list[str]) -> Iterator[list[str]]:
    """A paragraph's words, sentence by sentence."""
    ends = [
        index + 1
        for index, (word, following) in enumerate(pairwise(words))
        if not word[-1].isalnum() and ENDS.search(word) and _is_capitalised(following)
    ]
    for start, stop in pairwise([0, *ends, len(words)]):
        if stop > start:
            yield words[start:stop]


def _is_capitalised(word: str) -> bool:
    letter = BEGINS.match(word)
    return letter is not None and letter.group()[-1].isupper()


def _whole(sentence: list[str]) -> Sentence | None:
    """The words of a sentence that is one: a capital, a full stop at the end, and letters with at most a comma behind a word."""
    if not SHORTEST <= len(sentence) <= LONGEST * 3 // 2 or not sentence[0][0].isupper() or not SENTENCE.fullmatch(" ".join(sentence)):
        return None
    return (*sentence[:-1], sentence[-1][:-1])


def _add(document: Document, sentence: Sentence, before: Sentence | None, written: set[str]) -> None:
    """Add a new sentence to every list that it fits."""
    commas = [index for index, word in enumerate(sentence) if word[-1] == ","]
    if len(sentence) <= LONGEST:
        inside = {word.casefold() for word in sentence[1:-1]}
        if not commas and len(inside) == len(sentence) - 2:
            document.plain.append(sentence)
        if before is not None and len(before) <= LONGEST:
            document.neighbours.append((before, sentence))
    if len(commas) == 1:
        joint = commas[0] + 1
        first, second = (*sentence[: joint - 1], sentence[joint - 1][:-1]), sentence[joint + 1 :]
        long_enough = min(len(first), len(second)) >= SHORTEST_CLAUSE
        if long_enough and CONJUNCTION.fullmatch(sentence[joint]) and sentence[0].lower() in written:
            document.clauses.append(Clauses(first, sentence[joint], second))
