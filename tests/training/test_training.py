"""Training: it learns, it goes on exactly where it stopped, and it refuses to end in nothing."""

import os
import signal
from contextlib import nullcontext
from hashlib import sha1

import numpy as np
import pytest
import torch
from tests.conftest import ARMS, POLICY

from temporallens.activations.loader import Loader
from temporallens.activations.store import ActivationStore
from temporallens.dictionaries.arms.batchtopk import BatchTopK, BatchTopKDictionary
from temporallens.dictionaries.arms.budgeted import Budgeted
from temporallens.dictionaries.arms.positional import Positional
from temporallens.dictionaries.arms.standard import Standard
from temporallens.dictionaries.arms.tsae import TSAE
from temporallens.errors import TemporalLensError
from temporallens.files import sha256
from temporallens.training.checkpoint import load_checkpoint
from temporallens.training.history import load_history
from temporallens.training.objective import inputs_for
from temporallens.training.policy import TrainingPolicy
from temporallens.training.trainee import ArmRun, Trainee
from temporallens.training.trainer import train, train_arms

RUNS = [ArmRun(name, arm, 0) for name, arm in ARMS.items()]

ADAPTIVE = [
    ArmRun("shared", Standard(features=64, sparsity=1.0, position_weights=True, position_sparsity="shared"), 0),
    ArmRun("own", Standard(features=64, sparsity=1.0, position_sparsity="own"), 0),
    ArmRun("budgeted", Budgeted(features=64, k=4, position_weights=True), 1),
    ArmRun("centred", Positional(features=64, k=4, groups=4, centre="position"), 0),
    ArmRun("permuted", Positional(features=64, k=4, groups=4, centre="position", permuted=True), 0),
    ArmRun("adjacent", TSAE(features=64, k=4, permuted=True), 0),
]
"""Arms whose training has state, or sees batches in another way, beyond those of the session's fixture."""


def test_every_arm_learns_and_its_history_says_how(trained, store):
    for name, arm in trained.items():
        history = load_history(arm.folder / "history.safetensors")
        assert history["step"].tolist() == list(range(10, 121, 10))
        assert history["tokens"][-1] == 120 * 128 == arm.summary["tokens_seen"]
        assert history["mse_loss"][-1] < 0.7 * history["mse_loss"][0], name
        loss = history["position_loss"]
        assert loss.shape == (12, store.positions)
        assert np.isnan(loss[:, 0]).all()
        assert np.isfinite(loss[:, 1:]).all()
        np.testing.assert_allclose(history["position_loss_average"], np.nanmean(loss, 1), rtol=1e-5)
        np.testing.assert_allclose(history["position_loss_maximum"], np.nanmax(loss, 1), rtol=1e-6)
        np.testing.assert_allclose(history["position_loss_minimum"], np.nanmin(loss, 1), rtol=1e-6)
        weighted = np.nansum(loss * history["position_count"], 1) / history["position_count"].sum(1)
        np.testing.assert_allclose(weighted, history["mse_loss"], rtol=1e-4)
        assert (history["position_weight"] == 1).all()
    assert trained["batchtopk"].summary["training_steps"] == 120


def test_the_final_loss_is_mse_plus_penalty(trained):
    summary = trained["standard"].summary
    assert summary["final_loss"] == pytest.approx(summary["mse_loss"] + 1.0 * summary["sparsity_loss"], rel=1e-5)
    assert trained["batchtopk"].summary["final_loss"] == pytest.approx(trained["batchtopk"].summary["mse_loss"], rel=1e-5)


def test_k_codes_per_token_in_training_and_nearly_so_at_inference(trained, world):
    x = torch.from_numpy(world[:, 1:])
    positions = torch.arange(1, world.shape[1]).expand(len(world), -1)
    for name in ("batchtopk", "positional"):
        history = load_history(trained[name].folder / "history.safetensors")
        np.testing.assert_allclose(history["l0"], 4, rtol=1e-6)
        codes = trained[name].dictionary.encode(x, positions)
        assert float((codes > 0).sum(-1).float().mean()) == pytest.approx(4, rel=0.05)


