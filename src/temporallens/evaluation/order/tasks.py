"""Tasks in which the order of words is all that there is to know, made from any text, and a control in which it is nothing.

Every task is built so that a bag of words is at chance (`docs/method.md`, "Order"). Most come in pairs: the same words in two orders,
one of each class. Tasks about a token are about words that no other fold has seen. Items are spread evenly over documents, and
documents are divided into folds, so a pair never comes apart and nothing of a document that tests is ever trained on.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple, TypeVar

import numpy as np
from jaxtyping import Int

from temporallens.errors import TemporalLensError, did_you_mean
from temporallens.evaluation.order.text import Clauses, Document, Sentence, read_documents

FOLDS = 5
MARKERS = ("copper", "violin", "lantern", "walnut", "harbor", "velvet", "pepper", "canvas")
"""Words that are put into sentences which have none of them; the first two are those of `marker_order` and `word_content`."""

FAR = 4
"""Words from one to the other, at least, of the two that `far_swap` exchanges."""

APART = 3
"""Words between the two markers of `marker_order`, at least."""

ROW, BUCKETS = 64, ((1, 3), (8, 12), (20, 27), (44, 60))
"""`position_bucket`: words in a row, and indices in it; the gaps are wider than what a tokenizer makes of a word can blur."""

SHORT_ROW, DISTANCES = 32, ((1, 2), (5, 7), (12, 16))
"""`sentence_distance`: words in a row, and words since the sentence began; 0 is left out, since a capital letter gives it away."""

EARLIEST, LATEST = 18, 29
"""Between which indices of its row a word of `sentence_distance` stands: far enough in for its sentence to begin in the row."""

TRIES = 12
"""Rows that are drawn for each that is wanted; those with a word for every class are kept."""

T = TypeVar("T")
Words = Sequence[str]


class OrderTask(NamedTuple):
    """n items, ascending by document and, within it, by group."""

    name: str
    about_order: bool  # False for the control
    classes: tuple[str, ...]  # their names; all equally frequent
    texts: list[str]  # of each item
    spans: list[tuple[int, int]] | None  # the characters that each item is about; None where items are whole texts
    label: Int[np.ndarray, " n"]  # which class
    group: Int[np.ndarray, " n"]  # a pair, or an item of every class, of one document
    document: Int[np.ndarray, " n"]
    fold: Int[np.ndarray, " n"]  # in which an item is tested; the same for all of a document

    @property
    def words(self) -> list[list[str]]:
        """In lower case, without punctuation: the words of each item's text, or the one that it is about."""
        spans = self.spans or [(0, len(text)) for text in self.texts]
        parts = [text[start:stop] for text, (start, stop) in zip(self.texts, spans, strict=True)]
        return [[word.strip(".,").casefold() for word in part.split()] for part in parts]


COLUMNS = ("label", "group", "document", "fold")


def task_to_json(task: OrderTask) -> dict[str, Any]:
    return task._asdict() | {name: getattr(task, name).tolist() for name in COLUMNS}


def task_from_json(content: dict[str, Any]) -> OrderTask:
    """What `task_to_json` gave."""
    spans = None if content["spans"] is None else [(start, stop) for start, stop in content["spans"]]
    columns = {name: np.array(content[name]) for name in COLUMNS}
    return OrderTask(**content | {"classes": tuple(content["classes"]), "spans": spans} | columns)


class Item(NamedTuple):
    """A text of one class."""

    text: str
    span: tuple[int, int] | None = None


Group = tuple[int, Sequence[Item]]
"""A document, and an item of each class in order."""


