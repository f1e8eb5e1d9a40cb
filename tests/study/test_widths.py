"""Pairs of different widths: a transcoder that gives wider activations than it takes is measured against what it should give."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import temporallens as tl
from temporallens.activations.loader import Loader, with_targets
from temporallens.activations.writer import StoreWriter
from temporallens.cli import app
from temporallens.errors import TemporalLensError
from temporallens.evaluation.heldout import HeldOut, find_firings
from temporallens.evaluation.model.prefix_runs import observe, spread_of
from temporallens.evaluation.reconstruction import evaluate_reconstruction
from temporallens.evaluation.results import load_results
from temporallens.interop.loading import load_dictionary
from temporallens.study.reading import read_study
from temporallens.study.run import run_study

TAKEN, GIVEN, FEATURES = 6, 9, 16
SEQUENCES, LENGTH = 120, 16


def transcoder(folder: Path, **settings: Any) -> Path:
    """SAELens' files of one whose codes are those of a ReLU."""
    generator = torch.Generator().manual_seed(1)
    tensors = {
        "W_enc": torch.randn(TAKEN, FEATURES, generator=generator),
        "b_enc": torch.randn(FEATURES, generator=generator) / 3 - 1,
        "W_dec": torch.randn(FEATURES, GIVEN, generator=generator),
        "b_dec": torch.randn(GIVEN, generator=generator),
    }
    folder.mkdir(parents=True)
    save_file(tensors, folder / "sae_weights.safetensors")
    said = {"sae_lens_version": "6.0.0", "hook_name": "blocks.1.attn.hook_z", "hook_name_out": "blocks.1.hook_mlp_out"}
    config = {
        "architecture": "transcoder",
        "apply_b_dec_to_input": False,
        "d_in": TAKEN,
        "d_out": GIVEN,
        "d_sae": FEATURES,
        "metadata": said,
    }
    (folder / "cfg.json").write_text(json.dumps(config | settings))
    return folder


