"""What a model computes in follows the processor, apart from what is stored, and is recorded wherever numbers are kept."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from temporallens.activations.language.harvest import HarvestPolicy, harvest
from temporallens.activations.language.models import LanguageModel
from temporallens.activations.store import ActivationStore
from temporallens.errors import TemporalLensError
from temporallens.evaluation.model.origin import harvest_of
from temporallens.evaluation.model.passes import _opened, text_activations
from temporallens.evaluation.scan import ScanPolicy, scan
from temporallens.precision import has_bfloat16, precision
from temporallens.training.policy import TrainingPolicy
from tiny_models import TEXTS, tiny_model


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_model("llama", tmp_path_factory.mktemp("models") / "llama"))


@pytest.fixture
def processor(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A processor with bfloat16 arithmetic, or without."""
    flags = {"avx512_bf16": request.param == "native", "amx_bf16": False}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: flags)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512" if request.param == "native" else "AVX2")
    _opened.cache_clear()
    yield request.param
    _opened.cache_clear()


BOTH = pytest.mark.parametrize("processor", ["native", "emulated"], indirect=True)


def _harvested(model: str, out: Path, **policy: object) -> ActivationStore:
    store = harvest(model, 1, TEXTS, out=out, context_length=16, **policy)
    assert isinstance(store, ActivationStore)
    return store


@BOTH
def test_a_bfloat16_store_is_computed_in_what_is_native(processor: str, llama: str, tmp_path: Path) -> None:
    wanted = "bfloat16" if processor == "native" else "float32"
    store = _harvested(llama, tmp_path / "out")
    assert store.manifest.description.policies["compute_dtype"] == wanted
    assert store.manifest.description.dtype == "bfloat16"
    assert harvest_of(store).compute_dtype == wanted
    model = LanguageModel.load(llama, up_to=1, dtype="auto")
    assert model.precision == wanted
    rows = store.read(np.array([0]))
    token = rows.token[None]
    stream = model.residuals(token, torch.ones_like(token, dtype=torch.bool), [1])[1][0]
    torch.testing.assert_close(rows.x, stream.bfloat16(), atol=0.02, rtol=0.02)
    if wanted == "float32":
        exact = _harvested(llama, tmp_path / "exact", dtype="float32")
        assert torch.equal(rows.x, exact.read(np.array([0])).x.bfloat16())


@BOTH
def test_a_float32_store_is_computed_in_float32(processor: str, llama: str, tmp_path: Path) -> None:
    assert _harvested(llama, tmp_path / "out", dtype="float32").manifest.description.policies["compute_dtype"] == "float32"
    chosen = _harvested(llama, tmp_path / "other", dtype="float32", compute_dtype="bfloat16")
    assert chosen.manifest.description.policies["compute_dtype"] == "bfloat16"


@BOTH
def test_scans_and_passes_follow_the_processor(processor: str, llama: str, tmp_path: Path) -> None:
    wanted = "bfloat16" if processor == "native" else "float32"
    assert scan(llama, text=TEXTS, context_length=16, sequences=4).dtype == wanted
    assert scan(llama, text=TEXTS, context_length=16, sequences=4, dtype="float32").dtype == "float32"
    found = text_activations(llama, 1, TEXTS, 16, "auto", cache=tmp_path)
    assert found.x.dtype == getattr(torch, wanted)
    named = text_activations(llama, 1, TEXTS, 16, wanted, cache=tmp_path)
    assert torch.equal(found.x[0], named.x[0])
    assert len(list((tmp_path / "passes").iterdir())) == 1  # what auto means is what the key of the cache says


def test_a_store_from_before_was_computed_in_what_it_holds(llama: str, tmp_path: Path) -> None:
    store = _harvested(llama, tmp_path / "out", compute_dtype="float32")
    del store.manifest.description.policies["compute_dtype"]
    assert harvest_of(store).compute_dtype == "bfloat16"


def test_what_is_native(monkeypatch: pytest.MonkeyPatch) -> None:
    def processor(level: str, **flags: bool) -> bool:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: flags)
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: level)
        return has_bfloat16("cpu")

    assert processor("AVX512", avx512_bf16=True)
    assert processor("AVX512", amx_bf16=True)
    assert not processor("AVX512", avx512_bf16=False)
    assert not processor("AVX2", avx512_bf16=True)  # PyTorch was told not to use it
    assert not processor("DEFAULT")
    for capability, native in (((7, 5), False), ((8, 0), True), ((9, 0), True)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, found=capability: found)
        assert has_bfloat16("cuda") == native
    assert not has_bfloat16("mps")


def test_mistakes() -> None:
    with pytest.raises(TemporalLensError, match="there is no precision 'float64': choose auto, float32, bfloat16, float16"):
        precision("float64", "cpu")
    with pytest.raises(TemporalLensError, match="compute_dtype"):
        HarvestPolicy(model="m", layer=0, compute_dtype="float64")
    with pytest.raises(TemporalLensError, match="dtype is 'float16'"):
        HarvestPolicy(model="m", layer=0, dtype="float16")  # stores hold none
    with pytest.raises(TemporalLensError, match="encoder_dtype is 'float16'"):
        TrainingPolicy(steps=1, encoder_dtype="float16")
    assert ScanPolicy(model="m", dtype="float32").compute_dtype == "float32"
