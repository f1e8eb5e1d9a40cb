"""Several processes that do one study: what they exchange, that they train the same dictionaries as one, and how they end."""

import json
import os
import re
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from companies import ROOT, process_of, run_together, torchrun
from company_worker import ARMS, ROW_ARMS, harvest_all, learn_from_stream, small_windows, train_all
from conftest import DOCUMENTS, SEQUENCES, sparse_world
from temporallens import processes
from temporallens.activations.store import ActivationStore
from temporallens.dictionaries.arms.tfa import TFA
from temporallens.dictionaries.arms.tsae import TSAE
from temporallens.dictionaries.saving import load_dictionary
from temporallens.errors import TemporalLensError
from temporallens.evaluation.results import load_results
from temporallens.layout import RunId
from temporallens.study.config import Study
from temporallens.study.dealing import divided
from temporallens.study.run import _turns
from temporallens.study.stages import Stage
from temporallens.training import trainer
from temporallens.training.checkpoint import begun_trainings
from temporallens.training.history import load_history
from tiny_models import tiny_model
from tiny_studies import VALID, documents

STUDY = """\
name: shared
threads: 1
activations:
  world: {{source: world, width: 16, features: 24, positions: 16, sequences: 64, start: 3, periods: [4], active: 2, highest_rate: 0.2}}
arms:
  batchtopk: {{kind: batchtopk, features: 32, k: 3}}
  positional: {{kind: positional, features: 32, k: 3, groups: 3}}
training: {{steps: {steps}, batch_size: 64, learning_rate: 0.005, log_every: 5, checkpoint_every: 10, held_out: 0.25, dead_after: 2000}}
"""
WORKER = ROOT / "tests" / "company_worker.py"


def study(folder: Path, steps: int) -> Path:
    path = folder / "study.yaml"
    path.write_text(STUDY.format(steps=steps))
    return path


def alike(one: Path, other: Path) -> None:
    """Two dictionaries of the same features up to the order of sums."""
    first, second = (load_dictionary(folder).decoder.detach() for folder in (one, other))
    assert torch.allclose((first * second).sum(1), torch.ones(len(first)), atol=1e-4), one.name


def test_alone_everything_is_what_it_was():
    values, full = torch.tensor([3.0, 1.0]), torch.tensor([0, 1])
    assert (processes.rank(), processes.count(), processes.speaks()) == (0, 1, True)
    assert processes.total(7) == 7 and processes.anywhere(True) and processes.told(lambda: 5) == 5
    assert processes.summed(values) is values and processes.gathered(values).values is values
    assert torch.equal(processes.our_rows(values), values) and processes.whole(values, 2) is values
    assert processes.gathered(values).ours(full) is full
    assert float(processes.smallest(values)) == 1 and float(processes.smallest(values[:0])) == float("inf")


def test_every_exchange_is_over_all_processes(tmp_path):
    run_together(3, WORKER, "exchanges", tmp_path)
    found = [json.loads((tmp_path / f"found-{rank}.json").read_text()) for rank in range(3)]
    for own in found:
        assert own["total"] == 6 and own["anywhere"] == [True, False] and own["told"] == {"by": 0}
        assert own["gathered"] == [0, 10, 11, 20, 21, 22] and own["nothing"] == []
        assert own["smallest"] == [1, 10, float("inf")]
        assert own["gradient"] == [3 * 2 * 12 * (found.index(own) + 1)]  # each process has the same loss, (2 + 4 + 6)^2
        assert own["same"] == [0, 0]
    assert [own["ours"] for own in found] == [[0], [0, 1], []]
    summed = [[0, 6], [12, 18], [24, 30]]
    assert [own["shares"] for own in found] == [
        [summed[:1], summed, summed, 6],
        [summed[1:2], summed[1:2], summed, 6],
        [summed[2:], summed[2:], summed, 6],
    ]


@pytest.mark.slow
def test_a_process_that_ends_early_is_named_once_and_ends_all(tmp_path):
    with torchrun(2, WORKER, "failing", tmp_path) as process:
        said = process.communicate()[0]
    assert process.returncode != 0
    named = re.findall("error: process 1 of 2 on .+ ended: this process has no room", said)
    assert len(named) == 1, said


