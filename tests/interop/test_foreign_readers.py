"""Dictionaries of other libraries: the files that these wrote, what they compute with them, and what is refused.

`python -m tools.interop --fixtures` wrote the folders of `fixtures/`, each with the library's own codes and reconstructions."""

import json
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from typer.testing import CliRunner

import temporallens as tl
from temporallens.cli import app
from temporallens.dictionaries.arms.pretrained import Origin, Pretrained, PretrainedDictionary
from temporallens.dictionaries.saving import load_dictionary as load_ours, save_dictionary
from temporallens.errors import TemporalLensError
from temporallens.interop.loading import read_pretrained
from temporallens.interop.points import layer_of
from tools import interop

FIXTURES = Path(__file__).parent / "fixtures"
CASES = sorted(path.name for path in FIXTURES.iterdir())
PARTS = {"encoder": "W_enc", "decoder": "W_dec", "encoder_bias": "b_enc", "decoder_bias": "b_dec"}


def loaded(case: str) -> tuple[PretrainedDictionary, dict[str, Tensor]]:
    """The dictionary of a folder of fixtures, and what its library computes."""
    request = json.loads((FIXTURES / case / "request.json").read_text())
    folder = FIXTURES / case / request.pop("folder", ".")
    dictionary = tl.load_dictionary(folder, **{name: request[name] for name in request.keys() & {"k"}})
    assert isinstance(dictionary, PretrainedDictionary)
    if "fold" in request:
        dictionary.fold()
    return dictionary, load_file(FIXTURES / case / "expected.safetensors")


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_codes_and_reconstructions_are_those_of_the_library_that_wrote_the_file(case: str, gradients: bool) -> None:
    dictionary, expected = loaded(case)
    with torch.set_grad_enabled(gradients):
        codes = dictionary.encode(expected["x"])
        reconstruction = dictionary.decode(codes)
        again = dictionary(expected["x"])
    assert torch.equal(codes > 0, expected["codes"] > 0)
    for ours, theirs in ((codes, "codes"), (reconstruction, "reconstruction"), (again, "reconstruction")):
        torch.testing.assert_close(ours.detach(), expected[theirs], rtol=1e-5, atol=float(1e-5 * expected[theirs].abs().max()))


