"""Fidelity: prefixes move what they should, and features whose ties are known by construction are found tied to just that."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from headed_models import CONTEXT_LENGTH, clockwork, random_dictionary, store_of
from temporallens.activations.language.models import LanguageModel
from temporallens.activations.store import ActivationStore
from temporallens.dictionaries.arms.positional import Positional
from temporallens.dictionaries.base import Dictionary
from temporallens.errors import TemporalLensError
from temporallens.evaluation.model.fidelity import FidelityMeasures, FidelityPolicy, ShiftFidelity, _followed, measure_fidelity, tables
from temporallens.evaluation.model.origin import choose_rows
from temporallens.evaluation.model.passes import _opened, open_model
from temporallens.evaluation.model.prefixes import enclosing, prefix_tokens, shifted_store
from temporallens.evaluation.statistics import Estimate
from temporallens.figures.fidelity import Arm, draw_fidelity
from temporallens.report import inspected
from temporallens.serial import as_json
from tiny_models import FAMILIES, WIDTH, tiny_model

POLICY = FidelityPolicy(shifts=(1, 4), rows=16, least_firings=5, resamples=20)
LAYER = {"llama": "embed"}
"""Without positions in the stream, what enters the first block is the token and nothing else."""


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ActivationStore]:
    root = tmp_path_factory.mktemp("stores")
    return {
        family: store_of(tiny_model(family, root / "models" / family), LAYER.get(family, 1), root / "stores" / family)
        for family in FAMILIES
    }


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def _measure(store: ActivationStore, dictionary: Dictionary, cache: Path, policy: FidelityPolicy = POLICY) -> FidelityMeasures:
    source = store.manifest.description.source
    layer: Any = source["layer"]
    return measure_fidelity(dictionary, str(source["model"]), layer, store, np.arange(store.sequences), policy, cache)


def _model(store: ActivationStore) -> LanguageModel:
    source = store.manifest.description.source
    layer: Any = source["layer"]
    return open_model(str(source["model"]), layer, "float32", None)


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_behind_a_prefix(family: str, stores: dict[str, ActivationStore], cache: Path) -> None:
    store, model = stores[family], _model(stores[family])
    chosen = choose_rows(store, np.arange(store.sequences), 16, 12, "this test")
    prefix = prefix_tokens(model, "So it was.", 3)
    opening, closing = enclosing(store)
    assert (opening, closing) == (1, int(family == "bert"))
    shifted = shifted_store(model, store, chosen, [prefix], cache)
    entries = np.argsort(shifted.sequence_table.sequence)
    assert shifted.sequence_table.length[entries].tolist() == chosen.length.tolist()
    for number, part in enumerate(chosen.parts(1)):
        before, after = chosen.of(part), shifted.read(entries[[number]])
        text = before.token[opening : len(before.x) - closing]
        expected = [*before.token[:opening], *prefix, *text[:-3], *before.token[len(before.x) - closing :]]
        assert after.token.tolist() == expected
        assert after.index.tolist() == after.position.tolist() == list(range(len(expected)))
        assert torch.equal(after.excluded, before.excluded)
        assert after.document.tolist() == before.document.tolist()
        moved = before.document_position[opening : len(before.x) - closing - 3] + 3
        assert torch.equal(after.document_position[opening + 3 : len(before.x) - closing], moved)
        alone = model.residuals(after.token[None], torch.ones(1, len(expected), dtype=torch.bool), [LAYER.get(family, 1)])
        torch.testing.assert_close(next(iter(alone.values()))[0], after.x, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_measured(family: str, stores: dict[str, ActivationStore], cache: Path) -> None:
    dictionary = random_dictionary()
    measured = _measure(stores[family], dictionary, cache)
    assert measured.control_content.value > 0.99
    assert abs(measured.control_fve_change.value) < 1e-4
    for shift in measured.shifts:
        assert shift.tied_to_index + shift.tied_to_content + shift.undecided == shift.absolute_index.n <= len(measured.features)
        assert len(shift.feature_absolute_index) == len(shift.feature_content) == len(measured.features)
        assert len(shift.fve.position_shifted) == len(shift.position_content) == CONTEXT_LENGTH
        assert (shift.open_fve, shift.mask_change) == (None, None)
        assert all((value is None) == (count == 0) for value, count in zip(shift.position_content, shift.position_count, strict=True))
    assert [len(prefix) for prefix in measured.prefixes] == [4] * 5
    assert measured.documents > 1
    json.loads(json.dumps(as_json(measured), allow_nan=False))


def test_features_of_the_token_alone_are_tied_to_content(stores: dict[str, ActivationStore], cache: Path) -> None:
    """In the stream before block 0 of a RoPE model a token is the same wherever it stands."""
    measured = _measure(stores["llama"], random_dictionary(), cache)
    assert len(measured.features) > 20
    for shift in measured.shifts:
        assert shift.content == (1, 1, 1, shift.content.n)
        assert set(shift.feature_content) == {1}
        assert shift.content_correlation.value == pytest.approx(1)
        assert shift.absolute_index_distance.value == pytest.approx(-1)
        assert shift.absolute_index.high < -0.5
        assert shift.tied_to_content > 0.9 * len(measured.features)
        assert shift.tied_to_index == 0
        assert shift.follows_text == (1, 1, 1, len(measured.features)) and shift.follows_index.value == 0
        assert shift.fve.change.value == pytest.approx(0, abs=1e-9)
        assert shift.fve.position_shifted == pytest.approx(shift.fve.position_unshifted, nan_ok=True)


def test_what_varies_as_much_as_it_is_follows_nothing() -> None:
    generator = np.random.default_rng(0)
    distance = generator.standard_normal((201, 400)) * 0.1
    assert _followed(distance).of_index.value == _followed(distance).of_text.value == 0
    distance[:, :40] += 0.6
    distance[:, 40:60] -= 0.6
    distance[:, 60] = np.nan
    followed = _followed(distance)
    assert followed.of_index.value == pytest.approx(40 / 399, abs=0.01) and followed.of_index.n == 399
    assert followed.of_text.value == pytest.approx(20 / 399, abs=0.01)
    assert followed.of_index.low is not None and followed.of_index.low > 0.08
    assert np.isnan(followed.q[60]) and (followed.q[:40] < 0.05).all()


def test_features_of_the_position_alone_are_tied_to_the_index(stores: dict[str, ActivationStore], cache: Path) -> None:
    dictionary = clockwork(groups=4)
    measured = _measure(stores["llama"], dictionary, cache)
    assert measured.features == [0, 1, 2, 3]
    starts = [0, 3, 6, 14]
    assert dictionary.gates_by_position().argmax(1).tolist() == [sum(p >= start for start in starts) - 1 for p in range(CONTEXT_LENGTH)]
    one, four = measured.shifts
    for shift in measured.shifts:
        known = [value for value in shift.feature_absolute_index if value is not None]
        assert min(known) > 0
        assert shift.index_correlation.value == pytest.approx(1)
        assert shift.tied_to_index == len(known)
        assert shift.absolute_index_distance.value == pytest.approx(1)
        assert shift.tied_to_content == 0
        assert shift.follows_index.value == 1 and shift.follows_text.value == 0
        assert shift.follows_index.n >= 3 and shift.feature_q.count(0.0) == shift.follows_index.n
    assert [value is None for value in four.feature_absolute_index] == [True, False, False, False]  # silent from index 5 on
    assert four.feature_distance == pytest.approx([1, 1, 1, 1])
    # a token keeps its feature where its group stays the same: at index 1 (as 2), 3, 4, 6 to 12 and 14 on
    stays = [p for p in range(1, CONTEXT_LENGTH - 1) if p + 1 not in starts]
    assert [value for value in one.position_content if value is not None] == [float(p in stays) for p in range(1, CONTEXT_LENGTH - 1)]


def test_what_a_mask_costs_under_a_shift(stores: dict[str, ActivationStore], cache: Path) -> None:
    """Under a mask that is fitted to where tokens stand, a prefix costs FVE; with the mask open it costs nothing."""
    store = stores["llama"]
    arm = Positional(features=64, k=4, groups=2)
    dictionary = arm.make(WIDTH, CONTEXT_LENGTH, torch.Generator().manual_seed(0))
    with torch.no_grad():
        dictionary.threshold.fill_(0.1)
        dictionary.mask.logits[0, ::2] = -10.0
        dictionary.mask.logits[1, 1::2] = -10.0
    dictionary.mask.hard = True
    measured = _measure(store, dictionary, cache)
    for shift in measured.shifts:
        assert shift.open_fve is not None
        assert shift.mask_change is not None
        assert shift.open_fve.change.value == pytest.approx(0, abs=1e-9)
        assert abs(shift.fve.change.value) > 1e-4
        assert shift.mask_change.value == pytest.approx(shift.fve.change.value)
        assert shift.content.value < 1
    rows = choose_rows(store, np.arange(store.sequences), POLICY.rows, 13, "this test").rows
    text = (rows.excluded == 0) & (rows.index < CONTEXT_LENGTH - 4)  # all rows of this store are whole, or not chosen
    whole = store.sequence_table.length[choose_rows(store, np.arange(store.sequences), POLICY.rows, 13, "this test").entry]
    assert set(whole) == {CONTEXT_LENGTH}
    dictionary.requires_grad_(False)
    x, position = rows.x[text].double(), rows.position[text].long()
    error = (x - dictionary(x.float(), position)).square().sum()
    assert measured.shifts[1].fve.unshifted.value == pytest.approx(float(1 - error / (x - x.mean(0)).square().sum()))
    moved = (x - dictionary(x.float(), position + 4)).square().sum()
    assert measured.shifts[1].fve.shifted.value == pytest.approx(float(1 - moved / (x - x.mean(0)).square().sum()))


def test_passes_are_made_once(stores: dict[str, ActivationStore], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = stores["gpt2"]
    first = _measure(store, random_dictionary(), tmp_path)
    folders = sorted((tmp_path / "prefixes").iterdir())
    assert len(folders) == 4  # the controls and two shifts
    _opened.cache_clear()

    def refuse(*arguments: Any) -> None:
        raise AssertionError("the model was run again")

    assert _model(store).is_encoder is False
    monkeypatch.setattr(LanguageModel, "residuals", refuse)
    assert _measure(store, random_dictionary(), tmp_path) == first
    other = _measure(store, random_dictionary(features=40), tmp_path)
    assert other.features != first.features
    with pytest.raises(AssertionError, match="run again"):
        _measure(store, random_dictionary(), tmp_path, POLICY.model_copy(update={"prefixes": ("Another one",)}))


def test_a_clock_that_restarts(tmp_path: Path) -> None:
    """Masks go by the clock and shifts by the index: behind a sentence the sentence clock tells of each token of the text the same,
    and the line clock from the text's first line break on."""
    model_folder = tiny_model("gemma3", tmp_path / "model")
    for clock in ("sentence", "newline"):
        store = store_of(model_folder, 1, tmp_path / clock, clock=clock, norm_multiple=10.0)
        chosen = choose_rows(store, np.arange(store.sequences), 6, 20, "this test")
        model = _model(store)
        shifted = shifted_store(model, store, chosen, [prefix_tokens(model, "It was so.", 4)], tmp_path)
        for entry, part in zip(np.argsort(shifted.sequence_table.sequence), chosen.parts(1), strict=True):
            after, before = shifted.read(np.array([entry])), chosen.of(part)
            restarts = [place for place in range(2, len(before.x) - 4) if before.position[place] == 0]
            first = 1 if clock == "sentence" else min(restarts, default=len(before.x) - 4)
            assert torch.equal(after.position[first + 4 :], before.position[first:-4])
            assert after.position[1 : first + 4].tolist() == list(range(first + 3))
            assert after.index.tolist() == list(range(len(before.x)))