def test_the_mask_anneals_and_hardens(trained):
    history = load_history(trained["positional"].folder / "history.safetensors")
    before = history["temperature"][:9]
    assert (np.diff(before) < 0).all()
    assert (history["temperature"][9:] == 0).all()
    assert trained["positional"].dictionary.mask.hard
    gates = trained["positional"].dictionary.mask.gates()
    assert set(gates.unique().tolist()) <= {0.0, 1.0}


def content(folder):
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "timing.json")
    return {str(path.relative_to(folder)): sha256(path) for path in files}


@pytest.mark.parametrize(("stop", "step", "saved"), [(signal.SIGINT, 67, 70), (signal.SIGTERM, 67, 70), (signal.SIGINT, 120, 120)])
def test_a_stopped_run_goes_on_to_the_same_bits(trained, store, tmp_path, monkeypatch, stop, step, saved):
    seen = 0
    original = Trainee.step

    def counting(self, *arguments):
        nonlocal seen
        seen += 1
        if seen == 3 * step:
            os.kill(os.getpid(), stop)
        return original(self, *arguments)

    before = signal.signal(stop, signal.default_int_handler)
    monkeypatch.setattr(Trainee, "step", counting)
    try:
        with pytest.raises(KeyboardInterrupt):
            train_arms(store, RUNS, POLICY, tmp_path)
        assert seen == 3 * saved
        train_arms(store, RUNS, POLICY, tmp_path)
    finally:
        signal.signal(stop, before)
    assert seen == 3 * 120
    for name, arm in trained.items():
        assert content(tmp_path / name) == content(arm.folder), name
    assert not list(tmp_path.glob("checkpoint-*"))


def test_a_checkpoint_has_the_names_that_earlier_versions_wrote(store, tmp_path, monkeypatch):
    """So that what those left unfinished goes on here."""
    original = Trainee.step

    def failing(self, view, progress):
        if progress.step == 10:
            raise MemoryError
        return original(self, view, progress)

    monkeypatch.setattr(Trainee, "step", failing)
    arm = BatchTopK(features=8, k=1, position_weights=True)
    with pytest.raises(MemoryError):
        train_arms(store, [ArmRun("one", arm, 0)], POLICY.model_copy(update={"log_every": 5, "checkpoint_every": 10}), tmp_path)
    [path] = tmp_path.glob("checkpoint-*")
    tensors, state = load_checkpoint(path)
    dictionary = {"encoder", "encoder_bias", "decoder", "decoder_bias", "threshold"}
    history = {"loss", "mse_loss", "sparsity_loss", "l0", "position_loss", "position_loss_average", "position_loss_maximum"}
    history |= {"position_loss_minimum", "position_l0", "position_count", "step", "tokens", "dead_features", "temperature"}
    history |= {"openness", "learning_rate", "position_weight", "sparsity_weight"}
    names = {f"dictionary/{name}" for name in dictionary} | {f"history/{name}" for name in history} | {"tokens_since_fired"}
    names |= {f"optimizer/{number}/{name}" for number in range(4) for name in ("step", "exp_avg", "exp_avg_sq")}
    names |= {f"weights/loss/{name}" for name in ("average", "evidence", "weights")}
    assert set(tensors) == {f"one/{name}" for name in names}
    assert state["step"] == 10 and set(state) == {"step", "cursor", "seconds"} and set(state["seconds"]) == {"one"}


@pytest.mark.slow
def test_weights_budgets_and_permutations_go_on_to_the_same_bits(store, tmp_path, monkeypatch):
    policy = POLICY.model_copy(update={"steps": 24, "log_every": 5, "checkpoint_every": 5, "dead_after": 1000})
    whole = train_arms(store, ADAPTIVE, policy, tmp_path / "whole")
    original = Trainee.step

    def failing(self, view, progress):
        if progress.step == 13:
            raise MemoryError
        return original(self, view, progress)

    monkeypatch.setattr(Trainee, "step", failing)
    with pytest.raises(MemoryError):
        train_arms(store, ADAPTIVE, policy, tmp_path / "parts")
    monkeypatch.setattr(Trainee, "step", original)
    train_arms(store, ADAPTIVE, policy, tmp_path / "parts")
    for name, arm in whole.items():
        assert content(tmp_path / "parts" / name) == content(arm.folder), name


def digest(rows):
    return sha1(rows.contiguous().numpy().tobytes()).hexdigest()


