"""Sentences and lines are told from the text, and fall on the same characters whatever the vocabulary."""

import time

import numpy as np
import pytest
from hypothesis import given, strategies as st

from temporallens.activations.language.boundaries import find_line_breaks, find_sentence_gaps, spans_of, starts_in
from tiny_tokenizers import MADE, encoding, first_characters

SENTENCES = {  # with a bar where a sentence begins after another
    "numbers": "It costs 3.5 dollars, or 1,000.00 of v1.2.3. |It is 5. |The next 4. |10 came",
    "addresses": "See www.example.com or https://x.y/z?a=b.c&D=E.F!g in main.py. |Then go to foo.com/Bar.Baz now",
    "initials": "J. F. Kennedy and C.J. Smith met H. G. Wells. |He left",
    "titles": "Mr. Speaker, Dr. No, Gov. Lee and St. Paul of Acme Inc. met Prof. X, Jr. |Then",
    "abbreviations": "Use e.g. this, i.e. That, etc. and cf. Smith et al. for it at 5 p.m. Monday. |Yes",
    "abbreviations that end one": "They live in the U.S. |They work for the U.S. Senate till 5 p.m. |It is so, etc. |But (in the U.S.) |He",
    "before numbers": "On Jan. 5, No. 7 of Art. IV, Fig. A and pp. 3 said no. |No. |Then in Sept. |We",
    "german ordinals": "Am 3. Oktober 1990 und der 2. Weltkrieg im 19. Jahrhundert, vom 5. bis 7. März. |I am 25. |John is 3. |Ok",
    "names after abbreviations": "The U.S. President, the U.N. Council, Louis XIV. and J. R. R. Tolkien vs. Smith. |In the U.S. |Then",
    "military and office": "Pvt. Ryan, Insp. West, Assoc. Prof. Ames, Apt. 5 on Rte. 66, Bd. 3, Abb. 4. |We slept at 5 a.m. |Then",
    "kings and wars": "World War II. |Germany lost. |It was 1945. |October came",
    "lists": "1. First\n|2. Second\n  |a. Third\n|* IV. Fourth\n|It is\nNow".replace("\nN", "\n|N"),
    "ellipses": "well... maybe… so . . . on. |He left... |But went… |And . . . |Then",
    "quotes": "He said “yes.” |She said \"no.\" |(It rained.) |Then 'so.' |“Why?” he asked. |«Oui.» |[Done.] |»Ja.« |Ok",
    "several marks": "What?! |No way!! |Really?.. |Yes",
    "exclamations": "“Stop!” he said and Yahoo! went on. |End",
    "markup": "**Bold.** |Then _it._ |And `code.` |So text.[1] |Next [2]. |## Head",
    "code": "x = a[0].b; obj.method(); Foo.Bar(); s = *.py; y != z... |# Next",
    "lines": "a title\n|\n\n  another\r\n|and\u2028|so\n".replace("|\n\n  ", "\n\n  |"),
    "japanese": "今日は雨です。|明日は「晴れ。」|それで？！|次は３．５です．|次",
    "chinese": "你好!|我们走吧.|他说：“好。”|然后……他",
    "hindi": "यह है। |वह था॥|फिर",
    "arabic and urdu": "كيف حالك؟ |بخير۔ |نعم",
    "armenian and ethiopic": "Բարև։ |Ինչ ሰላም።|ነው",
    "french": "Quoi ? |Oui ! |M. Dupont est là. |« Oui. » |Bon",
    "blanks before marks": "he came . |( it rained ! ) |she said “ yes . ” |then",
    "nothing between": "the end.Then it went.on",
    "no capitals": "pi is 3.14 and the U.S. won. |the end came, e.g. here ...and there. |so",
    "a toy": "w1 w2 . |w3 w4. |w5 ! |w6",
    "capitals with few slips": "It ended. the next. |But. |They went. |He",
    "nothing": "",
    "white space": " \n ",
}


