"""Architectures that are read in a way of their own, or not at all; a slow test of every one that there is."""

import json
import shutil
from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tools.architectures import CORE, KINDS, PAGE, SIZES, TOLERANCE, VOCABULARY, difference, is_small, measured, save_model, word_tokenizer
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText, LlamaModel, PaliGemmaConfig

from temporallens.activations.language import contents, model_check
from temporallens.activations.language.harvest import harvest
from temporallens.activations.language.models import LanguageModel
from temporallens.activations.store import ActivationStore
from temporallens.errors import TemporalLensError
from temporallens.evaluation.model.passes import _opened, text_activations

DOCUMENTS = [" ".join(f"w{4 + (7 * word + 11 * text) % 96}" for word in range(9 + 5 * text)) for text in range(4)]
ROWS = torch.arange(10, 31).view(1, 21)


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A small random model of a kind, made once."""
    root, made = tmp_path_factory.mktemp("kinds"), set()

    def folder(kind: str) -> str:
        if kind not in made:
            save_model(kind, root / kind)
            made.add(kind)
        return str(root / kind)

    return folder


def _stream(folder: str, tokens: torch.Tensor, layer: Any, mask: torch.Tensor | None = None, **named: Any) -> torch.Tensor:
    model = LanguageModel.load(folder, up_to=layer, **named)
    return model.residuals(tokens, torch.ones_like(tokens, dtype=torch.bool) if mask is None else mask, [layer])[layer]


def _plain(folder: str, tokens: torch.Tensor) -> tuple[torch.Tensor, ...]:
    with torch.no_grad():
        return AutoModel.from_pretrained(folder).eval()(tokens, output_hidden_states=True, use_cache=False).hidden_states


@pytest.mark.parametrize(
    "kind", ["esmc", "esm", "gemma4_text", "nystromformer", "ibert", "qwen3_next", "jamba", "zamba2", "openai-gpt", "xlnet"]
)
def test_lower_layers_are_those_of_the_whole_model(kind: str, folder_of: Any) -> None:
    """Scaling by depth, tables of positions with unused entries, keys shared from below, state spaces, lists and turned layouts."""
    states = _plain(folder_of(kind), ROWS)
    for layer, state in (("embed", states[0]), (0, states[1]), (2, states[3])):
        torch.testing.assert_close(_stream(folder_of(kind), ROWS, layer), state, atol=1e-5, rtol=1e-5)


def test_a_harvest_of_a_table_with_unused_positions_is_the_plain_models(folder_of: Any, tmp_path: Path) -> None:
    for kind in ("nystromformer", "ibert"):
        store = harvest(folder_of(kind), 1, DOCUMENTS, out=tmp_path / kind, context_length=32, batch_size=1, dtype="float32")
        assert isinstance(store, ActivationStore)
        for entry in range(store.sequences):
            rows = store.read(np.array([entry]))
            torch.testing.assert_close(rows.x, _plain(folder_of(kind), rows.token[None])[2][0], atol=1e-5, rtol=1e-5)
        longest = LanguageModel.load(folder_of(kind), up_to=0).context_length
        assert longest == {"nystromformer": 66, "ibert": 65}[kind]
        with pytest.raises(TemporalLensError, match=f"context length 67 is too long: {kind} has {longest} positions"):
            harvest(folder_of(kind), 1, DOCUMENTS, out=tmp_path / "long", context_length=67)


@pytest.mark.parametrize("kind", ["xlm", "flaubert"])
def test_parallel_lists_are_no_blocks(kind: str, folder_of: Any) -> None:
    for layer in ("embed", 0, 2, 3):
        with pytest.raises(TemporalLensError, match=f"{kind} cannot be read: what its block 0 gives is not what block 1 goes on from"):
            LanguageModel.load(folder_of(kind), up_to=layer)


def test_several_streams_are_not_one(folder_of: Any) -> None:
    with pytest.raises(TemporalLensError, match=r"after a block its stream has shape \(4, 2, 6, 32\) for 2 rows of 6 tokens"):
        LanguageModel.load(folder_of("gemma3n_text"), up_to=1)


def test_a_network_that_gives_no_hidden_states_is_asked_without_them(folder_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, forward = _plain(folder_of("llama"), ROWS)[2], LlamaModel.forward

    @wraps(forward)
    def without_states(self: LlamaModel, *arguments: Any, **named: Any) -> Any:
        if named.pop("output_hidden_states", False):
            raise ValueError("this network gives no hidden states")
        return forward(self, *arguments, **named)

    monkeypatch.setattr(LlamaModel, "forward", without_states)
    torch.testing.assert_close(_stream(folder_of("llama"), ROWS, 1), expected, atol=1e-5, rtol=1e-5)


def test_a_text_is_the_prefix_of_a_model_that_sees_all_of_it(tmp_path: Path) -> None:
    """PaliGemma reads what it is given in both directions: it is an encoder of texts, and predicts nothing within them."""
    text = {name: SIZES[name] for name in (*CORE, "num_key_value_heads", "head_dim", "pad_token_id", "bos_token_id", "eos_token_id")}
    vision = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 28}
    config = PaliGemmaConfig(
        text_config={"model_type": "gemma", **text},
        vision_config={"model_type": "siglip_vision_model", "patch_size": 14, "vision_use_head": False, **vision},
        projection_dim=32,
        image_token_index=VOCABULARY - 1,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        whole = AutoModelForImageTextToText.from_config(config).eval()
    whole.save_pretrained(tmp_path)
    word_tokenizer(VOCABULARY).save_pretrained(tmp_path)
    model = LanguageModel.load(str(tmp_path), head=True)
    assert (model.is_encoder, model.has_head) == (True, False)
    with torch.no_grad():
        expected = whole(ROWS, output_hidden_states=True).hidden_states
    everywhere = torch.ones_like(ROWS, dtype=torch.bool)
    stream = model.residuals(ROWS, everywhere, [1])[1]
    torch.testing.assert_close(stream, expected[2], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(model.continued(stream, 1, ROWS, everywhere), expected[-1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["fnet", "convbert", "mobilebert", "recurrent_gemma", "rwkv", "llama", "bert", "jamba"])
@pytest.mark.parametrize("side", ["right", "left"])
def test_no_row_depends_on_its_neighbours(kind: str, side: str, folder_of: Any) -> None:
    model = LanguageModel.load(folder_of(kind), up_to=2)
    lengths = [12, 5, 9, 5]
    tokens = torch.zeros(4, 12, dtype=torch.long)
    mask = torch.zeros(4, 12, dtype=torch.bool)
    for row, length in enumerate(lengths):
        own = slice(0, length) if side == "right" else slice(12 - length, 12)
        tokens[row, own] = torch.arange(length) * 7 % 90 + 5 + row
        mask[row, own] = True
    together = model.residuals(tokens, mask, ["embed", 2])
    for row in range(4):
        own = tokens[row : row + 1, mask[row]]
        alone = model.residuals(own, torch.ones_like(own, dtype=torch.bool), ["embed", 2])
        for layer in ("embed", 2):
            assert difference(together[layer][row, mask[row]], alone[layer][0]) < TOLERANCE


@pytest.mark.parametrize("rope", ["longrope", "dynamic"])
def test_angles_are_those_of_each_row_alone(rope: str, tmp_path: Path) -> None:
    """LongRoPE and dynamic NTK choose their angles by the longest row of a batch, and dynamic NTK keeps those of longer rows before."""
    kind, rotation = ("phi3", {"short_factor": [1.0] * 4, "long_factor": [8.0] * 4}) if rope == "longrope" else ("llama", {"factor": 4.0})
    rotation |= {"rope_type": rope, "rope_theta": 10000.0, "original_max_position_embeddings": 16}
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2}
    longest = 64 if rope == "longrope" else 16
    config = AutoConfig.for_model(
        kind, vocab_size=VOCABULARY, max_position_embeddings=longest, pad_token_id=0, rope_parameters=rotation, **sizes
    )
    config.original_max_position_embeddings = 16
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    word_tokenizer(VOCABULARY).save_pretrained(tmp_path)
    model = LanguageModel.load(str(tmp_path), up_to=2)
    tokens = torch.arange(5, 46).repeat(3, 1)
    mask = torch.arange(41) < torch.tensor([[41], [9], [30]])
    together = model.residuals(tokens, mask, [2])[2]
    for row in range(3):
        own = tokens[row : row + 1, mask[row]]
        with torch.no_grad():
            alone = AutoModel.from_pretrained(tmp_path).eval()(own, output_hidden_states=True).hidden_states[3]
        torch.testing.assert_close(together[row, mask[row]], alone[0], atol=1e-5, rtol=1e-4)


def test_a_pass_over_texts_knows_the_length_of_each(tmp_path: Path) -> None:
    """Padding behind a text is not masked in causal models, but angles that depend on the longest row see it."""
    rotation = {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4, "original_max_position_embeddings": 16, "rope_theta": 10000.0}
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = AutoConfig.for_model(
        "phi3",
        vocab_size=VOCABULARY,
        max_position_embeddings=66,
        pad_token_id=0,
        rope_parameters=rotation | {"rope_type": "longrope"},
        **sizes,
    )
    config.original_max_position_embeddings = 16
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "model")
    word_tokenizer(VOCABULARY).save_pretrained(tmp_path / "model")
    texts = [" ".join(f"w{5 + word}" for word in range(length)) for length in (5, 31, 10)]
    for whole in (True, False):
        found = text_activations(str(tmp_path / "model"), 1, texts, 40, cache=tmp_path / "cache", padding_side="right", whole_context=whole)
        for number, text in enumerate(texts):
            tokens = torch.tensor([[1, *(int(word[1:]) for word in text.split())]])
            expected = _plain(str(tmp_path / "model"), tokens)[2][0, 1:]
            assert difference(found.x[number][found.live[number]], expected) < TOLERANCE


def test_outputs_that_differ_from_pass_to_pass_are_refused(folder_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    streams, calls = model_check.BlockStack.streams, [0]

    def noisy(self: Any, arguments: Any, layers: Any) -> Any:
        calls[0] += 1
        return {layer: stream + 0.1 * calls[0] for layer, stream in streams(self, arguments, layers).items()}

    monkeypatch.setattr(model_check.BlockStack, "streams", noisy)
    with pytest.raises(TemporalLensError, match="llama cannot be read exactly: its streams differ from pass to pass"):
        LanguageModel.load(folder_of("llama"), up_to=1)


class TestContent:
    """What is kept of a model stands for all its weights, and for the tokens around its rows."""

    @pytest.fixture
    def folder(self, folder_of: Any, tmp_path: Path) -> Path:
        return Path(shutil.copytree(folder_of("llama"), tmp_path / "model"))

    def _harvested(self, folder: Path, out: Path) -> ActivationStore:
        store = harvest(str(folder), 1, DOCUMENTS, out=out, context_length=16, dtype="float32")
        assert isinstance(store, ActivationStore)
        return store

    def test_a_change_in_the_middle_of_the_weights_is_seen(self, folder: Path, tmp_path: Path) -> None:
        first = self._harvested(folder, tmp_path / "out")
        before = text_activations(str(folder), 1, DOCUMENTS, 16, cache=tmp_path / "cache").x[0]
        weights = load_file(folder / "model.safetensors")
        weights["model.layers.1.mlp.down_proj.weight"] *= 50
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        _opened.cache_clear()
        with pytest.raises(TemporalLensError, match="already holds a finished store"):
            self._harvested(folder, tmp_path / "out")
        other = self._harvested(folder, tmp_path / "other")
        assert other.manifest.description.source["revision"] != first.manifest.description.source["revision"]
        assert not torch.equal(text_activations(str(folder), 1, DOCUMENTS, 16, cache=tmp_path / "cache").x[0], before)

    def test_another_opening_token_is_seen(self, folder: Path, tmp_path: Path) -> None:
        first = self._harvested(folder, tmp_path / "out")
        before = text_activations(str(folder), 1, DOCUMENTS, 16, cache=tmp_path / "cache")
        settings = json.loads((folder / "tokenizer_config.json").read_text())
        (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"bos_token": "</s>"}))
        _opened.cache_clear()
        with pytest.raises(TemporalLensError, match="already holds a finished store"):
            self._harvested(folder, tmp_path / "out")
        other = self._harvested(folder, tmp_path / "other")
        assert other.manifest.description != first.manifest.description
        after = text_activations(str(folder), 1, DOCUMENTS, 16, cache=tmp_path / "cache")
        assert not torch.equal(after.x[0], before.x[0])

    def test_a_large_file_is_read_once(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TEMPORALLENS_CACHE", str(folder.parent / "cache"))
        read: list[Path] = []
        monkeypatch.setattr(contents, "sha256", lambda path: read.append(path) or "0" * 64)
        for _ in range(2):
            contents.known_sha256(folder / "model.safetensors")
        assert len(read) == 1
        (folder / "model.safetensors").write_bytes(b"other")
        contents.known_sha256(folder / "model.safetensors")
        assert len(read) == 2

    def test_a_store_from_before_is_still_that_of_its_model(self, folder: Path, tmp_path: Path) -> None:
        """Its manifest knows both ends of every weight file, and neither what was computed in nor the tokens around rows."""
        from temporallens.activations.language.model_files import EARLIER_PIN, _digest_of_ends
        from temporallens.files import read_json, write_json

        store = self._harvested(folder, tmp_path / "out")
        path = tmp_path / "out" / "manifest.json"
        manifest = read_json(path, "a manifest")
        del manifest["description"]["policies"]["compute_dtype"], manifest["description"]["source"]["row_tokens"]
        manifest["description"]["source"]["revision"] = EARLIER_PIN + _digest_of_ends(folder)
        write_json(path, manifest)
        assert self._harvested(folder, tmp_path / "out").rows == store.rows


class TestTokenizersAndWeights:
    def test_a_tokenizer_of_another_model(self, folder_of: Any, tmp_path: Path) -> None:
        folder = Path(shutil.copytree(folder_of("llama"), tmp_path / "model"))
        word_tokenizer(2 * VOCABULARY).save_pretrained(folder)
        with pytest.raises(TemporalLensError, match=r"has embeddings for 100 tokens, and its tokenizer gives token 150 \('w150'\)"):
            harvest(str(folder), 1, ["w6 w150 w4 w5"], out=tmp_path / "out", context_length=8)
        assert harvest(str(folder), 1, ["w7 w4 w5 w6"], out=tmp_path / "fits", context_length=8).rows == 5

    def test_a_quantised_model_is_refused_in_one_sentence(self, folder_of: Any, tmp_path: Path) -> None:
        folder = Path(shutil.copytree(folder_of("llama"), tmp_path / "model"))
        config = json.loads((folder / "config.json").read_text())
        for method in ("bitsandbytes", "gptq", "awq", "compressed-tensors"):
            quantised = {"quantization_config": {"quant_method": method, "load_in_4bit": True, "bits": 4, "group_size": 8}}
            (folder / "config.json").write_text(json.dumps(config | quantised))
            with pytest.raises(TemporalLensError, match=rf"model is quantised \({method}\), and transformers cannot read it here"):
                LanguageModel.load(str(folder), up_to=1)

    def test_weights_with_scales_of_their_own_are_refused(self, folder_of: Any, tmp_path: Path) -> None:
        """As where a configuration of the quantisation stands in another file, or names a method that transformers does not know."""
        folder = Path(shutil.copytree(folder_of("llama"), tmp_path / "model"))
        weights = load_file(folder / "model.safetensors")
        name = "model.layers.0.self_attn.q_proj.weight"
        scale = weights[name].abs().max() / 127
        save_file(
            weights | {name: (weights[name] / scale).round().to(torch.int8), f"{name}_scale": scale[None]}, folder / "model.safetensors"
        )
        with pytest.raises(TemporalLensError, match=r"model is quantised \(its weights have the scale \S+q_proj.weight_scale\)"):
            LanguageModel.load(str(folder), up_to=1)

    def test_a_model_whose_operations_know_no_bfloat16_is_read_in_float32(self, folder_of: Any) -> None:
        assert LanguageModel.load(folder_of("fnet"), up_to=1, dtype="auto").precision == "float32"
        with pytest.raises(TemporalLensError, match="it may run with compute_dtype: float32"):
            LanguageModel.load(folder_of("fnet"), up_to=1, dtype="bfloat16")

    def test_bfloat16_tells_the_same_of_a_model_as_float32(self, folder_of: Any) -> None:
        for kind in ("bert", "roberta", "recurrent_gemma", "llama", "jetmoe"):
            in_float32, in_bfloat16 = (
                LanguageModel.load(folder_of(kind), up_to=1, dtype=dtype)._traits for dtype in ("float32", "bfloat16")
            )
            assert in_float32 == in_bfloat16

    def test_a_configuration_of_another_size_is_refused(self, folder_of: Any, tmp_path: Path) -> None:
        folder = Path(shutil.copytree(folder_of("llama"), tmp_path / "model"))
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 64}))
        with pytest.raises(TemporalLensError, match=r"do not fit its configuration: \S+ has shape \(\d+, \d+\), and should have"):
            LanguageModel.load(str(folder), up_to=1)


def test_the_lowest_layers_alone_are_held_in_memory(folder_of: Any) -> None:
    for kind in ("llama", "esmc", "zamba2"):
        model = LanguageModel.load(folder_of(kind), up_to=1)
        whole = LanguageModel.load(folder_of(kind))
        assert (len(model._stack.blocks), len(whole._stack.blocks), model.layers) == (2, 4, 4)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", KINDS)
def test_every_architecture_is_exact_or_refused(kind: str, tmp_path: Path) -> None:
    if not is_small(kind):
        pytest.skip("cannot be made small from its configuration")
    row = measured(kind, tmp_path)
    assert row.difference <= TOLERANCE
    assert row.line in PAGE.read_text("utf-8").splitlines()