def test_rows_without_an_opening_token(tmp_path: Path) -> None:
    store = store_of(tiny_model("gpt2", tmp_path / "model"), 1, tmp_path / "store", bos=False)
    assert enclosing(store) == (0, 0)
    measured = _measure(store, random_dictionary(), tmp_path)
    assert measured.shifts[0].position_count[:3] == [0, 0, measured.rows]  # the first token is excluded where it stood


def test_what_cannot_be_measured(stores: dict[str, ActivationStore], store: ActivationStore, cache: Path) -> None:
    llama, dictionary = stores["llama"], random_dictionary()
    with pytest.raises(TemporalLensError, match=r"have at most 32 tokens, and a shift of 30 tokens needs 39"):
        _measure(llama, dictionary, cache, FidelityPolicy(shifts=(1, 30)))
    with pytest.raises(TemporalLensError, match=r"width 24 does not fit layer embed of \S+llama, whose activations have width 32"):
        _measure(llama, random_dictionary(24), cache)
    with pytest.raises(TemporalLensError, match="was not harvested from a language model"):
        measure_fidelity(random_dictionary(24), "llama", 1, store, np.arange(4), POLICY, cache)
    with pytest.raises(TemporalLensError, match=r"the prefix ' ' has no tokens"):
        prefix_tokens(_model(stores["bert"]), " ", 3)
    for shifts in ((), (0, 1), (2, 2), (4, 2)):
        with pytest.raises(TemporalLensError, match="in ascending order"):
            FidelityPolicy(shifts=shifts)


