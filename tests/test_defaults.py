"""Whatever defaults a program has given PyTorch, our numbers are the same to the bit; and sizes of one are sizes, too."""

import ast
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_info

import temporallens as tl
from temporallens.activations.importing import read_array
from temporallens.activations.store import ActivationStore
from temporallens.defaults import fixed_threads
from temporallens.dictionaries.kinds import ARMS
from temporallens.dictionaries.saving import load_dictionary
from temporallens.errors import TemporalLensError
from temporallens.evaluation.reconstruction import evaluate_reconstruction
from temporallens.files import user_path
from temporallens.settings import whole_seed
from temporallens.training.finishing import TrainedArm
from temporallens.training.policy import TrainingPolicy
from temporallens.training.trainee import ArmRun
from temporallens.training.trainer import train_arms

FLOATS = {"zeros", "ones", "empty", "rand", "randn", "eye", "linspace"}
"""Functions whose results have the default dtype where none is named."""

KINDS = ("standard", "jumprelu", "tsae", "budgeted", "positional", "positional_relu", "random_mask", "posthoc")
"""Among them is every tensor that an arm has."""


@pytest.fixture(params=["float64", "meta"])
def defaults(request: pytest.FixtureRequest) -> Iterator[str]:
    """Another default dtype, or another default device: one on which no number can be had, so that none is missed."""
    torch.set_default_device("meta") if request.param == "meta" else torch.set_default_dtype(getattr(torch, request.param))
    yield request.param
    torch.set_default_device(None)
    torch.set_default_dtype(torch.float32)


@pytest.fixture(autouse=True, scope="module")
def brief_calibration() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("temporallens.training.finishing.CALIBRATION_BATCHES", 2)
        yield


def arm_of(kind: str, features: int, codes: int, **further: Any) -> Any:
    given = {"features": features, "k": codes, "l0": codes, "groups": 3, "levels": (0.5, 1.0), **further}
    return ARMS[kind](**{name: value for name, value in given.items() if name in ARMS[kind].model_fields})


def trained(store: ActivationStore, out: Path, arms: dict[str, Any]) -> dict[str, TrainedArm]:
    policy = TrainingPolicy(steps=6, batch_size=64, log_every=2, checkpoint_every=2, snapshots=1, dead_after=200)
    return train_arms(store, [ArmRun(name, arm, 0) for name, arm in arms.items()], policy, out)