def test_all_arms_see_the_same_batches(store, tmp_path, monkeypatch):
    """Every arm and seed sees, step by step, the rows that the loader gives: in order of position, or permuted as a set."""
    runs = [*RUNS, *ADAPTIVE, ArmRun("again", ARMS["batchtopk"], 7), ArmRun("permuted_mean", BatchTopK(features=8, k=1, permuted=True), 0)]
    policy = TrainingPolicy(steps=6, batch_size=64, log_every=3)
    seen: dict[str, list[tuple[str, ...]]] = {run.name: [] for run in runs}
    original = Trainee.step
    split = store.split(policy.held_out, policy.data_seed)
    loader = Loader(store, split.train, policy.batch_size, policy.data_seed)
    moments = store.moments_of(split.train)
    inputs = inputs_for(moments.pooled_mean(), moments.pooled_variance())
    expected, labels = [], []
    for _ in range(policy.steps):
        batch = next(loader)
        order = torch.argsort(batch.position, stable=True)
        expected.append(inputs.normalise(batch.x[order]))
        labels.append(batch.position[order])
    loader.close()

    def recording(self, view, progress):
        (x, label, position, previous, _), arm, whole = view, self.run.arm, expected[progress.step]
        assert torch.equal(label, labels[progress.step])  # permuted or not, the labels of a batch are those of its rows
        assert torch.equal(label, position) != arm.permuted
        if arm.centre == "position":
            assert not torch.equal(x, whole)
            x = self.dictionary.uncentre(x, position)
            torch.testing.assert_close(x[position.argsort(stable=True)].sum(1).sort().values, whole.sum(1).sort().values)
        else:
            assert sorted(map(digest, x)) == sorted(map(digest, whole))
        assert previous is not None  # one arm of the pass wants it, so the loader gives it
        seen[self.run.name].append((digest(x), digest(label), digest(position)))
        original(self, view, progress)

    monkeypatch.setattr(Trainee, "step", recording)
    train_arms(store, runs, policy, tmp_path)
    plain = [run.name for run in runs if not run.arm.permuted and run.arm.centre == "pooled"]
    assert all(seen[name] == seen["standard"] for name in plain)
    assert [sums[0] for sums in seen["standard"]] == [digest(x) for x in expected]
    assert seen["permuted_mean"] == seen["adjacent"]  # one permutation for all that are permuted
    assert len(set(seen["adjacent"])) == policy.steps


def test_the_token_before_goes_with_its_row(store, tmp_path, monkeypatch):
    """Permuted or not, a row's predecessor is that of its own sequence, entered at the position before."""
    policy = TrainingPolicy(steps=3, batch_size=64, log_every=3)
    moments = store.moments_of(store.split(policy.held_out, policy.data_seed).train)
    inputs = inputs_for(moments.pooled_mean(), moments.pooled_variance())
    rows = store.read(np.arange(len(store.sequence_table.length)))
    normal = inputs.normalise(rows.x.float())
    runs = [ArmRun(str(permuted), TSAE(features=32, k=2, permuted=permuted, centre="position"), 0) for permuted in (False, True)]
    original, pairs = Trainee.step, []

    def recording(self, view, progress):
        x, _, position, previous, _ = view
        offset, gain = self.dictionary.position_offset, self.dictionary.position_gain
        entered = (normal - offset[rows.position.long()]) * gain[rows.position.long(), None]
        where = torch.cdist(x, entered).argmin(1)
        assert torch.equal(rows.position[where].long(), position)
        assert torch.equal(previous.paired, rows.position[where] > 1)  # position 0 is excluded
        told = previous.paired & rows.x[where].any(1)  # a row of zeros is not the only one of its kind
        torch.testing.assert_close(previous.x[told], entered[where - 1][told], rtol=1e-4, atol=1e-5)
        pairs.append(int(previous.paired.sum()))
        original(self, view, progress)

    monkeypatch.setattr(Trainee, "step", recording)
    train_arms(store, runs, policy, tmp_path)
    assert len(pairs) == 6
    assert min(pairs) > 30


