"""Texts through a model: the activations are the model's, positions hold on either side of the padding, and the cache is never wrong."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from torch import Tensor
from transformers import AutoModel

from temporallens.activations.language.harvest import harvest
from temporallens.activations.language.models import LanguageModel
from temporallens.errors import TemporalLensError
from temporallens.evaluation.model import passes
from temporallens.evaluation.model.passes import TextActivations, rule_positions, text_activations
from tiny_models import TEXTS, tiny_model

LAYER, CONTEXT, BATCH = 2, 24, 3
MANY = [f"{text} Number {number}." for number in range(3) for text in TEXTS]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_model("llama", tmp_path_factory.mktemp("models") / "llama"))


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_model("bert", tmp_path_factory.mktemp("models") / "bert"))


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, "CHUNK_TEXTS", 2 * BATCH)


def read(model: str, cache: Path, texts: list[str] = MANY, **options: Any) -> TextActivations:
    settings = {"context_length": CONTEXT, "dtype": "float32", "batch_size": BATCH} | options
    return text_activations(model, LAYER, texts, cache=cache, **settings)


def alone(folder: str, text: str) -> Tensor:
    """The residual stream `[n, D]` of one text without padding, as transformers computes it: BOS, then the text's tokens."""
    model = LanguageModel.load(folder)
    tokens = [model.bos, *model.encode(text)][:CONTEXT]
    with torch.no_grad():
        return AutoModel.from_pretrained(folder)(torch.tensor([tokens]), output_hidden_states=True).hidden_states[LAYER + 1][0]


def test_half_of_a_character_is_named_by_its_text(llama: str, tmp_path: Path) -> None:
    with pytest.raises(TemporalLensError, match=r"text 1 of reviews holds half of a character, the lone surrogate \\ud800"):
        read(llama, tmp_path, ["whole", "half \ud800"], title="reviews")


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("whole", [True, False])
def test_activations_are_the_models_and_stand_at_their_own_index(llama: str, tmp_path: Path, side: str, whole: bool) -> None:
    found = read(llama, tmp_path, padding_side=side, whole_context=whole)
    for text in (0, 3, 7, 14):
        wanted = alone(llama, MANY[text])
        torch.testing.assert_close(found.x[text][found.live[text]], wanted[1:], atol=2e-5, rtol=2e-4)
        assert found.position[text][found.live[text]].tolist() == list(range(1, len(wanted)))
        assert (found.x[text][~found.live[text]] == 0).all()


def test_an_encoder_is_read_between_its_own_tokens(bert: str, tmp_path: Path) -> None:
    found, left = read(bert, tmp_path, TEXTS), read(bert, tmp_path, TEXTS, padding_side="left")
    model = LanguageModel.load(bert)
    tokens = [model.bos, *model.encode(TEXTS[3]), model.closing]
    assert found.token[3, : len(tokens)].tolist() == tokens
    assert found.live[3].nonzero()[:, 0].tolist() == list(range(1, len(tokens) - 1))
    torch.testing.assert_close(left.live_rows().x, found.live_rows().x, atol=2e-5, rtol=2e-4)
    assert torch.equal(left.live_rows().position, found.live_rows().position)


def test_special_tokens_inside_a_text_are_not_live_and_move_nothing(llama: str, tmp_path: Path) -> None:
    text = "Short one.</s>It rose.<s> The end<pad>."
    for side in ("right", "left"):
        found = read(llama, tmp_path, [text, TEXTS[0]], padding_side=side)
        tokens = [LanguageModel.load(llama).bos, *LanguageModel.load(llama).encode(text)]
        inside = [index for index, token in enumerate(tokens) if token > 2]  # pad, BOS and EOS are 0, 1 and 2
        assert len(inside) == len(tokens) - 4
        assert found.position[0][found.live[0]].tolist() == inside


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("start", ["", "</s>", "<s>", "<pad>", "<s></s>", "<pad></s><s>"])
def test_texts_that_begin_with_special_tokens_stand_where_the_model_was_given_them(
    llama: str, tmp_path: Path, side: str, whole: bool, bos: bool, start: str
) -> None:
    model, texts = LanguageModel.load(llama), [f"{start}Short one.", f"{start}He walked home.</s>", "The river rose"]
    found = read(llama, tmp_path, texts, padding_side=side, whole_context=whole, bos=bos)
    for text, own in enumerate(texts):
        tokens = [*([model.bos] if bos else []), *model.encode(own)]
        places = [place for place, token in enumerate(tokens) if token > 2]  # pad, BOS and EOS are 0, 1 and 2
        assert places[0] == bos + start.count("<") * (text < 2)
        assert found.position[text][found.live[text]].tolist() == found.live_rows([text]).position.tolist() == places
        assert found.token[text][found.live[text]].tolist() == [tokens[place] for place in places]
    if start == "":
        assert torch.equal(found.position[found.live], rule_positions(found.live, bos)[found.live])


