"""Clocks that read a text say the same of stored rows as at the harvest, whatever the rows are."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headed_models import DOCUMENTS, random_dictionary, with_text
from temporallens.activations.language.harvest import harvest
from temporallens.activations.loader import sequential
from temporallens.activations.store import ActivationStore
from temporallens.errors import TemporalLensError
from temporallens.evaluation.bits.clocks import text_positions
from temporallens.evaluation.bits.section import BitsMeasures, BitsPolicy, measure_bits, name_of, names_in

CLOCKS: tuple[Any, ...] = ("sentence", "newline", {"since": "e"}, {"product": [{"modulo": 4}, {"field": "a", "fields": 3}]})
LINES = [f"{document}\nand a line. Then more of it.\n{document[::-1]}" for document in DOCUMENTS]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_text(tmp_path_factory.mktemp("bits-clocks"), LINES)


def harvested(folder: Path, name: str, text: Any = None, **policy: Any) -> ActivationStore:
    shared = {"dtype": "float32", "norm_multiple": None, "batch_size": 8, "context_length": 12}
    return harvest(str(folder / "model"), 1, text or folder / "text.jsonl", out=folder / name, **(shared | policy))


def kept_positions(store: ActivationStore, entries: np.ndarray) -> np.ndarray:
    return np.concatenate([rows.position[rows.excluded == 0].numpy() for rows in sequential(store, entries)])


@pytest.mark.slow
@pytest.mark.parametrize("policy", [{}, {"rows": "packed"}, {"rows_per_document": 2}, {"max_tokens": 120, "bos": False}])
def test_positions_are_those_of_a_harvest_by_that_clock(folder: Path, policy: dict[str, Any]) -> None:
    store = harvested(folder, f"index {policy}", **policy)
    entries = np.random.default_rng(0).permutation(store.sequences)[: store.sequences - 3]
    said = text_positions(store, entries, BitsPolicy(clocks=CLOCKS).clocks)
    assert len(said) == len(CLOCKS)
    for number, (clock, found) in enumerate(zip(CLOCKS, said.values(), strict=True)):
        other = harvested(folder, f"{number} {policy}", clock=clock, **policy)
        assert np.array_equal(found, kept_positions(other, entries))
        assert len(np.unique(found)) > 3


def measure(store: ActivationStore, **policy: Any) -> BitsMeasures:
    held_out = store.split(0.4, 0).held_out
    return measure_bits(random_dictionary(), store, held_out, BitsPolicy(draws=1, resamples=20, training_tokens=200, **policy))


def test_clocks_of_the_text_stand_among_what_is_known(folder: Path) -> None:
    found = measure(harvested(folder, "plain"))
    assert names_in([found]) == ["position", "document", "sentence", "newline", "token", "previous_token", "own_past"]
    assert name_of("sentence") == "since the last sentence end"
    own = measure(harvested(folder, "plain"), clocks=[{"since": "e"}])
    assert [name_of(name) for name in names_in([own])][:3] == ["position", "index in the document", "tokens since 'e'"]
    assert own.saved["token"] == found.saved["token"]


def test_a_text_given_in_python_cannot_be_read_again(folder: Path) -> None:
    store = harvested(folder, "given", LINES)
    assert names_in([measure(store)])[:3] == ["position", "document", "token"]
    with pytest.raises(TemporalLensError, match=r"not harvested from a text that can be read again: leave bits.clocks empty"):
        measure(store, clocks=["newline"])


def test_a_text_that_has_changed_is_refused(folder: Path) -> None:
    text = folder / "changing.jsonl"
    text.write_text((folder / "text.jsonl").read_text())
    store = harvested(folder, "changing", text, context_length=8)
    text.write_text((folder / "text.jsonl").read_text().replace("Then", "And"))
    with pytest.raises(TemporalLensError, match="has changed since"):
        measure(store)


@pytest.mark.parametrize(("clocks", "sentence"), [(["sentences"], "there is no clock 'sentences'"), ("sentence", "clocks are a list")])
def test_a_clock_that_there_is_not_is_refused(clocks: Any, sentence: str) -> None:
    with pytest.raises(TemporalLensError, match=sentence):
        BitsPolicy(clocks=clocks)