def test_what_is_not_by_feature_is_known_where_no_feature_fires_often(stores: dict[str, ActivationStore], cache: Path) -> None:
    """As of a large dictionary on few rows."""
    rare = _measure(stores["llama"], random_dictionary(), cache, POLICY.model_copy(update={"least_firings": 100000}))
    often = _measure(stores["llama"], random_dictionary(), cache)
    assert rare.features == [] and rare.control_content == often.control_content
    for one, other in zip(rare.shifts, often.shifts, strict=True):
        assert one.content == other.content and one.fve == other.fve and one.position_content == other.position_content
        assert one.follows_index == one.follows_text == one.absolute_index == Estimate(None, None, None, 0)
        assert one.feature_absolute_index == one.feature_q == one.feature_content == []
    assert tables({"dictionary": rare})[0].rows and draw_fidelity([Arm("dictionary", [rare])])
    assert inspected._fidelity(rare, FidelityPolicy()).startswith("Not known: none that fires 200 times or more")


def test_one_document_has_no_interval(stores: dict[str, ActivationStore], cache: Path) -> None:
    store = stores["llama"]
    source = store.manifest.description.source
    layer: Any = source["layer"]
    own = np.flatnonzero(store.sequence_table.document == store.sequence_table.document[0])
    policy = POLICY.model_copy(update={"least_firings": 1})
    measured = measure_fidelity(random_dictionary(), str(source["model"]), layer, store, own, policy, cache)
    shift: ShiftFidelity = measured.shifts[0]
    assert (measured.documents, shift.content.low, shift.fve.change.high, shift.tied_to_content) == (1, None, None, 0)
    assert shift.undecided == shift.absolute_index.n > 0


def test_rows_take_passages_in_turn_and_another_passage_is_a_control(stores: dict[str, ActivationStore], cache: Path) -> None:
    store, model = stores["llama"], _model(stores["llama"])
    chosen = choose_rows(store, np.arange(store.sequences), 4, 12, "this test")
    passages = [prefix_tokens(model, text, 2) for text in ("So it was.", "And then?")]
    shifted = shifted_store(model, store, chosen, passages, cache)
    entries = np.argsort(shifted.sequence_table.sequence)
    for number in range(4):
        assert shifted.read(entries[[number]]).token[1:3].tolist() == passages[number % 2]
    measured = _measure(store, random_dictionary(), cache)
    assert measured.control_passage.value == 1  # in the stream before block 0 of a RoPE model a token is the same behind any words
    alone = _measure(store, random_dictionary(), cache, POLICY.model_copy(update={"prefixes": ("So it was.",)}))
    assert alone.control_passage is None
