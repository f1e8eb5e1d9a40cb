"""Models that are held otherwise than their files have them: in eight bits, on the disk, with another attention, in float16."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from headed_models import DOCUMENTS, headed_model, identity, store_of
from temporallens.activations.language import loading, model_files
from temporallens.activations.language.harvest import HarvestPolicy, harvest
from temporallens.activations.language.loading import AS_IT_IS, Loading, is_offloaded, loading_in_words, packed_share
from temporallens.activations.language.models import LanguageModel
from temporallens.dictionaries.arms.standard import Standard
from temporallens.errors import TemporalLensError
from temporallens.evaluation.model.origin import harvest_of
from temporallens.evaluation.model.passes import text_activations
from temporallens.evaluation.model.splicing import SplicingPolicy, measure_splicing
from temporallens.evaluation.results import describe_store
from temporallens.evaluation.scan import Scan, scan
from temporallens.interop.exporting import export
from temporallens.training.trainer import train
from tiny_models import LAYERS

INT8 = Loading(weights="int8")
ON_DISK = Loading(device_map="auto", max_memory={"cpu": "60KB"})
ALL = ["embed", *range(LAYERS)]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(headed_model("llama", tmp_path_factory.mktemp("model") / "llama"))


def _rows(model: LanguageModel, padded: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    tokens = torch.tensor([model.encode(text)[:20] for text in DOCUMENTS[:3]])
    mask = torch.ones_like(tokens, dtype=torch.bool)
    mask[1, 20 - padded :] = False
    return tokens, mask


def _distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.float() - expected).norm() / expected.norm())


def test_blocks_on_the_disk_give_the_same_bits(llama: str) -> None:
    plain, spread = LanguageModel.load(llama, head=True), LanguageModel.load(llama, head=True, loading=ON_DISK)
    assert is_offloaded(spread._whole) and not is_offloaded(plain._whole)
    assert spread.device == plain.device
    tokens, mask = _rows(plain, padded=5)
    expected, found = (model.residuals(tokens, mask, ALL) for model in (plain, spread))
    assert all(torch.equal(found[layer][mask], expected[layer][mask]) for layer in ALL)
    for _ in range(2):  # what skips blocks leaves them as it found them
        assert torch.equal(spread.continued(expected[1], 1, tokens, mask)[mask], plain.continued(expected[1], 1, tokens, mask)[mask])
    assert torch.equal(spread.residuals(tokens, mask, [2])[2][mask], expected[2][mask])


def test_what_is_put_inside_a_block_goes_to_where_the_block_is(llama: str) -> None:
    model, hook = LanguageModel.load(llama), "blocks.1.hook_mlp_out"
    tokens, mask = _rows(model)
    stream, stack = model.residuals(tokens, mask, [hook])[hook], model._stack
    block = stack.blocks[1].to("meta")  # as another GPU than the first, on which streams are given
    angles = torch.zeros(1, tokens.shape[1], 8, device="meta")
    with stack.replaced(stream, hook):
        assert block(stream.to("meta"), position_embeddings=(angles, angles)).shape == stream.shape


def test_a_pooler_without_weights_is_not_looked_for_on_the_disk(tmp_path: Path) -> None:
    bert = str(headed_model("bert", tmp_path / "bert"))  # a head on BERT reads tokens, so that nothing pools them
    plain, spread = LanguageModel.load(bert), LanguageModel.load(bert, loading=ON_DISK)
    tokens, mask = _rows(plain)
    stream = plain.residuals(tokens, mask, [1])[1]
    assert torch.equal(spread.continued(stream, 1, tokens, mask), plain.continued(stream, 1, tokens, mask))


def test_eight_bits_are_near_and_a_row_gives_alone_what_it_gives_beside_others(llama: str) -> None:
    plain, packed = LanguageModel.load(llama), LanguageModel.load(llama, loading=INT8)
    assert packed_share(plain._whole) == 0
    assert packed_share(packed._whole) > 0.5
    tokens, mask = _rows(plain, padded=5)
    expected, found = (model.residuals(tokens, mask, ALL) for model in (plain, packed))
    assert torch.equal(found["embed"][mask], expected["embed"][mask])  # what is looked up is not packed
    assert 1e-4 < _distance(found[LAYERS - 1][mask], expected[LAYERS - 1][mask]) < 0.03
    short = packed.residuals(tokens[1:2, :15], mask[1:2, :15], ALL)
    assert all(_distance(found[layer][1:2, :15], short[layer]) < 1e-5 for layer in ALL)


def test_packed_weights_beside_bfloat16_run_rows_of_one_length_together(llama: str) -> None:
    packed = LanguageModel.load(llama, dtype="bfloat16", loading=INT8)
    assert packed.precision == "bfloat16"
    tokens, mask = _rows(packed, padded=5)
    padded, short = packed.residuals(tokens, mask, [3])[3], packed.residuals(tokens[1:2, :15], mask[1:2, :15], [3])[3]
    assert torch.equal(padded[1:2, :15], short)  # whether padding is exact cannot be checked in float32, so there is none


def test_float16_where_it_is_asked_for(llama: str) -> None:
    plain, half = LanguageModel.load(llama), LanguageModel.load(llama, dtype="float16")
    assert (half.precision, half.dtype) == ("float16", torch.float16)
    tokens, mask = _rows(plain, padded=5)
    assert 0 < _distance(half.residuals(tokens, mask, [3])[3][mask], plain.residuals(tokens, mask, [3])[3][mask]) < 5e-3
    with torch.no_grad():
        plain._stack.network.get_input_embeddings().weight[tokens[0, 3]] = 7e4
    folder = Path(llama).parent / "large"
    plain._whole.save_pretrained(folder)
    plain.tokenizer.save_pretrained(folder)
    with pytest.raises(
        TemporalLensError, match=r"hold NaN or infinity at sequence 0, .*float16 ends at 65,504: compute in bfloat16 or float32"
    ):
        harvest(str(folder), 1, DOCUMENTS, out=folder / "store", context_length=16, compute_dtype="float16")


def test_a_store_says_how_its_model_was_held_and_what_is_measured_holds_it_so(llama: str, tmp_path: Path) -> None:
    plain = store_of(Path(llama), 1, tmp_path / "plain")
    packed = store_of(Path(llama), 1, tmp_path / "packed", loading={"weights": "int8"})
    assert "loading" not in plain.manifest.description.policies
    assert harvest_of(packed).loading == INT8
    assert harvest_of(plain).loading == AS_IT_IS
    with pytest.raises(TemporalLensError, match="already holds a finished store"):
        store_of(Path(llama), 1, tmp_path / "plain", loading={"weights": "int8"})
    spliced = []
    for store in (plain, packed):
        every, policy = np.arange(store.sequences), SplicingPolicy(rows=8)
        found = measure_splicing(identity(), llama, 1, store, every, policy, tmp_path / "cache").headline
        assert found.spliced.value == pytest.approx(found.clean.value, abs=1e-5)  # its activations are those of the model as it was read
        spliced.append(found.clean.value)
    assert abs(spliced[0] - spliced[1]) > 1e-4


def test_reports_and_cards_say_how_a_model_was_held(llama: str, tmp_path: Path) -> None:
    packed = store_of(Path(llama), 1, tmp_path / "packed", loading={"weights": "int8", "attn_implementation": "eager"})
    assert describe_store(packed, 0.3, 0).policies["loading"] == {"weights": "int8", "attn_implementation": "eager"}
    train(packed, Standard(features=8), 4, tmp_path / "arm", batch_size=32, held_out=0.3)
    card = export(tmp_path / "arm", "saelens", tmp_path / "exported") / "README.md"
    assert "- model held with: weights int8, attn implementation eager\n" in card.read_text()
    plain = store_of(Path(llama), 1, tmp_path / "plain")
    assert "loading" not in describe_store(plain, 0.3, 0).policies
    spread = {"loading": {"device_map": "auto", "max_memory": {"0": "20GiB", "cpu": "60GiB"}}}
    assert loading_in_words(spread) == "device map auto, at most 20GiB on 0, at most 60GiB on cpu"


def test_passes_are_kept_apart_by_how_the_model_is_held(llama: str, tmp_path: Path) -> None:
    read = [text_activations(llama, 3, DOCUMENTS[:2], 16, cache=tmp_path, loading=how).x[:] for how in (AS_IT_IS, INT8, AS_IT_IS)]
    assert torch.equal(read[0], read[2])
    assert not torch.equal(read[0], read[1])


def test_scans_hold_models_so_too(llama: str) -> None:
    plain, packed = (scan(llama, text=DOCUMENTS, context_length=16, sequences=8, loading=how) for how in (AS_IT_IS, INT8))
    assert (plain.loading, packed.loading) == (None, {"weights": "int8"})
    assert Scan.from_json(packed.to_json()) == packed and "loading" not in plain.to_json()
    assert plain.norm[0] == packed.norm[0]
    assert plain.norm[1:] != packed.norm[1:]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"max_memory": {"cpu": "1GB"}}, "name a device_map, too"),
        ({"device_map": "auto", "max_memory": {"cpu": "plenty"}}, "max_memory.cpu is 'plenty'"),
        ({"weights": "int4"}, "weights is 'int4': input should be 'int8'"),
        ({"attn_implementation": "kernels-community/flash-attn"}, "attn_implementation is"),  # code from elsewhere
        ({"load_in_8bit": True}, "Loading has no setting 'load_in_8bit'"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(TemporalLensError, match=sentence):
        Loading(**settings)
    with pytest.raises(TemporalLensError, match="loading"):
        HarvestPolicy(model="m", layer=0, loading=settings)


def test_what_cannot_be_loaded_so_is_refused(llama: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(sentence: str, model: str = llama, **asked: Any) -> None:
        with pytest.raises(TemporalLensError, match=sentence):
            LanguageModel.load(model, **asked)

    refused("llama cannot be on cpu and where device_map: auto puts it", device="cpu", loading=Loading(device_map="auto"))
    refused(
        "transformers cannot load llama with attn_implementation: flash_attention_2",
        loading=Loading(attn_implementation="flash_attention_2"),
    )
    small = Loading(weights="int8", device_map="auto", max_memory={"cpu": "60KB"})
    refused("transformers cannot load llama with weights: int8, .*; weights in eight bits cannot be put on the disk", loading=small)
    with monkeypatch.context() as offloaded:
        offloaded.setattr(model_files, "is_offloaded", lambda network: True)  # as blocks of which only some fit
        refused("llama does not fit into the memory.*give more max_memory, or leave out weights", loading=INT8)
    gpt2 = headed_model("gpt2", tmp_path / "gpt2")
    refused("weights: int8 leaves gpt2 as it is: no weight of it belongs to a linear map", str(gpt2), loading=INT8)
    monkeypatch.setattr(loading.processes, "count", lambda: 2)
    refused("device_map: auto spreads llama over all devices, and 2 processes would each do so", loading=Loading(device_map="auto"))
    monkeypatch.setattr(loading.importlib.util, "find_spec", lambda name: None)
    refused("weights: int8 needs the package torchao: pip install 'temporallens\\[large\\]'", loading=INT8)