def test_arms_may_look_at_what_a_step_left(store, tmp_path, monkeypatch):
    looked = []

    def observe(self, x, positions, forward, residual, place):
        assert not torch.is_grad_enabled()
        assert residual.shape == x.shape
        assert len(positions) == len(x) == forward.codes.pattern.rows
        looked.append((place.step, float(residual.square().sum(1).mean())))

    monkeypatch.setattr(BatchTopKDictionary, "observe", observe)
    arm = train(store, BatchTopK(features=32, k=3), 5, tmp_path / "run", batch_size=64, log_every=1)
    assert [step for step, _ in looked] == list(range(5))
    history = load_history(arm.folder / "history.safetensors")
    np.testing.assert_allclose([loss for _, loss in looked], history["mse_loss"], rtol=1e-5)


@pytest.mark.parametrize(("handler", "steps"), [(signal.SIG_IGN, 120), (lambda *_: None, 70)])
def test_a_run_ends_whole_or_not_at_all(trained, store, tmp_path, monkeypatch, handler, steps):
    """Where SIGINT is ignored, it stops nothing; where it is handled without an exception, what was stopped is not finished."""
    done = []
    original = Trainee.step

    def counting(self, view, progress):
        done.append(progress.step)
        if progress.step == 67:
            signal.raise_signal(signal.SIGINT)
        return original(self, view, progress)

    before = signal.signal(signal.SIGINT, handler)
    monkeypatch.setattr(Trainee, "step", counting)
    try:
        with nullcontext() if steps == 120 else pytest.raises(KeyboardInterrupt):
            train_arms(store, RUNS[:1], POLICY, tmp_path)
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(done) == steps
    assert (tmp_path / RUNS[0].name / "training.json").exists() == (steps == 120)


def test_a_killed_run_goes_on_from_its_last_checkpoint(trained, store, tmp_path, monkeypatch):
    original = Trainee.step

    def failing(self, view, progress):
        if progress.step == 101:
            raise MemoryError
        return original(self, view, progress)

    monkeypatch.setattr(Trainee, "step", failing)
    with pytest.raises(MemoryError):
        train_arms(store, RUNS, POLICY, tmp_path)
    monkeypatch.setattr(Trainee, "step", original)
    assert list(tmp_path.glob("checkpoint-*"))
    train_arms(store, RUNS, POLICY, tmp_path)
    for name, arm in trained.items():
        assert content(tmp_path / name) == content(arm.folder), name


def test_an_arm_is_the_same_alone_and_in_company(trained, store, tmp_path):
    alone = train_arms(store, [RUNS[1]], POLICY, tmp_path)["batchtopk"]
    assert content(alone.folder) == content(trained["batchtopk"].folder)


def test_train_writes_one_dictionary_straight_into_its_folder(store, tmp_path):
    arm = train(store, BatchTopK(features=32, k=3), 20, tmp_path / "run", batch_size=64)
    assert arm.folder == tmp_path / "run"
    assert {path.name for path in arm.folder.iterdir() if path.name != ".lock"} == {
        "cfg.json",
        "sae_weights.safetensors",
        "history.safetensors",
        "training.json",
        "timing.json",
    }


def test_seeds_differ_in_weights_and_share_their_batches(store, tmp_path):
    runs = [ArmRun(f"seed{seed}", BatchTopK(features=32, k=3), seed) for seed in (0, 1)]
    trained = train_arms(store, runs, TrainingPolicy(steps=20, batch_size=64), tmp_path)
    counts = [load_history(arm.folder / "history.safetensors")["position_count"] for arm in trained.values()]
    assert np.array_equal(*counts)
    weights = [arm.dictionary.decoder for arm in trained.values()]
    assert not torch.allclose(*weights)


@pytest.mark.slow
def test_dead_features_are_revived(store, tmp_path, monkeypatch):
    original = BatchTopK.build

    def half_dead(self, *arguments):
        dictionary = original(self, *arguments)
        dictionary.encoder_bias.data[32:] = -4.0
        return dictionary

    monkeypatch.setattr(BatchTopK, "build", half_dead)
    policy = {"batch_size": 128, "learning_rate": 3e-3, "dead_after": 1000, "log_every": 20}
    dead = {}
    for auxiliary in (1 / 32, 0.0):
        arm = train(store, BatchTopK(features=64, k=4), 200, tmp_path / str(auxiliary), auxiliary=auxiliary, **policy)
        dead[auxiliary] = load_history(arm.folder / "history.safetensors")["dead_features"][-1]
    assert dead[0.0] >= 20
    assert dead[1 / 32] < dead[0.0]


