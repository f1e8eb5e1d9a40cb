"""Pairs of places: a transcoder that is a model's own MLP gives its output exactly, wherever it is measured, and on nothing else."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, GPTNeoXConfig

import temporallens as tl
from temporallens.activations.language import harvest as harvesting
from temporallens.activations.loader import Loader, with_targets
from temporallens.errors import TemporalLensError
from temporallens.evaluation.heldout import find_firings
from temporallens.evaluation.model.splicing import SplicingPolicy, measure_splicing
from temporallens.evaluation.reconstruction import evaluate_reconstruction
from temporallens.evaluation.results import load_results
from temporallens.interop.loading import load_dictionary
from temporallens.study.inspection import inspection
from temporallens.study.reading import read_study
from temporallens.study.run import run_study
from tiny_models import COMMON, VOCABULARY, tiny_tokenizer

READ, GIVEN = "blocks.1.mlp.hook_in", "blocks.1.hook_mlp_out"
TEXT = "A line of words about the weather and the harvest of the year. "


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose MLPs are transcoders: two matrices and a ReLU between."""
    folder, tokenizer = tmp_path_factory.mktemp("pairs") / "tiny", tiny_tokenizer("gpt_neox")
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = AutoModelForCausalLM.from_config(GPTNeoXConfig(**COMMON, hidden_act="relu", vocab_size=VOCABULARY, **ids))
        for name, parameter in made.named_parameters():
            parameter.data.normal_(std=0.6 if "4h_to_h" in name else 0.15)  # so that it matters
    made.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    for number in range(12):
        (folder / f"{number}.txt").write_text(" ".join(f"{TEXT}{number} {part}" for part in range(12)))
    return folder