def results(out: Path) -> dict[str, Any]:
    """Everything that training, loading, encoding and evaluating arms of every kind gives."""
    x = np.random.default_rng(0).normal(size=(24, 8, 6)).astype(np.float32)
    store = ActivationStore.from_arrays(x, out / "store")
    runs = trained(store, out / "runs", {kind: arm_of(kind, 12, 2, centre="position_scaled") for kind in KINDS})
    found: dict[str, Any] = {}
    for kind, run in runs.items():
        dictionary = load_dictionary(out / "runs" / kind)
        for gradients in (True, False):
            with torch.set_grad_enabled(gradients):
                codes = dictionary.encode(torch.from_numpy(x[:3]))
                decoded = dictionary.decode(codes)
            found[f"{kind} {gradients}"] = [codes.detach().numpy().tobytes(), decoded.detach().numpy().tobytes()]
        found[kind] = str(evaluate_reconstruction(dictionary, store, store.split(0.1, 0).held_out, run.summary["scale"]))
    files = [path for path in sorted(out.rglob("*")) if path.is_file() and path.name not in {".lock", "timing.json"}]
    return found | {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return results(tmp_path_factory.mktemp("expected"))


def test_defaults_of_others_change_no_bit(expected: dict[str, Any], defaults: str, tmp_path: Path) -> None:
    found = results(tmp_path)
    assert [name for name in expected if found[name] != expected[name]] == []
    assert defaults == "meta" or torch.get_default_dtype() == getattr(torch, defaults)  # they are the caller's again


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[1] / "src").rglob("*.py")), ids=lambda path: path.stem)
def test_floating_point_tensors_are_made_of_a_named_dtype(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in FLOATS:
            ours = isinstance(node.func.value, ast.Name) and node.func.value.id == "torch"
            assert not ours or any(keyword.arg == "dtype" for keyword in node.keywords), f"{path}:{node.lineno}"


@pytest.mark.parametrize(("features", "width"), [(1, 6), (2, 1)])
def test_arms_of_one_feature_or_one_dimension_are_trained_saved_and_used(features: int, width: int, tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(24, 6, width)).astype(np.float32)
    store = ActivationStore.from_arrays(x, tmp_path / "store")
    small = {"groups": 1, "levels": (1.0,), "shared": 1.0, "openness": 1.0, "sparsity": 1e-3, "share": 0.5}
    needy = {"tfa", "tokenized"} | ({"tsae"} if features == 1 else set())  # whole rows, tokens, two kinds of features
    kinds = [kind for kind in ARMS if ARMS[kind].trained and kind not in needy]
    for kind, run in trained(store, tmp_path / "runs", {kind: arm_of(kind, features, 1, **small) for kind in kinds}).items():
        dictionary = load_dictionary(run.folder)
        for name, tensor in run.dictionary.state_dict().items():
            assert torch.equal(dictionary.state_dict()[name], tensor), (kind, name)
        with torch.no_grad():
            codes = dictionary.encode(torch.from_numpy(x))
        torch.testing.assert_close(codes, dictionary.encode(torch.from_numpy(x)).detach(), msg=kind)
        evaluate_reconstruction(dictionary, store, np.arange(4), run.summary["scale"])


def test_what_is_no_path_arm_or_seed_is_refused_in_a_sentence(tmp_path: Path) -> None:
    store = ActivationStore.from_arrays(torch.randn(6, 5, 4, generator=torch.Generator().manual_seed(0)), out=tmp_path / "store")
    arm, policy = tl.BatchTopK(features=8, k=2), TrainingPolicy(steps=1, batch_size=4)
    for out, sentence in (("a\0b", "is no path"), ("a" * 300, "is no path"), ("a\ud800", "half of a character")):
        with pytest.raises(TemporalLensError, match=sentence):
            tl.train(store, arm=arm, steps=1, out=out, batch_size=4)
        with pytest.raises(TemporalLensError, match=sentence):
            tl.load_dictionary(out)
    for empty in ("", " ", "\n"):
        for refused in (lambda out: tl.train(store, arm=arm, steps=1, out=out), tl.load_dictionary, tl.ActivationStore, read_array):
            with pytest.raises(TemporalLensError, match="a path is empty: it should name a file or folder"):
                refused(empty)
    for value in (None, b"x", 3):
        with pytest.raises(TemporalLensError, match="a path should be a string or a Path"):
            user_path(value)
    for seed in (True, 1.5, "a", -1, 2**64):
        with pytest.raises(TemporalLensError, match=r"seed is .*: it should be a whole number"):
            whole_seed(seed)
        with pytest.raises(TemporalLensError, match=r"seed is .*: it should be a whole number"):
            train_arms(store, [ArmRun("a", arm, seed)], policy, tmp_path)
    with pytest.raises(TemporalLensError, match="seed is -1: it should be a whole number"):
        store.split(0.5, -1)
    [trained] = train_arms(store, [ArmRun("a", arm, np.uint8(2))], policy, tmp_path).values()
    assert trained.summary["seed"] == whole_seed(np.int64(2)) == 2
    for runs, sentence in (
        ([], "there is no run to train"),
        ([ArmRun("a/b", arm, 0)], "a run is called 'a/b': its name should be that of a folder"),
        ([ArmRun("a", arm, 0), ArmRun("a", arm, 1)], "a run is called 'a': its name should be that of a folder, and of no other run"),
        ([ArmRun("a", "batchtopk", 0)], "arm should be one of the arms with its settings"),
    ):
        with pytest.raises(TemporalLensError, match=sentence):
            train_arms(store, runs, policy, tmp_path)
    for multiple in (float("nan"), 10**400, True, 1):
        with pytest.raises(TemporalLensError, match="norm_multiple is "):
            ActivationStore.from_arrays(torch.randn(6, 5, 4), out=tmp_path / "other", norm_multiple=multiple)
    other = ActivationStore.from_arrays(torch.randn(6, 5, 4), out=tmp_path / "other", norm_multiple=np.float32(3))
    assert other.manifest.description.policies["norm_multiple"] == 3
    for share in (0, 1, -1, 2, float("nan")):
        with pytest.raises(TemporalLensError, match=r"held_out is .*: it should be a share of the documents"):
            store.split(share, 0)
    for device in ("banana", "cuda:99"):
        with pytest.raises(TemporalLensError, match=f"there is no device '{device}' here"):
            train_arms(store, [ArmRun("a", arm, 0)], policy, tmp_path / "arms", device)
    run = tl.train(store, arm=arm, steps=1, out=tmp_path / "run", batch_size=4)
    with pytest.raises(TemporalLensError, match="ordinary dense tensor"):
        tl.load_dictionary(run.folder).encode(torch.ones(2, 4).to_sparse(), [0, 1])


def test_masks_in_lists_of_lists_are_kept(tmp_path: Path) -> None:
    nested = [[np.ma.masked_array(np.ones(4), mask=[(row, place) == (0, 1)] * 4) for place in range(3)] for row in range(2)]
    assert ActivationStore.from_arrays(nested, out=tmp_path / "nested").rows == 5
    parts = [torch.ones(3, 4, dtype=torch.bfloat16, requires_grad=True) for _ in range(2)]
    assert ActivationStore.from_arrays(parts, out=tmp_path / "tensors").rows == 6


def test_threads_are_those_of_linear_algebra_too_and_only_for_a_while() -> None:
    before = torch.get_num_threads(), [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]
    with fixed_threads(1):
        assert torch.get_num_threads() == 1
        assert {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"} == {1}
    with fixed_threads(None):
        assert torch.get_num_threads() == before[0]
    assert (torch.get_num_threads(), [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]) == before