def test_a_text_is_read_at_the_positions_that_a_harvest_of_it_stores(llama: str, bert: str, tmp_path: Path) -> None:
    for model, texts in (
        (llama, ["</s> It rose.", "<s> </s> It rose.<pad> Then"]),
        (bert, ["[SEP] It rose.", "[CLS] [PAD] It [SEP] rose"]),
    ):
        settings = {"context_length": CONTEXT, "rows": "document", "dtype": "float32", "compute_dtype": "float32"}
        stored = harvest(model, LAYER, texts, out=tmp_path / Path(model).name, **settings)
        found = read(model, tmp_path, texts, padding_side="left")
        for text in range(len(texts)):
            rows = stored.read(np.flatnonzero(stored.sequence_table.sequence == text))
            own = found.live[text]
            position = found.position[text][own]
            assert rows.token[position].tolist() == found.token[text][own].tolist()
            torch.testing.assert_close(rows.x[position], found.x[text][own], atol=2e-5, rtol=2e-4)


@pytest.mark.parametrize(
    ("live", "bos", "positions"),
    [
        ("0111100", True, "0123456"),  # BOS, text, padding
        ("0001111", True, "0001234"),  # padding and BOS, text
        ("0001101", True, "0001234"),  # an EOS in the middle is zero, too
        ("1111111", True, "0123456"),  # packed, nothing masked
        ("1111000", False, "0123456"),  # no BOS, padding behind
        ("0001111", False, "0000123"),  # no BOS, padding before
        ("0000000", True, "0123456"),  # nothing: any integer will do
    ],
)
def test_positions_are_told_from_the_first_live_row(live: str, bos: bool, positions: str) -> None:
    mask = torch.tensor([[digit == "1" for digit in live]])
    assert rule_positions(mask, bos).tolist() == [[int(digit) for digit in positions]]


@given(st.lists(st.booleans(), min_size=1, max_size=12), st.integers(0, 6), st.integers(0, 6), st.booleans())
def test_the_rule_finds_every_position_whatever_is_masked_inside(inside: list[bool], before: int, after: int, bos: bool) -> None:
    """A text whose first token is live, behind BOS where there is one, with padding on either side or both."""
    opened = [False] * bos + [True, *inside]
    mask = torch.tensor([[False] * before + opened + [False] * after])
    found = rule_positions(mask, bos)[0, before + bos : before + len(opened)]
    assert found.tolist() == list(range(bos, len(opened)))


