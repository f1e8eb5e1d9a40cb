"""Held-out documents are encoded once per dictionary and study, and what is read again is what was made."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from temporallens.activations.store import ActivationStore
from temporallens.dictionaries.arms.positional import Positional
from temporallens.dictionaries.arms.topk import TopK
from temporallens.dictionaries.base import Dictionary
from temporallens.dictionaries.saving import load_dictionary
from temporallens.errors import TemporalLensError
from temporallens.evaluation import heldout
from temporallens.evaluation.heldout import HeldOut
from temporallens.evaluation.identity import dictionary_fingerprint
from temporallens.evaluation.reconstruction import evaluate_reconstruction
from temporallens.layout import RunFolder, RunId
from temporallens.study import pictures
from temporallens.study.reading import read_study
from temporallens.study.run import run_study

STUDY = """\
name: once
threads: 1
activations:
  world:
    {source: world, width: 16, features: 24, positions: 16, sequences: 64, start: 3, periods: [4], active: 2, highest_rate: 0.2}
arms:
  batchtopk: {kind: batchtopk, features: 32, k: 2}
  positional: {kind: positional, features: 32, k: 2, groups: 3, position_weights: true}
seeds: [0, 1]
training: {steps: 12, batch_size: 64, learning_rate: 0.005, log_every: 6, held_out: 0.25, snapshots: 1}
evaluation:
  runs: all
  positions: {least_firings: 5, least_tokens: 2, resamples: 20}
  clusters: {least_firings: 20, least_features: 2, sample: 32, draws: 19, bootstraps: 2}
  features: {bins: 6, contexts: 2, draws: 40}
"""


@pytest.fixture
def store(tmp_path: Path) -> ActivationStore:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(3, 9, (40, 1), generator=generator)
    x = torch.randn(40, 8, 6, generator=generator)
    mask = torch.arange(8)[None] < lengths
    return ActivationStore.from_arrays(x.numpy(), out=tmp_path / "store", mask=mask.numpy(), documents=np.arange(40) // 2)


def random_dictionary(seed: int = 1) -> Dictionary:
    return TopK(features=16, k=3).make(6, 8, torch.Generator().manual_seed(seed))


def masked_dictionary() -> Dictionary:
    made = Positional(features=16, k=3, groups=2, strictness="hard").make(6, 8, torch.Generator().manual_seed(1))
    with torch.no_grad():
        made.mask.logits.copy_(torch.randn(made.mask.logits.shape, generator=torch.Generator().manual_seed(2)))  # type: ignore[union-attr, operator]
    return made


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each part is made."""
    made: Counter[str] = Counter()
    for name in ("_encode", "_open"):
        original = getattr(heldout, name)
        monkeypatch.setattr(heldout, name, lambda *given, own=name, original=original: made.update([own]) or original(*given))
    return made


def everything(documents: HeldOut, dictionary: Dictionary) -> list[Any]:
    """All that is kept, as arrays and numbers."""
    encoded, ungated = documents.encoded(dictionary), documents.ungated(dictionary)
    found = [*encoded.firings, encoded.error, encoded.first_error, *documents.errors(encoded), *(ungated or ())]
    return [np.array(part) for part in found]  # copies: what is read is mapped from files, which the tests damage


@pytest.mark.slow
def test_a_whole_evaluation_encodes_every_document_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "study.yaml").write_text(STUDY)
    study, folder = read_study(tmp_path / "study.yaml"), RunFolder(tmp_path / "run")
    run_study(study, folder.root, "train")
    encoded: Counter[str] = Counter()
    opened: Counter[str] = Counter()
    encode = Dictionary.encode

    def counted(dictionary: Dictionary, x: torch.Tensor, positions: Any = None, tokens: Any = None) -> torch.Tensor:
        encoded[dictionary_fingerprint(dictionary)] += len(x)
        return encode(dictionary, x, positions, tokens)

    def counted_open(*given: Any, original: Any = heldout._open) -> Any:
        opened[dictionary_fingerprint(given[0])] += 1
        return original(*given)

    monkeypatch.setattr(Dictionary, "encode", counted)

    def unrendered(figure: Figure, path: Path, format: str = "png") -> Path:
        """What a picture reads it reads when it is drawn; to render it takes most of the time."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        return path

    monkeypatch.setattr(heldout, "_open", counted_open)
    monkeypatch.setattr(pictures, "save", unrendered)
    run_study(study, folder.root, "figures")
    store = ActivationStore(folder.store("world"))
    split = store.split(0.25, 0)
    held_out, training = len(store.read(split.held_out).x), int((store.read(split.train).excluded == 0).sum())
    for arm in ("batchtopk", "positional"):
        for seed in (0, 1):
            own = folder.arm(RunId("world", arm, seed))
            final = dictionary_fingerprint(load_dictionary(own))
            assert encoded.pop(final) == held_out + training  # the world's post-hoc mask comes from training documents
            assert opened.pop(final, 0) == (arm == "positional")
    assert set(encoded.values()) == {held_out} and len(encoded) == 6  # four snapshots and two soft states
    assert not opened


@pytest.mark.parametrize("make", [random_dictionary, masked_dictionary])
def test_what_is_read_again_is_what_was_made(make: Any, store: ActivationStore, tmp_path: Path, passes: Counter[str]) -> None:
    entries, dictionary, cache = np.arange(5, 33), make(), tmp_path / "passes"
    masked = dictionary.gates_by_position() is not None
    alone = everything(HeldOut(store, entries), dictionary)
    cold = everything(HeldOut(store, entries, cache), dictionary)
    made = passes.total()
    warm = everything(HeldOut(store, entries, cache), dictionary)
    assert passes.total() == made == 2 * (1 + masked)
    for file in (cache / "heldout").iterdir():
        file.write_bytes(file.read_bytes()[:-8])
    mended = everything(HeldOut(store, entries, cache), dictionary)
    assert passes.total() == made + 1 + masked
    for other in (cold, warm, mended):
        for one, again in zip(alone, other, strict=True):
            np.testing.assert_array_equal(one, again)
    assert evaluate_reconstruction(dictionary, store, entries, 1.0) == evaluate_reconstruction(dictionary, store, entries, 1.0, cache)


def test_other_dictionaries_documents_and_versions_are_encoded_anew(
    store: ActivationStore, tmp_path: Path, passes: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = np.arange(20)

    def encoded(dictionary: Dictionary, own: np.ndarray) -> int:
        HeldOut(store, own, tmp_path).encoded(dictionary)
        return passes["_encode"]

    changed = random_dictionary()
    assert encoded(random_dictionary(), entries) == encoded(changed, entries) == 1
    with torch.no_grad():
        changed.decoder_bias[0] += 1
    assert encoded(changed, entries) == 2
    assert encoded(random_dictionary(seed=2), entries) == 3
    assert encoded(random_dictionary(), entries[:-1]) == 4
    monkeypatch.setattr(torch, "__version__", "2.0.0+other")
    assert encoded(random_dictionary(), entries) == 5


def test_documents_without_a_usable_row_are_refused(store: ActivationStore) -> None:
    with pytest.raises(TemporalLensError, match="hold no usable row"):
        HeldOut(store, np.arange(0)).encoded(random_dictionary())
    with pytest.raises(TemporalLensError, match="hold no usable row"):
        assert HeldOut(store, np.arange(0)).variation
