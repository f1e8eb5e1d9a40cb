"""Clocks tell the time of tokens: by definition, token after token, whatever the row."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from temporallens.activations.clocks import CLOCKS, TokenMarks, TokenRow, clock_named, usable_clocks
from temporallens.errors import TemporalLensError
from tiny_models import tiny_tokenizer

WORD, STOP, PART, LINE, SPECIAL, CHINESE_STOP = range(6)  # " word", ".", "5", "\n", "<s>", "。"
MARKS = TokenMarks(
    sentence_end=np.array([False, True, False, False, False, False]),
    unspaced_sentence_end=np.array([False, False, False, False, False, True]),
    word_start=np.array([True, False, False, True, False, False]),
    newline=np.array([False, False, False, True, False, False]),
    special=np.array([False, False, False, False, True, False]),
    yields_newlines=True,
)


def _row(tokens: list[int], documents: list[int] | None = None) -> TokenRow:
    document = np.array(documents if documents is not None else [0] * len(tokens))
    return TokenRow(np.array(tokens), document, np.arange(len(tokens)) + 1000)


def test_sentence_restarts_after_a_stop_before_a_new_word() -> None:
    row = _row([SPECIAL, WORD, WORD, STOP, PART, WORD, STOP, WORD, LINE, WORD, CHINESE_STOP, PART])
    assert CLOCKS["sentence"].tell(row, MARKS).tolist() == [0, 0, 1, 2, 3, 4, 5, 0, 1, 0, 1, 0]


def test_newline_restarts_after_line_breaks_and_documents() -> None:
    row = _row([WORD, LINE, LINE, WORD, STOP, WORD, WORD, SPECIAL, WORD], documents=[0, 0, 0, 0, 0, 1, 1, 1, 1])
    assert CLOCKS["newline"].tell(row, MARKS).tolist() == [0, 1, 0, 0, 1, 0, 1, 2, 0]


def test_index_and_document_are_columns_of_the_row() -> None:
    row = _row([WORD] * 5)
    assert CLOCKS["index"].tell(row, MARKS).tolist() == [0, 1, 2, 3, 4]
    assert CLOCKS["document"].tell(row, MARKS).tolist() == [1000, 1001, 1002, 1003, 1004]
    assert CLOCKS["document"].position(_row([WORD] * 30), MARKS, 30).max() == 1023


tokens = st.lists(st.integers(0, 5), min_size=1, max_size=80)


@given(tokens, st.sampled_from(sorted(CLOCKS)), st.integers(1, 100))
def test_positions_lie_within_the_clock(ids: list[int], name: str, context_length: int) -> None:
    clock = CLOCKS[name]
    position = clock.position(_row(ids[:context_length]), MARKS, context_length)
    assert position.min() >= 0
    assert position.max() < clock.size(context_length)


@given(tokens, st.sampled_from(["sentence", "newline"]))
def test_restarting_clocks_count_by_one_or_restart(ids: list[int], name: str) -> None:
    times = CLOCKS[name].tell(_row(ids), MARKS)
    assert times[0] == 0
    assert all(after in (0, before + 1) for before, after in pairwise(times))
    assert (times <= np.arange(len(ids))).all()


@given(tokens)
def test_a_line_break_is_also_the_end_of_a_sentence(ids: list[int]) -> None:
    assert (CLOCKS["sentence"].tell(_row(ids), MARKS) <= CLOCKS["newline"].tell(_row(ids), MARKS)).all()


def test_marks_of_byte_pairs() -> None:
    tokenizer = tiny_tokenizer("llama")
    marks = TokenMarks.of(tokenizer)

    def token(text: str) -> int:
        return tokenizer.convert_tokens_to_ids(text)

    assert marks.yields_newlines
    assert marks.newline[token("Ċ")]
    assert marks.sentence_end[token(".")]
    assert not marks.sentence_end[token(",")]
    assert marks.word_start[token("Ġt")]
    assert not marks.word_start[token("t")]
    assert np.flatnonzero(marks.special).tolist() == sorted(tokenizer.all_special_ids)


def test_word_pieces_have_no_newline_clock() -> None:
    tokenizer = tiny_tokenizer("bert")
    marks = TokenMarks.of(tokenizer)
    assert sorted(usable_clocks(marks)) == ["document", "index", "sentence"]
    ids = np.array(tokenizer.backend_tokenizer.encode("It rose. They talk.", add_special_tokens=False).ids)
    times = CLOCKS["sentence"].tell(TokenRow(ids, np.zeros_like(ids), np.arange(len(ids))), marks)
    stop = ids.tolist().index(tokenizer.convert_tokens_to_ids("."))
    assert times.tolist() == [*range(stop + 1), *range(len(ids) - stop - 1)]


def test_unknown_clock_names_the_nearest() -> None:
    with pytest.raises(TemporalLensError, match="no clock 'sentense'; did you mean 'sentence'"):
        clock_named("sentense")
