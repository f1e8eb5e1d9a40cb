"""Harvesting: every activation lands with the right columns, and an interruption leaves no trace in the bytes."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from temporallens.activations import clocks
from temporallens.activations.clocks import CLOCKS, TEXT_RULE, TokenMarks
from temporallens.activations.language import harvest as harvesting
from temporallens.activations.language.harvest import HarvestPolicy, harvest, harvest_policy
from temporallens.activations.language.models import LanguageModel
from temporallens.activations.language.token_rows import RowShape, evenly_spaced, row_shape, token_rows, tokenised
from temporallens.activations.moments import FIRST, NORM, SPECIAL
from temporallens.activations.store import ActivationStore
from temporallens.activations.writer import Rows, StoreWriter
from temporallens.errors import TemporalLensError
from temporallens.evaluation.model.origin import harvest_of
from temporallens.evaluation.scan import scan
from tiny_models import CONTEXT, TEXTS, WIDTH, tiny_model
from tiny_tokenizers import MADE, encoding, made

MANY = [f"{text} Number {number}." for number in range(6) for text in TEXTS]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_model("llama", tmp_path_factory.mktemp("models") / "llama"))


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_model("bert", tmp_path_factory.mktemp("models") / "bert"))


def _all(store: ActivationStore) -> Rows:
    """All rows in the order of the text."""
    return store.read(np.argsort(store.sequence_table.sequence, kind="stable"))


def _hashes(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_stored_activations_are_the_models(llama: str, tmp_path: Path) -> None:
    stores = harvest(llama, [2, "embed"], TEXTS, context_length=16, out=tmp_path / "out", dtype="float32", batch_size=3)
    assert isinstance(stores, dict)
    model = LanguageModel.load(llama)
    for layer, store in stores.items():
        rows = _all(store)
        for sequence in range(store.sequences):
            own = rows.sequence == sequence
            tokens = rows.token[own][None]
            expected = model.residuals(tokens, torch.ones_like(tokens, dtype=torch.bool), [layer])[layer][0]
            torch.testing.assert_close(rows.x[own], expected, atol=1e-5, rtol=1e-4)
            assert rows.index[own].tolist() == list(range(int(own.sum())))
    description = stores[2].manifest.description
    assert (description.source["layer"], description.source["hook"], description.source["layers_total"]) == (2, "resid_post", 4)
    assert (description.positions, description.width, description.dtype) == (16, WIDTH, "float32")
    assert (tmp_path / "out" / "layer-2" / "manifest.json").is_file()


@pytest.mark.parametrize("layer", [np.int64(1), np.uint8(1), np.array(1), torch.tensor(1), "1"])
def test_a_layer_is_a_whole_number_of_any_type(llama: str, tmp_path: Path, layer: Any) -> None:
    store = harvest(llama, layer, TEXTS, context_length=16, out=tmp_path / "one", max_tokens=64)
    assert isinstance(store, ActivationStore)
    assert store.manifest.description.source["layer"] == 1
    several = harvest(llama, torch.tensor([0, 1]), TEXTS, context_length=16, out=tmp_path / "several", max_tokens=64)
    assert isinstance(several, dict)
    assert list(several) == [0, 1]
    assert (tmp_path / "several" / "layer-1" / "manifest.json").is_file()


@pytest.mark.parametrize("layer", [True, torch.tensor(True), [0, True], np.array([True])])
def test_a_truth_value_is_no_layer(llama: str, tmp_path: Path, layer: Any) -> None:
    with pytest.raises(TemporalLensError, match=r"^layer is True: a number or a word is needed here"):
        harvest(llama, layer, TEXTS, out=tmp_path / "out")


def test_split_rows_hold_whole_documents_in_order(llama: str, tmp_path: Path) -> None:
    store = harvest(llama, 1, TEXTS, context_length=16, out=tmp_path / "out")
    assert isinstance(store, ActivationStore)
    model, rows = LanguageModel.load(llama, up_to=0), _all(store)
    assert store.documents == len(TEXTS)
    for document, text in enumerate(TEXTS):
        own = rows.document == document
        body = own & (rows.index > 0)
        assert rows.token[body].tolist() == model.encode(text)
        assert rows.document_position[body].tolist() == list(range(len(model.encode(text))))
        opening = own & (rows.index == 0)
        assert set(rows.token[opening].tolist()) == {model.bos}
        assert rows.document_position[opening].tolist() == [15 * row for row in range(int(opening.sum()))]
    assert (rows.excluded[rows.index == 0] & FIRST).all()
    assert not (rows.excluded[rows.index > 0] & (FIRST | SPECIAL)).any()


def test_document_rows_are_cut_off(llama: str, tmp_path: Path) -> None:
    store = harvest(llama, 0, TEXTS, context_length=16, rows="document", bos=False, out=tmp_path / "out")
    model, rows = LanguageModel.load(llama, up_to=0), _all(store)
    for document, text in enumerate(TEXTS):
        assert rows.token[rows.document == document].tolist() == model.encode(text)[:16]
    assert store.sequences == len(TEXTS)


def test_packed_rows_join_documents(llama: str, tmp_path: Path) -> None:
    store = harvest(llama, 0, TEXTS, context_length=16, rows="packed", out=tmp_path / "out")
    model, rows = LanguageModel.load(llama, up_to=0), _all(store)
    encoded = [model.encode(text) for text in TEXTS]
    expected_tokens, expected_documents, expected_positions = [], [], []
    for document, tokens in enumerate(encoded):
        joined = tokens if document == len(TEXTS) - 1 else [*tokens, model.separator]
        expected_tokens += joined
        expected_documents += [document] * len(joined)
        expected_positions += range(len(joined))
    body = rows.index > 0
    assert rows.token[body].tolist() == expected_tokens
    assert rows.document[body].tolist() == expected_documents
    assert rows.document_position[body].tolist() == expected_positions
    assert (rows.token[~body] == model.bos).all()
    separators = body & (rows.token == model.separator)
    assert int(separators.sum()) == len(TEXTS) - 1
    assert (rows.excluded[separators] == SPECIAL).all()
    lengths = np.bincount(store.sequence_table.sequence, weights=store.sequence_table.length)
    assert set(lengths[:-1].tolist()) == {16}


def test_encoder_rows_open_with_cls_and_close_with_sep(bert: str, tmp_path: Path) -> None:
    store = harvest(bert, 0, TEXTS, context_length=16, out=tmp_path / "out")
    model, rows = LanguageModel.load(bert, up_to=0), _all(store)
    for sequence in range(store.sequences):
        own = rows.sequence == sequence
        tokens = rows.token[own].tolist()
        assert (tokens[0], tokens[-1]) == (model.bos, model.closing)
        assert (int(rows.excluded[own][0]), int(rows.excluded[own][-1])) == (FIRST, SPECIAL)
    body = (rows.token != model.bos) & (rows.token != model.closing)
    assert rows.token[body].tolist() == [token for text in TEXTS for token in model.encode(text)]


def test_padding_side_changes_nothing_that_is_stored(llama: str, tmp_path: Path) -> None:
    right, left = (
        _all(harvest(llama, 3, TEXTS, context_length=24, rows="document", padding=side, dtype="float32", out=tmp_path / side))
        for side in ("right", "left")
    )
    torch.testing.assert_close(right.x, left.x, atol=1e-5, rtol=1e-4)
    for name in Rows._fields[1:]:
        assert torch.equal(getattr(right, name), getattr(left, name))


@pytest.mark.parametrize("clock", ["document", "sentence", "newline"])
def test_position_is_what_the_clock_says(clock: str, llama: str, tmp_path: Path) -> None:
    store = harvest(llama, 0, TEXTS, context_length=32, clock=clock, out=tmp_path / "out")
    model, rows = LanguageModel.load(llama, up_to=0), _all(store)
    marks = TokenMarks.of(model.tokenizer)
    expected = [CLOCKS[clock].position(row, marks, 32) for row in token_rows(model, TEXTS, row_shape(model, 32, True, "split"), "split")]
    assert rows.position.tolist() == np.concatenate(expected).tolist()
    assert store.positions == CLOCKS[clock].size(32)


def test_a_store_says_by_which_rule_sentences_were_told(llama: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So one that was told by another rule is not taken for this one."""
    settings = {"context_length": 16, "out": tmp_path / "out"}
    store = harvest(llama, 0, TEXTS, clock="sentence", **settings)
    policies = store.manifest.description.policies
    assert policies["text_rule"] == TEXT_RULE
    assert harvest_of(store).clock == "sentence"
    assert "text_rule" not in harvest(llama, 0, TEXTS, context_length=16, out=tmp_path / "index").manifest.description.policies
    monkeypatch.setattr(clocks, "TEXT_RULE", TEXT_RULE + 1)
    with pytest.raises(TemporalLensError, match="already holds a finished store"):
        harvest(llama, 0, TEXTS, clock="sentence", **settings)