def test_arms_that_compare_rows_are_for_one_process(monkeypatch):
    TSAE(features=8, k=2).check_sharing()
    monkeypatch.setattr("temporallens.dictionaries.config.count", lambda: 2)
    with pytest.raises(TemporalLensError, match="'tsae' compare the rows of a batch with each other, so that 2 processes cannot share it"):
        TSAE(features=8, k=2).check_sharing()
    TFA(features=64, k=4).check_sharing()
    with pytest.raises(TemporalLensError, match="'tfa' compare"):
        TFA(features=64, k=4, context="other").check_sharing()


def test_a_study_of_arms_that_compare_rows_is_refused_where_processes_share_a_stream(monkeypatch):
    monkeypatch.setattr("temporallens.dictionaries.config.count", lambda: 2)
    entry = {"model": "smollm2-135m", "layer": 12, "text": "sotu", "context_length": 16, "max_tokens": 4096}
    study = {"name": "s", "arms": {"tsae": {"kind": "tsae", "features": 8, "k": 2}}, "training": {"steps": 9}}
    Study.model_validate(study | {"activations": {"stored": entry}})
    with pytest.raises(ValidationError, match=r"arms\.tsae: arms of kind 'tsae' compare"):
        Study.model_validate(study | {"activations": {"streamed": entry | {"stream": True}}})


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_processes_harvest_the_bytes_that_one_harvests_and_share_a_stream(tmp_path, monkeypatch):
    tiny_model("llama", tmp_path / "llama")
    (tmp_path / "text.jsonl").write_text(documents(150))
    harvest_all(tmp_path, "alone")
    run_together(3, WORKER, "harvest_all", tmp_path, "shared")
    for layer in ("low", "high"):
        files = [path for path in sorted((tmp_path / "alone" / layer).iterdir()) if path.name != ".lock"]
        assert len(files) == 4
        for path in files:
            assert path.read_bytes() == (tmp_path / "shared" / layer / path.name).read_bytes(), path
    monkeypatch.setattr(trainer, "window_rows", small_windows)
    learn_from_stream(tmp_path, "alone")
    run_together(2, WORKER, "learn_from_stream", tmp_path, "shared")
    alike(tmp_path / "alone" / "batchtopk", tmp_path / "shared" / "batchtopk")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_processes_train_the_dictionaries_that_one_trains(tmp_path):
    ActivationStore.from_arrays(sparse_world(), tmp_path / "store", documents=np.arange(SEQUENCES) % DOCUMENTS)
    train_all(tmp_path, "alone")
    run_together(2, WORKER, "train_all", tmp_path, "shared")
    for arms, suffix in ((ARMS, ""), (ROW_ARMS, "-rows")):
        for name in arms:
            one, many = tmp_path / f"alone{suffix}" / name, tmp_path / f"shared{suffix}" / name
            alike(one, many)
            alone, shared = load_history(one / "history.safetensors"), load_history(many / "history.safetensors")
            for column in ("loss", "l0", "position_loss", "position_count", "dead_features", "position_weight"):
                assert np.allclose(alone[column], shared[column], rtol=1e-3, equal_nan=True), (name, column)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_run_goes_on_with_another_number_of_processes_after_one_was_killed(tmp_path):
    path, whole, shared = study(tmp_path, 400), tmp_path / "whole", tmp_path / "shared"
    run_together(1, "-m", "temporallens", "evaluate", path, "--out", whole)
    with torchrun(2, "-m", "temporallens", "evaluate", path, "--out", shared) as process:
        while not list(shared.glob("arms/world/checkpoint-*")):
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.05)
        started = time.monotonic()
        os.kill(process_of(1, process.pid), signal.SIGKILL)
        said = process.communicate()[0]
    assert process.returncode != 0 and time.monotonic() - started < 60
    assert len(re.findall(r"process 1 of 2 on .+ has not been heard of for \d+ seconds", said)) == 1, said
    assert not (shared / "results.json").exists()
    run_together(1, "-m", "temporallens", "evaluate", path, "--out", shared)
    assert weights(shared) == weights(whole)  # each was trained by one process
    run_together(4, "-m", "temporallens", "evaluate", path, "--out", tmp_path / "four")  # more than dictionaries: they share batches
    for first, second in zip(load_results(whole).runs, load_results(tmp_path / "four").runs, strict=True):
        assert abs(first.fve - second.fve) < 1e-3
        alike(whole / "arms" / first.id.path, tmp_path / "four" / "arms" / second.id.path)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_dictionaries_are_dealt_to_processes_and_go_on_where_they_were(tmp_path):
    path, whole, shared = study(tmp_path, 150), tmp_path / "whole", tmp_path / "shared"
    arms = "training:", "  tsae: {kind: tsae, features: 32, k: 3}\ntraining:"  # compares rows, which no processes could share
    path.write_text(f"{path.read_text().replace(*arms)}seeds: [0, 1, 2]\n")
    run_together(1, "-m", "temporallens", "train", path, "--out", whole)
    with torchrun(2, "-m", "temporallens", "train", path, "--out", shared) as process:
        while len({file.name[:27] for file in shared.glob("arms/world/checkpoint-*")}) < 2:
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        process.communicate()
    assert process.returncode != 0
    begun = begun_trainings(shared / "arms" / "world")
    assert sorted(map(len, begun.values())) == [4, 5]
    run_together(2, "-m", "temporallens", "train", path, "--out", shared)
    assert weights(shared) == weights(whole)
    assert not list(shared.rglob("checkpoint-*"))


