"""Documents that are copies of each other are found by their tokens, and fall on one side of a split."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, strategies as st

from temporallens.activations import duplicates
from temporallens.activations.duplicates import FEWEST, LENGTH, RARE, SHARED, twins, with_twins
from temporallens.activations.store import ActivationStore

Documents = list[list[int]]


def found(documents: Documents, parts: int = 1) -> list[list[int]]:
    token = np.concatenate([np.array(document) for document in documents])
    owner = np.repeat(np.arange(len(documents)), [len(document) for document in documents])
    cut = np.cumsum([len(document) for document in documents])[len(documents) // parts - 1 :: max(1, len(documents) // parts)][:-1]
    split = [np.split(column, cut) for column in (token, owner, owner)]
    return twins(zip(*split, strict=True), len(token)).tolist()


def texts(count: int, length: int = 200, seed: int = 0) -> Documents:
    return np.random.default_rng(seed).integers(0, 5000, (count, length)).tolist()


def reference(documents: Documents) -> list[list[int]]:
    """By sets of tuples, as the definition says."""
    sets = [{tuple(text[first : first + LENGTH]) for first in range(len(text) - LENGTH + 1)} for text in documents]
    of_how_many = {shingle: sum(shingle in other for other in sets) for shingle in set().union(*sets)}
    return [
        [one, other]
        for one in range(len(sets))
        for other in range(one + 1, len(sets))
        if (least := min(len(sets[one]), len(sets[other]))) >= FEWEST
        and sum(of_how_many[shingle] <= RARE for shingle in sets[one] & sets[other]) >= SHARED * least
    ]


def test_a_copy_is_found_and_strangers_are_not() -> None:
    documents = texts(6)
    documents.append(documents[2][:60] + texts(1, 140, 1)[0])  # 28 % of it
    documents.append(documents[3][:30] + texts(1, 170, 2)[0])  # 13 %
    assert found(documents) == [[2, 6]] == found(documents, 3) == reference(documents)


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=60), min_size=2, max_size=12))
def test_it_is_what_the_definition_says(documents: Documents) -> None:
    assert found(documents) == reference(documents)


def test_what_all_documents_have_in_common_pairs_none() -> None:
    header = texts(1, 300)[0]
    assert found([header + text for text in texts(RARE + 1, 100, 1)]) == []
    assert len(found([header + text for text in texts(2, 100, 1)])) == 1


def test_a_share_of_all_shingles_finds_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    documents = texts(8, 4000)
    documents.append(documents[5][:2000] + texts(1, 2000, 3)[0])
    monkeypatch.setattr(duplicates, "MOST", 6000)
    assert found(documents) == [[5, 8]]


def test_twins_of_twins_come_along() -> None:
    pairs = np.array([[0, 3], [3, 5], [1, 2]])
    assert with_twins(np.array([5]), pairs).tolist() == [0, 3, 5]
    assert with_twins(np.array([4, 4]), pairs).tolist() == [4]
    assert with_twins(np.array([4]), np.zeros((0, 2), dtype=np.int64)).tolist() == [4]


def stored(documents: Documents, folder: Path) -> ActivationStore:
    tokens = np.array(documents)
    x = np.random.default_rng(0).normal(size=(*tokens.shape, 4)).astype(np.float32)
    return ActivationStore.from_arrays(x, tokens=tokens, out=folder)


def test_a_split_keeps_copies_together_and_others_as_they_were(tmp_path: Path) -> None:
    documents = texts(10, 60)
    alone = stored(documents, tmp_path / "alone")
    held_out = alone.split(0.2, 0).held_out
    copied = [list(document) for document in documents]
    other = next(number for number in range(10) if number not in held_out)
    copied[other][:30] = documents[int(held_out[0])][:30]
    together = stored(copied, tmp_path / "together")
    assert len(alone.twins) == 0 and sorted([*held_out.tolist(), other]) == together.split(0.2, 0).held_out.tolist()


def test_nothing_but_copies_is_divided_and_said_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = stored(texts(1, 60) * 4, tmp_path / "store")
    split = store.split(0.25, 0)
    assert len(split.held_out) == 1 and len(split.train) == 3
    store.split(0.5, 1)
    assert capsys.readouterr().err.count("documents are mostly copies of each other") == 1


def test_rows_without_tokens_have_no_twins(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(4, 30, 4)).astype(np.float32)
    assert len(ActivationStore.from_arrays(x, out=tmp_path / "store").twins) == 0