class Source(NamedTuple):
    """What one task is drawn from."""

    name: str
    documents: list[Document]
    fold_of: list[int]  # of each document
    fold_of_word: dict[str, int]
    order: list[int]  # in which documents give items, so that folds fill evenly
    seed: int
    random: np.random.Generator

    def spread(self, pools: Sequence[Sequence[T]], count: int, what: str, random: np.random.Generator | None = None) -> list[tuple[int, T]]:
        """`count` of what each document offers, one of each document in turn. Raises TemporalLensError where they offer less."""
        random = random or self.random
        shuffled = [[pool[index] for index in random.permutation(len(pool))] for pool in pools]
        taken: list[tuple[int, T]] = []
        for turn in range(max(map(len, shuffled))):
            taken += [(document, shuffled[document][turn]) for document in self.order if turn < len(shuffled[document])]
        if len(taken) < count:
            raise TemporalLensError(
                f"the text is too short for the order task '{self.name}': it holds {len(taken)} {what} of {count} that are needed; "
                "give a longer text, or fewer items"
            )
        return sorted(taken[:count], key=lambda entry: entry[0])

    def sentences(self, count: int) -> list[tuple[int, Sentence]]:
        """Plain sentences, the same ones for every task: what a model makes of an intact sentence is then computed once."""
        pools = [[sentence for sentence in document.plain if not set(MARKERS) & set(sentence)] for document in self.documents]
        return self.spread(pools, count, "sentences without punctuation or repeated words", np.random.default_rng((self.seed, 1)))

    def between(self, first: int, last: int) -> int:
        """A number from `first` to `last`."""
        return int(self.random.integers(first, last + 1))

    def eligible(self, document: int) -> set[str]:
        """Words of a document that items may be about: no other fold has them."""
        return {word for word in self.documents[document].vocabulary if self.fold_of_word[word] == self.fold_of[document]}


class Maker(NamedTuple):
    """How a task is made."""

    classes: tuple[str, ...]
    make: Callable[[Source, int], list[Group]]
    about_order: bool = True


def make_tasks(texts: Iterable[str], items: int, seed: int, names: Sequence[str] | None = None) -> list[OrderTask]:
    """The tasks of these names (None: all of them), each of `items` items, or a few less where they come in larger groups.

    The same texts, items and seed give the same task, whichever others are asked for.
    Raises TemporalLensError for an unknown name, too few documents to divide into folds, or a text that is too short.
    """
    wanted = list(TASKS) if names is None else list(names)
    for name in wanted:
        if name not in TASKS:
            raise TemporalLensError(f"there is no order task '{name}'{did_you_mean(name, TASKS)}")
    documents = read_documents(texts)
    if len(documents) < FOLDS:
        raise TemporalLensError(
            f"order tasks are divided by document into {FOLDS} folds, and the text holds {len(documents)} documents: give at least {FOLDS}"
        )
    order = np.random.default_rng((seed, 0)).permutation(len(documents)).tolist()
    fold_of = (np.argsort(order) % FOLDS).tolist()
    words = set[str]().union(*(document.vocabulary for document in documents))
    folded = {word: _fold_of_word(word, seed) for word in words}
    draws = {name: np.random.default_rng((seed, 2, *name.encode())) for name in wanted}
    return [_make(Source(name, documents, fold_of, folded, order, seed, draws[name]), items) for name in wanted]


def _fold_of_word(word: str, seed: int) -> int:
    return int.from_bytes(hashlib.blake2b(f"{seed} {word}".encode(), digest_size=8).digest(), "big") % FOLDS