def test_norm_rule(llama: str, tmp_path: Path) -> None:
    store = harvest(llama, 3, MANY, context_length=16, norm_multiple=1.2, dtype="float32", batch_size=4, out=tmp_path / "out")
    rows = _all(store)
    flagged = (rows.excluded & NORM) > 0
    assert 0 < int(flagged.sum()) < len(flagged) / 2
    norms = rows.x.norm(dim=1)
    assert norms[flagged].median() > norms[~flagged].median()
    beyond_first = flagged & ((rows.excluded & FIRST) == 0)
    assert int(store.moments.excluded_norm.sum()) == int(beyond_first.sum())
    without = _all(harvest(llama, 3, MANY, context_length=16, norm_multiple=None, out=tmp_path / "without"))
    assert not (without.excluded & NORM).any()


def test_limits(llama: str, tmp_path: Path) -> None:
    whole = _all(harvest(llama, 0, MANY, context_length=16, out=tmp_path / "whole"))
    limited = _all(harvest(llama, 0, MANY, context_length=16, max_tokens=100, out=tmp_path / "limited"))
    assert 100 - 16 < len(limited.token) <= 100
    assert torch.equal(limited.token, whole.token[: len(limited.token)])
    few = _all(harvest(llama, 0, MANY, context_length=16, rows_per_document=2, out=tmp_path / "few"))
    for document in range(len(MANY)):
        count = int((whole.index[whole.document == document] == 0).sum())
        starts = few.document_position[(few.document == document) & (few.index == 0)].tolist()
        assert starts == [15 * row for row in evenly_spaced(count, 2)]


