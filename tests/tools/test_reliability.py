"""Whole studies and trainings under bad circumstances: killed, out of disk, fed with bad numbers; what comes out is right, or refused."""

import errno
import gc
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tools.chaos import contents, write_study

from temporallens.activations.store import ActivationStore
from temporallens.dictionaries.arms.batchtopk import BatchTopK
from temporallens.dictionaries.kinds import ARMS, Arm
from temporallens.errors import CannotWriteError, TemporalLensError
from temporallens.evaluation.reconstruction import evaluate_reconstruction
from temporallens.files import REMEDIES, explained, sha256
from temporallens.study.reading import read_study
from temporallens.study.run import run_study
from temporallens.training.checkpoint import load_checkpoint
from temporallens.training.policy import TrainingPolicy
from temporallens.training.trainee import ArmRun, Trainee
from temporallens.training.trainer import train, train_arms

ROOT = Path(__file__).parents[2]
POLICY = TrainingPolicy(
    steps=24, batch_size=64, learning_rate=3e-3, log_every=5, checkpoint_every=5, dead_after=1000, encoder_dtype="float32"
)
EVERY_KIND = [
    ArmRun(kind, arm.model_validate({"features": 32, **({"k": 4} if "k" in arm.model_fields else {})} | extra), 0)
    for kind, arm in ARMS.items()
    for extra in [{"groups": 4} if "groups" in arm.model_fields else {}]
    if arm.trained and not arm.wants_sequences
]
"""An arm of every kind that is trained on batches of rows from everywhere, so that a new one cannot be forgotten; `test_tfa.py` asks the
same of the one that reads whole rows of text."""


def content(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name not in {"timing.json", ".lock"})
    return {str(path.relative_to(folder)): sha256(path) for path in files}


# Killed


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_study_that_is_killed_at_random_moments_ends_in_the_same_bits(tmp_path: Path) -> None:
    """`make chaos KILLS=200` is the long version."""
    command = [sys.executable, "-m", "tools.chaos", "--kills", "6", "--small", "--folder", str(tmp_path)]
    finished = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert finished.stdout.splitlines()[-1] == "6 kills, 6 recovered, 0 lost, 0 different", finished.stdout + finished.stderr
    assert finished.returncode == 0


