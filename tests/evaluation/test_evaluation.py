"""Held-out metrics against their definitions, and results that are refused when they would be nothing."""

import json

import numpy as np
import pytest
import torch
from tests.conftest import POLICY

from temporallens.dictionaries.arms.batchtopk import BatchTopK
from temporallens.errors import TemporalLensError
from temporallens.evaluation.reconstruction import evaluate_reconstruction
from temporallens.evaluation.results import assemble, load_results
from temporallens.files import write_json
from temporallens.layout import RunId


def held_out(store):
    return store.split(POLICY.held_out, POLICY.data_seed).held_out


def measured(store, trained, name):
    arm = trained[name]
    return evaluate_reconstruction(arm.dictionary, store, held_out(store), arm.summary["scale"])


@pytest.mark.parametrize("name", ["standard", "batchtopk", "positional"])
def test_metrics_are_their_definitions(store, world, trained, name):
    found, arm = measured(store, trained, name), trained[name]
    ids = store.sequence_table.sequence[held_out(store)]
    x = torch.from_numpy(world[ids]).double()
    with torch.no_grad():
        codes = arm.dictionary.encode(torch.from_numpy(world[ids]))
        error = (x - arm.dictionary.decode(codes)).square().sum(-1)
    kept, kept_error, mean = x[:, 1:], error[:, 1:], x[:, 1:].mean((0, 1))
    assert found.fve == pytest.approx(float(1 - kept_error.sum() / (kept - mean).square().sum()), abs=1e-6)
    assert found.fve_within_position == pytest.approx(float(1 - kept_error.sum() / (kept - kept.mean(0)).square().sum()), abs=1e-6)
    assert found.fve_first == pytest.approx(float(1 - error[:, 0].sum() / (x[:, 0] - mean).square().sum()), abs=1e-6)
    assert found.l0 == pytest.approx(float((codes[:, 1:] > 0).sum(-1).double().mean()))
    assert found.dead_features == int((codes[:, 1:] > 0).flatten(0, 1).any(0).logical_not().sum())
    assert found.position_loss[0] is None
    assert found.position_loss[3] == pytest.approx(float(error[:, 3].mean()) * arm.summary["scale"] ** 2, rel=1e-5)
    assert found.position_fve[3] == pytest.approx(float(1 - error[:, 3].sum() / (x[:, 3] - x[:, 3].mean(0)).square().sum()), abs=1e-5)
    assert found.held_out_tokens == kept.shape[0] * kept.shape[1]


def test_a_mean_predictor_explains_nothing(store):
    dictionary = BatchTopK(features=8, k=1).make(store.width, store.positions, torch.Generator())
    split = held_out(store)
    with torch.no_grad():
        dictionary.decoder_bias.copy_(store.moments_of(split).pooled_mean())
        dictionary.encoder_bias.fill_(-1e6)
    with pytest.raises(TemporalLensError, match="codes are constant"):
        evaluate_reconstruction(dictionary, store, split, 1.0)
    with torch.no_grad():
        dictionary.encoder_bias[0] = 0.0
        dictionary.decoder[0] = 0.0
    assert evaluate_reconstruction(dictionary, store, split, 1.0).fve == pytest.approx(0, abs=1e-6)


def test_a_split_without_usable_rows_is_refused(store, trained):
    with pytest.raises(TemporalLensError, match="no usable row"):
        evaluate_reconstruction(trained["batchtopk"].dictionary, store, np.array([], dtype=np.int64), 1.0)


@pytest.fixture
def run_folder(store, trained, tmp_path):
    for name in ("stores", "scans", "arms/x", "evaluation/x"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "stores" / "x").symlink_to(store.folder)
    for name, arm in trained.items():
        (tmp_path / "arms" / "x" / f"{name}-seed0").symlink_to(arm.folder)
        values = measured(store, trained, name)._asdict()
        write_json(tmp_path / "evaluation" / "x" / f"{name}-seed0.json", values)
    return tmp_path


STUDY = {"training": POLICY.model_dump(mode="json"), "seeds": [0]}
RUNS = {RunId("x", name, 0): (name, None) for name in ("standard", "batchtopk", "positional")}


def test_results_gather_every_run(run_folder):
    assemble(run_folder, "test", STUDY, RUNS)
    results = load_results(run_folder)
    assert [run.arm for run in results.runs] == ["standard", "batchtopk", "positional"]
    assert all(run.training_steps == 120 and run.seconds > 0 for run in results.runs)
    assert 0 < results.activations["x"].eta2_floor < results.activations["x"].eta2 < 1
    assert "seconds" not in (run_folder / "results.json").read_text()


def test_the_study_is_written_as_it_came_whatever_readers_name_of_it(run_folder):
    study = {"name": "odd", **STUDY, "arms": {"z": {"kind": "z", "strictness": "soft", "k": 3}}}
    path = assemble(run_folder, "test", study, RUNS)
    results = load_results(run_folder)
    assert list(json.loads(path.read_text())["study"].items()) == list(results.study.whole.items()) == list(study.items())
    assert results.study.arms["z"].strictness == "soft" and not results.study.arms["z"].position_weights


def test_results_of_a_study_that_lacks_what_readers_need_are_refused(run_folder):
    path = assemble(run_folder, "test", STUDY, RUNS)
    content = json.loads(path.read_text())
    del content["checksum"], content["study"]["training"]["steps"]
    write_json(path, content)
    with pytest.raises(TemporalLensError, match=r"not a results file of this version \(study.training.steps: Field required\)"):
        load_results(run_folder)


def test_results_of_a_run_that_never_trained_are_refused(run_folder):
    path = run_folder / "arms" / "x" / "batchtopk-seed0"
    summary = json.loads((path / "training.json").read_text()) | {"training_steps": 0}
    path.unlink()
    path.mkdir()
    del summary["checksum"]
    write_json(path / "training.json", summary)
    with pytest.raises(TemporalLensError, match="trained for 0 steps: that is no result"):
        assemble(run_folder, "test", STUDY, RUNS)
    assert not (run_folder / "results.json").exists()


def test_results_that_are_not_finite_are_refused(run_folder):
    path = run_folder / "evaluation" / "x" / "standard-seed0.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"fve": float("nan")}))
    with pytest.raises(TemporalLensError, match="NaN is no number"):
        assemble(run_folder, "test", STUDY, RUNS)