def test_evenly_spaced() -> None:
    assert list(evenly_spaced(10, 2)) == [2, 7]
    assert list(evenly_spaced(9, 1)) == [4]
    assert list(evenly_spaced(3, 5)) == [0, 1, 2]
    assert list(evenly_spaced(4, None)) == [0, 1, 2, 3]


@pytest.mark.parametrize("kind", ["prepended", "unigram"])
def test_documents_have_the_tokens_of_the_tokenizer_alone(kind: str) -> None:
    """However long they are, and whatever a normalizer does at the ends of a text."""
    model, long, short = encoding(kind), "abc de " * 150_000, "abc de. It rained. "
    expected = [made(kind).encode(text, add_special_tokens=False).ids for text in (short, long, short)]
    found = list(token_rows(model, [short, long, short], RowShape(4096, None, None, None), "split"))
    for document, ids in enumerate(expected):
        own = [row for row in found if row.document[0] == document]
        assert np.concatenate([row.tokens for row in own]).tolist() == ids
        assert np.concatenate([row.document_position for row in own]).tolist() == list(range(len(ids)))


@pytest.mark.parametrize("kind", MADE)
def test_rows_are_the_same_whether_it_is_asked_what_begins(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("temporallens.activations.language.token_rows.GROUP_CHARACTERS", 200)
    with_starts, without = (list(tokenised(encoding(kind), [*TEXTS, "", "今日は。明日\u2028č"], starts)) for starts in (True, False))
    for told, untold in zip(with_starts, without, strict=True):
        assert np.array_equal(told[0], untold[0])
        assert not untold[1:].any()


def test_half_a_character_is_named_by_its_text(llama: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("temporallens.activations.language.token_rows.GROUP_CHARACTERS", 5)
    sentence = r"^(document 2 of the given texts|text 2, counted from 0,) holds half of a character, the lone surrogate \\ud83d"
    texts = ["It rained.", "b", "ab \ud83d and \udc00"]
    for clock in ("index", "sentence"):
        with pytest.raises(TemporalLensError, match=sentence):
            harvest(llama, 0, texts, clock=clock, out=tmp_path / clock, context_length=16)
    with pytest.raises(TemporalLensError, match=sentence):
        LanguageModel.load(llama, up_to=0).encode_all(texts)


def test_special_tokens_of_the_added_table_are_excluded(llama: str, tmp_path: Path) -> None:
    shutil.copytree(llama, tmp_path / "chat")
    tokenizer = LanguageModel.load(llama, up_to=0).tokenizer
    (unused,) = tokenizer.convert_tokens_to_ids(["Ā"])
    vocabulary = json.loads((tmp_path / "chat" / "tokenizer.json").read_text())
    vocabulary["added_tokens"].append({**vocabulary["added_tokens"][0], "id": unused, "content": "Ā"})
    (tmp_path / "chat" / "tokenizer.json").write_text(json.dumps(vocabulary))
    rows = _all(harvest(str(tmp_path / "chat"), 0, ["It rained Ā they talk"], clock="sentence", context_length=16, out=tmp_path / "out"))
    marked = rows.token == unused
    assert (rows.excluded[marked] == SPECIAL).all()
    assert int(marked.sum()) == int((rows.excluded == SPECIAL).sum()) == 1
    assert int(rows.position[int(marked.nonzero()) + 1]) == 0


class Interruption(Exception):
    pass


def _interrupt(monkeypatch: pytest.MonkeyPatch, owner: Any, method: str, calls: int) -> None:
    """Let the method fail at its call number `calls`, once."""
    whole, seen = getattr(owner, method), [0]

    def failing(*arguments: Any, **named: Any) -> Any:
        seen[0] += 1
        if seen[0] == calls:
            raise Interruption
        return whole(*arguments, **named)

    monkeypatch.setattr(owner, method, failing)


@pytest.mark.parametrize(("owner", "method"), [(LanguageModel, "residuals"), (StoreWriter, "append"), (StoreWriter, "finish")])
@pytest.mark.parametrize("rows", ["split", "packed"])
def test_interrupted_harvest_ends_with_the_same_bytes(
    owner: Any, method: str, rows: str, llama: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(harvesting, "StoreWriter", lambda folder, description: StoreWriter(folder, description, shard_bytes=5000))
    monkeypatch.setattr(harvesting, "NORM_ROWS", 2)  # of an append, so that there are many
    settings = {"context_length": 16, "rows": rows, "batch_size": 2}
    texts = MANY[:6]
    harvest(llama, [0, 2], texts, out=tmp_path / "whole", **settings)
    with monkeypatch.context() as patched:
        _interrupt(patched, owner, method, 2 if method == "finish" else 12)
        with pytest.raises(Interruption):
            harvest(llama, [0, 2], texts, out=tmp_path / "parts", **settings)
    if method != "finish":
        assert not list((tmp_path / "parts").rglob("manifest.json"))
    ran = [0]
    residuals = LanguageModel.residuals

    def counted(*arguments: Any) -> Any:
        ran[0] += 1
        return residuals(*arguments)

    monkeypatch.setattr(LanguageModel, "residuals", counted)
    stores = harvest(llama, [0, 2], texts, out=tmp_path / "parts", **settings)
    assert _hashes(tmp_path / "parts") == _hashes(tmp_path / "whole")
    assert len(stores[0].manifest.shards) > 3
    assert ran[0] < sum(shard.appends for shard in stores[0].manifest.shards)
    again = ran[0]
    harvest(llama, [0, 2], texts, out=tmp_path / "parts", **settings)
    assert ran[0] == again


def test_other_settings_are_refused_on_a_store(llama: str, tmp_path: Path) -> None:
    harvest(llama, 0, TEXTS, context_length=16, out=tmp_path / "out")
    before = _hashes(tmp_path / "out")
    with pytest.raises(TemporalLensError, match="already holds a finished store"):
        harvest(llama, 0, TEXTS[1:], context_length=16, out=tmp_path / "out")
    assert _hashes(tmp_path / "out") == before


def test_texts_of_an_iterator_are_never_taken_for_those_of_a_store(llama: str, tmp_path: Path) -> None:
    """Nobody knows what an iterator holds before it is read."""
    settings: dict[str, Any] = {"context_length": 16, "out": tmp_path / "out"}
    harvest(llama, 0, iter(TEXTS[:2]), **settings)
    before = _hashes(tmp_path / "out")
    for texts in (iter(TEXTS[2:]), iter(TEXTS[:2]), (text for text in TEXTS)):
        with pytest.raises(
            TemporalLensError, match=r"already holds a finished store, and texts of an iterator cannot be compared .*give a list"
        ):
            harvest(llama, 0, texts, **settings)
        assert next(texts) in TEXTS  # it was not read either
    assert _hashes(tmp_path / "out") == before
    again = harvest(llama, 0, iter(TEXTS[:2]), **{**settings, "out": tmp_path / "again"})
    assert isinstance(again, ActivationStore)
    assert _hashes(tmp_path / "again") == before


def test_an_interrupted_harvest_is_not_continued_from_an_iterator(llama: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harvesting, "StoreWriter", lambda folder, description: StoreWriter(folder, description, shard_bytes=5000))
    residuals, left = LanguageModel.residuals, iter(range(60))

    def interrupted(self: LanguageModel, tokens: Any, mask: Any, layers: Any) -> Any:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return residuals(self, tokens, mask, layers)

    monkeypatch.setattr(LanguageModel, "residuals", interrupted)
    settings: dict[str, Any] = {"context_length": 16, "batch_size": 2, "out": tmp_path / "out"}
    with pytest.raises(KeyboardInterrupt):
        harvest(llama, 0, iter(MANY), **settings)
    with pytest.raises(TemporalLensError, match="already holds an unfinished harvest, and texts of an iterator cannot be compared"):
        harvest(llama, 0, iter(MANY), **settings)


def test_what_of_a_folder_is_read_and_left_out_is_said_once(llama: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "texts" / ".hidden").mkdir(parents=True)
    for name in ("a.txt", "b.md", "c.pdf", ".hidden/d.txt"):
        (tmp_path / "texts" / name).write_text(TEXTS[0])
    for said in (f"{tmp_path / 'texts'}: 2 files read (1 .md, 1 .txt); left out: 1 .pdf, 1 hidden\n", ""):
        store = harvest(llama, [0, 1], tmp_path / "texts", context_length=16, out=tmp_path / "out")[0]  # type: ignore[index]
        assert store.documents == 2 and capsys.readouterr().err == said


def test_models_and_folders_may_be_paths_and_lie_in_the_home_folder(llama: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "model").symlink_to(llama)
    for out in ("~/store", Path("~/other")):
        store = harvest(Path("~/model"), 0, TEXTS, context_length=16, out=out)
        assert isinstance(store, ActivationStore) and store.folder.parent == tmp_path / "home"
    assert ActivationStore("~/store").rows == ActivationStore(Path("~/other")).rows == store.rows
    assert scan(Path("~/model"), text=TEXTS, context_length=16, sequences=4).model == "~/model"
    assert [path.name for path in tmp_path.iterdir()] == ["home"]


def test_activations_that_are_not_finite_end_the_harvest(llama: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    residuals = LanguageModel.residuals

    def broken(self: LanguageModel, tokens: Any, mask: Any, layers: Any) -> Any:
        streams = residuals(self, tokens, mask, layers)
        for stream in streams.values():
            stream[0, 3:4] = torch.nan
        return streams

    monkeypatch.setattr(LanguageModel, "residuals", broken)
    with pytest.raises(TemporalLensError, match="NaN or infinity at sequence 0, index 3"):
        harvest(llama, 0, MANY[:1], context_length=16, out=tmp_path / "out")
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_mistakes(llama: str, bert: str, tmp_path: Path) -> None:
    def refused(sentence: str, *, model: str = llama, layer: Any = 0, texts: Any = TEXTS, **policy: Any) -> None:
        with pytest.raises(TemporalLensError, match=sentence):
            harvest(model, layer, texts, out=tmp_path / "out", **{"context_length": 16, **policy})
        assert not (tmp_path / "out").exists() or not list((tmp_path / "out").glob("*.json"))

    refused("layer 4 is out of range: llama has layers 0 to 3", layer=4)
    refused("layer -1 is out of range", layer=-1)
    refused(f"context length {CONTEXT + 1} is too long: llama has {CONTEXT} positions", context_length=CONTEXT + 1)
    refused("context_length is 1: input should be greater than or equal to 2", context_length=1)
    refused("HarvestPolicy has no setting 'context_lenght'; did you mean 'context_length'", context_lenght=3)
    refused("dtype is 'float16'", dtype="float16")
    refused("no clock 'sentences'; did you mean 'sentence'", clock="sentences")
    refused("rows_per_document goes with rows: split", rows="packed", rows_per_document=2)
    refused("leaves no room for text", model=bert, context_length=2)
    refused("holds no words", texts=["", " "])
    refused("max_tokens 10 is less than the first row's 16; allow at least 16", max_tokens=10)
    refused("the list of layers is empty", layer=[])
    refused("a layer is named twice", layer=[1, 1])


def test_tokenizer_without_bos(llama: str, tmp_path: Path) -> None:
    model = LanguageModel.load(llama, up_to=0)
    model.tokenizer.bos_token = None
    with pytest.raises(TemporalLensError, match="the tokenizer of llama has no BOS token to open rows with; set bos: false"):
        row_shape(model, 16, bos=True, rows="split")
    assert row_shape(model, 16, bos=False, rows="split").room == 16
    model.tokenizer.eos_token = None
    with pytest.raises(TemporalLensError, match="no EOS, SEP or BOS token to join documents with"):
        row_shape(model, 16, bos=False, rows="packed")


def test_policies_that_differ_are_not_harvested_together(llama: str, tmp_path: Path) -> None:
    policies = [HarvestPolicy(model=llama, layer=0), HarvestPolicy(model=llama, layer=1, context_length=64)]
    with pytest.raises(TemporalLensError, match="only from the same model, text and policies"):
        harvest_policy(policies, [tmp_path / "a", tmp_path / "b"])