def test_a_loss_that_explodes_ends_the_run_with_the_place(store, tmp_path, monkeypatch):
    original = Trainee.step

    def poisoned(self, view, progress):
        return original(self, view._replace(x=view.x * torch.nan) if progress.step == 33 else view, progress)

    monkeypatch.setattr(Trainee, "step", poisoned)
    sentence = r"'batchtopk' became NaN or infinite at step 34, on the batch at row \d+ of window"
    with pytest.raises(TemporalLensError, match=sentence) as caught:
        train_arms(store, [RUNS[1]], POLICY, tmp_path)
    assert str(caught.value).endswith("no checkpoint was saved before")
    assert not (tmp_path / "batchtopk").exists()


def test_a_loss_that_leaps_ends_the_run_with_step_batch_and_checkpoint(store, tmp_path, monkeypatch):
    original, cursors = Trainee.step, []
    following = Loader.__next__

    def shocked(self, view, progress):
        return original(self, view._replace(x=view.x * 30) if progress.step == 83 else view, progress)

    def noting(self):
        cursors.append(self.cursor)
        return following(self)

    monkeypatch.setattr(Trainee, "step", shocked)
    monkeypatch.setattr(Loader, "__next__", noting)
    with pytest.raises(TemporalLensError, match=r"'batchtopk' leapt to .* times what is usual, at step 84") as caught:
        train_arms(store, [RUNS[1]], POLICY, tmp_path)
    epoch, window, row = cursors[83]
    assert f"on the batch at row {row} of window {window} of epoch {epoch}" in str(caught.value)
    (kept,) = [path for path in tmp_path.glob("checkpoint-*") if load_checkpoint(path)[1]["step"] == 80]
    assert str(caught.value).endswith(f"its checkpoint of before is kept in {kept}")


def test_codes_that_vanish_end_the_run(store, tmp_path):
    with pytest.raises(TemporalLensError, match="no feature of 'run' fired"):
        train(store, Standard(features=16, sparsity=1e4), 400, tmp_path / "run", batch_size=128, learning_rate=1e-1)


def test_a_policy_that_makes_no_sense_is_refused_in_one_sentence(store, trained, tmp_path):
    arm = BatchTopK(features=8, k=1)
    with pytest.raises(TemporalLensError, match="steps is 0: input should be greater than or equal to 1"):
        train(store, arm, 0, tmp_path / "run")
    with pytest.raises(TemporalLensError, match="steps is True: a number or a word is needed here, neither True nor False"):
        train(store, arm, True, tmp_path / "run")
    with pytest.raises(TemporalLensError, match="TrainingPolicy has no setting 'learning_rat'; did you mean 'learning_rate'"):
        train(store, arm, 5, tmp_path / "run", learning_rat=1.0)
    with pytest.raises(TemporalLensError, match="already holds a trained dictionary"):
        train(store, arm, 5, trained["batchtopk"].folder)
    with pytest.raises(TemporalLensError, match=r"became NaN or infinite|no feature of"):
        train(store.folder, arm, 30, tmp_path / "run", batch_size=64, learning_rate=1e30)


def test_what_cannot_be_trained_is_refused(tmp_path):
    constant = ActivationStore.from_arrays(np.ones((8, 9, 2), np.float32), tmp_path / "constant")
    with pytest.raises(TemporalLensError, match="are constant"):
        train(constant, BatchTopK(features=4, k=1), 5, tmp_path / "run", batch_size=8)
    single = ActivationStore.from_arrays(np.random.default_rng(0).normal(size=(1, 9, 2)).astype(np.float32), tmp_path / "single")
    with pytest.raises(TemporalLensError, match="holds 1 document"):
        train(single, BatchTopK(features=4, k=1), 5, tmp_path / "run", batch_size=8)


def test_the_learning_rate_rises_stays_and_falls():
    policy = TrainingPolicy(steps=100, warmup=0.1, decay=0.2)
    rates = [policy.rate(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9:81] == [1.0] * 72
    assert rates[99] == pytest.approx(0.05)