def arrays(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """What it takes, and exactly what it gives."""
    x = np.random.default_rng(0).normal(size=(SEQUENCES, LENGTH, TAKEN)).astype(np.float32)
    t = {name: tensor.numpy() for name, tensor in load_file(folder / "sae_weights.safetensors").items()}
    return x, np.maximum(x @ t["W_enc"] + t["b_enc"], 0) @ t["W_dec"] + t["b_dec"]


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return transcoder(tmp_path_factory.mktemp("widths") / "own")


@pytest.fixture(scope="module")
def store(own: Path, tmp_path_factory: pytest.TempPathFactory) -> tl.ActivationStore:
    x, target = arrays(own)
    return tl.ActivationStore.from_arrays(x, tmp_path_factory.mktemp("pair") / "store", target=target, source="x", target_source="y")


def test_arrays_of_two_widths_are_one_store_of_the_same_rows(store: tl.ActivationStore, own: Path) -> None:
    assert store.target is not None and (store.width, store.target.width) == (TAKEN, GIVEN) and store.given is store.target
    x, target = arrays(own)
    rows, wanted = next(with_targets(store, np.arange(SEQUENCES)))
    count = len(rows.x)
    assert torch.equal(rows.x, torch.from_numpy(x.reshape(-1, TAKEN)[:count]))
    assert torch.equal(wanted, torch.from_numpy(target.reshape(-1, GIVEN)[:count]))
    loader = Loader(store, np.arange(SEQUENCES), 64, 0)
    batch = next(loader)
    loader.close()
    assert batch.target is not None
    torch.testing.assert_close(load_dictionary(own)(batch.x).detach(), batch.target, atol=1e-5, rtol=1e-5)


def test_what_either_place_leaves_out_is_left_out_of_both(own: Path, tmp_path: Path) -> None:
    x, target = arrays(own)
    x[3, 5] *= 1000
    target[4, 6] *= 1000
    mask = np.ones(x.shape[:2], bool)
    mask[0, 9:] = False
    held = np.ma.masked_array(target, np.zeros(target.shape, bool))
    held[1, 12:] = np.ma.masked
    pair = tl.ActivationStore.from_arrays(x, tmp_path / "store", target=held, mask=mask)
    assert pair.target is not None
    every = np.arange(pair.sequences)
    taken, given = pair.read(every), pair.target.read(every)
    assert torch.equal(taken.excluded, given.excluded) and torch.equal(taken.index, given.index)
    sinks = [(int(sequence), int(index)) for sequence, index in zip(taken.sequence, taken.index, strict=True)]
    assert [place for place, why in zip(sinks, taken.excluded.tolist(), strict=True) if why > 1] == [(3, 5), (4, 6)]
    assert pair.sequence_table.length[:2].tolist() == [9, 12]


def test_an_interrupted_pair_of_arrays_goes_on_to_the_same_bytes(own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x, target = arrays(own)
    monkeypatch.setattr("temporallens.activations.importing.CHUNK_BYTES", 40 * LENGTH * GIVEN * 4)
    whole = tl.ActivationStore.from_arrays(x, tmp_path / "whole", target=target).folder
    append, finish = StoreWriter.append, StoreWriter.finish

    def stopped(name: str, after: int, method: Callable[..., Any]) -> None:
        calls: list[int] = []

        def once(*arguments: Any) -> Any:
            calls.append(1)
            if len(calls) > after:
                raise KeyboardInterrupt
            return method(*arguments)

        monkeypatch.setattr(StoreWriter, name, once)

    for name, after, method in (("append", 3, append), ("finish", 1, finish)):
        stopped(name, after, method)
        with pytest.raises(KeyboardInterrupt):
            tl.ActivationStore.from_arrays(x, tmp_path / "again", target=target)
        monkeypatch.setattr(StoreWriter, name, method)
    tl.ActivationStore.from_arrays(x, tmp_path / "again", target=target)
    files = [path.relative_to(whole) for path in whole.rglob("*.*") if path.is_file() and path.name != ".lock"]
    assert len(files) > 6
    assert all((whole / file).read_bytes() == (tmp_path / "again" / file).read_bytes() for file in files)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda target: target[:, :-1], r"the target has shape \(120, 15, 9\), and should have 120 sequences of 16 positions"),
        (lambda target: target[0], "the target must have shape"),
        (lambda target: target.astype(np.int64), "the target must be floating point"),
        (lambda target: np.where(np.arange(GIVEN) == 3, np.nan, target), "hold NaN or infinity at sequence 0, index 0"),
    ],
)
def test_targets_that_are_none_are_refused_and_leave_nothing(
    change: Callable[[np.ndarray], np.ndarray], sentence: str, own: Path, tmp_path: Path
) -> None:
    x, target = arrays(own)
    with pytest.raises(TemporalLensError, match=sentence):
        tl.ActivationStore.from_arrays(x, tmp_path / "store", target=change(target))
    assert not (tmp_path / "store").exists()


def test_import_takes_a_target(own: Path, tmp_path: Path) -> None:
    for name, array in zip("xy", arrays(own), strict=True):
        np.save(tmp_path / f"{name}.npy", array)
    result = CliRunner().invoke(app, ["import", str(tmp_path / "x.npy"), "--target", str(tmp_path / "y.npy"), "--out", str(tmp_path / "s")])
    assert result.exit_code == 0 and "1,920 activations of width 6, and of width 9 in its target, from 120 sequences" in result.stdout
    pair = tl.ActivationStore(tmp_path / "s")
    assert pair.manifest.description.policies["target"] == "y.npy" and pair.given.width == GIVEN
    np.savez(tmp_path / "both.npz", x=arrays(own)[0], target=np.zeros(3))  # labels, as a rule
    assert CliRunner().invoke(app, ["import", str(tmp_path / "both.npz"), "--out", str(tmp_path / "t")]).exit_code == 0