@pytest.mark.slow
def test_an_arm_of_every_kind_goes_on_to_the_same_bits(store: ActivationStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Optimizer, schedules, temperature, masks, counters, weights, thresholds, cursor: whatever an arm has comes back."""
    train_arms(store, EVERY_KIND, POLICY, tmp_path / "whole")
    step = Trainee.step

    def failing(self: Trainee, *arguments: Any) -> None:
        if arguments[1].step == 18:
            raise MemoryError
        step(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Trainee, "step", failing)
        with pytest.raises(MemoryError):
            train_arms(store, EVERY_KIND, POLICY, tmp_path / "parts")
    assert sorted(load_checkpoint(path)[1]["step"] for path in (tmp_path / "parts").glob("checkpoint-*")) == [10, 15]
    train_arms(store, EVERY_KIND, POLICY, tmp_path / "parts")
    assert content(tmp_path / "parts") == content(tmp_path / "whole")


def test_from_a_damaged_checkpoint_a_training_goes_on_where_the_sentence_says(
    store: ActivationStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [ArmRun("batchtopk", BatchTopK(features=48, k=4), 0)]
    train_arms(store, runs, POLICY, tmp_path / "whole")
    step, seen = Trainee.step, []

    def counting(self: Trainee, *arguments: Any) -> None:
        if len(seen) == 18:
            raise MemoryError
        seen.append(arguments[1].step)
        step(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Trainee, "step", counting)
        with pytest.raises(MemoryError):
            train_arms(store, runs, POLICY, tmp_path / "parts")
    newest = max((tmp_path / "parts").glob("checkpoint-*"), key=lambda path: load_checkpoint(path)[1]["step"])
    newest.write_bytes(newest.read_bytes()[:-3])
    with pytest.raises(TemporalLensError, match=f"remove {newest.name} to go on from the one before it, of step 10"):
        train_arms(store, runs, POLICY, tmp_path / "parts")
    newest.unlink()
    train_arms(store, runs, POLICY, tmp_path / "parts")
    assert content(tmp_path / "parts") == content(tmp_path / "whole")


# Disks


FAULTS = [("mkstemp", errno.EACCES), ("fsync", errno.ENOSPC), ("replace", errno.EDQUOT), ("mkstemp", errno.EROFS), ("fsync", errno.EIO)]


class Disk:
    """A disk that refuses every file once when it is new, and once when it is to be written over: at its making, flush or rename."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.refused: list[tuple[Path, int]] = []  # with the system's number for why
        self._seen: set[tuple[Path, bool]] = set()
        self._originals = {"mkstemp": tempfile.mkstemp, "fsync": os.fsync, "replace": os.replace}
        patch.setattr(tempfile, "mkstemp", self._mkstemp)
        patch.setattr(os, "fsync", self._fsync)
        patch.setattr(os, "replace", self._replace)

    def name(self, folder: Path) -> str:
        """The file that was refused last."""
        return str(self.refused[-1][0].relative_to(folder))

    def _may_refuse(self, place: str, target: Path) -> None:
        key, (wanted, error) = (target, target.exists()), FAULTS[len(self._seen) % len(FAULTS)]
        if key not in self._seen and place == wanted:
            self._seen.add(key)
            self.refused.append((target, error))
            raise OSError(error, os.strerror(error))

    def _mkstemp(self, *, prefix: str, suffix: str, dir: Path) -> Any:
        self._may_refuse("mkstemp", dir / prefix[1:-1])
        return self._originals["mkstemp"](prefix=prefix, suffix=suffix, dir=dir)

    def _fsync(self, handle: int) -> None:
        path = Path(f"/proc/self/fd/{handle}").readlink()
        if path.suffix == ".partial":
            self._may_refuse("fsync", path.with_name(path.name[1:].rsplit(".", 2)[0]))
        self._originals["fsync"](handle)

    def _replace(self, source: Path, target: Path) -> None:
        self._may_refuse("replace", Path(target))
        self._originals["replace"](source, target)


def finished(files: dict[str, bytes]) -> dict[str, bytes]:
    """Those that a study goes on from but does not write again; records and checkpoints change as it goes."""
    return {name: held for name, held in files.items() if not name.startswith("stages") and "checkpoint-" not in name}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_study_for_which_every_file_is_refused_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every place where a file is written gets a refusal of the system; what was there before stays, and the end is the same."""
    study, folder, sentences = read_study(write_study(tmp_path, sequences=64, steps=20)), tmp_path / "parts", []
    run_study(study, tmp_path / "whole")
    with monkeypatch.context() as patch:
        disk = Disk(patch)
        while len(sentences) == len(disk.refused):
            before = contents(folder)
            try:
                run_study(study, folder)
            except CannotWriteError as problem:
                sentences.append(str(problem))
                assert not list(folder.rglob("*.partial"))
                assert finished(before).items() <= contents(folder).items()
                assert contents(folder).get(name := disk.name(folder)) == before.get(name)
            else:
                break
    assert sentences == [f"cannot write {path}: {REMEDIES[error]}" for path, error in disk.refused]
    written = {path.name for path, _ in disk.refused}
    assert {"study.yaml", "manifest.json", "index.safetensors", "sae_weights.safetensors", "cfg.json", "results.json"} <= written
    assert {"report.html", "position_analysis.png", "history.safetensors", "training.json", "truth.json"} <= written
    assert any(path.name.startswith("checkpoint-") for path, _ in disk.refused)
    assert contents(folder) == contents(tmp_path / "whole")


@pytest.mark.parametrize("number", sorted(REMEDIES))
def test_every_refusal_of_the_system_has_its_sentence(tmp_path: Path, number: int) -> None:
    with pytest.raises(CannotWriteError) as caught, explained(tmp_path / "x"):
        raise OSError(number, os.strerror(number))
    assert str(caught.value) == f"cannot write {tmp_path / 'x'}: {REMEDIES[number]}"
    assert ";" in REMEDIES[number]


# Bad numbers


def awkward(change: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    x = np.random.default_rng(0).normal(size=(60, 8, 12)).astype(np.float32)
    return change(x)


def zero_rows(x: np.ndarray) -> np.ndarray:
    x[::3] = 0
    return x


def constant_dimensions(x: np.ndarray) -> np.ndarray:
    x[..., :6] = 7.0
    return x


def huge(x: np.ndarray) -> np.ndarray:
    return x * np.float32(1e15)


def tiny(x: np.ndarray) -> np.ndarray:
    return x * np.float32(1e-15)


def constant_at_a_position(x: np.ndarray) -> np.ndarray:
    x[:, 3] = 1.0
    return x


@pytest.mark.parametrize("change", [zero_rows, constant_dimensions, huge, tiny, constant_at_a_position])
def test_awkward_activations_give_finite_dictionaries_of_every_kind(tmp_path: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    store = ActivationStore.from_arrays(awkward(change), tmp_path / "store", norm_multiple=None)
    policy = POLICY.model_copy(update={"steps": 10, "batch_size": 32})
    split = store.split(policy.held_out, policy.data_seed)
    refusals: list[str] = []
    for run in EVERY_KIND:
        try:
            trained = train_arms(store, [run], policy, tmp_path / "arms")[run.name]
        except TemporalLensError as error:
            refusals.append(str(error))
            continue
        measured = evaluate_reconstruction(trained.dictionary, store, split.held_out, trained.summary["scale"])
        assert all(torch.isfinite(tensor).all() for tensor in trained.dictionary.state_dict().values()), run.name
        assert np.isfinite(measured.fve), run.name
        assert all(value is None or np.isfinite(value) for value in measured.position_fve), run.name
    assert [text for text in refusals if not re.search(r"became NaN|no feature of|leapt to", text)] == []
    assert len(refusals) < len(EVERY_KIND) // 2


@pytest.mark.parametrize(("value", "place"), [(np.nan, (0, 0, 0)), (np.inf, (5, 3, 1)), (-np.inf, (59, 7, 11))])
def test_a_number_that_is_none_is_named_with_its_place(tmp_path: Path, value: float, place: tuple[int, int, int]) -> None:
    x = awkward(lambda x: x)
    x[place] = value
    with pytest.raises(TemporalLensError, match=f"NaN or infinity at sequence {place[0]}, index {place[1]}"):
        ActivationStore.from_arrays(x, tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_float64_beyond_float32_is_refused_and_float16_is_widened(tmp_path: Path) -> None:
    with pytest.raises(TemporalLensError, match="NaN or infinity at sequence 0, index 0"):
        ActivationStore.from_arrays(np.full((4, 3, 2), 1e300), tmp_path / "wide")
    with pytest.raises(TemporalLensError, match="NaN or infinity at sequence 0, index 0"):
        ActivationStore.from_arrays(np.full((4, 3, 2), np.inf, np.float16), tmp_path / "half")  # what 70,000 becomes in float16
    store = ActivationStore.from_arrays(np.full((4, 3, 2), 60_000.0, np.float16), tmp_path / "store", norm_multiple=None)
    assert store.manifest.description.dtype == "float32"
    assert store.read(np.arange(4)).x.unique().tolist() == [60_000.0]


def test_a_single_position_and_a_single_sequence_are_trained_or_refused(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(80, 1, 6)).astype(np.float32)
    single = ActivationStore.from_arrays(x, tmp_path / "position", exclude_first=False)
    trained = train(single, BatchTopK(features=12, k=2), 20, tmp_path / "run", batch_size=16)
    held_out = single.split(0.1, 0).held_out
    assert np.isfinite(evaluate_reconstruction(trained.dictionary, single, held_out, trained.summary["scale"]).fve)
    with pytest.raises(TemporalLensError, match="8 groups cannot divide 1 positions"):
        train(single, ARMS["positional"](features=12, k=2), 5, tmp_path / "masked", batch_size=16)
    with pytest.raises(TemporalLensError, match="holds 1 document"):
        train(
            ActivationStore.from_arrays(x.reshape(1, 80, 6), tmp_path / "sequence"),
            BatchTopK(features=12, k=2),
            5,
            tmp_path / "one",
            batch_size=16,
        )


def test_sequences_of_unequal_length_down_to_one_token_are_trained(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    x, lengths = generator.normal(size=(120, 9, 6)).astype(np.float32), generator.integers(1, 10, 120)
    store = ActivationStore.from_arrays(x, tmp_path / "store", mask=np.arange(9) < lengths[:, None])
    trained = train(store, ARMS["positional"](features=24, k=3, groups=3), 20, tmp_path / "run", batch_size=32)
    measured = evaluate_reconstruction(trained.dictionary, store, store.split(0.1, 0).held_out, trained.summary["scale"])
    assert measured.position_fve[0] is None
    assert np.isfinite(measured.fve)


def test_k_as_large_as_the_dictionary_uses_every_feature(store: ActivationStore, tmp_path: Path) -> None:
    trained = train(store, BatchTopK(features=8, k=8), 20, tmp_path / "run", batch_size=64)
    held_out = store.split(0.1, 0).held_out
    measured = evaluate_reconstruction(trained.dictionary, store, held_out, trained.summary["scale"])
    assert 0 < measured.l0 <= 8


def test_a_feature_that_never_fires_is_counted_and_stays_finite(store: ActivationStore, tmp_path: Path) -> None:
    trained = train(store, BatchTopK(features=96, k=1), 20, tmp_path / "run", batch_size=64, auxiliary=0.0)
    with torch.no_grad():
        trained.dictionary.encoder_bias[5] = -1e6
    measured = evaluate_reconstruction(trained.dictionary, store, store.split(0.1, 0).held_out, trained.summary["scale"])
    assert measured.dead_features >= 1
    assert np.isfinite(measured.fve)


# The same every time


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 2])
def test_with_so_many_threads_every_kind_of_arm_has_the_same_bits_twice(store: ActivationStore, tmp_path: Path, threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for name in ("one", "two"):
            train_arms(store, EVERY_KIND, POLICY.model_copy(update={"steps": 10}), tmp_path / name)
    finally:
        torch.set_num_threads(before)
    assert content(tmp_path / "one") == content(tmp_path / "two")


def test_training_leaves_no_file_and_no_thread_open(store: ActivationStore, tmp_path: Path) -> None:
    import threading

    def held() -> tuple[int, int]:
        gc.collect()
        return len(list(Path("/proc/self/fd").iterdir())), threading.active_count()

    arm: Arm = BatchTopK(features=16, k=2)
    train(ActivationStore(store.folder), arm, 5, tmp_path / "warm", batch_size=64)
    before = held()
    for number in range(3):
        train(ActivationStore(store.folder), arm, 5, tmp_path / str(number), batch_size=64)
    assert held() <= before
