"""Clocks by expression, against what is counted by hand."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from temporallens.activations.clocks import CLOCKS, TokenMarks, TokenRow
from temporallens.activations.expressions import canonical, clock_of
from temporallens.activations.language.harvest import HarvestPolicy
from temporallens.errors import TemporalLensError

MARKS = TokenMarks(np.zeros(100, dtype=bool), np.zeros(100, dtype=bool))


def row(length: int, lines: tuple[int, ...] = (), read: object = None) -> TokenRow:
    index = np.arange(length)
    none = np.zeros(length, dtype=bool)
    told = np.zeros((0, length), dtype=np.int64) if read is None else np.asarray(read)
    return TokenRow(np.ones(length, dtype=np.int64), np.zeros(length, dtype=np.int64), index, none, np.isin(index, lines), told)


def told(asked: object, text: str, tokens: list[str]) -> list[int]:
    """What a clock that reads the text says of these tokens, which make it up."""
    clock = clock_of(asked)
    starts = np.cumsum([0, *map(len, tokens)])[:-1]
    assert "".join(tokens) == text
    read = np.stack([reader(text, starts) for reader in clock.readers])
    return clock.position(row(len(tokens), read=read), MARKS, len(tokens)).tolist()


def test_modulo_and_from_the_end() -> None:
    assert clock_of({"modulo": 3}).position(row(7), MARKS, 7).tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert clock_of({"modulo": 2, "of": "newline"}).position(row(6, (3,)), MARKS, 6).tolist() == [0, 1, 0, 0, 1, 0]
    assert clock_of({"from_end": "index"}).position(row(4), MARKS, 4).tolist() == [3, 2, 1, 0]
    assert clock_of({"from_end": "newline"}).position(row(6, (2, 3)), MARKS, 6).tolist() == [1, 0, 0, 2, 1, 0]


def test_fields_are_counted_within_their_line() -> None:
    tokens = ["date", ",", "te", "mp", ",", "\n", "1", ",,", "2"]
    assert told({"field": ","}, "".join(tokens), tokens) == [0, 0, 1, 1, 1, 2, 0, 0, 2]
    assert told({"field": ",", "fields": 2}, "".join(tokens), tokens) == [0, 0, 1, 1, 1, 1, 0, 0, 1]


def test_since_counts_from_behind_each_match() -> None:
    tokens = ["a", "Q", ": ", "who", "?", "Q: ", "b"]
    assert told({"since": "Q: "}, "".join(tokens), tokens) == [0, 1, 2, 0, 1, 2, 0]


def test_products_tell_row_and_column() -> None:
    clock = clock_of({"product": [{"modulo": 2, "of": "newline"}, {"modulo": 3}]})
    assert clock.size(100) == 6
    assert clock.position(row(7, (4,)), MARKS, 7).tolist() == [0, 4, 2, 3, 1, 5, 0]
    nested = clock_of({"product": [{"field": ","}, {"since": ";"}]})
    assert nested.size(10) == 64 * 256
    read = np.array([[0, 1, 1], [0, 0, 1]])
    assert nested.position(row(3, read=read), MARKS, 3).tolist() == [0, 257, 256]


@given(
    st.sampled_from([{"modulo": 5}, {"from_end": "sentence"}, {"product": [{"modulo": 4}, {"modulo": 2, "of": "newline"}]}]),
    st.integers(1, 30),
)
@settings(max_examples=30)
def test_times_lie_within_their_size_and_json_says_the_same(asked: dict[str, object], length: int) -> None:
    clock, read_again = clock_of(asked), clock_of(canonical(asked))
    times = clock.position(row(length, (3, 7)), MARKS, length)
    assert times.min() >= 0 and times.max() < clock.size(length)
    np.testing.assert_array_equal(times, read_again.position(row(length, (3, 7)), MARKS, length))


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ("sentense", "did you mean 'sentence'"),
        ({"module": 3}, "one of the keys modulo"),
        ({"modulo": 1}, "whole number from 2"),
        ({"modulo": True}, "whole number from 2"),
        ({"modulo": 3, "off": "index"}, "no setting 'off'"),
        ({"since": "("}, "no regular expression"),
        ({"since": ""}, "regular expression of 1 to"),
        ({"field": "\n"}, "separates the fields"),
        ({"field": ",", "fields": 1}, "whole number from 2"),
        ({"product": ["index"]}, "list of two clocks"),
        ({"product": [{"modulo": 2}, "index"]}, "known number of positions"),
        ({"product": ["index", {"modulo": 2}]}, "no known number"),
        ({"product": [{"modulo": 2048}, {"modulo": 2048}]}, "4,194,304"),
        ({"from_end": 3}, "a name or an expression"),
        ('{"modulo": ', "no JSON"),
        (3, "a name or an expression"),
    ],
)
def test_what_is_no_clock_is_refused_in_one_sentence(asked: object, sentence: str) -> None:
    with pytest.raises(TemporalLensError) as refused:
        clock_of(asked)
    assert sentence in str(refused.value)


def test_expressions_nest_to_a_depth() -> None:
    asked: object = "index"
    for _ in range(20):
        asked = {"modulo": 2, "of": asked}
    with pytest.raises(TemporalLensError, match="a name or an expression"):
        clock_of(asked)


def test_a_policy_holds_an_expression_as_json() -> None:
    policy = HarvestPolicy(model="m", layer=0, clock={"modulo": 24, "of": "newline"}, position_names=["a", "b"])  # type: ignore[arg-type]
    assert policy.clock == '{"modulo": 24, "of": "newline"}'
    assert HarvestPolicy.model_validate(policy.model_dump(mode="json")) == policy
    assert policy.position_names == {0: "a", 1: "b"}
    assert "position_names" not in HarvestPolicy(model="m", layer=0).model_dump()
    assert set(CLOCKS) == {"index", "document", "sentence", "newline"}
