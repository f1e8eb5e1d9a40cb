"""Clocks tell the time of tokens: by definition, token after token, whatever the row."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from temporallens.activations.clocks import CLOCKS, TokenMarks, TokenRow, at_positions, over_positions
from temporallens.activations.expressions import clock_of
from temporallens.activations.language.token_rows import RowShape, token_rows
from temporallens.errors import TemporalLensError
from tiny_models import tiny_tokenizer
from tiny_tokenizers import MADE, Encoding, made

MARKS = TokenMarks(special=np.array([False, True]), parting=np.array([False, True]))
WORD, SPECIAL = range(2)


def _row(tokens: list[int], sentences: list[int], lines: list[int], documents: list[int] | None = None) -> TokenRow:
    """A row whose sentences and lines begin at these places."""
    index = np.arange(len(tokens))
    document = np.array(documents if documents is not None else [0] * len(tokens))
    return TokenRow(np.array(tokens), document, index + 1000, np.isin(index, sentences), np.isin(index, lines))


def test_sentence_and_newline_restart_where_the_text_does_behind_special_tokens_and_with_documents() -> None:
    row = _row([SPECIAL, *[WORD] * 6, SPECIAL, WORD, WORD, WORD], [3, 9], [5], documents=[0] * 10 + [1])
    assert CLOCKS["sentence"].times(row, MARKS).tolist() == [0, 0, 1, 0, 1, 2, 3, 4, 0, 0, 0]
    assert CLOCKS["newline"].times(row, MARKS).tolist() == [0, 0, 1, 2, 3, 0, 1, 2, 0, 1, 0]


def test_index_and_document_are_columns_of_the_row() -> None:
    row = _row([WORD] * 5, [2], [3])
    assert CLOCKS["index"].times(row, MARKS).tolist() == [0, 1, 2, 3, 4]
    assert CLOCKS["document"].times(row, MARKS).tolist() == [1000, 1001, 1002, 1003, 1004]
    assert CLOCKS["document"].position(_row([WORD] * 30, [], []), MARKS, 30).max() == 1023


rows = st.lists(st.tuples(st.integers(0, 1), st.booleans(), st.booleans()), min_size=1, max_size=80).map(
    lambda tokens: _row(
        [token for token, *_ in tokens],
        [place for place, (_, begins, _) in enumerate(tokens) if begins],
        [place for place, (*_, begins) in enumerate(tokens) if begins],
    )
)


@given(rows, st.sampled_from(sorted(CLOCKS)), st.integers(0, 20))
def test_positions_lie_within_the_clock(row: TokenRow, name: str, room: int) -> None:
    clock, context_length = CLOCKS[name], len(row.tokens) + room
    position = clock.position(row, MARKS, context_length)
    assert position.min() >= 0
    assert position.max() < clock.size(context_length)


@given(rows, st.sampled_from(["sentence", "newline"]))
def test_restarting_clocks_count_by_one_or_restart(row: TokenRow, name: str) -> None:
    times = CLOCKS[name].times(row, MARKS)
    assert times[0] == 0
    assert all(after in (0, before + 1) for before, after in pairwise(times))
    assert (times <= np.arange(len(row.tokens))).all()


def _told(clock: str, tokenizer: Tokenizer | PreTrainedTokenizerFast, text: str) -> list[tuple[str, int]]:
    """Every token, as it is spelled, with its time."""
    model = Encoding(tokenizer)
    (row,) = token_rows(model, [text], RowShape(200, None, None, None), "document")
    times = CLOCKS[clock].times(row, TokenMarks.of(model.tokenizer))
    return list(zip(model.tokenizer.convert_ids_to_tokens(row.tokens), times.tolist(), strict=True))


def _restarts(clock: str, tokenizer: Tokenizer, text: str) -> list[str]:
    return [token for token, time in _told(clock, tokenizer, text)[1:] if time == 0]


def test_signs_of_markdown_make_no_word_pieces() -> None:
    """A byte-level vocabulary that owns "##" is told like any other."""
    text = "it costs 3.5 now. Then"
    for trained_on in ([text], [text, "## head ## head"]):
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.train_from_iterator(trained_on)
        times = [time for _, time in _told("sentence", tokenizer, text)]
        then = [token for token, _ in _told("sentence", tokenizer, text)].index("ĠThen")
        assert times == [*range(then), 0]


@pytest.mark.parametrize("kind", ["word pieces", "word pieces, cased"])
def test_word_pieces_are_not_told_by_what_is_glued(kind: str) -> None:
    assert _restarts("sentence", made(kind), "pi is 3.14 and the U.S. won. the end")[0][:1] == "t"
    assert len(_restarts("sentence", made(kind), "pi is 3.14 and the U.S. won. the end")) == 1
    assert len(_restarts("newline", made(kind), "one\n\ntwo three\r\nfour")) == 2


@pytest.mark.parametrize("kind", MADE)
def test_ends_of_sentences_of_every_script(kind: str) -> None:
    if kind == "fives":
        return
    for text, ends in (("今日は雨です。明日は晴れです。今日", 2), ("He said “yes.” She left… But “No.” Then", 3), ("यह है। वह था", 1)):
        assert len(_restarts("sentence", made(kind), text)) == ends


def test_letters_of_an_alphabet_are_no_white_space() -> None:
    """What byte-level vocabularies spell white space with are letters of Maltese, Czech and Esperanto elsewhere."""
    tokenizer = Tokenizer(
        models.WordLevel({word: number for number, word in enumerate(["?", "▁a", "▁b", "▁Ċensu", "▁ĉe", "▁če"])}, unk_token="?")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    for clock in ("sentence", "newline"):
        assert [time for _, time in _told(clock, tokenizer, "a b Ċensu a ĉe b če a")] == list(range(8))


def _vocabulary(words: dict[str, int]) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>")


def test_unknown_words_are_words_of_their_sentence() -> None:
    tokenizer = _vocabulary({"<unk>": 0, "<s>": 1, "w": 2})
    assert [time for _, time in _told("sentence", tokenizer, "w w 🍕 w <s> w")] == [0, 1, 2, 3, 4, 0]
    bytes_alone = tiny_tokenizer("llama")
    bytes_alone.unk_token = "</s>"  # as in vocabularies that know all text
    assert TokenMarks.of(bytes_alone).parting[bytes_alone.eos_token_id]


def test_special_tokens_are_those_of_the_table_of_added_ones_too() -> None:
    tokenizer = _vocabulary({"<unk>": 0, "<s>": 1, "w": 2})
    tokenizer.add_tokens([AddedToken("<|im_start|>", special=True)], special_tokens=True)
    tokenizer.add_tokens([AddedToken("<tag>", special=False)])
    assert TokenMarks.of(tokenizer).special.tolist() == [True, True, False, True, False]
    assert TokenMarks.of(tokenizer).parting.tolist() == [False, True, False, True, False]


def test_vocabularies_may_have_gaps() -> None:
    special = TokenMarks.of(_vocabulary({"<unk>": 0, "<s>": 7, "w": 99})).special
    assert (len(special), np.flatnonzero(special).tolist()) == (100, [0, 7])


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_special_tokens_of_ordinary_tokenizers(family: str) -> None:
    tokenizer = tiny_tokenizer(family)
    assert np.flatnonzero(TokenMarks.of(tokenizer).special).tolist() == sorted(tokenizer.all_special_ids)


def test_unknown_clock_names_the_nearest() -> None:
    with pytest.raises(TemporalLensError, match="no clock 'sentense'; did you mean 'sentence'"):
        clock_of("sentense")


def test_positions_later_than_a_table_knows_have_its_last_row() -> None:
    table = torch.arange(6.0).view(3, 2)
    positions = torch.tensor([[0, 2], [3, 700]], dtype=torch.int32)
    assert torch.equal(at_positions(table, positions), table[torch.tensor([[0, 2], [2, 2]])])
    assert over_positions(np.array([5, 6]), 4).tolist() == [5, 6, 6, 6] and over_positions(np.array([5, 6, 7]), 2).tolist() == [5, 6]