def test_what_is_given_is_what_everything_is_measured_against(own: Path, store: tl.ActivationStore, tmp_path: Path) -> None:
    dictionary, every = load_dictionary(own), np.arange(store.sequences)
    assert (dictionary.width, dictionary.output_width) == (TAKEN, GIVEN)
    assert evaluate_reconstruction(dictionary, store, every, 1.0).fve == pytest.approx(1, abs=1e-6)
    with torch.no_grad():
        dictionary.decoder.mul_(0.5)
    found, used = evaluate_reconstruction(dictionary, store, every, 1.0), store.read(every).excluded == 0
    wanted = torch.from_numpy(arrays(own)[1].reshape(-1, GIVEN))[used].double()
    with torch.no_grad():
        error = (wanted - dictionary(store.read(every).x[used]).double()).square().sum()
    assert found.fve == pytest.approx(1 - float(error / (wanted - wanted.mean(0)).square().sum()), abs=1e-6) and found.fve < 0.99
    run = observe(dictionary, store, every, 0, 1, LENGTH)
    spread = spread_of(run, run.usable, np.arange(store.sequences))
    np.testing.assert_allclose(spread.total.sum(0), wanted.sum(0).numpy(), rtol=1e-9)


STUDY = """\
name: widths
activations: {{pair: {{source: store, path: {store}}}}}
arms: {{theirs: {{kind: pretrained, path: {path}}}}}
training: {{steps: 2, batch_size: 32, log_every: 2, held_out: 0.4}}
evaluation: {{positions: {{}}, octaves: {{}}, sinks: {{}}, closing: {{}}, clusters: {{}}, features: {{}}{more}}}
"""


@pytest.mark.slow
def test_every_section_that_needs_no_model_reads_a_pair_of_widths(own: Path, store: tl.ActivationStore, tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(STUDY.format(store=store.folder, path=own, more=""))
    run_study(read_study(tmp_path / "study.yaml"), tmp_path / "out")
    (run,) = load_results(tmp_path / "out").runs
    assert run.fve == pytest.approx(1, abs=1e-6) and run.mse_loss < 1e-6
    assert run.measures.keys() >= {"positions", "octaves", "sinks", "closing", "clusters"}
    assert all(octave["fve"]["value"] == pytest.approx(1, abs=1e-5) for octave in run.measures["octaves"]["octaves"])
    assert (tmp_path / "out" / "report.html").exists()


def test_widths_that_do_not_belong_together_are_refused(own: Path, store: tl.ActivationStore, tmp_path: Path) -> None:
    x, target = arrays(own)
    narrow = tl.ActivationStore.from_arrays(x, tmp_path / "narrow", target=target[..., :7])
    (tmp_path / "study.yaml").write_text(STUDY.format(store=narrow.folder, path=own, more=""))
    with pytest.raises(TemporalLensError, match=r"gives activations of width 9, and those of the target of activations.pair have 7"):
        run_study(read_study(tmp_path / "study.yaml"), tmp_path / "out")
    with pytest.raises(TemporalLensError, match=r"gives activations of width 9, and those of .*target have width 7"):
        find_firings(load_dictionary(own), narrow, np.arange(narrow.sequences))
    (tmp_path / "study.yaml").write_text(STUDY.format(store=store.folder, path=own, more=", splicing: {}"))
    with pytest.raises(TemporalLensError, match=r"splicing reads a language model again, and no entry of activations comes from one"):
        run_study(read_study(tmp_path / "study.yaml"), tmp_path / "out")


def test_only_a_transcoder_has_two_widths(own: Path, tmp_path: Path) -> None:
    path = own / "sae_weights.safetensors"
    named = {"encoder": "W_enc", "decoder": "W_dec", "encoder_bias": "b_enc", "decoder_bias": "b_dec"}
    with pytest.raises(TemporalLensError, match=r"'W_dec' should have shape \(16, 6\), and has \(16, 9\)"):
        load_dictionary(path, **named, subtracts_bias=False)
    with pytest.raises(TemporalLensError, match="has no bias that could be taken off what it takes too"):
        load_dictionary(path, **named, subtracts_bias=True, transcodes=True)
    assert load_dictionary(path, **named, subtracts_bias=False, transcodes=True).output_width == GIVEN
    transcoder(tmp_path / "other", d_out=7)
    with pytest.raises(TemporalLensError, match="says d_out = 7, and the weights beside it have 9"):
        load_dictionary(tmp_path / "other")


def test_variation_is_that_of_what_is_given(store: tl.ActivationStore) -> None:
    assert HeldOut(store, np.arange(4)).variation.moments.mean.shape == (LENGTH, GIVEN)