def weights(folder: Path) -> dict[str, bytes]:
    found = {str(file.relative_to(folder)): file.read_bytes() for file in folder.glob("arms/*/*/sae_weights.safetensors")}
    assert found
    return found


MEASURED = """
  positions: {least_firings: 2}
  features: {}
  splicing: {rows: 2, resamples: 20}
  fidelity: {rows: 4, shifts: [1, 2], least_firings: 2, resamples: 20}
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_processes_scan_and_measure_to_the_bits_of_one(tmp_path):
    tiny_model("llama", tmp_path / "llama")
    (tmp_path / "text.jsonl").write_text(documents(30))
    text = VALID.format(model=tmp_path / "llama", text=tmp_path / "text.jsonl").replace("    sequences: 4\n", "    sequences: 300\n")
    path, alone, shared = tmp_path / "study.yaml", tmp_path / "alone", tmp_path / "shared"
    path.write_text(f"{text.replace('seeds: [0]', 'seeds: [0, 1]')}evaluation:{MEASURED}")
    run_together(1, "-m", "temporallens", "train", path, "--out", alone)
    shutil.copytree(alone, shared)
    (scan,) = (shared / "scans").glob("*.json")
    scan.unlink()
    run_together(1, "-m", "temporallens", "evaluate", path, "--out", alone)
    said = run_together(3, "-m", "temporallens", "evaluate", path, "--out", shared)
    measured = re.findall(r"measure/fidelity/\S+: done", said)
    assert len(measured) == len(set(measured)) > 3
    assert scan.read_bytes() == (alone / scan.relative_to(shared)).read_bytes()
    assert (alone / "results.json").read_bytes() == (shared / "results.json").read_bytes()


@pytest.mark.parametrize(
    ("dictionaries", "count", "sizes"),
    [(0, 2, []), (1, 2, [1]), (3, 1, [3]), (20, 1, [10, 10]), (5, 2, [3, 2]), (33, 2, [9, 8, 8, 8]), (3, 4, [3]), (4, 4, [1, 1, 1, 1])],
)
def test_every_process_has_as_many_parts(dictionaries, count, sizes):
    parts = divided(list(range(dictionaries)), count)
    assert [len(part) for part in parts] == sizes
    assert sorted(number for part in parts for number in part) == list(range(dictionaries))


def test_a_dictionary_has_the_same_place_in_every_turn():
    runs = [RunId("world", arm, 0) for arm in ("a", "b", "c")]
    stages = [Stage("evaluate", f"{run.arm}{section}", "", "", "", run=run, section=section) for run in runs for section in "xyz"]
    turns = list(_turns([stage for stage in stages if stage.name != "ay"], 2))
    assert [[stage and stage.name for stage in turn] for turn in turns] == [
        ["ax", "bx"],
        ["az", "by"],
        [None, "bz"],
        ["cx", None],
        ["cy", None],
        ["cz", None],
    ]
    assert [stage for turn in _turns(stages, 1) for stage in turn] == stages
