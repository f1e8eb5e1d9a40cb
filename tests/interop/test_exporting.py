"""Dictionaries in the files of other libraries, read back with the codes that they have here."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import temporallens as tl
from temporallens.dictionaries.base import ArmConfig
from temporallens.dictionaries.expectations.policy import ExpectationPolicy
from temporallens.errors import TemporalLensError
from temporallens.interop.exporting import export
from temporallens.interop.loading import save_as_ours

ARMS: dict[str, ArmConfig] = {
    "standard": tl.Standard(features=24, sparsity=0.01),
    "topk": tl.TopK(features=24, k=3),
    "batchtopk": tl.BatchTopK(features=24, k=3),
    "jumprelu": tl.JumpReLU(features=24, l0=3),
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> tl.ActivationStore:
    generator = np.random.default_rng(0)
    x = 1 + generator.normal(size=(40, 12, 8)).astype(np.float32)
    tokens = generator.integers(0, 9, (40, 12))
    return tl.ActivationStore.from_arrays(x, tmp_path_factory.mktemp("exporting") / "store", tokens=tokens)


def trained(store: tl.ActivationStore, arm: ArmConfig, folder: Path) -> Path:
    return tl.train(store, arm, 20, folder, batch_size=64).folder


@pytest.mark.parametrize("name", ARMS)
@pytest.mark.parametrize("form", ["saelens", "sparsify", "dictionary_learning"])
def test_codes_are_the_same_in_every_library(store: tl.ActivationStore, tmp_path: Path, name: str, form: str) -> None:
    folder = trained(store, ARMS[name], tmp_path / name)
    if form == "sparsify" and name != "topk":
        with pytest.raises(TemporalLensError, match="sparsify keeps the k largest of each token"):
            export(folder, form, tmp_path / "out")
        assert not (tmp_path / "out").exists()
        return
    out = export(folder, form, tmp_path / "out")
    x = store.read(np.arange(8)).x
    ours, theirs = tl.load_dictionary(folder), tl.load_dictionary(out / "activations" if form == "sparsify" else out)
    torch.testing.assert_close(theirs.encode(x), ours.encode(x), atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(theirs(x), ours(x), atol=2e-5, rtol=1e-5)
    assert form in (out / "README.md").read_text()


FIXTURES = Path(__file__).parent / "fixtures"


@pytest.mark.parametrize("form", ["saelens", "sparsify", "dictionary_learning"])
@pytest.mark.parametrize("case", ["saelens-standard-b_dec-kept", "saelens-jumprelu", "sparsify-topk", "gemma_scope"])
def test_what_others_trained_goes_out_with_its_own_codes(case: str, form: str, tmp_path: Path) -> None:
    folder = FIXTURES / case / json.loads((FIXTURES / case / "request.json").read_text()).get("folder", ".")
    save_as_ours(tl.load_dictionary(folder), tmp_path / "ours")
    if form == "sparsify" and case != "sparsify-topk":
        with pytest.raises(TemporalLensError, match="sparsify keeps the k largest of each token"):
            export(tmp_path / "ours", form, tmp_path / "out")
        return
    out = export(tmp_path / "ours", form, tmp_path / "out")
    again, expected = (
        tl.load_dictionary(out / "layers.3" if form == "sparsify" else out),
        load_file(FIXTURES / case / "expected.safetensors"),
    )
    torch.testing.assert_close(again.encode(expected["x"]), expected["codes"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(again(expected["x"]), expected["reconstruction"], atol=1e-5, rtol=1e-5)
    assert case == "gemma_scope" or (again.config.origin.model, again.config.origin.layer) == ("tiny", 3)


@pytest.mark.parametrize(
    ("case", "sentence"),
    [
        ("saelens-standard-layer_norm", "normalises each activation by itself, for which there is no form here"),
        ("saelens-skip_transcoder-d_out", "normalises each activation by itself, is a transcoder and skips its codes, for which"),
        ("sparsify-groupmax/layers.3", "keeps the largest code of each group, for which"),
    ],
)
def test_what_others_trained_and_no_form_says_is_refused(case: str, sentence: str, tmp_path: Path) -> None:
    save_as_ours(tl.load_dictionary(FIXTURES / case), tmp_path / "ours")
    with pytest.raises(TemporalLensError, match=sentence):
        export(tmp_path / "ours", "saelens", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_lies_in_anothers_files_is_to_be_saved_as_ours_first(tmp_path: Path) -> None:
    with pytest.raises(TemporalLensError, match="`temporallens dictionary FOLDER --out OURS` makes one"):
        export(FIXTURES / "saelens-topk", "sparsify", tmp_path / "out")


def test_a_mask_goes_out_as_its_base_and_is_kept_beside(store: tl.ActivationStore, tmp_path: Path) -> None:
    folder = trained(store, tl.Positional(features=24, k=3), tmp_path / "masked")
    out = export(folder, "saelens", tmp_path / "out")
    assert "open at every position" in (out / "README.md").read_text()
    x, positions = store.read(np.arange(8)).x, store.read(np.arange(8)).position.long()
    ours = tl.load_dictionary(folder)
    torch.testing.assert_close(tl.load_dictionary(out).encode(x), ours.ungated(x, positions), atol=1e-5, rtol=1e-5)
    kept = tl.load_dictionary(out / "temporallens")
    assert torch.equal(kept.encode(x, positions), ours.encode(x, positions))


@pytest.mark.parametrize(
    ("arm", "sentence"),
    [
        (tl.PositionMean(features=24, k=3), "takes off what position says"),
        (tl.BatchTopK(features=24, k=3, expectation=ExpectationPolicy(embedding=False)), "takes off what tokens say"),
    ],
)
def test_what_no_other_library_has_is_refused(store: tl.ActivationStore, tmp_path: Path, arm: ArmConfig, sentence: str) -> None:
    folder = trained(store, arm, tmp_path / "arm")
    with pytest.raises(TemporalLensError, match=sentence):
        export(folder, "saelens", tmp_path / "out")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("x")
    with pytest.raises(TemporalLensError, match="is not empty"):
        export(folder, "saelens", tmp_path / "full")
    with pytest.raises(TemporalLensError, match="should be one of saelens, sparsify, dictionary_learning"):
        export(folder, "onnx", tmp_path / "out")
