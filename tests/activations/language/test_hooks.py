"""Hooks: what a block adds to the stream, read and put back where a forward hook written by hand would, or refused in a sentence."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tools.architectures import save_model
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForCausalLM, MixtralConfig, PreTrainedTokenizerFast

from headed_models import headed_model, identity, store_of
from temporallens.activations.language import models
from temporallens.activations.language.harvest import HarvestPolicy, harvest
from temporallens.activations.language.hooks import Layer, block_of, layer_named, site_of
from temporallens.activations.language.models import LanguageModel
from temporallens.errors import TemporalLensError
from temporallens.evaluation.model.fidelity import FidelityPolicy, measure_fidelity
from temporallens.evaluation.model.origin import harvest_of
from temporallens.evaluation.model.passes import text_activations
from temporallens.evaluation.model.splicing import SplicingPolicy, measure_splicing
from temporallens.evaluation.order.surprisal import text_surprisal
from tiny_models import FAMILIES, LAYERS, TEXTS, VOCABULARY, tiny_model, tiny_tokenizer

BLOCK = 1
ATTENTION, MLP = (f"blocks.{BLOCK}.hook_{site}" for site in ("attn_out", "mlp_out"))
BEFORE_NORM, MLP_INPUT = f"blocks.{BLOCK}.hook_mlp_in", f"blocks.{BLOCK}.mlp.hook_in"
ADDED: dict[str, tuple[Callable[[Any], nn.Module], Callable[[Any], nn.Module]]] = {
    "llama": (lambda model: model.layers[BLOCK].self_attn, lambda model: model.layers[BLOCK].mlp),
    "gemma2": (
        lambda model: model.layers[BLOCK].post_attention_layernorm,
        lambda model: model.layers[BLOCK].post_feedforward_layernorm,
    ),
    "gpt2": (lambda model: model.h[BLOCK].attn, lambda model: model.h[BLOCK].mlp),
    "gpt_neox": (lambda model: model.layers[BLOCK].attention, lambda model: model.layers[BLOCK].mlp),
    "bert": (lambda model: model.encoder.layer[BLOCK].attention.output.dense, lambda model: model.encoder.layer[BLOCK].output.dense),
    "mixtral": (lambda model: model.layers[BLOCK].self_attn, lambda model: model.layers[BLOCK].mlp),
}
"""By family, the modules whose outputs its code adds to the stream."""
TOKENS = torch.randint(5, 300, (3, 20), generator=torch.Generator().manual_seed(0))
MASK = torch.arange(20) < torch.tensor([[20], [13], [4]])


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    made = {family: tiny_model(family, root / family) for family in ADDED if family in FAMILIES}
    return made | {"mixtral": _mixture(root / "mixtral")}


def _mixture(folder: Path) -> Path:
    """Four experts, of which each token has two."""
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": LAYERS, "num_attention_heads": 4, "num_key_value_heads": 2}
    tokenizer = tiny_tokenizer("llama")
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = MixtralConfig(vocab_size=VOCABULARY, num_local_experts=4, num_experts_per_tok=2, max_position_embeddings=64, **sizes, **ids)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.data.normal_(std=0.15)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _seen(model: Any, module: nn.Module, tokens: Tensor, **named: Any) -> Tensor:
    """What a plain forward hook on `module` sees."""
    found: list[Tensor] = []
    hook = module.register_forward_hook(lambda _module, _arguments, out: found.append((out[0] if isinstance(out, tuple) else out).clone()))
    with torch.no_grad():
        model(tokens, **named)
    hook.remove()
    return found[0]


@pytest.mark.parametrize("family", ADDED)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_read_is_what_a_plain_forward_hook_sees(family: str, dtype: str, folders: dict[str, Path]) -> None:
    model = LanguageModel.load(str(folders[family]), up_to=MLP, dtype=dtype)
    plain = AutoModel.from_pretrained(folders[family], dtype=getattr(torch, dtype)).eval()
    whole = torch.ones_like(TOKENS, dtype=torch.bool)
    for mask in (MASK, whole):
        streams = model.residuals(TOKENS, mask, [BLOCK - 1, ATTENTION, MLP, BLOCK])
        for layer, module in zip((ATTENTION, MLP), ADDED[family], strict=True):
            expected = _seen(plain, module(plain), TOKENS, **({} if mask is whole else {"attention_mask": mask.long()}))
            assert torch.equal(streams[layer][mask], expected[mask])
    if family == "bert":  # a norm stands between
        return
    total = streams[BLOCK - 1] + streams[ATTENTION] + streams[MLP]
    torch.testing.assert_close(total, streams[BLOCK], atol=1e-5 if dtype == "float32" else 0.1, rtol=0.02)


ENTERED: dict[str, Callable[[Any], tuple[nn.Module, nn.Module]]] = {
    "llama": lambda model: (model.layers[BLOCK].post_attention_layernorm, model.layers[BLOCK].mlp),
    "gemma2": lambda model: (model.layers[BLOCK].pre_feedforward_layernorm, model.layers[BLOCK].mlp),
    "gpt2": lambda model: (model.h[BLOCK].ln_2, model.h[BLOCK].mlp),
    "gpt_neox": lambda model: (model.layers[BLOCK].post_attention_layernorm, model.layers[BLOCK].mlp),
    "bert": lambda model: (model.encoder.layer[BLOCK].intermediate, model.encoder.layer[BLOCK].intermediate),
    "mixtral": lambda model: (model.layers[BLOCK].post_attention_layernorm, model.layers[BLOCK].mlp),
}
"""By family, what is given the stream to which the MLP's output is added, and what is given the MLP's input."""


@pytest.mark.parametrize("family", ENTERED)
def test_what_an_mlp_reads_is_what_a_plain_hook_sees_its_modules_given(family: str, folders: dict[str, Path]) -> None:
    model, plain = LanguageModel.load(str(folders[family]), up_to=MLP_INPUT), AutoModel.from_pretrained(folders[family]).eval()
    streams = model.residuals(TOKENS, MASK, [MLP_INPUT, BEFORE_NORM])
    seen: dict[str, Tensor] = {}
    for name, module in zip((BEFORE_NORM, MLP_INPUT), ENTERED[family](plain), strict=True):
        module.register_forward_pre_hook(lambda _, given, name=name: seen.__setitem__(name, given[0].clone()))
    with torch.no_grad():
        plain(TOKENS, attention_mask=MASK.long())
    for name, expected in seen.items():
        assert torch.equal(streams[name][MASK], expected[MASK])
    assert torch.equal(streams[MLP_INPUT], streams[BEFORE_NORM]) == (family == "bert")
    own = {"gpt2": "h.1.mlp.input", "bert": "encoder.layer.1.intermediate.input"}.get(family, "model.layers.1.mlp.input")
    assert model.named(layer_named(own)) == MLP_INPUT
    if family == "gemma2":
        assert model.named("layers.1.pre_feedforward_layernorm") == MLP_INPUT
        assert model.named("layers.1.post_feedforward_layernorm") == MLP
        with pytest.raises(TemporalLensError, match=r"the MLP of its block 1 stands at pre_feedforward_layernorm and mlp.input"):
            model.named("layers.1.self_attn.input")


@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_what_takes_the_place_of_an_mlps_input_is_what_it_is_given(family: str, folders: dict[str, Path]) -> None:
    model, plain = LanguageModel.load(str(folders[family]), head=True), AutoModel.from_pretrained(folders[family]).eval()
    tokens, whole = TOKENS[:1], torch.ones_like(TOKENS[:1], dtype=torch.bool)
    given = torch.randn(1, 20, model.width, generator=torch.Generator().manual_seed(0))
    ENTERED[family](plain)[1].register_forward_pre_hook(lambda *_: (given,))
    with torch.no_grad():
        expected = plain(tokens).last_hidden_state
    torch.testing.assert_close(model.continued(given, MLP_INPUT, tokens, whole), expected, atol=1e-5, rtol=1e-5)


def test_side_by_side_norms_behind_and_mixtures_are_told_by_what_they_add(folders: dict[str, Path]) -> None:
    found = {family: LanguageModel.load(str(folder), up_to=0).additions(0) for family, folder in folders.items()}
    assert {family: [addition.site for addition in own] for family, own in found.items()} == {
        family: ["attn_out", "mlp_out"] for family in ADDED
    }
    assert [addition.modules[0] for addition in found["gemma2"]] == ["post_attention_layernorm", "post_feedforward_layernorm"]
    assert [addition.modules[0] for addition in found["gpt_neox"]] == ["attention", "mlp"]


@pytest.mark.parametrize(
    ("name", "layer", "site"),
    [
        ("blocks.3.hook_resid_post", 3, "resid_post"),
        ("blocks.3.hook_resid_pre", 2, "resid_post"),
        ("blocks.0.hook_resid_pre", "embed", "embed"),
        ("blocks.3.hook_mlp_out", "blocks.3.hook_mlp_out", "mlp_out"),
        ("blocks.3.hook_attn_out", "blocks.3.hook_attn_out", "attn_out"),
        ("blocks.3.hook_mlp_in", "blocks.3.hook_mlp_in", "mlp_in"),
        ("blocks.3.mlp.hook_in", "blocks.3.mlp.hook_in", "mlp.hook_in"),
        ("model.layers.3.mlp.input", "blocks.3.mlp.hook_in", "mlp.hook_in"),
        ("blocks.3.mlp.hook_out", "layers.3.mlp", "mlp"),
        ("layers.3", 3, "resid_post"),
        ("h.3", 3, "resid_post"),
        ("model.layers.3", 3, "resid_post"),
        ("bert.encoder.layer.3", 3, "resid_post"),
        ("model.layers.3.mlp", "layers.3.mlp", "mlp"),
        ("transformer.h.3.attn", "layers.3.attn", "attn"),
        ("encoder.layer.3.output.dense", "layers.3.output.dense", "output.dense"),
        ("embed", "embed", "embed"),
        ("12", 12, "resid_post"),
    ],
)
def test_names_of_other_libraries(name: str, layer: Layer, site: str) -> None:
    assert layer_named(name) == layer
    assert (HarvestPolicy(model="m", hook=name).layer, HarvestPolicy(model="m", layer=name).layer) == (layer, layer)
    assert site_of(layer) == site
    assert layer_named(str(layer)) == layer
    assert block_of(layer) == (-1 if layer == "embed" else {"blocks.3.hook_resid_pre": 2, "12": 12}.get(name, 3))


def test_a_number_and_a_hook_say_the_same() -> None:
    for hook, layer in (("mlp_out", "blocks.3.hook_mlp_out"), ("attn_out", "blocks.3.hook_attn_out"), ("resid_post", 3), ("resid_pre", 2)):
        policy = HarvestPolicy(model="m", layer=3, hook=hook)
        assert policy == HarvestPolicy(model="m", layer=layer) == HarvestPolicy.model_validate_json(policy.model_dump_json())
    assert "hook" not in HarvestPolicy(model="m", layer=3).model_dump()


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"layer": "middle"}, "'middle' names no place in a model: a number is the residual stream after that block, `embed`"),
        ({"hook": "blocks.3.hook_z"}, "'blocks.3.hook_z' names no place in a model: .* blocks.12.hook_mlp_out, layers.12 and such as"),
        ({"hook": "blocks.3.attn.hook_z"}, "names no place in a model"),
        ({"hook": "blocks.3.ln2.hook_normalized"}, "is inside a norm, .*: what the MLP is given behind them is blocks.3.mlp.hook_in"),
        ({"hook": "layers.3.a/../b"}, "names no place in a model"),
        ({"hook": "mlp_out"}, "'mlp_out' names no place in a model"),
        (
            {"layer": 3, "hook": "mlp"},
            "hook 'mlp', layer 3: hook is the name of a place, or beside a layer's number one of resid_pre, resid_post",
        ),
        ({"layer": 3, "hook": "blocks.3.hook_mlp_out"}, "or beside a layer's number one of"),
        ({"layer": "embed", "hook": "mlp_out"}, "or beside a layer's number one of"),
        ({"layer": "true", "hook": "mlp_out"}, "or beside a layer's number one of"),
        ({"hook": 3.5}, "hook 3.5, layer None: hook is the name of a place"),
        ({}, "HarvestPolicy needs the setting 'layer'"),
    ],
)
def test_names_of_nothing_are_refused_in_a_sentence(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(TemporalLensError, match=said):
        HarvestPolicy(model="m", **fields)


def test_places_that_a_model_has_not_are_refused_in_a_sentence(folders: dict[str, Path], tmp_path: Path) -> None:
    def refused(family: str, hook: str) -> str:
        with pytest.raises(TemporalLensError) as error:
            harvest(str(folders[family]), hook, TEXTS, out=tmp_path / family, context_length=16)
        assert not (tmp_path / family / "manifest.json").exists()
        return str(error.value)

    assert refused("llama", "blocks.9.hook_mlp_out").startswith("layer blocks.9.hook_mlp_out is out of range: ")
    assert refused("gemma2", "model.layers.1.mlp").endswith(  # a norm follows
        "cannot be read at layers.1.mlp: what its block 1 adds to the residual stream is given by post_attention_layernorm "
        "(attn_out) and by post_feedforward_layernorm (mlp_out)"
    )
    assert "cannot be read at layers.1.attention" in refused("bert", "encoder.layer.1.attention")
    model = LanguageModel.load(str(folders["llama"]), up_to=1)
    with pytest.raises(TemporalLensError, match=r"layer blocks\.2\.hook_mlp_out was not loaded"):
        model.residuals(TOKENS, MASK, ["blocks.2.hook_mlp_out"])


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("mamba", r"adds to the residual stream is given by mixer \(neither attention nor a whole MLP\)"),
        ("granitemoehybrid", r"is given by mamba \(neither attention nor a whole MLP\) and by block_sparse_moe \(neither"),
        ("minicpm3", "adds to the residual stream is not what any of its modules give"),
        ("xlnet", "adds to the residual stream is not what any of its modules give"),
    ],
)
def test_blocks_without_an_mlp_of_their_own_are_refused(kind: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_model(kind, tmp_path)
    monkeypatch.setattr(models, "tokenizer_of", lambda source: PreTrainedTokenizerFast.from_pretrained(source.location))
    model = LanguageModel.load(str(tmp_path), up_to=1)
    with pytest.raises(TemporalLensError, match=said):
        model.residuals(TOKENS % 90 + 4, MASK, [MLP])


@pytest.mark.parametrize("kind", ["opt", "falcon", "llama4_text"])
def test_flat_outputs_and_sums_in_place(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """OPT and Llama 4 add `[B * S, D]`, Falcon adds attention's output to the MLP's own tensor."""
    save_model(kind, tmp_path)
    monkeypatch.setattr(models, "tokenizer_of", lambda source: PreTrainedTokenizerFast.from_pretrained(source.location))
    model, tokens = LanguageModel.load(str(tmp_path), head=True), TOKENS % 90 + 4
    whole = torch.ones_like(tokens, dtype=torch.bool)
    streams = model.residuals(tokens, whole, [0, ATTENTION, MLP, 1])
    torch.testing.assert_close(streams[0] + streams[ATTENTION] + streams[MLP], streams[1], atol=1e-5, rtol=1e-5)
    clean = model.continued(streams[1], 1, tokens, whole)
    for hook in (ATTENTION, MLP):
        given = streams[hook].clone()
        assert torch.equal(model.continued(given, hook, tokens, whole), clean)
        assert torch.equal(given, streams[hook])


def test_a_store_says_where_it_was_read_and_reads_it_again(folders: dict[str, Path], tmp_path: Path) -> None:
    settings: dict[str, Any] = {"context_length": 16, "dtype": "float32"}
    found = [
        harvest(str(folders["llama"]), "model.layers.1.mlp", TEXTS, out=tmp_path / "named", **settings),
        harvest(str(folders["llama"]), 1, TEXTS, out=tmp_path / "numbered", hook="mlp_out", **settings),
    ]
    texts = [(store.folder / "manifest.json").read_text() for store in found]
    assert texts[0] == texts[1]
    source = json.loads(texts[0])["description"]["source"]
    assert (source["layer"], source["hook"]) == ("blocks.1.hook_mlp_out", "mlp_out")
    rows = found[0].read(np.arange(found[0].sequences)[:1])
    plain = AutoModel.from_pretrained(folders["llama"]).eval()
    torch.testing.assert_close(rows.x, _seen(plain, plain.layers[1].mlp, rows.token[None])[0], atol=1e-5, rtol=1e-4)
    assert harvest_of(found[0]).layer == "blocks.1.hook_mlp_out"
    several = harvest(str(folders["llama"]), [1, MLP, "blocks.1.hook_resid_pre"], TEXTS, out=tmp_path / "all", **settings)
    assert list(several) == [1, MLP, 0]
    assert torch.equal(several[MLP].read(np.arange(1)).x, rows.x)


@pytest.mark.parametrize("family", ["gpt_neox", "bert"])
def test_sections_put_the_reconstruction_back_where_it_was_read(family: str, folders: dict[str, Path], tmp_path: Path) -> None:
    store = store_of(folders[family], MLP, tmp_path / "store")
    name, every = str(folders[family]), np.arange(store.sequences)
    spliced = measure_splicing(identity(), name, MLP, store, every, SplicingPolicy(rows=6, bins=2, resamples=20), tmp_path / "cache")
    assert spliced.headline.spliced.value == spliced.headline.clean.value != spliced.headline.zero.value
    plain = AutoModel.from_pretrained(folders[family]).eval()
    rows = store.read(every[:1])
    module, model = ADDED[family][1](plain), LanguageModel.load(name, head=True)
    hook = module.register_forward_hook(lambda _module, _arguments, out: torch.zeros_like(out))
    with torch.no_grad():
        expected = plain(rows.token[None]).last_hidden_state
    hook.remove()
    whole = torch.ones_like(rows.token[None], dtype=torch.bool)
    changed = model.continued(torch.zeros_like(rows.x)[None], MLP, rows.token[None], whole)
    torch.testing.assert_close(changed, expected, atol=1e-5, rtol=1e-5)
    policy = FidelityPolicy(shifts=(1, 2), rows=6, least_firings=1, resamples=4)
    shifted = measure_fidelity(identity(), name, MLP, store, every, policy, tmp_path / "cache")
    assert shifted.control_content.value == 1
    texts = text_activations(name, MLP, TEXTS, 16, cache=tmp_path / "cache")
    own = texts.live_rows([0])
    alone = _seen(plain, module, texts.token[:1], attention_mask=(texts.token[:1] != model.padding_token).long())[0]
    torch.testing.assert_close(own.x, alone[own.index], atol=1e-5, rtol=1e-4)


def test_a_texts_surprisal_is_the_same_from_wherever_it_goes_on(tmp_path: Path) -> None:
    name = str(headed_model("gpt_neox", tmp_path / "model"))

    def surprisal(layer: Layer) -> Tensor:
        activations = text_activations(name, layer, TEXTS, 16, cache=tmp_path, padding_side="right")
        found = text_surprisal(name, layer, activations, "float32", tmp_path)
        assert found is not None
        return torch.cat(found)

    torch.testing.assert_close(surprisal(MLP), surprisal(BLOCK), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(surprisal(ATTENTION), surprisal(BLOCK), atol=1e-5, rtol=1e-5)