def own_mlp(model: Path, folder: Path, **about: Any) -> Path:
    """The MLP of block 1 in the files of SAELens."""
    mlp = AutoModelForCausalLM.from_pretrained(model).gpt_neox.layers[1].mlp
    encoder, decoder = mlp.dense_h_to_4h, mlp.dense_4h_to_h
    tensors = {"W_enc": encoder.weight.T, "b_enc": encoder.bias, "W_dec": decoder.weight.T, "b_dec": decoder.bias}
    folder.mkdir(parents=True)
    save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, folder / "sae_weights.safetensors")
    said = {"model_name": "tiny", "hook_name": READ, "hook_name_out": GIVEN, "context_size": 32, "sae_lens_version": "6.0.0", **about}
    sizes = {"d_in": encoder.in_features, "d_out": decoder.out_features, "d_sae": encoder.out_features}
    config = {"architecture": "transcoder", "apply_b_dec_to_input": False, "normalize_activations": "none", **sizes, "metadata": said}
    (folder / "cfg.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def store(model: Path, texts: Path, tmp_path_factory: pytest.TempPathFactory) -> tl.ActivationStore:
    out = tmp_path_factory.mktemp("pair") / "store"
    return tl.harvest(str(model), READ, str(texts), out=out, target=GIVEN, context_length=32, dtype="float32", norm_multiple=1.03)


def test_both_places_are_those_that_plain_hooks_see_and_leave_out_the_same_rows(store: tl.ActivationStore, model: Path) -> None:
    assert store.target is not None and store.target.target is None
    plain, seen = AutoModelForCausalLM.from_pretrained(model).eval(), {}
    plain.gpt_neox.layers[1].mlp.register_forward_hook(lambda _, given, gave: seen.update(read=given[0][0], given=gave[0]))
    (rows, wanted) = next(with_targets(store, np.arange(2)))
    first = int(store.sequence_table.length[0])
    with torch.no_grad():
        plain(rows.token[None, :first])
    torch.testing.assert_close(rows.x[:first], seen["read"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(wanted[:first], seen["given"], atol=1e-5, rtol=1e-5)
    every = np.arange(store.sequences)
    excluded = store.read(every).excluded
    assert torch.equal(excluded, store.target.read(every).excluded)
    norms = [which.read(every).x.norm(dim=1) for which in (store, store.target)]
    beyond = [own > 1.03 * own[excluded != 1].median() for own in norms]  # of all rows, not of 32
    agreed = ((beyond[0] | beyond[1]) == (excluded > 1))[excluded != 1].float().mean()
    assert agreed > 0.95 and all(bool((own & ~other & (excluded > 1)).any()) for own, other in (beyond, beyond[::-1]))


def test_batches_carry_what_is_to_be_given(store: tl.ActivationStore, model: Path, tmp_path: Path) -> None:
    dictionary, loader = load_dictionary(own_mlp(model, tmp_path / "own")), Loader(store, np.arange(store.sequences), 64, 0)
    batch = next(loader)
    loader.close()
    assert batch.target is not None
    torch.testing.assert_close(dictionary(batch.x), batch.target, atol=1e-5, rtol=1e-5)


def test_an_interrupted_pair_goes_on_to_the_same_bytes(
    store: tl.ActivationStore, model: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {"target": GIVEN, "context_length": 32, "dtype": "float32", "norm_multiple": 1.03}
    whole = harvesting.read_streams

    def fails(*arguments: Any) -> Any:
        monkeypatch.setattr(harvesting, "read_streams", whole)
        raise KeyboardInterrupt

    monkeypatch.setattr(harvesting, "read_streams", fails)
    with pytest.raises(KeyboardInterrupt):
        tl.harvest(str(model), READ, str(texts), out=tmp_path / "again", **settings)
    again = tl.harvest(str(model), READ, str(texts), out=tmp_path / "again", **settings)
    (again.folder / "manifest.json").unlink()  # as if it ended between the two
    with pytest.raises(TemporalLensError, match="is not an activation store"):
        tl.ActivationStore(again.folder)
    for name in ("manifest.json", "target/manifest.json"):
        if (again.folder / name).exists():
            assert (again.folder / name).read_bytes() == (store.folder / name).read_bytes()
    (again.folder / "index.safetensors").unlink()
    for shard in again.folder.glob("*.safetensors"):
        shard.unlink()
    again = tl.harvest(str(model), READ, str(texts), out=tmp_path / "again", **settings)
    assert (again.folder / "manifest.json").read_bytes() == (store.folder / "manifest.json").read_bytes()


def test_a_target_of_other_rows_is_refused(store: tl.ActivationStore, model: Path, texts: Path, tmp_path: Path) -> None:
    other = shutil.copytree(store.folder, tmp_path / "store")
    shutil.rmtree(other / "target")
    with pytest.raises(TemporalLensError, match="target does not exist"):
        assert tl.ActivationStore(other).target
    tl.harvest(str(model), GIVEN, str(texts), out=other / "target", context_length=16, dtype="float32")
    with pytest.raises(TemporalLensError, match=r"contradicts itself: .*target does not hold the same rows"):
        assert tl.ActivationStore(other).target


def test_the_models_own_mlp_is_given_back_and_changes_nothing(store: tl.ActivationStore, model: Path, tmp_path: Path) -> None:
    dictionary, every = load_dictionary(own_mlp(model, tmp_path / "own")), np.arange(store.sequences)
    found = evaluate_reconstruction(dictionary, store, every, 1.0)
    assert found.fve == pytest.approx(1, abs=1e-6) and 0 < found.l0 < 48
    assert all(fve == pytest.approx(1, abs=1e-5) for fve in found.position_fve if fve is not None)
    policy = SplicingPolicy(rows=4, bins=2, resamples=4)
    spliced = measure_splicing(dictionary, str(model), READ, store, every, policy).everything
    assert abs(spliced.spliced.value - spliced.clean.value) < 1e-5 and spliced.kl_zero.value > 1e-3
    assert abs(spliced.kl.value) < 1e-6
    with torch.no_grad():
        dictionary.decoder.mul_(0.5)
    assert evaluate_reconstruction(dictionary, store, every, 1.0).fve < 0.9
    assert measure_splicing(dictionary, str(model), READ, store, every, policy).headline.kl.value > 1e-4


@pytest.fixture(scope="module")
def inspected(model: Path, texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    root = tmp_path_factory.mktemp("inspected")
    study = inspection([str(own_mlp(model, root / "own"))], model=str(model), text=str(texts), tokens=3_000)
    (entry,) = study.study.activations.values()
    assert (entry.layer, entry.target) == (READ, GIVEN)
    chosen = {"fidelity": {"rows": 12, "shifts": [1, 2], "least_firings": 5, "resamples": 20}, "splicing": {"rows": 12, "resamples": 20}}
    text = study.text.replace("bfloat16", "float32")
    for name, policy in chosen.items():
        text = text.replace(f"{name}: {{}}", f"{name}: {json.dumps(policy)}")
    (root / "study.yaml").write_text(text)
    run_study(read_study(root / "study.yaml"), root / "out")
    return load_results(root / "out"), root / "out"


@pytest.mark.slow
def test_the_models_own_mlp_is_given_back_in_every_section(inspected: Any) -> None:
    results, out = inspected
    (run,) = results.runs
    assert run.fve == pytest.approx(1, abs=1e-6) and 0 < run.l0 < 48
    assert all(fve == pytest.approx(1, abs=1e-5) for fve in run.position_fve if fve is not None)
    assert run.mse_loss < 1e-6
    assert run.measures.keys() >= {"positions", "tokens", "clusters", "splicing", "fidelity", "drift"}
    assert abs(run.measures["splicing"]["headline"]["kl"]["value"]) < 1e-6
    assert all(octave["fve"]["value"] == pytest.approx(1, abs=1e-5) for octave in run.measures["octaves"]["octaves"])
    assert run.measures["closing"]["fve_change"]["value"] <= 1e-6  # what is exact can only lose
    passage = run.measures["tokens"]["passage"]
    assert passage is None or passage["codes"] == pytest.approx([1] * len(passage["codes"]), abs=1e-4)
    assert all(octave["fve"]["value"] == pytest.approx(1, abs=1e-5) for octave in run.measures["drift"]["octaves"])
    assert all(abs(shift["fve"]["change"]["value"]) < 1e-5 for shift in run.measures["fidelity"]["shifts"])
    report = (out / "report.html").read_text()
    assert f"at {READ}, and what it gives at {GIVEN}" in report


def test_the_same_weights_at_another_place_are_worse(model: Path, texts: Path, tmp_path: Path) -> None:
    own = own_mlp(model, tmp_path / "own")
    before = "blocks.1.hook_mlp_in"
    store = tl.harvest(str(model), before, str(texts), out=tmp_path / "store", target=GIVEN, context_length=32, dtype="float32")
    dictionary = load_dictionary(own)
    rows, wanted = next(with_targets(store, np.arange(store.sequences)))
    with torch.no_grad():
        assert float((dictionary(rows.x) - wanted).square().sum()) > 0.05 * float(wanted.square().sum())


def test_pairs_and_what_gives_back_what_it_takes_are_kept_apart(
    store: tl.ActivationStore, model: Path, texts: Path, tmp_path: Path
) -> None:
    every = np.arange(store.sequences)
    with pytest.raises(TemporalLensError, match=r"has the target blocks.1.hook_mlp_out, which a 'standard' dictionary does not give"):
        find_firings(tl.Standard(features=48).make(store.width, 32, torch.Generator().manual_seed(0)), store, every)
    with pytest.raises(TemporalLensError, match=r"has a target, for transcoders that are trained already"):
        tl.train(store, tl.TopK(features=48, k=4), 2, tmp_path / "arm", batch_size=32)
    transcoder = load_dictionary(own_mlp(model, tmp_path / "own"))
    assert store.target is not None
    with pytest.raises(TemporalLensError, match=r"is a transcoder, which gives activations of another point than it takes"):
        find_firings(transcoder, store.target, every)


STUDY = """\
name: pairs
activations:
  mlp: {{model: {model}, text: {text}, hook: {hook}, {target}context_length: 16, max_tokens: 2500, batch_size: 4, dtype: float32}}
arms: {{theirs: {{kind: pretrained, path: {path}{origin}}}{more}}}
training: {{steps: 2, batch_size: 32, log_every: 2, held_out: 0.4}}
"""


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        (
            {"target": ""},
            "a transcoder: it gives activations at blocks.1.hook_mlp_out, .*; give that entry a target: blocks.1.hook_mlp_out",
        ),
        ({"target": "target: 1, "}, r"gives activations at blocks.1.hook_mlp_out, and the target of activations.mlp is 1; if these"),
        ({"hook": "blocks.1.hook_mlp_in"}, "for layer blocks.1.mlp.hook_in, and activations.mlp is layer blocks.1.hook_mlp_in"),
        ({"more": ", own: {kind: topk, features: 64, k: 4}"}, "activations.mlp has a target, .* and arms.own would be trained on it"),
        ({"target": f"target: {READ}, "}, "the target is blocks.1.mlp.hook_in, which is what is read: leave it out"),
        ({"hook": "blocks.1.ln2.hook_normalized"}, "is inside a norm, before its weights"),
    ],
)
def test_what_does_not_belong_together_is_refused(said: dict[str, str], sentence: str, model: Path, texts: Path, tmp_path: Path) -> None:
    known = {"hook": READ, "target": f"target: {GIVEN}, ", "origin": "", "more": ""} | said
    own = own_mlp(model, tmp_path / "own")
    (tmp_path / "study.yaml").write_text(STUDY.format(model=model, text=texts, path=own, **known))
    with pytest.raises(TemporalLensError, match=sentence):
        run_study(read_study(tmp_path / "study.yaml"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_names_of_modules_are_the_same_place(model: Path, texts: Path, tmp_path: Path) -> None:
    own = own_mlp(model, tmp_path / "own", hook_name="gpt_neox.layers.1.mlp.input", hook_name_out="gpt_neox.layers.1.mlp")
    known = {"hook": "gpt_neox.layers.1.mlp.input", "target": "target: gpt_neox.layers.1.mlp, ", "origin": "", "more": ""}
    (tmp_path / "study.yaml").write_text(STUDY.format(model=model, text=texts, path=own, **known))
    run_study(read_study(tmp_path / "study.yaml"), tmp_path / "out", up_to="train")
    made = tl.ActivationStore(tmp_path / "out" / "stores" / "mlp").manifest.description
    assert (made.source["layer"], made.policies["target"]) == (READ, GIVEN)


def test_a_transcoder_that_does_not_say_what_it_gives_is_asked(model: Path, tmp_path: Path) -> None:
    own = own_mlp(model, tmp_path / "own", hook_name_out=None)
    with pytest.raises(TemporalLensError, match=r"is a transcoder and does not say what it gives: give --target"):
        inspection([str(own)])
    (entry,) = inspection([str(own)], target=GIVEN).study.activations.values()
    assert entry.target == GIVEN


def test_a_pair_that_lies_in_a_store_is_an_entry_of_a_study(store: tl.ActivationStore, model: Path, tmp_path: Path) -> None:
    own = own_mlp(model, tmp_path / "own")
    study = f"""\
name: pairs
activations: {{mlp: {{source: store, path: {store.folder}}}}}
arms: {{theirs: {{kind: pretrained, path: {own}}}}}
training: {{steps: 2, batch_size: 32, log_every: 2, held_out: 0.4}}
"""
    (tmp_path / "study.yaml").write_text(study)
    run_study(read_study(tmp_path / "study.yaml"), tmp_path / "out", up_to="train")
    taken = tl.ActivationStore(tmp_path / "out" / "stores" / "mlp").target
    assert taken is not None and store.target is not None and taken.manifest == store.target.manifest
    (tmp_path / "study.yaml").write_text(study.replace(f"kind: pretrained, path: {own}", "kind: topk, features: 64, k: 4"))
    with pytest.raises(TemporalLensError, match=r"activations.mlp has a target, .* and arms.theirs would be trained on it"):
        read_study(tmp_path / "study.yaml")