@pytest.mark.parametrize("name", SENTENCES)
def test_sentences(name: str) -> None:
    *parts, last = SENTENCES[name].split("|")
    begins = np.cumsum([len(part) for part in parts]).tolist()
    text = "".join([*parts, last])
    found = find_sentence_gaps(text, find_line_breaks(text)).begin
    assert [place for place in found.tolist() if place < len(text)] == begins


def test_lines() -> None:
    breaks = find_line_breaks("a \n\n b\r\nc\rd\x85e\u2028f\n")
    assert breaks.line.tolist() == [3, 4, 8, 10, 12, 14, 16]
    assert breaks.gaps.end.tolist() == [1, 1, 6, 9, 11, 13, 15]
    assert breaks.gaps.begin.tolist() == [5, 5, 8, 10, 12, 14, 16]


@pytest.mark.parametrize("unit", [".", " ", "\n", '."', ". ", "a.", ". -", "(.", "'", ".。"])
def test_time_grows_with_length_alone(unit: str) -> None:
    text = unit * 20_000
    start = time.process_time()
    find_sentence_gaps(text, find_line_breaks(text))
    assert time.process_time() - start < 10  # a second at most; with the square of the length it would be minutes


@pytest.mark.parametrize("kind", ["byte level", "byte level, trimmed offsets"])
def test_tokens_that_begin_sentences_and_lines(kind: str) -> None:
    """A line break belongs to the line that it ends; blanks behind it may begin a line, but no sentence."""
    text = "It rained.\n\n  She said “yes.” Then"
    spans = encoding(kind).encode_with_spans([text])[0].spans
    tokens = [text[start:end].strip(" ") for start, end in zip(*spans, strict=True)]
    assert tokens[3:10] == [".", "\n", "\n", "She", "sai", "d", "“"]  # the second line break with a blank, and so with a line of its own
    starts = starts_in(text, spans)
    assert [tokens[place] for place in np.flatnonzero(starts.sentence)] == ["She", "The"]
    assert np.flatnonzero(starts.line).tolist() == [5, 6]


PIECES = ["Dr. No", "3.5", "“Yes.”", "(It rained.)", "e.g.", "the U.S.", "went…", "well...", "What?!", "She", "left.", "Ok"]
PIECES += ["naïve", "a.b", "今日。", "明日", "x", "č Ċ", "##", "foo.Bar()", "- 1.", "it", "॥"]
texts = st.lists(st.tuples(st.sampled_from(PIECES), st.sampled_from([" ", " ", " ", "\n", "\n\n", "\r\n", "\n  "])), max_size=30)


@given(texts)
def test_sentences_and_lines_are_the_same_under_every_vocabulary(pieces: list[tuple[str, str]]) -> None:
    text = "".join(piece + space for piece, space in pieces)
    breaks = find_line_breaks(text)
    expected = [set(gaps.begin.tolist()) - {len(text)} for gaps in (find_sentence_gaps(text, breaks), breaks.gaps)]
    for kind in sorted(MADE.keys() - {"fives"}):  # whose tokens do not end where words do
        _, spans = encoding(kind).encode_with_spans([text])[0]
        begun = [first_characters(text, spans.start[begins].tolist()) - {len(text)} for begins in starts_in(text, spans)]
        assert begun == expected, kind


@given(texts)
def test_spans_never_go_back_and_change_no_token(pieces: list[tuple[str, str]]) -> None:
    text = "".join(piece + space for piece, space in pieces)
    for kind in MADE:
        ids, spans = encoding(kind).encode_with_spans([text])[0]
        assert ids.tolist() == encoding(kind).encode(text)
        assert (np.diff(spans.start) >= 0).all()
        assert (np.diff(spans.end) >= 0).all()
        assert (spans.start <= spans.end).all()


def test_spans_of_white_space_that_a_tokenizer_leaves_out() -> None:
    spans = spans_of([(0, 1), (1, 2), (4, 4), (5, 7), (5, 7), (6, 6)])
    assert spans.start.tolist() == [0, 1, 2, 5, 5, 6]
    assert spans.end.tolist() == [1, 2, 4, 7, 7, 7]