def _make(source: Source, items: int) -> OrderTask:
    name, fold_of, maker = source.name, source.fold_of, TASKS[source.name]
    classes = len(maker.classes)
    if items < classes * FOLDS:
        raise TemporalLensError(f"{items} items are too few for the order task '{name}': give at least {classes * FOLDS}")
    groups = maker.make(source, items // classes)
    used = {document for document, _ in groups}
    if len({fold_of[document] for document in used}) < FOLDS:
        raise TemporalLensError(
            f"only {len(used)} documents of the text give items for the order task '{name}', and not in each of {FOLDS} folds: "
            "give more documents, or longer ones"
        )
    flat = [item for _, group in groups for item in group]
    document = np.repeat([document for document, _ in groups], classes)
    spans = [item.span for item in flat if item.span is not None]
    return OrderTask(
        name=name,
        about_order=maker.about_order,
        classes=maker.classes,
        texts=[item.text for item in flat],
        spans=spans or None,
        label=np.tile(np.arange(classes), len(groups)),
        group=np.repeat(np.arange(len(groups)), classes),
        document=document,
        fold=np.array(fold_of)[document],
    )


def _sentence(words: Words) -> Item:
    return Item(" ".join(words) + ".")


def _intact_and(change: Callable[[Source, Sentence], Words]) -> Callable[[Source, int], list[Group]]:
    """Pairs of a sentence as it was written and as `change` orders its words."""

    def make(source: Source, count: int) -> list[Group]:
        return [(document, (_sentence(words), _sentence(change(source, words)))) for document, words in source.sentences(count)]

    return make


def _swapped(words: Words, first: int, second: int) -> Words:
    changed = list(words)
    changed[first], changed[second] = words[second], words[first]
    return changed


def _adjacent_swap(source: Source, words: Sentence) -> Words:
    """Two neighbours exchanged, neither of them first or last."""
    index = source.between(1, len(words) - 3)
    return _swapped(words, index, index + 1)


def _far_swap(source: Source, words: Sentence) -> Words:
    """Two words exchanged that are FAR apart or further, neither of them first or last."""
    first = source.between(1, len(words) - 2 - FAR)
    return _swapped(words, first, source.between(first + FAR, len(words) - 2))


def _window_shuffle(size: int) -> Callable[[Source, Sentence], Words]:
    def change(source: Source, words: Sentence) -> Words:
        """The words between first and last, in windows of `size`, each in an order that is not its own."""
        inside, changed = words[1:-1], [words[0]]
        for start in range(0, len(inside), size):
            window = inside[start : start + size]
            changed += [window[index] for index in _derangement(source, len(window))]
        return [*changed, words[-1]]

    return change


def _derangement(source: Source, count: int) -> list[int]:
    """A permutation of `count` items other than the identity, where there is one."""
    identity = list(range(count))
    order = source.random.permutation(count).tolist()
    while order == identity and count > 1:
        order = source.random.permutation(count).tolist()
    return order


def _reversed_tail(source: Source, words: Sentence) -> Words:
    """The second half in reverse."""
    middle = len(words) // 2
    return [*words[:middle], *reversed(words[middle:])]


def _clause_inversion(source: Source, count: int) -> list[Group]:
    """`X, and Y.` against `Y, and X.`, with capitals where they belong."""

    def texts(clauses: Clauses) -> tuple[Item, Item]:
        first, second = list(clauses.first), list(clauses.second)
        intact = Item(f"{' '.join(first)}, {clauses.joint} {' '.join(second)}.")
        first[0], second[0] = first[0].lower(), second[0][0].upper() + second[0][1:]
        return intact, Item(f"{' '.join(second)}, {clauses.joint} {' '.join(first)}.")

    pools = [document.clauses for document in source.documents]
    return [(document, texts(clauses)) for document, clauses in source.spread(pools, count, "sentences of two joined clauses")]


def _sentence_order(source: Source, count: int) -> list[Group]:
    """Two neighbouring sentences as they stand, and in reverse."""
    pools = [document.neighbours for document in source.documents]
    drawn = source.spread(pools, count, "pairs of neighbouring sentences")
    written = [(document, tuple(" ".join(words) + "." for words in pair)) for document, pair in drawn]
    return [(document, (Item(f"{first} {second}"), Item(f"{second} {first}"))) for document, (first, second) in written]


def _with(words: Words, *inserted: tuple[int, str]) -> Item:
    """A sentence with words put in before the given indices, which ascend."""
    changed = list(words)
    for index, word in reversed(inserted):
        changed.insert(index, word)
    return _sentence(changed)


def _marker_order(source: Source, count: int) -> list[Group]:
    """Which of two markers comes first, at the same two indices of a sentence."""
    one, other = MARKERS[:2]
    groups: list[Group] = []
    for document, words in source.sentences(count):
        first = source.between(1, len(words) - 1 - APART)
        second = source.between(first + APART, len(words) - 1)
        groups.append((document, (_with(words, (first, one), (second, other)), _with(words, (first, other), (second, one)))))
    return groups


def _marker_half(source: Source, count: int) -> list[Group]:
    """In which half of a sentence a marker stands; every marker is in both halves of some sentence equally often."""
    groups: list[Group] = []
    for number, (document, words) in enumerate(source.sentences(count)):
        marker, half = MARKERS[number % len(MARKERS)], len(words) // 2
        early, late = source.between(1, half - 1), source.between(half + 1, len(words) - 1)
        groups.append((document, (_with(words, (early, marker)), _with(words, (late, marker)))))
    return groups


def _word_content(source: Source, count: int) -> list[Group]:
    """Which of two markers a sentence holds, at the same index: order carries no information."""
    groups: list[Group] = []
    for document, words in source.sentences(count):
        index = source.between(1, len(words) - 1)
        groups.append((document, tuple(_with(words, (index, marker)) for marker in MARKERS[:2])))
    return groups


def _repetition(source: Source, count: int) -> list[Group]:
    """`a b a b` against `a b b a`, with words that no other fold has."""

    def pairs(document: int) -> list[tuple[str, str]]:
        vocabulary = sorted(source.eligible(document))
        mixed = [vocabulary[index] for index in source.random.permutation(len(vocabulary))]
        return list(zip(mixed[::2], mixed[1::2], strict=False))

    drawn = source.spread(list(map(pairs, range(len(source.documents)))), count, "pairs of words")
    return [(document, (_sentence((a, b, a, b)), _sentence((a, b, b, a)))) for document, (a, b) in drawn]


def _position_bucket(source: Source, count: int) -> list[Group]:
    """How far into a row a word stands; rows begin at any word of a document, and give a word of each class."""
    tries = TRIES * -(-count // len(source.documents))

    def rows(document: int) -> list[tuple[Words, list[int]]]:
        words, eligible = source.documents[document].words, source.eligible(document)
        found: list[tuple[Words, list[int]]] = []
        for start in source.random.integers(0, max(1, len(words) - ROW), tries).tolist():
            row = words[start : start + ROW]
            indices = [[index for index in range(a, b + 1) if row[index] in eligible] for a, b in BUCKETS if b < len(row)]
            if len(indices) == len(BUCKETS) and all(indices):
                found.append((row, [options[source.between(0, len(options) - 1)] for options in indices]))
        return found

    drawn = source.spread(list(map(rows, range(len(source.documents)))), count, f"rows of {ROW} words")
    return [(document, [_about(row, index) for index in indices]) for document, (row, indices) in drawn]


def _sentence_distance(source: Source, count: int) -> list[Group]:
    """How many words ago a word's sentence began; the words of a group stand at the same index of their rows."""
    tries = TRIES * -(-count // len(source.documents))

    def rows(document: int) -> list[list[Item]]:
        """Of each range of distances, the words that stand there."""
        words, begins, eligible = source.documents[document].words, source.documents[document].begins, source.eligible(document)
        classes = [
            [
                index
                for begin, following in pairwise([*begins, len(words)])
                for index in range(begin + nearest, min(begin + furthest + 1, following))
                if LATEST <= index < len(words) - (SHORT_ROW - EARLIEST) and words[index] in eligible
            ]
            for nearest, furthest in DISTANCES
        ]
        if not all(classes):
            return []
        found = []
        for _ in range(min(tries, *map(len, classes))):
            at = source.between(EARLIEST, LATEST)
            chosen = [indices[source.between(0, len(indices) - 1)] for indices in classes]
            found.append([_about(words[index - at : index - at + SHORT_ROW], at) for index in chosen])
        return found

    return source.spread(list(map(rows, range(len(source.documents)))), count, "groups of words at different distances")


def _about(row: Words, index: int) -> Item:
    """An item about one word of a row."""
    start = sum(len(word) + 1 for word in row[:index])
    return Item(" ".join(row), (start, start + len(row[index])))


INTACT = ("intact", "changed")
TASKS: dict[str, Maker] = {
    "adjacent_swap": Maker(INTACT, _intact_and(_adjacent_swap)),
    "far_swap": Maker(INTACT, _intact_and(_far_swap)),
    "window_shuffle_2": Maker(INTACT, _intact_and(_window_shuffle(2))),
    "window_shuffle_4": Maker(INTACT, _intact_and(_window_shuffle(4))),
    "window_shuffle_8": Maker(INTACT, _intact_and(_window_shuffle(8))),
    "reversed_tail": Maker(INTACT, _intact_and(_reversed_tail)),
    "clause_inversion": Maker(INTACT, _clause_inversion),
    "sentence_order": Maker(INTACT, _sentence_order),
    "marker_order": Maker(MARKERS[:2], _marker_order),
    "marker_half": Maker(("first half", "second half"), _marker_half),
    "repetition": Maker(("abab", "abba"), _repetition),
    "position_bucket": Maker(tuple(f"{first} to {last}" for first, last in BUCKETS), _position_bucket),
    "sentence_distance": Maker(tuple(f"{first} to {last}" for first, last in DISTANCES), _sentence_distance),
    "word_content": Maker(MARKERS[:2], _word_content, about_order=False),
}
