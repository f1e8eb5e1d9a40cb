"""Packed rows: every entry is of one document, held-out text is in no training data, and what runs rows again runs them whole."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch.nn import functional
from transformers import AutoModelForCausalLM

from headed_models import clockwork, headed_model, identity, random_dictionary
from temporallens.activations.clocks import CLOCKS, TokenMarks
from temporallens.activations.language.harvest import columns_of, harvest, schedule
from temporallens.activations.language.models import LanguageModel
from temporallens.activations.language.token_rows import row_shape, token_rows
from temporallens.activations.loader import Loader
from temporallens.activations.manifest import StoreDescription
from temporallens.activations.store import ACROSS_DOCUMENTS, ActivationStore
from temporallens.activations.writer import Rows, StoreWriter
from temporallens.dictionaries.arms.batchtopk import BatchTopK
from temporallens.errors import TemporalLensError
from temporallens.evaluation.heldout import errors_by_document, find_firings
from temporallens.evaluation.model.fidelity import FidelityPolicy, measure_fidelity
from temporallens.evaluation.model.origin import choose_rows, harvest_of
from temporallens.evaluation.model.passes import open_model
from temporallens.evaluation.model.prefixes import parts_in, shifted_store
from temporallens.evaluation.model.splicing import SplicingPolicy, measure_splicing
from temporallens.evaluation.positions.specialisation import PositionsPolicy, measure_specialisation
from temporallens.evaluation.results import describe_store
from temporallens.files import fingerprint, read_json, write_json
from temporallens.study import stages
from temporallens.study.reading import read_study
from temporallens.training.policy import TrainingPolicy
from temporallens.training.trainee import ArmRun
from temporallens.training.trainer import train_arms
from tiny_models import TEXTS, tiny_model

LAYER, CONTEXT = 1, 32
SHORT = [" ".join(text.split()[first : first + 6]) for text in TEXTS for first in range(0, 12, 3) if text.split()[first:]] * 4
"""Documents of 3 to 20 tokens, so that a row holds several."""


def harvested(model: str, out: Path, texts: list[str] = SHORT, **policy: Any) -> ActivationStore:
    settings = {"context_length": CONTEXT, "rows": "packed", "dtype": "float32", "compute_dtype": "float32", "norm_multiple": None} | policy
    store = harvest(model, LAYER, texts, out=out, **settings)
    assert isinstance(store, ActivationStore)
    return store


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(headed_model("llama", tmp_path_factory.mktemp("models") / "llama"))


@pytest.fixture(scope="module")
def packed(llama: str, tmp_path_factory: pytest.TempPathFactory) -> ActivationStore:
    return harvested(llama, tmp_path_factory.mktemp("stores") / "packed", batch_size=1)


@pytest.fixture
def old(packed: ActivationStore, tmp_path: Path) -> ActivationStore:
    """A store as it was written before documents were told apart."""
    folder = tmp_path / "old"
    shutil.copytree(packed.folder, folder)
    manifest = read_json(folder / "manifest.json", "a manifest")
    del manifest["description"]["policies"][ACROSS_DOCUMENTS]
    write_json(folder / "manifest.json", manifest)
    return ActivationStore(folder)


# Entries and documents


@pytest.fixture(scope="module")
def tokenizing(tmp_path_factory: pytest.TempPathFactory) -> tuple[LanguageModel, TokenMarks]:
    model = LanguageModel.load(str(tiny_model("llama", tmp_path_factory.mktemp("models") / "tiny")), up_to="embed")
    return model, TokenMarks.of(model.tokenizer)


@given(
    lengths=st.lists(st.integers(1, 40), min_size=2, max_size=15),
    context=st.integers(3, 16),
    bos=st.booleans(),
    shard_bytes=st.sampled_from([100, 10_000]),
    share=st.sampled_from([0.1, 0.3, 0.5]),
    seed=st.integers(0, 9),
)
@settings(max_examples=15)
def test_no_document_is_on_both_sides_whatever_its_length(tmp_path_factory, tokenizing, lengths, context, bos, shard_bytes, share, seed):
    model, marks = tokenizing
    rows = token_rows(model, ["the " * length for length in lengths], row_shape(model, context, bos, "packed"), "packed")
    description = StoreDescription(
        source={"kind": "test"}, policies={"rows": "packed", ACROSS_DOCUMENTS: True}, width=1, dtype="float32", positions=context
    )
    writer = StoreWriter(tmp_path_factory.mktemp("any") / "store", description, shard_bytes)
    for batch in schedule(rows, 3, 0, left=False):
        columns = columns_of(batch, CLOCKS["index"], marks, context)
        writer.append(Rows(torch.zeros(batch.size, 1), **columns))
    store = ActivationStore(writer.finish())
    every, table = store.read(np.arange(store.sequences)), store.sequence_table
    assert every.document.tolist() == np.repeat(table.document, table.length).tolist()
    assert every.sequence.tolist() == np.repeat(table.sequence, table.length).tolist()
    assert store.documents == len(lengths) == len(every.document.unique())
    assert int(table.length.sum()) == store.rows
    split = store.split(share, seed)
    assert sorted([*split.train, *split.held_out]) == list(range(store.sequences))
    train, held_out = (set(store.read(side).document.tolist()) for side in split)
    assert not train & held_out
    assert len(held_out) >= max(1, min(len(lengths) - 1, round(share * len(lengths))))


def test_the_manifest_says_that_documents_see_each_other_and_counts_them_all(packed: ActivationStore, llama: str, tmp_path: Path) -> None:
    rows = packed.read(np.arange(packed.sequences))
    assert packed.documents == len(rows.document.unique()) == len(SHORT)
    assert packed.manifest.description.policies[ACROSS_DOCUMENTS] is True
    assert packed.sequences > len(rows.sequence.unique())
    described = describe_store(packed, 0.3, 0)
    held_out = packed.read(packed.split(0.3, 0).held_out)
    assert (described.documents, described.held_out_documents) == (len(SHORT), len(held_out.document.unique()))
    assert described.held_out_documents >= round(0.3 * len(SHORT))  # and copies of these
    assert harvest_of(packed).rows == "packed"
    assert ACROSS_DOCUMENTS not in harvested(llama, tmp_path / "split", rows="split").manifest.description.policies


def test_tokens_see_the_documents_before_theirs_in_the_row(packed: ActivationStore, llama: str) -> None:
    rows = choose_rows(packed, np.arange(packed.sequences), 1, 3, "this test").rows
    start = int((rows.document != rows.document[0]).nonzero()[0])
    model = LanguageModel.load(llama, up_to=LAYER)
    alone = model.residuals(rows.token[None, start:], torch.ones(1, len(rows.x) - start, dtype=torch.bool), [LAYER])[LAYER][0]
    assert not torch.allclose(alone, rows.x[start:], atol=1e-2)


def test_rows_that_hold_one_document_have_one_entry_each(llama: str, tmp_path: Path) -> None:
    for policy in ("split", "document"):
        store = harvested(llama, tmp_path / policy, TEXTS, rows=policy)
        assert store.sequence_table.whole.tolist() == list(range(store.sequences))
        assert len(np.unique(store.sequence_table.sequence)) == store.sequences


def test_a_single_packed_row_can_be_split_and_trained_on(llama: str, tmp_path: Path) -> None:
    store = harvested(llama, tmp_path / "store", [text[:12] for text in TEXTS], context_length=48)
    assert len(np.unique(store.sequence_table.sequence)) == 1
    assert store.documents == len(TEXTS)
    split = store.split(0.4, 0)
    assert len(np.unique(store.sequence_table.document[split.held_out])) == 2
    policy = TrainingPolicy(steps=3, batch_size=8, held_out=0.4, log_every=1, checkpoint_every=3)
    (run,) = train_arms(store, [ArmRun("arm", BatchTopK(features=8, k=2), 0)], policy, tmp_path / "arms").values()
    assert run.summary["tokens_seen"] == 24


def test_neighbours_are_of_one_document(packed: ActivationStore) -> None:
    rows = packed.read(np.arange(packed.sequences))
    where = {x.numpy().tobytes(): place for place, x in enumerate(rows.x)}
    batch = next(Loader(packed, np.arange(packed.sequences), 64, seed=0, neighbours=True))
    assert batch.previous is not None and batch.paired is not None
    places = [(where[x.numpy().tobytes()], where[before.numpy().tobytes()]) for x, before in zip(batch.x, batch.previous, strict=True)]
    for (own, before), paired in zip(places, batch.paired.tolist(), strict=True):
        follows = bool(rows.sequence[own] == rows.sequence[own - 1]) and bool(rows.document[own] == rows.document[own - 1])
        assert paired == (follows and int(rows.excluded[own - 1]) == 0)
        assert before == (own - 1 if paired else own)


# Stores of earlier versions


def test_packed_rows_of_an_earlier_version_are_read_but_not_divided(old: ActivationStore, llama: str) -> None:
    every = np.arange(old.sequences)
    assert len(old.read(every).x) == old.rows
    sentence = "harvested before packed rows were divided by document.*; remove it and harvest again"
    for refused in (
        lambda: old.split(0.3, 0),
        lambda: describe_store(old, 0.3, 0),
        lambda: errors_by_document(random_dictionary(), old, every),
        lambda: choose_rows(old, every, 4, 3, "this test"),
    ):
        with pytest.raises(TemporalLensError, match=sentence):
            refused()
    with pytest.raises(TemporalLensError, match="already holds a finished store"):
        harvested(llama, old.folder, batch_size=1)


# What runs rows again


def test_rows_are_chosen_whole_and_run_again_to_the_bit(packed: ActivationStore, llama: str, tmp_path: Path) -> None:
    held_out = packed.split(0.3, 0).held_out
    chosen = choose_rows(packed, held_out, 8, 3, "this test")
    documents = set(packed.sequence_table.document[held_out].tolist())
    assert len(chosen.length) == 8 < len(chosen.entry)
    assert chosen.selected.tolist() == [document in documents for document in chosen.rows.document.tolist()]
    assert 0 < int(chosen.selected.sum()) < len(chosen.selected)
    assert chosen.document.tolist() == packed.sequence_table.document[chosen.entry].tolist()
    model = open_model(llama, LAYER, "float32", None)
    for part in chosen.parts(1):
        rows = chosen.of(part)
        assert rows.index.tolist() == list(range(len(rows.x)))
        assert len(rows.sequence.unique()) == 1
        again = model.residuals(rows.token[None], torch.ones(1, len(rows.x), dtype=torch.bool), [LAYER])[LAYER][0]
        assert torch.equal(again, rows.x)
    same = shifted_store(model, packed, chosen, [[]], tmp_path)
    entries = parts_in(same, chosen)
    assert torch.equal(same.read(entries).x, packed.read(chosen.entry).x)
    assert torch.equal(same.read(entries).excluded, packed.read(chosen.entry).excluded)


def test_splicing_counts_and_replaces_held_out_tokens_alone(packed: ActivationStore, llama: str) -> None:
    held_out, dictionary = packed.split(0.3, 0).held_out, random_dictionary()
    measured = measure_splicing(dictionary, llama, LAYER, packed, held_out, SplicingPolicy(rows=5, bins=1, resamples=20))
    chosen = choose_rows(packed, held_out, 5, 3, "this test")
    whole, clean, spliced, documents = AutoModelForCausalLM.from_pretrained(llama).eval(), [], [], []
    first = 0
    for part in chosen.parts(1):
        rows = chosen.of(part)
        asked = chosen.selected[first : first + len(rows.x)]
        first += len(rows.x)
        kept = asked & (rows.excluded == 0)

        def replace(block: Any, arguments: Any, output: torch.Tensor) -> torch.Tensor:
            return torch.where(kept[:, None], dictionary(output[0], torch.arange(output.shape[1])), output[0])[None]  # noqa: B023 (used at once)

        with torch.no_grad():
            before = whole(rows.token[None]).logits[0, :-1]
            hook = whole.model.layers[LAYER].register_forward_hook(replace)
            after = whole(rows.token[None]).logits[0, :-1]
            hook.remove()
        for found, logits in ((clean, before), (spliced, after)):
            found.append(functional.cross_entropy(logits, rows.token[1:], reduction="none")[kept[:-1]])
        documents += rows.document[:-1][kept[:-1]].tolist()
    assert measured.headline.clean.value == pytest.approx(float(torch.cat(clean).double().mean()), abs=2e-5)
    assert measured.headline.spliced.value == pytest.approx(float(torch.cat(spliced).double().mean()), abs=2e-5)
    assert (measured.rows, measured.tokens, measured.documents) == (5, len(documents), len(set(documents)))
    assert measured.documents > 5  # several of a row are units of their own
    held = measure_splicing(identity(), llama, LAYER, packed, held_out, SplicingPolicy(rows=5, bins=1, resamples=20))
    assert held.headline.spliced.value == held.headline.clean.value


def test_ablations_of_other_held_out_documents_are_not_taken_from_the_cache(packed: ActivationStore, llama: str, tmp_path: Path) -> None:
    policy = SplicingPolicy(rows=200, bins=1, resamples=2)
    for seed in (0, 1):
        entries = packed.split(0.5, seed).held_out
        cached = measure_splicing(random_dictionary(), llama, LAYER, packed, entries, policy, tmp_path)
        assert cached == measure_splicing(random_dictionary(), llama, LAYER, packed, entries, policy)


def test_fidelity_counts_held_out_documents_and_those_pushed_out_not(packed: ActivationStore, llama: str, tmp_path: Path) -> None:
    held_out, longest = packed.split(0.3, 0).held_out, 16
    policy = FidelityPolicy(shifts=(1, longest), rows=12, least_firings=5, resamples=20)
    measured = measure_fidelity(random_dictionary(), llama, LAYER, packed, held_out, policy, tmp_path)
    chosen = choose_rows(packed, held_out, 12, longest + 9, "this test")
    kept = chosen.rows.excluded[chosen.selected] == 0
    assert (measured.rows, measured.documents, measured.tokens) == (12, len(set(chosen.document.tolist())), int(kept.sum()))
    assert measured.control_content.value == 1
    index = chosen.rows.index[chosen.selected][kept]
    for shift in measured.shifts:
        lost = index >= CONTEXT - shift.shift
        expected = torch.bincount(index[~lost] + shift.shift, minlength=CONTEXT)
        assert shift.position_count == expected.tolist()  # a token behind the prefix stands so many places further on
    assert lost.any()
    gone = shifted_store(open_model(llama, LAYER, "float32", None), packed, chosen, [list(range(5, 5 + longest))], tmp_path)
    assert -1 in parts_in(gone, chosen)


def test_features_of_the_position_alone_are_tied_to_the_index_in_packed_rows(packed: ActivationStore, llama: str, tmp_path: Path) -> None:
    policy = FidelityPolicy(shifts=(2,), rows=24, least_firings=5, resamples=20)
    measured = measure_fidelity(clockwork(groups=4), llama, LAYER, packed, packed.split(0.5, 0).held_out, policy, tmp_path)
    (shift,) = measured.shifts
    assert shift.index_correlation.value == pytest.approx(1)
    assert shift.absolute_index_distance.value == pytest.approx(1)


# What is measured by document, and against chance


def test_errors_are_summed_over_the_rows_of_each_document(packed: ActivationStore) -> None:
    held_out, dictionary = packed.split(0.3, 0).held_out, random_dictionary()
    errors = errors_by_document(dictionary, packed, held_out)
    rows = packed.read(np.arange(packed.sequences))
    documents = sorted(set(packed.sequence_table.document[held_out].tolist()))
    assert len(errors.tokens) == len(documents)
    for number, document in enumerate(documents):
        own = (rows.document == document) & (rows.excluded == 0)
        x = rows.x[own]
        with torch.no_grad():
            error = (x - dictionary(x, rows.position[own].long())).square().sum(dtype=torch.float64)
        assert errors.tokens[number].sum() == int(own.sum())
        assert errors.error[number].sum() == pytest.approx(float(error), rel=1e-5)


def test_parts_of_packed_rows_are_turned_together(packed: ActivationStore, llama: str, tmp_path: Path) -> None:
    """A part of few tokens that is turned by itself would stay where it is, and nothing would seem to depend on position."""
    firings = find_firings(clockwork(groups=4), packed, packed.split(0.5, 0).held_out)
    lengths = np.bincount(firings.stretch)
    assert np.median(np.bincount(firings.sequence)[np.unique(firings.sequence)]) < CONTEXT / 2
    assert CONTEXT / 2 < np.median(lengths) < 1.5 * CONTEXT
    found = measure_specialisation(firings, PositionsPolicy(least_firings=20, least_tokens=5))
    rate = np.bincount(firings.feature, minlength=4) / len(firings.position)
    entropy = -(rate * np.log2(rate) + (1 - rate) * np.log2(1 - rate))
    assert found.specialised.all()
    assert (found.features.information > 0.6 * entropy).all()
    split = harvested(llama, tmp_path / "split", rows="split")
    whole = find_firings(random_dictionary(), split, np.arange(split.sequences))
    assert np.array_equal(whole.stretch, whole.sequence)


def test_studies_harvest_packed_rows_anew_and_nothing_else(write: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What shapes a harvest has one thing more where rows are packed, so that stores of earlier versions are of other settings."""
    asked: list[Any] = []
    monkeypatch.setattr(stages, "fingerprint", lambda whole: asked.append(whole) or fingerprint(whole))
    for packed in (False, True):
        file = read_study(write(("layer: 0", "layer: 0, rows: packed")) if packed else write())
        stages.stages_of(file.study, file.text)
        shaped_by = {whole["stage"]: whole["shaped_by"] for whole in asked if whole["stage"].startswith("harvest/")}
        assert "entries" not in shaped_by["harvest/high"]
        assert shaped_by["harvest/low"].get("entries") == ("by document" if packed else None)