@pytest.mark.parametrize("case", [case for case in CASES if "transcoder" in case])
def test_transcoders_say_what_they_take_and_give(case: str, tmp_path: Path) -> None:
    dictionary, expected = loaded(case)
    taken, given = json.loads((FIXTURES / case / "request.json").read_text())["pair"]
    origin = dictionary.config.origin
    assert dictionary.transcodes and (origin.layer, layer_of(origin.target)) == (taken, given)
    assert dictionary.config.skip == any(word in case for word in ("skip", "gemma"))
    without = dictionary.decode(dictionary.encode(expected["x"])) - (expected["x"] @ dictionary.skip if dictionary.skip is not None else 0)
    torch.testing.assert_close(without, dictionary.reconstruct(dictionary.encode(expected["x"])), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("case", CASES)
def test_what_is_saved_as_ours_is_read_back_bit_for_bit(case: str, tmp_path: Path) -> None:
    dictionary, expected = loaded(case)
    save_dictionary(dictionary, tmp_path, dictionary.config, 32)
    for back in (load_ours(tmp_path), tl.load_dictionary(tmp_path)):
        assert isinstance(back, PretrainedDictionary) and back.config == dictionary.config
        assert all(torch.equal(tensor, dictionary.state_dict()[name]) for name, tensor in back.state_dict().items())
        assert torch.equal(back(expected["x"]), dictionary(expected["x"]))


@pytest.mark.parametrize("case", CASES)
def test_folding_gives_unit_rows_and_keeps_reconstructions(case: str) -> None:
    dictionary, expected = loaded(case)
    x, norms = expected["x"], dictionary.decoder.detach().norm(dim=1)
    codes, reconstruction = dictionary.encode(x), dictionary(x)
    if dictionary.threshold is None and not torch.allclose(norms, norms[:1]):
        with pytest.raises(TemporalLensError, match="it cannot be folded"):
            dictionary.fold()
        return
    dictionary.fold()
    torch.testing.assert_close(dictionary.decoder.detach().norm(dim=1), torch.ones(dictionary.features))
    torch.testing.assert_close(dictionary.encode(x), codes * norms)
    torch.testing.assert_close(dictionary(x), reconstruction)


@pytest.mark.parametrize("case", ["saelens-jumprelu", "gemma_scope", "sparsify-topk"])
def test_folding_moves_into_raw_units_as_that_of_every_arm_does(case: str) -> None:
    dictionary, expected = loaded(case)
    if dictionary.threshold is None:
        dictionary.decoder.data /= dictionary.decoder.norm(dim=1, keepdim=True)
    else:
        dictionary.fold()
    x, centre = expected["x"], torch.linspace(-1, 1, dictionary.width)
    codes, reconstruction = dictionary.encode(x), dictionary(x)
    dictionary.fold(centre, 2.5)
    torch.testing.assert_close(dictionary.encode(x / 2.5 + centre), codes / 2.5, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(dictionary(x / 2.5 + centre), reconstruction / 2.5 + centre, atol=1e-5, rtol=1e-4)


def test_what_files_say_of_their_model_is_kept() -> None:
    stream = Origin(format="SAELens", model="tiny", point="blocks.3.hook_resid_post", layer=3, context_length=64, bos=True)
    assert loaded("saelens-topk")[0].config.origin == stream
    heads = loaded("saelens-jumprelu-hook_z")[0].config.origin
    assert (heads.point, heads.layer) == ("blocks.3.attn.hook_z", None)
    assert loaded("dictionary_learning-BatchTopKSAE")[0].config.origin == Origin(
        format="dictionary_learning", model="tiny", layer=3, context_length=64
    )
    assert loaded("sparsify-topk")[0].config.origin == Origin(format="sparsify", model="tiny", point="layers.3", layer=3, context_length=64)
    transcoder = loaded("gemma_scope_2-transcoder")[0].config
    assert (transcoder.origin.layer, transcoder.transcodes, transcoder.skip) == ("layers.3.pre_feedforward_layernorm", True, True)
    assert transcoder.origin.target == "model.layers.3.post_feedforward_layernorm.output"
    release = tl.load_dictionary(FIXTURES / "gemma_scope" / "layer_3" / "width_16k" / "average_l0_71", origin={"model": "mine", "layer": 3})
    assert (release.config.origin.model, release.config.origin.layer, release.config.origin.format) == ("mine", 3, "Gemma Scope")


@pytest.mark.parametrize(
    ("point", "layer"),
    [
        ("blocks.5.hook_resid_post", 5),
        ("blocks.5.hook_resid_pre", 4),
        ("blocks.0.hook_resid_pre", "embed"),
        ("model.layers.7", 7),
        ("model.layers.7.output", 7),
        ("gpt_neox.layers.2", 2),
        ("transformer.h.11", 11),
        ("layers.5.mlp", "layers.5.mlp"),
        ("blocks.5.hook_mlp_out", "blocks.5.hook_mlp_out"),
        ("model.layers.7.self_attn.o_proj.input", None),
        ("model.layers.7.mlp.input", "blocks.7.mlp.hook_in"),
        ("model.layers.7.block_sparse.mlp.input", "layers.7.block_sparse.mlp.input"),
        ("blocks.7.mlp.hook_in", "blocks.7.mlp.hook_in"),
        ("blocks.7.hook_mlp_in", "blocks.7.hook_mlp_in"),
        ("blocks.7.ln2.hook_normalized", None),
        (None, None),
    ],
)
def test_layers_are_told_by_the_names_of_points(point: str | None, layer: int | str | None) -> None:
    assert layer_of(point) == layer


def test_decoding_what_was_not_encoded_right_before_is_refused_where_it_matters() -> None:
    dictionary, expected = loaded("saelens-standard-layer_norm")
    with pytest.raises(TemporalLensError, match="encode them right before"):
        dictionary.decode(expected["codes"])
    dictionary.encode(expected["x"][:3])
    with pytest.raises(TemporalLensError, match="activations of the 12 rows that it decodes, and has encoded 3"):
        dictionary.decode(expected["codes"])


def test_a_row_of_zeros_is_normalised_to_zeros() -> None:
    dictionary, _ = loaded("saelens-standard-constant_norm_rescale")
    assert torch.isfinite(dictionary(torch.zeros(2, dictionary.width))).all()


def test_it_is_not_trained(tmp_path: Path) -> None:
    store = tl.ActivationStore.from_arrays(np.random.default_rng(0).normal(size=(8, 5, 3)).astype(np.float32), tmp_path / "store")
    with pytest.raises(TemporalLensError, match="is not trained"):
        tl.train(store, arm=Pretrained(features=4), steps=1, out=tmp_path / "run", batch_size=4)
    with pytest.raises(TemporalLensError, match="leave out centre"):
        Pretrained(path="x", centre="position")


# Named tensors


@pytest.fixture
def release() -> dict[str, Tensor]:
    tensors = load_file(FIXTURES / "saelens-jumprelu" / "sae_weights.safetensors")
    assert tensors["W_enc"].shape == (6, 16)
    return tensors


def written(path: Path, tensors: dict[str, Tensor]) -> Path:
    if path.suffix == ".safetensors":
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    elif path.suffix == ".npz":
        np.savez_compressed(path, **{name: tensor.numpy() for name, tensor in tensors.items()})
    else:
        torch.save(tensors, path)
    return path


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("ending", ["safetensors", "npz", "pt"])
def test_a_file_of_named_tensors_is_read_whichever_way_its_matrices_lie(
    ending: str, turned: bool, release: dict[str, Tensor], tmp_path: Path
) -> None:
    expected = load_file(FIXTURES / "saelens-jumprelu" / "expected.safetensors")
    if turned:
        release |= {name: release[name].T for name in ("W_enc", "W_dec")}
    path = written(tmp_path / f"x.{ending}", release)
    dictionary = tl.load_dictionary(path, **PARTS, threshold="threshold", subtracts_bias=True)
    torch.testing.assert_close(dictionary.encode(expected["x"]), expected["codes"])
    torch.testing.assert_close(dictionary(expected["x"]), expected["reconstruction"])
    assert dictionary.config.origin == Origin(format=f"tensors of a .{ending} file")


def test_of_named_tensors_the_request_says_the_rest(release: dict[str, Tensor], tmp_path: Path) -> None:
    path, x = written(tmp_path / "x.safetensors", release), torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
    bare = {"encoder": "W_enc", "decoder": "W_dec"}
    torch.testing.assert_close(tl.load_dictionary(path, **bare).encode(x), (x @ release["W_enc"]).relu())
    assert (tl.load_dictionary(path, **bare, k=3).encode(x) > 0).sum(1).tolist() == [3] * 5
    scaled = tl.load_dictionary(path, **PARTS, subtracts_bias=False, input_scale=0.5)
    codes = (0.5 * x @ release["W_enc"] + release["b_enc"]).relu()
    torch.testing.assert_close(scaled.encode(x), codes)
    torch.testing.assert_close(scaled.decode(codes), (codes @ release["W_dec"] + release["b_dec"]) / 0.5)
    for request, sentence in (
        ({}, "name its encoder and its decoder, which are among 'W_dec', 'W_enc'"),
        ({"encoder": "W_enc"}, "name its encoder and its decoder"),
        ({**bare, "encoder_bia": "b_enc"}, "has no setting 'encoder_bia'; did you mean 'encoder_bias'"),
        ({**bare, "encoder_bias": "b_en"}, "has no tensor 'b_en'; did you mean"),
        (PARTS, "say with subtracts_bias whether it is taken off the input too"),
        ({**bare, "threshold": "threshold", "k": 3}, "both k and a threshold"),
        ({**PARTS, "encoder_bias": "b_dec", "subtracts_bias": True}, "should have shape"),
        ({**bare, "k": 17}, "k = 17 codes per token cannot come from 16 features"),
    ):
        with pytest.raises(TemporalLensError, match=sentence):
            tl.load_dictionary(path, **request)


def test_a_square_encoder_has_no_sides(tmp_path: Path) -> None:
    path = written(tmp_path / "x.safetensors", {"a": torch.ones(4, 4), "b": torch.ones(4, 4)})
    with pytest.raises(TemporalLensError, match="cannot be told apart"):
        tl.load_dictionary(path, encoder="a", decoder="b")


# Strangers' files


@pytest.fixture
def copy(tmp_path: Path) -> Callable[[str], Path]:
    """A folder of fixtures that may be changed: where its dictionary is."""

    def copied(case: str) -> Path:
        shutil.copytree(FIXTURES / case, tmp_path / case)
        return tmp_path / case / json.loads((FIXTURES / case / "request.json").read_text()).get("folder", ".")

    return copied


def retensor(path: Path, **changes: Tensor | None) -> None:
    """Change or take away tensors of a file."""
    if path.suffix == ".npz":
        tensors = {name: torch.from_numpy(array) for name, array in np.load(path).items()}
    else:
        tensors = load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)
    tensors |= {name: tensor for name, tensor in changes.items() if tensor is not None}
    written(path, {name: tensor for name, tensor in tensors.items() if name not in changes or changes[name] is not None})


WEIGHTS = {
    "saelens-jumprelu": ("sae_weights.safetensors", "b_enc"),
    "saelens-gated": ("sae_weights.safetensors", "r_mag"),
    "dictionary_learning-GatedAutoEncoder": ("ae.pt", "gate_bias"),
    "dictionary_learning-MatryoshkaBatchTopKSAE": ("ae.pt", "b_enc"),
    "sparsify-topk": ("sae.safetensors", "b_dec"),
    "gemma_scope": ("params.npz", "threshold"),
    "gemma_scope_2": ("params.safetensors", "threshold"),
    "llama_scope": ("checkpoints/final.safetensors", "encoder.bias"),
}


@pytest.mark.parametrize("case", WEIGHTS)
def test_tensors_that_are_missing_or_too_many_misshapen_or_not_finite_are_refused(case: str, copy: Callable[[str], Path]) -> None:
    folder, (file, name) = copy(case), WEIGHTS[case]
    whole, path = (folder / file).read_bytes(), folder / file
    for changes, sentence in (
        ({name: None}, "has no tensor|holds the tensors of no dictionary"),
        ({"more": torch.ones(3)}, "holds 'more', for which there is no place"),
        ({name: torch.ones(5)}, "should have shape"),
        ({name: torch.ones(2, 2)}, "should have shape"),
        ({name: torch.full((16 if name != "b_dec" else 6,), torch.nan)}, "holds NaN or infinity"),
    ):
        retensor(path, **changes)
        with pytest.raises(TemporalLensError, match=sentence):
            tl.load_dictionary(folder)
        path.write_bytes(whole)
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(TemporalLensError, match="cannot be read"):
        tl.load_dictionary(folder)


@pytest.mark.parametrize(
    ("case", "file", "changes", "sentence"),
    [
        ("saelens-jumprelu", "cfg.json", {"architecture": "temporal"}, "depend on the tokens before"),
        ("saelens-jumprelu", "cfg.json", {"architecture": "abstopk"}, "codes may be negative"),
        ("saelens-jumprelu", "cfg.json", {"architecture": "jumprelo"}, "did you mean 'jumprelu'"),
        ("saelens-jumprelu", "cfg.json", {"architecture": ["jumprelu"]}, "is not known"),
        ("saelens-jumprelu", "cfg.json", {"normalize_activations": "layer"}, "is not known"),
        ("saelens-jumprelu", "cfg.json", {"d_sae": 17}, "says d_sae = 17, and the weights beside it have 16"),
        ("saelens-jumprelu", "cfg.json", {"d_in": "6"}, "should be a whole number"),
        ("saelens-jumprelu", "cfg.json", {"d_in": 10**400}, "should be a whole number"),
        ("saelens-jumprelu", "cfg.json", {"apply_b_dec_to_input": "no"}, "should be true or false"),
        ("saelens-jumprelu", "cfg.json", {"normalize_activations": "expected_average_only_in"}, "give input_scale"),
        (
            "saelens-jumprelu",
            "cfg.json",
            {"normalize_activations": "covariance_whitening"},
            "activation_whitening.safetensors does not exist",
        ),
        ("saelens-topk", "cfg.json", {"k": None}, "does not say k"),
        ("saelens-topk", "cfg.json", {"k": 17}, "k = 17 codes per token cannot come from 16 features"),
        ("sparsify-topk", "cfg.json", {"multi_topk": True}, "to serve with 2 codes per token and with 8"),
        ("sparsify-topk", "cfg.json", {"signed": True}, "marked signed"),
        ("sparsify-topk", "cfg.json", {"activation": "relu"}, "it should be topk or groupmax"),
        ("sparsify-topk", "cfg.json", {"skip_connection": True}, "has no tensor 'W_skip'"),
        ("sparsify-topk", "cfg.json", {"num_latents": 0, "expansion_factor": 3}, "says num_latents = 18"),
        ("sparsify-groupmax", "cfg.json", {"k": 3}, "k = 3 groups of one size cannot come from 16 features"),
        ("gemma_scope_2", "config.json", {"architecture": "topk"}, "it should be jump_relu"),
        ("llama_scope", "hyperparams.json", {"act_fn": "topk"}, "only jumprelu is read"),
        ("llama_scope", "hyperparams.json", {"norm_activation": "token-wise"}, "only dataset-wise is read"),
        ("llama_scope", "hyperparams.json", {"dataset_average_activation_norm": {"in": 0, "out": 3}}, "does not say both"),
        ("llama_scope", "hyperparams.json", {"jump_relu_threshold": None}, "does not say its jump_relu_threshold"),
        ("dictionary_learning-BatchTopKSAE", "config.json", {"trainer": {"dict_class": "Other"}}, "may be a TopK or a BatchTopK"),
        ("dictionary_learning-BatchTopKSAE", "config.json", {"trainer": []}, "should hold settings by name"),
    ],
)
def test_settings_that_are_refused(case: str, file: str, changes: dict[str, Any], sentence: str, copy: Callable[[str], Path]) -> None:
    folder = copy(case)
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(TemporalLensError, match=sentence):
        tl.load_dictionary(folder)


def test_a_contradiction_to_what_is_requested_is_refused() -> None:
    for request, sentence in (({"k": 5}, "has no k, and k = 5 was requested"), ({"subtracts_bias": False}, "subtracts_bias = True, and")):
        with pytest.raises(TemporalLensError, match=sentence):
            tl.load_dictionary(FIXTURES / "saelens-jumprelu", **request)


def test_files_of_before_version_6_are_read_as_they_were_meant(copy: Callable[[str], Path]) -> None:
    folder, expected = copy("saelens-topk"), loaded("saelens-topk")[1]
    config = {"d_in": 6, "d_sae": 16, "activation_fn_str": "topk", "activation_fn_kwargs": {"k": 2}, "normalize_activations": False}
    config |= {"hook_point": "blocks.0.hook_resid_pre", "model_name": "old"}
    (folder / "cfg.json").write_text(json.dumps(config))
    dictionary = tl.load_dictionary(folder)
    torch.testing.assert_close(dictionary.encode(expected["x"]), expected["codes"])
    assert (dictionary.config.origin.layer, dictionary.config.origin.model) == ("embed", "old")
    (folder / "cfg.json").write_text(json.dumps(config | {"normalize_activations": True}))
    with pytest.raises(TemporalLensError, match="give input_scale"):
        tl.load_dictionary(folder)
    assert tl.load_dictionary(folder, input_scale=1.0)


def test_scaling_factors_of_a_fine_tuning_are_refused_unless_they_are_one(copy: Callable[[str], Path]) -> None:
    folder = copy("saelens-jumprelu")
    retensor(folder / "sae_weights.safetensors", scaling_factor=torch.ones(16))
    assert tl.load_dictionary(folder)
    retensor(folder / "sae_weights.safetensors", scaling_factor=torch.full((16,), 1.1))
    with pytest.raises(TemporalLensError, match="scaling_factor"):
        tl.load_dictionary(folder)


def test_thresholds_that_were_never_measured_and_lone_tensors_of_topk_are_refused(copy: Callable[[str], Path]) -> None:
    folder = copy("dictionary_learning-BatchTopKSAE")
    retensor(folder / "ae.pt", threshold=torch.tensor(-1.0))
    with pytest.raises(TemporalLensError, match="a threshold below 0"):
        tl.load_dictionary(folder)
    (folder / "config.json").unlink()
    with pytest.raises(TemporalLensError, match="may be a TopK or a BatchTopK dictionary"):
        tl.load_dictionary(folder)
    assert tl.load_dictionary(folder, k=2).config.k == 2


def test_the_state_of_an_unfinished_training_holds_its_dictionary(copy: Callable[[str], Path]) -> None:
    folder, expected = copy("dictionary_learning-AutoEncoder"), loaded("dictionary_learning-AutoEncoder")[1]
    state = torch.load(folder / "ae.pt", weights_only=True)
    torch.save({"step": 3, "ae": state, "config": {"k": 2}, "norm_factor": 1.5}, folder / "ae.pt")
    torch.testing.assert_close(tl.load_dictionary(folder)(expected["x"]), expected["reconstruction"])


class Harmful:
    """Runs code where it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("harm"),))


def test_nothing_of_a_pickle_is_run(copy: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = copy("dictionary_learning-AutoEncoder")
    for state in (
        {"W_enc": Harmful()},
        Harmful(),
        [torch.ones(2)],
        {1: torch.ones(2)},
        {"bias": "word"},
        {"bias": torch.ones(2).to_sparse()},
    ):
        torch.save(state, folder / "ae.pt")
        with pytest.raises(TemporalLensError, match=r"nothing but tensors is read|tensors by their names|no ordinary tensor"):
            tl.load_dictionary(folder)
    torch.save({"bias": torch.ones(2)}, folder / "ae.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(TemporalLensError, match="save it again"):
        tl.load_dictionary(folder)
    assert not (tmp_path / "harm").exists()


def test_tensors_that_promise_more_than_their_file_holds_are_refused(copy: Callable[[str], Path], tmp_path: Path) -> None:
    folder = copy("dictionary_learning-AutoEncoder")
    retensor(folder / "ae.pt", bias=torch.ones(1).expand(1 << 40))
    with pytest.raises(TemporalLensError, match="no ordinary tensor of numbers that lies in this file"):
        tl.load_dictionary(folder)
    retensor(copy("saelens-standard") / "sae_weights.safetensors", b_enc=torch.empty(0))
    with pytest.raises(TemporalLensError, match="should have shape"):
        tl.load_dictionary(tmp_path / "saelens-standard")
    packed = tmp_path / "packed"
    packed.mkdir()
    with zipfile.ZipFile(folder / "ae.pt") as archive, zipfile.ZipFile(packed / "ae.pt", "w", zipfile.ZIP_DEFLATED) as other:
        for name in archive.namelist():
            other.writestr(name, archive.read(name))
    with pytest.raises(TemporalLensError, match="its parts are packed"):
        tl.load_dictionary(packed)


def test_8_bit_weights_and_words_are_refused(copy: Callable[[str], Path]) -> None:
    folder = copy("saelens-standard")
    retensor(folder / "sae_weights.safetensors", W_enc=torch.zeros(6, 16).to(torch.float8_e4m3fn))
    with pytest.raises(TemporalLensError, match="save it as F32, F16 or BF16"):
        tl.load_dictionary(folder)
    folder = copy("gemma_scope")
    np.savez(folder / "params.npz", W_enc=np.array(["a"]))
    with pytest.raises(TemporalLensError, match="save it as float32"):
        tl.load_dictionary(folder)


def test_arrays_in_fortrans_order_and_older_names_are_read(copy: Callable[[str], Path]) -> None:
    folder, expected = copy("gemma_scope"), loaded("gemma_scope")[1]
    arrays = {name.replace("W_", "w_"): np.asfortranarray(array).astype(">f8") for name, array in np.load(folder / "params.npz").items()}
    np.savez(folder / "params.npz", **arrays, scaling_factor=np.ones(16))
    torch.testing.assert_close(tl.load_dictionary(folder)(expected["x"]), expected["reconstruction"])


def test_embeddings_have_a_scale_to_be_said(copy: Callable[[str], Path], tmp_path: Path) -> None:
    folder = copy("gemma_scope").rename(tmp_path / "embedding")
    with pytest.raises(TemporalLensError, match="give input_scale"):
        tl.load_dictionary(folder)
    assert tl.load_dictionary(folder, input_scale=6**-0.5).config.input_scale == 6**-0.5


def test_llama_scope_takes_norms_and_both_scales_into_account(copy: Callable[[str], Path]) -> None:
    """The formula of its publisher, where SAELens leaves rows of other norms and transcoders' second scale out."""
    folder = copy("llama_scope")
    path = folder / "checkpoints" / "final.safetensors"
    retensor(path, **{"decoder.weight": load_file(path)["decoder.weight"] * torch.linspace(0.5, 2, 16)})
    config = json.loads((folder / "hyperparams.json").read_text())
    config |= {"dataset_average_activation_norm": {"in": 5.0, "out": 2.0}, "jump_relu_threshold": 0.3}
    (folder / "hyperparams.json").write_text(json.dumps(config))
    weights, x = load_file(path), loaded("llama_scope")[1]["x"]
    taken, given = 6**0.5 / 5, 6**0.5 / 2
    pre = x * taken @ weights["encoder.weight"].T + weights["encoder.bias"]
    codes = pre * (pre * weights["decoder.weight"].norm(dim=0) > 0.3 * given)
    assert (codes > 0).any() and (codes == 0).any()
    dictionary = tl.load_dictionary(folder)
    torch.testing.assert_close(dictionary.encode(x), codes.relu())
    torch.testing.assert_close(dictionary(x), (codes.relu() @ weights["decoder.weight"].T + weights["decoder.bias"]) / given)


def test_what_is_no_dictionary_is_refused_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("words")
    for path, sentence in (
        (tmp_path / "nothing", "there is no dictionary at"),
        (tmp_path, "holds no dictionary of a format that is known here"),
        (tmp_path / "x.txt", "holds no dictionary of a format that is known here"),
        ("../user/name", "there is no dictionary at"),
        ("a b/c", "there is no dictionary at"),
    ):
        with pytest.raises(TemporalLensError, match=sentence):
            tl.load_dictionary(path)


def test_what_a_file_calls_its_model_is_printed_and_so_one_line(copy: Callable[[str], Path]) -> None:
    folder = copy("saelens-topk")
    path = folder / "cfg.json"
    config = json.loads(path.read_text())
    for name in ("two\nlines", "red \x1b[31m", "m" * 1001):
        path.write_text(json.dumps(config | {"metadata": config["metadata"] | {"model_name": name}}))
        with pytest.raises(TemporalLensError, match="says something odd of its model: model: a name is one line of printable characters"):
            tl.load_dictionary(folder)
    path.write_text(json.dumps(config | {"architecture": "\x1b[2J\r"}))
    with pytest.raises(TemporalLensError, match=r"says architecture = \\x1b\[2J\\r, which is not known"):
        tl.load_dictionary(folder)


def test_sizes_that_are_requested_must_be_those_of_the_file() -> None:
    for request, sentence in (({"features": 99}, "has features = 16, and features = 99"), ({"output_width": 3}, "output_width = 3 was")):
        with pytest.raises(TemporalLensError, match=sentence):
            tl.load_dictionary(FIXTURES / "saelens-topk", **request)
    assert tl.load_dictionary(FIXTURES / "saelens-topk", features=16, output_width=6).features == 16


def test_links_and_what_is_no_file_are_read_as_what_they_lead_to_or_refused(copy: Callable[[str], Path], tmp_path: Path) -> None:
    folder = copy("saelens-topk")
    for name in ("cfg.json", "sae_weights.safetensors"):  # the hub's own cache is made of links
        (folder / name).rename(tmp_path / name)
        (folder / name).symlink_to(tmp_path / name)
    assert tl.load_dictionary(folder).features == 16
    (folder / "sae_weights.safetensors").unlink()
    for place in (tmp_path / "cfg.json", Path("/dev/zero"), Path("sae_weights.safetensors")):
        (folder / "sae_weights.safetensors").symlink_to(place)
        with pytest.raises(TemporalLensError, match=r"cannot be read as the weights|holds no dictionary of a format"):
            tl.load_dictionary(folder)
        (folder / "sae_weights.safetensors").unlink()


def test_addresses_are_no_names_on_the_hub() -> None:
    for name in ("https://hub.example/user/name", "user/name@main", "hf://user/name"):
        with pytest.raises(TemporalLensError, match="one on the hub is named user/name/folder, without address or revision"):
            tl.load_dictionary(name)


# The command line


def test_nothing_is_written_over(copy: Callable[[str], Path], tmp_path: Path) -> None:
    folder = copy("saelens-topk")
    before = (folder / "cfg.json").read_bytes()
    for out in (folder, folder / "cfg.json"):
        found = CliRunner().invoke(app, ["dictionary", str(folder), "--out", str(out)])
        assert found.exit_code == 2 and "choose an empty folder" in found.output
    assert (folder / "cfg.json").read_bytes() == before


def test_the_command_says_what_a_dictionary_is_and_saves_it_as_ours(tmp_path: Path) -> None:
    run = CliRunner().invoke
    found = run(app, ["dictionary", str(FIXTURES / "saelens-topk"), "--out", str(tmp_path / "ours")])
    assert found.exit_code == 0, found.output
    assert "SAELens: 16 features, width 6; the 2 largest codes of each token are kept" in found.output and "layer: 3" in found.output
    expected = loaded("saelens-topk")[1]
    assert torch.equal(load_ours(tmp_path / "ours").encode(expected["x"]), loaded("saelens-topk")[0].encode(expected["x"]))
    about = tl.interop.saebench.origin(tmp_path / "ours")
    assert (about.model, about.layer, about.bos) == ("tiny", 3, True)
    again = run(app, ["dictionary", str(tmp_path / "ours")])
    assert again.output == found.output.replace(f"{tmp_path / 'ours'}\n", "")
    weights = str(FIXTURES / "saelens-jumprelu" / "sae_weights.safetensors")
    named = run(app, ["dictionary", weights, "--encoder", "W_enc", "--decoder", "W_dec", "--decoder-bias", "b_dec", "--keeps-bias"])
    assert "tensors of a .safetensors file: 16 features, width 6; codes above a threshold of each token are kept" in named.output
    refused = run(app, ["dictionary", weights, "--encoder", "W_en", "--decoder", "W_dec"])
    assert refused.exit_code == 2 and "has no tensor 'W_en'; did you mean 'W_enc'" in refused.output


# The hub


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as fetching files needs: one repository, `user/name`, at one commit."""

    root = FIXTURES
    commit = "0123456789" * 4

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def _answer(self, body: bool) -> None:
        path = self.path.partition("?")[0]
        files = sorted(str(file.relative_to(self.root)) for file in self.root.rglob("*") if file.is_file())
        if path.startswith("/api/models/user/name"):
            tree = [{"type": "file", "path": name, "size": (self.root / name).stat().st_size, "oid": "0" * 40} for name in files]
            content = json.dumps(tree if "/tree/" in path else {"id": "user/name", "sha": self.commit}).encode()
        elif path.removeprefix(f"/user/name/resolve/{self.commit}/") in files:
            content = (self.root / path.removeprefix(f"/user/name/resolve/{self.commit}/")).read_bytes()
        else:
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.end_headers()
            return
        self.send_response(200)
        headers = {"Content-Length": str(len(content)), "ETag": f'"{hash(content) & 0xFFFFFFFF:x}"', "X-Repo-Commit": self.commit}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        """In silence."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    from huggingface_hub import constants

    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        endpoint = f"http://127.0.0.1:{server.server_port}"
        template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        changed = {"ENDPOINT": endpoint, "HUGGINGFACE_CO_URL_TEMPLATE": template, "HF_HUB_CACHE": str(tmp_path / "hub")}
        for name, value in changed.items():
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setattr("temporallens.interop.loading.hub_is_known", lambda: True)
        yield
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("case", ["saelens-topk", "sparsify-topk", "dictionary_learning-AutoEncoderTopK", "gemma_scope", "llama_scope"])
def test_a_hub_name_is_fetched_and_read(case: str, hub: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    inner = json.loads((FIXTURES / case / "request.json").read_text()).get("folder", "")
    dictionary, expected = tl.load_dictionary(f"user/name/{case}/{inner}".rstrip("/")), loaded(case)[1]
    assert dictionary.config.revision == Hub.commit
    torch.testing.assert_close(dictionary(expected["x"]), expected["reconstruction"], rtol=1e-5, atol=1e-5)
    fetched = {path.name for path in (tmp_path / "hub").rglob("*") if path.is_symlink()}
    assert fetched and "expected.safetensors" not in fetched  # nothing but the files of a format
    if case == "sparsify-topk":
        assert dictionary.config.origin.model == "tiny"


def test_one_of_ours_is_fetched_and_read_as_what_it_is(hub: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arm, own = tl.Positional(features=20, k=3, groups=4), tmp_path / "own"
    dictionary = arm.make(6, 8, torch.Generator().manual_seed(0))
    save_dictionary(dictionary, own / "mask", arm, 8)
    monkeypatch.setattr(Hub, "root", own)
    x = torch.randn(2, 8, 6, generator=torch.Generator().manual_seed(1))
    (tmp_path / "else").mkdir()
    monkeypatch.chdir(tmp_path / "else")
    assert torch.equal(tl.load_dictionary("user/name/mask").encode(x), dictionary.eval().encode(x))
    with pytest.raises(TemporalLensError, match="needs positions or tokens: it can be no arm of kind pretrained"):
        read_pretrained(Pretrained(path="user/name/mask"))


def test_what_was_saved_as_ours_is_an_arm_that_is_trained_already(tmp_path: Path) -> None:
    dictionary, expected = loaded("saelens-standard-layer_norm")
    save_dictionary(dictionary, tmp_path / "ours", dictionary.config, 8)
    again = read_pretrained(Pretrained(path=str(tmp_path / "ours"), origin=Origin(model="other")))
    assert torch.equal(again(expected["x"]), dictionary(expected["x"]))
    assert again.config.origin == dictionary.config.origin.model_copy(update={"model": "other"})
    arm = tl.BatchTopK(features=20, k=3)
    trained = arm.make(6, 8, torch.Generator().manual_seed(0)).eval()
    trained.threshold.fill_(0.3)
    save_dictionary(trained, tmp_path / "blind", arm, 8)
    blind = read_pretrained(Pretrained(path=str(tmp_path / "blind")))
    torch.testing.assert_close(blind.encode(expected["x"]), trained.encode(expected["x"]))


def test_one_file_on_the_hub_is_read_by_its_names(hub: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    parts = {"encoder": "w_enc", "decoder": "w_dec"}
    name = "user/name/gemma_scope_2/resid_post/layer_3_width_16k_l0_small/params.safetensors"
    assert tl.load_dictionary(name, **parts).features == 16


def test_what_the_hub_has_not_is_said_in_a_sentence(hub: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, sentence in (("user/other", "found neither here nor on the hub"), ("user/name/none", "has no folder or file none")):
        with pytest.raises(TemporalLensError, match=sentence):
            tl.load_dictionary(name)


MEASURED = """
import sys
import temporallens as tl

def resident(key):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(key)) << 10

tl.load_dictionary(sys.argv[1])  # a small one: what loading imports
with open("/proc/self/clear_refs", "w") as refs:
    refs.write("5")  # the peak begins here
before = resident("VmRSS")
dictionary = tl.load_dictionary(sys.argv[2])
size = sum(tensor.numel() * 4 for tensor in dictionary.state_dict().values())
print((resident("VmHWM") - before) / size)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak is told by Linux")
@pytest.mark.parametrize(
    ("case", "file"), [("saelens-jumprelu", "sae_weights.safetensors"), ("dictionary_learning-JumpReluAutoEncoder", "ae.pt")]
)
def test_a_large_dictionary_is_not_held_twice_while_it_is_loaded(case: str, file: str, tmp_path: Path) -> None:
    width, features = 2304, 16_384
    weights = torch.randn(width, features, generator=torch.Generator().manual_seed(0))
    tensors = {
        "W_enc": weights,
        "W_dec": weights.T,
        "b_enc": torch.zeros(features),
        "b_dec": torch.zeros(width),
        "threshold": torch.ones(features),
    }
    written(tmp_path / file, tensors)
    if case.startswith("saelens"):
        config = {"architecture": "jumprelu", "d_in": width, "d_sae": features, "metadata": {"sae_lens_version": "6.0.0"}}
        (tmp_path / "cfg.json").write_text(json.dumps(config))
    command = [sys.executable, "-c", MEASURED, str(FIXTURES / case), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert float(done.stdout) < 1.3


# The other libraries themselves


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(not interop.PYTHON.exists(), reason="needs make peers")
def test_what_the_libraries_write_today_is_read_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert interop.main([]) < 1e-5
    formats = int(capsys.readouterr().out.strip().splitlines()[-1].split()[0])
    assert formats >= 14