def test_every_way_of_indexing_reads_the_same(llama: str, tmp_path: Path) -> None:
    found = read(llama, tmp_path, padding_side="left")
    whole = found.x[:]
    assert found.x.shape == tuple(whole.shape) == (len(MANY), CONTEXT, 32) and len(found) == len(MANY) and found.width == 32
    for index in (4, -1, slice(2, 11), slice(0, 0), slice(12, None), [7, 7, 0, 14], torch.tensor([13, 1])):
        assert torch.equal(found.x[index], whole[index])
    text, column = torch.tensor([9, 0, 14, 9, 3]), torch.tensor([20, 0, 23, 5, 23])
    assert torch.equal(found.x[text, column], whole[text, column])
    rows = found.live_rows([8, 2, 14])
    assert torch.equal(rows.x, whole[[8, 2, 14]][found.live[[8, 2, 14]]])
    assert torch.equal(rows.x, whole[rows.text, rows.index])
    assert torch.equal(rows.position, found.position[rows.text, rows.index])
    with pytest.raises(IndexError):
        found.x[len(MANY)]


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of texts of every forward pass that is made."""
    made: list[int] = []
    residuals = LanguageModel.residuals

    def counting(self: LanguageModel, tokens: Tensor, mask: Tensor, layers: Any) -> Any:
        if tokens.shape[1] > 2:  # the question whether a model is an encoder has two tokens
            made.append(len(tokens))
        return residuals(self, tokens, mask, layers)

    monkeypatch.setattr(LanguageModel, "residuals", counting)
    return made


def test_what_is_kept_is_not_computed_again(llama: str, tmp_path: Path, counted: list[int]) -> None:
    first = read(llama, tmp_path)
    assert counted == [BATCH] * 5
    again = read(llama, tmp_path)
    assert counted == [BATCH] * 5
    assert torch.equal(first.x[:], again.x[:])


@pytest.mark.parametrize(
    "change",
    [
        {"context_length": CONTEXT - 1},
        {"dtype": "bfloat16"},
        {"batch_size": BATCH - 1},
        {"padding_side": "left"},
        {"whole_context": False},
        {"bos": False},
        {"texts": [*MANY[:-1], MANY[-1] + "!"]},
        {"texts": [*MANY[1:], MANY[0]]},
    ],
    ids=lambda change: next(iter(change)),
)
def test_nothing_that_shapes_a_pass_is_mixed_up(llama: str, tmp_path: Path, counted: list[int], change: dict[str, Any]) -> None:
    read(llama, tmp_path)
    made = len(counted)
    changed = read(llama, tmp_path, **change)
    assert sum(counted[made:]) == len(MANY)
    fresh = read(llama, tmp_path / "fresh", **change)
    assert torch.equal(changed.x[:], fresh.x[:])


def test_other_weights_under_the_same_name_are_another_pass(llama: str, tmp_path: Path) -> None:
    place = tmp_path / "model"
    shutil.copytree(llama, place)
    first = read(str(place), tmp_path / "cache")
    passes._opened.cache_clear()
    shutil.rmtree(place)
    tiny_model("llama", place, seed=1)
    assert not torch.equal(read(str(place), tmp_path / "cache").x[:], first.x[:])


@pytest.mark.parametrize("damage", ["truncated", "flipped", "foreign", "gone", "not safetensors", "another chunk"])
def test_a_chunk_that_is_not_what_it_should_be_is_made_again(llama: str, tmp_path: Path, counted: list[int], damage: str) -> None:
    wanted = read(llama, tmp_path / "cache").x[:]
    chunks = sorted((tmp_path / "cache").rglob("*.safetensors"))
    assert len(chunks) == 3
    content = bytearray(chunks[1].read_bytes())
    if damage == "truncated":
        chunks[1].write_bytes(content[:-40])
    elif damage == "flipped":
        content[-5] ^= 1
        chunks[1].write_bytes(content)
    elif damage == "foreign":
        read(llama, tmp_path / "other", [text + " More." for text in MANY])
        shutil.copy(sorted((tmp_path / "other").rglob("*.safetensors"))[1], chunks[1])
    elif damage == "gone":
        chunks[1].unlink()
    elif damage == "not safetensors":
        chunks[1].write_text("hello")
    else:
        shutil.copy(chunks[0], chunks[1])
    made = len(counted)
    assert torch.equal(read(llama, tmp_path / "cache").x[:], wanted)
    assert counted[made:] == [BATCH] * 2


def test_an_interrupted_pass_goes_on_after_its_last_whole_chunk(
    llama: str, tmp_path: Path, counted: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = read(llama, tmp_path / "whole").x[:]
    counting = LanguageModel.residuals

    def interrupted(self: LanguageModel, tokens: Tensor, mask: Tensor, layers: Any) -> Any:
        if len(counted) == 8:
            raise KeyboardInterrupt
        return counting(self, tokens, mask, layers)

    monkeypatch.setattr(LanguageModel, "residuals", interrupted)
    with pytest.raises(KeyboardInterrupt):
        read(llama, tmp_path / "cache")
    monkeypatch.setattr(LanguageModel, "residuals", counting)
    assert not list((tmp_path / "cache").rglob("*.partial"))
    assert torch.equal(read(llama, tmp_path / "cache").x[:], wanted)
    assert counted == [BATCH] * (5 + 3 + 3)  # whole; three before the interruption, of which a chunk of two was kept; the other three


def test_bad_texts_and_settings_are_refused_in_a_sentence(llama: str, tmp_path: Path) -> None:
    with pytest.raises(TemporalLensError, match=r"reviews: text 1 \(''\), text 3 \('<s></s>'\), counted from 0, hold no token"):
        read(llama, tmp_path, ["fine", "", "fine", "<s></s>"], title="reviews")
    with pytest.raises(TemporalLensError, match=r"text 4 .* and 3 others"):
        read(llama, tmp_path, [""] * 8)
    with pytest.raises(TemporalLensError, match="the list of texts is empty"):
        read(llama, tmp_path, [])
    with pytest.raises(TemporalLensError, match="context length 65 is too long"):
        read(llama, tmp_path, context_length=65)
    with pytest.raises(TemporalLensError, match="layer 4 is out of range"):
        text_activations(llama, 4, MANY, CONTEXT, cache=tmp_path)
    assert not list(tmp_path.iterdir())
